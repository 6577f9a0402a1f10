"""Several seeds of one run: intervals and differences that count the seed as well as the examples.

    x_SI: marks of S seeds on the same I examples.   var(mean) = v_I / I + v_S / S

v_I is the variance of the examples' means over the seeds (of their clusters, where examples belong together), v_S that of the
seeds' means over the examples.  Each part keeps its own Student t, and the half-widths add as squares (a recovered-variance
interval: Zou and Donner, 2008):

    half^2 = t(C-1)^2 v_I + t(S-1)^2 v_S        C clusters of examples

Noise that is in both parts is counted twice, so the interval errs on the wide side.  An interval over examples alone,
the habit of tables made with one seed, says nothing of how another seed would do (the seed as a random effect).

Shapes: x_SI (seeds, examples), clusters (I,) labels of what belongs together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .errors import FinloraError
from .score import Estimate, Record


@dataclass(frozen=True)
class Seeded:
    """A mean over seeds and examples. of_seeds, of_examples: the two standard errors. p: two-sided, against zero."""

    estimate: Estimate
    seeds: int
    of_seeds: float
    of_examples: float
    p: float


def marks(runs: Sequence[Sequence[Record]]) -> tuple[np.ndarray, list[str], list[str]]:
    """(x_SI, ids, clusters) of one task's records from several seeds, matched by id.

    Raises: FinloraError where the seeds were not graded on the same examples.
    """
    if not runs or not runs[0]:
        raise FinloraError("no records to score", "did the runs finish?")
    first = {r.id: r for r in runs[0]}
    ids = sorted(first)
    for run in runs:
        if {r.id for r in run} != set(ids) or len(run) != len(ids):
            raise FinloraError("the seeds do not share their records", "grade all on the same task, split and limit")
    x = np.array([[r.correct for r in sorted(run, key=lambda r: r.id)] for run in runs], dtype=float)
    return x, ids, [first[i].cluster or i for i in ids]


def over_seeds(x_SI: np.ndarray, clusters: Sequence[str], level: float = 0.95) -> Seeded:
    """The mean of marks (or of differences of marks) with an interval for another seed and other examples.

    One seed: the interval is over the examples alone, and says so.
    Raises: FinloraError with fewer than 2 clusters.
    """
    from scipy.special import stdtrit

    S, I = x_SI.shape
    value = float(x_SI.mean())
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    C = int(index.max()) + 1
    if C < 2:
        raise FinloraError(f"an interval needs at least 2 clusters, there are {C}")
    # linearised cluster totals: examples of a cluster stand or fall together
    totals = np.bincount(index, weights=x_SI.mean(0) - value)
    v_I = C / (C - 1) * float((totals**2).sum()) / I**2
    v_S = float(x_SI.mean(1).var(ddof=1)) / S if S > 1 else 0.0
    if v_I + v_S == 0:  # nothing varied: rule of three for what was not seen
        reach = 3.0 / C
        return Seeded(Estimate(value, value - reach, value + reach, I, C, "rule of three, no variation seen"), S, 0.0, 0.0, 1.0)

    def half(tail: float) -> float:
        t_S = stdtrit(S - 1, 1 - tail / 2) if v_S else 0.0
        return math.sqrt(stdtrit(C - 1, 1 - tail / 2) ** 2 * v_I + t_S**2 * v_S)

    reach = half(1 - level)
    p = _tail(half, abs(value))
    how = f"t over {S} seeds and {C} clusters" if S > 1 else f"t over {C} clusters, one seed"
    return Seeded(Estimate(value, value - reach, value + reach, I, C, how), S, math.sqrt(v_S), math.sqrt(v_I), p)


def _tail(half: Callable[[float], float], distance: float) -> float:
    """The p whose interval just reaches zero, by bisection."""
    low, high = 1e-12, 1.0
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if half(middle) > distance else (low, middle)
    return high


def paired_over_seeds(a: Sequence[Sequence[Record]], b: Sequence[Sequence[Record]], level: float = 0.95) -> Seeded:
    """How runs of method a differ from runs of b, seed by seed and example by example.

    a, b: records of the same seeds in the same order. Raises: FinloraError where seeds or examples do not match.
    """
    if len(a) != len(b):
        raise FinloraError(f"{len(a)} seeds against {len(b)}", "compare the same seeds")
    x, ids, clusters = marks(a)
    y, others, _ = marks(b)
    if ids != others:
        raise FinloraError("the runs do not share their records", "grade both on the same task, split and limit")
    return over_seeds(x - y, clusters, level)
