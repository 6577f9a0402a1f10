"""Adapter folders: PEFT's format, read and written without importing PEFT.

    adapter_config.json         what PEFT reads: kind, rank, alpha, target modules
    adapter_model.safetensors   base_model.model.<linear>.lora_A.weight ...
    finlora.json                what PEFT has no field for: the method and its settings, codec and base it was trained over
    finlora.safetensors         <linear>.<parameter>, where PEFT's file does not hold the adapter as it was trained
    calibration.safetensors     what the base's codec encoded by, where it encodes by calibration (calibrate.py)

A folder that we wrote loads in PEFT with equal logits, and one that PEFT wrote loads here. Which of three forms PEFT's file
takes follows from what the method's record says, and stands in finlora.json as `form`:

    peft    the method's own format in PEFT
    plain   no such format, or a base that was edited: plain LoRA over the original weights, of twice the rank where the
            base was edited (`over_original`); we reopen from finlora.safetensors, exactly as trained
    own     no LoRA form either: our own parameters under our own kind, which PEFT refuses and does not misread

An adapter belongs to the weights that it was trained over, and finlora.json holds their digest (`base_digest`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from . import __version__
from .bases import base_digest, digest_of, trained_whole, whole_tensors
from .calibrate import KEPT
from .checkpoint import atomic_folder, read_tensors
from .errors import FinloraError
from .forms import PATTERNS, PREFIX, common_fields, corner, form, kept, plain_fields
from .linear import EDIT, Codec, Linear, Method, Place, Store, over_original
from .model import Model
from .registry import names, pick
from .seam import check_over
from .wiring import Saved, find_linears, shape_of, train_also

__all__ = [
    "adapter_tensors", "attach_adapter", "base_digest", "common_fields", "digest_of", "method_of", "plain_fields", "put_whole", "read_config",
    "save_adapter", "train_adapter", "trained_over", "write_folder",
]  # fmt: skip

MAIN, OWN = "adapter_model.safetensors", "finlora.safetensors"
REFUSED = {  # fields of LoraConfig that change the map in a way that no method here has
    "layer_replication": "replicated layers",
    "alora_invocation_tokens": "activated LoRA",
    "trainable_token_indices": "trained token embeddings",
    "target_parameters": "adapters on bare parameters",
    "lora_bias": "a bias inside the adapter",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "monteclora_config": "MonteCLoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
}
EDITS_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # starts of PEFT that change the base, which the folder lacks


# -- writing ---------------------------------------------------------------------------------------------------------


def save_adapter(model: Model, folder: str | Path, name: str = "default", replace: bool = False) -> Path:
    """Write the adapter `name` of the model as a PEFT folder.

    Raises: FinloraError where the model has no such adapter, the folder exists, or the disk is full.
    """
    held = {key: linear for key, linear in model.linears.items() if name in linear.adapters}
    if not held:
        raise FinloraError(f"{model.name} has no adapter named `{name}`", "open the model with a method first")
    method, config = next(iter(held.values())).how[name]
    params = {key: {p: kept(v) for p, v in linear.adapters[name].items()} for key, linear in held.items()}
    configs = {key: linear.how[name][1] for key, linear in held.items()}
    taken, kind, tensors, own_tensors = form(model, method, configs, params)
    whole = trained_whole(model)
    tensors.update({f"{PREFIX}{key}.{leaf}": kept(v) for key, module in whole.items() for leaf, v in module.items()})
    store = next(iter(held.values())).store
    own = {
        "finlora": __version__,
        "method": method.name,
        "config": dataclasses.asdict(config),
        "configs": {key: dataclasses.asdict(c) for key, c in configs.items() if c != config},
        "form": taken,
        "also": sorted(whole),
        "codec": store.codec.name if store is not None else "none",
        "codec_config": dataclasses.asdict(store.cfg) if store is not None else {},
        "dtype": str(model.dtype).removeprefix("torch."),
        "base": model.name,
        "base_sha256": digest_of(model),
    }
    if any(f"{key}.A" in held or f"{key}.B" in held for key in model.structured):
        own["factors"] = True
    files = {MAIN: tensors, OWN: own_tensors, KEPT: model.calibration}
    return write_folder(folder, {**kind, **common_fields(model, set(held), sorted(whole), kind["peft_type"])}, files, own, replace)


def write_folder(
    folder: str | Path, fields: dict[str, Any], files: dict[str, dict[str, Tensor]], own: dict[str, Any] | None = None, replace: bool = False, card: str = ""
) -> Path:
    """An adapter folder of adapter_config.json (`fields`), files of tensors (empty ones are left out), finlora.json (`own`), README.md.

    Raises: FinloraError where the folder exists or the disk is full.
    """

    def write(temporary: Path) -> None:
        for file, tensors in files.items():
            if tensors or file == MAIN:
                save_file(tensors, temporary / file, metadata={"format": "pt"})
        for file, value in (("adapter_config.json", fields), ("finlora.json", own)):
            if value is not None:
                (temporary / file).write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        if card:
            (temporary / "README.md").write_text(card, encoding="utf-8")

    return atomic_folder(Path(folder), write, replace)


# -- reading ---------------------------------------------------------------------------------------------------------


def attach_adapter(model: Model, folder: str | Path, name: str = "default") -> None:
    """Attach an adapter folder, ours or PEFT's, to a rewired model and make it the active one.

    An adapter that edited its base is attached in its plain form over the original weights, of twice the rank; over a lossy
    codec, whose error the edit moved, there is no exact one, and it must be opened with a base of its own.
    Raises: FinloraError for a folder that is no adapter, pickled weights, a kind that is not served, a tensor that does
    not fit.
    """
    folder = Path(folder)
    saved = adapter_tensors(model, folder)
    if read_config(folder)[0].get("modules_to_save"):
        raise FinloraError(f"adapter `{folder}` holds embeddings or a head of its own, which cannot stand beside another's", "open it with a base of its own: open_model(adapter=...)")
    for key, (method, config, params) in saved.items():
        linear = model.linears[key]
        if EDIT[0] in params:
            method, config, params = _plain(folder, linear, method, config, params)
        if linear.store is not None:
            check_over(method, linear.store.codec)
        saved[key] = method, config, params
    for key, (method, config, params) in saved.items():
        model.linears[key].attach(name, method, config, {k: v.to(model.device) for k, v in params.items()})
    model.route.active = name
    for key, p in model.named_parameters():
        if f".adapters.{name}." in key:
            p.requires_grad_(False)


def _plain(folder: Path, linear: Linear, method: Method, config: Any, params: dict[str, Tensor]) -> tuple[Method, Any, dict[str, Tensor]]:
    """An adapter that edited its base as plain LoRA over the original weights."""
    plain = over_original(method, config, params)
    if linear.store is None or not linear.store.codec.lossless or plain is None:
        raise FinloraError(f"adapter `{folder}` edited the base that it was trained over, and beside others that is exact over a lossless base only", "open it with a base of its own: open_model(adapter=...)")
    fields, tensors = plain_fields({"": plain})
    lora, settings = _reader(fields)
    suffixes = {v: k for k, v in lora.peft.names.items()}
    return lora, settings, {suffixes[key.removeprefix(f"{PREFIX}.")]: v for key, v in tensors.items()}


def adapter_tensors(model: Model, folder: str | Path) -> Saved:
    """{linear: (method, its settings, its parameters in fp32)} of an adapter folder, checked against the model.

    Raises: FinloraError as attach_adapter, and for an adapter that was trained over another base.
    """
    folder = Path(folder)
    fields, own = read_config(folder)
    if not (folder / MAIN).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        what = "holds a pickled adapter (adapter_model.bin), which can run code when read" if pickled else f"has no {MAIN}"
        raise FinloraError(f"adapter `{folder}` {what}", "save it again with safe_serialization=True")
    method, config = _method(folder, fields, own)
    _check_base(model, folder, own)
    main = read_tensors(folder / MAIN)
    whole_tensors(model, folder, fields, main)
    found, shared = _found(folder, main, fields, own, method)
    if not found:
        raise FinloraError(f"adapter `{folder}` holds no tensor", "save it again")
    shapes = {key: linear.shape for key, linear in model.linears.items()} or {key: shape_of(m) for key, m in find_linears(model.body).items()}
    for key in found:
        if key not in shapes:
            raise FinloraError(f"adapter `{folder}` adapts `{key}`, which {model.name} does not have", "open it with the model it was trained on")
    largest = (max(shapes[key][0] for key in found), max(shapes[key][1] for key in found))
    out: Saved = {}
    for key, params in found.items():
        with _reading(folder / "finlora.json"):
            own_config = method.config(**own["configs"][key]) if key in own.get("configs", {}) else config
        if not own or "form" not in own:  # version 0.1.0 left exceptions to PEFT's patterns
            own_config = _at(config, key, fields, folder)
        fresh = _complete(params, shared, own, method, own_config, shapes[key], largest)
        _check_tensors(folder, key, params, shapes[key], method, own_config, fresh)
        # a copy: tensors of a mapped file lie as the file has them, and products of such rows round differently; what all
        # linears share stays one tensor
        common = method.peft.shared if method.peft else {}
        out[key] = method, own_config, {k: v if k in shared or k in common else v.to(torch.float32, copy=True) for k, v in params.items()}
    return out


def read_config(folder: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(adapter_config.json, finlora.json or {}) of an adapter folder.  Raises: FinloraError where it is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FinloraError(f"there is no adapter folder `{folder}`", "name the folder that holds adapter_config.json")
    out = []
    for file in ("adapter_config.json", "finlora.json"):
        path = folder / file
        if not path.is_file():
            if file == "adapter_config.json":
                raise FinloraError(f"`{folder}` is not an adapter folder, it has no adapter_config.json", "name the `adapter` folder of a run")
            out.append({})
            continue
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise FinloraError(f"`{path}` is not JSON: {error}", "save the adapter again") from error
        if not isinstance(value, dict):
            raise FinloraError(f"`{path}` is not a JSON object", "save the adapter again")
        out.append(value)
    return out[0], out[1]


def trained_over(folder: str | Path) -> dict[str, Any]:
    """The codec section of a spec that opens the base as this adapter knew it: {"kind", its options}.

    An adapter that does not say (PEFT's own) is taken over `none`.  Raises: FinloraError where the folder is no adapter.
    """
    _, own = read_config(folder)
    with _reading(Path(folder) / "finlora.json"):
        kind, options = own.get("codec", "none"), own.get("codec_config", {})
        pick("codec", kind).config(**options)
    return {"kind": kind, **options}


def over_factors(folder: str | Path) -> bool:
    """Whether the adapter stands over the two factors of a low-rank base, each by itself.  Raises: FinloraError for no adapter."""
    return bool(read_config(folder)[1].get("factors"))


def method_of(folder: str | Path) -> tuple[Method, Any]:
    """(method, its settings) of an adapter folder, ours or PEFT's.  Raises: FinloraError where it is none that is served."""
    return _method(Path(folder), *read_config(folder))


def _method(folder: Path, fields: dict[str, Any], own: dict[str, Any]) -> tuple[Method, Any]:
    if own:
        with _reading(folder / "finlora.json"):
            method = pick("method", own["method"])
            config = method.config(**own["config"])
            _agree(method, [config, *(method.config(**c) for c in own.get("configs", {}).values())], fields, own.get("form"))
            return method, config
    for key, what in REFUSED.items():
        if fields.get(key):
            raise FinloraError(f"adapter `{folder}` uses `{key}` ({what}), which is not served here", "merge it with PEFT and open the merged model")
    if fields.get("bias", "none") != "none":
        raise FinloraError(f"adapter `{folder}` trains biases (bias = `{fields['bias']}`), which is not served here", "merge it with PEFT and open the merged model")
    start = str(fields.get("init_lora_weights", "")).lower()
    if start.startswith(EDITS_BASE):
        raise FinloraError(f"adapter `{folder}` began as `{start}`, which edits the base weights that it belongs to", "save it with path_initial_model_for_weight_conversion, or merge it with PEFT")
    with _reading(folder / "adapter_config.json"):
        if (found := _reader(fields)) is not None:
            return found
    kind = fields.get("peft_type")
    raise FinloraError(f"adapter `{folder}` is of PEFT's kind `{kind}`, in a form that no method here has", "merge it with PEFT and open the merged model")


def _agree(method: Method, configs: list[Any], fields: dict[str, Any], taken: str | None) -> None:
    """Raises: FinloraError where adapter_config.json says another rank or strength than finlora.json."""
    said = [method.peft.config(config) for config in configs] if method.peft and taken == "peft" else []
    for key in ("r", "lora_alpha"):
        known = [one[key] for one in said if key in one]
        if known and fields.get(key) not in known:
            raise FinloraError(f"adapter_config.json says {key} = {fields.get(key)!r} and this file {known[0]!r}", "one of the two was edited: put it back")


def _reader(fields: dict[str, Any]) -> tuple[Method, Any] | None:
    """(method, settings) of the member that these fields of PEFT describe."""
    for name in names("method"):
        method = pick("method", name)
        config = method.peft.read(fields) if method.peft else None
        if config is not None:
            return method, config
    return None


def _check_base(model: Model, folder: Path, own: dict[str, Any]) -> None:
    known = own.get("base_sha256")
    here = digest_of(model) if known else ""
    if here and here != known:
        raise FinloraError(
            f"adapter `{folder}` was trained over another base (weights {str(known)[:12]}, those of {model.name} are {here[:12]})",
            f"open it with `{own.get('base', 'the model it was trained on')}`",
        )


def _found(folder: Path, main: dict[str, Tensor], fields: dict[str, Any], own: dict[str, Any], method: Method) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """({linear: {parameter: tensor}}, {shared parameter: tensor}) of a folder's files."""
    found: dict[str, dict[str, Tensor]] = {}
    shared: dict[str, Tensor] = {}
    taken = own.get("form")
    if taken == "plain" and not (folder / OWN).is_file():
        raise FinloraError(f"adapter `{folder}` has no {OWN}, which holds it as it was trained", "copy the whole folder; without finlora.json it opens as the plain LoRA that PEFT reads")
    if taken != "plain":
        suffixes = {v: k for k, v in method.peft.names.items()} if method.peft else {}
        corners = {v: k for k, v in method.peft.shared.items()} if method.peft else {}
        leaves = {key.rpartition(".")[2] for key in corners}
        whole = tuple(fields.get("modules_to_save") or ())
        masks = {rule.rpartition(".")[0]: mask for rule, mask in (fields.get("rank_pattern") or {}).items() if isinstance(mask, list)}
        for key, value in main.items():
            if key in corners:
                shared[corners[key]] = value.to(torch.float32, copy=True)
            elif key.rpartition(".")[2] in leaves:  # PEFT repeats some shared tensors beside each linear
                continue
            elif not key.removeprefix(PREFIX).rpartition(".")[0].endswith(whole or ("\0",)):
                linear, param = _place(key, suffixes, folder)
                found.setdefault(linear, {})[param] = _unmasked(value, masks.get(linear), key)
        lost = sorted(method.peft.shared[p] for p in method.peft.shared.keys() - shared.keys()) if method.peft else []
        if lost and (own or fields.get("save_projection", True)):  # else PEFT draws them from its key, and so do we
            raise FinloraError(f"adapter `{folder}` holds no `{lost[0]}`", "save it again with save_projection=True")
    if own and (folder / OWN).is_file():
        for key, value in read_tensors(folder / OWN).items():
            linear, _, param = key.rpartition(".")
            found.setdefault(linear, {})[param] = value
    return found, shared


def _place(key: str, suffixes: dict[str, str], folder: Path) -> tuple[str, str]:
    """(linear, parameter) of a tensor's key."""
    bare = key.removeprefix(PREFIX)
    for suffix, param in suffixes.items():
        if bare.endswith("." + suffix):
            return bare[: -len(suffix) - 1], param
    linear, mark, param = bare.rpartition(".finlora_")
    if not mark:
        raise FinloraError(f"adapter `{folder}` holds `{key}`, which this method does not have", "merge it with PEFT and open the merged model")
    return linear, param


def _unmasked(value: Tensor, mask: list[bool] | None, key: str) -> Tensor:
    """A factor that PEFT saved with its pruned ranks cut out (AdaLoRA's rank_pattern), with zeros in their places."""
    if mask is None:
        return value
    dim = 1 if key.endswith("lora_B") else 0
    out = value.new_zeros([len(mask) if k == dim else n for k, n in enumerate(value.shape)])
    return out.index_copy(dim, torch.tensor(mask).nonzero().view(-1), value)


def _complete(params: dict[str, Tensor], shared: dict[str, Tensor], own: dict, method: Method, config: Any, shape: tuple[int, int], largest: tuple[int, int]) -> dict[str, Tensor]:
    """Add what PEFT's file does not hold for each linear: its corner of shared tensors, and frozen parameters as they start.

    Returns the parameters as they would start, where that was needed.
    """
    lost = [] if own else [key for key in method.frozen if key not in params and key not in shared]
    if not (shared or lost):
        return {}
    place = Place(lambda W: W, generator=torch.Generator().manual_seed(0), largest=largest)
    fresh = method.init(config, torch.zeros(1).expand(shape), place)
    for key in (*shared, *lost):
        if key in fresh:
            params[key] = corner(shared[key], fresh[key].shape) if key in shared else fresh[key]
    return fresh


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Name the file in whatever is wrong with its values."""
    try:
        yield
    except FinloraError as error:
        raise FinloraError(f"`{path}`: {error.message}", error.hint) from error
    except KeyError as error:
        raise FinloraError(f"`{path}` has no `{error.args[0]}`", "save the adapter again") from error
    except (TypeError, ValueError) as error:
        raise FinloraError(f"`{path}` holds a value of the wrong kind: {error}", "save the adapter again") from error


def _at(config: Any, key: str, fields: dict[str, Any], folder: Path) -> Any:
    """The settings of one linear, after PEFT's patterns: the first that matches the end of its name counts."""
    changes = {}
    # only for the kinds that PATTERNS names: elsewhere the field means something else, or PEFT does not follow it
    known = PATTERNS.get(str(fields.get("peft_type")), {}).values()
    for field, pattern in (("rank", "rank_pattern"), ("alpha", "alpha_pattern")):
        for rule, value in (fields.get(pattern) or {}).items() if pattern in known else ():
            try:
                found = re.fullmatch(rf"(?:.*\.)?(?:{rule})", key)
            except re.error as error:
                raise FinloraError(f"`{folder / 'adapter_config.json'}`: {pattern} `{rule}` is not a regular expression ({error})", "fix the pattern") from error
            if found:
                with _reading(folder / "adapter_config.json"):
                    changes[field] = type(getattr(config, field))(value)
                break
    return dataclasses.replace(config, **changes) if changes else config


def _check_tensors(folder: Path, key: str, params: dict[str, Tensor], shape: tuple[int, int], method: Method, config: Any, fresh: dict[str, Tensor]) -> None:
    """A linear's tensors are all there, of the right shape, and numbers."""
    O, I = shape
    expected = {**(method.peft.names if method.peft else {}), **({p: p for p in EDIT} if params.keys() & set(EDIT) else {})}
    if lost := sorted(name for p, name in expected.items() if p not in params):
        raise FinloraError(f"adapter `{folder}` holds no `{lost[0]}` for {key}", "the file was cut short or edited: save it again")
    wanted = {"A": (config.rank, I), "B": (O, config.rank), "m": (O,)} if hasattr(config, "rank") else {}
    wanted.update({name: tuple(value.shape) for name, value in fresh.items()})
    if EDIT[0] in params:
        rank = params[EDIT[0]].shape[0]
        wanted.update({EDIT[0]: (rank, I), EDIT[1]: (O, rank)})
    for param, value in params.items():
        if param in wanted and tuple(value.shape) != wanted[param]:
            raise FinloraError(
                f"adapter `{folder}`: {key} {param} has shape {tuple(value.shape)}, this model needs {wanted[param]}",
                "open it with the model it was trained on",
            )
        if not bool(torch.isfinite(value).all()):
            raise FinloraError(f"adapter `{folder}`: {key} {param} has values that are not finite", "it was saved after training diverged; use an earlier one")
    if not method.trains_base and (wrong := _misfit(method, config, params, shape)):
        raise FinloraError(f"adapter `{folder}`: the parameters of {key} do not fit `{method.name}` on a weight of {O} x {I} ({wrong})", "the file was cut short or edited: save it again")


def _misfit(method: Method, config: Any, params: dict[str, Tensor], shape: tuple[int, int]) -> str:
    """What is wrong with the shapes of parameters, told by the method's own arithmetic on tensors without memory."""

    def decode(cfg: Any, tensors: dict[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    base = Store.of(Codec("shape", type(None), decode, decode, decode, lossless=True), None, {}, shape, torch.float32)
    held = {key: torch.empty(value.shape, device="meta") for key, value in params.items()}
    try:
        method.apply(config, held, torch.empty(1, shape[1], device="meta"), torch.empty(1, shape[0], device="meta"), base)
    except KeyError as error:
        return f"there is no {error.args[0]}"
    except RuntimeError as error:  # of a method that looks into its numbers nothing can be said
        return "" if "meta" in str(error) else str(error).strip().splitlines()[0]
    return ""


def put_whole(model: Model, folder: str | Path) -> None:
    """Put the embeddings or head that an adapter folder holds whole into the model's body, as trained parts (`train_also`).

    Raises: FinloraError for another module, one that the file lacks, or one of another shape.
    """
    folder = Path(folder)
    fields, _ = read_config(folder)
    if not fields.get("modules_to_save"):
        return
    whole = whole_tensors(model, folder, fields, read_tensors(folder / MAIN))
    ends = {"embeddings": model.body.get_input_embeddings(), "head": model.body.get_output_embeddings()}
    train_also(model, [part for part, module in ends.items() if any(model.body.get_submodule(key) is module for key in whole)])
    with torch.no_grad():
        for key, held in whole.items():
            for leaf, value in held.items():
                getattr(model.body.get_submodule(key), leaf).copy_(value)


def train_adapter(model: Model, name: str = "default") -> None:
    """Make an attached adapter trainable again, but for what its method holds frozen; embeddings or head with it."""
    for full in set(model.also.values()):
        model.body.get_parameter(full).requires_grad_(True)
    for linear in model.linears.values():
        if name in linear.adapters:
            for key, p in linear.adapters[name].items():
                p.requires_grad_(key not in linear.how[name][0].frozen)
