"""A spec is read whole or refused whole: every problem at once, each with its value, place and remedy."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finlora import spec as specs
from finlora.errors import FinloraError, Problems
from finlora.fields import to_toml
from finlora.spec import (
    SECTIONS,
    Spec,
    as_dict,
    digest,
    dump,
    load_spec,
    replace,
    resolve,
    spec_from_dict,
    with_overrides,
)


def problems_of(call, *args, **kwargs) -> list[str]:
    with pytest.raises(FinloraError) as caught:
        call(*args, **kwargs)
    return [str(problem) for problem in caught.value.problems]


@pytest.fixture
def toml(tmp_path):
    def write(text: str):
        path = tmp_path / "run.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_an_empty_file_is_the_default_run(toml):
    assert load_spec(toml("")) == Spec()


def test_every_section_and_value_is_read(toml):
    spec = load_spec(
        toml(
            '[run]\nseed = 3\n[method]\nkind = "dora"\nrank = 4\ntargets = ["q_proj"]\n[data]\ntasks = ["fpb", "tfns"]\n[train]\nepochs = 2\n'
        )
    )
    assert (spec.run.seed, spec.method.kind, spec.method.options, spec.method.targets) == (
        3,
        "dora",
        {"rank": 4},
        ("q_proj",),
    )
    assert spec.data.tasks == ("fpb", "tfns")
    assert spec.train.epochs == 2.0 and isinstance(spec.train.epochs, float)


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("[trian]\nlr = 1.0", ["no section named `trian` in ", "did you mean `train`?"]),
        ("[train]\nlearning = 1.0", ["no key named `train.learning` in "]),
        ("[train]\nbtach = 8", ["no key named `train.btach` in ", "did you mean `train.batch`?"]),
        ("lr = 0.1", ["`lr` in ", "outside any section", "put it under [train]"]),
        ("train = 3", ["`train` in ", "must be a section, got `3`"]),
        ('[train]\nlr = "2e-4"', ['train.lr = "2e-4" in ', "is text", "it must be a number, without quotes: 0.0002"]),
        ("[train]\nbatch = 16.0", ["train.batch = 16.0 in ", "not a whole number", "it must be a whole number: 16"]),
        ("[train]\nbatch = true", ["train.batch = true in ", "is a truth value", "it must be a whole number"]),
        ('[train]\ncompile = "True"', ["train.compile", "it must be true or false: true"]),
        ('[train]\nrecompute = "sometimes"', ["train.recompute", "not a choice", "none, full, selective, narrow"]),
        ("[train]\nbatch = 0", ["train.batch = 0 in ", "is out of range", "it must be at least 1"]),
        ("[train]\nlr = nan", ["train.lr = nan in ", "is out of range"]),
        ("[train]\nlr = inf", ["train.lr = inf in ", "is out of range"]),
        ("[train]\nlr = 0.0", ["train.lr = 0.0 in ", "it must be above 0"]),
        ("[train]\nbeta2 = 1.0", ["train.beta2 = 1.0 in ", "at least 0 and below 1"]),
        (
            '[train]\nschedule = "cosin"',
            ['train.schedule = "cosin" in ', "not a choice", "one of cosine, linear, constant"],
        ),
        ('[run]\ndevice = "gpu"', ['run.device = "gpu" in ', "one of auto, cpu, mps, cuda, cuda:0"]),
        ('[run]\nout = ""', ["run.out = ", "it must be filled in, not empty"]),
        ('[evaluate]\nways = ["sing"]', ['evaluate.ways = ["sing"] in ', "one of choose, say"]),
        ("[evaluate]\nways = []", ["evaluate.ways = [] in ", "filled in"]),
        ("[data]\ntasks = [3]", ["data.tasks = 3 in ", "it must be text in quotes"]),
        ("[data]\ntasks = 3", ["data.tasks = 3 in ", "it must be a list of texts"]),
        ("[train]\npatience = 2\n[data]\nvalidation = 0.0", ["train.patience = 2", "needs held-out examples"]),
        ('[data]\nsources = ["a"]\nexclude_sources = ["a"]', ["`a` stands in both"]),
        ("[model]\nconfig = 3", ["model.config = 3 in ", "it must be a table"]),
        ("[train\n", ["is not valid TOML", "line 1"]),
    ],
)
def test_a_problem_names_value_place_and_remedy(toml, text, wanted):
    path = toml(text)
    found = problems_of(load_spec, path)
    assert len(found) == 1
    assert "\n" not in found[0]
    assert str(path) in found[0]
    for fragment in wanted:
        assert fragment in found[0]


def test_all_problems_come_at_once(toml):
    found = problems_of(
        load_spec,
        toml('[train]\nlr = -1.0\nbatch = "x"\nfoo = 1\n[runs]\n[evaluate]\nlimit = -1\n'),
        ["method.rank", "data.max_train=-3"],
    )
    assert len(found) == 7
    assert all(" (hint: " in problem for problem in found)


def test_a_missing_file_names_its_neighbour(toml, tmp_path):
    toml("")
    assert "did you mean" in problems_of(load_spec, tmp_path / "rum.toml")[0]
    assert "no spec file" in problems_of(load_spec, tmp_path / "none" / "run.toml")[0]
    assert "is a folder without a spec.toml" in problems_of(load_spec, tmp_path)[0]


def test_a_file_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "latin.toml").write_bytes("# é\n".encode("latin-1"))
    assert "is not UTF-8 text (byte 2)" in problems_of(load_spec, tmp_path / "latin.toml")[0]


def test_a_run_folder_is_read_by_its_spec(tmp_path):
    spec = replace(Spec(), train={"lr": 1e-3})
    (tmp_path / "spec.toml").write_text(dump(spec), encoding="utf-8")
    assert load_spec(tmp_path) == spec


@pytest.mark.parametrize(
    "override, place, value",
    [
        ("train.lr=1e-3", ("train", "lr"), 1e-3),
        ("train.lr = 3", ("train", "lr"), 3.0),
        ("run.out=runs/a b", ("run", "out"), "runs/a b"),
        ("run.out=2024", ("run", "out"), "2024"),
        ("run.out=2024-01-01", ("run", "out"), "2024-01-01"),
        ('run.out="quoted"', ("run", "out"), "quoted"),
        ("run.overwrite=true", ("run", "overwrite"), True),
        ("data.tasks=fpb", ("data", "tasks"), ("fpb",)),
        ('data.tasks=["fpb", "tfns"]', ("data", "tasks"), ("fpb", "tfns")),
        ("method.targets=re:.*q_proj", ("method", "targets"), "re:.*q_proj"),
        ("method.rank=16", ("method", "options"), {"rank": 16}),
        ("model.config.hidden_size=64", ("model", "config"), {"hidden_size": 64}),
        ("model.config.rope.factor=2.0", ("model", "config"), {"rope": {"factor": 2.0}}),
    ],
)
def test_overrides(override, place, value):
    spec = with_overrides(Spec(), override)
    assert getattr(getattr(spec, place[0]), place[1]) == value
    assert spec_from_dict(tomllib.loads(dump(spec))) == spec


@pytest.mark.parametrize(
    "override, place, value",
    [
        ("optimizer.kind=muon", ("optimizer", "kind"), "muon"),
        ("optimizer.momentum=0.9", ("optimizer", "options"), {"momentum": 0.9}),
        ("calibrate.examples=8", ("calibrate", "examples"), 8),
        ("calibrate.codec=nf4", ("calibrate", "codec"), "nf4"),
        ("method.also=head", ("method", "also"), ("head",)),
        ('method.also=["embeddings", "head"]', ("method", "also"), ("embeddings", "head")),
        ("method.patterns.attention.rank=4", ("method", "patterns"), {"attention": {"rank": 4}}),
        (
            "method.patterns={'re:.*down_proj' = {rank = 16, alpha = 8.0}, mlp = {rank = 2}}",
            ("method", "patterns"),
            {"re:.*down_proj": {"rank": 16, "alpha": 8.0}, "mlp": {"rank": 2}},
        ),
    ],
)
def test_optimizer_calibration_and_placement(override, place, value, tmp_path):
    spec = with_overrides(Spec(), override)
    assert getattr(getattr(spec, place[0]), place[1]) == value
    (tmp_path / "spec.toml").write_text(dump(spec), encoding="utf-8")
    assert load_spec(tmp_path) == spec and digest(spec) != digest(Spec())
    assert digest(load_spec(tmp_path)) == digest(spec)


def test_the_order_of_patterns_is_kept_since_the_first_counts():
    rules = {"v_proj": {"rank": 2}, "attention": {"rank": 4}, "all-linear": {"rank": 8}}
    spec = spec_from_dict(tomllib.loads(dump(spec_from_dict({"method": {"patterns": rules}}))))
    assert [*spec.method.patterns] == [*rules]
    turned = spec_from_dict({"method": {"patterns": dict(reversed(rules.items()))}})
    assert digest(turned) != digest(spec), "another order is another run"


@pytest.mark.parametrize(
    "table, wanted",
    [
        ({"method": {"also": ["heads"]}}, ['method.also = ["heads"]', "it must be one of embeddings, head"]),
        ({"method": {"patterns": 3}}, ["method.patterns = 3", "it must be a table"]),
        ({"calibrate": {"examples": 0}}, ["calibrate.examples = 0", "at least 1"]),
        ({"calibrate": {"codec": ""}}, ["calibrate.codec", "filled in"]),
        ({"calibrate": {"rows": 3}}, ["no key named `calibrate.rows`"]),
        ({"optimizer": {"kind": ""}}, ["optimizer.kind", "filled in"]),
        ({"optimiser": {"kind": "muon"}}, ["no section named `optimiser`", "did you mean `optimizer`?"]),
    ],
)
def test_optimizer_calibration_and_placement_that_are_wrong(table, wanted):
    (found,) = problems_of(spec_from_dict, table)
    assert all(fragment in found for fragment in wanted), found


@pytest.mark.parametrize(
    "override, wanted",
    [
        ("rank=3", "write method.rank=3"),
        ("lr=3", "write train.lr=3"),
        ("train.lr", "write train.lr=..."),
        ("trian.lr=3", "no section named `trian` in the override `trian.lr=3` (hint: did you mean `train`?"),
        ("train.lrr=3", "did you mean `train.lr`?"),
        ("train.lr=fast", 'train.lr = "fast"'),
        ("data.tasks=[fpb]", "quote the text inside"),
        ("run.overwrite=True", "it must be true or false: true"),
    ],
)
def test_wrong_overrides(override, wanted):
    assert wanted in problems_of(with_overrides, Spec(), override)[0]


def test_the_last_override_wins():
    assert with_overrides(Spec(), "run.seed=1", "run.seed=2").run.seed == 2


def test_dump_with_notes_explains_each_value_and_loads_back():
    text = dump(Spec(), notes=True)
    assert spec_from_dict(tomllib.loads(text)) == Spec()
    for section in SECTIONS:
        for key, _, help in specs.describe(section):
            assert f"# {help}" in text, f"{section}.{key}"


VALUES = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), VALUES, max_size=4))
@settings(max_examples=60, deadline=None)
def test_any_table_survives_dump_and_load(table):
    spec = spec_from_dict({"model": {"config": table}, "method": {"rank": 3, **{f"x{k}": v for k, v in table.items()}}})
    assert spec_from_dict(tomllib.loads(dump(spec))) == spec
    assert digest(spec_from_dict(tomllib.loads(dump(spec)))) == digest(spec)


def test_to_toml_refuses_what_toml_cannot_hold():
    with pytest.raises(TypeError):
        to_toml(None)


def test_digest_sees_what_determines_the_result_and_nothing_else():
    base = digest(Spec())
    for section, kind in SECTIONS.items():
        for f in dataclasses.fields(kind):
            if f.name == "options":
                continue
            other = replace(Spec(), **{section: {f.name: _another(section, f)}})
            assert other != Spec(), f"{section}.{f.name} was not changed"
            assert (digest(other) != base) == f.metadata.get("result", True), f"{section}.{f.name}"
    assert digest(replace(Spec(), method={"rank": 9})) != base
    free = {
        f"{name}.{f.name}"
        for name, kind in SECTIONS.items()
        for f in dataclasses.fields(kind)
        if not f.metadata.get("result", True)
    }
    assert {"run.out", "run.overwrite", "run.resume", "run.device", "log.wandb"} <= free
    assert not free & {"run.seed", "run.dtype", "train.lr", "model.name", "data.dir"}


def _another(section: str, f: dataclasses.Field):
    """A value of the field that is neither its default nor wrong."""
    default = getattr(getattr(Spec(), section), f.name)
    limits = f.metadata["limits"]
    if isinstance(default, bool):
        return not default
    if isinstance(default, int):
        return default + 1
    if isinstance(default, float):
        return 1.5 if (limits.get("high") or 0) > 1 else 0.5 if default != 0.5 else 0.25
    if isinstance(default, dict):
        return {"a": 1}
    if "choices" in limits:
        return (
            next(c for c in limits["choices"] if c != default) if isinstance(default, str) else [limits["choices"][0]]
        )
    if isinstance(default, tuple):
        return [2.5] if f.type == "tuple[float, ...]" else ["another"]
    return "cuda:1" if f.name == "device" else "another"


def test_a_field_added_later_leaves_the_digest_of_older_runs_alone():
    """Runs are named by the digest: one made before data.weights was there must be found again."""
    told = as_dict(Spec())
    told["method"]["patterns"] = []
    for name, kind in SECTIONS.items():
        for f in dataclasses.fields(kind):
            if f.metadata.get("added") or not f.metadata.get("result", True):
                told[name].pop(f.name, None)
    for name in ("structure", "parallel"):  # sections that came later
        assert told.pop(name) == {}
    assert digest(Spec()).startswith("3f3abdf7e2d2f73b")  # by which the first runs are keyed
    assert digest(Spec()) == hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


@pytest.mark.parametrize("weights", [[1.0, 2.0], [0.0], [-1.0], [2000.0], [float("nan")]])
def test_weights_that_do_not_fit_the_tasks(weights):
    (found,) = problems_of(spec_from_dict, {"data": {"tasks": ["tone"], "weights": weights}})
    assert "data.weights" in found and "one number above 0" in found


def test_replace_starts_another_kind_from_its_own_defaults():
    lora = replace(Spec(), method={"rank": 16, "targets": ["q_proj"]})
    full = replace(lora, method={"kind": "full"})
    assert full.method.options == {} and full.method.targets == ("q_proj",)
    assert replace(lora, method={"alpha": 1.0}).method.options == {"rank": 16, "alpha": 1.0}
    placed = replace(lora, method={"also": ["head"], "patterns": {"mlp": {"rank": 2}}})
    other = replace(placed, method={"kind": "full"})
    assert other.method.also == ("head",) and other.method.patterns == {}, "patterns speak of the old method's settings"
    muon = replace(Spec(), optimizer={"kind": "muon", "momentum": 0.9})
    assert replace(muon, optimizer={"kind": "adamw"}).optimizer.options == {}


def test_specs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Spec().train.lr = 1.0


def test_every_field_has_help_and_a_default_within_its_range():
    for name, kind in SECTIONS.items():
        for f in dataclasses.fields(kind):
            if f.name != "options":
                assert len(f.metadata["help"]) > 10, f"{name}.{f.name}"
    assert spec_from_dict(as_dict(Spec())) == Spec()


def test_resolve_builds_the_member_and_its_config():
    record, config = resolve(with_overrides(Spec(), "method.rank=3", "method.alpha=2").method)
    assert record.name == "lora" and config.rank == 3
    assert config.alpha == 2.0 and isinstance(config.alpha, float)


@pytest.mark.parametrize(
    "section, table, wanted",
    [
        ("method", {"kind": "doraa"}, ["no method named `doraa`", "did you mean `dora`?"]),
        ("codec", {"kind": "nf3"}, ["no codec named `nf3`", "did you mean `nf4`?"]),
        ("method", {"rnak": 3}, ["no key named `method.rnak` of method `lora`", "did you mean `method.rank`?"]),
        ("method", {"rank": "8"}, ['method.rank = "8" of method `lora` is text', "without quotes: 8"]),
        ("method", {"rank": 0}, ["method.rank must be a whole number of at least 1, got 0"]),
        ("method", {"dropout": 1.5}, ["method.dropout must be in [0, 1), got 1.5"]),
        ("method", {"kind": "full", "rank": 8}, ["no key named `method.rank` of method `full`", "it has no options"]),
        ("codec", {"kind": "none", "block": 8}, ["no key named `codec.block` of codec `none`"]),
    ],
)
def test_resolve_refuses(section, table, wanted):
    spec = spec_from_dict({section: table})
    found = problems_of(resolve, getattr(spec, section))
    for fragment in wanted:
        assert any(fragment in problem for problem in found), (fragment, found)


def test_resolve_tells_all_problems():
    assert len(problems_of(resolve, spec_from_dict({"method": {"rnak": 1, "rank": 0, "alpha": "x"}}).method)) == 3


def test_problems_flatten():
    inner = Problems([FinloraError("a"), FinloraError("b")])
    assert [p.message for p in Problems([inner, FinloraError("c")]).problems] == ["a", "b", "c"]


def test_no_default_is_not_finite():
    for section, table in as_dict(Spec()).items():
        for key, value in table.items():
            assert not isinstance(value, float) or math.isfinite(value), f"{section}.{key}"
