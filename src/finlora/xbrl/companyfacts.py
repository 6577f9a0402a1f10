"""The SEC's company-facts JSON (data.sec.gov/api/xbrl/companyfacts/CIK##########.json) becomes filings.

    {"cik": 320193, "entityName": "Apple Inc.", "facts": {"us-gaap": {"Assets": {"label": ..., "units": {"USD": [
        {"end": "2023-09-30", "val": 352583000000, "accn": "0000320193-23-000106", "form": "10-K", "filed": "2023-11-03"}]}}}}}

Each accession number is a filing.  The form has no dimensions, so facts of members are not in it, and no calculation linkbase.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from ..errors import FinloraError
from . import guard
from .facts import Fact, Filing

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


def read_company(path: str | Path) -> list[Filing]:
    """The filings in a company-facts file, in the order of their accession numbers.

    Raises: FinloraError for another form, naming what is amiss and where.
    """
    path = Path(path).expanduser()
    if guard.regular(path) > guard.MOST_BYTES:
        raise FinloraError(f"{path} has more than {guard.MOST_BYTES:,} bytes", "the file is refused")
    try:
        data = path.read_bytes()
        whole = json.loads(data.decode("utf-8-sig"), parse_int=str, parse_float=str, parse_constant=_no)
    except OSError as e:
        raise FinloraError(f"cannot read {path}: {e.strerror or e}", "check the file and its permissions") from None
    except UnicodeDecodeError as e:
        raise FinloraError(f"{path}: byte {e.start} is not UTF-8", "fetch it again") from None
    except (ValueError, RecursionError) as e:
        raise FinloraError(f"{path}:{getattr(e, 'lineno', 1)}: not a whole JSON object ({getattr(e, 'msg', e)})", "fetch it again") from None
    entity = str(_part(whole, "cik", str, path, path.name)).zfill(10)
    company = " ".join(str(whole.get("entityName") or entity).split())
    found: dict[str, list[Fact]] = {}
    for prefix, concepts in _part(whole, "facts", dict, path, path.name).items():
        for name, told in _dict(concepts, path, f"facts.{prefix}").items():
            place = f"facts.{prefix}.{name}"
            label = _dict(told, path, place).get("label")
            for unit, rows in _part(told, "units", dict, path, place).items():
                if not isinstance(rows, list):
                    raise FinloraError(f"{path}: {place}.units.{unit} is no list", "the form of data.sec.gov/api/xbrl/companyfacts is wanted")
                for i, row in enumerate(rows):
                    accession, fact = _fact(_dict(row, path, f"{place}.units.{unit}[{i}]"), f"{prefix}:{name}", str(unit), str(label or ""), path, f"{place}.units.{unit}[{i}]")
                    found.setdefault(accession, []).append(fact)
    if not found:
        raise FinloraError(f"{path} holds no facts", "fetch it again")
    sources = {path.name: hashlib.sha256(data).hexdigest()}
    return [Filing(accession, entity, company, tuple(dict.fromkeys(facts)), sources=sources) for accession, facts in sorted(found.items())]


def _fact(row: dict[str, Any], concept: str, unit: str, label: str, path: Path, place: str) -> tuple[str, Fact]:
    for key in ("end", "val", "accn"):
        if not isinstance(row.get(key), str) or not row[key]:
            raise FinloraError(f"{path}: {place} has no `{key}`", "the form of data.sec.gov/api/xbrl/companyfacts is wanted")
    for key in ("start", "end"):
        if row.get(key) and not _DATE.fullmatch(str(row[key])):
            raise FinloraError(f"{path}: {place}.{key} is {row[key]!r:.40}", "a date such as 2023-09-30")
    fact = Fact(concept, row["val"], str(row.get("start") or ""), row["end"], unit=unit, label=label)
    if fact.number is None:
        raise FinloraError(f"{path}: {place}.val is {row['val']!r:.40}", "a number")
    return row["accn"], fact


def _part(whole: Any, key: str, kind: type, path: Path, place: str) -> Any:
    value = _dict(whole, path, place).get(key)
    if not isinstance(value, kind) or not value:
        raise FinloraError(f"{path}: {place} has no `{key}`", "the form of data.sec.gov/api/xbrl/companyfacts is wanted")
    return value


def _dict(value: Any, path: Path, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FinloraError(f"{path}: {place} is no object", "the form of data.sec.gov/api/xbrl/companyfacts is wanted")
    return value


def _no(text: str) -> Any:
    raise ValueError(f"{text} is not a number in JSON")
