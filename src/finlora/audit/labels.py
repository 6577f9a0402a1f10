"""Labels that are right about something else: permuted between classes, or taken from another question's column.

Permuted.  A witness answers the set's texts, one that was never shown its labels: naive Bayes of another set with the
same labels, of the set's own train rows, or a language model.  Let C_ab count rows published as a and answered b.  For a
permutation p the agreement beyond chance is

    D(p) = 1/n sum_a (C_a,p(a) - r_a c_p(a) / n),        r, c: row and column sums of C

which frequencies cannot move: a witness that guesses has D = 0 for every p.  Where labels are right the identity has the
largest D.  A set is accused of p when D(p) - D(id) >= CLEAR with z >= SURE (each row's share of the difference, summed
by cluster), for most of the witnesses that are fit to testify: those that use every label, and agree beyond chance with
some permutation.  Plain accuracy would not do: a set of three fifths neutral sides with any witness that likes neutral.

Copied.  Where several questions are asked of the same texts, two with one and the same answer to every text (or its
opposite) were labelled from one column, unless all questions of the set are wordings of one.  Which of the two is wrong
is told by a broader question, one whose words all stand in order in a narrower one ("... about price?", "... about price
going up?"): yes to the narrower is yes to the broader.

Legend: N rows, L labels.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import bayes
from .checks import by
from .findings import Finding, found
from .read import Item, Rows

CLEAR, SURE = 0.03, 4.0
USED = 0.03  # the least share of the answers that each label must have for a witness to be heard
LABELS = 7  # beyond that many, permutations are too many to try
COPIED = 30  # texts that two questions must share to be compared
BROKEN = 0.2  # share of narrower yeses with a broader no from which the broader question is taken to be wrong
_YES = frozenset({"yes", "true", "1"})


@dataclass(frozen=True)
class Testimony:
    """One witness: its permutation (published -> meant), the agreement beyond chance of both, and the z of the difference."""

    witness: str
    best: tuple[int, ...]
    agree: float
    agree_as_is: float
    z: float
    fit: bool

    @property
    def accuses(self) -> bool:
        """Whether it says that the labels are permuted."""
        return self.fit and self.best != tuple(range(len(self.best))) and self.agree - self.agree_as_is >= CLEAR and self.z >= SURE


# -- permuted ----------------------------------------------------------------------------------------------------------


def permuted(held: Rows, split: str, witnesses: Mapping[str, np.ndarray]) -> Iterator[Finding]:
    """The finding, if most fit witnesses accuse the split of one permutation. witnesses: name -> answers, long (N,)."""
    items = held.splits[split]
    published = np.array([held.labels.index(i.gold) for i in items])
    heard = [testify(name, published, said, [i.cluster for i in items], len(held.labels)) for name, said in witnesses.items()]
    fit = [t for t in heard if t.fit]
    accusing = [t for t in fit if t.accuses]
    verdict = Counter(t.best for t in accusing).most_common(1)
    if not verdict or 2 * verdict[0][1] <= len(fit):
        return
    best = verdict[0][0]
    moved = [(held.labels[a], held.labels[b]) for a, b in enumerate(best) if a != b]
    wrong = [i for i in items if i.gold in {a for a, _ in moved}]
    named = [t for t in accusing if t.best == best]
    told = "; ".join(f"{t.witness}: {t.agree:+.3f} so, {t.agree_as_is:+.3f} as published, z {t.z:.1f}" for t in named)
    yield found(
        "permuted-labels", "error" if len(named) > 1 or named[0].z >= 2 * SURE else "warning", f"{held.name} {split}",
        f"labels are permuted: {', '.join(f'`{a}` means {b}' for a, b in moved)}; {len(wrong):,} of {len(items):,} rows ({len(wrong) / len(items):.1%}); {verdict[0][1]} of {len(fit)} witnesses say so (agreement beyond chance, {told})",
        wrong, "compare the codes of the set's own card with the table they were read by", witnesses=verdict[0][1], fit=len(fit), z=max(t.z for t in named),
    )  # fmt: skip


def testify(witness: str, published: np.ndarray, said: np.ndarray, clusters: Sequence[str], L: int) -> Testimony:
    """What one witness says. published, said: long (N,); said -1 where it gave no answer."""
    keep = said >= 0
    a_N, b_N = published[keep], said[keep]
    n = len(a_N)
    if not n:
        return Testimony(witness, tuple(range(L)), 0.0, 0.0, 0.0, False)
    C_LL = np.zeros((L, L))
    np.add.at(C_LL, (a_N, b_N), 1)
    r_L, c_L = C_LL.sum(1), C_LL.sum(0)
    beyond_LL = (C_LL - np.outer(r_L, c_L) / n) / n
    same = tuple(range(L))
    best = max(_permutations(L), key=lambda p: (beyond_LL[same, p].sum(), p == same))
    place_L, back_L = np.array(best), np.argsort(best)
    # each row's influence on D(best) - D(same), by the product rule
    gain = (b_N == place_L[a_N]) - (c_L[place_L[a_N]] + r_L[back_L[b_N]]) / n - (b_N == a_N) + (c_L[a_N] + r_L[b_N]) / n
    rows_of: dict[str, float] = {}
    for cluster, x in zip(itertools.compress(clusters, keep), gain - gain.mean()):
        rows_of[cluster] = rows_of.get(cluster, 0.0) + float(x)
    error = math.sqrt(sum(x * x for x in rows_of.values())) / n
    agree, as_is = float(beyond_LL[same, best].sum()), float(np.trace(beyond_LL))
    used = c_L.min() / n >= USED and r_L.min() > 0
    return Testimony(witness, tuple(map(int, best)), agree, as_is, (agree - as_is) / error if error else 0.0, bool(used) and agree >= CLEAR)


def _permutations(L: int) -> Iterator[tuple[int, ...]]:
    return itertools.permutations(range(L)) if L <= LABELS else iter([tuple(range(L))])


def learn(items: Sequence[Item], labels: Sequence[str]) -> Any:
    """A naive Bayes of these rows: texts -> labels, as counts for `ask`."""
    place = {label: k for k, label in enumerate(labels)}
    y = np.array([place.get(i.gold, -1) for i in items])
    return bayes.counts(bayes.words([i.text for i in items]), y, len(labels))


def ask(learnt: Any, items: Sequence[Item]) -> np.ndarray:
    """Its answer to each item, long (N,)."""
    return bayes.answer(*learnt, bayes.words([i.text for i in items]))


# -- questions ---------------------------------------------------------------------------------------------------------


def questions(held: Rows, split: str) -> Iterator[Finding]:
    """Questions labelled from another's column, and broader questions that their narrower ones contradict."""
    apart = _answers(held.splits[split])
    if len(apart) < 2:
        return
    copies = list(_copies(apart))
    kinds = _classes(list(apart), copies)
    if len(kinds) == 1:
        return  # all are wordings of one question
    broken = _broken(apart)
    for one, other, share, opposite in copies:
        wrong = [q for q in (one, other) if q in broken]
        rows = [i for q in wrong or (one, other) for i in apart[q].values()]
        sure = f"`{wrong[0]}` contradicts its narrower questions, so it is the wrong one" if len(wrong) == 1 else "one of the two was labelled from the other's column, or they are wordings of one question"
        yield found(
            "copied-question", "error", f"{held.name} {split}",
            f"`{one}` and `{other}` have {'opposite answers' if opposite else 'one answer'} to {share:,} of {share:,} texts; {sure}", rows,
            "label the question from its own column", texts=share,
        )  # fmt: skip
    for question, against in broken.items():
        rows = [apart[question][text] for text in dict.fromkeys(t for texts in against.values() for t in texts)]
        worst = max(against, key=lambda q: len(against[q]))
        yield found(
            "broken-implication", "error", f"{held.name} {split}",
            f"`{question}` is answered no for {len(rows):,} of {len(apart[question]):,} texts to which a narrower question is answered yes, most by `{worst}` ({len(against[worst]):,})",
            rows, "at least these answers are wrong; label the question from its own column", texts=len(rows),
        )  # fmt: skip


def skill(items: Sequence[Item], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Per question of 60 rows or more: rows, the commonest answer's share, and naive Bayes held out by cluster, for the page."""
    out = []
    for question, rows in by(items, lambda i: i.ask).items():
        if len(rows) < 2 * COPIED:
            continue
        y = np.array([labels.index(i.gold) for i in rows])
        fold = np.array([int(hashlib.sha256(i.cluster.encode()).hexdigest()[:8], 16) % 5 for i in rows])
        said = bayes.held_out(bayes.words([i.text for i in rows]), y, fold, len(labels))
        out.append({"question": question or "(one form)", "rows": len(rows), "majority": float(np.bincount(y).max() / len(y)), "bayes": float((said == y).mean())})
    return out if len(out) <= 40 else []


def _answers(items: Sequence[Item]) -> dict[str, dict[str, Item]]:
    """{question: {text: its first item}} of questions that many texts share."""
    out: dict[str, dict[str, Item]] = {}
    for i in items:
        out.setdefault(i.ask, {}).setdefault(i.text, i)
    return {q: texts for q, texts in out.items() if len(texts) >= COPIED}


def _copies(apart: Mapping[str, Mapping[str, Item]]) -> Iterator[tuple[str, str, int, bool]]:
    """Pairs of questions whose answers are always the same, or, where there are two answers, always the opposite."""
    for one, other in itertools.combinations(apart, 2):
        shared = [t for t in apart[one] if t in apart[other]]
        a, b = ([apart[q][t].gold for t in shared] for q in (one, other))
        if len(shared) < COPIED or min(Counter(map(str, a)).most_common()[-1][1], Counter(map(str, b)).most_common()[-1][1]) < 5 or len(set(map(str, a))) < 2:
            continue
        equal = sum(x == y for x, y in zip(a, b))
        if equal == len(shared) or (equal == 0 and len({*map(str, a), *map(str, b)}) == 2):
            yield one, other, len(shared), equal == 0


def _classes(names: list[str], copies: Sequence[tuple[str, str, int, bool]]) -> list[set[str]]:
    """Questions joined by equal answers."""
    groups = [{name} for name in names]
    for one, other, _, opposite in copies:
        if not opposite:
            a, b = (next(g for g in groups if q in g) for q in (one, other))
            if a is not b:
                groups.remove(b)
                a |= b
    return groups


def _broken(apart: Mapping[str, Mapping[str, Item]]) -> dict[str, dict[str, list[str]]]:
    """{broader question: {narrower: texts answered yes there and no here}}, where that is more than BROKEN of the yeses."""
    out: dict[str, dict[str, list[str]]] = {}
    for broad, narrow in itertools.permutations(apart, 2):
        if not _within(broad.split(), narrow.split()):
            continue
        yes = [t for t, i in apart[narrow].items() if _is_yes(i) and t in apart[broad]]
        against = [t for t in yes if not _is_yes(apart[broad][t])]
        if len(yes) >= COPIED and len(against) > BROKEN * len(yes):
            out.setdefault(broad, {})[narrow] = against
    return out


def _within(few: Sequence[str], many: Sequence[str]) -> bool:
    """Whether all words of `few` stand in `many` in the same order, and `many` has more."""
    rest = iter(many)
    return 0 < len(few) < len(many) and all(word in rest for word in few)


def _is_yes(item: Item) -> bool:
    return str(item.gold).casefold() in _YES
