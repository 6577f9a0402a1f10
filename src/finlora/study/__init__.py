"""Studies: a grid of fine-tuning or pretraining runs from one file, planned, searched for learning rates, run in parallel, resumed.

    study = load_study("configs/small.toml")     grid.py says what may stand in the file
    plan(study)                                  how many runs, what is left out and why, what it will cost (guess.py)
    run(study, "runs/small", jobs=2)             here, in processes (work.py); launch.py for Slurm and Ray
    gather(study, "runs/small")                  study.json from runs that another machine did

Each cell is an ordinary run, named by the digest of its spec, so that a longer grid runs only what is new and a killed study
goes on where it stopped.  A search trains every value with equal budget, with the keys in `at` held fixed, and takes the value of the lowest
validation loss; the test split is not read.  All cells that differ only in the keys of `at` share it.  A combination that cannot be
(a method that trains the base over a lossy codec) is left out and told, with the reason.

    FOLDER/study.toml  study.json  costs.jsonl  search/<digest>/  base/<digest>/  runs/<digest>/  failed/
"""

from __future__ import annotations

from .drive import gather, plan, run
from .grid import Cell, Study, cells, load_study, searches, spec_of, told

__all__ = ["Cell", "Study", "cells", "gather", "load_study", "plan", "run", "searches", "spec_of", "told"]
