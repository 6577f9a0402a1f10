"""A study's plots as inline SVG, in the hand of plots.py: intervals of all methods on a task, and fronts of accuracy against cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finlora.report import plots

MANY = 12  # points; of more only those on the front are named


def intervals(rows: Sequence[tuple[str, float, float, float, int]], levels: Sequence[tuple[str, float]], title: str) -> str:
    """SVG of one line a method: (label, value, low, high, series), shares from 0 to 1; levels are vertical lines such as floors."""
    if not rows:
        return ""
    figure, axes = plots._figure(6.4, 0.8 + 0.235 * len(rows))
    for at, (_, value, low, high, series) in enumerate(rows):
        axes.errorbar(
            [100 * value], [at], xerr=[[100 * max(0.0, value - low)], [100 * max(0.0, high - value)]], color=plots.colour(series),
            marker=plots.MARKERS[series % len(plots.MARKERS)], markersize=6, elinewidth=1.6, capsize=3, linestyle="none",
        )  # fmt: skip
    for at, (name, level) in enumerate(levels):
        axes.axvline(100 * level, color=plots.FAINT, linewidth=1.1, dashes=(4, 3) if at % 2 == 0 else (1.5, 2), zorder=0)
        axes.annotate(name, (100 * level, 1), xycoords=("data", "axes fraction"), xytext=(0, 2 + 10 * (at % 3)), textcoords="offset points", fontsize=plots.FONT - 1.5, color=plots.FAINT, ha="center", parse_math=False)
    axes.set_yticks(range(len(rows)), [plots.short(label, 34) for label, *_ in rows], fontsize=plots.FONT, parse_math=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(False, axis="y")
    plots._titles(axes, "accuracy, %", "")
    return plots._inline(figure, title)


def front(points: Sequence[Mapping[str, Any]], labels: Sequence[str], series: Sequence[int], x_title: str, title: str, scale: float = 1.0) -> str:
    """SVG of accuracy against a cost; the runs of the front are joined by a step line: what the cost at least buys."""
    if not points:
        return ""
    figure, axes = plots._figure(5.6, 3.8)
    best = sorted((p["x"] * scale, 100 * p["y"]) for p in points if p["front"])
    if len(best) > 1:
        axes.step([x for x, _ in best], [y for _, y in best], where="post", color=plots.FAINT, linewidth=1.2, dashes=(4, 3), zorder=0)
    drawn, reach = [], []
    for p, label, number in zip(points, labels, series):
        error = [[100 * max(0.0, p["y"] - p["low"])], [100 * max(0.0, p["high"] - p["y"])]]
        ink = plots.colour(number)
        if len(points) > MANY or p["low"] == p["high"]:  # a thicket of bars hides what it should show; they stand in the plot of intervals
            error, low_high = None, (p["y"], p["y"])
        else:
            low_high = (p["low"], p["high"])
        reach += [100 * v for v in low_high]
        axes.errorbar(
            [p["x"] * scale], [100 * p["y"]], yerr=error, color=ink, marker=plots.MARKERS[number % len(plots.MARKERS)], markersize=7 if p["front"] else 5.5,
            markerfacecolor=ink if p["front"] else "none", elinewidth=1.2, capsize=2.5, linestyle="none",
        )  # fmt: skip
        if p["front"] or len(points) <= MANY:
            drawn.append(plots.Point(label, p["x"] * scale, p["y"], *low_high, number))
    xs = [p["x"] * scale for p in points]
    room = 0.2 * (max(xs) - min(xs)) or 0.3 * abs(xs[0]) or 1.0
    axes.set_xlim(max(0.0, min(xs) - room), max(xs) + room)
    low, high = min(reach), max(reach)
    room = 0.13 * (high - low) or 2.0
    axes.set_ylim(max(-3.0, low - room), min(104.0, high + room))
    plots._titles(axes, x_title, "accuracy, %")
    plots._label(figure, axes, drawn, ())
    return plots._inline(figure, title)
