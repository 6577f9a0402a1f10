"""Bad input through the command line: one `error:` line a problem, each with a hint, status 2, and nothing on disk changed."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest

from finlora.cli import main
from finlora.spec import Spec, dump, replace
from finlora.tasks import finlora_prompt

QUESTION = "What is the sentiment of this news?"
LABELS = ("negative", "neutral", "positive")
NEWS = (
    "Net sales rose.",
    "Profit fell to EUR 3.4 mn.",
    "Guidance is unchanged.",
    "Costs went up.",
    "Orders were cut.",
    "The dividend was raised.",
)


def rows(n: int = 12) -> list[dict[str, str]]:
    """Sound rows in FinLoRA's form."""
    return [
        {"context": finlora_prompt(QUESTION, LABELS, f"{NEWS[k % 6]} Item {k}."), "target": LABELS[k % 3]}
        for k in range(n)
    ]


def write(path: Path, lines: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.fixture(scope="module")
def toy(make_model, tmp_path_factory):
    """A folder of a sound toy model: two Llama layers, context of 512 tokens."""
    from finlora.model import save

    folder = tmp_path_factory.mktemp("models") / "toy"
    save(make_model("llama"), folder)
    return folder


@pytest.fixture
def home(tmp_path, toy, monkeypatch):
    """A working folder with a sound spec, model and data; a test breaks one thing in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    shutil.copytree(toy, tmp_path / "toy")
    write(tmp_path / "data" / "fpb_train.jsonl", rows())
    write(tmp_path / "data" / "fpb_test.jsonl", rows())
    base = {
        "run": {"out": "out", "device": "cpu"},
        "model": {"name": "toy"},
        "data": {"dir": "data", "tasks": ["fpb"]},
        "train": {"steps": 2, "batch": 4},
    }
    (tmp_path / "run.toml").write_text(
        dump(replace(Spec(), **base, evaluate={"limit": 3, "ways": ["choose"]})), encoding="utf-8"
    )
    return tmp_path


def disk(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder: {path: bytes}, None for a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.fixture
def refused(home, capsys):
    """refused(*argv, wanted=[...]): the command ends with 2, says each fragment, and changes nothing on disk."""

    def run(*argv: str, wanted: list[str]) -> list[str]:
        before = disk(home)
        capsys.readouterr()
        status = main(argv)
        said = capsys.readouterr()
        lines = said.err.splitlines()
        assert status == 2, said.err
        assert lines and all(line.startswith("error: ") and " (hint: " in line for line in lines), said.err
        assert said.out == ""
        assert "Traceback" not in said.err
        for fragment in wanted:
            assert any(fragment in line for line in lines), (fragment, lines)
        assert disk(home) == before
        return lines

    return run


def test_the_sound_spec_has_no_problem(home, capsys):
    before = disk(home)
    assert main(["check", "run.toml"]) == 0
    said = capsys.readouterr()
    assert "run.toml: nothing wrong" in said.out and said.err == ""
    assert disk(home) == before


def test_unknown_key_names_the_near_match(refused):
    refused("finetune", "run.toml", "--set", "train.learing_rate=1", wanted=["no key named `train.learing_rate`"])
    refused(
        "finetune",
        "run.toml",
        "--set",
        "train.btach=1",
        wanted=["no key named `train.btach`", "did you mean `train.batch`?"],
    )
    refused(
        "finetune",
        "run.toml",
        "--set",
        "method.rnak=1",
        wanted=["no key named `method.rnak` of method `lora`", "did you mean `method.rank`?"],
    )
    refused("finetune", "run.toml", "--set", "tarin.lr=1", wanted=["no section named `tarin`", "did you mean `train`?"])


def test_wrong_type(refused):
    refused("finetune", "run.toml", "--set", "train.lr=fast", wanted=['train.lr = "fast"', "it must be a number"])
    refused(
        "finetune", "run.toml", "--set", "train.batch=1.5", wanted=["train.batch = 1.5", "it must be a whole number"]
    )
    refused(
        "finetune",
        "run.toml",
        "--set",
        'method.rank="8"',
        wanted=['method.rank = "8" of method `lora` is text', "without quotes: 8"],
    )


@pytest.mark.parametrize("rank", [0, -1])
def test_rank_below_one(refused, rank):
    refused(
        "finetune",
        "run.toml",
        "--set",
        f"method.rank={rank}",
        wanted=[f"method.rank must be a whole number of at least 1, got {rank}"],
    )


def test_rank_above_the_layer(refused):
    refused(
        "finetune",
        "run.toml",
        "--set",
        "method.rank=33",
        wanted=[
            "method.rank = 33 is above the layer model.layers.0.self_attn.q_proj, whose weight is 32 x 32",
            "use a rank of at most 32",
        ],
    )
    refused(
        "finetune",
        "run.toml",
        "--set",
        "method.rank=33",
        "--set",
        "method.targets=mlp.up_proj",
        wanted=["model.layers.0.mlp.up_proj, whose weight is 48 x 32"],
    )


def test_targets_that_match_nothing(refused):
    refused(
        "finetune",
        "run.toml",
        "--set",
        "method.targets=c_attn",
        wanted=['method.targets = "c_attn" names no layer of toy', "k_proj"],
    )


def test_missing_file(refused, home):
    refused("finetune", "runn.toml", wanted=["no spec file named `runn.toml`", "did you mean `run.toml`?"])
    refused("finetune", "run.toml", "--data", "nowhere", wanted=["no folder nowhere"])
    (home / "data" / "fpb_test.jsonl").unlink()
    refused("finetune", "run.toml", wanted=["no test file of task `fpb` in data", "it holds fpb_train.jsonl"])
    refused("report", "nowhere", wanted=["nowhere"])


def test_empty_file(refused, home):
    (home / "data" / "fpb_train.jsonl").write_bytes(b"")
    refused("finetune", "run.toml", wanted=["fpb_train.jsonl is empty"])


def test_half_written_json_line(refused, home):
    path = home / "data" / "fpb_train.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    refused("finetune", "run.toml", wanted=["fpb_train.jsonl:12: not a whole JSON object"])


def test_unknown_label(refused, home):
    write(home / "data" / "fpb_train.jsonl", [*rows(4), {"context": rows(1)[0]["context"], "target": "bullish"}])
    refused(
        "finetune",
        "run.toml",
        wanted=["fpb_train.jsonl:5: unknown label 'bullish'", "labels are negative, neutral, positive"],
    )


def test_label_list_empty(refused, home):
    write(
        home / "data" / "fpb_train.jsonl",
        [{"context": finlora_prompt(QUESTION, (), "Sales rose."), "target": "positive"}],
    )
    refused("finetune", "run.toml", wanted=["fpb_train.jsonl:1: the label list of the prompt is empty"])


def test_context_without_answer(refused, home):
    write(home / "data" / "fpb_train.jsonl", [*rows(2), {"context": rows(1)[0]["context"]}])
    refused("finetune", "run.toml", wanted=["fpb_train.jsonl:3: a context without an answer"])


def test_not_utf8(refused, home):
    path = home / "data" / "fpb_train.jsonl"
    path.write_bytes(path.read_bytes() + b'{"context": "caf\xe9", "target": "neutral"}\n')
    refused("finetune", "run.toml", wanted=["fpb_train.jsonl:13: byte 17 of the line, 0xe9, is not UTF-8"])
    (home / "run.toml").write_bytes(b"# caf\xe9\n")
    refused("finetune", "run.toml", wanted=["run.toml is not UTF-8 text (byte 5)"])


def test_row_longer_than_the_context(refused, home):
    write(
        home / "data" / "fpb_train.jsonl",
        [*rows(3), {"context": finlora_prompt(QUESTION, LABELS, "Costs went up. " * 150), "target": "negative"}],
    )
    refused(
        "finetune",
        "run.toml",
        wanted=[
            "example `fpb-3` of task `fpb` (train) has ",
            "more than the model's context of 512",
            'set data.too_long = "cut"',
        ],
    )
    refused("finetune", "run.toml", "--set", "data.row_tokens=64", wanted=["more than data.row_tokens = 64"])
    assert main(["check", "run.toml", "--set", "data.too_long=cut"]) == 0


def test_a_graded_row_needs_room_for_the_answer(refused, home):
    refused(
        "finetune",
        "run.toml",
        "--set",
        "evaluate.max_new=500",
        "--set",
        'evaluate.ways=["say"]',
        wanted=["of task `fpb` (test) has ", "no room for 500 new tokens in the model's context of 512"],
    )
    write(
        home / "data" / "fpb_test.jsonl",
        [{"context": finlora_prompt(QUESTION, LABELS, "Costs went up. " * 150), "target": "negative"}],
    )
    refused(
        "finetune",
        "run.toml",
        wanted=["example `fpb-0` of task `fpb` (test) has ", "more than the model's context of 512"],
    )
    refused(
        "evaluate", "-m", "toy", "-t", "fpb", "--data", "data", wanted=["example `fpb-0` of task `fpb` (test) has "]
    )


def test_unknown_task_method_codec(refused):
    refused("finetune", "run.toml", "--task", "fbp", wanted=["no task named `fbp`", "did you mean `fpb`?"])
    refused(
        "finetune",
        "run.toml",
        "--task",
        "tfns@finlroa",
        wanted=["no variant of task `tfns` named `finlroa`", "did you mean `finlora`?"],
    )
    refused(
        "finetune", "run.toml", "--set", "method.kind=dorra", wanted=["no method named `dorra`", "did you mean `dora`?"]
    )
    refused("finetune", "run.toml", "--set", "codec.kind=nf3", wanted=["no codec named `nf3`", "did you mean `nf4`?"])
    refused(
        "evaluate",
        "-m",
        "toy",
        "--codec",
        "int9",
        "-t",
        "fpb",
        "--data",
        "data",
        wanted=["no codec named `int9`", "did you mean `int8`?"],
    )


def test_all_problems_in_one_go(refused):
    lines = refused(
        "check",
        "run.toml",
        "--set",
        "method.rank=0",
        "--set",
        "codec.kind=nf3",
        "--set",
        "data.tasks=fbp",
        "--set",
        "model.name=./none",
        wanted=["nf3", "fbp", "./none", "got 0"],
    )
    assert len(lines) == 4


def test_folder_that_is_no_model(refused, home):
    refused(
        "finetune",
        "run.toml",
        "--set",
        "model.name=data",
        wanted=["model.name: `data` is not a model folder, it has no config.json"],
    )
    refused("finetune", "run.toml", "--set", "model.name=./none", wanted=["model.name: there is no folder `./none`"])
    shutil.copytree(home / "toy", home / "run" / "model")
    refused("generate", "Sales", "-m", "run", wanted=["`run` is not a model folder", "lies in run/model: name that"])
    (home / "toy" / "config.json").write_text('{"half": ', encoding="utf-8")
    refused("finetune", "run.toml", wanted=["config.json is not a model's configuration"])
    (home / "toy" / "model.safetensors").unlink()
    refused("generate", "Sales", "-m", "toy", wanted=["model.name: `toy` holds no weights (*.safetensors)"])


def test_pickled_weights(refused, home):
    (home / "toy" / "model.safetensors").rename(home / "toy" / "pytorch_model.bin")
    refused(
        "finetune",
        "run.toml",
        wanted=["`toy` holds pickled weights (pytorch_model.bin)", "convert them to safetensors first"],
    )
    refused("evaluate", "-m", "toy", "-t", "fpb", "--data", "data", wanted=["holds pickled weights"])


@pytest.fixture
def adapter(home, capsys):
    """A sound adapter of the toy model, to break."""
    from finlora.adapters import save_adapter
    from finlora.model import open_model
    from finlora.registry import pick

    model = open_model("toy", method="lora", method_config=pick("method", "lora").config(rank=4), dtype="float32", device="cpu")
    return save_adapter(model, home / "mine")


def damage(adapter: Path, what: str) -> None:
    """One of the ways in which an adapter's folder goes wrong."""
    from safetensors.torch import load_file, save_file

    file, config, own = adapter / "adapter_model.safetensors", adapter / "adapter_config.json", adapter / "finlora.json"
    fields, said = (json.loads(path.read_text(encoding="utf-8")) for path in (config, own))
    if what == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif what == "short":
        tensors = load_file(file)
        tensors.popitem()
        save_file(tensors, file)
    elif what == "base":
        own.write_text(json.dumps({**said, "base_sha256": "0" * 64, "base": "somewhere/else"}), encoding="utf-8")
    elif what == "rank":
        own.write_text(json.dumps({**said, "config": {**said["config"], "rank": 9}}), encoding="utf-8")
    elif what == "plain rank":
        own.unlink()
        config.write_text(json.dumps({**fields, "r": 9}), encoding="utf-8")
    elif what == "kind":
        own.unlink()
        config.write_text(json.dumps({**fields, "peft_type": "OFT"}), encoding="utf-8")
    elif what == "method":
        own.write_text(json.dumps({**said, "method": "lorra"}), encoding="utf-8")
    elif what == "json":
        own.write_text("{", encoding="utf-8")


@pytest.mark.parametrize(
    "what, wanted",
    [
        ("cut", ["adapter_model.safetensors` is not a readable safetensors file"]),
        ("short", ["holds no `lora_"]),
        ("base", ["`mine` was trained over another base", "open it with `somewhere/else`"]),
        ("rank", ["finlora.json`: adapter_config.json says r = 4 and this file 9", "one of the two was edited"]),
        ("plain rank", ["_proj A has shape (4, ", "this model needs (9, "]),
        ("kind", ["is of PEFT's kind `OFT`"]),
        ("method", ["no method named `lorra`", "did you mean `lora`?"]),
        ("json", ["finlora.json` is not JSON"]),
    ],
)
def test_adapter_that_is_damaged_or_another_s(refused, adapter, what, wanted):
    damage(adapter, what)
    refused("generate", "Profit rose", "--model", "toy", "--adapter", "mine", "--codec", "none", "--device", "cpu", wanted=wanted)
    refused("export", "merged", "mine", "--out", "exported", "--model", "toy", "--device", "cpu", wanted=wanted)
    # a folder is not claimed by what never began, so that the mended one may write to it
    refused("evaluate", "-m", "toy", "-a", "mine", "-t", "fpb", "--data", "data", "--out", "graded", "--set", "run.device=cpu", wanted=wanted)
    refused("finetune", "run.toml", "--set", "model.adapter=mine", "--out", "tuned", wanted=wanted)


def test_adapter_over_a_codec_that_is_none(refused, adapter):
    said = json.loads((adapter / "finlora.json").read_text(encoding="utf-8"))
    (adapter / "finlora.json").write_text(json.dumps({**said, "codec": "nf5"}), encoding="utf-8")
    wanted = ["mine/finlora.json`: no codec named `nf5`", "did you mean `nf4`?"]
    refused("generate", "Sales", "-m", "toy", "-a", "mine", wanted=wanted)
    refused("evaluate", "-m", "toy", "-a", "mine", "-t", "fpb", "--data", "data", "--out", "graded", wanted=wanted)
    refused("export", "merged", "mine", "--out", "exported", "--model", "toy", wanted=wanted)


def test_what_would_have_no_effect_is_refused(refused, adapter):
    says = "has no effect on `finlora "
    refused("evaluate", "-m", "toy", "-t", "fpb", "--data", "data", "--set", "train.lr=1", "--set", "method.rank=3", "--set", "data.max_train=4",
            wanted=[f"train.lr {says}evaluate`", f"method.rank {says}evaluate`", f"data.max_train {says}evaluate`"])  # fmt: skip
    refused("finetune", "run.toml", "--set", "train.compile=true", "--set", 'data.text=["a.txt"]', wanted=[f"train.compile {says}finetune`", f"data.text {says}finetune`", "for `finlora pretrain`"])
    refused("pretrain", "run.toml", "--set", 'model.config={family="gpt2"}', "--set", "codec.kind=nf4", "--set", "method.rank=3", wanted=[f"codec.kind {says}pretrain`", f"method.rank {says}pretrain`"])
    beside = "has no effect beside model.adapter, which goes on as it was saved: "
    for change, wanted in (
        ("method.kind=pissa", 'it is of method.kind = "lora"'), ("method.rank=5", "it has rank = 4"), ("method.targets=attention", "it stands on other layers"),
        ("method.patterns={attention={rank=2}}", "its layers have other settings"), ('method.also=["embeddings"]', "it trained nothing whole"),
    ):  # fmt: skip
        refused("finetune", "run.toml", "--set", "model.adapter=mine", "--set", change, wanted=[beside + wanted])
    refused("finetune", "run.toml", "--set", "method.kind=peft:oft", "--set", "method.patterns={attention={r=3}}", "--set", 'method.also=["embeddings"]', "--set", "optimizer.kind=lora_pro",
            wanted=["method.patterns has no effect with", "method.also has no effect with", "steps pairs of low-rank factors"])  # fmt: skip
    refused("evaluate", "-m", "toy", "-t", "fpb", "--data", "data", "--codec", "nf4_icq", "--set", "codec.criterion=act_mse", wanted=["encodes by calibration, which `finlora evaluate` does not do"])


def test_adapter_that_is_none(refused, home):
    refused(
        "evaluate",
        "-m",
        "toy",
        "-a",
        "data",
        "-t",
        "fpb",
        "--data",
        "data",
        wanted=["model.adapter: `data` is not an adapter folder"],
    )
    (home / "old").mkdir()
    (home / "old" / "adapter_config.json").write_text("{}", encoding="utf-8")
    (home / "old" / "adapter_model.bin").write_bytes(b"\x80")
    refused(
        "generate",
        "Sales",
        "-m",
        "toy",
        "-a",
        "old",
        wanted=["holds no adapter_model.safetensors", "convert them to safetensors first"],
    )


@pytest.mark.parametrize("verb", ["finetune", "pretrain"])
def test_output_folder_of_another_run(refused, home, verb):
    other = home / "out"
    other.mkdir()
    (other / "spec.toml").write_text(dump(replace(Spec(), run={"seed": 7})), encoding="utf-8")
    (other / "receipt.json").write_text("{}", encoding="utf-8")
    refused(
        verb, "run.toml", wanted=["run.out: `out` holds another run, with a different spec", "run.overwrite = true"]
    )
    (other / "spec.toml").unlink()
    refused(verb, "run.toml", wanted=["run.out: `out` holds files that are not a run's (`receipt.json`)"])


def test_output_folder_that_is_a_file(refused, home):
    refused("finetune", "run.toml", "--out", "run.toml", wanted=["run.out: `run.toml` is a file"])
    refused("finetune", "run.toml", "--out", "run.toml/deep", wanted=["run.out: `"])


def test_gpu_where_none_is(refused, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(
        "finetune",
        "run.toml",
        "--set",
        "run.device=cuda",
        wanted=["run.device is `cuda` but this machine has 0 CUDA devices"],
    )
    refused("generate", "Sales", "-m", "toy", "--device", "cuda:1", wanted=["run.device is `cuda:1`"])
    refused(
        "finetune",
        "run.toml",
        "--set",
        "run.device=gpu",
        wanted=['run.device = "gpu"', "one of auto, cpu, mps, cuda, cuda:0"],
    )


def test_hub_id_while_offline(refused):
    refused(
        "finetune",
        "run.toml",
        "--set",
        "model.name=org/model",
        wanted=["`org/model` is no local folder, and finlora is offline", "model.online = true"],
    )
    refused("evaluate", "-m", "org/model", "-t", "fpb", "--data", "data", wanted=["finlora is offline"])


@pytest.mark.parametrize("codec", ["int8", "nf4", "nf4_dq"])
def test_full_over_a_lossy_codec(refused, codec):
    refused(
        "finetune",
        "run.toml",
        "--set",
        "method.kind=full",
        "--set",
        f"codec.kind={codec}",
        wanted=[f'cannot do so over the lossy codec.kind = "{codec}"', 'write codec.kind = "none"'],
    )


def test_patterns_that_are_wrong(refused):
    def patterns(text: str, *wanted: str) -> list[str]:
        return refused("finetune", "run.toml", "--set", "method.patterns=" + text, wanted=[*wanted])

    patterns("{q_proj = {rnak = 4}}", "no key named `method.rnak` in method.patterns of `q_proj`", "did you mean `method.rank`?")
    patterns('{q_proj = {rank = "4"}}', 'method.rank = "4" in method.patterns of `q_proj` is text', "without quotes: 4")
    patterns("{q_proj = {rank = 0}}", "method.patterns of `q_proj`: rank must be a whole number of at least 1")
    patterns("{q_proj = 4}", "method.patterns of `q_proj` must be a table of settings, got 4", "write {rank = 4}")
    patterns("{q_prj = {rank = 4}}", "method.patterns: the rule `q_prj` names no layer of toy", "q_proj")
    patterns("{'re:([' = {rank = 4}}", "method.patterns: `re:([` is not a regular expression")
    patterns("{up_proj = {rank = 33}, mlp = {rank = 34}}", "method.patterns of `", ": rank = ", "is above the layer model.layers.0.mlp.")
    lines = refused(
        "finetune", "run.toml", "--set", "method.patterns={mlp = {rank = 4}, q_proj = {rnak = 1}}", "--set", "method.targets=attention",
        wanted=["the rule `mlp` names no layer that method.targets names", "`method.rnak`"],
    )  # fmt: skip
    assert len(lines) == 2


def test_a_pattern_may_lower_the_rank_of_the_one_small_layer(home):
    assert main(["check", "run.toml", "--set", "method.rank=32", "--set", "method.patterns={mlp = {rank = 4}}"]) == 0


def test_targets_that_are_no_regular_expression(refused):
    refused("finetune", "run.toml", "--set", "method.targets=re:([", wanted=["method.targets: `re:([` is not a regular expression"])


def test_also_optimizer_and_calibration_that_are_not(refused):
    refused("finetune", "run.toml", "--set", "method.also=heads", wanted=['method.also = ["heads"]', "one of embeddings, head"])
    refused("finetune", "run.toml", "--set", "optimizer.kind=adamv", wanted=["no optimizer named `adamv`", "did you mean `adamw`?"])
    refused("finetune", "run.toml", "--set", "optimizer.kind=muon", "--set", "optimizer.momentun=0.5",
            wanted=["no key named `optimizer.momentun` of optimizer `muon`", "did you mean `optimizer.momentum`?"])  # fmt: skip
    refused("finetune", "run.toml", "--set", "calibrate.codec=nf3", wanted=["no codec named `nf3`", "did you mean `nf4`?"])


def test_methods_and_optimizers_that_do_not_go_together(refused, home):
    """Every optimiser that steps pairs, with every method that has none."""
    from finlora import registry
    from finlora.traits import traits

    paired = [name for name in registry.names("optimizer") if registry.pick("optimizer", name).paired]
    without = [name for name in registry.names("method") if not traits(registry.pick("method", name)).paired]
    assert paired and "full" in without and "lora" not in without
    for method in without:
        refused("finetune", "run.toml", "--set", f"method.kind={method}", "--set", f"optimizer.kind={paired[0]}",
                wanted=[f'optimizer.kind = "{paired[0]}" steps pairs of low-rank factors, and method.kind = "{method}" trains none'])  # fmt: skip
    for optimizer in paired:
        assert main(["check", "run.toml", "--set", f"optimizer.kind={optimizer}"]) == 0


def test_methods_over_codecs_they_cannot_stand_on(monkeypatch):
    import dataclasses

    from finlora import check, registry

    lora = dataclasses.replace(registry.pick("method", "lora"), over="lossless")
    problems: list = []
    check._over(lora, registry.pick("codec", "none"), problems)
    assert problems == []
    check._over(lora, registry.pick("codec", "nf4"), problems)
    assert [str(p) for p in problems] == [
        'method.kind = "lora" is exact over a lossless base only, and not over the lossy codec.kind = "nf4"'
        ' (hint: write codec.kind = "none", or choose another method)'
    ]


def test_a_method_that_calibrates_is_for_finetune(home):
    from finlora import registry
    from finlora.check import check
    from finlora.spec import load_spec

    needing = [name for name in registry.names("method") if (m := registry.pick("method", name)).needs(m.config())]
    assert needing
    for name in needing:
        spec = load_spec("run.toml", [f"method.kind={name}"])
        assert check(spec) == []
        (problem,) = check(spec, "doctor")
        assert f'method.kind = "{name}" begins from calibration, which `finlora doctor` does not do' in str(problem)


def test_rows_that_do_not_ship(refused):
    refused(
        "evaluate", "-m", "toy", "-t", "fpb", wanted=["the rows of task `fpb` do not ship with finlora", "--data DIR"]
    )


def test_pretraining_from_nothing(refused, home):
    refused("pretrain", "run.toml", "--set", "model.name=finlora/base", wanted=["data.text is empty"])
    further = ("pretrain", "run.toml", "--set", "data.text=text.txt")  # the model that it names goes on
    refused(*further, "--set", "structure.kind=lowrank", "--set", "method.kind=eva", wanted=["structure.kind has no effect", "begins from a calibration"])
    refused(*further, "--set", "codec.kind=nf4", "--set", "method.kind=full", wanted=["trains the weights themselves"])
    refused(*further, "--set", "data.row_tokens=4096", wanted=["data.row_tokens = 4096 is above the", "positions of"])
    shape = ("pretrain", "run.toml", "--set", "data.text=text.txt", "--set", 'model.config={family="gpt2", size="124m"}')
    refused(*shape, "--set", "structure.kind=lowrank", "--set", "structure.rank=800", wanted=["rank", "768"])
    refused(*shape, "--set", "structure.kind=lowrank", "--set", "structure.targets=re:(", wanted=["`re:(` is not a regular expression"])
    refused(*shape, "--set", "structure.kind=lowrank", "--set", "structure.patterns={attention=3}", wanted=["structure.patterns of `attention` must be a table"])
    refused(*shape, "--set", "structure.kind=lowrank", "--set", "structure.patterns={attention={rank=0}}", wanted=["structure.patterns of `attention`"])
    refused(*shape, "--set", "structure.kind=lowrank", "--set", "structure.compression=80", wanted=["cannot be reached", "at most"])
    refused(*shape, "--set", "structure.kind=lowrank", "--set", "structure.compression=2", "--set", "structure.keep=0.5", wanted=["structure.keep = 0.5 and structure.compression = 2.0 in run.toml both set the ranks"])
    refused(*shape, "--set", "structure.kind=lowrank", "--set", "structure.rank=4", "--set", "structure.keep=0.5", wanted=["structure.keep = 0.5 and structure.rank = 4 in run.toml both set the ranks"])
    refused(*shape, "--set", "structure.kind=lowrank", "--set", "structure.rank=4", "--set", "structure.rewarm=5", wanted=["structure.rewarm = 5 has no effect without refactor"])
    refused(*shape, "--set", "structure.keep=0.5", wanted=["leaves the linears as they are"])
    refused(*shape, "--set", "structure.kind=lowrank", "--set", "structure.guided=0.5", "--set", "train.patience=2", "--set", "data.validation=0.1", wanted=["keep its guide"])
    refused(*shape, "--set", "data.join=true", wanted=["without data.shards"])
    refused("pretrain", "run.toml", "--set", "data.text=text.txt", "--set", 'model.config={family="gpt2", size="2b"}', wanted=["size", "1.5b"])
    refused("pretrain", "run.toml", "--set", "data.text=text.txt", "--set", 'model.config={family="gpt2", n_embd=65, n_head=2}', wanted=["model.config is no gpt2"])
    for config, *wanted in (
        ('n_embed=64', "model.config.n_embed", "did you mean `model.config.n_embd`"), ('n_embd="64"', "model.config is no gpt2", "got str"),
        ("n_layer=2.5", "model.config is no gpt2", "2.5"), ("n_layer=0", "model.config.n_layer = 0", "at least 1"), ("attn_pdrop=nan", "attn_pdrop = nan"),
        ('activation_function="gelooo"', "model.config is no gpt2", "gelooo"),
    ):  # fmt: skip
        refused(*shape[:-1], f'model.config={{family="gpt2", {config}}}', wanted=wanted)
    refused(*shape[:-1], 'model.config={family="llama", hidden_size=64, num_attention_heads=3}', wanted=["multiple of the number of attention heads"])
    refused(*shape, "--set", "data.row_tokens=2048", wanted=["data.row_tokens = 2048 is above the 1024 positions"])
    refused(*shape, "--set", "data.workers=2", wanted=["data.workers has no effect without data.shards"])
    assert sum("structure" in line for line in refused(*shape, "--set", "structure.kind=lowrnk", "--set", "structure.keep=0.5", wanted=["did you mean `lowrank`"])) == 1
    refused("check", "run.toml", "--set", "method.alpha=inf", wanted=["method.alpha = inf"])
    (home / "text.txt").write_bytes(b"")
    refused("pretrain", "run.toml", "--set", "data.text=text.txt", wanted=["text.txt` is empty"])
    refused("pretrain", "run.toml", "--set", "data.text=none.txt", wanted=["there is no file or folder `none.txt`"])


def test_settings_of_pretraining_that_would_have_no_effect(refused, home):
    order = ["pretrain", "run.toml", "--set", "data.text=text.txt", "--set", 'model.config={family="gpt2", size="124m"}']

    def wrong(*sets: str, wanted: list[str]) -> None:
        refused(*order, *(word for one in sets for word in ("--set", one)), wanted=wanted)

    wrong("structure.targets=mlp", wanted=["targets and patterns have no effect"])
    wrong("structure.patterns={mlp={keep=0.5}}", wanted=["targets and patterns have no effect"])
    wrong("parallel.schedule=gpipe", wanted=["parallel.schedule has no effect with parallel.pipeline = 1"])
    wrong("parallel.microbatches=4", wanted=["parallel.microbatches has no effect"])
    wrong("structure.kind=lowrank", "structure.compression=0.5", wanted=["structure.compression = 0.5 in run.toml would make the model larger"])
    wrong('model.config={family="gpt2", vocab_size=5000}', wanted=["model.config.vocab_size has no effect"])
    wrong("model.tokenizer=toy", "model.vocab_size=9000", wanted=["model.vocab_size = 9000, and the tokenizer in `toy` has"])
    (home / "tokens").mkdir()
    (home / "tokens" / "manifest.json").write_text("{}")
    order[3] = "data.text=[]"
    for key, value in (("dedup", "exact"), ("max_tokens", "10"), ("sources", '["x"]'), ("exclude_sources", '["x"]'), ("validation", "0.3")):
        wrong("data.shards=tokens", f"data.{key}={value}", wanted=[f"data.{key} has no effect without data.text"])


def test_what_pretraining_would_trip_over_is_told_before_it_reads(refused, home):
    (home / "text.txt").write_text("Net sales rose and costs went up. " * 99)
    order = ["pretrain", "run.toml", "--set", "data.text=text.txt", "--set", 'model.config={family="gpt2", n_embd=32, n_layer=3, n_head=2, n_positions=128}', "--set", "data.row_tokens=64"]

    def wrong(*sets: str, wanted: list[str]) -> None:
        refused(*order, *(word for one in sets for word in ("--set", one)), wanted=wanted)

    for more in ([], ["structure.kind=cola", "structure.keep=0.5"], ["structure.kind=lowrank", "structure.keep=0.5", "structure.rounded=nf4"]):
        wrong("optimizer.kind=loro", *more, wanted=['optimizer.kind = "loro" steps pairs of factors', "finlora list structures"])
    wrong("optimizer.kind=muon", "parallel.data=fsdp", wanted=['optimizer.kind = "muon" steps whole matrices'])
    order[0] = "check"  # `pretrain` would first ask for as many processes
    wrong("parallel.pipeline=4", wanted=["4 stages, and the model has 3 blocks"])
    wrong("parallel.pipeline=2", "parallel.schedule=interleaved", wanted=["4 stages, and the model has 3 blocks"])
    order[0] = "pretrain"
    wrong("data.shards=tokens", 'data.text_weights={"text.txt"="abc"}', wanted=["data.text_weights of `text.txt` must be a number"])
    wrong("data.shards=tokens", 'data.text_weights={"text.txt"=-1}', wanted=["the weight of `data.text_weights.text.txt` is -1"])
    for place in ("out/model", "out/checkpoints/tokens", "out"):
        wrong(f"data.shards={place}", wanted=[f"data.shards: the run would write over `{place}`"])
    wrong('model.config={family="llama", hidden_size=32, num_attention_heads=4, num_key_value_heads=3}', wanted=["num_attention_heads = 4 is no multiple of num_key_value_heads = 3"])
    (home / "words").mkdir()
    (home / "words" / "tokenizer.json").write_text("{")
    wrong("model.tokenizer=words", wanted=["cannot read the tokenizer in `words`"])


@pytest.fixture
def broken(home):
    """broken(what) -> the name of a copy of the toy model with that fault."""

    def make(what: str) -> str:
        from safetensors.torch import load_file, save_file

        folder = home / "broken"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(home / "toy", folder)
        tensors = load_file(folder / "model.safetensors")
        if what == "mute":
            for file in folder.glob("*token*"):
                file.unlink()
        elif what == "foreign":  # more tokens than embeddings
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 300}))
            tensors = {k: v[:300].clone() if k in ("model.embed_tokens.weight", "lm_head.weight") else v for k, v in tensors.items()}
        else:
            tensors[what].view(-1)[3] = float("nan")
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return "broken"

    return make


@pytest.mark.parametrize(
    "what, wanted",
    [("mute", "tokenizer"), ("foreign", "embeddings 300 rows"), ("model.norm.weight", "`model.norm.weight`: a weight of shape (32,) holds 1 value(s) that are NaN"),
     ("model.embed_tokens.weight", "`model.embed_tokens.weight`")],
)  # fmt: skip
def test_a_model_that_cannot_be_trusted_is_not_opened(refused, broken, what, wanted):
    name = broken(what)
    refused("generate", "Net sales", "-m", name, wanted=[wanted])
    refused("compress", name, "--calibrate", "text.txt", "-o", "small", wanted=[wanted])


def test_an_encoder_is_not_trained(home, capsys, tokenizer):
    import transformers

    config = transformers.BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    transformers.BertForMaskedLM(config).save_pretrained(home / "bert")
    tokenizer.save_pretrained(home / "bert")
    (home / "text.txt").write_text("Net sales rose and costs went up. " * 99)
    (home / "heal.toml").write_text('[run]\nout = "h"\n[data]\ntext = ["text.txt"]\nrow_tokens = 64\n[train]\nsteps = 1\n')
    for more in ([], ["--set", "method.kind=full"]):
        assert main(["pretrain", "heal.toml", "--set", "model.name=bert", *more]) == 2
        assert "is no causal language model" in capsys.readouterr().err
    assert not (home / "h" / "model").exists() and not (home / "h" / "adapter").exists()


def test_factors_of_a_dense_model(home, capsys):
    (home / "text.txt").write_text("Net sales rose and costs went up. " * 99)
    (home / "heal.toml").write_text('[run]\nout = "h"\n[data]\ntext = ["text.txt"]\nrow_tokens = 64\n[train]\nsteps = 1\n')
    assert main(["pretrain", "heal.toml", "--set", "model.name=toy", "--set", "method.factors=true"]) == 2
    assert "method.factors: `toy` has no linears of two factors" in capsys.readouterr().err


def test_usage_errors(refused):
    refused("finetun", "run.toml", wanted=["No such command 'finetun'"])
    refused("finetune", wanted=["Missing argument 'SPEC'"])
    refused("finetune", "run.toml", "--bogus", wanted=["--bogus"])
    refused("list", "fish", wanted=["no list named `fish`"])
    refused("generate", " ", "-m", "toy", wanted=["the prompt is empty"])
    refused("generate", "x", "--temperature", "-1", wanted=["--temperature"])


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def left_behind(folder: Path) -> list[str]:
    """Half-written things under a folder."""
    return [str(p) for p in folder.rglob("*") if p.name.endswith((".part", ".old", ".tmp"))]


def test_disk_full_while_saving_a_checkpoint(home, capsys, monkeypatch):
    monkeypatch.setattr("finlora.checkpoint.save_file", full_disk)
    assert main(["finetune", "run.toml"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert (
        "cannot write `out/checkpoints/" in lines[0]
        and "No space left on device" in lines[0]
        and "(hint: free some disk space" in lines[0]
    )
    assert (
        not left_behind(home)
        and not (home / "out" / "receipt.json").exists()
        and not (home / "out" / "adapter").exists()
    )


def test_disk_full_while_saving_the_adapter_keeps_the_checkpoint(home, capsys, monkeypatch):
    monkeypatch.setattr("finlora.adapters.save_file", full_disk)
    assert main(["finetune", "run.toml"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not left_behind(home) and not (home / "out" / "adapter").exists()
    monkeypatch.undo()
    monkeypatch.chdir(home)
    assert main(["finetune", "run.toml"]) == 0  # goes on from the checkpoint
    assert (home / "out" / "adapter" / "adapter_model.safetensors").is_file() and (
        home / "out" / "receipt.json"
    ).is_file()


def test_disk_full_while_writing_the_receipt(home, capsys, monkeypatch):
    import os

    real = os.fsync

    def fsync(fd: int) -> None:
        if "receipt.json" in os.readlink(f"/proc/self/fd/{fd}"):
            full_disk()
        real(fd)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to see which file is flushed")
    monkeypatch.setattr(os, "fsync", fsync)
    assert main(["finetune", "run.toml"]) == 2
    said = capsys.readouterr().err
    assert "receipt.json" in said and "Traceback" not in said
    assert not left_behind(home) and not (home / "out" / "receipt.json").exists()
