"""A run's log: one JSON line a step in log.jsonl, and on request TensorBoard and Weights & Biases."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from .errors import FinloraError
from .receipt import write_text


class Logs:
    """Appends to folder/log.jsonl; without a folder it keeps the lines in memory only."""

    def __init__(self, folder: Path | None, tensorboard: bool = False, wandb: bool = False, name: str = "finlora"):
        self.path = None if folder is None else Path(folder) / "log.jsonl"
        self.lines: list[dict[str, Any]] = []
        self._board = _tensorboard(folder) if tensorboard and folder is not None else None
        self._wandb = _wandb(name) if wandb else None

    def rewind(self, step: int) -> None:
        """Drop what was logged after `step`: a resumed run writes those lines again."""
        if self.path is None or not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # the half line of a killed process
                continue
            if entry.get("step", 0) <= step:
                kept.append(entry)
        self.lines = kept
        write_text(self.path, "".join(json.dumps(e) + "\n" for e in kept))

    def write(self, **entry: Any) -> None:
        """Append one line; `step` and numbers."""
        self.lines.append(entry)
        if self.path is not None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as f:
                    f.write(json.dumps(entry) + "\n")
            except OSError as error:
                raise FinloraError(f"cannot write `{self.path}`: {error.strerror or error}", "free some disk space, then run again to resume") from error
        values = {k: v for k, v in entry.items() if k != "step"}
        if self._board is not None:
            for key, value in values.items():
                self._board.add_scalar(key, value, entry["step"])
            self._board.flush()
        if self._wandb is not None:
            self._wandb.log(values, step=entry["step"])

    def curve(self, points: int = 500) -> list[list[float]]:
        """[[step, loss, lr, grad_norm], ...], thinned to about `points` entries; the last is always among them."""
        steps = [[e["step"], e["loss"], e["lr"], e["grad_norm"]] for e in self.lines if "loss" in e]
        stride = max(1, math.ceil(len(steps) / points))
        return [s for k, s in enumerate(steps) if k % stride == 0 or k == len(steps) - 1]


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise FinloraError("log.tensorboard is set but tensorboard is not installed", "pip install tensorboard") from error
    return SummaryWriter(str(Path(folder) / "tensorboard"))


def _wandb(name: str) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise FinloraError("log.wandb is set but wandb is not installed", "pip install wandb") from error
    return wandb.init(project="finlora", name=name)
