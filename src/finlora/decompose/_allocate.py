"""Which rank each weight gets, under a budget of parameters that is never overdrawn.

    uniform    the same share of every weight: k = keep * O I / (O + I)
    spectral   a part `floor` of that to everyone, the rest one rank at a time where it takes most of the relative squared output
               error for its parameters: the least sum of those errors over the model, where spectra fall (ours)
    scored     a part `floor` of that to everyone, the rest by score, within each kind of weight (Swift-SVD*, 2604.01609)

    score = importance^alpha * log(e + loss)^(1 - alpha)

importance is how much the weight's block turns its inputs, 1 + its 1 - cos(block's input, output) brought to [0, 1] over the
blocks; loss is the root of the squared output error that the uniform rank leaves.  (The authors' code takes the norm of the
whole spectrum for the loss, and their sums over tokens make log(e + loss) depend on how much text was read; ours are means.)
There budget moves between blocks but not between kinds (q_proj and down_proj): outputs of different kinds have no common
unit; the relative errors of spectral have one. Without a floor either starves some weights, which is known to hurt.

A rank k of an O x I weight is k (O + I) parameters. One that would not be fewer than O I is no rank: the weight stays dense,
which is written None, and costs O I.  Whole numbers leave a rest, which is given out one rank at a time, to those first who
lost most by rounding down.

Shapes: O out, I in of a weight.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence

from ..errors import FinloraError

Shapes = Mapping[str, tuple[int, int]]
Ranks = dict[str, int | None]


def most(shape: tuple[int, int]) -> int:
    """The largest rank with fewer parameters than the weight has; 0 where there is none."""
    O, I = shape
    return (O * I - 1) // (O + I)


def cost(shape: tuple[int, int], rank: int | None) -> int:
    """Parameters of a weight at that rank; None is dense."""
    O, I = shape
    return O * I if rank is None else rank * (O + I)


def spent(shapes: Shapes, ranks: Mapping[str, int | None]) -> int:
    """Parameters of these weights together."""
    return sum(cost(shape, ranks[name]) for name, shape in shapes.items())


def budget(shapes: Shapes, keep: float) -> int:
    """The most parameters that the weights may have together.

    Raises: FinloraError naming the least share that can be kept, where `keep` is below it.
    """
    total = sum(O * I for O, I in shapes.values())
    least = sum(cost(s, 1 if most(s) else None) for s in shapes.values())
    if math.floor(keep * total) < least:
        share = math.ceil(1e4 * least / total) / 1e4
        raise FinloraError(f"keep is {keep:g}, and rank 1 everywhere keeps {share:g} already", f"keep at least {share:g}")
    return math.floor(keep * total)


def uniform(shapes: Shapes, keep: float) -> Ranks:
    """Every weight keeps the same share.

    Raises: FinloraError where even rank 1 is more than the budget.
    """
    return _fill(shapes, budget(shapes, keep), {n: O * I / (O + I) for n, (O, I) in shapes.items()}, dict.fromkeys(shapes, 0.0))


def scored(shapes: Shapes, keep: float, scores: Mapping[str, float], floor: float = 0.5) -> Ranks:
    """A part `floor` of the uniform rank to every weight, the rest by `scores` within each kind.

    Raises: FinloraError where even rank 1 is more than the budget.
    """
    even = uniform(shapes, keep)
    ranks: Ranks = {}
    for kind in dict.fromkeys(map(_kind, shapes.items())):
        names = [n for n, s in shapes.items() if _kind((n, s)) == kind]
        share = {n: cost(shapes[n], even[n]) / sum(shapes[n]) for n in names}  # the uniform rank, whole weights included
        ours = {n: shapes[n] for n in names}
        ranks |= _fill(ours, spent(ours, even), {n: share[n] * scores[n] for n in names}, {n: floor * share[n] for n in names})
    return _rest(shapes, budget(shapes, keep), {n: ranks[n] for n in shapes}, scores)


def spectral(shapes: Shapes, keep: float, errors: Mapping[str, Sequence[float]], floor: float = 0.5) -> Ranks:
    """A part `floor` of the uniform rank to every weight, the rest where it takes most relative error for its parameters.

    errors: squared output errors at rank 0, 1, ... of each weight that has a rank at all (`most`).
    Raises: FinloraError where even rank 1 is more than the budget.
    """
    even = uniform(shapes, keep)
    ranks: Ranks = {n: min(most(s), max(1, int(floor * cost(s, even[n]) / sum(s)))) if most(s) else None for n, s in shapes.items()}
    left = budget(shapes, keep) - spent(shapes, ranks)

    def step(name: str) -> tuple[float, int, str, int | None, int]:
        """(-gain for a parameter, place, name, the next rank, its parameters)."""
        now, top = ranks[name], most(shapes[name])
        new = now + 1 if now < top else None
        more = cost(shapes[name], new) - cost(shapes[name], now)
        gain = (errors[name][now] - (errors[name][new] if new else 0.0)) / (errors[name][0] or 1.0)
        return -gain / more, order[name], name, new, more

    order = {n: k for k, n in enumerate(shapes)}
    heap = [step(n) for n, k in ranks.items() if k is not None]
    heapq.heapify(heap)
    while heap:
        _, _, name, new, more = heapq.heappop(heap)
        if more <= left:
            ranks[name], left = new, left - more
            if new is not None:
                heapq.heappush(heap, step(name))
    return ranks


def score(importance: float, loss: float, alpha: float) -> float:
    """importance^alpha * log(e + loss)^(1 - alpha)."""
    return importance**alpha * math.log(math.e + loss) ** (1 - alpha)


def importances(turned: Mapping[str, float]) -> dict[str, float]:
    """1 - cos of each block's input and output, brought to [1, 2] over the blocks."""
    low, high = min(turned.values()), max(turned.values())
    return {name: 1 + (value - low) / (high - low) if high > low else 1.0 for name, value in turned.items()}


def _kind(item: tuple[str, tuple[int, int]]) -> tuple:
    return item[0].rsplit(".", 1)[-1], item[1]


def _fill(shapes: Shapes, limit: int, rates: Mapping[str, float], floors: Mapping[str, float]) -> Ranks:
    """Ranks floor + t * rate with the largest t that the limit bears; whoever reaches the dense weight's cost stays dense."""
    full = {n: O * I / (O + I) for n, (O, I) in shapes.items()}  # the rank at which factors cost what the weight does
    least = {n: min(max(1.0, floors[n]), full[n]) for n in shapes}

    def at(t: float) -> dict[str, float]:
        return {n: min(full[n], max(least[n], floors[n] + t * rates[n])) if most(shapes[n]) else full[n] for n in shapes}

    def price(ks: Mapping[str, float]) -> float:
        return sum(k * sum(shapes[n]) for n, k in ks.items())

    low, high = 0.0, 1.0
    while price(at(high)) < limit and high < 1e12:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if price(at(middle)) <= limit else (low, middle)
    ks = at(low)
    ranks: Ranks = {n: None if k >= full[n] * (1 - 1e-12) else max(1, min(int(k + 1e-9), most(shapes[n]))) for n, k in ks.items()}
    for name in sorted(shapes, key=lambda n: ks[n] - (ranks[n] or 0)):  # floors below 1 were raised to it
        while spent(shapes, ranks) > limit and ranks[name] is not None and ranks[name] > 1:
            ranks[name] -= 1
    return _rest(shapes, limit, ranks, {n: ks[n] - ranks[n] if ranks[n] else 0.0 for n in shapes})


def _rest(shapes: Shapes, limit: int, ranks: Ranks, wish: Mapping[str, float]) -> Ranks:
    """What the limit leaves, one rank at a time in the order of `wish`, until nothing more fits."""
    ranks, left, given = dict(ranks), limit - spent(shapes, ranks), True
    while given:
        given = False
        for name in sorted(shapes, key=lambda n: -wish[n]):
            now = ranks[name]
            if now is None:
                continue
            new = now + 1 if now < most(shapes[name]) else None
            more = cost(shapes[name], new) - cost(shapes[name], now)
            if more <= left:
                ranks[name], left, given = new, left - more, True
    return ranks
