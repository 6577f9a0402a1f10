"""What the user sees while a verb works: a live line on a terminal, plain lines in a log.

A verb takes `progress=None` and calls `start(stage, total)`, `step(n, loss=..., lr=..., tokens_per_s=..., eta=...)`,
`note(text)` and `done()`; anything with these four methods will do. All of it goes to stderr: stdout is for results.
"""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

BLOCKS = "▁▂▃▄▅▆▇█"
PLAIN_SECONDS = 5.0  # between two plain lines of one stage


class Progress:
    """The live display. Use it in a `with`, so that the terminal is restored whatever happens.

    console: where it is drawn, stderr by default. live: force the display on or off; by default a terminal decides.
    """

    def __init__(self, console: Console | None = None, live: bool | None = None):
        self.console = console or Console(stderr=True, highlight=False)
        self.live = self.console.is_terminal if live is None else live
        self.bars: Bars | None = None
        self.task: Any = None
        self.stage, self.total = "", 0
        self.losses: list[float] = []
        self.began = self.told = 0.0
        self.first: tuple[int, float] | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        self.done()

    def start(self, stage: str, total: int = 0) -> None:
        """A stage of `total` steps begins (0: unknown); an unfinished one ends."""
        self.done()
        self.stage, self.total, self.losses = stage, int(total or 0), []
        self.began, self.told, self.first = time.monotonic(), 0.0, None
        if self.live:
            self.bars = Bars(
                TextColumn("[bold]{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
                TextColumn("{task.fields[facts]}"), TimeElapsedColumn(),
                console=self.console, transient=True,
            )  # fmt: skip
            self.bars.start()
            self.task = self.bars.add_task(stage, total=self.total or None, facts="")

    def step(self, n: int, **facts: Any) -> None:
        """`n` steps of the stage are done. Facts by name: loss, lr, tokens_per_s, eta (seconds), or any other."""
        if facts.get("loss") is not None:
            self.losses.append(float(facts["loss"]))
        if self.first is None:
            self.first = (n, time.monotonic())
        if (
            facts.get("eta") is None and self.total and n > self.first[0]
        ):  # by the pace since the first step told: a run may be resumed
            facts["eta"] = (self.total - n) * (time.monotonic() - self.first[1]) / (n - self.first[0])
        told = "  ".join(text for key, value in facts.items() if (text := _fact(key, value)))
        if self.live and self.bars:
            curve = f"  [cyan]{sparkline(self.losses)}[/]" if len(self.losses) > 1 else ""
            self.bars.update(self.task, completed=n, facts=told + curve)
            return
        now = time.monotonic()
        if now - self.told >= PLAIN_SECONDS or n == self.total:
            self.told = now
            self.console.print(
                f"{self.stage} {n}/{self.total}  {told}" if self.total else f"{self.stage} {n}  {told}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

    def note(self, text: str) -> None:
        """A line that stays."""
        (self.bars.console if self.bars else self.console).print(text, markup=False, highlight=False, soft_wrap=True)

    def done(self) -> None:
        """The stage ends; on a terminal its bar gives way to one line with the time it took."""
        if not self.stage:
            return
        if self.bars:
            self.bars.stop()
            self.bars = None
        last = f"  loss {self.losses[-1]:.4f}" if self.losses else ""
        self.console.print(
            f"{self.stage}: {time.monotonic() - self.began:.1f} s{last}", markup=False, highlight=False, soft_wrap=True
        )
        self.stage = ""


def sparkline(values: list[float], width: int = 16) -> str:
    """The course of `values` in `width` blocks, each the mean of its share."""
    finite = [value for value in values if value == value and abs(value) != float("inf")]
    if not finite:
        return ""
    width = min(width, len(finite))
    edges = [round(k * len(finite) / width) for k in range(width + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in zip(edges, edges[1:])]
    low, high = min(means), max(means)
    return "".join(BLOCKS[int((mean - low) / (high - low or 1.0) * (len(BLOCKS) - 1))] for mean in means)


def _fact(key: str, value: Any) -> str:
    if value is None:
        return ""
    if key == "eta":
        return f"left {int(value) // 60}:{int(value) % 60:02d}"
    if key == "tokens_per_s":
        return f"{value:,.0f} tokens/s"
    if key == "lr":
        return f"lr {value:.1e}"
    return f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}"
