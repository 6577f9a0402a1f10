"""Builds the two embedded tasks: `python build.py [FOLDER]` writes {tone,guidance}_{train,val,test}.jsonl.

Deterministic: the same files, byte for byte, from the same sources (seed below).
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import facts
import guidance
import guidance_templates
import lexicon as lx
import tone
import tone_templates
from grammar import Decks

SEED = 20260801
INSTANCES = {"train": 1500, "val": 80, "test": 160}  # clusters; each gives KEEP texts
KEEP = {"train": 2, "val": 3, "test": 3}
HOME = Path(__file__).resolve().parents[2] / "src" / "finlora" / "embedded" / "tasks"
TASKS = {"tone": (tone, tone_templates), "guidance": (guidance, guidance_templates)}


def companies(split: str, rng: random.Random) -> list[tuple[str, str]]:
    """Invented companies of a split with their tickers (consonants of the stem)."""
    out = []
    for i, stem in enumerate(lx.STEMS[split]):
        letters = stem[0] + "".join(c for c in stem[1:] if c not in "aeiou")
        for j in range(2):
            out.append((f"{stem} {lx.SECTORS[(i * 7 + j * 3) % len(lx.SECTORS)]}", (letters[:3] + stem[-1 - j]).upper()))
    rng.shuffle(out)
    return out


def row(module, text: str, label: int, family: str, company: str, cluster: str) -> dict:
    options = "/".join(module.LABELS)
    context = f"Instruction: {module.QUESTION} Please choose an answer from {{{options}}}.\nInput: {text}\nAnswer: "
    return {"context": context, "target": module.LABELS[label + 1], "family": family, "company": company, "cluster": cluster}


def made(module, templates, split: str, rng: random.Random) -> list[dict]:
    """Rows of invented companies."""
    decks, rows, seen = Decks(rng), [], set()
    firms = companies(split, rng)
    total = sum(share for logic, share in templates.SHARES[split].items() if logic != "public")
    for logic, share in templates.SHARES[split].items():
        if logic == "public":
            continue
        families = {f: pats for f, (where, pats) in templates.FAMILIES[logic].items() if where == split}
        count = round(INSTANCES[split] * share / total)
        for _ in range(count):
            family = decks.deal(("family", logic), sorted(families))
            pattern = decks.deal(("pattern", family), families[family])
            company, ticker = decks.deal(("firm", logic), firms)
            thing = module.Instance(logic, pattern, company, ticker, decks, rng, split)
            labels = [-1, 0, 1]
            if KEEP[split] == 2:
                labels.remove(decks.deal(("left out", family), (-1, 0, 1)))
            for label in labels:
                text = thing.text(label)
                if text not in seen:
                    seen.add(text)
                    rows.append(row(module, text, label, family, company, f"{company}: {thing.figure}"))
    return rows


def public(module, templates, split: str, rng: random.Random) -> list[dict]:
    """Rows on real companies: equally many of each label, each fact at most once under a label."""
    decks, by_label, seen = Decks(rng), {-1: [], 0: [], 1: []}, set()
    families = {f: pats for f, (where, pats) in templates.FAMILIES["public"].items() if where == split}
    every = [(c, t, fact) for (c, t), items in facts.BY_SPLIT[split].items() for fact in items if tone.usable(fact)]
    for level in (False, True):
        names = sorted(f for f in families if ("level" in f) == level)
        rng.shuffle(every)
        for company, ticker, fact in every * 2:
            family = decks.deal(("family", level), names)
            text, label = module.public_text(decks.deal(("pattern", family), families[family]), company, ticker, fact, decks)
            if text not in seen:
                seen.add(text)
                by_label[label].append(row(module, text, label, family, company, f"{company}: {fact[0]} {fact[1]}"))
    share = templates.SHARES[split]["public"] * INSTANCES[split] * KEEP[split]
    size = min(round(share / 3), *(len(rows) for rows in by_label.values()))
    return [r for rows in by_label.values() for r in rows[:size]]


def build(folder: Path) -> None:
    """Writes the six files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (module, templates) in TASKS.items():
        for split in INSTANCES:
            rng = random.Random(f"{SEED} {name} {split}")
            rows = made(module, templates, split, rng)
            if "public" in templates.FAMILIES:
                rows += public(module, templates, split, rng)
            rng.shuffle(rows)
            lines = (json.dumps({"id": f"{name}-{split}-{i:04d}", **r}, ensure_ascii=True) for i, r in enumerate(rows))
            (folder / f"{name}_{split}.jsonl").write_bytes(("\n".join(lines) + "\n").encode("ascii"))


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else HOME)
