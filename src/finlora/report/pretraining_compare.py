"""Structured arms against dense at equal tokens, FLOPs, wall time and memory, paired by seed; how the difference goes with size.

    d_s = loss of the arm at seed s - loss of dense at seed s, size for size;   mean d +- t(S - 1) sd(d) / sqrt(S)

At equal tokens dense is the run itself.  At equal FLOPs or wall time it is what dense would have reached on the tokens that the
arm's FLOPs or seconds buy it, by a line in log tokens between the two dense budgets around them; at equal memory, by a line in
log bytes between the two dense sizes around the arm's.  Wall time is each seed's own, so that what timing wobbles by is in the
interval.  Nothing is extrapolated: beyond dense's last run its loss there is at least as low, so that the difference to that last
run bounds the true one from below (before its first run, from above), where dense's losses do fall along its runs.  A chord lies
above a convex curve, so that dense is shown a little worse than it would have been, the less the closer the budgets stand;
`chords` says by how much it misses a dense run that is left out.

All intervals count the seeds alone, on one held-out text.  With S seeds they rest on S - 1 degrees of freedom.  Arms that are
told from dense are told by Holm's p over their table, not by their interval.

Shapes: lists over S seeds; x, y of a line over sizes and seeds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from finlora import score
from finlora.report.pretraining_data import EQUAL, Study, Trained
from finlora.report.pretraining_sizes import CLAIM

WAYS = ("tokens", "flops", "wall", "memory")
TRAINED, MOMENTS = 8, 8  # bytes of training state for each value: fp32 weight and gradient; AdamW's two moments
ALPHA = 0.05  # below which Holm's p tells two apart
Points = list[tuple[float, float]]  # (tokens or bytes, loss) of dense


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


def pairs(study: Study, size: str, arm: str, base_arm: str = "") -> list[tuple[Trained, Trained]]:
    """(run, run of `base_arm`, or dense) of the same seed and as many tokens."""
    own, base = study.of(size, arm), study.of(size, base_arm or study.reference)
    both = [(own[seed], base[seed]) for seed in own if seed in base]
    return [(a, b) for a, b in both if math.isclose(a.tokens, b.tokens, rel_tol=EQUAL)]


def speeds(study: Study) -> list[dict[str, Any]]:
    """Tokens a second of each arm over dense's: {"size", "arm", "ratio": interval of the ratio, "median": ratio of the medians}.

    ratio["holm_p"]: that the ratio is the claim's, by Holm over all rows.
    """
    out, against = [], []
    for size in study.sizes:
        base = study.of(size, study.reference)
        for arm in study.compared():
            own = study.of(size, arm)
            logs = [math.log(own[s].rate / base[s].rate) for s in own if s in base]
            if logs:
                found = interval(logs)
                found = {k: v if k in ("n", "p") or v is None else math.exp(v) for k, v in found.items()}
                out.append({"size": size, "arm": arm, "ratio": found, "median": _rate(own.values()) / _rate(base.values())})
                against.append((found, interval([each - math.log(CLAIM["faster"]) for each in logs])["p"]))
    _adjust(against)
    return out


def _adjust(tested: Sequence[tuple[dict[str, Any], float | None]]) -> None:
    """Put "holm_p" into each of a family's intervals that has a p."""
    tested = [(found, p) for found, p in tested if p is not None]
    for (found, _), p in zip(tested, score.holm([p for _, p in tested])):
        found["holm_p"] = p


def compare(study: Study, memory: Callable[[Trained], float]) -> dict[str, list[dict[str, Any]]]:
    """{way: rows} of every way in WAYS, p adjusted by Holm within each.

    memory: bytes that training a run takes.  A row is {"size", "arm", "difference": an interval with "holm_p", or None, "bound": one
    in its place where dense would have to be beyond its runs, "side": "at least" or "at most" that, "dense": the mean place on
    dense's line (tokens; bytes for memory), "why": why there is no difference, "note": what the row lacks}.
    """
    out: dict[str, list[dict[str, Any]]] = {}
    for way in WAYS:
        rows = [_row(study, way, size, arm, memory) for size in study.sizes for arm in study.compared() if study.of(size, arm)]
        _adjust([(found, found["p"]) for row in rows if (found := row["difference"] or row["bound"])])
        out[way] = rows
    return out


def beside(study: Study) -> list[dict[str, Any]]:
    """Every arm against the structured one that was asked for, at equal tokens: {"size", "arm", "difference": an interval with
    "holm_p" over these rows, "speed": the interval of the ratio of tokens a second}; none where none was asked for."""
    out = []
    for size in study.sizes if study.beside else ():
        for arm in study.arms:
            both = pairs(study, size, arm, study.beside) if arm != study.beside else []
            if both:
                logs = interval([math.log(a.rate / b.rate) for a, b in both])
                speed = {k: v if k in ("n", "p") or v is None else math.exp(v) for k, v in logs.items()}
                out.append({"size": size, "arm": arm, "difference": interval([a.loss - b.loss for a, b in both]), "speed": speed})
    _adjust([(row["difference"], row["difference"]["p"]) for row in out])
    return out


def found_of(row: Mapping[str, Any] | None) -> str:
    """"lower", "higher", "alike" (not told apart) or "unknown", with dense at Holm's p; a bound tells on its own side alone."""
    row = row or {}
    d, side = row.get("difference") or row.get("bound"), row.get("side") or ""
    if not d or d.get("holm_p") is None:
        return "unknown"
    if d["holm_p"] < ALPHA and d["value"] > 0 and side != "at most":
        return "higher"
    if d["holm_p"] < ALPHA and d["value"] < 0 and side != "at least":
        return "lower"
    return "unknown" if side else "alike"


def _row(study: Study, way: str, size: str, arm: str, memory: Callable[[Trained], float]) -> dict[str, Any]:
    own = study.of(size, arm)
    told: dict[str, Any] = {"size": size, "arm": arm, "difference": None, "bound": None, "side": "", "dense": None, "why": "", "note": ""}
    if way != "tokens":
        return told | _by_line(study, way, own, memory)
    both = pairs(study, size, arm)
    if not both:
        return told | {"why": "dense has no run of the same seed and as many tokens"}
    note = "" if len(both) == len(own) else f"{len(own) - len(both)} of {len(own)} seeds left out, which dense lacks"
    return told | {"difference": interval([a.loss - b.loss for a, b in both]), "dense": statistics.fmean(float(b.tokens) for _, b in both), "note": note}


def _by_line(study: Study, way: str, own: dict[Any, Trained], memory: Callable[[Trained], float]) -> dict[str, Any]:
    """The parts of a row that come from dense's line, seed by seed."""
    unit = "bytes" if way == "memory" else "tokens"
    values, wanted, reach, sides, thin, lost = [], [], [], set(), 0, 0
    for run in own.values():
        points, x = _memory(study, run, memory) if way == "memory" else _budget(study, way, run)
        thin += len(points) < len(study.sizes if way == "memory" else study.budgets)
        y, side = _reached(points, x) if x is not None else (None, "")
        reach += [at for at, _ in points]
        wanted += [x] if x is not None and points else []
        if x is None or y is None:
            lost += 1
            continue
        values.append(run.loss - y)
        sides |= {side} - {""}
    if not reach or not wanted:
        return {"why": "dense has no run of the same seed"}
    why = f"dense would need {amount(statistics.fmean(wanted), unit)}{'' if way == 'memory' else ' tokens'}, it has {amount(min(reach), unit)} to {amount(max(reach), unit)}"
    notes = [f"dense lacks a run at {thin} of {len(own)} seeds, its line is coarser there"] if thin else []
    notes += [f"{lost} of {len(own)} seeds left out"] if lost and values else []
    if not values or len(sides) > 1:
        return {"why": why}
    found = {"bound": interval(values), "side": sides.pop(), "why": why} if sides else {"difference": interval(values), "dense": statistics.fmean(wanted)}
    return found | {"note": "; ".join(notes)}


def _reached(points: Points, x: float) -> tuple[float | None, str]:
    """(dense's loss at x, on which side of the true difference the one to it lies: "" where x is between dense's runs).

    Beyond them the loss of the last one, if dense has no lower (before them: of the first, no higher), else None.
    """
    y, losses = between(points, x), [y for _, y in points]
    if y is not None or not points:
        return y, ""
    end = (max if x > max(points)[0] else min)(points)[1]
    if x > max(points)[0]:
        return (end, "at least") if end == min(losses) else (None, "")
    return (end, "at most") if end == max(losses) else (None, "")


def _budget(study: Study, way: str, run: Trained) -> tuple[Points, float | None]:
    """(dense's (tokens, loss) at the run's size and seed, the tokens that the run's FLOPs or seconds would buy dense)."""
    found = [r for r in study.runs if r.size == run.size and r.seed == run.seed and r.arm in study.budgets]
    points = [(float(r.tokens), r.loss) for r in found]
    base = study.of(run.size, study.reference)
    if way == "flops":
        return points, run.tokens * run.work / next(iter(base.values())).work if base else None
    return points, run.tokens * base[run.seed].rate / run.rate if run.seed in base else None


def _memory(study: Study, run: Trained, memory: Callable[[Trained], float]) -> tuple[Points, float]:
    """(dense's (bytes, loss) over the sizes at the run's seed and tokens, the run's bytes)."""
    found = [r for r in study.runs if r.arm == study.reference and r.seed == run.seed and math.isclose(r.tokens, run.tokens, rel_tol=EQUAL)]
    return [(memory(r), r.loss) for r in found], memory(run)


# -- what the study can tell -----------------------------------------------------------------------------------------


def power(study: Study) -> list[dict[str, Any]]:
    """What the seeds of a size could have told: {"size", "seeds", "dense_sd", "paired_sd", "excluded", "named"}, nats a token.

    dense_sd: of dense's own loss over seeds. paired_sd: of the differences at equal tokens, over arms (root of the mean variance).
    excluded: the reach of such an interval, below which no loss could be excluded even where none was measured. named: the least
    difference that Holm over the table names where it is the only one. None with fewer than 2 seeds.
    """
    from scipy.special import stdtrit

    out = []
    for size in study.sizes:
        base = [r.loss for r in study.of(size, study.reference).values()]
        diffs = [[a.loss - b.loss for a, b in pairs(study, size, arm)] for arm in study.compared()]
        diffs = [each for each in diffs if len(each) > 1]
        told: dict[str, Any] = {"size": size, "seeds": len(base), "dense_sd": statistics.stdev(base) if len(base) > 1 else None, "paired_sd": None, "excluded": None, "named": None}
        if diffs:
            n, rows = max(map(len, diffs)), sum(len(pairs(study, s, a)) > 1 for s in study.sizes for a in study.compared())
            sd = math.sqrt(statistics.fmean(statistics.variance(each) for each in diffs))
            reach = {name: float(stdtrit(n - 1, 1 - share / 2)) * sd / math.sqrt(n) for name, share in (("excluded", ALPHA), ("named", ALPHA / rows))}
            told |= {"seeds": n, "paired_sd": sd, **reach}
        out.append(told)
    return out


def chords(study: Study, memory: Callable[[Trained], float]) -> list[dict[str, Any]]:
    """How far dense's line misses a dense run that it was not given: {"line": "tokens" at a "size" or "bytes", "n", "mean", "worst"}.

    Every run between two others is left out in turn; the line spans two steps there, and so errs more than the one that is used.
    """
    out = []
    for name in (*study.sizes, ""):
        misses = []
        for seed in study.seeds:
            found = [r for r in study.runs if r.seed == seed and (r.arm in study.budgets and r.size == name if name else r.arm == study.reference)]
            points = sorted((float(r.tokens) if name else memory(r), r.loss) for r in found)
            misses += [y - true for at in range(1, len(points) - 1) if (y := between(points[:at] + points[at + 1 :], points[at][0])) is not None for true in [points[at][1]]]
        if misses:
            out.append({"line": "tokens" if name else "bytes", "size": name, "n": len(misses), "mean": statistics.fmean(misses), "worst": max(map(abs, misses))})
    return out


def trends(study: Study, widths: dict[str, int]) -> list[dict[str, Any]]:
    """The difference to dense at equal tokens by log2 of dense's parameters without embeddings: {"arm", "slope": nats a doubling, or None}.

    A size is one point, the mean over its seeds: they share the size's rate, and what it is off by is no noise of theirs.  The
    interval is that of the line's slope with sizes - 2 degrees of freedom, its "holm_p" over the arms.
    """
    out = []
    for arm in study.compared():
        points = [(math.log2(widths[size]), statistics.fmean(a.loss - b.loss for a, b in both)) for size in study.sizes if (both := pairs(study, size, arm))]
        if points:
            out.append({"arm": arm, "sizes": len(points), "slope": line([x for x, _ in points], [y for _, y in points])})
    _adjust([(row["slope"], row["slope"]["p"]) for row in out if row["slope"]])
    return out


def big(value: float) -> str:
    """A large number in three digits: 437k, 3.51M, 1.56B."""
    for scale, mark in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.3g}{mark}"
    return f"{value:.3g}"


def amount(value: float, unit: str) -> str:
    """Tokens as `800k`, bytes as `26.1 MB`."""
    return f"{value / 1e6:.3g} MB" if unit == "bytes" else big(value)


def _rate(runs: Any) -> float:
    return statistics.median(r.rate for r in runs)
