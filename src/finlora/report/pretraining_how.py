"""How a pretraining study was measured, and what weakens what it says: facts of its receipts, and notes beside the conclusion.

Older receipts lack some of it (processor seconds, threads, what a micro-batch keeps, hashes of shards): that is then said.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from finlora import receipt
from finlora.errors import FinloraError
from finlora.report.pretraining_claim import EDGE, some
from finlora.report.pretraining_compare import MOMENTS, TRAINED, big
from finlora.report.pretraining_data import Study
from finlora.report.tables import part

BUSY = 0.9  # processor seconds a second below which a run waited for others, whatever its threads
RECIPE = ("schedule", "warmup", "min_lr_ratio", "weight_decay", "beta1", "beta2", "eps", "clip", "compile", "recompute")
UNKNOWN = "not recorded"


def setting(study: Study) -> dict[str, Any]:
    """{"batch_tokens", "activations", "moments", "unhashed", "resumed", "busy", "trials"}: what sentences and tables need of the receipts.

    batch_tokens: of a step, None where arms differ. activations, moments: whether every compared run says what a micro-batch and its optimiser keep.
    busy: {run: processor seconds of all threads a second}. resumed: how many runs, None where no receipt says. trials: of the search.
    """
    sheets = study.held.raw
    batches = {(part(s["spec"], "train").get("batch"), part(s["spec"], "data").get("row_tokens")) for s in sheets.values()}
    batch, row = batches.pop() if len(batches) == 1 else (None, None)
    compared = [r for r in study.runs if r.arm == study.reference or r.arm not in study.budgets]
    told = [part(s, "train").get("resumed") for s in sheets.values()]
    return {
        "batch_tokens": batch * row if batch and row else None, "activations": all(r.activation for r in compared),
        "moments": all(r.moments is not None for r in compared),
        "unhashed": sum(any(d.get("sha256") is None for d in s.get("data") or []) for s in sheets.values()),
        "resumed": None if None in told else sum(map(bool, told)),
        "busy": {r.run: r.cpu_seconds / r.seconds for r in study.runs if r.cpu_seconds and r.seconds}, "trials": _trials(study),
    }  # fmt: skip


def kept(said: Mapping[str, Any]) -> str:
    """What training is said to hold of each value."""
    if said["setting"]["moments"]:
        return f"{TRAINED} bytes for each trained value (fp32 weight and gradient), the optimiser's state as it was at the end"
    return f"{TRAINED + MOMENTS} bytes for each trained value (fp32 weight, gradient, AdamW's two moments; other optimisers are counted alike)"


def _trials(study: Study) -> dict[str, Any] | None:
    """{"runs", "steps", "seconds", "flops"} of the search's runs in the folder, None where it has none."""
    sheets = []
    for path in sorted((study.held.folder / "search").glob("*/receipt.json")):
        try:
            sheets.append(receipt.read(path.parent))
        except FinloraError:
            continue
    trained = [(part(s, "train"), part(s, "model")) for s in sheets if part(s, "train").get("tokens")]
    if not trained:
        return None
    return {
        "runs": len(trained), "steps": sorted({train["steps"] for train, _ in trained}), "seconds": sum(train["seconds"] for train, _ in trained),
        "flops": sum(6 * train["tokens"] * (model.get("forward_multiply_adds") or 0) for train, model in trained),
    }  # fmt: skip


def facts(study: Study, said: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, how) of the section on how it was measured."""
    sheets = study.held.raw
    specs = [s["spec"] for s in sheets.values()]
    train = [part(s, "train") for s in specs]
    out = [
        ("steps", _counts(f"{t.get('steps')}" for t in train) + f"; {_all(t.get('batch') for t in train)} rows of {_all(part(s, 'data').get('row_tokens') for s in specs)} tokens a step, {_all(t.get('micro_rows') or t.get('batch') for t in train)} at a time"),
        ("recipe", ", ".join(f"{key.replace('_', ' ')} {_all(t.get(key) for t in train)}" for key in RECIPE if any(key in t for t in train)) or UNKNOWN),
        ("optimisers", "; ".join(f"{', '.join(arms)}: {how}" for how, arms in _by_optimizer(study).items())),
        ("dropout", _dropout(specs)),
        ("numbers", f"{_all(part(s, 'run').get('dtype') for s in specs)} on {'; '.join(said['machines'])}"),
        ("threads a run", _counts(str(r.threads or UNKNOWN) for r in study.runs)),
        ("processor time", _busy(said["setting"]["busy"], len(study.runs))),
        ("resumed runs", UNKNOWN if said["setting"]["resumed"] is None else str(said["setting"]["resumed"])),
        ("held-out text", _held(sheets)),
        (f"search of {said['searched'] or 'nothing'}", _search(study, said)),
        ("FLOPs", "6 for each multiply-add of linears and output layer and a whole row of attention, as torch counts them (a kernel may leave half of attention out), and what a structure takes once a micro-batch to build its matrix and lead its gradient back; an optimiser's own work, such as exact steps, is not in them but in the seconds"),
        ("memory", f"{kept(said)}, a fixed support" + (", and what one micro-batch keeps for the backward pass" if said["setting"]["activations"] else "; what the backward pass keeps is not recorded for all runs and left out: parameters and optimiser state alone")),
        ("peak growth", "median over seeds of the process's peak less what it held before training" if any(a["growth_bytes"] for a in said["arms"]) else UNKNOWN),
        ("code", _counts(_version(part(s, "code")) for s in sheets.values())),
    ]  # fmt: skip
    return out


def notes(study: Study, said: Mapping[str, Any]) -> list[str]:
    """What weakens the conclusion: few seeds, missing runs, rates at the edge of their list, busy or several machines, what is not recorded."""
    out, told = [], said["setting"]
    few = [row for row in said["arms"] if row["seeds"] < 2]
    if few:
        out.append(f"Fewer than 2 seeds: {some(_places(few))}. Their values have no interval, and nothing is concluded from them.")
    elif max(row["seeds"] for row in said["arms"]) < 5:
        out.append(f"{max(row['seeds'] for row in said['arms'])} seeds at most: the intervals rest on very few degrees of freedom, and are wide for it.")
    if said["missing"]:
        out.append(f"{len(said['missing'])} runs are missing, of {len({(a, s) for s, a, _ in said['missing']})} arms: {some([f'{a} at {s}, seed {n}' for s, a, n in said['missing']])}.")
    if said["failed"]:
        out.append(f"{len(said['failed'])} runs failed or were not finished; they are listed below.")
    edges = [row for row in said["arms"] if row["at_edge"] and not (row["budget"] and row["arm"] != said["reference"])]
    if edges:
        out.append(f"For {len(edges)} of {sum(not row['budget'] or row['arm'] == said['reference'] for row in said['arms'])} arms and sizes the search of {said['searched']} chose a value at the edge of its list, and a better one may lie beyond: {some(_places(edges))}. Whatever is said of them, marked{EDGE}, is of that value.")
    if said["searched"]:
        out.append(_tuned(study, said))
    if not told["activations"]:
        out.append("Equal memory is of parameters and optimiser state alone: not every receipt says what the backward pass keeps, which at such sizes may be the larger part.")
    if told["unhashed"]:
        out.append(f"{told['unhashed']} runs do not say the hash of their data; that all were held against the same text rests on its counts.")
    if busy := [run for run, share in told["busy"].items() if share < BUSY]:
        out.append(f"{len(busy)} of {len(study.runs)} runs had the processor for less than {BUSY:.0%} of their seconds, the least for {min(told['busy'].values()):.0%}: their speeds are partly those of a busy machine.")
    elif len(told["busy"]) < len(study.runs):
        out.append(f"{len(study.runs) - len(told['busy'])} runs do not say their processor seconds: whether the machine was busy beside them is not known.")
    if len(said["machines"]) > 1:
        out.append("The runs were timed on different machines: speeds, and comparisons at equal wall time, are not of one kind.")
    if len({_version(part(s, "code")) for s in study.held.raw.values()}) > 1:
        out.append("The runs are of several versions of the code; see how it was measured.")
    return out


def _places(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    return [f"{row['arm']} at {row['size']}" for row in rows]


def _tuned(study: Study, said: Mapping[str, Any]) -> str:
    """At which of dense's budgets its searched value fits best."""
    budgets = sorted({r.steps for r in study.runs if r.arm in study.budgets})
    trials = (said["setting"]["trials"] or {}).get("steps") or []
    text = f"{said['searched']} was chosen by shorter runs of one seed"
    if trials and len(budgets) > 1:
        near = min(budgets, key=lambda steps: abs(steps - trials[0]))
        text += f", of {_all(trials)} steps: of dense's budgets, {_all(budgets)} steps and one value for all, that of {near} is tuned best, and the line through them leans to it"
    return text + "; the seeds of an arm share that choice, and the intervals do not have it."


def _search(study: Study, said: Mapping[str, Any]) -> str:
    if not said["searched"]:
        return "none"
    values = sorted({str(v) for c in said["chosen"].values() for v in c["loss"]}, key=lambda v: (len(v), v))
    text = f"{len(said['chosen'])} groups, values {', '.join(values)}"
    trials = said["setting"]["trials"]
    if trials is None:
        return f"{text}; its runs are not in the folder"
    spent = sum(r.seconds for r in study.runs)
    return f"{text}; {trials['runs']} runs of {_all(trials['steps'])} steps, {trials['seconds'] / 3600:.2f} h and {big(trials['flops'])} FLOPs beside the {spent / 3600:.2f} h of the runs that are compared"


def _held(sheets: Mapping[str, Mapping[str, Any]]) -> str:
    found = [d for s in sheets.values() for d in s.get("data") or [] if d.get("split") == "validation"]
    if not found:
        return UNKNOWN
    hashes = sorted({d["sha256"][:16] for d in found if d.get("sha256")})
    return f"{_all(d.get('rows') for d in found)} documents, {_all(d.get('tokens') for d in found)} tokens, sha256 {', '.join(hashes) or UNKNOWN}"


def _by_optimizer(study: Study) -> dict[str, list[str]]:
    """{optimiser with its settings: arms}."""
    out: dict[str, list[str]] = {}
    for run in study.runs:
        told = part(study.held.raw[run.run]["spec"], "optimizer")
        how = " ".join([str(told.get("kind") or UNKNOWN), *(f"{k} {v}" for k, v in told.items() if k != "kind")])
        if run.arm not in out.setdefault(how, []):
            out[how].append(run.arm)
    return out if len(out) > 1 else {how: ["all"] for how in out}


def _dropout(specs: list[Mapping[str, Any]]) -> str:
    names = ("drop", "dropout")
    return _counts(", ".join(f"{k} {v}" for k, v in s["model"]["config"].items() if k.endswith(names)) or "as the architecture has it by default" for s in specs)


def _busy(busy: Mapping[str, float], runs: int) -> str:
    if not busy:
        return UNKNOWN
    text = f"{statistics.median(busy.values()):.2f} processor seconds a second, all threads of a run, median over runs, least {min(busy.values()):.2f}"
    return text + (f" ({runs - len(busy)} runs do not say)" if len(busy) < runs else "")


def _version(code: Mapping[str, Any]) -> str:
    return f"{code.get('version') or 'version unknown'} {str(code.get('commit') or '')[:12]}{' with changes' if code.get('dirty') else ''}".strip()


def _all(values: Iterable[Any]) -> str:
    """The distinct values, in order where they are numbers."""
    found = list(dict.fromkeys(UNKNOWN if v is None else v for v in values))
    if all(isinstance(v, int | float) for v in found):
        found.sort()
    return ", ".join(f"{v:g}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) and not isinstance(v, bool) else str(v) for v in found)


def _counts(values: Iterable[str]) -> str:
    """`a`, or `a (3 runs), b (1 run)`."""
    found = Counter(values)
    return next(iter(found)) if len(found) == 1 else ", ".join(f"{v} ({n} run{'s' if n > 1 else ''})" for v, n in found.items())

