"""Every structure of the registry under every law of structures, what is particular to single ones, and planted faults."""

import dataclasses
import math
from dataclasses import replace

import laws_structure as laws
import pytest
import torch
import torch.nn.functional as F
from laws_linear import distance, inputs, stats, weight

from finlora.errors import FinloraError
from finlora.registry import names, pick
from finlora.structures import _blocks, _factors, btt, cola, sltrain

STRUCTURES = names("structure")
VARIANTS = {v.name: v for name in STRUCTURES for v in laws.variants(pick("structure", name))}
LOWRANK, COLA, SLTRAIN, BLOCKDIAG, BTT, DENSE = (pick("structure", n) for n in ("lowrank", "cola", "sltrain", "blockdiag", "btt", "dense"))


@pytest.mark.parametrize("law", laws.STRUCTURE_LAWS, ids=lambda f: f.__name__.removeprefix("law_"))
@pytest.mark.parametrize("structure", [*STRUCTURES, *VARIANTS])
def test_law(structure, law):
    record = VARIANTS[structure] if structure in VARIANTS else pick("structure", structure)
    shapes = [shape for shape in laws.SHAPES if laws.fitting(record, shape) is not None]
    assert len(shapes) >= len(laws.SHAPES) - 1, "one odd shape may be refused, not more"
    for shape in shapes:
        law(record, shape)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_where_it_is_from(structure):
    record = pick("structure", structure)
    assert record.name == structure
    assert record.paper or record.count(record.config(), 8, 4) == 32, "say where it is from: Structure(paper=...)"


# -- low rank ----------------------------------------------------------------------------------------------------------


def test_spectral_at_full_rank_is_the_dense_start():
    cfg = LOWRANK.config(rank=48, init="spectral", variance="paper")
    W = LOWRANK.dense(cfg, laws.made(LOWRANK, cfg, (48, 80)))
    assert distance(W, laws.made(DENSE, DENSE.config(), (48, 80))["W"]) <= 1e-5 * float(W.norm())


def test_spectral_keeps_the_leading_directions():
    W = laws.made(DENSE, DENSE.config(), (48, 80))["W"]
    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    cut = (U[:, :8] * S[:8]) @ Vh[:8]
    for variance, size in (("paper", cut.norm()), ("dense", laws.STD * math.sqrt(48 * 80))):
        cfg = LOWRANK.config(rank=8, init="spectral", variance=variance)
        params = laws.made(LOWRANK, cfg, (48, 80))
        assert distance(LOWRANK.dense(cfg, params), cut / cut.norm() * size) <= 1e-5 * float(size)
        assert torch.allclose(params["A"] @ params["A"].t(), params["B"].t() @ params["B"], atol=1e-5)


@pytest.mark.parametrize("record, init, s_A, s_B", [
    (LOWRANK, {"init": "cola"}, (64 * 960) ** -0.25, (64 * 960) ** -0.25),
    (LOWRANK, {"init": "xavier"}, (2 / 704) ** 0.5, (2 / 384) ** 0.5),
    (LOWRANK, {"init": "auto"}, (laws.STD**2 / 64) ** 0.25, (laws.STD**2 / 64) ** 0.25),
    (COLA, {}, (64 * 960) ** -0.25, (64 * 960) ** -0.25),
])  # fmt: skip
def test_starts_as_published(record, init, s_A, s_B):
    params = laws.made(record, record.config(rank=64, variance="paper", **init), (320, 640))
    # 20480 and more draws: a deviation is met to 0.5 %
    assert float(params["A"].std()) == pytest.approx(s_A, rel=0.02) and float(params["B"].std()) == pytest.approx(s_B, rel=0.02)


def test_fit_attains_the_bound():
    """In float64 the error is the sum of the eigenvalues that are left out, to 1e-9; without statistics, of squared singular values."""
    W, C = weight((48, 80)).double(), stats((48, 80)).moment_II.double()
    for seen, spectrum in ((stats((48, 80)), torch.linalg.eigvalsh(W @ C @ W.t())), (None, torch.linalg.svdvals(W).square().flip(0))):
        for rank in (1, 7, 30, 47):
            cfg = LOWRANK.config(rank=rank)
            params = LOWRANK.fit(cfg, W, seen)
            error, total = laws.error(LOWRANK, cfg, params, W, None if seen is None else C), float(spectrum.sum())
            assert abs(error - float(spectrum[:-rank].sum()) / total) <= 1e-9
            assert torch.allclose(params["A"] @ params["A"].t(), params["B"].t() @ params["B"], atol=1e-9), "not balanced"


def test_sizes_of_known_layers():
    """Rank 145 keeps 1 / 2.64 of GPT-2's 768 x 768, 232 of its 3072 x 768."""
    assert [LOWRANK.sized(LOWRANK.config(), 768, out, 1 / 2.64).rank for out in (768, 2304, 3072)] == [145, 218, 232]
    assert LOWRANK.sized(LOWRANK.config(), 768, 768, 5.0).rank == 768
    for rank in (37, 78, 83):  # rank * 3072 / (768 * 2304) times 768 * 2304 is a hair less than rank * 3072
        assert LOWRANK.sized(LOWRANK.config(), 768, 2304, rank * 3072 / (768 * 2304)).rank == rank
    assert BLOCKDIAG.count(BLOCKDIAG.config(blocks=32, rank=1), 1024, 1024) == 2 * 1024**1.5, "Monarch's own size"
    with pytest.raises(FinloraError, match="keep = 0.01 leaves.*64 x 64.*at least 0.0313"):
        LOWRANK.sized(LOWRANK.config(), 64, 64, 0.01)


def test_frobenius_decay_takes_the_place_of_weight_decay():
    assert LOWRANK.config().undecayed == () and LOWRANK.config(frobenius=0.1).undecayed == ("A", "B")


def test_learning_rates_by_fan_in():
    cfg = LOWRANK.config(rank=8, lr_scale="fan_in")
    assert LOWRANK.groups(cfg, laws.made(LOWRANK, cfg, (48, 80))) == {"A": 0.5, "B": 5.0}
    cfg = BTT.config(rank=2)  # 8 runs of 10 inputs, 6 runs of 8 outputs
    assert BTT.groups(cfg, laws.made(BTT, cfg, (48, 80))) == {"R": 80 / 10 / 2, "L": 80 / 16 / 2}
    cfg = BLOCKDIAG.config(blocks=4, rank=2, lr_scale="fan_in")
    assert BLOCKDIAG.groups(cfg, laws.made(BLOCKDIAG, cfg, (48, 80))) == {"R": 2.0, "L": 5.0}


def test_what_silu_lets_through():
    z = torch.randn(500_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for deviation in (0.1, 1.0, 3.0):
        assert cola.passed(deviation) == pytest.approx(float(F.silu(deviation * z).square().mean()), rel=1e-2)  # of a mean: 0.4 % at 3 deviations, measured


# -- product and entries -----------------------------------------------------------------------------------------------


def test_support():
    cfg = SLTRAIN.config(rank=4, delta=0.1)
    params = laws.made(SLTRAIN, cfg, (48, 80))
    places = params["support"]
    assert len(places) == 384 and places.dtype == torch.int32 and bool((places.diff() > 0).all()) and int(places.max()) < 3840
    assert not params["B"].any() and float(params["V"].abs().max()) <= math.sqrt(30) * laws.STD
    assert float(params["A"].abs().max()) == pytest.approx(80**-0.5, rel=0.02), "320 draws of torch's own start of a linear"
    assert [sltrain.entries(SLTRAIN.config(delta=d), 5, 5) for d in (1e-9, 0.1, 0.3)] == [1, 2, 7], "rounded down, at least one"
    paper = laws.made(SLTRAIN, replace(cfg, variance="paper"), (48, 80))["V"]
    assert float(paper.abs().max()) == pytest.approx(80**-0.5, rel=0.02)
    assert sltrain.narrow(places, 2**31 + 1).dtype == torch.int64
    with pytest.raises(AssertionError, match="rounded to torch.bfloat16"):
        SLTRAIN.dense(cfg, {name: p.bfloat16() for name, p in params.items()})


def test_the_entry_that_is_taken_takes_most_of_the_error():
    """Against every entry tried by itself, at the value that is best for it, over inputs of very different sizes."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=draw, dtype=torch.float64) * torch.logspace(0, -2, 6, dtype=torch.float64)
    C, found = x.t() @ x / 50, []
    for _ in range(8):
        D = torch.randn(4, 6, generator=draw, dtype=torch.float64) / C.diagonal().sqrt()
        best = ((D @ C) / C.diagonal() * torch.eye(24, dtype=D.dtype).view(24, 4, 6)).unbind()
        wanted = min(range(24), key=lambda k: _factors.loss(D, best[k], C))
        V, support = sltrain.worst(D, C, 1)
        assert support.item() == wanted and V.item() == pytest.approx(float(best[wanted].sum()))
        found.append(wanted)
    assert len(set(found)) > 3


def test_nothing_dense_is_kept_for_backward():
    cfg = SLTRAIN.config(rank=4)
    params, kept = laws.stirred(SLTRAIN, cfg, (48, 80)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        SLTRAIN.apply(cfg, params, inputs((48, 80), torch.float32))
    assert kept and max(kept) < 48 * 80


@pytest.mark.parametrize("seen", [None, stats((48, 80))], ids=["plain", "statistics"])
def test_entries_beside_the_product_are_never_worse_than_the_product(seen):
    W, moment = weight((48, 80)), None if seen is None else seen.moment_II
    product = laws.error(LOWRANK, LOWRANK.config(rank=8), LOWRANK.fit(LOWRANK.config(rank=8), W, seen), W, moment)
    for delta, share in ((1e-9, 1.0), (0.03, 0.9), (0.3, 0.5)):
        cfg = SLTRAIN.config(rank=8, delta=delta)
        assert laws.error(SLTRAIN, cfg, SLTRAIN.fit(cfg, W, seen), W, moment) <= share * product
    whole = SLTRAIN.config(rank=8, delta=1.0)
    assert laws.error(SLTRAIN, whole, SLTRAIN.fit(whole, W, seen), W, moment) <= 1e-10


# -- blocks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("record, G, H", [(BLOCKDIAG, 4, 4), (BTT, 8, 6)])
def test_blocks_are_two_block_diagonals_with_a_permutation_between(record, G, H):
    cfg = record.config(rank=2)
    params, T = laws.stirred(record, cfg, (48, 80)), 2
    R = torch.block_diag(*params["R"].view(G, H * T, -1))
    L = torch.block_diag(*params["L"].view(H, -1, G * T))
    order = [(g * H + h) * T + t for h in range(H) for g in range(G) for t in range(T)]
    assert distance(L @ R[order], record.dense(cfg, params)) <= 1e-6 * float((L.norm() * R.norm()).detach())
    block = record.dense(cfg, params).detach()[: 48 // H, : 80 // G]
    assert int(torch.linalg.matrix_rank(block)) == T


def test_blocks_fitted_with_statistics_are_exact_where_runs_are_uncorrelated():
    """Then the closed form of each block is the whole's."""
    W = weight((48, 80)).double()
    C = torch.block_diag(*(stats((48, 20), seed).moment_II.double() for seed in range(4)))
    R, L = _blocks.fit(W, C, 4, 4, 3)
    least = 0.0
    for h in range(4):
        for g in range(4):
            block, own = W[12 * h : 12 * h + 12, 20 * g : 20 * g + 20], C[20 * g : 20 * g + 20, 20 * g : 20 * g + 20]
            least += float(torch.linalg.eigvalsh(block @ own @ block.t())[:-3].sum())
    assert _factors.loss(W, _blocks.dense(R, L, 3), C) == pytest.approx(least, rel=1e-9)


@pytest.mark.parametrize("seen", [None, stats((48, 80))], ids=["plain", "statistics"])
def test_fitted_blocks_are_balanced(seen):
    params = BLOCKDIAG.fit(BLOCKDIAG.config(blocks=4, rank=3), weight((48, 80)).double(), seen)
    A, B = _blocks.parted(params["R"], params["L"], 3)
    torch.testing.assert_close(A @ A.mT, B.mT @ B, rtol=1e-9, atol=1e-9)


def test_a_layer_that_does_not_divide_is_refused():
    for call in (lambda c: laws.made(BLOCKDIAG, c, (48, 65)), lambda c: BLOCKDIAG.fit(c, weight((48, 65))), lambda c: BLOCKDIAG.sized(c, 65, 48, 0.5)):
        with pytest.raises(FinloraError, match="blocks = 4 does not divide a linear of 48 x 65.*leave it dense"):
            call(BLOCKDIAG.config())
    with pytest.raises(FinloraError, match="blocks = 5 does not divide a linear of 36 x 60.*use 4 blocks"):
        laws.made(BLOCKDIAG, BLOCKDIAG.config(blocks=5), (36, 60))
    with pytest.raises(FinloraError, match="rank 16 is above a block of the layer, which is 9 x 15"):
        laws.made(BLOCKDIAG, BLOCKDIAG.config(), (36, 60))


def test_runs_of_a_side():
    assert [btt.runs(n) for n in (1, 7, 64, 65, 768, 1600, 3072)] == [1, 1, 8, 5, 24, 40, 48]
    assert BTT.count(BTT.config(rank=3), 768, 3072) == 3 * (48 * 768 + 24 * 3072)
    cfg = BTT.config(rank=2, variance="paper")  # 8 x 10 inputs, 6 x 8 outputs: 10 values summed and 12 reached, then 16 and 8
    params = laws.made(BTT, cfg, (48, 80))
    assert float(params["R"].std()) == pytest.approx(10**-0.5, rel=0.1)
    assert float(params["L"].std()) == pytest.approx(16**-0.5 * 0.5**0.5, rel=0.1)


# -- the laws have teeth -----------------------------------------------------------------------------------------------


def unseeded(cfg, n_in, n_out, std, generator):
    return LOWRANK.init(cfg, n_in, n_out, std, None)


def begun(**zeroed):
    def init(cfg, n_in, n_out, std, generator):
        params = LOWRANK.init(cfg, n_in, n_out, std, generator)
        return {name: p * zeroed.get(name, 1) for name, p in params.items()}

    return init


def own_size(cfg, n_in, n_out, keep):
    """Rounded to the nearest rank instead of down."""
    return replace(cfg, rank=round(keep * n_in * n_out / (n_in + n_out)) or LOWRANK.sized(cfg, n_in, n_out, keep).rank)


def one_less(cfg, n_in, n_out, keep):
    found = LOWRANK.sized(cfg, n_in, n_out, keep)
    return replace(found, rank=max(1, found.rank - 1))


def other_side(cfg, W, seen=None):
    """The statistics of the inputs taken for those of the outputs."""
    if seen is None:
        return LOWRANK.fit(cfg, W)
    params = LOWRANK.fit(cfg, W.t().contiguous(), seen)
    return {"A": params["B"].t().contiguous(), "B": params["A"].t().contiguous()}


def squared_twice(pairs, step, total):
    """The gradient of lambda |W|^2 without the half."""
    LOWRANK.tend([(replace(cfg, frobenius=2 * cfg.frobenius), params) for cfg, params in pairs], step, total)


def each_its_own(pairs, step, total):
    """Plain L2 decay of the factors."""
    with torch.no_grad():
        for cfg, params in pairs:
            for p in params.values():
                if p.grad is not None:
                    p.grad.add_(p, alpha=cfg.frobenius)


def drawn_anew(cfg, params, step, total, generator):
    again = LOWRANK.refresh(cfg, params, step, total, generator)
    return again and LOWRANK.init(cfg, params["A"].shape[1], params["B"].shape[0], laws.STD, generator)


def always(cfg, params, step, total, generator):
    """At the last step too."""
    return LOWRANK.refresh(cfg, params, step, total + 1, generator)


def in_fp32(cfg, params, x):
    return F.linear(F.linear(x.float(), params["A"].float()), params["B"].float())


def detached(cfg, params, x):
    return LOWRANK.apply(cfg, {**params, "A": params["A"].detach()}, x)


def scaled(cfg, params, x):
    return LOWRANK.apply(cfg, params, x) / cfg.rank


def changes_x(cfg, params, x):
    return LOWRANK.apply(cfg, params, x.mul_(1 + 1e-6))


def unscaled_gradient(ctx, grad, real=sltrain.Product.backward):
    gx, gA, *rest = real(ctx, grad)
    return gx, gA / ctx.scale, *rest


def rounded_places(support, total):
    """Indices that went through bf16 with the rest."""
    return support.to(torch.bfloat16).long().clamp(max=total - 1)


def unpermuted(R, L, x, rank, real=_blocks.apply):
    """The two block diagonals without the permutation."""
    G, H = _blocks.counts(R, L, rank)
    z = torch.bmm(x.reshape(-1, G, R.shape[1]).transpose(0, 1), R.view(G, H * rank, -1).mT)
    y = torch.bmm(z, L.view(H, -1, G * rank).mT)
    return y.transpose(0, 1).reshape(*x.shape[:-1], L.shape[0])


SQUARE = (64, 64)  # a fault that turns a matrix round must not be caught by its shape alone
FAULTS = {  # law, the real thing, what is wrong with it: slots of the record, or (owner, name, function) to patch
    "a scale too many": (laws.law_apply, LOWRANK, {"apply": scaled}),
    "computed in fp32 whatever x is": (laws.law_apply, LOWRANK, {"apply": in_fp32}),
    "the weight turned round": (laws.law_apply, LOWRANK, {"dense": lambda cfg, p: (p["B"] @ p["A"]).t()}),
    "no permutation between the blocks": (laws.law_apply, BLOCKDIAG, (_blocks, "apply", unpermuted)),
    "a nonlinearity called linear": (laws.law_linear_or_not, COLA, {"dense": LOWRANK.dense}),
    "a linear map called bent": (laws.law_linear_or_not, LOWRANK, {"dense": None}),
    "a chain without what is between": (laws.law_chain, COLA, {"between": None}),
    "a chain the wrong way round": (laws.law_chain, LOWRANK, {"chain": lambda cfg, p: (p["A"].t(), p["B"].t())}),
    "x changed in place": (laws.law_any_leading_shape, LOWRANK, {"apply": changes_x}),
    "rounded indices": (laws.law_masters, SLTRAIN, (sltrain, "places", lambda support, total: rounded_places(support, total) if support.is_floating_point() else support.long())),
    "indices that train": (laws.law_count, SLTRAIN, {"frozen": ()}),
    "a factor without a gradient": (laws.law_gradients, LOWRANK, {"apply": detached}),
    "a gradient without its scale": (laws.law_gradients, SLTRAIN, (sltrain.Product, "backward", staticmethod(unscaled_gradient))),
    "both factors zero": (laws.law_wakes, LOWRANK, {"init": begun(A=0, B=0)}),
    "one factor zero": (laws.law_start_variance, LOWRANK, {"init": begun(B=0)}),
    "a start a tenth too small": (laws.law_start_variance, LOWRANK, {"init": begun(A=0.9)}),
    "silu taken to let all through": (laws.law_start_variance, COLA, (cola, "passed", lambda deviation: deviation**2)),
    "a multiplier of zero": (laws.law_groups, LOWRANK, {"groups": lambda cfg, p: {"A": 0.0, "B": 1.0}}),
    "a multiplier left out": (laws.law_groups, BTT, {"groups": lambda cfg, p: {"R": 1.0}}),
    "decay twice too strong": (laws.law_tend, LOWRANK, {"tend": squared_twice}),
    "decay of the factors themselves": (laws.law_tend, LOWRANK, {"tend": each_its_own}),
    "a start from the global state": (laws.law_seeded, LOWRANK, {"init": unseeded}),
    "entries not counted": (laws.law_count, SLTRAIN, {"count": LOWRANK.count}),
    "arithmetic of the factors alone": (laws.law_flops, SLTRAIN, {"flops": SLTRAIN.count}),
    "sized to the nearest": (laws.law_sized, LOWRANK, {"sized": own_size}),
    "sized too small": (laws.law_sized, LOWRANK, {"sized": one_less}),
    "a rank above the layer let through": (laws.law_refusals, LOWRANK, (_factors, "check_rank", lambda *args: None)),
    "statistics left unused": (laws.law_fit, LOWRANK, {"fit": lambda cfg, W, seen=None: LOWRANK.fit(cfg, W)}),
    "statistics of the wrong side": (laws.law_fit, LOWRANK, {"fit": other_side}),
    "entries anywhere": (laws.law_fit, SLTRAIN, (sltrain, "worst", lambda rest, C, count: (rest.view(-1)[:count], torch.arange(count)))),
    "directions that cannot wake": (laws.law_fit_of_thin_statistics, LOWRANK, (_factors, "WAKE", 0.0)),
    "a renewal that changes the map": (laws.law_refresh, LOWRANK, {"refresh": drawn_anew}),
    "a renewal at the last step": (laws.law_refresh, LOWRANK, {"refresh": always}),
    "a renewal that never comes": (laws.law_refresh, LOWRANK, {"refresh": lambda *args: None}),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_a_planted_fault_is_found(name, monkeypatch):
    law, record, wrong = FAULTS[name]
    law(record, SQUARE)
    if isinstance(wrong, dict):
        record = dataclasses.replace(record, **wrong)
    else:
        monkeypatch.setattr(*wrong)
    with pytest.raises((AssertionError, RuntimeError, FinloraError)):
        law(record, SQUARE)
