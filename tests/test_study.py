"""Studies: planned as they run, resumed without a second run, extended by what is new, and told with paired intervals."""

# ruff: noqa: F811 (fixtures are imported by name)
from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_bad_input import disk, home, toy  # noqa: F401  (fixtures)

from finlora import study
from finlora.cli import main
from finlora.errors import FinloraError, Problems
from finlora.report.study import study_report
from finlora.report.study_data import settings
from finlora.study import drive, work

STUDY = """
name = "little"
[base.model]
name = "toy"
[base.run]
device = "cpu"
dtype = "float32"
[base.data]
tasks = ["fpb"]
dir = "data"
validation = 0.3
[base.train]
steps = 2
batch = 2
[base.evaluate]
ways = ["choose"]
[grid]
"method.kind" = ["lora", "dora", "full"]
"codec.kind" = ["none", "nf4"]
"run.seed" = [0, 1]
[search]
key = "train.lr"
values = [1e-3, 1e-2]
at = { "codec.kind" = "none", "run.seed" = 0 }
[[rule]]
when = { "method.kind" = "dora" }
set = { "method.rank" = 2 }
"""


@pytest.fixture
def file(home):
    path = home / "study.toml"
    path.write_text(STUDY, encoding="utf-8")
    return path


def quick(made):
    """A stand-in for a run that writes what a run writes; the real one is in test_from_end_to_end."""

    def one(job):
        from finlora import receipt, spec

        s = spec.spec_from_dict(job.tree)
        made.append(s)
        sheet = receipt.new("finetune", "x", spec.as_dict(s))
        # the loss is lowest at 1e-2 for every method but dora
        low = 1e-3 if s.method.kind == "dora" else 1e-2
        sheet.update(train={"val": [[1, abs(s.train.lr - low)]]}, results={})
        receipt.write(Path(s.run.out) / "receipt.json", sheet)
        return work.said(Path(s.run.out))

    return one


@pytest.fixture
def inline(monkeypatch, home):
    made: list = []
    monkeypatch.setattr(work, "one", quick(made))
    monkeypatch.setattr(drive, "local", lambda jobs, *_: ((place, work.one(job)) for place, job in enumerate(jobs)))
    return made


def test_the_plan_is_what_is_run(file, inline, home):
    little = study.load_study(file)
    plan = study.plan(little)
    assert plan["search"] == 3 * 2 and plan["runs"] == 2 * 2 * 2 + 2 and len(plan["refused"]) == 2
    assert "full" in plan["refused"][0] and "nf4" in plan["refused"][0]
    done = study.run(little, home / "runs")
    assert len(inline) == plan["search"] + plan["runs"] == len(list((home / "runs").glob("*/*/receipt.json")))
    assert {c["value"] for g, c in done["chosen"].items() if "dora" not in g} == {1e-2}
    assert done["chosen"]["method dora"]["value"] == 1e-3
    finals = [s for s in inline if "/runs/runs/" in s.run.out]
    assert {s.train.lr for s in finals if s.method.kind == "dora"} == {1e-3}, "the chosen value is used over every codec and seed"
    assert all(s.method.options == ({"rank": 2} if s.method.kind == "dora" else {}) for s in inline)


def test_a_second_run_runs_nothing_and_a_longer_grid_only_what_is_new(file, inline, home):
    study.run(study.load_study(file), home / "runs")
    first = len(inline)
    study.run(study.load_study(file), home / "runs")
    assert len(inline) == first
    file.write_text(STUDY.replace("[0, 1]", "[0, 1, 2]"), encoding="utf-8")
    study.run(study.load_study(file), home / "runs")
    assert len(inline) - first == 2 * 2 + 1, "one seed more of each possible method and codec"


def test_a_failed_run_is_told_and_stops_nothing(file, inline, home, monkeypatch):
    good = work.one

    def one(job):
        if job.tree["method"]["kind"] == "dora" and job.tree["train"]["lr"] == 1e-3:
            return {"run": "x", "error": "the loss exploded"}
        return good(job)

    monkeypatch.setattr(work, "one", one)
    done = study.run(study.load_study(file), home / "runs")
    assert done["chosen"]["method dora"]["value"] == 1e-2, "a value that failed is not chosen"
    assert not done["failed"] and len(done["runs"]) == 10


def test_what_no_value_could_be_chosen_for_has_failed(file, inline, home, monkeypatch):
    good = work.one
    monkeypatch.setattr(work, "one", lambda job: {"run": "x", "error": "out of memory"} if job.tree["method"]["kind"] == "dora" else good(job))
    done = study.run(study.load_study(file), home / "runs")
    assert {f["keys"]["method.kind"] for f in done["failed"]} == {"dora"} and len(done["failed"]) == 4 and len(done["runs"]) == 6
    assert "no train.lr could be chosen for it: out of memory" in done["failed"][0]["error"]


def test_what_all_runs_lack_is_told_once_and_nothing_is_begun(file, inline, home, capsys):
    assert main(["study", "run", str(file), "-o", "runs", "--set", "data.dir=nowhere"]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert [line for line in told if "error" in line] == told[-1:] and "nowhere" in told[-1] and not inline and not (home / "runs").exists()


def test_from_end_to_end(file, home, capsys):
    small = STUDY.replace('"lora", "dora", "full"', '"lora", "dora"').replace("values = [1e-3, 1e-2]", "values = [1e-3]")
    file.write_text(small, encoding="utf-8")
    assert main(["study", "plan", "study.toml", "--probe", "none"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("2 runs to choose train.lr, 8 runs to grade") and "time and memory: not known" in said
    assert main(["study", "plan", "study.toml"]) == 0
    said = capsys.readouterr().out
    assert "estimated from a probe of 4 steps of one cell on this machine" in said and "GB a run at its peak" in said and "time: about" in said
    assert not (home / "runs").exists(), "a plan leaves nothing behind"
    assert main(["study", "run", "study.toml", "-o", "runs"]) == 0
    capsys.readouterr()
    assert main(["study", "plan", "study.toml", "-o", "runs"]) == 0
    assert "10 are finished\nnothing is left to do" in capsys.readouterr().out
    before = disk(home / "runs")
    assert main(["study", "run", "study.toml", "-o", "runs"]) == 0
    assert disk(home / "runs") == before
    assert main(["study", "report", "runs"]) == 0
    assert main(["study", "report", "runs", "-o", "page"]) == 0
    published = {p.name for p in (home / "page").iterdir()}
    assert published == {"report.html", "report.md", "table.tex", "table.csv", "summary.json", "receipts.jsonl", "marks.json"}
    page = (home / "page" / "report.html").read_text(encoding="utf-8")
    assert "Net sales rose" not in page and "their licence decides" in page, "no text of data that do not ship with the package"
    assert not any(str(home) in (home / "page" / name).read_text(encoding="utf-8") for name in published)
    assert main(["study", "report", "runs", "-o", "page", "--show-text"]) == 0
    assert "What is the sentiment" in (home / "page" / "report.html").read_text(encoding="utf-8")
    said = json.loads((home / "runs" / "summary.json").read_text(encoding="utf-8"))
    assert [t["setting"] for t in said["tables"]] == [{"codec.kind": "none"}, {"codec.kind": "nf4"}]
    for table in said["tables"]:
        by = {row["method"]: row for row in table["rows"]}
        assert by["lora"]["seeds"] == 2 and "difference" not in by["lora"] and by["dora"]["difference"]["holm_p"] >= by["dora"]["difference"]["p"]
    marks = json.loads((home / "runs" / "marks.json").read_text(encoding="utf-8"))["fpb"]
    assert len(marks["runs"]) == 8 and all(set(m) <= {"0", "1"} and len(m) == len(marks["ids"].split()) for m in marks["runs"].values())
    text = (home / "runs" / "report.md").read_text(encoding="utf-8")
    assert "| lora | 0.001 |" in text and "reference" in text and "What the codec costs" in text
    receipts = (home / "runs" / "receipts.jsonl").read_text(encoding="utf-8")
    assert str(home) not in receipts and receipts.count("\n") == 8


@pytest.mark.parametrize(
    "before, after, match",
    [
        ("[grid]", "[gird]", "no section named `gird`.*"),
        ('"method.kind" = ["lora", "dora", "full"]', '"method.kind" = "lora"', "grid `method.kind` must be a list"),
        ('key = "train.lr"', "", r"\[search\] needs `key`"),
        ('at = { "codec.kind"', 'at = { "codec.knd"', "codec.knd"),
        ("when =", "wenn =", r"a \[\[rule\]\] has `when` and `set`"),
        ('"dora", "full"', '"dorra"', "dorra"),
        ("steps = 2", "stepz = 2", "train.stepz"),
        ("name = ", "name == ", "not TOML"),
        ('name = "little"', "name = 3", "`name` must be text, got 3"),
        ("[[rule]]", "[rule]", "`rule` must be a list of tables"),
        ("[base.run]", "[base]\nrun = 3\n[base.nun]", "`base.run` must be a table, got 3"),
        ("[0, 1]", "[0, 0]", "names 0 twice"),
        ("[0, 1]", '[0, 1]\n"train.recompute" = [false, true]', "the same run as method lora.*recompute False"),
        ("[0, 1]", '[0, 1]\n"train.lr" = [1e-3]', "`train.lr` is searched and stands in"),
        ("[0, 1]", '[0, 1]\n"train.batch" = [1, 2]', "`train.batch` stands in .base.train. and in .grid."),
        ('"run.seed" = 0 }', '"run.seed" = 7 }', "search.at has run.seed = 7"),
        ('at = { "codec.kind" = "none", "run.seed" = 0 }', "at = 3", "search.at must be a table"),
        ('key = "train.lr"', 'key = "train.lrr"', "train.lrr"),
        ('key = "train.lr"', 'key = "train.lr"\nfrom = 3', "no key named `from`"),
        ('"method.kind" = "dora" }', '"method.kid" = "dora" }', "no key named `method.kid`"),
        ('"method.kind" = "dora" }', '"method.kind" = "doar" }', "a .*rule.* is for method.kind = 'doar': no method named"),
        ('"method.rank" = 2 }', '"run.seed" = 2 }', "sets `run.seed`, which .grid. decides"),
        ('"method.rank" = 2 }', '"train.lr" = 2 }', "sets `train.lr`, which .search. decides"),
        ("set = {", "set = 3 #", "has `when` and `set`, two tables"),
        ('device = "cpu"', 'out = "here"', "run.out is the study's own to choose"),
        ("[grid]", "[study]\nprice = 1\n[grid]", "no key named `price`"),
        ("[grid]", "[study]\nprice_per_hour = true\n[grid]", "study.price_per_hour = True is not a number"),
        ("[grid]", "[study]\nprice_per_hour = -1\n[grid]", "study.price_per_hour = -1 is out of range"),
        ("[grid]", "[study]\nbase = 1\n[grid]", "study.base = 1 is not true or false"),
    ],
)
def test_what_is_wrong_is_named(file, before, after, match):
    file.write_text(STUDY.replace(before, after, 1), encoding="utf-8")
    with pytest.raises((FinloraError, Problems), match=match):
        study.plan(study.load_study(file))


def test_overrides_and_missing_things(file, home):
    assert study.load_study(file, ["train.steps=7"]).base["train"]["steps"].value == 7
    with pytest.raises(FinloraError, match="section.key=value"):
        study.load_study(file, ["steps=7"])
    with pytest.raises(FinloraError, match="cannot read the study"):
        study.load_study(home / "none.toml")
    with pytest.raises(FinloraError, match="holds no study"):
        study_report(home)


def test_a_rule_for_what_a_shorter_grid_lacks_is_told(file, capsys):
    file.write_text(STUDY.replace('"lora", "dora", "full"', '"lora"'), encoding="utf-8")
    assert main(["study", "plan", "study.toml", "--probe", "none"]) == 0
    assert "note: a rule is for method.kind = 'dora', which the grid lacks" in capsys.readouterr().err


def test_options_that_say_nothing_are_refused(file, home, capsys):
    for words, option in ((["plan", "--launcher", "ray"], "--launcher"), (["run", "--probe", "all"], "--probe"), (["run", "--reference", "dora"], "--reference"), (["report", "--jobs", "2"], "--jobs"), (["report", "--set", "train.lr=1"], "--set")):
        assert main(["study", words[0], "study.toml", *words[1:]]) == 2
        assert f"{option} has no effect on `study {words[0]}`" in capsys.readouterr().err


def test_a_report_needs_its_methods_and_keeps_what_varied(file, inline, home):
    done = study.run(study.load_study(file), home / "runs")
    with pytest.raises(FinloraError, match="no method named `pissa`.*--reference"):
        study_report(home / "runs", reference="pissa")
    runs = [{"keys": {**r["keys"], "train.steps": n}} for r in done["runs"] for n in (1, 2)]
    assert {key for setting in settings(runs, "train.lr") for key, _ in setting} == {"codec.kind", "train.steps"}, "the searched key alone is left out"
    told = home / "runs" / "study.json"
    said = json.loads(told.read_text(encoding="utf-8"))
    for r in said["runs"]:
        del r["keys"]["method.kind"]
    told.write_text(json.dumps(said), encoding="utf-8")
    with pytest.raises(FinloraError, match="no `method.kind` in its .grid."):
        study_report(home / "runs")


TASKS = STUDY.replace('tasks = ["fpb"]\n', "").replace('["lora", "dora", "full"]', '["lora", "dora"]').replace('["none", "nf4"]', '["none"]')
TASKS = TASKS.replace("[grid]", '[study]\nbase = true\nprice_per_hour = 3.6\n[grid]\n"data.tasks" = [["fpb"], ["tfns"], ["fpb", "tfns"]]')


def test_sets_of_tasks_are_values_of_a_grid(file, inline, home):
    file.write_text(TASKS, encoding="utf-8")
    little = study.load_study(file)
    plan = study.plan(little)
    assert (plan["search"], plan["base"], plan["runs"]) == (3 * 2 * 2, 3, 3 * 2 * 2)
    done = study.run(little, home / "runs")
    assert "tasks fpb+tfns, method dora" in done["chosen"] and len(done["runs"]) == 12 and len(done["base"]) == 3
    made = len(inline)
    study.run(little, home / "runs")
    assert len(inline) == made
    found = settings([{"keys": r["keys"]} for r in done["runs"]], "train.lr")
    assert found == [(("data.tasks", ("fpb",)),), (("data.tasks", ("tfns",)),), (("data.tasks", ("fpb", "tfns")),)]


@pytest.mark.slow
def test_a_study_of_two_tasks_with_its_base_and_prices(file, home):
    for split in ("train", "test"):
        (home / "data" / f"tfns_{split}.jsonl").write_text((home / "data" / f"fpb_{split}.jsonl").read_text(encoding="utf-8").replace("news?", "tweet?"), encoding="utf-8")
    file.write_text(TASKS.replace('["fpb"], ["tfns"], ["fpb", "tfns"]', '["fpb"]').replace("values = [1e-3, 1e-2]", "values = [1e-3]").replace('ways = ["choose"]', 'ways = ["choose"]\ntasks = ["fpb", "tfns"]'), encoding="utf-8")
    assert main(["study", "run", "study.toml", "-o", "runs"]) == 0
    said = study_report(home / "runs")
    assert [t["task"] for t in said["tables"]] == ["fpb", "tfns"] and len(said["overview"]["rows"]) == 2
    assert {(r["task"], r["trained"]) for r in said["before_after"]} == {("fpb", True), ("tfns", False)} and len(said["before_after"]) == 4
    assert {f["cost"] for f in said["fronts"]} - {"joules"} == {"peak_bytes", "seconds", "dollars"} and {f["task"] for f in said["fronts"]} == {"", "fpb", "tfns"}
    row = said["tables"][0]["rows"][0]
    assert row["dollars"] == pytest.approx(row["seconds"] * 3.6 / 3600)
    text = (home / "runs" / "report.md").read_text(encoding="utf-8")
    for part in ("## Methods by tasks", "## Forgetting", "## Against the untuned base", "## Pareto fronts"):
        assert part in text
    page = (home / "runs" / "report.html").read_text(encoding="utf-8")
    assert "None of the graded" not in page and "price of training" in page and not any(x in page for x in ('src="http', 'href="http', "url(http"))
    # a mixture is one run: its price counts once for the mean over its tasks
    mean = next(f for f in said["fronts"] if f["task"] == "" and f["cost"] == "seconds")
    assert {p["x"] for p in mean["points"]} == {r["seconds"] for r in said["tables"][0]["rows"]}


@pytest.mark.parametrize("name, wanted", [("small", (12, 2, 24)), ("finlora_replication", (0, 18, 108)), ("methods_embedded", (66, 0, 129))])
def test_the_studies_of_the_repository_can_be_planned(name, wanted):
    found = study.plan(study.load_study(Path(__file__).parents[1] / "configs" / f"{name}.toml"), "no/such/folder")
    assert (found["search"], found["base"], found["runs"]) == wanted and not found["unmet"]
