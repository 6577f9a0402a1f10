"""A folder is a table: a member of a family is found by its file name, and importing one imports no other.

    pick("method", "dora")      imports finlora/methods/dora.py and returns its METHOD
    pick("task", "tfns@finlora")  imports finlora/tasks/tfns.py and returns VARIANTS["finlora"]
    pick("method", "peft:oft")  imports finlora/baselines.py and returns what its `record` makes of PEFT's own tuner
    pick("task", "mine.toml")   imports finlora/own_tasks.py and returns the task that the file describes

To add a member, add a file. There is no list to keep in step.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from .errors import FinloraError, unknown

FAMILIES = {  # kind -> (folder, the name under which each file exports its record)
    "codec": ("codecs", "CODEC"),
    "method": ("methods", "METHOD"),
    "optimizer": ("optimizers", "OPTIMIZER"),
    "structure": ("structures", "STRUCTURE"),
    "decomposition": ("decompose", "DECOMPOSITION"),
    "task": ("tasks", "TASK"),
}

FILES = {("task", ".toml"): "own_tasks"}  # (kind, ending) -> the module whose `record` reads such a file
OUTSIDE = {("method", "peft"): "baselines"}  # (kind, what stands before a colon) -> the module that makes such records


def names(kind: str) -> tuple[str, ...]:
    """The names of a family's members, sorted; reads the folder, imports nothing."""
    folder, _ = FAMILIES[kind]
    return tuple(sorted(p.stem for p in (Path(__file__).parent / folder).glob("*.py") if not p.stem.startswith("_")))


def pick(kind: str, name: str) -> Any:
    """The record called `name` of the family `kind`.

    Raises: FinloraError naming the nearest member when there is none of that name.
    """
    folder, attribute = FAMILIES[kind]
    outside, colon, inner = str(name).partition(":")
    if colon and (kind, outside) in OUTSIDE:
        return importlib.import_module(f"finlora.{OUTSIDE[kind, outside]}").record(inner)
    for (family, ending), module in FILES.items():
        if family == kind and str(name).endswith(ending):
            return importlib.import_module(f"finlora.{module}").record(name)
    stem, _, variant = str(name).partition("@")
    if stem not in names(kind):
        raise unknown(kind, stem, names(kind))
    module = importlib.import_module(f"finlora.{folder}.{stem}")
    if not variant:
        return getattr(module, attribute)
    variants = getattr(module, "VARIANTS", {})
    if variant not in variants:
        if not variants:
            raise FinloraError(f"{kind} `{stem}` has no variants, got `{name}`", f"write `{stem}`")
        raise unknown(f"variant of {kind} `{stem}`", variant, variants)
    return variants[variant]
