"""Texts that stand in two splits of a set: what was trained on and is then asked.

Of each pair of splits the later (train < validation < test) is the one whose score suffers.  Texts are compared, not
prompts: a sentence that was trained on under another question has been seen all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from . import near
from .findings import Finding, found
from .read import Rows

GRAVE = 0.01  # share of the rows from which an overlap is an error: it moves a score by as much as methods differ


def between(held: Rows) -> Iterator[Finding]:
    """The overlap of each two splits of the set: same texts, and near ones."""
    order = [s for s in ("train", "validation", "test") if s in held.splits]
    for first, second in combinations(order, 2):
        yield from overlap(held, first, second)


def overlap(held: Rows, first: str, second: str) -> Iterator[Finding]:
    """What of `second` stands in `first`."""
    a, b = held.splits[first], held.splits[second]
    what = f"{held.name} {second}"
    seen: dict[str, set[str]] = {}
    taught: dict[str, set[str]] = {}
    for i in a:
        seen.setdefault(i.text, set()).add(i.prompt)
        taught.setdefault(i.key, set()).add(repr(i.gold))
    shared = [i for i in b if i.text in seen]
    if shared:
        exact = sum(i.prompt in seen[i.text] for i in shared)
        agree = sum(repr(i.gold) in taught.get(i.key, ()) for i in shared)
        texts = len({i.text for i in shared})
        share = len(shared) / len(b)
        yield found(
            "overlap", "error" if share >= GRAVE else "warning", what,
            f"{len(shared):,} of {len(b):,} rows ({share:.1%}; {texts:,} texts) have a text that is also in {first}: {exact:,} the same prompt letter for letter, {agree:,} the same question with the same answer",
            shared, f"drop them from {first}, or state the score without them", rows=len(shared), texts=texts, exact=exact, agree=agree,
        )  # fmt: skip
    old = list(dict.fromkeys(i.text for i in a))
    new = list({i.text: i for i in reversed(b) if i.text and i.text not in seen}.values())[::-1]
    alike = near.across(near.prepare([*old, *(i.text for i in new)]), len(old)) if old and new else {}
    if alike:
        texts = {new[k - len(old)].text for k in alike}
        rows = [i for i in b if i.text in texts]
        yield found(
            "near-overlap", "warning" if len(rows) >= GRAVE * len(b) else "note", what,
            f"{len(rows):,} of {len(b):,} rows ({len(texts):,} texts) are near a text of {first} (Jaccard {near.ALIKE:g} or more) without being the same",
            rows, "look at some: a changed number may be a new question, or the same one again", texts=len(texts),
        )  # fmt: skip
