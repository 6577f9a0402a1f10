"""Models: any causal language model of transformers, with its linears on our seam.  The only importer of transformers.

What a model computes is in forward.py.  Packed rows go through transformers' attention interface under
the name "finlora"; nothing of transformers is patched.

Which linears are adapted, and how, is wiring.py's business.
"""

from __future__ import annotations

import logging
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from . import attention as packed
from . import sound, structure_folder
from .errors import FinloraError, unknown
from .forward import Unserved, autocast, compile_body, computed, head, hidden, logits, packed_hidden, recompute
from .linear import Linear, Route, Stats
from .registry import pick
from .sizes import sized
from .streaming import Empty, Source, is_quantised, place, require_keys
from .weights import open_checkpoint
from .wiring import bits_per_weight, find_linears, matches, rewire

__all__ = [
    "BASE", "Model", "Unserved", "autocast", "bits_per_weight", "compile_body", "computed", "device_of", "dtype_of", "find_linears",
    "head", "hidden", "load_encoder", "load_tokenizer", "locate", "logits", "matches", "new_model", "open_model", "outline", "packed_hidden", "recompute",
    "rewire", "save", "wrap_tokenizer",
]  # fmt: skip

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
BASE = "finlora/base"
CACHE = {"auto": None, "on": True, "off": False}  # `model.cache` of a spec as open_model takes it
FAMILIES = {"llama": "LlamaConfig", "gpt2": "GPT2Config", "qwen2": "Qwen2Config", "qwen3": "Qwen3Config", "mistral": "MistralConfig"}


class Model(nn.Module):
    """A causal language model whose linears are on the seam.

    body: the transformers model. route: which adapter answers. linears: the rewired ones by name.
    """

    def __init__(self, body: nn.Module, tokenizer: Any, name: str, dtype: torch.dtype):
        super().__init__()
        self.body, self.tokenizer, self.name, self.dtype = body, tokenizer, name, dtype
        self.route = Route()
        self.linears: dict[str, Linear] = {}
        self.structured: dict[str, tuple[Any, Any]] = {}  # linear -> its structure and settings
        self.turned: set[str] = set()  # linears that the family keeps as (in, out)
        self.notes: list[str] = []  # what opening it has to say
        self.also: dict[str, str] = {}  # module of the body -> its parameter that trains whole beside the adapter
        self.calibration: dict[str, torch.Tensor] = {}  # what the codec encoded by, to be kept beside an adapter
        self.__dict__["compiled"] = None

    @property
    def config(self) -> Any:
        return self.body.config

    @property
    def device(self) -> torch.device:
        return next(self.body.parameters()).device

    @property
    def max_tokens(self) -> int:
        """The longest row of tokens that the model's positions allow."""
        return int(getattr(self.config, "max_position_embeddings", None) or 1 << 30)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


def device_of(name: str = "auto") -> torch.device:
    """The torch device for `auto`, `cpu`, `cuda` or `cuda:1`.  Raises FinloraError where there is none such."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name != "cpu" and not re.fullmatch(r"cuda(:\d+)?", name):
        raise unknown("device", name, ["auto", "cpu", "cuda"], "run.device")
    if name.startswith("cuda"):
        n = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int((name.split(":") + ["0"])[1]) >= n:
            raise FinloraError(f"run.device is `{name}` but this machine has {n} CUDA devices", "write device = \"auto\"")
    return torch.device(name)


def dtype_of(name: str, device: torch.device) -> torch.dtype:
    """The compute dtype.  `auto`: bfloat16 where the device multiplies it natively, else float32 (on a CPU without it
    bfloat16 is tens of times slower)."""
    if name == "auto":
        native = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return torch.bfloat16 if native else torch.float32
    table = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
    if name not in table:
        raise unknown("dtype", name, ["auto", *table], "run.dtype")
    return table[name]


def open_model(
    name: str = BASE,
    *,
    codec: str | None = None,
    codec_config: Any = None,
    method: str | None = None,
    method_config: Any = None,
    targets: str | Sequence[str] = "all-linear",
    patterns: Mapping[str, Mapping[str, Any]] | None = None,
    also: Sequence[str] = (),
    stats: Mapping[str, Stats] | None = None,
    dtype: str = "auto",
    device: str = "auto",
    seed: int = 0,
    online: bool = False,
    adapter: str | Path | None = None,
    cache: bool | str | Path | None = None,
    factors: bool = False,
) -> Model:
    """Open a pretrained model, its linears kept by `codec` and, with `method`, adapted.

    name: `finlora/base` (embedded), a local Hugging Face folder, or a hub id (only with `online=True`).
    codec: None is `none`, or with `adapter` the codec that the adapter was trained over.
    targets, patterns, also, stats: as `rewire` takes them.
    adapter: a folder that finlora or PEFT saved; it brings its own method.
    cache: whether the encoded base is kept on disk and mapped from there the next time: None where that is worth it (a
    checkpoint of 64 MB or more), True always, False never, or the folder to keep it in (see weights.py).
    factors: adapt the two factors of low-rank linears, each by itself, and not their product.
    The weights of a local folder are read, encoded and let go one at a time; full precision is never in memory at once.
    Raises: FinloraError for a folder that is no model, pickled weights, weights that are not finite, another model's tokenizer,
    a model to be trained that is not causal, a hub id while offline, a device that is not here.
    """
    where, dev = locate(name, online), device_of(device)
    kind = dtype_of(dtype, dev)
    if adapter is not None:
        from .adapters import adapter_tensors, over_factors, put_whole, trained_over

        factors = factors or over_factors(adapter)
    body, tokenizer, source = _load(where, kind, dev, online, cache, factors)
    if factors and (source is None or not source.chained):
        raise FinloraError(f"method.factors: `{name}` has no linears of two factors", "leave it out: the method then adapts each linear as it is")
    model = Model(body, tokenizer, name, kind)
    if source is not None and source.chained:
        model.structured.update(source.chained)
        model.turned |= source.turned
    if adapter is not None:
        if codec is None:
            options = trained_over(adapter)
            codec = options.pop("kind")
            codec_config = pick("codec", codec).config(**options)
        saved = adapter_tensors(model, adapter)
        stats = _calibration(adapter, codec, codec_config) if stats is None else stats
        rewire(model, codec=codec, codec_config=codec_config, seed=seed, stats=stats, saved=saved, source=source)
        put_whole(model, adapter)
        model.requires_grad_(False)
    elif method is not None or codec is not None or (source is not None and source.quantised):
        rewire(
            model, codec=codec or "none", codec_config=codec_config, method=method, method_config=method_config, targets=targets,
            patterns=patterns, also=also, seed=seed, stats=stats, source=source,
        )  # fmt: skip
    else:
        if source is not None:
            source.fill(model.body)
        model.requires_grad_(False)
    if source is not None:
        source.close()
        model.notes += source.notes
    if source is None or not source.known:
        sound.finite(where, model.body)
    if method is not None:  # to be trained
        sound.causal(model.eval())
    if stats is not None and codec is not None:
        from .calibrate import condense

        record = pick("codec", codec)
        model.calibration = condense(stats, record, codec_config or record.config())
    return model.eval()


def _calibration(adapter: str | Path, codec: str, config: Any) -> Mapping[str, Stats] | None:
    """What an adapter's folder keeps for a codec that encodes by calibration."""
    from .calibrate import calibration_of

    record = pick("codec", codec)
    return calibration_of(adapter, record, config or record.config())


def new_model(config: dict[str, Any], tokenizer: Any, seed: int = 0, *, dtype: str = "auto", device: str = "auto") -> Model:
    """A model from scratch.

    config: `family` (llama, gpt2, qwen2, qwen3, mistral), a `size` by name (sizes.py) or that family's own transformers settings.
    """
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    dev = device_of(device)
    kind = dtype_of(dtype, dev)
    torch.manual_seed(seed)
    body, family = _fresh(config, vocab_size=len(tokenizer), **ids)
    # Masters stay float32: the compute dtype of a from-scratch run is the business of the training step.
    model = Model(body.to(dev), tokenizer, family, kind)
    return model.eval()


def outline(config: dict[str, Any], vocab_size: int) -> nn.Module:
    """The body of `new_model`, without memory.  Raises: FinloraError for an architecture that is none."""
    with torch.device("meta"):
        return _fresh(config, vocab_size=vocab_size, pad_token_id=None)[0]


def _fresh(config: dict[str, Any], **ids: Any) -> tuple[nn.Module, str]:
    _quiet()
    import transformers

    settings = sized(config)
    family = settings.pop("family", "llama")
    if family not in FAMILIES:
        raise unknown("model family", family, FAMILIES, "model.config.family")
    if family == "gpt2":
        # the same function as its `gelu_new`, in one kernel: 43% less is kept for the backward pass
        settings.setdefault("activation_function", "gelu_pytorch_tanh")
        for drop in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):  # 0.1 is of a time when text was read many times over
            settings.setdefault(drop, 0.0)
    _register()
    kind = getattr(transformers, FAMILIES[family])
    _known(settings, {*kind().to_dict(), *kind.attribute_map, "rope_theta", "rope_scaling"})
    if "vocab_size" in settings:
        raise FinloraError("model.config.vocab_size has no effect: a model has as many embeddings as its tokenizer has tokens", "set model.vocab_size, or name a tokenizer of that size")
    try:
        made = kind(**{**settings, **ids})
        heads, shared = made.num_attention_heads, getattr(made, "num_key_value_heads", None) or 1
        if heads % shared:
            raise ValueError(f"num_attention_heads = {heads} is no multiple of num_key_value_heads = {shared}")
        return transformers.AutoModelForCausalLM.from_config(made, attn_implementation="finlora"), family
    except Exception as error:  # its refusals are of many kinds, some of them the hub's own
        why = f"there is no {error}" if isinstance(error, KeyError) else str(error).splitlines()[-1].strip()
        raise FinloraError(f"model.config is no {family}: {why}", "compare it with the family's settings in transformers") from error


def _known(settings: dict[str, Any], known: set[str]) -> None:
    """Raises: FinloraError for a key that transformers would take for an attribute of ours, and for a number that no architecture has."""
    for key, value in settings.items():
        if key not in known:
            raise unknown("key", f"model.config.{key}", [f"model.config.{name}" for name in known])
        if isinstance(value, float) and not math.isfinite(value):
            raise FinloraError(f"model.config.{key} = {value} is not a number to build with", "give a finite one")
        if type(value) is int and value < 1 and not key.endswith("_id"):
            raise FinloraError(f"model.config.{key} = {value} is out of range", "it must be at least 1")


def locate(name: str, online: bool = False) -> str:
    """The folder (or hub id) behind a model's name, checked: no pickle, no network unless asked."""
    if name == BASE:
        folder = Path(__file__).parent / "embedded" / "base"
        if not (folder / "config.json").is_file():
            raise FinloraError("this installation of finlora lacks its embedded base model", "reinstall the package, or name another model")
        return str(folder)
    folder = Path(name).expanduser()
    if not folder.exists():
        looks_like_path = name.startswith((".", "/", "~")) or name.count("/") != 1
        if looks_like_path:
            raise FinloraError(f"model.name: there is no folder `{name}`", "name a Hugging Face folder, a hub id or finlora/base")
        if not online:
            raise FinloraError(f"model.name: `{name}` is no local folder, and finlora is offline", "to fetch it from the hub write model.online = true")
        return name
    if not (folder / "config.json").is_file():
        hint = f"the run's model lies in {folder / 'model'}: name that" if (folder / "model" / "config.json").is_file() else "name the folder that save_pretrained wrote"
        raise FinloraError(f"model.name: `{name}` is not a model folder, it has no config.json", hint)
    if not list(folder.glob("*.safetensors")):
        pickles = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]
        if pickles:
            raise FinloraError(f"model.name: `{name}` holds pickled weights ({pickles[0]}), which can run code when read", "convert them to safetensors first")
        raise FinloraError(f"model.name: `{name}` holds no weights (*.safetensors)", "name a folder with model.safetensors")
    return str(folder)


def _quiet() -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)


def _load(where: str, dtype: torch.dtype, device: torch.device, online: bool, cache: Any, factors: bool = False) -> tuple[nn.Module, Any, Source | None]:
    """(body, tokenizer, where its linears' weights are or None where the body holds them)."""
    _quiet()
    import transformers

    _register()
    options = {"local_files_only": not online}
    try:
        body, source = _stream(where, dtype, device, cache, factors) if Path(where).is_dir() else (None, None)
        if body is None:
            body = _whole(where, dtype, options).to(device)
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, **options)
        _of_its_own(body)
        sound.tokenizer(where, tokenizer, body)
    except (FinloraError, AssertionError, MemoryError):
        raise
    except Exception as error:  # transformers raises any kind for settings of a wrong one
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FinloraError(f"model.name: cannot open `{where}`: {first}", "check that the folder is a complete causal language model with its tokenizer") from error
    return body, tokenizer, source


def _attending(make: Callable[..., Any]) -> Any:
    """make(attn_implementation=...) with ours, or the family's own where it is older than the attention interface."""
    try:
        return make(attn_implementation="finlora")
    except KeyError as error:
        if error.args != ("finlora",):
            raise
        return make(attn_implementation="eager")  # no packed rows


def _of_its_own(body: nn.Module) -> None:
    """Give a family whose layers never ask the attention interface (Bloom, XGLM, CodeGen) the mask that they add themselves.

    transformers would leave the mask out for ours, which needs none, and those layers would then see what comes later.
    """
    if not any(hasattr(sys.modules.get(type(module).__module__), "ALL_ATTENTION_FUNCTIONS") for module in body.modules()):
        for config in {id(c): c for c in (body.config, body.config.get_text_config())}.values():
            config._attn_implementation = "eager"


def _whole(where: str, dtype: torch.dtype, options: dict[str, Any]) -> nn.Module:
    """The body as transformers loads it, all weights in memory at once."""
    import transformers

    make = transformers.AutoModelForCausalLM.from_pretrained
    body, told = _attending(partial(make, where, dtype=dtype, use_safetensors=True, output_loading_info=True, **options))
    require_keys(where, body, told["missing_keys"], told["unexpected_keys"])
    return body


def _stream(where: str, dtype: torch.dtype, device: torch.device, cache: Any, factors: bool) -> tuple[nn.Module | None, Source | None]:
    """The body with all its tensors but the weights of its linears, which are to be taken from the source one at a time.

    (None, None) where the checkpoint is laid out in a way that only transformers itself knows to read.
    """
    import transformers
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    told = structure_folder.told_of(where)
    checkpoint = open_checkpoint(where, "structured" if told else "model")
    if told and checkpoint is None:
        raise FinloraError(f"model.name: `{where}` lacks its weights, structured.safetensors", "save or copy the model again")
    if checkpoint is None or (Path(where) / "adapter_config.json").is_file():
        return None, None
    config = transformers.AutoConfig.from_pretrained(where, local_files_only=True)
    quantised = is_quantised(where, config)
    with Empty():
        body = _attending(partial(transformers.AutoModelForCausalLM.from_config, config, dtype=dtype))
        for module in body.modules():  # from_pretrained fills tables anew outside the compute dtype, so in float32
            vars(module).pop("_is_hf_initialized", None)
        body.initialize_weights()
    if (Path(where) / "generation_config.json").is_file():
        body.generation_config = transformers.GenerationConfig.from_pretrained(where, local_files_only=True)
    if told:
        return body.eval(), structure_folder.opened(body, checkpoint, told, dtype, device, factors)
    changes = get_model_conversion_mapping(body, add_legacy=False)

    def rename(key: str) -> str:
        for change in changes:
            key = change.rename_source_key(key)[0]
        return key

    # tensors that are renamed on their way in are served, those that are joined or turned are not
    plain = all(type(change) is WeightRenaming for change in changes)
    source = place(body, checkpoint, dtype, device, quantised, cache, rename) if plain else None
    return (None, None) if source is None else (body.eval(), source)


def load_tokenizer(where: str) -> Any:
    """The tokenizer of a local folder, or of finlora/base.  Raises: FinloraError where it cannot be read."""
    _quiet()
    import transformers

    folder = locate(BASE) if where == BASE else str(Path(where).expanduser())
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a damaged file is told in as many kinds as there are files
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FinloraError(f"cannot read the tokenizer in `{where}`: {first}", "copy its files again") from error


def load_encoder(where: str | Path) -> tuple[Any, nn.Module]:
    """(tokenizer, module) of an encoder (BERT and its kin) in a local folder, in evaluation mode; weights from safetensors only.

    Raises: FinloraError for what is no such folder.
    """
    _quiet()
    import transformers

    if not Path(where).is_dir():
        raise FinloraError(f"no encoder in `{where}`", "give a folder with config.json, tokenizer files and model.safetensors")
    try:
        options = {"local_files_only": True, "trust_remote_code": False}
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(where), **options)
        return tokenizer, transformers.AutoModel.from_pretrained(str(where), use_safetensors=True, **options).eval()
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise FinloraError(f"cannot open the encoder in `{where}`: {str(error).splitlines()[0]}", "give a folder with config.json, tokenizer files and model.safetensors") from None


def wrap_tokenizer(raw: Any, max_tokens: int) -> Any:
    """A trained `tokenizers.Tokenizer` as a transformers tokenizer with the special tokens <s>, </s>, <pad>."""
    _quiet()
    import transformers

    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=max_tokens, clean_up_tokenization_spaces=False
    )


def _register() -> None:
    """Make `attn_implementation="finlora"` known to transformers, through its public interface."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    known = {"scaling", "dropout", "sliding_window", "is_causal", "position_ids", "use_cache", "cache_position"}

    def attend(module, query, key, value, attention_mask, finlora_layout=None, **options):
        if finlora_layout is None:
            if lost := [k for k in ("softcap", "s_aux") if options.get(k) is not None]:  # torch's kernel would leave it out
                raise FinloraError(f"attention of {type(module).__name__} asks for `{lost[0]}`, which finlora does not serve", "choose a model of another family")
            return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        odd = [k for k, v in options.items() if v is not None and k not in known and not k.startswith("output_")]
        if odd:
            raise Unserved(f"{type(module).__name__} (`{odd[0]}`)")
        out = packed.packed_attention(query, key, value, finlora_layout, options.get("scaling"), options.get("dropout") or 0.0, options.get("sliding_window"))
        return out, None

    def mask(*given, **options):  # under torch.compile transformers always builds a (T, T) mask, which keeps flash attention away
        plain = options.get("attention_mask") is None and not options.get("use_vmap") and options["q_length"] == options["kv_length"]
        near = options.get("local_size") is None or options["kv_length"] <= options["local_size"]
        return None if plain and near and torch.compiler.is_compiling() else sdpa_mask(*given, **options)

    AttentionInterface.register("finlora", attend)
    AttentionMaskInterface.register("finlora", mask)


def save(model: Model, folder: str | Path, replace: bool = False, dense: bool = False) -> None:
    """Write the model as a plain Hugging Face folder, its linears dense again with the active adapter merged in.

    A model of structures is written as it is (see structure_folder.py), or with `dense` multiplied out too.
    Weights are kept in the compute dtype.  Raises: FinloraError where the folder exists or the disk is full.
    """
    from .checkpoint import atomic_folder

    if model.structured and not dense:
        return structure_folder.save(model, folder, replace)

    atomic_folder(Path(folder), lambda t: _write(model, t), replace)


def _write(model: Model, folder: Path) -> None:
    state = {k: v for k, v in model.body.state_dict().items() if not any(k.startswith(n + ".") for n in model.linears)}
    for name, linear in model.linears.items():
        W = linear.merged(model.route.active) if model.route.active in linear.adapters else linear.merged(None)
        state[f"{name}.weight"] = (W.T if name in model.turned else W).contiguous()
        if linear.bias is not None:
            state[f"{name}.bias"] = linear.bias.detach()
    state = {k: v() if callable(v) else v for k, v in structure_folder.as_dense(model, state, model.route.active).items()}
    kind = model.dtype
    cast: dict[int, torch.Tensor] = {}  # tied tensors stay tied, so that they are written once
    state = {k: cast.setdefault(v.data_ptr(), v.to(kind)) if v.is_floating_point() else v for k, v in state.items()}
    model.body.save_pretrained(folder, state_dict=state)
    structure_folder.write_settings(model, folder)
