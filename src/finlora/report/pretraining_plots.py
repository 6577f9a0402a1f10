"""A pretraining study's plots as inline SVG, in the hand of plots.py: lines of points with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finlora.report import plots


@dataclass(frozen=True)
class Line:
    """One series. points: (x, y, low, high), low = high = y where there is no interval."""

    label: str
    points: Sequence[tuple[float, float, float, float]]
    series: int


def lines(given: Sequence[Line], x_title: str, y_title: str, title: str, level: bool = False, log: bool = True) -> str:
    """SVG of the series, each joined from left to right; level: a line at 0. No points give ""."""
    given = [one for one in given if one.points]
    if not given:
        return ""
    figure, axes = plots._figure(5.6, 3.7)
    if level:
        axes.axhline(0, color=plots.FAINT, linewidth=1.1, dashes=(4, 3), zorder=0)
    for one in given:
        points = sorted(one.points)
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        ink, dash = plots.colour(one.series), plots._dash(one.series, False)
        reach = [[max(0.0, y - low) for _, y, low, _ in points], [max(0.0, high - y) for _, y, _, high in points]]
        (drawn,) = axes.plot(xs, ys, color=ink, linewidth=1.3)
        if dash[0] is not None:
            drawn.set_dashes(dash)
        axes.errorbar(xs, ys, yerr=reach, color=ink, marker=plots.MARKERS[one.series % len(plots.MARKERS)], markersize=6, elinewidth=1.3, capsize=3, linestyle="none")
    xs = [p[0] for one in given for p in one.points]
    if log and min(xs) > 0:
        axes.set_xscale("log")
        plots._plain_log_ticks(axes)
        axes.set_xlim(min(xs) / 1.25, max(xs) * 1.25)
    else:
        axes.margins(x=0.08)
    plots._titles(axes, x_title, y_title)
    return plots._inline(figure, title)


def key(given: Sequence[Line]) -> str:
    """The legend of a set of plots, as an HTML list."""
    seen = {one.label: one.series for one in given}
    items = "".join(f"<li>{plots.mark(series)}{plots.html.escape(label)}</li>" for label, series in seen.items())
    return f'<ul class="key">{items}</ul>' if items else ""
