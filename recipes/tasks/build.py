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
import tone
import words as w
from series import decks

SEED = 20260801
CLUSTERS = {"train": 1000, "val": 80, "test": 160}  # each gives one text of every label
PUBLIC = {"train": 150, "val": 12, "test": 24}  # of those, in `tone`, clusters of real figures
HOME = Path(__file__).resolve().parents[2] / "src" / "finlora" / "embedded" / "tasks"
TASKS = {"tone": tone, "guidance": guidance}


def rows(name: str, split: str) -> list[dict]:
    """The rows of a split; a cluster of which two texts came out alike, or as an earlier one, is left out (a public one: drawn anew)."""
    module, rng = TASKS[name], random.Random(f"{SEED} {name} {split}")
    deal, seen, out = decks(rng), set(), []
    firms = [f"{a} {b}" for a in w.FIRST[split] for b in w.SECOND[split]]
    public = PUBLIC[split] if name == "tone" else 0
    for k in range(CLUSTERS[split]):
        real = k >= CLUSTERS[split] - public
        families = module.PUBLIC[split] if real else module.FAMILIES[split]
        for _ in range(100 if real else 1):
            family = deal(("family", real), sorted(families))
            pattern, company = deal(("pattern", family), families[family]), deal(("firm", real), sorted(facts.FACTS[split]) if real else firms)
            thing = (module.Public if real else module.Instance)(pattern, company, deal, rng, split)
            texts = [thing.text(label) for label in (-1, 0, 1)]
            alike = {t.replace(";", ",") for t in texts}
            if len(alike - seen) == 3:
                break
        else:
            continue
        seen.update(alike)
        for text, label in zip(texts, module.LABELS, strict=True):
            out.append({"context": f"{text}\n{module.ASK}", "target": label, "family": family, "company": company, "cluster": f"{name} {split} {k}"})
    rng.shuffle(out)
    return [{"id": f"{name}-{split}-{i:04d}", **r} for i, r in enumerate(out)]


def build(folder: Path) -> None:
    """Writes the six files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in TASKS:
        for split in CLUSTERS:
            lines = (json.dumps(r, ensure_ascii=True) for r in rows(name, split))
            (folder / f"{name}_{split}.jsonl").write_bytes(("\n".join(lines) + "\n").encode("ascii"))


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else HOME)
