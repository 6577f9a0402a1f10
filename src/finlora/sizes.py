"""Architectures by name: model.config = {family = "gpt2", size = "1.5b"}, where any further key overrides one of these.

GPT-2's are those of its release (Radford et al. 2019; the smallest, 124M, is what FinGPT-HPC calls 127M); Llama's 60m to 7b are the
shapes that low-rank pretraining is compared at (GaLore, 2403.03507, appendix), 8b, 70b those of Llama 3.1, 13b of Llama 2.
"""

from __future__ import annotations

from typing import Any

from .errors import FinloraError, unknown


def _gpt2(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": 1024}


def _llama(width: int, inner: int, layers: int, heads: int, kv: int = 0, positions: int = 2048, theta: float = 1e4) -> dict[str, Any]:
    return {
        "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv or heads, "max_position_embeddings": positions,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta}, "rms_norm_eps": 1e-6 if theta == 1e4 else 1e-5,
    }  # fmt: skip


SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "gpt2": {"124m": _gpt2(768, 12, 12), "355m": _gpt2(1024, 24, 16), "774m": _gpt2(1280, 36, 20), "1.5b": _gpt2(1600, 48, 25)},
    "llama": {
        "60m": _llama(512, 1376, 8, 8, positions=1024),
        "130m": _llama(768, 2048, 12, 12, positions=1024),
        "350m": _llama(1024, 2736, 24, 16, positions=1024),
        "1b": _llama(2048, 5461, 24, 32, positions=1024),
        "7b": _llama(4096, 11008, 32, 32, positions=4096),
        "13b": _llama(5120, 13824, 40, 40, positions=4096),
        "8b": _llama(4096, 14336, 32, 32, 8, 8192, 5e5),
        "70b": _llama(8192, 28672, 80, 64, 8, 8192, 5e5),
    },
}


def sized(config: dict[str, Any]) -> dict[str, Any]:
    """The architecture with its `size` spelled out; without one, itself.

    Raises: FinloraError for a size that the family does not have.
    """
    rest = {key: value for key, value in config.items() if key != "size"}
    if "size" not in config:
        return rest
    known = SIZES.get(str(rest.get("family", "llama")), {})
    name = str(config["size"]).lower().removeprefix("127m") or "124m"  # the paper's name for the smallest
    if not known:
        raise FinloraError(f"model.config.size: family `{rest.get('family')}` has no sizes by name", "give its widths and layers instead")
    if name not in known:
        raise unknown("size", str(config["size"]), known, "model.config")
    return {**known[name], **rest}
