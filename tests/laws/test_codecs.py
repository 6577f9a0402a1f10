"""Every codec of the registry under every law of codecs, and what is particular to single ones."""

import sys

import laws_codec as laws
import pytest
import torch
from laws_linear import weight

from finlora.codecs._choices import choices
from finlora.errors import FinloraError
from finlora.linear import Store
from finlora.registry import names, pick

CODECS = names("codec")
VARIANTS = {v.name: v for name in CODECS for v in laws.variants(pick("codec", name))}


@pytest.mark.parametrize("shape", laws.SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("law", laws.CODEC_LAWS, ids=lambda f: f.__name__.removeprefix("law_"))
@pytest.mark.parametrize("codec", CODECS)
def test_law(codec, law, shape):
    law(pick("codec", codec), shape)


@pytest.mark.parametrize("law", laws.CODEC_LAWS, ids=lambda f: f.__name__.removeprefix("law_"))
@pytest.mark.parametrize("variant", VARIANTS)
def test_law_under_options(variant, law):
    for shape in laws.SHAPES:
        law(VARIANTS[variant], shape)


@pytest.mark.parametrize("codec", [*CODECS, *VARIANTS])
def test_error(codec):
    laws.law_error(VARIANTS[codec] if codec in VARIANTS else pick("codec", codec))


@pytest.mark.parametrize("codec", CODECS)
def test_where_it_is_from(codec):
    """An arXiv number, or the name of a specification; a codec that keeps the weight as it is has no source."""
    record = pick("codec", codec)
    assert record.name == codec
    assert record.paper or record.bits(record.config(), (8, 8), torch.bfloat16) == 16, "say where it is from: Codec(paper=...)"


@pytest.mark.parametrize("codec", [c for c in CODECS if choices(pick("codec", c).config)])
def test_options_are_refused_by_name(codec):
    record = pick("codec", codec)
    for field, values in choices(record.config).items():
        for bad in ("no such", 63, True, None):
            with pytest.raises(FinloraError, match=f"^{field} must be one of .*{values[0]}.*got {bad!r}"):
                record.config(**{field: bad})


def test_published_bits_at_the_size_of_a_real_layer():
    shape = (4096, 4096)
    published = {"int8": 8 + 32 / 4096, "fp8": 8 + 32 / 4096, "nf4": 4.5, "nf4_dq": 4.127, "nf4_icq": 4.254, "mxfp4": 4.25, "nvfp4": 4.5,
                 "int4": 4.3125, "int4 group=32": 4.625, "int4 group=128": 4.156, "int4 refine=hqq": 4.5}  # fmt: skip
    for name, bits in published.items():
        codec = VARIANTS[name] if name in VARIANTS else pick("codec", name)
        assert codec.bits(codec.config(), shape) == pytest.approx(bits, abs=5e-4)


def test_lossless_store_gives_its_buffer():
    codec, W = pick("codec", "none"), weight((48, 80))
    store = Store(codec, codec.config(), W, torch.float32)
    assert store.dense().data_ptr() == store.dense(torch.float32).data_ptr() == W.data_ptr()
    assert Store(codec, codec.config(), W, torch.bfloat16).dense().dtype == torch.bfloat16


@pytest.mark.parametrize("codec", [*CODECS, *VARIANTS])
@pytest.mark.parametrize("shape", [(48, 80), (33, 65), (40, 520)])
def test_chunks_change_nothing(codec, shape, monkeypatch):
    """A layer larger than a chunk is encoded and decoded piece by piece, to the same bits."""
    record = VARIANTS[codec] if codec in VARIANTS else pick("codec", codec)
    cfg, W, calibrated = record.config(), weight(shape), laws.seen(record, shape)
    whole = record.encode(cfg, W, calibrated)
    dense = [record.decode(cfg, whole, shape, dtype) for dtype in (torch.float32, torch.bfloat16)]
    chunked = [m for name, m in sys.modules.items() if name.startswith("finlora.codecs.") and hasattr(m, "CHUNK")]
    for module in chunked:
        monkeypatch.setattr(module, "CHUNK", 256)
    assert chunked
    pieces = record.encode(cfg, W, calibrated)
    assert all(torch.equal(pieces[key], whole[key]) for key in whole)
    for W_whole in dense:
        assert torch.equal(record.decode(cfg, pieces, shape, W_whole.dtype), W_whole)


@pytest.mark.parametrize("block", [32, 128, 4096])
@pytest.mark.parametrize("codec", ["nf4", "nf4_dq"])
def test_other_blocks(codec, block):
    record, W = pick("codec", codec), weight((33, 65))
    cfg = record.config(block=block)
    tensors = record.encode(cfg, W)
    back = record.decode(cfg, tensors, (33, 65), torch.float32)
    # larger blocks have larger maxima: 0.085 at 32, 0.098 at 128, 0.13 at 4096
    assert 0.07 < float((back - W).norm() / W.norm()) < 0.15
    bits = 8 * sum(t.nbytes for t in tensors.values()) / W.numel()
    assert record.bits(cfg, (33, 65)) == pytest.approx(bits, abs=1e-9)


@pytest.mark.parametrize("block", [0, 1, 48, 63, "64", 8192])
def test_block_refused(block):
    with pytest.raises(FinloraError, match=f"block.*{block}"):
        pick("codec", "nf4").config(block=block)


@pytest.mark.parametrize("W", [torch.ones(4), torch.ones(2, 2, 2), torch.ones(2, 2, dtype=torch.int64), torch.ones(0, 4)])
def test_no_matrix_of_floats_is_refused(W):
    codec = pick("codec", "nf4")
    with pytest.raises(FinloraError, match="matrix of floats"):
        Store(codec, codec.config(), W, torch.float32)
