"""What a compression is asked for: one frozen dataclass that checks itself."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any

from ..errors import FinloraError
from ..fields import broken, convert, setting

ALLOCATIONS = ("uniform", "spectrum", "loss", "search")


@dataclass(frozen=True)
class Compress:
    """What to compress, by how much, and how."""

    model: str = setting("finlora/base", "finlora/base, a local model folder, or a hub id (online only)", filled=True)
    out: str = setting("runs/compress", "folder that receives model/ and compress.json", filled=True)
    text: tuple[str, ...] = setting((), "text to calibrate on: files or folders, best of the kind that the model is for", filled=True)
    keep: float = setting(0.6, "share of the linears' parameters that stays", above=0.0, below=1.0)
    decomposition: str = setting("swift", "how a weight is cut in two", filled=True)
    options: dict[str, Any] = setting({}, "the decomposition's own settings")
    allocation: str = setting("uniform", "ranks: the same share everywhere, where errors fall most, by loss and importance, or the best of these on held-out text", choices=ALLOCATIONS)
    alpha: float = setting(0.5, "allocation by loss: weight of a block's importance against its linears' losses", low=0.0, high=1.0)
    alphas: tuple[float, ...] = setting(tuple(k / 10 for k in range(11)), "search: the values of alpha tried, beside uniform and spectrum", filled=True)
    floor: float = setting(0.5, "part of its uniform rank that a linear keeps in any allocation", low=0.0, high=1.0)
    targets: str | tuple[str, ...] = setting("all-linear", "the linears that are decomposed", filled=True)
    tokens: int = setting(65536, "tokens of text to calibrate on", low=2)
    row_tokens: int = setting(0, "tokens of a row; 0: as many as the model's positions allow, at most 2048", low=0)
    validation: float = setting(0.1, "share of the text held out to measure on, where there is no val_text", low=0.0, below=1.0)
    val_text: tuple[str, ...] = setting((), "text to measure on; empty: documents held out of `text`")
    val_tokens: int = setting(32768, "tokens of held-out text measured on", low=2)
    sources: tuple[str, ...] = setting((), "only rows whose `source` is one of these; empty: all")
    exclude_sources: tuple[str, ...] = setting((), "no rows whose `source` is one of these")
    sequential: bool = setting(False, "calibrate each block on what the compressed blocks before it give")
    workers: int = setting(1, "processes that decompose; the result is the same", low=1, high=1024, result=False)
    form: str = setting("factors", "what is written: the factors, or dense weights for other tools", choices=("factors", "dense"))
    codec: str = setting("none", "how the factors that are written are kept: a codec's name, such as int8 or nf4; none: as numbers of `store`", filled=True)
    store: str = setting("auto", "type of the numbers that are written; auto: that of the model's own file", choices=("auto", "float32", "bfloat16", "float16"))
    seed: int = setting(0, "which part of the text is read", low=0, high=2**63 - 1)
    device: str = setting("auto", "auto, cpu, cuda or cuda:1", result=False)
    dtype: str = setting("auto", "compute type", choices=("auto", "float32", "bfloat16", "float64"))
    online: bool = setting(False, "allow a hub id to be downloaded")
    overwrite: bool = setting(False, "replace what another run left in the folder", result=False)

    def __post_init__(self):
        kinds = typing.get_type_hints(type(self))
        for f in dataclasses.fields(self):
            value = convert(getattr(self, f.name), kinds[f.name], f.name, "")
            if trouble := broken(value, f.metadata["limits"]):
                raise FinloraError(f"{f.name} must be {trouble}, got {value!r}", f.metadata["help"])
            object.__setattr__(self, f.name, value)
        for alpha in self.alphas:
            if not 0 <= alpha <= 1:
                raise FinloraError(f"alphas must be from 0 to 1, got {alpha:g}", "0 looks at losses alone, 1 at importance alone")
        chosen = {f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}
        for name, allocations in (("alpha", ("loss",)), ("alphas", ("search",)), ("floor", ("spectrum", "loss", "search"))):
            if name in chosen and self.allocation not in allocations:
                raise FinloraError(f"{name} has no effect with allocation = {self.allocation}", f"set allocation = {' or '.join(allocations)}, or leave it out")
        if self.val_text and "validation" in chosen:
            raise FinloraError("validation has no effect beside val_text, which is measured on", "leave one of the two out")
        if "val_tokens" in chosen and not (self.validation or self.val_text):
            raise FinloraError("val_tokens has no effect where nothing is held out", "set validation above 0, or give val_text")
        if self.form == "dense" and "codec" in chosen:
            raise FinloraError(f"codec = {self.codec} has no effect with form = dense", "`finlora export bnb` keeps dense weights encoded")
