"""The loop: killed anywhere and resumed, it is bitwise the run that was not; and what it does when things go wrong.

A toy run of eight steps, with dropout (so that the random state matters), validation and a checkpoint every third step.
"""

from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import fields, replace

import pytest
import torch

from finlora import checkpoint, optim, receipt, train
from finlora.data import collate
from finlora.errors import FinloraError
from finlora.methods.dora import DoRA
from finlora.methods.lora import LoRA
from finlora.methods.lora_plus import LoRAPlus
from finlora.model import recompute, rewire
from finlora.registry import names, pick
from finlora.spec import Train
from finlora.text import render
from finlora.train import Interrupted, fit

STEPS = 8
SETTINGS = Train(steps=STEPS, batch=4, lr=5e-3, warmup=2, validate_every=2, checkpoint_every=3, keep=2)
KINDS = {
    "lora over none": ("none", "lora", LoRA(rank=4, dropout=0.1)),
    "lora over nf4": ("nf4", "lora", LoRA(rank=4, dropout=0.1)),
    "lora over int8": ("int8", "lora", LoRA(rank=4, dropout=0.1)),
    "dora over nf4": ("nf4", "dora", DoRA(rank=4, dropout=0.1)),
    "full": ("none", "full", None),
}


class Killed(BaseException):
    """Stands for kill -9: nothing of ours may catch it."""


class At:
    """A progress display that does something at one step."""

    def __init__(self, step: int, action):
        self.wanted, self.action, self.notes = step, action, []

    def start(self, title, total):
        pass

    def step(self, step, **_):
        if step == self.wanted:
            self.action()

    def note(self, text):
        self.notes.append(text)

    def done(self):
        pass


def kill():
    raise Killed


class DiesAt:
    """A function that is killed at its n-th call: before its work for odd n, after it for even n."""

    def __init__(self, n: int, real):
        self.n, self.left, self.real = n, n, real

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if self.left == 0 and self.n % 2:
            raise Killed
        out = self.real(*args, **kwargs)
        if self.left == 0:
            raise Killed
        return out


@pytest.fixture(scope="module")
def run(make_model, examples, tokenizer):
    """run(folder, kind, **changes) -> (model, fit's dict); `model=` to see the model when fit raises."""
    tokens = [render(e, tokenizer, True) for e in examples]

    def go(folder, kind="lora over none", *, settings=SETTINGS, seed=5, progress=None, model=None, row_tokens=256, validation=2, logs=None):
        model = fresh(kind) if model is None else model
        kept = settings if isinstance(settings, Train) else replace(SETTINGS, **settings)
        n = len(tokens) - validation
        return model, fit(model, tokens[:n], kept, row_tokens=row_tokens, seed=seed, folder=folder, validation=tokens[n:], progress=progress, logs=logs)

    def fresh(kind="lora over none", seed=5):
        codec, method, config = KINDS[kind]
        return rewire(make_model("llama"), codec=codec, method=method, method_config=config, seed=seed)

    go.fresh = fresh
    return go


def tensors(model):
    return {name: p.detach().clone() for name, p in model.trainable().items()}


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def lines(folder):
    """log.jsonl without what a clock decides."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def timeless(told):
    return {k: v for k, v in told.items() if k not in ("seconds", "cpu_seconds", "tokens_per_s")}


@pytest.fixture(scope="module")
def undisturbed(run, tmp_path_factory):
    """{kind: (final tensors, told, log)} of runs nobody disturbed, made when asked for."""
    made = {}

    def get(kind="lora over none"):
        if kind not in made:
            folder = tmp_path_factory.mktemp("undisturbed")
            model, told = run(folder, kind)
            made[kind] = tensors(model), timeless(told), lines(folder)
        return made[kind]

    return get


# -- the same numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_same_spec_same_numbers(kind, run, undisturbed, tmp_path):
    torch.manual_seed(123)  # the caller's random state is no part of a run
    torch.rand(7)
    model, told = run(tmp_path, kind)
    wanted, its_told, its_log = undisturbed(kind)
    assert same(tensors(model), wanted) and timeless(told) == its_told and lines(tmp_path) == its_log


def test_another_seed_other_numbers(run, undisturbed, tmp_path):
    model, _ = run(tmp_path, seed=6)
    assert not same(tensors(model), undisturbed()[0])


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_it_learns_and_the_base_is_frozen(kind, run, undisturbed):
    fresh = run.fresh(kind)
    frozen = {name: t.clone() for name, t in fresh.state_dict().items() if name not in fresh.trainable()}
    start = tensors(fresh)
    model, told = run(None, kind, model=fresh)
    assert told["curve"][-1][1] < 0.8 * told["curve"][0][1]
    after = model.state_dict()
    assert all(torch.equal(t, after[name]) for name, t in frozen.items())
    assert all(not torch.equal(t, start[name]) for name, t in tensors(model).items())


def test_looking_changes_nothing(run, undisturbed, tmp_path):
    """Neither validation nor checkpoints nor logs move the random state or the parameters."""
    model, _ = run(None, settings={"validate_every": 1, "checkpoint_every": 1, "log_every": 3})
    assert same(tensors(model), undisturbed()[0])


def test_recompute_changes_nothing(run, undisturbed):
    model = run.fresh("lora over nf4")
    recompute(model)
    run(None, "lora over nf4", model=model)
    assert same(tensors(model), undisturbed("lora over nf4")[0])


@pytest.mark.parametrize("settings, row_tokens", [({"micro_rows": 4}, 0), ({"micro_rows": 1}, 0), ({"micro_rows": 2}, 150), ({"micro_rows": 1}, 2048)])
def test_the_cut_into_rows_changes_only_rounding(settings, row_tokens, run):
    # losses of eight steps, float32 and no dropout: they part by 2e-6 at most here; a mean of means parts by 1e-2
    def losses(**how):
        return torch.tensor([row[1] for row in run(None, "full", **how)[1]["curve"]])

    assert float((losses(settings=settings, row_tokens=row_tokens) - losses()).abs().max()) < 2e-5


# -- resumed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", range(1, STEPS + 1))
@pytest.mark.parametrize("kind", ["lora over none", "lora over nf4", "lora over int8"])
def test_killed_after_any_step(kind, k, run, undisturbed, tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, kind, progress=At(k, kill))
    model, told = run(tmp_path, kind)
    wanted, its_told, its_log = undisturbed(kind)
    assert same(tensors(model), wanted) and timeless(told) == its_told and lines(tmp_path) == its_log


@pytest.mark.parametrize("kind", ["dora over nf4", "full"])
def test_killed_other_methods(kind, run, undisturbed, tmp_path):
    for k in (4, 7):
        with pytest.raises(Killed):
            run(tmp_path, kind, progress=At(k, kill))
    assert same(tensors(run(tmp_path, kind)[0]), undisturbed(kind)[0])


@pytest.mark.parametrize("place", ["train.step", "checkpoint.save_file", "checkpoint.digest", "checkpoint.os.rename", "checkpoint.tidy", "train._look", "checkpoint.shutil.rmtree"])
def test_killed_anywhere(place, run, undisturbed, tmp_path, monkeypatch):
    """Killed at the n-th call of each function of consequence, before or after it has done its work, again and again."""
    module, _, name = place.rpartition(".")
    owner = {"train": train, "checkpoint": checkpoint, "checkpoint.os": os, "checkpoint.shutil": checkpoint.shutil}[module]
    real = getattr(owner, name)
    for n in range(1, 8):
        dying = DiesAt(n, real)
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, dying)
            try:
                run(tmp_path)
            except Killed:
                pass
    model, told = run(tmp_path)
    wanted, its_told, its_log = undisturbed()
    assert same(tensors(model), wanted) and timeless(told) == its_told and lines(tmp_path) == its_log
    assert not [p for p in (tmp_path / "checkpoints").iterdir() if not p.name.startswith("step-")] or place == "checkpoint.shutil.rmtree"


def test_a_finished_run_is_not_run_again(run, undisturbed, tmp_path):
    run(tmp_path)
    model, told = run(tmp_path, progress=At(-1, kill))
    assert same(tensors(model), undisturbed()[0]) and timeless(told) == undisturbed()[1]


def test_resumed_over_a_torn_checkpoint(run, undisturbed, tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, progress=At(7, kill))
    newest = checkpoint.latest(tmp_path / "checkpoints")
    file = newest / "trainable.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert checkpoint.latest(tmp_path / "checkpoints") not in (None, newest)
    assert same(tensors(run(tmp_path)[0]), undisturbed()[0])


def test_the_log_is_rewound(run, undisturbed, tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, progress=At(6, kill), settings={"validate_every": 100})
    with (tmp_path / "log.jsonl").open("a") as f:
        f.write('{"step": 7, "lo')  # the half line of a killed process
    run(tmp_path, settings={"validate_every": 100})
    assert [row["step"] for row in lines(tmp_path) if "loss" in row] == list(range(1, STEPS + 1))


def test_rewinding_the_log_is_atomic(tmp_path, monkeypatch):
    """A kill while the log is rewound leaves the old log or the new one."""
    from finlora.logs import Logs

    logs = Logs(tmp_path)
    for step in range(1, 5):
        logs.write(step=step, loss=1.0)
    before = (tmp_path / "log.jsonl").read_text()
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, lambda *_: kill())
    with pytest.raises(Killed):
        Logs(tmp_path).rewind(2)
    assert (tmp_path / "log.jsonl").read_text() == before


def test_a_checkpoint_of_another_run_is_refused(run, make_model, tmp_path):
    run(tmp_path)
    for config in (LoRA(rank=2), DoRA(rank=4)):
        other = rewire(make_model("llama"), method="dora" if isinstance(config, DoRA) else "lora", method_config=config)
        before = tensors(other)
        with pytest.raises(FinloraError, match="does not fit this run"):
            run(tmp_path, model=other)
        assert same(before, tensors(other))


def test_checkpoints_kept(run, tmp_path):
    run(tmp_path, settings={"keep": 3, "checkpoint_every": 1, "validate_every": 4})
    kept = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert kept[-3:] == [f"step-{k:08d}" for k in (6, 7, 8)] and len(kept) <= 4


# -- stopped ---------------------------------------------------------------------------------------------------------


def poisoned(monkeypatch, at: int, what):
    """Let train.step tell `what(nats, weight, model)` at its call number `at`."""
    real, calls = train.step, [0]

    def step(model, batches):
        nats, weight = real(model, batches)
        calls[0] += 1
        return what(nats, weight, model) if calls[0] == at else (nats, weight)

    monkeypatch.setattr(train, "step", step)


def nan_gradient(nats, weight, model):
    next(iter(model.trainable().values())).grad.fill_(math.nan)
    return nats, weight


BREAKS = {
    "nan": (lambda nats, weight, model: (math.nan, weight), "became nan"),
    "inf": (lambda nats, weight, model: (math.inf, weight), "became inf"),
    "exploded": (lambda nats, weight, model: (1000 * weight, weight), r"exploded to 1000\.0 nats \(limit"),
    "nan gradient": (nan_gradient, "gradient's norm became nan"),
}


@pytest.mark.parametrize("how", sorted(BREAKS))
def test_a_broken_step_is_not_taken(how, run, undisturbed, tmp_path, monkeypatch):
    what, said = BREAKS[how]
    model = run.fresh()
    with monkeypatch.context() as patched:
        poisoned(patched, 6, what)
        with pytest.raises(FinloraError, match=f"{said}.*step 6.*step-0000000[45].*lower train.lr"):
            run(tmp_path, model=model, settings={"checkpoint_every": 1})
    assert all(bool(t.isfinite().all()) for t in tensors(model).values())
    last = checkpoint.latest(tmp_path / "checkpoints")
    assert last.name == "step-00000005"
    kept, _ = checkpoint.load(last)
    assert all(bool(t.isfinite().all()) for t in kept["trainable"].values())
    # what broke it is gone: the rest of the run is the undisturbed one
    assert same(tensors(run(tmp_path, settings={"checkpoint_every": 1})[0]), undisturbed()[0])


def test_broken_at_the_first_step(run, tmp_path, monkeypatch):
    poisoned(monkeypatch, 1, BREAKS["nan"][0])
    with pytest.raises(FinloraError, match="at step 1; no checkpoint"):
        run(tmp_path)


def test_max_loss(run, tmp_path):
    with pytest.raises(FinloraError, match=r"exploded.*\(limit 0\.5\).*step 1"):
        run(tmp_path, settings={"max_loss": 0.5})


def test_a_real_divergence_is_caught(run, tmp_path):
    with pytest.raises(FinloraError, match="exploded|became"):
        run(tmp_path, "full", settings={"lr": 10.0, "clip": 0.0, "warmup": 0, "steps": 50, "validate_every": 50})


@pytest.fixture
def watched(monkeypatch):
    """Validation losses that fall until step 3 and rise after."""
    values = {}

    def mean_nats(model, *_):
        step = values["at"]() if "at" in values else 0
        return 1.0 + abs(step - 3) / 10

    def install(progress):
        values["at"] = progress
        monkeypatch.setattr(train, "mean_nats", mean_nats)

    return install


class Counting(At):
    def __init__(self):
        super().__init__(-1, None)
        self.at = 0

    def step(self, step, **_):
        self.at = step


def test_early_stop_restores_the_best(run, undisturbed, tmp_path, watched):
    counting = Counting()
    watched(lambda: counting.at)
    settings = {"patience": 2, "validate_every": 1, "keep": 1, "steps": 20, "schedule": "constant"}
    model, told = run(tmp_path, settings=settings, progress=counting)
    assert told["steps"] == 5 and told["best_step"] == 3 and told["stopped"]
    assert [round(v, 3) for _, v in told["val"]] == [1.2, 1.1, 1.0, 1.1, 1.2]
    best, _ = checkpoint.load(tmp_path / "checkpoints" / "step-00000003")
    assert same(tensors(model), best["trainable"])
    again, told_again = run(tmp_path, settings=settings)  # asked once more: the same answer
    assert same(tensors(again), best["trainable"]) and timeless(told_again) == timeless(told)


def test_the_loss_told_is_that_of_the_weights_kept():
    looks = {"val": [[2, 1.0], [4, 0.5], [6, 0.9]], "best_step": 4}
    assert receipt.kept_loss(looks) == 0.9 and receipt.kept_loss(looks, patience=2) == 0.5
    assert receipt.kept_loss({"val": []}) is None and receipt.kept_loss({}) is None


def test_other_examples_are_not_gone_on_with(run, make_model, examples, tokenizer, tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, progress=At(4, lambda: os.kill(os.getpid(), signal.SIGINT)))
    other = [render(e, tokenizer, True) for e in examples][::-1]
    with pytest.raises(FinloraError, match="other training data"):
        fit(run.fresh(), other[2:], SETTINGS, row_tokens=256, seed=5, folder=tmp_path)
    run(tmp_path)


def test_without_patience_the_last_is_kept(run, tmp_path, watched):
    counting = Counting()
    watched(lambda: counting.at)
    model, told = run(tmp_path, settings={"validate_every": 1}, progress=counting)
    last, _ = checkpoint.load(checkpoint.latest(tmp_path / "checkpoints"))
    assert told["steps"] == STEPS and told["best_step"] == 3 and not told["stopped"]
    assert same(tensors(model), last["trainable"])


# -- interrupted -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(which, run, undisturbed, tmp_path):
    handler = signal.getsignal(which)
    with pytest.raises(Interrupted, match=f"saved at step 5 of {STEPS}.*same command again"):
        run(tmp_path, progress=At(5, lambda: os.kill(os.getpid(), which)))
    assert signal.getsignal(which) is handler
    assert checkpoint.latest(tmp_path / "checkpoints").name == "step-00000005"
    model, told = run(tmp_path)
    assert same(tensors(model), undisturbed()[0]) and timeless(told) == undisturbed()[1]


def test_interrupted_twice_stops_at_once(run, undisturbed, tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, progress=At(5, twice))
    assert same(tensors(run(tmp_path)[0]), undisturbed()[0])


def test_interrupted_at_the_last_step_stops_too_and_loses_nothing(run, undisturbed, tmp_path):
    stop = At(STEPS, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted, match=f"saved at step {STEPS} of {STEPS}"):
        run(tmp_path, progress=stop)
    for folder, progress in ((tmp_path, None), (None, stop)):  # without a folder nothing would be left, so it is finished
        model, told = run(folder, progress=progress)
        assert told["steps"] == STEPS and same(tensors(model), undisturbed()[0])


def test_interrupted_without_a_folder_says_so(run):
    with pytest.raises(Interrupted, match="nothing was saved"):
        run(None, progress=At(2, lambda: os.kill(os.getpid(), signal.SIGINT)))


# -- the optimiser ---------------------------------------------------------------------------------------------------


def test_the_schedule_in_the_log(run, tmp_path):
    run(tmp_path, settings={"warmup": 2, "lr": 1e-3, "min_lr_ratio": 0.1})
    rates = [row["lr"] for row in lines(tmp_path) if "loss" in row]
    course = [0.1 + 0.9 * (1 + math.cos(math.pi * k / 6)) / 2 for k in range(6)]
    assert rates == pytest.approx([1e-3 * f for f in (0.5, 1.0, *course)], rel=1e-12)


@pytest.mark.parametrize("total", [1, 2, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.06, 0.5, 0.999, 1.0, 3.0, 500.0])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_schedule_in_closed_form(schedule, warmup, total):
    settings = Train(schedule=schedule, warmup=warmup, min_lr_ratio=0.2)
    shares = [optim.share(k, total, settings) for k in range(total)]
    warm = min(round(warmup * total) if warmup < 1 else int(warmup), total)
    assert shares[:warm] == pytest.approx([(k + 1) / warm for k in range(warm)])
    for k in range(warm, total):
        u = (k - warm) / (total - warm)
        wanted = {"cosine": 0.6 + 0.4 * math.cos(math.pi * u), "linear": 1 - 0.8 * u, "constant": 1.0}[schedule]
        assert shares[k] == pytest.approx(wanted)
    assert all(0 < s <= 1 for s in shares) and (warm == total or shares[warm] == 1.0)


def test_lora_plus_reaches_the_optimiser(make_model, examples, tokenizer):
    """B moves sixteen times as far as A for a gradient of the same kind: Adam's first step is lr * multiplier * sign."""
    model = rewire(make_model("llama"), method="lora_plus", method_config=LoRAPlus(rank=4, ratio=16.0))
    with torch.no_grad():
        for name, p in model.trainable().items():
            if name.endswith(".B"):
                p.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    before = tensors(model)
    fit(model, [render(e, tokenizer, True) for e in examples], Train(steps=1, batch=4, lr=1e-3, warmup=0, clip=0.0), row_tokens=0, seed=0)
    for name, p in model.trainable().items():
        moved = float((p.detach() - before[name]).abs().median())
        assert moved == pytest.approx(1e-3 * (16 if name.endswith(".B") else 1), rel=0.01), name


def test_decay_spares_vectors(make_model):
    model = rewire(make_model("llama"), method="dora", method_config=DoRA(rank=4))
    optimizer = optim.adamw(model, Train(weight_decay=0.1))
    seen = {}
    for group in optimizer.param_groups:
        seen.update({name: group["weight_decay"] for name in group["names"]})
    assert seen.keys() == model.trainable().keys()
    assert all(decay == (0.0 if name.endswith(".m") else 0.1) for name, decay in seen.items())


def test_clipping(make_model, examples, tokenizer):
    """With a clip of c the gradient that the optimiser sees has norm min(c, its own)."""
    norms = []
    for clip in (0.0, 1e-2):
        model = rewire(make_model("llama"), method="lora")
        train.step(model, [collate([[render(e, tokenizer, True)] for e in examples[:3]])])
        told = float(torch.nn.utils.clip_grad_norm_(model.trainable().values(), clip or math.inf))
        left = math.sqrt(sum(float(p.grad.square().sum()) for p in model.trainable().values()))
        norms.append((told, left))
    assert norms[0][0] == pytest.approx(norms[0][1], rel=1e-5) and norms[1] == pytest.approx((norms[0][0], 1e-2), rel=1e-3)


# -- refused ---------------------------------------------------------------------------------------------------------


def test_nothing_to_learn(make_model, run):
    with pytest.raises(FinloraError, match="no training examples"):
        run(None, validation=12)
    with pytest.raises(FinloraError, match="nothing is trainable"):
        run(None, model=rewire(make_model("llama"), codec="nf4"))


def test_rows_are_padded_to_few_shapes(taught):
    """A multiple of 64 positions, of which the added ones have no document, no weight and no part in the count."""
    from finlora.train import batches_of

    for batch in batches_of(taught, 256, 2):
        assert batch.ids.shape[1] % 64 == 0
        assert not batch.weights[batch.doc < 0].any()
    weights = sum(float(b.weights.sum()) for b in batches_of(taught, 256, 2))
    assert weights == sum(sum(t.weights[1:]) for t in taught)


# -- methods that change, on their way, what does not train ----------------------------------------------------------

CHANGING = [name for name in names("method") if pick("method", name).refresh or pick("method", name).tend]
RENEWING = [name for name in CHANGING if pick("method", name).refresh]
OFTEN = {"rank": 4, "dropout": 0.1, "every": 3, "rewarm": 2}  # where the method has such a setting


def changing(make_model, codec, method, **values):
    """A fresh model under a method that renews itself after steps 3 and 6."""
    record, kept = pick("method", method), {**OFTEN, **values}
    known = {f.name for f in fields(record.config)}
    config = record.config(**{key: value for key, value in kept.items() if key in known})
    return rewire(make_model("llama"), codec=codec, method=method, method_config=config, seed=5)


def whole(model):
    """Everything: trained and frozen parameters, stored weights."""
    return {name: t.detach().clone() for name, t in model.state_dict().items()}


@pytest.mark.parametrize("codec", ["none", "nf4"])
@pytest.mark.parametrize("method", CHANGING)
def test_killed_where_a_method_changes_more_than_it_trains(method, codec, run, make_model, tmp_path):
    """Killed right after each renewal, and before, with a checkpoint a step and with few: bitwise the run that was not."""
    model, told = run(tmp_path / "calm", model=changing(make_model, codec, method))
    start = whole(changing(make_model, codec, method))
    trained = model.trainable().keys()
    if method in RENEWING:
        assert any(start[n].shape != t.shape or not torch.equal(start[n], t) for n, t in whole(model).items() if n not in trained)
    for name, often, kills in (("often", {"checkpoint_every": 1}, (4, 7)), ("seldom", {}, (3, 8))):
        for k in kills:
            with pytest.raises(Killed):
                run(tmp_path / name, model=changing(make_model, codec, method), progress=At(k, kill), settings=often)
        again, told_again = run(tmp_path / name, model=changing(make_model, codec, method), settings=often)
        assert same(whole(again), whole(model)) and timeless(told_again) == timeless(told)
        assert lines(tmp_path / name) == lines(tmp_path / "calm")


@pytest.mark.parametrize("lost", ["frozen", "stored", "forgotten", "rewarmed"])
def test_the_law_of_changing_methods_has_teeth(lost, run, make_model, tmp_path, monkeypatch):
    """A checkpoint without one of the things that decide the next step does not resume to the same run."""
    real = checkpoint.load

    def load(folder):
        tensors, meta = real(folder)
        if lost == "frozen":
            tensors["frozen"] = {n: t[:0] if n.endswith("A_base") else t[:, :0] for n, t in tensors["frozen"].items()}
        if lost == "stored":
            del tensors["stored"]
        if lost == "forgotten":
            tensors["optimizer"] = {}
        return tensors, {**meta, "rewarm": 0} if lost == "rewarmed" else meta

    model, _ = run(tmp_path / "calm", model=changing(make_model, "none", "relora"))
    k = 6 if lost == "forgotten" else 4
    with pytest.raises(Killed):
        run(tmp_path / "killed", model=changing(make_model, "none", "relora"), progress=At(k, kill), settings={"checkpoint_every": 1 if k == 6 else 3})
    monkeypatch.setattr(checkpoint, "load", load)
    again, _ = run(tmp_path / "killed", model=changing(make_model, "none", "relora"))
    assert not same(whole(again), whole(model))


@pytest.mark.parametrize("codec", ["none", "nf4"])
@pytest.mark.parametrize("method", CHANGING)
@pytest.mark.parametrize("best", [2, 4])
def test_going_back_to_the_best_brings_back_everything(best, method, codec, run, make_model, tmp_path, monkeypatch):
    """The best step is the second of a run that renews itself after 3, or the fourth and it is renewed again after 6: what
    was frozen then, and stored then, returns."""
    model, kept = changing(make_model, codec, method), {}

    class Watching(Counting):
        def step(self, step, **_):
            self.at = step
            kept[step] = whole(model)

    counting = Watching()
    monkeypatch.setattr(train, "mean_nats", lambda *_: 1.0 + abs(counting.at - best) / 10)
    settings = {"patience": 2, "validate_every": 1, "keep": 1, "steps": 20, "schedule": "constant"}
    _, told = run(tmp_path, model=model, settings=settings, progress=counting)
    assert told["best_step"] == best and told["steps"] == best + 2
    assert same(whole(model), kept[best]) and not same(whole(model), kept[best + 2])


@pytest.mark.parametrize("method", RENEWING)
def test_a_renewal_drops_moments_and_warms_up_again(method, run, make_model, tmp_path, monkeypatch):
    """After steps 3 and 6 of 8, never after the last; the rate then climbs back over `rewarm` steps."""
    forgotten, real = [], optim.forget

    def forget(optimizer, params):
        params = list(params)
        forgotten.append(len(params))
        real(optimizer, params)
        assert all(p not in optimizer.state for p in params)

    monkeypatch.setattr(optim, "forget", forget)
    settings = {"warmup": 0, "lr": 1e-3, "schedule": "constant"}
    model, _ = run(tmp_path, model=changing(make_model, "none", method), settings=settings)
    rates = [row["lr"] for row in lines(tmp_path) if "loss" in row]
    assert rates == pytest.approx([1e-3 * f for f in (1, 1, 1, 0.5, 1, 1, 0.5, 1)], rel=1e-12)
    assert forgotten == [len(model.trainable())] * 2
    forgotten.clear()
    run(None, model=changing(make_model, "none", method, every=4), settings=settings)
    assert len(forgotten) == 1, "renewed after the last step"


def test_what_changes_nothing_frozen_writes_the_files_it_always_did(run, tmp_path):
    run(tmp_path)
    files = {p.name for p in checkpoint.latest(tmp_path / "checkpoints").iterdir()}
    assert files == {"trainable.safetensors", "optimizer.safetensors", "rng.safetensors", "meta.json", "manifest.json"}
