"""int8, nf4, nf4_dq and fp4 against bitsandbytes: the same codes, the same packing, the same statistics.

bitsandbytes has several kernels for one operation. Its 4-bit codes, absmax and int8 codes agree among them and with ours to
the bit. Two of its CPU kernels are not what its CUDA and plain PyTorch kernels compute (0.50.2), so they cannot be the
reference to the bit:

* 8-bit blockwise quantisation, used for nf4_dq's absmax, looks codes up on a grid of 1/32767.5 and so picks the other
  neighbour for about two values in a thousand that lie that close to the middle of two codes;
* 4-bit decoding of a matrix whose rows are no multiple of the block restarts the blocks at each row, though encoding did
  not: the weights come back wrong. There the reference is the definition.
"""

import pytest
import torch

bnb = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")

from finlora.registry import pick  # noqa: E402

SHAPES = [(48, 80), (33, 65), (128, 192), (1, 65), (7, 9), (3, 21), (1, 1), (500, 320)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def gaussian(shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator) / shape[1] ** 0.5


def heavy_tailed(shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator) / torch.rand(shape, generator=generator).clamp(min=0.05)


def full_of_ties(shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Multiples of a quarter with blocks of zeros."""
    W = (torch.randn(shape, generator=generator) * 4).round() / 4
    W.view(-1)[:64] = 0
    return W


CASES = [
    pytest.param(shape, dtype, make, id=f"{shape[0]}x{shape[1]}-{str(dtype)[6:]}-{make.__name__}")
    for shape in SHAPES
    for dtype in DTYPES
    for make in (gaussian, heavy_tailed, full_of_ties)
]


def sample(shape, dtype, make) -> torch.Tensor:
    return make(shape, torch.Generator().manual_seed(0)).to(dtype)


def by_definition(codes: torch.Tensor, absmax: torch.Tensor, shape, dtype, name: str = "nf4") -> torch.Tensor:
    """bitsandbytes' codes and table, element by element."""
    code = bnb.get_4bit_type(name, device="cpu")
    index = torch.stack([codes >> 4, codes & 15], -1).reshape(-1)[: shape[0] * shape[1]].long()
    return (code[index] * absmax[torch.arange(index.numel()) // 64]).to(dtype).view(shape)


@pytest.mark.parametrize("shape, dtype, make", CASES)
@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_4_bits(name, shape, dtype, make):
    codec, W = pick("codec", name), sample(shape, dtype, make)
    ours = codec.encode(codec.config(), W)
    codes, state = bnb.quantize_4bit(W, quant_type=name, blocksize=64)
    assert torch.equal(ours["codes"], codes.view(-1))
    assert torch.equal(ours["absmax"], state.absmax)
    back = codec.decode(codec.config(), ours, shape, dtype)
    assert torch.equal(back, by_definition(codes.view(-1), state.absmax, shape, dtype, name))
    if shape[1] % 64 == 0:
        assert torch.equal(back, bnb.dequantize_4bit(codes, state))


@pytest.mark.parametrize("block", [32, 256, 4096])
@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_4_bits_in_other_blocks(name, block):
    codec, W = pick("codec", name), sample((500, 320), torch.float32, gaussian)
    ours = codec.encode(codec.config(block=block), W)
    codes, state = bnb.quantize_4bit(W, quant_type=name, blocksize=block)
    assert torch.equal(ours["codes"], codes.view(-1))
    assert torch.equal(ours["absmax"], state.absmax)


@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_4_bits_beside_every_middle(name):
    """Each middle between two values of the table, and the 64 floats next to it on either side; tiny and huge scales."""
    values = bnb.get_4bit_type(name, device="cpu").sort().values
    middles = ((values[:-1] + values[1:]) / 2).view(torch.int32)[:, None]
    beside = torch.cat([middles & ~0x7FFFFFFF | ((middles & 0x7FFFFFFF) + k).clamp(min=0) for k in range(-64, 65)], 1)
    inner = beside.view(torch.float32).reshape(-1)
    inner = torch.cat([inner, -inner, torch.tensor([0.0, -0.0])])
    blocks = torch.nn.functional.pad(inner, (0, -inner.numel() % 63)).view(-1, 63)
    codec = pick("codec", name)
    for scale in (1.0, 2.0**-100, 2.0**100, 3e-39, 1e38):
        W = torch.cat([torch.ones(len(blocks), 1), blocks], 1) * scale
        ours = codec.encode(codec.config(), W)
        codes, state = bnb.quantize_4bit(W, quant_type=name, blocksize=64)
        assert torch.equal(ours["codes"], codes.view(-1)), scale
        assert torch.equal(ours["absmax"], state.absmax)


@pytest.mark.parametrize("codec", ["nf4", "nf4_dq", "fp4", "int8"])
@pytest.mark.parametrize("shape", [(500, 320), (333, 1001)])
def test_threads_and_slices_change_nothing(codec, shape, monkeypatch):
    """Any number of threads, and layers far larger than a slice, give the same bits."""
    record, cfg, W = pick("codec", codec), pick("codec", codec).config(), sample(shape, torch.float32, gaussian)
    threads = torch.get_num_threads()
    whole = record.encode(cfg, W)
    dense = {dtype: record.decode(cfg, whole, shape, dtype) for dtype in (*DTYPES, torch.float64)}
    try:
        for count, size in ((1, 64), (2, 1 << 12), (3, 1 << 15), (2, 1 << 19)):
            torch.set_num_threads(count)
            for module in ("int8", "_table4"):
                for name in ("CHUNK", "SLICE"):
                    monkeypatch.setattr(f"finlora.codecs.{module}.{name}", size)
            pieces = record.encode(cfg, W)
            assert all(torch.equal(pieces[key], whole[key]) for key in whole), (count, size)
            for dtype, back in dense.items():
                assert torch.equal(record.decode(cfg, pieces, shape, dtype), back), (count, size, dtype)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_4_bits_of_a_large_weight(name):
    """Several slices, and memory of huge pages where the system has them."""
    codec, W = pick("codec", name), sample((1100, 2048), torch.float32, gaussian)
    ours = codec.encode(codec.config(), W)
    codes, state = bnb.quantize_4bit(W, quant_type=name, blocksize=64)
    assert torch.equal(ours["codes"], codes.view(-1)) and torch.equal(ours["absmax"], state.absmax)
    assert torch.equal(
        codec.decode(codec.config(), ours, (1100, 2048), torch.float32), bnb.dequantize_4bit(codes, state)
    )


@pytest.mark.parametrize("shape, dtype, make", CASES)
def test_int8(shape, dtype, make):
    codec, W = pick("codec", "int8"), sample(shape, dtype, make)
    ours = codec.encode(codec.config(), W)
    codes, absmax, _ = bnb.int8_vectorwise_quant(W.clone())
    alive = absmax > 0  # bitsandbytes divides rows of zeros by zero; ours are zero
    assert torch.equal(ours["codes"][alive], codes[alive]) and not ours["codes"][~alive].any()
    assert torch.equal(ours["absmax"], absmax)
    back = codec.decode(codec.config(), ours, shape, torch.float32)
    # bitsandbytes multiplies by a rounded 1/127: one part in 2^23 apart
    assert torch.allclose(back[alive], bnb.int8_vectorwise_dequant(codes, absmax)[alive], rtol=2.4e-7, atol=0)


def plain_kernel(absmax: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """bitsandbytes' device-independent 8-bit blockwise quantisation, which its CPU library stands before."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CompositeExplicitAutograd)
    op = torch.ops.bitsandbytes.quantize_blockwise.default
    return op.redispatch(keys, absmax, bnb.create_dynamic_map(), 256)


@pytest.mark.parametrize("shape, dtype, make", CASES)
def test_nf4_dq(shape, dtype, make):
    codec, W = pick("codec", "nf4_dq"), sample(shape, dtype, make)
    ours = codec.encode(codec.config(), W)
    codes, state = bnb.quantize_4bit(W, quant_type="nf4", blocksize=64, compress_statistics=True)
    assert torch.equal(ours["codes"], codes.view(-1))
    assert torch.equal(ours["offset"], state.offset)
    assert torch.equal(ours["absmax_scale"], state.state2.absmax)
    plain = bnb.quantize_4bit(W, quant_type="nf4", blocksize=64)[1].absmax
    exact, scale = plain_kernel(plain - plain.mean())
    single = scale.repeat_interleave(256)[: exact.numel()] == 0  # all absmax equal: the code means nothing
    assert torch.equal(ours["absmax_codes"][~single], exact[~single])
    # the CPU library's grid: never nearer than ours, and by less than a grid step further
    cpu = state.absmax
    if exact.numel() > 1000 and make is not full_of_ties:  # equal values all flip together
        assert (ours["absmax_codes"] != cpu).float().mean() < 0.01
    theirs = bnb.dequantize_blockwise(cpu, state.state2) + state.offset
    absmax = bnb.dequantize_blockwise(ours["absmax_codes"], state.state2) + state.offset
    step = 1.01 / 32767.5 * scale.repeat_interleave(256)[: exact.numel()]
    assert ((absmax - plain).abs() <= (theirs - plain).abs() + 1e-7 * plain).all(), "ours is the nearer code"
    assert ((theirs - plain).abs() - (absmax - plain).abs() <= step + 1e-7 * plain)[~single].all()
    back = codec.decode(codec.config(), ours, shape, dtype)
    assert torch.equal(back, by_definition(codes.view(-1), absmax, shape, dtype))


def test_the_dynamic_map():
    from finlora.codecs.nf4_dq import dynamic_map

    assert torch.equal(dynamic_map(torch.device("cpu")), bnb.create_dynamic_map())
