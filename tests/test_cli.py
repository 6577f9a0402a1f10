"""The command line: help that reads well, lists, the resolved spec, progress, and how a command ends."""

from __future__ import annotations

import errno
import io
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from rich.console import Console

import finlora
from finlora import receipt, registry
from finlora.cli import app, main, shared
from finlora.cli.progress import Progress, sparkline
from finlora.errors import FinloraError, Problems
from finlora.spec import Spec, load_spec, spec_from_dict

COMMANDS = tuple(info.name for info in app.registered_commands)


@pytest.fixture(autouse=True)
def wide(monkeypatch, tmp_path):
    """A terminal of 100 columns, without colour, in a folder of its own."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    for command in COMMANDS:
        assert re.search(rf"^│ {command} ", said, re.MULTILINE), command
    assert [said.index(title) for title in ("Start here", "Train and grade", "Look closer")] == sorted(
        said.index(t) for t in ("Start here", "Train and grade", "Look closer")
    )


def test_the_bare_command_shows_help(capsys):
    assert main([]) == 0
    assert "Usage: finlora" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command, capsys):
    assert main([command, "--help"]) == 0
    said = capsys.readouterr().out
    assert f"Usage: finlora {command}" in said
    assert "[dim]" not in said
    if command not in ("quickstart",):
        assert f"finlora {command} " in said.split("Usage:")[1].partition("\n")[2], "an example"


def test_no_command_was_lost():
    assert {"quickstart", "finetune", "evaluate", "pretrain", "generate", "report", "list", "check", "doctor"} <= set(COMMANDS)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"finlora {finlora.__version__}\n"


def test_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "finlora", "--version"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(Path(finlora.__file__).parents[1]), "PATH": ""},
    )
    assert (done.returncode, done.stdout) == (0, f"finlora {finlora.__version__}\n")


@pytest.mark.parametrize("family", ["methods", "codecs", "optimizers", "tasks"])
def test_list_as_json(family, capsys):
    assert main(["list", family, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    plain = [row["name"] for row in rows if "@" not in row["name"]]
    assert plain == list(registry.names(family.removesuffix("s")))
    for row in rows:
        assert row["name"] and row["about"] and "\n" not in row["about"]
        assert registry.pick(family.removesuffix("s"), row["name"])


def test_list_tells_bits_labels_and_variants(capsys):
    main(["list", "codecs", "--json"])
    bits = {row["name"]: (row["bits_per_weight"], row["lossless"]) for row in json.loads(capsys.readouterr().out)}
    assert bits["nf4"] == (4.5, False) and bits["none"] == (32.0, True)
    assert abs(bits["nf4_dq"][0] - 4.127) < 0.001  # 4 + 8/64 + 32/(64*256), 1024 x 1024 weights
    main(["list", "tasks", "--json"])
    tasks = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert tasks["tfns"]["labels"] == ["negative", "neutral", "positive"] and "tfns@finlora" in tasks
    main(["list", "methods", "--json"])
    methods = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert methods["lora"]["options"] == {"rank": 8, "alpha": 16.0, "dropout": 0.0}
    assert not methods["full"]["adapter"] and methods["dora"]["adapter"]


@pytest.mark.parametrize("family", ["methods", "codecs", "optimizers", "tasks", "codec"])
def test_list_for_people(family, capsys):
    assert main(["list", family]) == 0
    said = capsys.readouterr().out
    for name in registry.names(family.removesuffix("s")):
        assert re.search(rf"^{name} ", said, re.MULTILINE), name
    assert all(len(line) <= 100 for line in said.splitlines())


def test_list_tells_how_each_method_leaves_the_house(capsys):
    """What is told of a method is true of an adapter of it, built here over another weight and another codec."""
    import torch

    from finlora.linear import EDIT, Route, Stats, build, over_original

    main(["list", "methods", "--json"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["lora"]["export"] == "LoRA of the same rank" and rows["lora"]["extra_state"] == []
    assert rows["dora"]["export"] == "merged weights only" and rows["dora"]["extra_state"] == ["m"]
    assert rows["full"]["export"] == "the weights themselves" and rows["full"]["over"] == "lossless"
    codec, draw = registry.pick("codec", "none"), torch.Generator().manual_seed(1)
    W, x = torch.randn(40, 56, generator=draw), torch.randn(128, 56, generator=draw)
    stats = Stats(x.T @ x / 128, torch.randn(40, 56, generator=draw), 128)
    for name, row in rows.items():
        method = registry.pick("method", name)
        assert row["paper"] == method.paper and row["refreshes"] == (method.refresh is not None)
        linear = build(W, codec=codec, codec_config=codec.config(), method=method, method_config=method.config(), generator=draw, stats=stats,
                       dtype=torch.float32, route=Route())  # fmt: skip
        params = dict(linear.adapters["default"].items())
        assert set(params) - {"A", "B"} <= set(row["extra_state"])
        form = over_original(method, method.config(), params)
        assert (form is None) == (row["export"] in ("merged weights only", "the weights themselves")) == (not row["to_lora"]), name
        if EDIT[0] in params:
            assert "over the original weights" in row["export"], name
        if row["export"].startswith("LoRA of twice"):
            assert len(form[0]) == 2 * len(params["A"]), name
        if row["export"] == "LoRA of the same rank" and "A" in params:
            assert len(form[0]) == len(params["A"]), name
        assert ("renewal" in row["export"]) <= row["refreshes"], name
        for need in row["needs"]:
            assert getattr(stats, need) is not None


def test_list_tells_of_codecs_and_optimizers(capsys):
    main(["list", "codecs", "--json"])
    for row in json.loads(capsys.readouterr().out):
        assert {"paper", "bits_per_weight", "lossless", "needs"} <= row.keys()
        assert row["lossless"] or row["paper"], row["name"]
    main(["list", "optimizers", "--json"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert all(row["paper"] for row in rows.values())
    assert rows["adamw"]["options"] == {} and not rows["adamw"]["paired"]
    assert any(row["invariant"] for row in rows.values())


def test_an_unknown_list_names_those_there_are(capsys):
    assert main(["list", "optimiser"]) == 2
    assert "no list named `optimiser` (hint: did you mean `optimizers`?)" in capsys.readouterr().err


def test_usual_rate():
    """5e-5 * 10 * (2000 / H)^P, P = 0.781 for Llama and 0.0775 for Qwen; no rank in it."""
    from finlora.check import usual_rate

    assert usual_rate({"model_type": "llama", "hidden_size": 2000}) == pytest.approx(5e-4)
    assert usual_rate({"model_type": "llama", "hidden_size": 4096}) == pytest.approx(2.855e-4, rel=1e-3)
    assert usual_rate({"model_type": "qwen3", "hidden_size": 4096}) == pytest.approx(4.730e-4, rel=1e-3)
    assert usual_rate({"model_type": "llama", "hidden_size": 64}) is None  # far outside what was fitted
    assert usual_rate({"model_type": "gpt2", "n_embd": 1600}) is None and usual_rate({}) is None


@pytest.mark.parametrize(
    "overrides, wanted",
    [
        ([], None),
        (["train.lr=5e-5"], "train.lr = 5e-05 is far from 2.9e-04"),
        (["train.lr=5e-3"], "about ten times the rate of full fine-tuning, whatever the rank"),
        (["train.lr=1e-5"], "train.lr = 1e-05 is low for an adapter; 0.0001 to 0.001 is usual"),
        (["train.lr=0.1"], "train.lr = 0.1 is high for an adapter"),
        (["method.kind=pissa"], 'method.kind = "pissa" begins with parts of the weight in its factors'),
        (["method.kind=pissa", "train.lr=4e-5"], None),
        (["method.kind=pissa", "train.lr=1e-6"], "train.lr = 1e-06 is low for such a start; 2e-05 to 0.0002 is usual"),
        (["method.kind=full", "train.lr=2e-5"], None),
        (["method.kind=full", "train.lr=2e-3"], "is high for a method that trains every weight"),
        (["method.targets=attention"], "method.targets names attention alone"),
        (['method.targets=["q_proj", "v_proj"]'], "method.targets names attention alone"),
        (['method.targets=["q_proj", "up_proj"]'], None),
        (["method.targets=mlp"], None),
        (["method.rank=64"], "the strength alpha / rank = 0.25 falls as the rank grows; a method whose scale falls as 1/sqrt(rank), or alpha = 64"),
        (["method.rank=64", "method.alpha=64"], None),
        (["method.rank=64", "method.kind=rslora"], None),
        (["method.rank=32"], None),
        (["optimizer.kind=lora_rite"], "train.clip = 1 measures gradients as the factors have them"),
        (["optimizer.kind=lora_rite", "train.clip=0.0"], None),
    ],
)
def test_advice(overrides, wanted, tmp_path):
    """Over a Llama of width 4096, whose usual rate for LoRA is 2.9e-4."""
    from finlora.check import advice
    from finlora.spec import with_overrides

    folder = tmp_path / "llama"
    folder.mkdir()
    config = {"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 2, "intermediate_size": 11008}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").touch()
    spec = with_overrides(Spec(), f"model.name={folder}", *overrides)
    said = advice(spec)
    assert len(said) == (wanted is not None), said
    assert wanted is None or wanted in said[0]
    assert all("\n" not in line for line in said) and with_overrides(Spec(), f"model.name={folder}", *overrides) == spec


def test_check_shows_the_resolved_spec(capsys, monkeypatch):
    monkeypatch.setattr("finlora.check.check", lambda *_: [])
    Path("run.toml").write_text("[train]\nlr = 1e-3\n", encoding="utf-8")
    assert main(["check", "run.toml", "--set", "method.rank=4", "--task", "fpb", "--show"]) == 0
    said = capsys.readouterr().out
    spec = spec_from_dict(tomllib.loads(said))
    assert spec == load_spec("run.toml", ["method.rank=4", "data.tasks=fpb"])
    assert "# peak learning rate" in said


def test_check_gives_advice(capsys, monkeypatch):
    monkeypatch.setattr("finlora.check.check", lambda *_: [])
    Path("run.toml").write_text('[train]\nlr = 0.1\n[method]\nkind = "full"\n', encoding="utf-8")
    assert main(["check", "run.toml"]) == 0
    assert "note: train.lr = 0.1 is high for a method that trains every weight" in capsys.readouterr().err


def test_flags_change_the_spec_and_absent_ones_do_not():
    assert shared.with_flags(Spec(), run__out=None, data__tasks=[]) == Spec()
    changed = shared.with_flags(Spec(), run__out="a", data__tasks=["fpb"], codec__kind="nf4")
    assert (changed.run.out, changed.data.tasks, changed.codec.kind) == ("a", ("fpb",), "nf4")


@pytest.fixture
def verb(monkeypatch):
    """verb(action): `finlora list` does `action` instead."""

    def replace(action):
        monkeypatch.setattr("finlora.cli.list.members", lambda family: action())

    return replace


def raiser(error: BaseException):
    def action():
        raise error

    return action


def test_each_problem_is_one_line(verb, capsys):
    verb(raiser(Problems([FinloraError("a\nb", "c\nd"), FinloraError("x" * 300)])))
    assert main(["list", "codecs"]) == 2
    assert capsys.readouterr().err.splitlines() == ["error: a b (hint: c d)", "error: " + "x" * 300]


def test_brackets_in_a_message_are_text(verb, capsys):
    verb(raiser(FinloraError("no [bold]key[/bold] in [0, 1)", "write [train]")))
    assert main(["list", "codecs"]) == 2
    assert capsys.readouterr().err == "error: no [bold]key[/bold] in [0, 1) (hint: write [train])\n"


def test_debug_shows_the_traceback_wherever_it_stands(verb, capsys):
    verb(raiser(FinloraError("oh")))
    for argv in (["--debug", "list", "codecs"], ["list", "codecs", "--debug"]):
        assert main(argv) == 2
        said = capsys.readouterr().err
        assert "Traceback (most recent call last)" in said and said.splitlines()[-1] == "error: oh"


def test_our_own_mistakes_keep_their_traceback(verb):
    verb(raiser(AssertionError("ours")))
    with pytest.raises(AssertionError, match="ours"):
        main(["list", "codecs"])


def test_ctrl_c_says_how_to_go_on(verb, capsys):
    verb(raiser(KeyboardInterrupt()))
    assert main(["list", "codecs"]) == 130
    assert capsys.readouterr().err == "interrupted: the same command again goes on where it stopped\n"
    verb(raiser(KeyboardInterrupt("saved at step 3")))
    assert main(["list", "codecs"]) == 130
    assert "interrupted: saved at step 3" in capsys.readouterr().err


def test_a_verb_that_saved_and_stopped_says_130(verb, capsys):
    from finlora.train import Interrupted

    def action():
        with shared.live():
            raise Interrupted("stopped by the user, saved at step 3 of 9", "run the same command again to resume")

    verb(action)
    assert main(["list", "codecs"]) == 130
    assert (
        capsys.readouterr().err
        == "interrupted: stopped by the user, saved at step 3 of 9; run the same command again to resume\n"
    )


def test_a_full_disk_is_the_users_to_mend(verb, capsys):
    verb(raiser(OSError(errno.ENOSPC, "No space left on device", "out/log.jsonl")))
    assert main(["list", "codecs"]) == 2
    assert (
        capsys.readouterr().err
        == "error: cannot write out/log.jsonl: No space left on device (hint: free some space, or choose another folder with --out)\n"
    )


def test_other_system_errors_are_ours(verb):
    verb(raiser(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input/output"):
        main(["list", "codecs"])


def test_a_reader_that_left_is_no_error():
    code = "import sys; from finlora.cli import main; sys.exit(main(['list', 'methods', '--json']))"
    environment = {"PYTHONPATH": str(Path(finlora.__file__).parents[1]), "PATH": ""}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as child:
        child.stdout.close()
        assert b"Traceback" not in child.stderr.read()


def plain() -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    return Progress(Console(file=out, width=200, force_terminal=False)), out


def test_progress_without_a_terminal_is_lines():
    progress, out = plain()
    with progress:
        progress.start("train", 3)
        progress.note("12 examples [bold]")
        for n in (1, 2, 3):
            progress.step(n, loss=1.0 / n, lr=2e-4, tokens_per_s=5210.4, eta=62.0, grad_norm=None)
    lines = out.getvalue().splitlines()
    assert lines[0] == "12 examples [bold]"
    assert lines[1] == "train 1/3  loss 1.0000  lr 2.0e-04  5,210 tokens/s  left 1:02"
    assert lines[2].startswith("train 3/3  loss 0.3333")  # the last always; between them, one each few seconds
    assert re.fullmatch(r"train: \d+\.\d s  loss 0.3333", lines[3]) and len(lines) == 4


def test_progress_of_unknown_length_and_of_a_second_stage():
    progress, out = plain()
    with progress:
        progress.start("read")
        progress.step(5)
        progress.start("grade", 1)
        progress.step(1)
    lines = out.getvalue().splitlines()
    assert (
        lines[0] == "read 5  "
        and lines[1].startswith("read: ")
        and lines[2] == "grade 1/1  "
        and lines[3].startswith("grade: ")
    )


def test_live_progress_draws_and_restores_the_terminal():
    out = io.StringIO()
    with (
        pytest.raises(KeyboardInterrupt),
        Progress(Console(file=out, width=120, force_terminal=True), live=True) as progress,
    ):
        progress.start("train", 10)
        for n in range(1, 6):
            progress.step(n, loss=1.0 / n)
        progress.bars.refresh()
        progress.note("validation loss 0.5")
        raise KeyboardInterrupt
    drawn = out.getvalue()
    assert "5/10" in drawn and "loss 0.2000" in drawn and "█" in drawn and "validation loss 0.5" in drawn
    assert drawn.rstrip().endswith("loss 0.2000")
    assert drawn.count("\x1b[?25l") == drawn.count("\x1b[?25h"), "the cursor is shown again"


def test_sparkline():
    assert sparkline([3.0, 2.0, 1.0]) == "█▄▁"
    assert sparkline([1.0] * 40) == "▁" * 16
    assert sparkline([float("nan"), float("inf")]) == ""
    assert len(sparkline(list(map(float, range(1000))))) == 16


def test_a_receipt_is_shown(capsys):
    folder = Path("out")
    (folder / "adapter").mkdir(parents=True)
    found = {"value": 0.8125, "low": 0.75, "high": 0.875, "n": 64, "clusters": 60, "how": "Wilson"}
    sheet = receipt.new("finetune", "a-name-that-is-far-too-long-for-a-table", {})
    sheet.update(
        model={"name": "toy", "params": 10, "trainable": 2, "bits_per_weight": 4.5}, method="lora", codec="nf4", data=[],
        train={"steps": 12, "loss_first": 2.0, "loss_last": 0.5, "seconds": 3.25, "tokens_per_s": 5210.0, "peak_bytes": 512_000_000, "peak_how": "RSS", "curve": [], "val": []},
        results={"fpb": {"n": 64, "clusters": 60, "unreadable": 2, "way": "choose", "metrics": {"accuracy": found, "macro_f1": found}, "floors": {}}},
    )  # fmt: skip
    receipt.write(folder / "receipt.json", sheet)
    shared.show_receipt(folder)
    said = capsys.readouterr().out
    assert "81.2 [75.0, 87.5]" in said and "4.50" in said and "a-name-that-is-far-too-long…" in said
    assert "fpb: 2 of 64 answers could not be read and count as wrong" in said
    assert "trained: 12 steps, loss 2.000 to 0.500, 3.2 s, 5,210 tokens/s, peak 512 MB (RSS)" in said
    assert said.rstrip().endswith("receipt: out/receipt.json") and "adapter: out/adapter" in said


def test_wide_tables_are_cut_to_the_terminal():
    header, rows = ["run", "a" * 10, "b" * 10, "c" * 40], [["x" * 8, "1", "2", "3"]]
    assert shared._parts(header, rows, 200) == [[0, 1, 2, 3]]
    assert shared._parts(header, rows, 40) == [[0, 1, 2], [0, 3]]
    assert shared._parts(header, rows, 10) == [[0, 1], [0, 2], [0, 3]]


def test_check_tells_what_is_wrong_in_every_part_at_once(tmp_path, capsys):
    spec = tmp_path / "run.toml"
    spec.write_text('[train]\nlr = "fast"\n[codec]\nkind = "nf3"\n[data]\ntasks = ["fpbb"]\n[method]\nrnk = 4\n', encoding="utf-8")
    assert main(["check", str(spec)]) == 2
    said = capsys.readouterr().err.splitlines()
    for fragment in ("train.lr", "did you mean `nf4`", "did you mean `fpb`", "did you mean `method.rank`"):
        assert sum(fragment in line for line in said) == 1, (fragment, said)
