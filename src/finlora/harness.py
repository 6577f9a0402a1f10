"""lm-evaluation-harness over our model: its tasks, prompts and metrics, our forward passes.

    run(model, ["mmlu_econometrics", "boolq"], limit=100, shots=5)

The harness asks for log-likelihoods of (context, continuation) pairs and for texts; it tokenises them as it does for its own
Hugging Face models, so numbers are comparable with published ones.  What differs is how they are computed: all
continuations of a context share its forward pass, contexts share what they begin with, and the head runs only where a
token is predicted (finlora.generate).  A context without continuation room is cut on its left, as there.

lm-eval is an extra (`pip install finlora[lm-eval]`) and imported when called.  Nothing is fetched unless `online`: data
that the `datasets` library has not kept on this machine raise an error that says so.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .asking import Asked
from .errors import FinloraError
from .generate import continuations, end_tokens, likelihoods
from .model import Model
from .score import Record
from .tasks import HARNESS

MAX_NEW = 256  # tokens of a text where the task names no number, as the harness has it
MAIN = ("acc_norm", "acc", "exact_match", "f1", "em")  # the figure that says whether an answer is right, the first that is there
_KNOWN = {"until", "max_gen_toks", "do_sample", "temperature"}


def is_outside(name: str) -> bool:
    """Whether a task of this name is the harness's own."""
    return name.startswith(HARNESS)


def run(
    model: Model,
    tasks: Sequence[str] | str,
    limit: int = 0,
    shots: int | None = None,
    *,
    include: str | Path | None = None,
    defaults: bool = True,
    template: str = "plain",
    seed: int = 0,
    batch_tokens: int = 4096,
    online: bool = False,
) -> dict[str, dict[str, Any]]:
    """{task: {"metrics": {name: {"value", "stderr"}}, "metric", "n", "shots", "version", "harness", "records"}} of the harness's tasks.

    tasks: names, groups or tags, with or without `lm-eval:`. limit: questions of each, 0 for all. shots: worked examples, None
    as the task says. include: a folder with more tasks (a pack); defaults: False leaves the harness's own out, whose index
    takes seconds. template: "plain", or "chat" for the tokenizer's own. seed: of every draw. Groups stand beside their tasks,
    without records. A record's mark is the first of MAIN that the task has.
    Raises: FinloraError where lm-eval is missing, a task is unknown, or data are not at hand.
    """
    names = [name.removeprefix(HARNESS) for name in ([tasks] if isinstance(tasks, str) else tasks)]
    if not names:
        raise FinloraError("there is no task to grade on", "name some, as in lm-eval:boolq")
    with _quiet(online):
        lm_eval = _import()
        manager = _own_index() if include is None and defaults else _index(include, defaults)
        if missing := [name for name in names if name not in manager.all_tasks]:
            raise FinloraError(f"lm-eval has no task `{missing[0]}`", "`lm-eval ls tasks` shows what there is")
        try:
            found = lm_eval.simple_evaluate(
                language_model(model, batch_tokens, seed), tasks=names, num_fewshot=shots, limit=limit or None, task_manager=manager, bootstrap_iters=0,
                apply_chat_template=template == "chat", random_seed=seed, numpy_random_seed=seed, torch_random_seed=seed, fewshot_random_seed=seed,
            )  # fmt: skip
        except (OSError, ConnectionError) as e:
            raise FinloraError(f"the data of lm-eval's {', '.join(names)} are not at hand: {_first_line(e)}", "fetch them once with --online") from e
    return {name: _told(name, found, lm_eval.__version__ if hasattr(lm_eval, "__version__") else "") for name in found["results"]}


def graded(
    model: Model, tasks: Sequence[str], limit: int = 0, shots: int | None = None, *, progress: Any = None, **options: Any
) -> dict[str, tuple[list[Record], dict[str, Any]]]:
    """{`lm-eval:task`: (records, the task's part of a receipt)}; options: as run. A group's mean has no records.

    Intervals: of a task's marks where each is 0 or 1 (score.interval), else the harness's own standard error, 1.96 times.
    Raises: as run.
    """
    from .score import interval

    out = {}
    if progress:
        progress.note(f"lm-evaluation-harness: {', '.join(name.removeprefix(HARNESS) for name in tasks)}")
    for name, found in run(model, tasks, limit, shots, **options).items():
        records, metrics = found["records"], {}
        for metric, told in found["metrics"].items():
            value, error = told["value"], told["stderr"] or 0.0
            metrics[metric] = {"value": value, "low": value - 1.96 * error, "high": value + 1.96 * error, "n": found["n"], "clusters": found["n"], "how": "the harness's standard error, normal"}
        if len(records) > 1:
            metrics = {"accuracy": dataclasses.asdict(interval(records)), **metrics}
        out[HARNESS + name] = records, {
            "n": found["n"], "clusters": metrics.get("accuracy", {}).get("clusters", found["n"]), "unreadable": 0, "way": "lm-eval",
            "metric": "accuracy" if "accuracy" in metrics else found["metric"], "metrics": metrics, "floors": {}, "records": None, "split": "lm-eval's own",
            "data_sha256": "", "shots": found["shots"], "version": found["version"], "harness": found["harness"],
        }  # fmt: skip
    return out


def _index(include: str | Path | None, defaults: bool) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(include) if include else None, include_defaults=defaults)


@functools.cache
def _own_index() -> Any:
    """The harness's index of its own tasks: thousands of files, read once."""
    return _index(None, True)


@functools.cache
def _lm_class() -> type:
    """The harness's model class over ours; made when asked for, as its base is only then imported."""
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    class FinloraLM(TemplateLM):
        """Our Model as the harness knows models."""

        def __init__(self, model: Model, batch_tokens: int, seed: int):
            super().__init__()
            self.model, self.tokenizer, self.batch_tokens, self.seed = model, model.tokenizer, batch_tokens, seed
            self.max_length, self._device = model.max_tokens, model.device

        @property
        def eot_token_id(self) -> int:
            return self.tokenizer.eos_token_id

        @property
        def prefix_token_id(self) -> int:
            bos = self.tokenizer.bos_token_id
            return self.eot_token_id if bos is None else bos

        @property
        def tokenizer_name(self) -> str:
            return self.model.name.replace("/", "__")

        def chat_template(self, chat_template: bool | str = False) -> str | None:
            return getattr(self.tokenizer, "chat_template", None) or "" if chat_template else ""

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            return self.tokenizer.apply_chat_template(
                chat_history, tokenize=False, add_generation_prompt=add_generation_prompt, continue_final_message=not add_generation_prompt
            )

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
            bos = self.tokenizer.decode([self.prefix_token_id])
            if add_special_tokens is None and bos and string.startswith(bos):
                add_special_tokens = False
            return list(self.tokenizer(string, **({} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}))["input_ids"])

        def _loglikelihood_tokens(self, requests: Sequence[tuple[Any, list[int], list[int]]], **options: Any) -> list[tuple[float, bool]]:
            pairs = [_fitted(context, continuation, self.max_length) for _, context, continuation in requests]
            found = pair_likelihoods(self.model, pairs, self.batch_tokens)
            for (strings, *_), answer in zip(requests, found):
                if strings is not None:
                    self.cache_hook.add_partial("loglikelihood", strings, answer)
            return found

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            windows = [
                [
                    make_disjoint_window(w)
                    for w in get_rolling_token_windows(self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, 1)
                ]
                for request in requests
            ]
            found = iter(self._loglikelihood_tokens([(None, *pair) for each in windows for pair in each]))
            return [sum(next(found)[0] for _ in each) for each in windows]

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            out: list[str] = [""] * len(requests)
            ends = end_tokens(self.model, "plain")
            eos = self.tokenizer.decode([self.eot_token_id])
            groups: dict[str, list[int]] = {}
            for k, request in enumerate(requests):
                groups.setdefault(repr(request.args[1]), []).append(k)
            for members in groups.values():
                how = dict(normalize_gen_kwargs(requests[members[0]].args[1], MAX_NEW))
                if odd := sorted(set(how) - _KNOWN):
                    raise FinloraError(f"an lm-eval task asks to generate with `{odd[0]}`", f"served are {', '.join(sorted(_KNOWN))}")
                max_new, room = how["max_gen_toks"], self.max_length - how["max_gen_toks"]
                if room < 1:
                    raise FinloraError(f"an lm-eval task asks for {max_new} new tokens, the model has {self.max_length} positions", "leave the task out")
                ids = [self.tok_encode(requests[k].args[0])[-room:] or [self.prefix_token_id] for k in members]
                temperature = float(how.get("temperature") or 0.0) if how.get("do_sample") else 0.0
                texts = continuations(self.model, ids, max_new, [*how["until"], eos], temperature, self.seed, self.batch_tokens, ends=ends)
                for k, text in zip(members, texts):
                    out[k] = text
                    self.cache_hook.add_partial("generate_until", requests[k].args, text)
            return out

    return FinloraLM


def language_model(model: Model, batch_tokens: int = 4096, seed: int = 0) -> Any:
    """Our model as an `lm_eval.api.model.LM`, for the harness's own evaluators. Raises: FinloraError where lm-eval is missing."""
    _import()
    return _lm_class()(model, batch_tokens, seed)


def pair_likelihoods(model: Model, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], batch_tokens: int = 4096) -> list[tuple[float, bool]]:
    """(log p(continuation | context) in nats, whether greedy decoding writes it) of each pair of token lists.

    Continuations of one context share its forward pass. An empty continuation is certain.
    """
    wanted: dict[tuple[int, ...], dict[tuple[int, ...], int]] = {}
    for context, continuation in pairs:
        if continuation:
            here = wanted.setdefault(tuple(context), {})
            here.setdefault(tuple(continuation), len(here))
    asked = [Asked(context, tuple(continuations)) for context, continuations in wanted.items()]
    found = dict(zip(wanted, likelihoods(model, asked, batch_tokens, greedy=True)))
    return [found[tuple(a)][wanted[tuple(a)][tuple(b)]] if b else (0.0, True) for a, b in pairs]


def _fitted(context: Sequence[int], continuation: Sequence[int], room: int) -> tuple[list[int], list[int]]:
    """The last room + 1 tokens of the pair, of which at least one is context."""
    kept = [*context, *continuation][-(room + 1) :]
    n = min(len(continuation), len(kept) - 1)
    return (kept[: len(kept) - n], kept[len(kept) - n :]) if n else (list(context), [])


def _told(name: str, found: dict[str, Any], version: str) -> dict[str, Any]:
    """One task's part of what the harness returns."""
    row = found["results"][name]
    metrics: dict[str, dict[str, Any]] = {}
    for key, value in row.items():
        metric, comma, kept = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            error = row.get(f"{metric}_stderr,{kept}")
            metrics[metric if kept == "none" else f"{metric}[{kept}]"] = {"value": float(value), "stderr": error if isinstance(error, float) else None}
    samples = found.get("samples", {}).get(name, [])
    first = samples[0]["filter"] if samples else ""
    records = [_record(name, s) for s in samples if s["filter"] == first]
    return {
        "metrics": metrics,
        "metric": next((m for m in metrics for main in MAIN if m.startswith(main)), next(iter(metrics), "")),
        "n": len(records) or found.get("n-samples", {}).get(name, {}).get("effective", 0),
        "shots": found.get("n-shot", {}).get(name),
        "version": found.get("versions", {}).get(name),
        "harness": version,
        "records": records,
    }


def _record(task: str, sample: dict[str, Any]) -> Record:
    mark = next((float(sample[m]) for m in MAIN if isinstance(sample.get(m), int | float)), 0.0)
    said = sample["filtered_resps"][0] if sample["filtered_resps"] and isinstance(sample["filtered_resps"][0], str) else None
    return Record(
        f"{task}-{sample['doc_id']}", sample.get("doc_hash", "")[:16], sample.get("prompt_hash", "")[:16] or _digest(sample["arguments"]), str(sample["target"]), said,
        said, None, None, mark, "say" if said is not None else "choose",
    )  # fmt: skip


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode("utf-8", "replace")).hexdigest()[:16]


def _import() -> Any:
    try:
        import lm_eval
    except ImportError as e:
        raise FinloraError("tasks `lm-eval:...` need the package lm-eval, which is not installed", "pip install lm-eval") from e
    return lm_eval


@contextmanager
def _quiet(online: bool) -> Iterator[None]:
    """No network for the libraries beneath the harness unless `online`, and none of its warnings; put back afterwards."""
    keys = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    before = {key: os.environ.get(key) for key in keys}
    flags: list[tuple[Any, str, Any]] = []
    if not online:
        os.environ.update(dict.fromkeys(keys, "1"))
        for module, names in (("datasets.config", ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE")), ("huggingface_hub.constants", ("HF_HUB_OFFLINE",))):
            for name in names:
                if hasattr(sys.modules.get(module), name):  # imported before: the environment is read no more
                    flags.append((sys.modules[module], name, getattr(sys.modules[module], name)))
                    setattr(sys.modules[module], name, True)
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        for module, name, value in flags:
            setattr(module, name, value)
        for key, value in before.items():
            os.environ.pop(key, None) if value is None else os.environ.__setitem__(key, value)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
