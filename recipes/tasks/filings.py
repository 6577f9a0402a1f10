"""Makes the rows of `filings` from XBRL filings: `python filings.py FOLDER [OUT]` writes filings_{train,val,test}.jsonl.

FOLDER holds filings (instances, inline documents, or folders of them); those of other companies than below are passed over.
Only figures are taken: the concept's name, its value, period and unit, the company's name; no text of a filer.  Needs
`pip install finlora[xbrl]`.  Deterministic: the same filings give the same bytes.

A row shows six figures, three concepts of like size at two dates, and asks for one of them again.  The gold is drawn evenly
from the six after they are chosen, so that neither concept, date, size nor place tells it.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections import defaultdict
from decimal import Decimal
from pathlib import Path

from finlora.errors import FinloraError
from finlora.xbrl.attack import attack
from finlora.xbrl.facts import Fact, Filing, read_filing
from finlora.xbrl.items import usable

SEED = 20260801
COMPANIES = {
    "train": {"0000320193": "Apple", "0001158114": "Applied Optoelectronics"},
    "val": {"0001065280": "Netflix"},
    "test": {"0000949870": "Boston Beer"},
}
ROWS = {"train": 600, "val": 120, "test": 150}
MOST_EACH = 3  # rows that ask for one concept of one company at one date
MOST_WORDS = 6
ALIKE = 4  # the largest of the six is at most so many times the smallest
MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
HOME = Path(__file__).resolve().parents[2] / "src" / "finlora" / "embedded" / "tasks"


def words(concept: str) -> str:
    """us-gaap:NetIncomeLoss is "net income loss"."""
    name = concept.partition(":")[2]
    return " ".join(w if w.isupper() and len(w) > 1 else w.lower() for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name))


def date(day: str) -> str:
    """2023-09-30 is "Sep 2023"."""
    return f"{MONTHS[int(day[5:7]) - 1]} {day[:4]}"


def millions(value: Decimal) -> str:
    """The figure in millions, with a decimal below a thousand."""
    value = value / 1_000_000
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.1f}"


def months(fact: Fact) -> int:
    """How long the fact's period lasts, in whole months; 0 for a date."""
    if not fact.start:
        return 0
    (a, b), (c, d) = ((int(t[:4]) * 12 + int(t[5:7]), int(t[8:])) for t in (fact.start, fact.end))
    return round(c - a + (d - b + 1) / 30.4)


def filings(folder: Path) -> list[Filing]:
    """Every filing under the folder, an inline document before the instance made of it."""
    found: dict[tuple, Filing] = {}
    places = [p for p in sorted(folder.rglob("*")) if p.suffix in (".xml", ".htm", ".xhtml") and not re.search(r"_(cal|def|lab|pre)\.xml$|^R\d+\.htm$", p.name)]
    for path in places:
        try:
            filing = read_filing(path)
        except FinloraError as e:
            print(f"passed over: {e}", file=sys.stderr)
            continue
        found.setdefault((filing.entity, filing.name.removesuffix("_htm")), filing)
    return list(found.values())


def tables(filing: Filing) -> list[dict[tuple[str, str], Fact]]:
    """Tables {(concept in words, date): fact}: one of dates, one of each length of period, without members, in dollars."""
    out: dict[int, dict[tuple[str, str], Fact]] = defaultdict(dict)
    clash = set()
    for fact in usable(filing):
        name = words(fact.concept)
        if fact.members or fact.unit != "USD" or fact.number < 100_000 or len(name.split()) > MOST_WORDS or months(fact) not in (0, 3, 6, 9, 12):
            continue
        key = (name, date(fact.end))
        if key in out[months(fact)]:
            clash.add((months(fact), key))
        out[months(fact)][key] = fact
    for length, key in clash:
        out[length].pop(key, None)
    return [out[k] for k in sorted(out) if out[k]]


def draw(filing: Filing, company: str, rng: random.Random) -> dict | None:
    """One row, or None where the draw gives none."""
    table = rng.choice(tables_of(filing))
    length = months(next(iter(table.values())))
    days = sorted({day for _, day in table})
    if len(days) < 2:
        return None
    one, two = rng.sample(days, 2)
    both = sorted({c for c, day in table if day == one} & {c for c, day in table if day == two})
    if len(both) < 3:
        return None
    seed = rng.choice(both)
    size = table[seed, one].number
    near = [c for c in both if max(table[c, d].number for d in (one, two)) <= ALIKE * size and min(table[c, d].number for d in (one, two)) * ALIKE >= size]
    if seed not in near or len(near) < 3:
        return None
    three = [seed, *rng.sample([c for c in near if c != seed], 2)]
    cells = [(c, d) for c in three for d in (one, two)]
    values = [table[k].number for k in cells]
    shown = {k: millions(table[k].number) for k in cells}
    if len(set(shown.values())) < 6 or max(values) > ALIKE * min(values):
        return None
    gold = rng.choice(cells)
    rng.shuffle(cells)
    head = f"{company}, millions of dollars, {'at each date' if not length else f'{length} months to each date'}:"
    question = f"{gold[0]}, {gold[1]}: "
    context = "\n".join([head, *(f"{c}, {d}: {shown[c, d]}" for c, d in cells), "", question])
    choices = [shown[k] for k in cells]
    rng.shuffle(choices)
    return {"context": context, "target": shown[gold], "choices": choices, "company": company, "cluster": f"{company} {gold[0]}", "question": question, "filing": filing.name.removesuffix("_htm")}


_TABLES: dict[int, list] = {}


def tables_of(filing: Filing) -> list[dict[tuple[str, str], Fact]]:
    """`tables`, made once a filing."""
    return _TABLES.setdefault(id(filing), tables(filing))


def rows(split: str, known: list[Filing]) -> list[dict]:
    """The rows of a split, a filing at a time in turn."""
    rng, out, seen, count = random.Random(f"{SEED} filings {split}"), [], set(), defaultdict(int)
    own = [f for f in known if f.entity in COMPANIES[split]]
    for turn in range(400 * ROWS[split]):
        if len(out) == ROWS[split]:
            break
        filing = own[turn % len(own)]
        row = draw(filing, COMPANIES[split][filing.entity], rng)
        if row is None or row["context"] in seen or count[row["company"], row["question"]] >= MOST_EACH:
            continue
        seen.add(row["context"])
        count[row["company"], row["question"]] += 1
        out.append(row)
    return [{"id": f"filings-{split}-{i:04d}", **r} for i, r in enumerate(out)]


def build(folder: Path, out: Path) -> None:
    """Writes the three files and prints what readers without the figures reach."""
    known = filings(folder)
    made = {split: rows(split, known) for split in ROWS}
    for split, some in made.items():
        lines = (json.dumps({k: v for k, v in r.items() if k != "question"}, ensure_ascii=True) for r in some)
        (out / f"filings_{split}.jsonl").write_bytes(("\n".join(lines) + "\n").encode("ascii"))
        print(f"{split}: {len(some)} rows, {len({r['cluster'] for r in some})} clusters, {sorted({r['filing'] for r in some})}, {max(map(len, (r['context'] for r in some)))} characters at most")
    bare = {s: [r | {"target": r["target"].replace(",", ""), "choices": [c.replace(",", "") for c in r["choices"]]} for r in some] for s, some in made.items()}
    for split in ("val", "test"):
        print(split, {name: round(a.accuracy, 3) for name, a in attack(bare["train"], bare[split]).items()})


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else HOME)
