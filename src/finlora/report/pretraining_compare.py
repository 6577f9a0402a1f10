"""Structured arms against dense at equal tokens, FLOPs, wall time and memory, paired by seed; how the difference goes with size.

    d_s = loss of the arm at seed s - loss of dense at seed s, size for size;   mean d +- t(S - 1) sd(d) / sqrt(S)

At equal tokens dense is the run itself.  At equal FLOPs or wall time it is what dense would have reached on the tokens that the
arm's FLOPs or seconds buy it, by a line in log tokens between the two dense budgets around them; at equal memory, by a line in
log parameters between the two dense sizes around the arm's.  Where no two lie around it, the comparison is "not measured":
nothing is extrapolated.  A chord lies above a convex curve, so that dense is shown a little worse than it would have been, the
less the closer the budgets stand.

All intervals count the seeds alone, on one held-out text.  With S seeds they rest on S - 1 degrees of freedom.

Shapes: lists over S seeds; x, y of a line over sizes and seeds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from finlora import score
from finlora.report.pretraining_data import EQUAL, Study, Trained

WAYS = ("tokens", "flops", "wall", "memory")
STATE = 16  # bytes of training state for each value: fp32 weight, gradient and AdamW's two moments


def interval(values: Sequence[float], level: float = 0.95) -> dict[str, Any]:
    """{"value", "low", "high", "n", "p"}: the mean with Student's interval; p two-sided against 0. One value has neither."""
    from scipy.special import stdtr, stdtrit

    n, mean = len(values), statistics.fmean(values)
    if n < 2:
        return {"value": mean, "low": None, "high": None, "n": n, "p": None}
    error = statistics.stdev(values) / math.sqrt(n)
    reach = float(stdtrit(n - 1, (1 + level) / 2)) * error
    p = float(2 * stdtr(n - 1, -abs(mean) / error)) if error else float(mean == 0)
    return {"value": mean, "low": mean - reach, "high": mean + reach, "n": n, "p": p}


def between(points: Sequence[tuple[float, float]], x: float) -> float | None:
    """y at x by a line in log x between the two points around it; None outside them."""
    points = sorted(points)
    for at, y in points:
        if math.isclose(at, x, rel_tol=1e-6):
            return y
    for (a, left), (b, right) in zip(points, points[1:]):
        if a < x < b:
            return left + (right - left) * math.log(x / a) / math.log(b / a)
    return None


def line(xs: Sequence[float], ys: Sequence[float], level: float = 0.95) -> dict[str, Any] | None:
    """Least squares: {"value", "low", "high", "p", "n"} of the slope; None with fewer than 3 points or one x."""
    from scipy.special import stdtr, stdtrit

    n = len(xs)
    middle = statistics.fmean(xs) if xs else 0.0
    spread = sum((x - middle) ** 2 for x in xs)
    if n < 3 or not spread:
        return None
    mean = statistics.fmean(ys)
    slope = sum((x - middle) * (y - mean) for x, y in zip(xs, ys)) / spread
    rest = sum((y - mean - slope * (x - middle)) ** 2 for x, y in zip(xs, ys))
    error = math.sqrt(rest / (n - 2) / spread)
    reach = float(stdtrit(n - 2, (1 + level) / 2)) * error
    p = float(2 * stdtr(n - 2, -abs(slope) / error)) if error else float(slope == 0)
    return {"value": slope, "low": slope - reach, "high": slope + reach, "p": p, "n": n}


def pairs(study: Study, size: str, arm: str) -> list[tuple[Trained, Trained]]:
    """(run, dense run) of the same seed and as many tokens."""
    own, base = study.of(size, arm), study.of(size, study.reference)
    both = [(own[seed], base[seed]) for seed in own if seed in base]
    return [(a, b) for a, b in both if math.isclose(a.tokens, b.tokens, rel_tol=EQUAL)]


def speeds(study: Study) -> list[dict[str, Any]]:
    """Tokens a second of each arm over dense's: {"size", "arm", "ratio": interval of the ratio, "median": ratio of the medians}."""
    out = []
    for size in study.sizes:
        base = study.of(size, study.reference)
        for arm in study.compared():
            own = study.of(size, arm)
            logs = [math.log(own[s].rate / base[s].rate) for s in own if s in base]
            if logs:
                found = interval(logs)
                found = {k: v if k in ("n", "p") or v is None else math.exp(v) for k, v in found.items()}
                out.append({"size": size, "arm": arm, "ratio": found, "median": _rate(own.values()) / _rate(base.values())})
    return out


def compare(study: Study, state: Callable[[Trained], float]) -> dict[str, list[dict[str, Any]]]:
    """{way: rows} of every way in WAYS, p adjusted by Holm within each.

    state: bytes of training state of a run.  A row is {"size", "arm", "difference": an interval with "holm_p", or None, "dense": the
    mean place on dense's line (tokens; parameters for memory), "why": why it was not measured}.
    """
    out: dict[str, list[dict[str, Any]]] = {}
    for way in WAYS:
        rows = [_row(study, way, size, arm, state) for size in study.sizes for arm in study.compared() if study.of(size, arm)]
        tested = [row["difference"] for row in rows if row["difference"] and row["difference"]["p"] is not None]
        for found, p in zip(tested, score.holm([found["p"] for found in tested])):
            found["holm_p"] = p
        out[way] = rows
    return out


def _row(study: Study, way: str, size: str, arm: str, state: Callable[[Trained], float]) -> dict[str, Any]:
    if way == "tokens":
        both = pairs(study, size, arm)
        values, places = [a.loss - b.loss for a, b in both], [float(b.tokens) for _, b in both]
        why = "" if both else "dense has no run of the same seed and as many tokens"
    else:
        values, places, why = _by_line(study, way, study.of(size, arm), state)
    return {
        "size": size, "arm": arm, "difference": interval(values) if values else None, "dense": statistics.fmean(places) if places else None,
        "why": "" if values else why,
    }  # fmt: skip


def _by_line(study: Study, way: str, own: dict[Any, Trained], state: Callable[[Trained], float]) -> tuple[list[float], list[float], str]:
    """(differences, places on dense's line, why there is none) over the seeds."""
    values, places, reach, wanted = [], [], [], []
    for run in own.values():
        points, x = (_memory(study, run, state) if way == "memory" else _budget(study, way, run))
        reach += [at for at, _ in points]
        if x is None:
            continue
        wanted.append(x)
        y = between(points, x)
        if y is not None:
            values.append(run.loss - y)
            places.append(x)
    unit = "parameters" if way == "memory" else "tokens"
    if not reach or not wanted:
        return values, places, "dense has no run of the same seed"
    return values, places, f"dense would need {big(statistics.fmean(wanted))} {unit}, it has {big(min(reach))} to {big(max(reach))}"


def _budget(study: Study, way: str, run: Trained) -> tuple[list[tuple[float, float]], float | None]:
    """(dense's (tokens, loss) at the run's size and seed, the tokens that the run's FLOPs or seconds would buy dense)."""
    found = [r for r in study.runs if r.size == run.size and r.seed == run.seed and r.arm in study.budgets]
    points = [(float(r.tokens), r.loss) for r in found]
    base = study.of(run.size, study.reference)
    if not base:
        return points, None
    if way == "flops":
        return points, run.tokens * run.work / next(iter(base.values())).work
    return points, run.tokens * _rate(base.values()) / _rate(study.of(run.size, run.arm).values())


def _memory(study: Study, run: Trained, state: Callable[[Trained], float]) -> tuple[list[tuple[float, float]], float]:
    """(dense's (parameters, loss) over the sizes at the run's seed and tokens, the parameters that the run's state would hold)."""
    found = [r for r in study.runs if r.arm == study.reference and r.seed == run.seed and math.isclose(r.tokens, run.tokens, rel_tol=EQUAL)]
    return [(float(r.params), r.loss) for r in found], state(run) / STATE


def trends(study: Study, widths: dict[str, int]) -> list[dict[str, Any]]:
    """The difference to dense at equal tokens by log2 of dense's parameters without embeddings: {"arm", "slope": nats a doubling, or None}.

    Each seed at each size is a point; the interval is that of the line's slope with n - 2 degrees of freedom.
    """
    out = []
    for arm in study.compared():
        points = [(math.log2(widths[size]), a.loss - b.loss) for size in study.sizes for a, b in pairs(study, size, arm)]
        if points:
            out.append({"arm": arm, "sizes": len({x for x, _ in points}), "slope": line([x for x, _ in points], [y for _, y in points])})
    return out


def big(value: float) -> str:
    """A large number in three digits: 437k, 3.51M, 1.56B."""
    for scale, mark in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.3g}{mark}"
    return f"{value:.3g}"


def _rate(runs: Any) -> float:
    return statistics.median(r.rate for r in runs)
