"""Plots as inline SVG that follow the page's colour scheme.

matplotlib draws with stand-in colours, which are then replaced by CSS variables (`var(--s0)`, `currentColor`), so one
drawing serves light and dark. Text stays text. Runs differ by colour, marker and dash, never by colour alone; the colours
are Okabe and Ito's, chosen for colour-blind readers, in a light and a dark edition in style.css. Ids are made unique
for each figure, because all figures share one page. matplotlib is imported when the first plot is drawn.
"""

from __future__ import annotations

import hashlib
import html
import io
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SERIES = 7  # colours in style.css; marker and dash go on changing after that
MARKERS = "osD^vP*Xhp"
DASHES = ((None, None), (5, 2), (1.5, 1.5), (7, 2, 1.5, 2), (3, 1), (9, 3))
INK, FAINT, GRID = "#010203", "#010204", "#010205"
_SWAP = {INK: "currentColor", FAINT: "var(--muted)", GRID: "var(--line)"}
_SWAP |= {f"#0102{0x10 + at:02x}": f"var(--s{at})" for at in range(SERIES)}
FONT = 9.5


@dataclass(frozen=True)
class Point:
    """A run in a trade-off plot. y: share from 0 to 1 with its interval. series: its number among the runs."""

    label: str
    x: float
    y: float
    low: float
    high: float
    series: int


@dataclass(frozen=True)
class Curve:
    """Losses of a run, nats per token: train and validation as (step, loss)."""

    label: str
    train: Sequence[tuple[float, float]]
    validation: Sequence[tuple[float, float]]
    series: int


def colour(series: int) -> str:
    """The stand-in colour of a series; `_inline` makes it a CSS variable."""
    return f"#0102{0x10 + series % SERIES:02x}"


def trade_off(points: Sequence[Point], x_title: str, y_title: str, title: str, levels: Sequence[tuple[str, float]] = ()) -> str:
    """SVG of value (percent) against cost with error bars; levels are horizontal lines such as floors, [] gives ""."""
    if not points:
        return ""
    figure, axes = _figure(5.4, 3.7)
    for p in points:
        axes.errorbar(
            [p.x], [100 * p.y], yerr=[[100 * max(0.0, p.y - p.low)], [100 * max(0.0, p.high - p.y)]], color=colour(p.series),
            marker=MARKERS[p.series % len(MARKERS)], markersize=7, elinewidth=1.6, capsize=3.5, linestyle="none",
        )  # fmt: skip
    for at, (_, level) in enumerate(levels):
        axes.axhline(100 * level, color=FAINT, linewidth=1.1, dashes=(4, 3) if at % 2 == 0 else (1.5, 2), zorder=0)
    _titles(axes, x_title, y_title)
    xs = [p.x for p in points]
    if min(xs) > 0 and max(xs) / min(xs) > 12:
        axes.set_xscale("log")
        _plain_log_ticks(axes)
        axes.set_xlim(min(xs) / 1.7, max(xs) * 1.7)
    else:
        room = 0.24 * (max(xs) - min(xs)) or 0.5 * abs(xs[0]) or 1.0
        axes.set_xlim(max(0.0, min(xs) - room) if min(xs) >= 0 else min(xs) - room, max(xs) + room)
    lows, highs = [100 * p.low for p in points] + [100 * v for _, v in levels], [100 * p.high for p in points] + [100 * v for _, v in levels]
    room = 0.13 * (max(highs) - min(lows)) or 2.0
    axes.set_ylim(max(-3.0, min(lows) - room), min(104.0, max(highs) + room))
    _label(figure, axes, points, levels)
    return _inline(figure, title)


def learning(curves: Sequence[Curve], title: str) -> str:
    """SVG of the training loss (faint: as logged; strong: smoothed) and the validation loss (markers) by step."""
    curves = [c for c in curves if len(c.train) > 1 or c.validation]
    if not curves:
        return ""
    figure, axes = _figure(6.2, 3.9)
    for c in curves:
        ink, dash = colour(c.series), _dash(c.series, alone=len(curves) == 1)
        steps, losses = [s for s, _ in c.train], [v for _, v in c.train]
        smoothed = smooth(losses)
        if len(losses) > 1:
            axes.plot(*_thin(steps, losses), color=ink, alpha=0.16, linewidth=0.8)
            (line,) = axes.plot(*_thin(steps, smoothed), color=ink, linewidth=1.7)
            if dash[0] is not None:
                line.set_dashes(dash)
        if c.validation:
            axes.plot(
                [s for s, _ in c.validation], [v for _, v in c.validation], color=ink, linewidth=0.9, linestyle=":",
                marker=MARKERS[c.series % len(MARKERS)], markersize=5.5,
                markevery=max(1, len(c.validation) // 12),
            )  # fmt: skip
    strong = [v for c in curves for v in (*smooth([v for _, v in c.train]), *(v for _, v in c.validation))]
    low, high = min(strong), max(strong)
    if low > 0 and high / low > 10:
        axes.set_yscale("log")
        _plain_log_ticks(axes, "y")
        axes.set_ylim(low / 1.3, high * 1.2)
    else:
        axes.set_ylim(low - 0.06 * (high - low or 1.0), high + 0.08 * (high - low or 1.0))
    _titles(axes, "step", "loss, nats per token")
    axes.margins(x=0.02)
    return _inline(figure, title)


def span(points: int) -> int:
    """How many logged points one value of the smoothed loss is the mean of; odd."""
    return 2 * round(points / 50) + 1


def smooth(values: Sequence[float]) -> list[float]:
    """Mean over a window of `span` points around each value.

    Centred, because an average of the past alone lags behind a falling loss and so reads too high. At the start, where
    the loss is steep, both sides narrow; at the end, where it is flat and the last value is the one quoted, only the
    missing side does.
    """
    reach, last = span(len(values)) // 2, len(values) - 1
    sums = [0.0, *itertools.accumulate(values)]
    out = []
    for at in range(len(values)):
        back = min(reach, at)
        ahead = min(back, last - at)
        out.append((sums[at + ahead + 1] - sums[at - back]) / (back + ahead + 1))
    return out


def mark(series: int, alone: bool = False) -> str:
    """A small SVG of a run's line and marker, for a legend beside the plots; a lone line is never dashed."""
    figure, axes = _figure(0.5, 0.2)
    figure.set_layout_engine("none")
    axes.set_position((0, 0, 1, 1))
    axes.axis("off")
    (line,) = axes.plot([0, 1], [0, 0], color=colour(series), linewidth=1.7)
    if (dash := _dash(series, alone))[0] is not None:
        line.set_dashes(dash)
    axes.plot([0.5], [0], color=colour(series), marker=MARKERS[series % len(MARKERS)], markersize=6.5)
    return _inline(figure, "")


def _dash(series: int, alone: bool) -> tuple[float | None, ...]:
    return DASHES[0 if alone else series % len(DASHES)]


def short(label: str, most: int = 26) -> str:
    """The label on one line, its middle left out where it is long: names mostly differ at their ends."""
    label = " ".join(label.split())
    return label if len(label) <= most else f"{label[: most // 2]}…{label[-(most // 2 - 1) :]}"


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=FONT, length=0)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(FAINT)
    return figure, axes


def _titles(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x, color=INK, fontsize=FONT + 0.5)
    axes.set_ylabel(y, color=INK, fontsize=FONT + 0.5)


def _plain_log_ticks(axes: Any, which: str = "x") -> None:
    """1, 2, 5 at each power of ten, written out: `500` says more than a mantissa and an exponent."""
    from matplotlib import ticker

    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(ticker.LogLocator(base=10, subs=(1, 2, 5)))
    axis.set_major_formatter(ticker.FuncFormatter(lambda v, _: f"{v:,.10g}"))
    axis.set_minor_formatter(ticker.NullFormatter())


def _thin(xs: Sequence[float], ys: Sequence[float], most: int = 600) -> tuple[list[float], list[float]]:
    """At most `most` points: a curve of 50,000 would weigh more than the rest of the page."""
    every = max(1, -(-len(xs) // most))
    keep = sorted({*range(0, len(xs), every), len(xs) - 1}) if xs else []
    return [xs[at] for at in keep], [ys[at] for at in keep]


def _label(figure: Any, axes: Any, points: Sequence[Point], levels: Sequence[tuple[str, float]]) -> None:
    """Writes each label where it hides the least: tries places around the point, further out only when it must."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()  # settles the layout, so that pixels mean something
    frame = axes.get_window_extent(renderer)
    pixel = figure.dpi / 72
    taken = [_box(axes, p, pixel) for p in points]
    homes = list(taken)
    for name, level in levels:
        text = axes.annotate(
            name, (1, 100 * level), xycoords=("axes fraction", "data"), xytext=(0, 2), textcoords="offset points",
            fontsize=FONT - 1, color=FAINT, parse_math=False,
        )  # fmt: skip
        width, height = _size(text, renderer)
        y = axes.transData.transform((0, 100 * level))[1]
        places = []  # along the line, above it or below: where it meets the fewest runs
        for side, left in ((1.0, frame.x1 - width), (0.0, frame.x0), (0.5, (frame.x0 + frame.x1 - width) / 2)):
            for up in (True, False):
                low = y + 2 * pixel if up else y - 2 * pixel - height
                box = (left, low, left + width, low + height)
                places.append((sum(_shared(box, other) for other in taken), side, up, box))
        _, side, up, box = min(places, key=lambda place: place[0])
        text.xy = (side, 100 * level)
        text.set(ha={1.0: "right", 0.0: "left", 0.5: "center"}[side], va="bottom" if up else "top", position=(0, 2 if up else -2))
        taken.append(box)
    for _, level in levels:  # a label across a line is hard to read
        y = axes.transData.transform((0, 100 * level))[1]
        taken.append((frame.x0, y - 1.5 * pixel, frame.x1, y + 1.5 * pixel))
    order = sorted(range(len(points)), key=lambda at: (-points[at].x, points[at].y))
    for at in order:
        p = points[at]
        text = axes.annotate(
            short(p.label), (p.x, 100 * p.y), xytext=(0, 0), textcoords="offset points", fontsize=FONT, color=colour(p.series),
            va="center", parse_math=False,
        )  # fmt: skip
        width, height = _size(text, renderer)
        x, y = axes.transData.transform((p.x, 100 * p.y))
        best = None
        for far in (9, 18, 30, 44, 60, 78):
            for right, up in ((1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1)):
                dx, dy = right * far * pixel, up * far * pixel * 0.8
                left = x + dx if right > 0 else x + dx - width if right < 0 else x - width / 2
                box = (left, y + dy - height / 2, left + width, y + dy + height / 2)
                out = max(0, frame.x0 - box[0]) + max(0, box[2] - frame.x1) + max(0, frame.y0 - box[1]) + max(0, box[3] - frame.y1)
                cost = 40 * out * height + 8 * sum(_shared(box, other) for k, other in enumerate(taken)) + far * height * 0.05
                if best is None or cost < best[0]:
                    best = (cost, dx, dy, right, box, far)
        _, dx, dy, right, box, far = best
        taken.append(box)
        text.set_position((dx / pixel, dy / pixel))
        text.set_ha("left" if right > 0 else "right" if right < 0 else "center")
        nearest = min(range(len(homes)), key=lambda k: abs((homes[k][0] + homes[k][2]) / 2 - (box[0] + box[2]) / 2) + abs((homes[k][1] + homes[k][3]) / 2 - (box[1] + box[3]) / 2))
        if far > 18 or nearest != at:
            axes.annotate(
                "", (p.x, 100 * p.y), xytext=(dx / pixel, dy / pixel), textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": colour(p.series), "linewidth": 0.7, "alpha": 0.7, "shrinkB": 5},
            )  # fmt: skip


def _size(text: Any, renderer: Any) -> tuple[float, float]:
    box = text.get_window_extent(renderer)
    return box.width * 1.04, box.height  # the page's font may run a little wider than the one measured with


def _box(axes: Any, p: Point, pixel: float) -> tuple[float, float, float, float]:
    """The pixels that a marker and its error bar cover."""
    x, low = axes.transData.transform((p.x, 100 * p.low))
    high = axes.transData.transform((p.x, 100 * p.high))[1]
    return x - 6 * pixel, low - 2 * pixel, x + 6 * pixel, high + 2 * pixel


def _shared(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Area that two boxes share, square pixels."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _inline(figure: Any, title: str) -> str:
    """The figure as an <svg> element for an HTML page: no prologue, no metadata, own ids, CSS colours, a title."""
    import matplotlib

    file = io.StringIO()
    style = {"svg.fonttype": "none", "svg.hashsalt": "finlora"}
    with matplotlib.rc_context(style):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.S)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    own = hashlib.sha256((title + svg).encode()).hexdigest()[:8]
    svg = re.sub(r'\bid="', f'id="f{own}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>f{own}-", svg)
    svg = re.sub(r"font-family: [^;\"]*;\s?", "", svg)  # the page's own
    for stand_in, variable in _SWAP.items():
        svg = svg.replace(stand_in, variable)
    width = float(re.search(r'width="([\d.]+)pt"', svg).group(1))
    svg = re.sub(r'\swidth="[\d.]+pt"', "", svg, count=1)
    svg = re.sub(r'\sheight="[\d.]+pt"', "", svg, count=1)
    hidden = f'role="img" aria-label="{html.escape(title)}"' if title else 'aria-hidden="true"'
    head = f'<svg {hidden} style="max-width: {width * 1.45:.0f}px"'
    return re.sub(r"\n\s*", "\n", svg.replace("<svg", head, 1)).strip()
