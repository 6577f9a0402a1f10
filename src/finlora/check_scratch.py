"""What would stop `finlora pretrain`, found before any work is done: part of `check`."""

from __future__ import annotations

import json
from pathlib import Path

from .errors import FinloraError, gathered
from .spec import Spec, resolve


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
    if not spec.data.shards:
        for key, usual in (("text_weights", {}), ("join", False), ("dedup", "none"), ("workers", 1)):
            if getattr(spec.data, key) != usual:
                problems.append(FinloraError(f"data.{key} has no effect without data.shards", "name a folder for the tokens: data.shards"))
    tokenizer = Path(spec.model.tokenizer).expanduser()
    if spec.model.tokenizer not in ("", "train") and not (tokenizer / "tokenizer.json").is_file():
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
    from .restructure import planned

    part = spec.structure
    resolved = gathered(problems, lambda: resolve(part))
    given = Path(spec.model.tokenizer).expanduser()
    own = spec.model.tokenizer not in ("", "train") and (given / "tokenizer.json").is_file()
    body = outline(spec.model.config, len(load_tokenizer(str(given))) if own else spec.model.vocab_size)
    longest = int(body.config.max_position_embeddings)
    if spec.data.row_tokens > longest:
        problems.append(
            FinloraError(
                f"data.row_tokens = {spec.data.row_tokens} is above the {longest} positions of model.config",
                f"set it to at most {longest}, or give the model more positions",
            )
        )
    if part.kind != type(part)().kind:
        if resolved:
            planned(body, part, resolved)
    elif part.keep or part.compression or part.guided or part.rounded:
        problems.append(
            FinloraError(
                f'structure.keep, compression, guided and rounded have no effect with structure.kind = "{part.kind}", which leaves the linears as they are',
                "choose a structure of `finlora list structures`",
            )
        )
