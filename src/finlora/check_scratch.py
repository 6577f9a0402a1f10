"""What would stop `finlora pretrain`, found before any work is done: part of `check`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import FinloraError, gathered
from .spec import Spec, resolve

if TYPE_CHECKING:
    from .restructure import Plan


def further(spec: Spec) -> bool:
    """Whether a model is trained further on text: the one that is named, where no architecture is given."""
    return not spec.model.config


def pretraining(spec: Spec, problems: list[FinloraError]) -> None:
    """Add what is wrong with the texts, the tokenizer, the architecture and the structure in its linears."""
    from .corpus import files

    if further(spec):
        _further(spec, problems)
    given = spec.data.text or not (spec.data.shards and Path(spec.data.shards).expanduser().exists())
    for path in gathered(problems, lambda: files(spec.data.text)) or () if given else ():
        if not path.stat().st_size:
            problems.append(FinloraError(f"data.text: `{path}` is empty", "remove it or give another file"))
    if spec.data.row_tokens < 8:
        problems.append(
            FinloraError(
                f"data.row_tokens = {spec.data.row_tokens}: pretraining cuts documents into rows", "set it to 256 or more"
            )
        )
    _shards(spec, problems)
    _parallel(spec, problems)
    if spec.model.tokenizer not in ("", "train") and not (_tokenizer(spec) / "tokenizer.json").is_file():
        problems.append(
            FinloraError(
                f"model.tokenizer: `{spec.model.tokenizer}` is not a tokenizer folder, it has no tokenizer.json",
                "write `train` to make one from the text",
            )
        )
    if spec.structure.guided and spec.train.patience:
        problems.append(
            FinloraError(
                f"structure.guided = {spec.structure.guided:g} and train.patience = {spec.train.patience}: a run that stops early would keep its guide",
                "set train.patience to 0",
            )
        )
    if spec.model.config:
        gathered(problems, lambda: _structure(spec, problems))


def _tokenizer(spec: Spec) -> Path:
    """The folder of the tokenizer that is named."""
    from .model import BASE, locate

    return Path(locate(BASE) if spec.model.tokenizer == BASE else spec.model.tokenizer).expanduser()


def _shards(spec: Spec, problems: list[FinloraError]) -> None:
    """Settings of the folder of tokens that would have no effect, and a folder that the run itself would write over."""
    from .runs import OURS
    from .shards.plan import check_weight

    data = spec.data
    if not data.shards:
        for key, usual in (("text_weights", {}), ("join", False), ("dedup", "none"), ("workers", 1)):
            if getattr(data, key) != usual:
                problems.append(FinloraError(f"data.{key} has no effect without data.shards", "name a folder for the tokens: data.shards"))
        return
    for name, weight in data.text_weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            problems.append(FinloraError(f"data.text_weights of `{name}` must be a number, got {weight!r}", "2 reads it twice as often"))
        else:
            gathered(problems, lambda name=name, weight=weight: check_weight(f"data.text_weights.{name}", weight))
    if not data.text:
        for key in ("dedup", "max_tokens", "sources", "exclude_sources", "validation"):
            if getattr(data, key) != getattr(type(data)(), key):
                problems.append(FinloraError(f"data.{key} has no effect without data.text: the tokens in `{data.shards}` are made already", "leave it out, or give the text and a new folder"))
    folder, shards = Path(spec.run.out).expanduser().resolve(), Path(data.shards).expanduser().resolve()
    if shards == folder or any(shards.is_relative_to(folder / made) for made in OURS):
        problems.append(FinloraError(f"data.shards: the run would write over `{data.shards}`", "name a folder of its own for the tokens"))


def _parallel(spec: Spec, problems: list[FinloraError]) -> None:
    """Settings of several processes that have no effect, and what cannot be dealt out so."""
    part = spec.parallel
    if part.pipeline == 1:
        for key in ("schedule", "microbatches"):
            if getattr(part, key) != getattr(type(part)(), key):
                problems.append(FinloraError(f"parallel.{key} has no effect with parallel.pipeline = 1", "set parallel.pipeline to the number of stages"))
    if part.data != type(part)().data and spec.optimizer.kind != type(spec.optimizer)().kind:
        problems.append(
            FinloraError(
                f'optimizer.kind = "{spec.optimizer.kind}" steps whole matrices, and parallel.data = "{part.data}" keeps parts of them',
                f'write optimizer.kind = "{type(spec.optimizer)().kind}", or parallel.data = "{type(part)().data}"',
            )
        )


def _further(spec: Spec, problems: list[FinloraError]) -> None:
    """Whether the model that goes on can be found, and its method stands over its codec."""
    from .model import locate
    from .seam import check_over

    where = gathered(problems, lambda: locate(spec.model.name, spec.model.online))
    if where and (longest := positions(Path(where))) and spec.data.row_tokens > longest:
        problems.append(FinloraError(f"data.row_tokens = {spec.data.row_tokens} is above the {longest} positions of `{spec.model.name}`", f"set it to at most {longest}"))
    found = [gathered(problems, lambda part=part: resolve(part)) for part in (spec.method, spec.codec)]
    if all(found):
        (method, config), (codec, _) = found
        gathered(problems, lambda: check_over(method, codec))
        if method.needs(config):
            problems.append(
                FinloraError(
                    f'method.kind = "{method.name}" begins from a calibration on a task\'s examples, which `finlora pretrain` does not make',
                    "choose another, such as lora, or full",
                )
            )


def positions(folder: Path) -> int:
    """How many positions the model of a folder has, by its config.json; 0 where that does not tell."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return int(config.get("max_position_embeddings") or config.get("n_positions") or 0)
    except (OSError, ValueError, TypeError, AttributeError, OverflowError):
        return 0


def _structure(spec: Spec, problems: list[FinloraError]) -> None:
    """Whether the structure fits the architecture; the model is laid out without memory for that."""
    from .model import load_tokenizer, outline
    from .restructure import planned, shapes_of

    part = spec.structure
    resolved = gathered(problems, lambda: resolve(part))
    given = _tokenizer(spec)
    own = spec.model.tokenizer not in ("", "train") and (given / "tokenizer.json").is_file()
    vocabulary = len(load_tokenizer(str(given))) if own else spec.model.vocab_size
    if own and spec.model.vocab_size not in (type(spec.model)().vocab_size, vocabulary):
        problems.append(FinloraError(f"model.vocab_size = {spec.model.vocab_size}, and the tokenizer in `{given}` has {vocabulary} tokens", "leave model.vocab_size out: it is for a tokenizer that is trained"))
    body = outline(spec.model.config, vocabulary)
    longest = int(body.config.max_position_embeddings)
    if spec.data.row_tokens > longest:
        problems.append(
            FinloraError(
                f"data.row_tokens = {spec.data.row_tokens} is above the {longest} positions of model.config",
                f"set it to at most {longest}, or give the model more positions",
            )
        )
    _stages(spec, body.config.num_hidden_layers, problems)
    if part.kind != type(part)().kind:
        if resolved:
            _stepped(spec, planned(body, part, resolved), shapes_of(body), problems)
        return
    _stepped(spec, {}, {}, problems)
    if part.keep or part.compression or part.guided or part.rounded or part.patterns or part.targets != type(part)().targets:
        problems.append(
            FinloraError(
                f'structure.keep, compression, guided, rounded, targets and patterns have no effect with structure.kind = "{part.kind}", which leaves the linears as they are',
                "choose a structure of `finlora list structures`",
            )
        )


def _stages(spec: Spec, layers: int, problems: list[FinloraError]) -> None:
    """Whether there is a layer for every stage of a pipeline."""
    from .parallel import VIRTUAL

    part = spec.parallel
    stages = part.pipeline * (VIRTUAL if part.schedule == "interleaved" else 1)
    if part.pipeline > 1 and stages > layers:
        problems.append(FinloraError(f"parallel.pipeline = {part.pipeline}, schedule = {part.schedule}: {stages} stages, and the model has {layers} blocks", f"ask for {layers} stages at most"))


def _stepped(spec: Spec, plan: Plan, shapes: Mapping[str, tuple[int, int]], problems: list[FinloraError]) -> None:
    """Whether an optimiser that steps pairs of factors finds any."""
    from .structured import as_method
    from .traits import pair

    resolved = gathered(problems, lambda: resolve(spec.optimizer))
    if not resolved or not resolved[0].paired:
        return
    for name, (structure, config) in plan.items():
        params = structure.init(config, *reversed(shapes[name]), 0.02, None)
        if pair(as_method(structure), config, params) is not None:
            return
    rounded = f", rounded by {spec.structure.rounded}," if spec.structure.rounded else ""
    problems.append(
        FinloraError(
            f'optimizer.kind = "{spec.optimizer.kind}" steps pairs of factors whose product is the weight, and structure.kind = "{spec.structure.kind}"{rounded} has none',
            f'write optimizer.kind = "{type(spec.optimizer)().kind}", or choose a structure of such factors (`finlora list structures`)',
        )
    )
