"""Where a study's numbers come from: code, versions, machine, data with their hashes and licences, and the study's own file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from finlora import registry
from finlora.errors import FinloraError
from finlora.report import tables
from finlora.report.html import _code, _count, _device, esc
from finlora.report.study_data import Held
from finlora.report.tables import part

FACTS: tuple[tuple[str, Callable[[Mapping[str, Any]], str]], ...] = (
    ("finlora", lambda r: _code(part(r, "code"))),
    ("model", lambda r: str(part(r, "model").get("name") or tables.DASH)),
    ("machine", lambda r: _device(part(r, "device"))),
    ("peak memory", lambda r: str(part(r, "train").get("peak_how") or tables.DASH)),
    ("energy counters", lambda r: str(part(r, "train").get("joules_how") or "")),
    ("versions", lambda r: ", ".join(f"{k} {v}" for k, v in part(r, "versions").items())),
)


def provenance(held: Held) -> str:
    """The section of the page."""
    sheets = list(held.sheets.values())
    lines = ""
    for title, read in FACTS:
        for value, count in Counter(filter(None, (read(sheet) for sheet in sheets))).most_common():
            share = f' <span class="muted">({count} of {len(sheets)} runs)</span>' if count < len(sheets) else ""
            lines += f'<tr><th scope="row">{title}</th><td>{esc(value)}{share}</td></tr>'
    days = sorted(str(sheet.get("created") or "") for sheet in sheets)
    lines += f'<tr><th scope="row">made</th><td>{esc(days[0][:16])} to {esc(days[-1][:16])} UTC</td></tr>'
    total = sum(part(sheet, "train").get("seconds") or 0 for sheet in sheets)
    lines += f'<tr><th scope="row">training</th><td>{total / 3600:.2f} h over {len(sheets)} graded runs</td></tr>'
    out = f'<table class="facts"><tbody>{lines}</tbody></table>{_data(held)}'
    text = held.folder / "study.toml"
    if text.is_file():
        told = re.sub(r"([\"'])(?:[A-Za-z]:)?/(?:[^\"'/]+/)+([^\"'/]*)\1", r"\1…/\2\1", text.read_text(encoding="utf-8", errors="replace"))
        out += f"<details><summary>The study’s file</summary><div><pre>{esc(told)}</pre></div></details>"
    return out


def _data(held: Held) -> str:
    """Every file that was read, with its hash, and each task's source, licence and errata."""
    rows: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    for sheet in held.sheets.values():
        for d in sheet.get("data") or []:
            rows.setdefault((d.get("task"), d.get("split"), d.get("sha256")), (d.get("rows"), d.get("licence")))
        for task, result in sheet["results"].items():
            rows.setdefault((task, result.get("split", "test"), result.get("data_sha256")), (result.get("n"), ""))
        if text := sheet.get("text"):
            rows.setdefault(("general text", "held out", text.get("sha256")), (text.get("documents"), ""))
    lines = ""
    for (task, split, digest), (count, licence) in sorted(rows.items(), key=lambda item: tuple(map(str, item[0]))):
        source = _source(str(task))
        lines += f'<tr><th scope="row">{esc(str(task))}</th><td>{esc(str(split))}</td><td class="n">{_count(count)}</td><td><code title="{esc(str(digest or ""))}">{esc(str(digest or tables.DASH)[:16])}</code></td>'
        lines += f'<td class="wide">{esc(str(licence or source.get("licence") or tables.DASH))}</td><td class="wide">{esc(source.get("where", ""))}</td></tr>'
    errata = {task: text for task in held.tasks if (text := _source(task).get("errata"))}
    heads = "".join(f'<th scope="col" class="plain{n}">{t}</th>' for t, n in (("data", " pin"), ("split", ""), ("rows", " n"), ("sha256", ""), ("licence", ""), ("source", "")))
    out = f'<h3>Data</h3><div class="scroll" tabindex="0" role="region" aria-label="Data"><table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>'
    said = "".join(f"<li><b>{esc(task)}</b>: {esc(text)}</li>" for task, text in errata.items())
    return out + (f"<h3>Known errata</h3><ul>{said}</ul>" if said else "")


def _source(task: str) -> dict[str, str]:
    try:
        record = registry.pick("task", task)
    except FinloraError:
        return {}
    source = record.source
    where = f"{source.hub} @ {source.revision[:12]}" if source.hub and source.revision else source.hub or source.url or source.finlora
    where = "ships with finlora" if source.package else where
    return {"licence": source.licence, "errata": record.errata, "where": where}
