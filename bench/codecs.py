"""Codecs on a CPU: ours against bitsandbytes on the same tensors, in one process, in turns.

    python bench/codecs.py --out results/cpu/codecs.json

For each codec that bitsandbytes has too (nf4, nf4_dq, fp4, int8):

    encode    a weight in fp32 and in bf16 to codes and scales
    decode    codes and scales to a weight in fp32 and in bf16
    forward   x -> x W^T from the codes, for 64, 512 and 4096 rows of x in fp32 and in bf16
    backward  the same with the gradient to x, which decodes again

and for every other codec of the registry encode and decode alone. What is compared is the same work, and this is checked:
4-bit codes and scales must be equal to the bit (absmax of nf4_dq: all but one in a hundred, see the parity tests), decoded
weights and products close. Each round times both sides once, the other first from round to round; a ratio is taken within a
round (theirs / ours in seconds: above 1 we are faster) and told with its spread. `control` times one dense product against
itself in the same way: what a ratio of equals looks like on this machine at this moment.

bitsandbytes has a second forward, `Linear4bit` in evaluation mode on CPUs with AVX512-BF16. It repacks the weight for good,
sums in bf16 whatever the input's type, rounds the scales to bf16 and lets no gradient through. It is timed as
`forward-repacked` and held against our exact forward; it is not the same work, and no target is set by it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("BITSANDBYTES_NOWELCOME", "1")

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from finlora import receipt  # noqa: E402
from finlora.linear import Stats, Store  # noqa: E402
from finlora.registry import names, pick  # noqa: E402

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FOUR_BITS = {"nf4": ("nf4", False), "nf4_dq": ("nf4", True), "fp4": ("fp4", False)}  # quant_type, compress_statistics
ENCODE_TARGET = 10.0  # times bitsandbytes, of the 4-bit codecs
EQUAL = 0.97  # a median ratio from which on a product counts as no slower; `control` says how far equals lie apart


def options(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--shapes", nargs="+", default=["4096x4096", "11008x4096"], help="out x in; products use the first")
    p.add_argument("--rows", nargs="+", type=int, default=[64, 512, 4096], help="rows of x")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--others", default="1024x4096", help="shape for the codecs that bitsandbytes lacks")
    p.add_argument("--codecs", nargs="+", default=list(names("codec")), choices=names("codec"))
    p.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="PyTorch's threads; theirs follow OpenMP's"
    )
    p.add_argument("--out", default="results/cpu/codecs.json", help="the receipt")
    return p.parse_args(argv)


def size(text: str) -> tuple[int, int]:
    """(out, in) of "4096x4096"."""
    o, _, i = text.partition("x")
    return int(o), int(i)


# -- timing ----------------------------------------------------------------------------------------------------------


def seconds(call: Callable[[], Any]) -> float:
    """Of one call; what it gives is freed outside the clock."""
    began = time.perf_counter()
    result = call()
    took = time.perf_counter() - began
    del result
    return took


def spread(values: list[float]) -> dict[str, Any]:
    """{"rounds", "min", "median", "max"} of some values."""
    return {"rounds": values, "min": min(values), "median": statistics.median(values), "max": max(values)}


def duel(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> dict[str, Any]:
    """Both sides in turns, after one unmeasured call each: seconds of each, and the ratio of each round."""
    for call in (ours, theirs):
        call()
    took: dict[str, list[float]] = {"ours": [], "theirs": []}
    for k in range(rounds):
        for side, call in sorted({"ours": ours, "theirs": theirs}.items(), reverse=bool(k % 2)):
            took[side].append(seconds(call))
    ratio = [b / a for a, b in zip(took["ours"], took["theirs"])]
    return {"ours_seconds": spread(took["ours"]), "theirs_seconds": spread(took["theirs"]), "ratio": spread(ratio)}


def told(case: dict[str, Any]) -> dict[str, Any]:
    """The case, after its line was printed."""
    head = f"{case['codec']:8} {case['what']:17} {case['shape']:>11} {case['dtype']:9} "
    head += f"{case['rows']:5d} rows " if "rows" in case else " " * 11
    speed = case["weights"] / case["ours_seconds"]["median"] / 1e6
    line = f"{head}{speed:8.1f} M weights/s"
    if "ratio" in case:
        r, theirs = case["ratio"], case["weights"] / case["theirs_seconds"]["median"] / 1e6
        line += f", theirs {theirs:8.1f}: {r['median']:6.2f}x ({r['min']:.2f} to {r['max']:.2f})"
    print(line, flush=True)
    return case


def close(a: torch.Tensor, b: torch.Tensor, within: float, what: str) -> None:
    """Stops where two sides did not do the same work."""
    apart = float((a.float() - b.float()).norm() / b.float().norm())
    assert apart <= within, f"{what}: the sides' results are {apart:.2e} apart, so the work is not the same"


# -- bitsandbytes ----------------------------------------------------------------------------------------------------


class Theirs:
    """bitsandbytes' way with one weight."""

    def __init__(self, name: str, W_OI: torch.Tensor):
        import bitsandbytes

        self.name, self.W_OI, self.bnb, self.F = name, W_OI, bitsandbytes, bitsandbytes.functional
        self.codes, self.state = self.encode()

    def encode(self) -> tuple[Any, Any]:
        """Codes, and all that decoding needs."""
        if self.name in FOUR_BITS:
            kind, nested = FOUR_BITS[self.name]
            return self.F.quantize_4bit(self.W_OI, quant_type=kind, blocksize=64, compress_statistics=nested)
        codes, absmax, _ = self.F.int8_vectorwise_quant(self.W_OI)
        return codes, absmax

    def decode(self, dtype: torch.dtype) -> torch.Tensor:
        """W_OI in `dtype`."""
        if self.name in FOUR_BITS:
            self.state.dtype = dtype
            return self.F.dequantize_4bit(self.codes, self.state)
        return self.F.int8_vectorwise_dequant(self.codes, self.state).to(dtype)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """x W^T as fine-tuning computes it. int8: in the type of x, as `Linear8bitLt` trains on a CPU."""
        if self.name in FOUR_BITS:
            self.state.dtype = x.dtype
            return self.bnb.matmul_4bit(x, self.codes, quant_state=self.state)
        state = self.bnb.MatmulLtState()
        state.CB, state.SCB, state.is_training, state.has_fp16_weights = self.codes, self.state, True, False
        return self.bnb.matmul(x, self.codes, state=state)

    def repacked(self, dtype: torch.dtype) -> Any:
        """`Linear4bit` in evaluation mode, or None where it would not repack."""
        if self.name not in FOUR_BITS or not self.F.has_avx512bf16():
            return None
        kind, nested = FOUR_BITS[self.name]
        O, I = self.W_OI.shape
        layer = self.bnb.nn.Linear4bit(
            I, O, bias=False, compute_dtype=dtype, quant_type=kind, compress_statistics=nested
        )
        layer.load_state_dict({"weight": self.W_OI})
        return layer.to("cpu").eval()


def same_codes(name: str, ours: dict[str, torch.Tensor], theirs: Theirs) -> None:
    """Stops where our codes are not theirs."""
    assert torch.equal(ours["codes"].view(-1), theirs.codes.view(-1)), f"{name}: codes differ"
    if "absmax" in ours:
        absmax = theirs.state.absmax if name in FOUR_BITS else theirs.state
        assert torch.equal(ours["absmax"], absmax), f"{name}: absmax differs"
    else:
        assert float((ours["absmax_codes"] != theirs.state.absmax).float().mean()) < 0.01, (
            f"{name}: absmax codes differ"
        )


# -- the cases -------------------------------------------------------------------------------------------------------


def weight(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """Gaussian, of the size of a trained linear's."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(0)) / shape[1] ** 0.5).to(dtype)


def against(name: str, text: str, kind: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """All cases of a codec that bitsandbytes has too, at one shape and type."""
    codec, shape, dtype = pick("codec", name), size(text), DTYPES[kind]
    cfg, W = codec.config(), weight(shape, dtype)
    theirs, tensors = Theirs(name, W), codec.encode(cfg, W)
    same_codes(name, tensors, theirs)
    case = {"codec": name, "shape": text, "dtype": kind, "weights": W.numel()}
    found = duel(lambda: codec.encode(cfg, W), theirs.encode, args.rounds)
    cases = [told({**case, "what": "encode", **found})]
    close(codec.decode(cfg, tensors, shape, dtype), theirs.decode(dtype), 4e-3, name)
    found = duel(lambda: codec.decode(cfg, tensors, shape, dtype), lambda: theirs.decode(dtype), args.rounds)
    cases.append(told({**case, "what": "decode", **found}))
    if text == args.shapes[0]:
        store, layer = Store(codec, cfg, W, dtype), theirs.repacked(dtype)
        for rows in args.rows:
            cases += products(store, theirs, layer, {**case, "rows": rows}, args.rounds)
    return cases


def products(store: Store, theirs: Theirs, layer: Any, case: dict[str, Any], rounds: int) -> list[dict[str, Any]]:
    """Forward and backward from the codes, for one number of rows."""
    O, I = store.shape
    x = torch.randn(case["rows"], I, generator=torch.Generator().manual_seed(1)).to(store.dtype)
    live, grad = x.clone().requires_grad_(), torch.ones(case["rows"], O, dtype=store.dtype)

    def step(product: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return torch.autograd.grad(product(live), live, grad)[0]

    cases = []
    with torch.no_grad():
        close(store(x), theirs.product(x), 8e-3, case["codec"])
        found = duel(lambda: store(x), lambda: theirs.product(x), rounds)
        cases.append(told({**case, "what": "forward", **found}))
        if layer is not None:
            close(store(x), layer(x), 2e-2, case["codec"])
            found = duel(lambda: store(x), lambda: layer(x), rounds)
            cases.append(told({**case, "what": "forward-repacked", **found}))
    close(step(store), step(theirs.product), 8e-3, case["codec"])
    found = duel(lambda: step(store), lambda: step(theirs.product), rounds)
    return [*cases, told({**case, "what": "backward", **found})]


def alone(name: str, text: str, kind: str, rounds: int) -> list[dict[str, Any]]:
    """Encode and decode of a codec that bitsandbytes lacks."""
    codec, shape, dtype = pick("codec", name), size(text), DTYPES[kind]
    cfg, W = codec.config(), weight(shape, dtype)
    x = torch.randn(1024, shape[1], generator=torch.Generator().manual_seed(1))
    stats = Stats(x.T @ x / len(x), weight(shape, torch.float32), len(x)) if codec.needs(cfg) else None
    tensors = codec.encode(cfg, W, stats)
    case = {"codec": name, "shape": text, "dtype": kind, "weights": W.numel()}
    encode = [seconds(lambda: codec.encode(cfg, W, stats)) for _ in range(rounds)]
    decode = [seconds(lambda: codec.decode(cfg, tensors, shape, dtype)) for _ in range(rounds)]
    both = {"encode": encode, "decode": decode}
    return [told({**case, "what": what, "ours_seconds": spread(took)}) for what, took in both.items()]


def control(kind: str, rows: int, args: argparse.Namespace) -> dict[str, Any]:
    """A dense product against itself."""
    text = args.shapes[0]
    W = weight(size(text), DTYPES[kind])
    x = torch.randn(rows, W.shape[1]).to(W.dtype)
    found = duel(lambda: F.linear(x, W), lambda: F.linear(x, W), args.rounds)
    case = {"codec": "control", "what": "forward", "shape": text, "dtype": kind, "weights": W.numel(), "rows": rows}
    return told({**case, **found})


def main() -> None:
    """All cases, the summary, and the receipt."""
    args = options()
    torch.set_num_threads(args.threads)
    cases, failed = [control(kind, rows, args) for kind in DTYPES for rows in args.rows], {}
    for name in args.codecs:
        try:
            for kind in DTYPES:
                if name in FOUR_BITS or name == "int8":
                    cases += [case for text in args.shapes for case in against(name, text, kind, args)]
                else:
                    cases += alone(name, args.others, kind, args.rounds)
        except Exception as problem:  # one codec's fault must not cost the receipt, but is told in it
            failed[name] = f"{type(problem).__name__}: {problem}"
            print(f"{name:8} failed: {failed[name]}", flush=True)

    def medians(*what: str) -> list[float]:
        return [c["ratio"]["median"] for c in cases if c["what"] in what and c["codec"] in FOUR_BITS]

    encode, product = medians("encode"), medians("forward", "backward")
    holds = {
        "encode_4bit_ten_times_faster": bool(encode) and min(encode) >= ENCODE_TARGET,
        "product_4bit_no_slower": bool(product) and min(product) >= EQUAL,
        "no_codec_failed": not failed,
    }
    out = receipt.new("bench", "codecs", {k: v for k, v in vars(args).items() if k != "out"})
    out["bench"] = {
        "threads": args.threads,
        "load_average": os.getloadavg(),
        "cases": cases,
        "failed": failed,
        "holds": holds,
    }
    print(f"receipt: {receipt.write(args.out, out)}; {holds}")


if __name__ == "__main__":
    main()
