"""The report: says what the receipts say, claims no more than the intervals carry, and is one safe file."""

import csv
import html.parser
import io
import math
import random
import re
import subprocess
import sys
import xml.etree.ElementTree

import pytest

from finlora import receipt, report, score
from finlora.errors import FinloraError
from finlora.report import compare, plots, tables

LABELS = ("negative", "neutral", "positive")
EVIL = "<script>alert('x|y')</script> & $\\alpha_1$"


def make_records(accuracy, seed, n=400, say_share=0.0):
    """Records of n three-way examples with about this accuracy; the same ids, gold and difficulty for every run."""
    task = random.Random(7)
    own = random.Random(seed)
    out = []
    for at in range(n):
        gold = task.choices(LABELS, (1, 3, 2))[0]
        hardness = task.random()
        right = own.random() < accuracy + 0.5 * (0.5 - hardness)
        answer = gold if right else own.choice([x for x in LABELS if x != gold])
        if own.random() < say_share:
            answer = None
        out.append(score.Record(f"e{at}", "", "0" * 16, gold, None, answer, None, answer, float(answer == gold), "choose"))
    return out


def make_result(records, floors=True):
    metrics = {m: score.interval(records, m, draws=200) for m in ("accuracy", "macro_f1", "weighted_f1")}
    rate = score.interval(make_records(0.5, 99, len(records)), "accuracy")
    nb = score.interval(make_records(0.62, 98, len(records)), "accuracy")
    return {
        "n": len(records),
        "clusters": len(records),
        "unreadable": score.unreadable(records),
        "way": "choose",
        "floors": {"majority": rate, "naive_bayes": nb} if floors else {},
        "metrics": metrics,
        "confusion": score.confusion(records, LABELS),
        "seconds": 4.2,
        "by_way": {"choose": {"metrics": metrics, "unreadable": 0}, "say": {"metrics": metrics, "unreadable": 3}},
    }


def make_run(folder, name, kind, method, codec, accuracies, seed, train=True, bits=32.0, trainable=49_152, peak=4.1e8, seconds=31.4, steps=120):
    """Writes the records and the receipt of a run as the package would; returns the receipt's path."""
    noise = random.Random(seed)
    made = receipt.new(kind, name, {"run": {"seed": seed}})
    made["created"] = f"2025-03-0{1 + seed % 9}T10:00:00+00:00"
    made |= {
        "method": method,
        "codec": codec,
        "model": {"name": "finlora/base", "sha256": "ab" * 32, "params": 4_200_000, "trainable": trainable, "bits_per_weight": bits},
        "data": [
            {"task": t, "split": s, "rows": n, "sha256": digest * 32, "licence": "Apache-2.0", "errata": "synthetic sentences"}
            for t in accuracies
            for s, n, digest in (("train", 1500, "cd"), ("test", 400, "ef"))
        ],
        "results": {},
    }
    if train:
        curve = [[s, 0.4 + 2.2 * math.exp(-s / 25) + 0.15 * noise.random() + 0.02 * (seed % 5), 1e-4, 1.0] for s in range(1, steps + 1)]
        made["train"] = {
            "steps": steps, "examples": 1500, "tokens": 90_000, "seconds": seconds, "tokens_per_s": 90_000 / seconds, "peak_bytes": peak,
            "peak_how": "largest resident set, sampled every 10 ms", "loss_first": curve[0][1], "loss_last": curve[-1][1],
            "curve": curve, "val": [[s, 0.5 + 0.03 * seed + 1.9 * math.exp(-s / 22)] for s in range(20, steps + 1, 20)],
        }  # fmt: skip
    for task, accuracy in accuracies.items():
        records = make_records(accuracy, seed, say_share=0.03 if name == "base" else 0.0)
        score.append_records(folder / "records" / f"{task}.jsonl", records)
        made["results"][task] = make_result(records) | {"records": f"records/{task}.jsonl"}
    return receipt.write(folder / "receipt.json", made)


def make_runs(root):
    """Six runs and a pretraining: base, full, lora, two quantised adapters, and one whose name is an attack."""
    make_run(root / "base", "base", "evaluate", "", "none", {"tone": 0.45, "fiqa": 0.41}, 1, train=False, trainable=0)
    make_run(root / "full", "full", "finetune", "full", "none", {"tone": 0.80, "fiqa": 0.66}, 2, trainable=3_100_000, peak=6.03e8, seconds=41.0)
    make_run(root / "lora", "lora", "finetune", "lora", "none", {"tone": 0.79, "fiqa": 0.64}, 3)
    make_run(root / "qlora", "qlora nf4", "finetune", "lora", "nf4", {"tone": 0.785, "fiqa": 0.64}, 4, bits=4.5, peak=3.92e8, seconds=44.0)
    make_run(root / "int8", "lora int8", "finetune", "lora", "int8", {"tone": 0.79, "fiqa": 0.65}, 5, bits=8.12, peak=3.98e8, seconds=38.5)
    make_run(root / "evil", EVIL, "finetune", "dora", "nf4_dq", {"tone": 0.60}, 6, bits=4.13, peak=4.05e8, seconds=52.0)
    make_run(root / "pre", "pretrain", "pretrain", "", "", {}, 7, trainable=4_200_000, peak=9.1e8, seconds=5700.0, steps=900)
    return root


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return make_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The smallest comparison: two runs on one task."""
    root = tmp_path_factory.mktemp("two")
    make_run(root / "a", "a", "finetune", "lora", "none", {"tone": 0.7}, 1)
    make_run(root / "b", "b", "finetune", "lora", "nf4", {"tone": 0.7}, 2, bits=4.5)
    return root


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    return report.build(runs, tmp_path_factory.mktemp("out") / "deep")


class Reader(html.parser.HTMLParser):
    """Checks that tags close in order and collects tags, ids and what could ask the network."""

    VOID = {"meta", "link", "br", "hr", "img", "input"}

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.ids, self.asks, self.references = [], [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "srcset", "data", "action", "xlink:href"):
                self.asks.append(value)
            self.references += re.findall(r"url\(#([^)]+)\)", value or "")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()


def read(page):
    reader = Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    assert reader.open == []
    return reader


def test_the_page_is_one_whole_file(page):
    reader = read(page)
    assert sorted(p.name for p in page.parent.iterdir()) == ["index.html", "table.csv", "table.md", "table.tex"]
    local = {"data:,", "table.csv", "table.md", "table.tex"}
    assert [ask for ask in reader.asks if not ask.startswith("#") and ask not in local] == []
    text = page.read_text(encoding="utf-8")
    assert "http://" not in text and "https://" not in text and "@import" not in text
    assert len(reader.ids) == len(set(reader.ids))
    wanted = [ask[1:] for ask in reader.asks if ask.startswith("#")] + reader.references
    assert set(wanted) <= set(reader.ids)
    assert reader.tags.count("svg") >= 5


def test_names_are_text_everywhere(page):
    reader = read(page)
    assert reader.tags.count("script") == 1
    text = page.read_text(encoding="utf-8")
    assert "<script>alert" not in text and "&lt;script&gt;alert(" in text
    markdown = (page.parent / "table.md").read_text()
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in markdown.splitlines()}
    assert len(widths) == 1 and r"x\|y" in markdown and "<script>" not in markdown.replace(r"\<script\>", "")
    tex = (page.parent / "table.tex").read_text()
    row = next(line for line in tex.splitlines() if "alert" in line)
    assert r"\$\textbackslash{}alpha\_1\$" in row and r"\& \$" in row
    body = [line for line in tex.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert len({len(re.findall(r"(?<!\\)&", line)) for line in body}) == 1


def test_csv_holds_the_raw_numbers(runs, page):
    rows = list(csv.DictReader(io.StringIO((page.parent / "table.csv").read_text())))
    assert [row["kind"] for row in rows] == ["floor", "floor", "base"] + ["run"] * 6
    assert [row["run"] for row in rows[:4]] == ["majority floor", "naive Bayes floor", "base", "full"]
    lora = next(row for row in rows if row["run"] == "lora")
    made = receipt.read(runs / "lora")
    accuracy = made["results"]["tone"]["metrics"]["accuracy"]
    assert float(lora["tone.accuracy"]) == accuracy["value"]
    assert (float(lora["tone.accuracy_low"]), float(lora["tone.accuracy_high"])) == (accuracy["low"], accuracy["high"])
    assert float(lora["peak_mb"]) == pytest.approx(410.0) and float(lora["train_seconds"]) == 31.4
    assert rows[-1]["tone.accuracy"] == "" and any(row["run"] == EVIL and row["fiqa.accuracy"] == "" for row in rows)


def test_terminal_rows_are_plain_text(runs):
    receipts = [f.receipt for f in receipt.find(runs)[0]]
    header, rows = tables.terminal_rows(receipts)
    assert all(len(row) == len(header) for row in rows) and all(isinstance(c, str) for row in rows for c in row)
    base = next(row for row in rows if row[0] == "base")
    value = receipts[0]["results"]["tone"]["metrics"]["accuracy"]
    assert base[header.index("tone accuracy %")] == f"{100 * value['value']:.1f} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"
    assert int(base[header.index("tone unreadable")]) == receipts[0]["results"]["tone"]["unreadable"] > 0
    header, rows = tables.terminal_rows([receipt.new("evaluate", "bare", {})])
    assert rows[0][0] == "bare" and "peak MB" not in header


def test_a_difference_within_its_interval_is_no_win(runs):
    found = tables.ordered(receipt.find(runs)[0])
    assert [found[at].receipt["name"] for at in compare.references(found)] == ["base", "lora"]
    rows, notes = compare.differences(found, compare.references(found)[1])
    assert notes == []
    assert {d.verdict for d in rows if d.run == "qlora nf4"} == {"undecided"}
    assert {d.verdict for d in rows if d.run == "base"} == {"lower"}
    for d in rows:
        assert (d.verdict == "undecided") == (d.low <= 0 <= d.high)
    text = " ".join(compare.summary(found, [("lora", rows)]))
    assert "base on tone −" in text and "qlora nf4 on" not in text
    against_base, _ = compare.differences(found, 0)
    assert {d.verdict for d in against_base if d.run == "lora"} == {"higher"}
    ties = [d for d in rows if d.verdict == "undecided"]
    assert "no run is shown to be better or worse" in " ".join(compare.summary(found, [("lora", ties)]))


def test_the_page_marks_only_decided_differences(runs, page):
    text = page.read_text(encoding="utf-8")
    section = text[text.index('id="differences"') : text.index('id="cost"')]
    lines = re.findall(r'<tr><th scope="row".*?</tr>', section)
    assert len(lines) == 2 * (2 * 4 + 1)  # two references; four runs on two tasks and one on one
    seen = set()
    for line in lines:
        said = re.findall(r'\[([^,\]]+), ([^\]]+)\]</span></td><td class="(\w+)">(\w+)</td>', line.replace("−", "-"))
        assert len(said) == 2
        for low, high, name, verdict in said:
            assert name == verdict
            if "0.0" not in (low, high):  # rounded: the sign is not to be seen
                assert verdict == ("higher" if float(low) > 0 else "lower" if float(high) < 0 else "undecided")
                seen.add(verdict)
    assert seen == {"higher", "lower", "undecided"}
    runs_section = text[text.index('id="runs"') : text.index('id="differences"')]
    assert "<b>" not in runs_section and "<strong" not in runs_section and "higher" not in runs_section


def test_missing_records_are_said_not_guessed(tmp_path):
    make_run(tmp_path / "a", "a", "finetune", "lora", "none", {"tone": 0.7}, 1)
    path = make_run(tmp_path / "b", "b", "finetune", "lora", "nf4", {"tone": 0.7}, 2, bits=4.5)
    (path.parent / "records" / "tone.jsonl").unlink()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "receipt.json").write_text('{"schema": 1,\n"kind"')
    text = report.build([tmp_path], tmp_path / "out").read_text()
    assert "Not compared: b, tone: cannot read records" in text
    assert "receipt.json:2: not JSON" in text


def test_unlike_runs_are_doubted(tmp_path):
    make_run(tmp_path / "a", "a", "finetune", "lora", "none", {"tone": 0.7}, 1)
    path = make_run(tmp_path / "b", "b", "finetune", "lora", "nf4", {"tone": 0.7}, 2)
    assert compare.doubts(receipt.find(tmp_path)[0]) == []
    made = receipt.read(path)
    made["device"] = {"cpu": "another"}
    made["data"][1]["sha256"] = "00"
    made["train"]["peak_how"] = "the allocator"
    receipt.write(path, made)
    said = " ".join(compare.doubts(receipt.find(tmp_path)[0]))
    assert "different test examples" in said and "different devices" in said and "different ways" in said


def test_one_bare_receipt_makes_a_page(tmp_path):
    receipt.write(tmp_path / "receipt.json", receipt.new("finetune", "bare", {}))
    reader = read(report.build(tmp_path, tmp_path / "out"))
    assert "svg" not in reader.tags and reader.tags.count("table") >= 1


def test_bad_asks_are_refused(tmp_path, two):
    with pytest.raises(FinloraError, match="no folder"):
        report.build(tmp_path / "gone", tmp_path / "out")
    with pytest.raises(FinloraError, match="no receipts under"):
        report.build(tmp_path, tmp_path / "out")
    with pytest.raises(FinloraError, match="no run is named `loar`"):
        report.build(two, tmp_path / "out", baseline="loar")
    (tmp_path / "file").write_text("")
    with pytest.raises(FinloraError, match="cannot write"):
        report.build(two, tmp_path / "file")
    assert not (tmp_path / "out").exists()


def test_the_same_receipts_make_the_same_page(two, tmp_path):
    first = report.build(two, tmp_path / "1", baseline="b").read_bytes()
    assert first == report.build(two, tmp_path / "2", baseline="b").read_bytes()
    assert b"Against b" in first and b"Against a<" not in first


def test_repeated_names_are_told_apart(tmp_path):
    for folder in ("a", "b"):
        receipt.write(tmp_path / folder / "receipt.json", receipt.new("finetune", "same", {}))
    assert sorted(tables.labels(receipt.find(tmp_path)[0])) == ["same (a)", "same (b)"]
    assert tables.labels(tables.as_found([receipt.new("finetune", "same", {})] * 2)) == ["same", "same #2"]


def test_plots_are_themed_xml_with_apart_labels():
    points = [plots.Point(f"run number {k}", 400 + 3 * k, 0.7 + 0.003 * (k % 3), 0.66, 0.75, k) for k in range(7)]
    svg = plots.trade_off(points, "peak MB", "accuracy %", "a title", [("majority floor", 0.6)])
    tree = xml.etree.ElementTree.fromstring(svg)
    assert "#0102" not in svg and "#000000" not in svg and "var(--s6)" in svg and "currentColor" in svg
    boxes = []
    for text in tree.iter("text"):
        if text.text and text.text.startswith("run number"):
            assert "text-anchor" in text.attrib["style"]
            x, y, anchor = float(text.get("x")), float(text.get("y")), re.search(r"text-anchor: (\w+)", text.get("style"))[1]
            width, height = 5.0 * len(text.text), 8.0  # a 9.5 px sans serif takes about 5 px a character
            left = x - width * {"start": 0, "middle": 0.5, "end": 1}[anchor]
            boxes.append((left, y - height, left + width, y))
    assert len(boxes) == 7
    for k, a in enumerate(boxes):
        for b in boxes[:k]:
            assert not (min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])), (a, b)
    assert plots.trade_off([], "x", "y", "t") == "" and plots.learning([], "t") == ""


def test_smoothing_neither_lags_nor_bends():
    level, ramp = [2.0] * 60, [float(k) for k in range(100)]
    assert plots.smooth(level) == pytest.approx(level, abs=1e-12)  # rounding of 60 sums
    assert plots.smooth(ramp) == pytest.approx(ramp[:-2] + [97.5, 98.0], abs=1e-9)  # a mean of the past alone would lie above a falling line
    assert plots.span(100) == 5 and plots.smooth([0.0] * 50 + [5.0] + [0.0] * 49)[48:53] == pytest.approx([1.0] * 5)
    assert plots.smooth([]) == [] and plots.smooth([3.0]) == [3.0]


def test_floors_and_cost_of_grading_keep_their_how():
    made = receipt.new("evaluate", "base", {}) | {"cost": {"peak_bytes": 5e8, "peak_how": "VmHWM"}}
    floor = {"metrics": {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6, "how": "Wilson"}}, "how": "of the graded examples"}
    result = {"metrics": {"accuracy": {"value": 0.6, "low": 0.5, "high": 0.7, "how": "Wilson"}}, "floors": {"majority": floor}}
    table = tables.build([made | {"results": {"t": result}}])
    at = {c.key: k for k, c in enumerate(table.columns)}
    assert table.lines[0].cells[at["t.accuracy"]].about == "Wilson, of the graded examples"
    assert table.lines[1].cells[at["peak_mb"]].text == "–" and "500 MB, VmHWM" in table.lines[1].cells[at["peak_mb"]].about


def test_unreadable_counts_and_shares():
    assert tables.unreadable({"n": 200, "unreadable": 3}).text == "3"
    assert tables.unreadable({"n": 200, "unreadable": 0.05}).text == "10"
    assert tables.unreadable({"unreadable": 0.05}).text == "5.0%"
    assert tables.unreadable({}).sort is None


def test_import_loads_no_plotting_and_no_torch():
    program = (
        "import sys, finlora.report\nfrom finlora.report import tables\n"
        "bad = {'torch', 'matplotlib', 'numpy', 'rich', 'transformers'} & set(sys.modules)\nassert not bad, bad\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
