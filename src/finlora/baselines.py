"""PEFT's own tuners as baselines: `peft:oft`, `peft:loha`, ... trained by our loop on our data, graded by our grader.  The only importer of PEFT.

    [method]
    kind = "peft:oft"
    oft_block_size = 8          options go to PEFT's config class

PEFT puts its layers into a body whose linears are still plain, so the base is lossless and everything around it is ours:
words, packing, loss, optimiser, receipts. Served are the tuners that act inside layers; those that act in PEFT's own
forward pass (prompts, X-LoRA, AdaLoRA's penalty) would not be heard here. The adapter folder is written by PEFT itself.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .checkpoint import atomic_folder
from .errors import FinloraError, unknown
from .linear import Method
from .model import Model
from .wiring import find_linears, matches

MARK = "peft:"
OURS = {  # fields of PEFT's configs that the spec or the run decides
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "target_modules",
}  # fmt: skip
ELSEWHERE = ("ln_tuning", "trainable_tokens")  # tuners of norms and embeddings, which have no linears to go to


def is_baseline(kind: str) -> bool:
    """Whether a method of this name is one of PEFT's own tuners."""
    return kind.startswith(MARK)


def tuners() -> dict[str, type]:
    """{name: PEFT's config class} of the tuners that act inside layers.  Raises: FinloraError where PEFT is not installed."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it, and it tells of kernels it did not find
    try:
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
        from peft.tuners.tuners_utils import BaseTuner
    except ImportError as error:
        raise FinloraError("methods `peft:...` need the package peft, which is not installed", "pip install peft") from error
    out = {}
    for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(kind)
        inside = inspect.isclass(tuner) and issubclass(tuner, BaseTuner) and tuner.forward is BaseTuner.forward
        if inside and kind.value.lower() not in ELSEWHERE and "target_modules" in {f.name for f in dataclasses.fields(config)}:
            out[kind.value.lower()] = config
    return out


def record(tuner: str) -> Method:
    """The method `peft:<tuner>`: its config has the fields of PEFT's, absent ones take PEFT's defaults.

    It has no place on the seam; `wrap` puts it into a model. Raises: FinloraError for a tuner that is not served.
    """
    known = tuners()
    if tuner not in known:
        raise unknown("method", MARK + tuner, [MARK + name for name in known])
    fields = [(f.name, Any, dataclasses.field(default=None)) for f in dataclasses.fields(known[tuner]) if f.init and f.name not in OURS]
    config = dataclasses.make_dataclass("Config", fields, frozen=True, namespace={"__post_init__": lambda self: _made(tuner, self, ["x"])})
    config.__doc__ = f"The options of PEFT's {known[tuner].__name__}; None is PEFT's default."

    def refuse(*args: Any, **options: Any) -> Any:
        raise FinloraError(f"method `{MARK}{tuner}` is PEFT's and is not put on single linears", "open the base without a method and call finlora.baselines.wrap")

    return Method(MARK + tuner, config, refuse, refuse, refuse, over="lossless")


def wrap(model: Model, tuner: str, options: Any = None, targets: str | Sequence[str] = "all-linear", seed: int = 0) -> Model:
    """Put PEFT's tuner into an opened model, in place, drawn from the seed; `model.trainable()` is then the tuner's own.

    options: a table for PEFT's config class, or the config of `record`. targets: the rule of `finlora.wiring.matches`.
    Raises: FinloraError for a base whose linears are on the seam, an unknown tuner or option, settings that PEFT refuses.
    """
    if model.linears:
        kept = next((linear.store.codec.name for linear in model.linears.values() if linear.store is not None), "none")
        raise FinloraError(f"`{MARK}{tuner}` needs a base whose linears are plain, and these are kept by codec `{kept}`", 'write codec.kind = "none", and open the base without codec and method')
    method = record(tuner)
    if options is None or isinstance(options, Mapping):
        names = [f.name for f in dataclasses.fields(method.config)]
        for key in options or {}:
            if key not in names:
                raise unknown("key", key, names, f"method `{method.name}`")
        options = method.config(**(options or {}))
    chosen = [name for name in find_linears(model.body) if matches(name, targets)]
    if not chosen:
        raise FinloraError(f"method.targets: `{targets}` matches no linear of {model.name}", "all-linear takes every one")
    from peft import get_peft_model

    config = _made(tuner, options, chosen)
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        try:
            wrapped = get_peft_model(model.body, config)
        except (ValueError, TypeError, RuntimeError, KeyError, AttributeError) as error:
            raise FinloraError(f"PEFT cannot put `{tuner}` on {model.name}: {_first_line(error)}", "change its options, or the targets") from error
    inside = {id(p) for p in model.body.parameters()}
    if outside := [name for name, p in wrapped.named_parameters() if p.requires_grad and id(p) not in inside]:
        raise FinloraError(f"PEFT keeps `{outside[0]}` of `{tuner}` outside the model's layers, where our loop does not train it", "choose another tuner")
    wrapped.peft_config["default"].base_model_name_or_path = model.name
    model.__dict__["baseline"] = wrapped  # not by plain assignment, which would register the body a second time
    return model


def save(model: Model, folder: str | Path, replace: bool = False) -> Path:
    """Write the tuner's adapter as PEFT writes it.  Raises: FinloraError where the folder exists or the disk is full."""
    wrapped = model.__dict__["baseline"]
    return atomic_folder(Path(folder), lambda t: wrapped.save_pretrained(t, save_embedding_layers=False), replace)


def _made(tuner: str, options: Any, targets: list[str]) -> Any:
    """PEFT's config of the options.  Raises: FinloraError with PEFT's first line where it refuses them."""
    given = {f.name: getattr(options, f.name) for f in dataclasses.fields(options) if getattr(options, f.name) is not None}
    try:
        return tuners()[tuner](task_type="CAUSAL_LM", target_modules=targets, **given)
    except (ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise FinloraError(f"PEFT refuses the options of `{tuner}`: {_first_line(error)}", f"they are those of PEFT's {tuners()[tuner].__name__}") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
