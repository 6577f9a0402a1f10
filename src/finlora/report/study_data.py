"""A study's folder as a report reads it: its runs, their public receipts, and the marks of every run on every task.

Shapes: x_SI marks of S seeds on I examples.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from finlora import receipt
from finlora.errors import FinloraError

ROW, SEED = "method.kind", "run.seed"
Setting = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Marks:
    """A method at one setting on one task: which seeds, their marks, the examples and what belongs together (as numbers)."""

    seeds: tuple[Any, ...]
    x_SI: np.ndarray
    ids: tuple[str, ...]
    clusters: np.ndarray

    def at(self, seeds: Sequence[Any]) -> np.ndarray:
        """The marks of those seeds, in their order."""
        return self.x_SI[[self.seeds.index(seed) for seed in seeds]]


@dataclass
class Held:
    """A study that was read. sheets: public receipts; raw: as written, with the folders of the machine; base: those of the untuned model."""

    folder: Path
    study: dict[str, Any]
    sheets: dict[str, dict[str, Any]]
    raw: dict[str, dict[str, Any]]
    base: list[dict[str, Any]]
    _records: dict[tuple[str, str], list[Any]] = field(default_factory=dict)
    _marks: dict[tuple[Any, ...], Marks] = field(default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        """The graded tasks, by name."""
        return sorted({task for sheet in self.sheets.values() for task in sheet["results"]})

    def runs(self, task: str | None = None) -> list[dict[str, Any]]:
        """The study's runs; with a task those that were graded on it."""
        return [r for r in self.study["runs"] if task is None or task in self.sheets[r["run"]]["results"]]

    def methods(self, task: str | None = None) -> list[str]:
        """The methods of the runs, in the order of the grid."""
        return list(dict.fromkeys(r["keys"][ROW] for r in self.runs(task)))

    def settings(self, task: str) -> list[Setting]:
        """The settings of a task's runs."""
        return settings(self.runs(task), self.study["key"])

    def of(self, task: str | None, method: str, setting: Mapping[str, Any]) -> dict[Any, str]:
        """{seed: run} of one method at one setting, graded on the task (None: on any)."""
        return {
            r["keys"].get(SEED, 0): r["run"]
            for r in self.runs(task)
            if r["keys"][ROW] == method and all(frozen(r["keys"].get(k)) == frozen(v) for k, v in setting.items())
        }

    def records(self, run: str, task: str, kind: str = "runs") -> list[Any]:
        """A run's records of a task, in the order of their ids."""
        from finlora import score

        if (run, task) not in self._records:
            where = (self.sheets if kind == "runs" else self.raw)[run]["results"][task]["records"]
            self._records[run, task] = sorted(score.read_records(self.folder / kind / run / where), key=lambda r: r.id)
        return self._records[run, task]

    def marks(self, task: str, method: str, setting: Mapping[str, Any]) -> Marks | None:
        """The marks of one method at one setting, None where it has no run.

        Raises: FinloraError where the seeds were not graded on the same examples.
        """
        from finlora import seeds

        key = (task, method, tuple((k, frozen(v)) for k, v in setting.items()))
        if key not in self._marks:
            runs = self.of(task, method, setting)
            if not runs:
                return None
            order = sorted(runs)
            x_SI, ids, clusters = seeds.marks([self.records(runs[seed], task) for seed in order])
            self._marks[key] = Marks(tuple(order), x_SI, tuple(ids), np.unique(np.asarray(clusters), return_inverse=True)[1])
        return self._marks[key]


def read_study(folder: Path) -> dict[str, Any]:
    """The value of a folder's study.json.  Raises: FinloraError where there is none, or nothing of it has finished."""
    try:
        study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FinloraError(f"`{folder}` holds no study: there is no study.json", "`finlora study run` writes it when it ends") from error
    except (OSError, ValueError) as error:
        raise FinloraError(f"`{folder}` holds no study that can be read: {error}", "run the study again: what has finished stays") from error
    if not study["runs"]:
        raise FinloraError(f"no run of the study in `{folder}` has finished", "run it again to go on")
    return study


def load(folder: str | Path) -> Held:
    """The study in a folder.

    Raises: FinloraError where the folder holds no study, nothing of it has finished, or a report cannot tell its runs apart.
    """
    folder = Path(folder)
    study = read_study(folder)
    if not all(ROW in r["keys"] for r in study["runs"]):
        raise FinloraError(f"the study in `{folder}` has no `{ROW}` in its [grid], by which a report tells its runs", f"add \"{ROW}\" = [\"lora\"] to it")
    raw = {r["run"]: receipt.read(folder / "runs" / r["run"]) for r in study["runs"]}
    base = study.get("base") or []
    sheets = {run: public(sheet) for run, sheet in raw.items()}
    raw |= {r["run"]: receipt.read(folder / "base" / r["run"]) for r in base}
    return Held(folder, study, sheets, raw, base)


def public(sheet: dict[str, Any]) -> dict[str, Any]:
    """The receipt without its curve and without the folders of the machine that made it."""
    told = bare(json.loads(json.dumps(sheet)))
    (told.get("train") or {}).pop("curve", None)
    for section, key in (("run", "out"), ("data", "dir"), ("data", "shards")):
        if value := told["spec"].get(section, {}).get(key):
            told["spec"][section][key] = Path(value).name
    for section in ("evaluate", "data"):
        if texts := told["spec"].get(section, {}).get("text"):
            told["spec"][section]["text"] = [Path(text).name for text in texts]
    return told


def bare(value: Any) -> Any:
    """A JSON value in which every absolute path, as a key too, is its last part alone."""
    if isinstance(value, dict):
        return {bare(key): bare(held) for key, held in value.items()}
    if isinstance(value, list):
        return [bare(held) for held in value]
    return Path(value).name or value if isinstance(value, str) and Path(value).is_absolute() and "\n" not in value else value


def same_base(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two receipts are of one model, kept by one codec."""
    return a["spec"]["model"]["name"] == b["spec"]["model"]["name"] and a["spec"]["codec"] == b["spec"]["codec"]


def frozen(value: Any) -> Any:
    """A value that can be a key: lists become tuples, tables sorted tuples."""
    if isinstance(value, list | tuple):
        return tuple(map(frozen, value))
    return tuple(sorted((k, frozen(v)) for k, v in value.items())) if isinstance(value, dict) else value


def settings(runs: Sequence[Mapping[str, Any]], searched: str) -> list[Setting]:
    """Values of every grid key but method and seed (and the searched key), each combination once."""
    shared = set.intersection(*(set(r["keys"]) for r in runs))
    varied = [k for k in runs[0]["keys"] if k in shared and k not in (ROW, SEED) and len({repr(r["keys"][k]) for r in runs}) > 1]
    varied = [k for k in varied if k != searched]
    return list(dict.fromkeys(tuple((k, frozen(r["keys"][k])) for k in varied) for r in runs))


def told(setting: Mapping[str, Any] | Setting) -> str:
    """A setting as text: `codec nf4, rank 8`."""
    parts = []
    for key, value in dict(setting).items():
        section, _, name = key.partition(".")
        parts.append(f"{section if name == 'kind' else name.replace('_', ' ')} {'+'.join(map(str, value)) if isinstance(value, list | tuple) else value}")
    return ", ".join(parts)
