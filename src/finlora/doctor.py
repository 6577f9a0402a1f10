"""The laws of the house, checked on the user's own run: its model, codec, method, tasks and dtype, a handful of examples.

    run(spec) -> [Check("packing", True, "loss off by 1e-07, gradient by 3e-06 ..."), ...]

What the test suite proves of toy models says nothing of a model, a tokenizer or a chat template it never saw.  These checks
do, in seconds, with the very functions that train and grade.  Equalities that hold exactly in arithmetic are judged by the
rounding of this machine and dtype, which is measured first: the gradient of the same rows in another order.

Nothing is written but a temporary folder.
"""

from __future__ import annotations

import dataclasses
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import adapters
from . import model as models
from . import spec as specs
from .data import collate
from .errors import FinloraError
from .registry import pick
from .rows import read_examples
from .text import Example, Tokens, choose_template, label_ids, render
from .text import fit as fit_row
from .train import batches_of, fit, step

HANDFUL = 8  # examples that are computed with
LOOKED_AT = 256  # rows of a task that are read and graded
SHUFFLES = 50
STEPS = 4
# The least that is called a difference, relative: well above what rounding was seen to do, far below what a fault does
# (a mean of means moves the gradient of such a handful by 5% to 50%, a leak between examples by 10% and more).
SLACK = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.03, torch.float16: 0.01}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    detail: what was found, with numbers. hint: what a failure means and what to do, "" where all is well. example: the
    tokens of an example as (text, weight), for the display.
    """

    name: str
    ok: bool
    detail: str
    hint: str = ""
    example: tuple[tuple[str, float], ...] = ()


def run(spec: specs.Spec, progress: Any = None) -> list[Check]:
    """All checks on the spec's own model and data, in order; a check that cannot be made has failed.

    progress: an object with start(stage, total), step(n) and done(). Raises: FinloraError where the model or the training
    examples cannot be opened at all; the caller's random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        model = _open(spec, spec.run.seed)
        template = choose_template(model.tokenizer, spec.data.template)
        examples = _handful(spec)
        tokens = _tokens(spec, model, template, examples)
        checks: list[tuple[str, Callable[[], Check]]] = [
            ("prompt", lambda: _prompt(model, template, examples)),
            ("loss weights", lambda: _weights(model, template, examples)),
            ("end token", lambda: _end(model, template, examples)),
            ("accumulation", lambda: _accumulation(model, tokens)),
            ("packing", lambda: _packing(spec, model, tokens)),
            ("seed", lambda: _seed(spec, model)),
            ("resume", lambda: _resume(spec, model, tokens)),
            *((f"grading {name}", lambda name=name: _grading(spec, name)) for name in _graded(spec)),
        ]
        if progress:
            progress.start("doctor", len(checks))
        out = []
        for k, (name, check) in enumerate(checks, 1):
            try:
                out.append(check())
            except FinloraError as error:
                out.append(Check(name, False, error.message, error.hint))
            if progress:
                progress.step(k)
        if progress:
            progress.done()
    return out


# -- what is looked at -------------------------------------------------------------------------------------------------


def _open(spec: specs.Spec, seed: int) -> models.Model:
    """The model as fine-tuning would open it."""
    _, codec_config = specs.resolve(spec.codec)
    _, method_config = specs.resolve(spec.method)
    torch.manual_seed(seed)
    model = models.open_model(
        spec.model.name, codec=spec.codec.kind, codec_config=codec_config, device=spec.run.device, dtype=spec.run.dtype,
        method=None if spec.model.adapter else spec.method.kind, method_config=method_config, targets=spec.method.targets,
        patterns=spec.method.patterns, also=spec.method.also, cache=models.CACHE[spec.model.cache], seed=seed, online=spec.model.online, adapter=spec.model.adapter or None,
        factors=spec.method.factors,
    )  # fmt: skip
    if spec.model.adapter:
        adapters.train_adapter(model)
    models.recompute(model, spec.train.recompute)
    return model


def _handful(spec: specs.Spec) -> list[Example]:
    """Short, long and middling training examples of the spec's tasks; the shortest first."""
    read = [e for name in spec.data.tasks for e in read_examples(pick("task", name), "train", spec.data.dir, LOOKED_AT)]
    if not read:
        raise FinloraError("data.tasks is empty: there is nothing to look at", "`finlora list tasks` shows what there is")
    read.sort(key=lambda e: (sum(len(content) for _, content in e.messages), e.id))
    n = min(HANDFUL, len(read))
    return [read[k * (len(read) - 1) // max(n - 1, 1)] for k in range(n)]


def _tokens(spec: specs.Spec, model: models.Model, template: str, examples: Sequence[Example]) -> list[Tokens]:
    most = min(spec.data.row_tokens or model.max_tokens, model.max_tokens)
    return [fit_row(render(e, model.tokenizer, True, template), most, spec.data.too_long) for e in examples]


def _graded(spec: specs.Spec) -> list[str]:
    return list(dict.fromkeys([*spec.data.tasks, *spec.evaluate.tasks]))


# -- words -------------------------------------------------------------------------------------------------------------


def _prompt(model: models.Model, template: str, examples: Sequence[Example]) -> Check:
    """The prompt that is graded is a prefix of the text that is taught, whichever label is the answer."""
    for e in examples:
        asked = render(e, model.tokenizer, False, template).ids
        for said in (None, *e.labels):
            taught = render(e, model.tokenizer, True, template, said).ids
            if taught[: len(asked)] != asked or len(taught) == len(asked):
                return Check("prompt", False, f"example `{e.id}`, answer `{said or e.answer}`: the text that is taught does not begin with the prompt", "the model would be graded on a prompt it was never taught; use data.template = \"plain\", and report this tokenizer")  # fmt: skip
        choices = label_ids(e, model.tokenizer, template)
        if len({tuple(c) for c in choices}) < len(choices) or not all(choices):
            return Check("prompt", False, f"example `{e.id}`: two of its labels have the same tokens, or none", "choosing between them would be chance; rename the labels")  # fmt: skip
    return Check("prompt", True, f"the prompt graded begins the text taught in all {len(examples)} examples ({template} template)")


def _weights(model: models.Model, template: str, examples: Sequence[Example]) -> Check:
    """Weight 1 on the answer's tokens and its end token, 0 before."""
    hint = "the loss would learn prompts or miss answers; report this tokenizer and template"
    for e in examples:
        asked, taught = render(e, model.tokenizer, False, template), render(e, model.tokenizer, True, template)
        n = len(asked.ids)
        if taught.weights != (0.0,) * n + (1.0,) * (len(taught.ids) - n):
            return Check("loss weights", False, f"example `{e.id}`: weights are not 0 on the prompt and 1 on the answer", hint, _listing(model, taught))  # fmt: skip
        said = model.tokenizer.decode(list(taught.ids[n:-1]))
        if said.strip() != e.answer.strip():
            return Check("loss weights", False, f"example `{e.id}`: the weighted tokens spell `{said.strip()}`, the answer is `{e.answer}`", hint, _listing(model, taught))  # fmt: skip
    shown = render(examples[0], model.tokenizer, True, template)
    n = sum(1 for w in shown.weights if w)
    return Check("loss weights", True, f"{n} of the {len(shown)} tokens of `{shown.id}` are learned: the answer and its end token", "", _listing(model, shown))  # fmt: skip


def _listing(model: models.Model, tokens: Tokens) -> tuple[tuple[str, float], ...]:
    return tuple((model.tokenizer.decode([i]), w) for i, w in zip(tokens.ids, tokens.weights, strict=True))


def _end(model: models.Model, template: str, examples: Sequence[Example]) -> Check:
    """The last token taught is a special one that ends an answer, the same for all."""
    tokenizer = model.tokenizer
    specials = {*tokenizer.all_special_ids, *(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)}
    last = {(t.ids[-1], t.weights[-1]) for t in (render(e, tokenizer, True, template) for e in examples)}
    if len(last) > 1 or not all(i in specials and w == 1.0 for i, w in last):
        shown = ", ".join(f"`{tokenizer.decode([i])}` (weight {w:g})" for i, w in sorted(last))
        return Check("end token", False, f"the taught texts end with {shown}", "the model would never learn to stop; set eos_token in the tokenizer's config, or use data.template = \"plain\"")  # fmt: skip
    return Check("end token", True, f"every answer ends with `{tokenizer.decode([next(iter(last))[0]])}`, and it is learned")


# -- steps -------------------------------------------------------------------------------------------------------------


def _gradient(model: models.Model, batches: Sequence[Any]) -> tuple[float, torch.Tensor]:
    """(loss, the gradient of all trainable tensors in one vector) of one step over the batches."""
    model.eval()  # without dropout, whose draws would differ
    model.zero_grad(set_to_none=True)
    nats, weight = step(model, batches)
    grads = [p.grad.flatten().float() for p in model.trainable().values() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return nats / weight, torch.cat(grads)


def _apart(a: tuple[float, torch.Tensor], b: tuple[float, torch.Tensor]) -> tuple[float, float]:
    """Relative differences of loss and gradient."""
    norm = float(b[1].norm())
    return abs(a[0] - b[0]) / max(abs(b[0]), 1e-12), float((a[1] - b[1]).norm()) / max(norm, 1e-30)


def _compare(name: str, model: models.Model, one: Any, other: Any, noise: tuple[float, float], told: str, hint: str) -> Check:
    off = _apart(one, other)
    slack = SLACK[model.dtype]
    limits = [max(slack, 10 * n) for n in noise]
    detail = f"{told}: loss off by {off[0]:.0e}, gradient by {off[1]:.0e} (rounding alone {noise[1]:.0e})"
    ok = off[0] <= limits[0] and off[1] <= limits[1]
    return Check(name, ok, detail, "" if ok else hint)


def _noise(model: models.Model, tokens: Sequence[Tokens]) -> tuple[float, float]:
    """What rounding alone does on this machine and dtype: the same rows in one batch, in two orders."""
    rows = [[t] for t in tokens]
    return _apart(_gradient(model, [collate(rows)]), _gradient(model, [collate(rows[::-1])]))


def _accumulation(model: models.Model, tokens: Sequence[Tokens]) -> Check:
    whole = _gradient(model, [collate([[t] for t in tokens])])
    cut = _gradient(model, [collate([[t]]) for t in tokens])
    return _compare(
        "accumulation", model, cut, whole, _noise(model, tokens), f"{len(tokens)} micro-batches of one row against one batch",
        "micro-batches would change what is learned: a layer of this model mixes the rows of a batch; set train.micro_rows = 1 and report this model",
    )  # fmt: skip


def _packing(spec: specs.Spec, model: models.Model, tokens: Sequence[Tokens]) -> Check:
    if not spec.data.row_tokens:
        return Check("packing", True, "data.row_tokens = 0: each example has its own row, nothing is packed")
    rows = batches_of(tokens, spec.data.row_tokens, 1)
    if len(rows) == len(tokens):
        return Check("packing", True, f"no two of these examples fit a row of {spec.data.row_tokens}: nothing is packed")
    alone, packed = _gradient(model, batches_of(tokens, 0, 1)), _gradient(model, rows)
    return _compare(
        "packing", model, packed, alone, _noise(model, tokens), f"{len(tokens)} examples in {len(rows)} row(s) against a row each",
        "examples of one row would see each other: set data.row_tokens = 0 and report this model",
    )  # fmt: skip


# -- the same run again ------------------------------------------------------------------------------------------------


def _kept(model: models.Model) -> dict[str, torch.Tensor]:
    return {name: p.detach().cpu().clone() for name, p in model.trainable().items()}


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> str:
    """The name of a tensor that differs, "" if none does."""
    if a.keys() != b.keys():
        return min(a.keys() ^ b.keys())
    return next((name for name in a if not torch.equal(a[name], b[name])), "")


def _seed(spec: specs.Spec, model: models.Model) -> Check:
    """The adapter is drawn after the seed is set, and from nothing else."""
    record, _ = specs.resolve(spec.method)
    first = _kept(model)
    torch.rand(17)  # what was drawn before must not matter
    if odd := _same(first, _kept(_open(spec, spec.run.seed))):
        return Check("seed", False, f"built twice with seed {spec.run.seed}, `{odd}` differs", "runs of this spec could not be repeated; report this model and method")  # fmt: skip
    if record.trains_base or spec.model.adapter:
        return Check("seed", True, "training starts from the saved weights, twice the same to the last bit")
    if not _same(first, _kept(_open(spec, spec.run.seed + 1 if spec.run.seed < 2**62 else 0))):
        return Check("seed", False, "another seed gives the same adapter", "run.seed would decide nothing: repeats with other seeds would not be independent; report this method")  # fmt: skip
    return Check("seed", True, f"seed {spec.run.seed} gives the same adapter twice, to the last bit; another seed gives another")


class _Stop(Exception):
    """Cuts a training short, as a power failure would."""


class _StopAt:
    """A progress display that stops the run at a step."""

    def __init__(self, last: int):
        self.last = last

    def start(self, *_: Any) -> None:
        pass

    def step(self, n: int, **_: Any) -> None:
        if n == self.last:
            raise _Stop

    def note(self, *_: Any) -> None:
        pass

    def done(self) -> None:
        pass


def _resume(spec: specs.Spec, model: models.Model, tokens: Sequence[Tokens]) -> Check:
    """A few steps, undisturbed and cut off in the middle: the same tensors and losses to the last bit."""
    settings = dataclasses.replace(
        spec.train, steps=STEPS, batch=min(spec.train.batch, len(tokens)), checkpoint_every=1, validate_every=0, patience=0, log_every=1, keep=1
    )  # fmt: skip
    begin = _kept(model)

    def go(folder: Path, progress: Any = None) -> list[Any]:
        with torch.no_grad():
            for name, p in model.trainable().items():
                p.copy_(begin[name])
        told = fit(model, tokens, settings, row_tokens=spec.data.row_tokens, seed=spec.run.seed, folder=folder, progress=progress)
        return [row[:2] for row in told["curve"]]

    try:
        with tempfile.TemporaryDirectory(prefix="finlora-doctor-") as scratch:
            curve, wanted = go(Path(scratch) / "whole"), _kept(model)
            try:
                go(Path(scratch) / "cut", _StopAt(STEPS - 1))
            except _Stop:
                pass
            resumed = go(Path(scratch) / "cut")
        odd = _same(_kept(model), wanted)
    finally:
        with torch.no_grad():
            for name, p in model.trainable().items():
                p.copy_(begin[name])
    if odd or resumed != curve:
        return Check("resume", False, f"cut off after step {STEPS - 1} and resumed, " + (f"`{odd}` differs" if odd else "the losses differ"), "a resumed run would not be the run that was cut off; this device computes some operation in varying order: try run.device = \"cpu\" to tell, and report this model")  # fmt: skip
    return Check("resume", True, f"{STEPS} steps, cut off after {STEPS - 1} and resumed: tensors and losses are those of the undisturbed run to the last bit")  # fmt: skip


# -- grading -----------------------------------------------------------------------------------------------------------


def _grading(spec: specs.Spec, name: str) -> Check:
    """Gold answers score 100%, shuffled ones what shuffling scores."""
    task, label = pick("task", name), f"grading {name}"
    split = spec.evaluate.split if name in (spec.evaluate.tasks or spec.data.tasks) else "train"
    examples = read_examples(task, split, spec.data.dir, LOOKED_AT)

    def mark(e: Example, said: str) -> float:
        answer = task.read(said, e.labels or task.labels)
        return 0.0 if answer is None else task.mark(e.gold, answer)

    wrong = [e for e in examples if mark(e, e.answer) != 1.0]
    if wrong:
        e = wrong[0]
        return Check(label, False, f"{len(wrong)} of {len(examples)} gold answers are marked wrong; the first is `{e.id}`, gold `{e.gold}`, answer `{e.answer}`", "a perfect model would not score 100%: fix the rows or the task's `read` and `mark`")  # fmt: skip
    n, rng, total = len(examples), random.Random(0), 0.0
    answers = [e.answer for e in examples]
    for _ in range(SHUFFLES):
        rng.shuffle(answers)
        total += sum(map(mark, examples, answers)) / n
    found = total / SHUFFLES
    chance = sum((k / n) ** 2 for k in Counter(e.answer for e in examples).values())
    # five standard errors of the mean of the shuffles, and one example
    if abs(found - chance) > 5 * (chance * (1 - chance) / n / SHUFFLES) ** 0.5 + 1 / n:
        return Check(label, False, f"shuffled answers score {found:.1%}, chance is {chance:.1%}", "the task's `read` or `mark` gives points for wrong answers, so every score would be too high")  # fmt: skip
    return Check(label, True, f"gold answers score 100%, shuffled ones {found:.1%} (chance {chance:.1%}), on {n} examples of {split}")
