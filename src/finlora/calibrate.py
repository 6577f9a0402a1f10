"""Calibration: what each linear's inputs and gradients look like on a few examples, for the codecs and methods that ask.

    moment_II = E[x x^T] over the tokens read,   grad_OI = dL/dW = sum over tokens of g x^T,   L = nats / answer tokens

x is the linear's input and g the gradient at its output, so that no weight has to train and a quantised base gives its
gradient as well as a dense one.  Padding counts for nothing, and examples are packed without sharing what they have in
common: each token of each example counts once.  Linears are taken in groups under a budget of memory, with a pass over the
examples for each; how they are grouped changes no bit of the result.  Linears that read the same tensor (q, k and v; gate
and up) share one moment.

An adapter over a codec that encodes by calibration can be opened again only over the same weights, so what the codec used is
kept beside it (`condense`, `calibration_of`): the diagonal of a moment where the codec reads no more than that.

Shapes: B rows, T positions, N real positions, O out, I in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import read_tensors
from .data import Batch, collate, pack
from .errors import FinloraError, unknown
from .linear import Codec, Stats
from .loss import token_sums
from .model import Model, head, hidden
from .text import Tokens
from .wiring import find_linears, shape_of

NEEDS = ("moment_II", "grad_OI")
KEPT = "calibration.safetensors"  # beside an adapter: <linear>.<field of Stats>, a moment as its diagonal (I,) or whole


def collect(
    model: Model,
    tokens: Sequence[Tokens],
    needs: Collection[str],
    *,
    row_tokens: int = 2048,
    names: Collection[str] | None = None,
    budget_bytes: int = 8 << 30,
    micro_rows: int = 1,
) -> dict[str, Stats]:
    """What the model's linears saw of `tokens`, by the linear's name, on the CPU; through the active adapter if there is one.

    needs: fields of `Stats` ("moment_II", "grad_OI"); the answers' weights matter to the gradient alone. row_tokens: examples
    are packed into rows of that many positions (0: a row each). names: only these linears. budget_bytes: of accumulators and
    kept inputs on the model's device at a time; a linear that alone needs more has a pass to itself. micro_rows: rows in one
    forward pass.
    The model is left as it was: no parameter has a gradient that it did not have.
    Raises: FinloraError where there is nothing to read, no answer to take a gradient of, or a linear that no token reached.
    """
    wanted = [key for key in NEEDS if key in needs]
    if lost := sorted(set(needs) - set(NEEDS)):
        raise unknown("statistic", lost[0], NEEDS, "needs")
    modules: dict[str, nn.Module] = {**find_linears(model.body), **model.linears}
    if names is not None:
        for name in names:
            if name not in modules:
                raise unknown("linear", name, modules, "names")
        modules = {name: modules[name] for name in modules if name in set(names)}
    tokens = [t for t in tokens if len(t.ids) > 1]
    if not tokens:
        raise FinloraError("there is nothing to calibrate on", "give at least one example of two tokens or more")
    if not wanted:
        return {name: Stats() for name in modules}
    longest = max(len(t.ids) - 1 for t in tokens)
    rows = pack(tokens, max(row_tokens, longest)) if row_tokens else [[t] for t in tokens]
    batches = [collate(rows[k : k + micro_rows]) for k in range(0, len(rows), micro_rows)]
    weight = sum(float(b.weights.sum()) for b in batches)
    if "grad_OI" in wanted and weight <= 0:
        raise FinloraError(
            "no token of the calibration examples has a weight: there is no loss to take a gradient of",
            "check that the examples have answers",
        )
    widest = max(b.ids.numel() for b in batches)
    seen: dict[str, Stats] = {}
    with _untouched(model):
        for group in _groups(modules, wanted, budget_bytes, widest * model.dtype.itemsize):
            seen.update(_watch(model, {name: modules[name] for name in group}, batches, wanted, weight))
    return seen


def _shape(module: nn.Module) -> tuple[int, int]:
    return module.shape if hasattr(module, "shape") else shape_of(module)


def _groups(modules: dict[str, nn.Module], wanted: Sequence[str], budget: int, kept: int) -> Iterator[list[str]]:
    """Neighbouring linears whose accumulators and kept inputs (`kept` bytes per input feature) fit the budget together."""
    group: list[str] = []
    total = 0
    for name, module in modules.items():
        O, I = _shape(module)
        size = 4 * I * I * ("moment_II" in wanted) + (4 * O * I + kept * I) * ("grad_OI" in wanted)
        if group and total + size > budget:
            yield group
            group, total = [], 0
        group.append(name)
        total += size
    if group:
        yield group


@contextmanager
def _untouched(model: Model) -> Iterator[None]:
    """Evaluation mode, nothing that trains, the eager body; all put back afterwards."""
    modes = {module: module.training for module in model.modules()}
    trains = [p for p in model.parameters() if p.requires_grad]
    compiled, rows = model.compiled, model.route.rows
    for p in trains:
        p.requires_grad_(False)
    model.__dict__["compiled"] = None  # hooks would not fire in a compiled body
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for p in trains:
            p.requires_grad_(True)
        model.__dict__["compiled"], model.route.rows = compiled, rows


class _Watcher:
    """The accumulators of one group of linears."""

    def __init__(self, wanted: Sequence[str]):
        self.wanted = wanted
        self.real: Tensor | None = None  # (B*T): which positions of the running batch are no padding; None: all
        self.moments: dict[str, Tensor] = {}
        self.grads: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.source: dict[str, str] = {}  # linear -> the one that keeps its moment
        self.last: tuple[Tensor, str] | None = None

    def flat(self, x: Tensor) -> Tensor:
        """(N, width) of the real positions, in float32 or wider."""
        x = x.detach().reshape(-1, x.shape[-1])
        if self.real is not None:
            assert len(x) == len(self.real), "a linear saw other positions than the batch's"
            x = x[self.real]
        return x if x.dtype == torch.float64 else x.float()

    def hook(self, name: str):
        def forward(module: nn.Module, args: tuple, y: Tensor) -> None:
            x = args[0]
            here = x.numel() // x.shape[-1] if self.real is None else int(self.real.sum())
            self.counts[name] = self.counts.get(name, 0) + here
            if "moment_II" in self.wanted:
                source = self.last[1] if self.last is not None and self.last[0] is x else name
                known = self.source.setdefault(name, source)
                if known == name:
                    rows = self.flat(x)
                    self.moments[name] = _add(self.moments.get(name), rows.T @ rows)
                else:
                    assert known == source, f"{name} shared its input with {known} before"
                self.last = (x, source)
            if "grad_OI" in self.wanted:
                assert y.requires_grad, f"no gradient reaches {name}"

                def backward(g: Tensor) -> None:
                    self.grads[name] = _add(self.grads.get(name), self.flat(g).T @ self.flat(x))

                y.register_hook(backward)

        return forward


def _add(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total.add_(part)


def _watch(
    model: Model, modules: dict[str, nn.Module], batches: Sequence[Batch], wanted: Sequence[str], weight: float
) -> dict[str, Stats]:
    """One pass over the batches with hooks on these linears."""
    watcher, backward = _Watcher(wanted), "grad_OI" in wanted
    handles = [module.register_forward_hook(watcher.hook(name)) for name, module in modules.items()]
    if backward:  # nothing trains, so the graph has to begin at the embeddings
        embeddings = model.body.get_input_embeddings()
        handles.append(embeddings.register_forward_hook(lambda module, args, out: out.requires_grad_()))
    try:
        for batch in batches:
            real = (batch.doc >= 0).reshape(-1)
            watcher.real, watcher.last = None if bool(real.all()) else real.to(model.device), None
            batch = batch.to(model.device)
            with torch.set_grad_enabled(backward):
                x = hidden(model, batch)
                if backward:
                    nats, _ = token_sums(x, head(model), batch.targets, batch.weights)
                    (nats / weight).backward()
    finally:
        for handle in handles:
            handle.remove()
    moments = {name: (total / watcher.counts[name]).cpu() for name, total in watcher.moments.items()}
    for name in modules:
        if not watcher.counts.get(name):
            raise FinloraError(f"calibration reached no token of `{name}`", "leave this linear out of the targets")
    return {
        name: Stats(
            moments[watcher.source[name]] if "moment_II" in wanted else None,
            watcher.grads.pop(name).cpu() if backward else None,
            watcher.counts[name],
        )
        for name in modules
    }


class Held(Mapping[str, Stats]):
    """What was kept of a calibration, by linear; a moment is unfolded when it is asked for, so that one is in memory at a time."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.tensors = dict(tensors)
        self.names = list(dict.fromkeys(key.rpartition(".")[0] for key in tensors))

    def __getitem__(self, name: str) -> Stats:
        if name not in self.names:
            raise KeyError(name)
        found = {key: self.tensors.get(f"{name}.{key}") for key in NEEDS}
        moment = found["moment_II"]
        return Stats(moment.diag() if moment is not None and moment.dim() == 1 else moment, found["grad_OI"])

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def condense(stats: Mapping[str, Stats] | None, codec: Codec, cfg: Any) -> dict[str, Tensor]:
    """What a codec used of calibration, to be kept: {<linear>.<field>: tensor}; empty where it uses nothing.

    Of a moment the diagonal alone is kept where the codec reads no more, which is tried on drawn weights.
    """
    if stats is None or not codec.needs(cfg):
        return {}
    if isinstance(stats, Held):
        return stats.tensors
    out: dict[str, Tensor] = {}
    narrow = _reads_diagonal(stats, codec, cfg)
    for name, seen in stats.items():
        for key in codec.needs(cfg):
            value = getattr(seen, key)
            out[f"{name}.{key}"] = (value.diagonal() if narrow and key == "moment_II" else value).contiguous().clone()
    return out


def _reads_diagonal(stats: Mapping[str, Stats], codec: Codec, cfg: Any) -> bool:
    """Whether the codec encodes the same by the diagonals of moments: tried on the narrowest linear, with drawn weights."""
    whole = [seen for seen in stats.values() if seen.moment_II is not None]
    if not whole:
        return False
    seen = min(whole, key=lambda seen: len(seen.moment_II))
    I = len(seen.moment_II)
    W = torch.randn(64 if seen.grad_OI is None else len(seen.grad_OI), I, generator=torch.Generator().manual_seed(0))
    a, b = (codec.encode(cfg, W, Stats(moment, seen.grad_OI, seen.tokens)) for moment in (seen.moment_II, seen.moment_II.diagonal().diag()))
    return all(torch.equal(a[key], b[key]) for key in a)


def calibration_of(folder: str | Path, codec: Codec, cfg: Any) -> Held | None:
    """What an adapter folder keeps of the calibration that this codec encoded its base by; None where it keeps none of it.

    Raises: FinloraError for a folder that is no adapter, or a file that cannot be read.
    """
    from .adapters import trained_over

    if not codec.needs(cfg) or trained_over(folder) != {"kind": codec.name, **asdict(cfg)} or not (Path(folder) / KEPT).is_file():
        return None
    tensors = read_tensors(Path(folder) / KEPT)
    if odd := [key for key in tensors if key.rpartition(".")[2] not in NEEDS]:
        raise FinloraError(f"`{Path(folder) / KEPT}` holds `{odd[0]}`, which is nothing that calibration gives", "copy the whole adapter folder again")
    return Held(tensors)
