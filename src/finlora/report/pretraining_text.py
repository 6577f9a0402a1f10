"""A pretraining study's figures as tables, once for Markdown and the page, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finlora.report import pretraining_how
from finlora.report.pretraining_claim import EDGE, MARGIN, WAYS, confounded, named, signed
from finlora.report.pretraining_compare import ALPHA, amount, big
from finlora.report.pretraining_data import Study
from finlora.report.pretraining_sizes import CLAIM
from finlora.report.tables import DASH

LEADS = {
    "tokens": "Loss of the arm less that of dense of the same size, seed and tokens, nats a token.",
    "flops": "Dense on the tokens that the arm's FLOPs buy it, by a line in log tokens between two dense budgets.",
    "wall": "Dense on the tokens that it would see in the arm's seconds, seed by seed at the tokens a second of both, by the same line.",
    "memory": "Dense of the size that takes as many bytes of training, by a line in log bytes between two sizes of dense: {memory}.",
}


@dataclass(frozen=True)
class Table:
    """lead: a sentence above it. heads: (title, whether numbers stand under it). rows: cells as text."""

    key: str
    title: str
    lead: str
    heads: tuple[tuple[str, bool], ...]
    rows: list[list[str]]


def tables(said: Mapping[str, Any]) -> list[Table]:
    """All tables that have rows, in the order of the report."""
    out = [_claim(said), _sizes(said), _arms(said), _beside(said), _bytes(said), *(_compared(said, way) for way in WAYS), _speeds(said), _trend(said), _power(said), _how(said), _gpt2(said), _search(said)]
    return [table for table in out if table.rows]


def _claim(said: Mapping[str, Any]) -> Table:
    heads = (("size", False), ("arm", False), ("the whole model", True), ("loss", False), ("speed", False), ("the claim at this size", False))
    rows = [[v["size"], named(said, v), f"{v['smaller']:.2f}x smaller", v["loss"], v["speed"], v["verdict"]] for v in said["claim"]]
    lead = (
        f"Arms whose linears are {CLAIM['smaller']}x smaller. No loss: the interval of the difference at equal tokens ends at most {MARGIN} nats a token above 0, each arm for itself; "
        f"a loss, or a speed other than {CLAIM['faster']}x: by Holm's p below {ALPHA} over their tables. Not reproduced: a loss, or too slow; reproduced: no loss and fast; else open.{_edges(said)}"
    )
    return Table("claim", "The claim by size and arm", lead, heads, rows)


def _sizes(said: Mapping[str, Any]) -> Table:
    heads = (("size", False), ("linears", True), ("without embeddings", True), ("embeddings", True), ("all", True), ("vocabulary", True), ("architecture", False))
    rows = [
        [s["size"], *(f"{s[k]:,}" for k in ("linears", "non_embedding", "embeddings", "params", "vocabulary")), ", ".join(f"{k} {v}" for k, v in s["config"].items())]
        for s in said["sizes"]
    ]
    return Table("sizes", "Sizes", "Parameters of the dense models; embeddings are those of tokens and positions, and an output layer of its own.", heads, rows)


def _edges(said: Mapping[str, Any], base: str = "dense") -> str:
    """What the mark beside an arm means, where one stands there."""
    return f" An arm is marked{EDGE} where its {said['searched']}, or that of {base}, lies at an end of its list." if any(a["at_edge"] for a in said["arms"]) else ""


def _arms(said: Mapping[str, Any]) -> Table:
    heads = (("size", False), ("arm", False), ("structure", False), ("ranks", False), ("optimiser", False), (said["searched"] or "searched", True), ("seeds", True), ("tokens", True), ("nats/token", True), ("bits/byte", True))
    heads += tuple((title, True) for title in ("parameters", "without embeddings", "smaller", "linears smaller", "FLOPs/token", "tokens/s"))
    rows = []
    for a in said["arms"]:
        mark = " (reference)" if a["arm"] == said["reference"] else ""
        ranks = DASH if not a["ranks"] else str(a["ranks"][0]) if len(a["ranks"]) == 1 else f"{a['ranks'][0]} to {a['ranks'][-1]}"
        rows.append([
            a["size"], a["arm"] + mark, a["kind"], ranks, a["optimizer"], _plain(a["chosen"]) + (EDGE if a["at_edge"] else ""), str(a["seeds"]), big(a["tokens"]),
            estimate(a["loss"], 4), estimate(a["bits_per_byte"], 4), f"{a['params']:,}", f"{a['non_embedding']:,}", f"{a['smaller']:.2f}x", f"{a['smaller_linears']:.2f}x",
            big(a["flops_per_token"]), f"{a['tokens_per_s']:,.0f}",
        ])  # fmt: skip
    edge = f" A value marked{EDGE} lies at an end of its list." if any(a["at_edge"] for a in said["arms"]) else ""
    return Table("arms", "Arms", f"Held-out loss at the end of training, mean over seeds with Student's 95% interval; tokens a second: median over seeds.{edge}", heads, rows)


def _beside(said: Mapping[str, Any]) -> Table:
    base, heads = said["beside"]["arm"], (("size", False), ("arm", False), ("seeds", True), ("difference, nats/token", True), ("p (Holm)", True), ("times its tokens/s", True))
    rows = [[r["size"], named(said, r, base), str(r["difference"]["n"]), _difference(r["difference"]), _p(r["difference"].get("holm_p")), _ratio(r["speed"])] for r in said["beside"]["rows"]]
    lead = f"Loss of the arm less that of {base}, of the same size, seed and tokens: below 0 the arm is better. p by Holm over this table; intervals are Student's over seeds, not widened for its length.{_edges(said, base)}"
    return Table("beside", f"Beside {base}", lead, heads, rows)


def _ratio(r: Mapping[str, Any]) -> str:
    return f"{r['value']:.2f}" + (f" [{r['low']:.2f}, {r['high']:.2f}]" if r["low"] is not None else "")


def _mega(value: float | None, digits: int = 1) -> str:
    return DASH if value is None else f"{value / 1e6:,.{digits}f}"


def _bytes(said: Mapping[str, Any]) -> Table:
    heads = (("size", False), ("arm", False), ("parameters", True), ("16 bits, MB", True), *((f"{codec}, MB", True) for codec in said["codecs"]))
    heads += tuple((f"{title}, MB", True) for title in ("training state", "kept for backward", "both", "peak growth"))
    rows = []
    for a in said["arms"]:
        if a["compared"] or a["arm"] == said["reference"]:
            both = a["state_bytes"] + a["activation_bytes"] if a["activation_bytes"] else None
            rows.append([a["size"], a["arm"], f"{a['params']:,}", *(_mega(v, 3) for v in a["bytes"].values()), *map(_mega, (a["state_bytes"], a["activation_bytes"], both, a["growth_bytes"]))])
    lead = (
        f"Linears under each codec, embeddings, norms and biases in 16 bits. Training state: {pretraining_how.kept(said)}, and a fixed support. Kept for backward: by one micro-batch, counted and not measured. "
        "Peak growth: the process's peak less what it held before training, measured."
    )
    return Table("bytes", "Bytes", lead, heads, rows)


def _compared(said: Mapping[str, Any], way: str) -> Table:
    unit = "bytes" if way == "memory" else "tokens"
    heads = (("size", False), ("arm", False), ("seeds", True), (f"{unit} of dense", True), ("difference, nats/token", True), ("p (Holm)", True), ("note", False))
    rows = []
    for row in said["comparisons"][way]:
        d = row["difference"] or row["bound"]
        shown = DASH if not d else f"{row['side']} {_difference(d)}".strip()
        note = "; ".join(text for text in (row["why"], row["note"]) if text)
        rows.append([row["size"], named(said, row), str(d["n"]) if d else DASH, amount(row["dense"], unit) if row["dense"] else DASH, shown, _p(d.get("holm_p")) if d else DASH, note])
    taken = "parameters and optimiser state" + (" and what a micro-batch keeps for the backward pass" if said["setting"]["activations"] else " alone")
    bound = " Beyond dense's runs the difference is to its last one there, and bounds the true one." if any(row["bound"] for row in said["comparisons"][way]) else ""
    lead = f"{LEADS[way].format(memory=taken)}{bound} Below 0 the arm is better than dense. p by Holm over this table; intervals are not widened for its length.{_edges(said)}"
    return Table(f"equal-{way}", f"At {WAYS[way]}", lead, heads, rows)


def _speeds(said: Mapping[str, Any]) -> Table:
    heads = (("size", False), ("arm", False), ("seeds", True), ("times dense's tokens/s", True), ("ratio of medians", True), (f"p of {CLAIM['faster']}x (Holm)", True))
    rows = []
    for row in said["speeds"]:
        r = row["ratio"]
        rows.append([row["size"], row["arm"], str(r["n"]), _ratio(r), f"{row['median']:.2f}", _p(r.get("holm_p"))])
    return Table("speed", "Speed of training", "Ratio to dense of the same size and seed, geometric mean with Student's 95% interval over seeds.", heads, rows)


def _trend(said: Mapping[str, Any]) -> Table:
    heads = (("arm", False), ("sizes", True), ("nats/token a doubling", True), ("p (Holm)", True))
    rows = [[r["arm"], str(r["sizes"]), _difference(r["slope"], 4), _p(r["slope"].get("holm_p"))] for r in said["trend"] if r["slope"]]
    lead = "Slope of the difference to dense at equal tokens over log2 of dense's parameters without embeddings; each size is one point, the mean over its seeds. Above 0: dense gains on the arm as models grow."
    return Table("trend", "Trend over size", lead + confounded(said), heads, rows)


def _power(said: Mapping[str, Any]) -> Table:
    heads = (("size", False), ("seeds", True), ("dense's own sd", True), ("sd of differences", True), ("smallest loss excludable", True), ("lone difference Holm can name", True), ("dense's line misses by, mean", True), ("at worst", True), ("of runs", True))
    misses = {row["size"]: row for row in said["chords"] if row["line"] == "tokens"}

    def missed(row: Mapping[str, Any] | None) -> list[str]:
        return [signed(row["mean"], 4), f"{row['worst']:.4f}", str(row["n"])] if row else [DASH] * 3

    rows = [[r["size"], str(r["seeds"]), *(DASH if r[k] is None else f"{r[k]:.4f}" for k in ("dense_sd", "paired_sd", "excluded", "named")), *missed(misses.get(r["size"]))] for r in said["power"]]
    rows += [["over sizes, in bytes", *[DASH] * 5, *missed(row)] for row in said["chords"] if row["line"] == "bytes"]
    lead = (
        "Nats a token, over seeds. Differences: of arms to dense at equal tokens, pooled over arms; the smallest loss excludable is the reach of their interval, where none was measured. "
        "Dense's line: every budget between two others is left out in turn and read from the line through the rest, which spans two steps there; above 0 the line shows dense worse than it is."
    )
    return Table("power", "What these seeds and lines can tell", lead, heads, rows)


def _how(said: Mapping[str, Any]) -> Table:
    return Table("how", "How it was measured", "From the receipts of the runs.", (("what", False), ("how", False)), [list(row) for row in said["how"]])


def _gpt2(said: Mapping[str, Any]) -> Table:
    heads = (("model", False), ("q, k, v", False), ("choice", False), ("rank, or share", True), ("exact", True), ("parameters", True), ("smaller", True))
    rows = []
    for r in said["table"]:
        names = ["16 bits", *(k for k in r["bytes"] if k not in ("16", "one each")), "a byte each"]
        rank = "" if "rank" not in r else str(r["rank"]) if isinstance(r["rank"], int) else f"{r['rank']:.4f}: " + ", ".join(f"{k} {v}" for k, v in (r.get("ranks") or {}).items())
        exact = f"{r['exact']:.1f}" if "exact" in r else ""
        rows.append([f"{r['family']} {r['size']}", "fused" if r["fused"] else "apart", r["choice"], rank, exact, f"{r['params']:,}", f"{r['smaller']:.3f}x", *(f"{v / 1e9:.3f}" for v in r["bytes"].values())])
        full = (*heads, *((f"{name}, GB", True) for name in names))
    lead = (
        f"`{said['table_structure']}` in every linear of GPT-2 so that the whole model is {CLAIM['smaller']}x smaller; exact: the rank, not whole, that gives the factor to the digit. "
        f"The paper's models are below {CLAIM['bytes'] / 1e9} GB: at GPT-2 1.5B that is one byte for each value, embeddings included; with embeddings in 16 bits it is more."
    )
    return Table("gpt2", f"GPT-2 at {CLAIM['smaller']}x", lead, full if said["table"] else heads, rows)


def _search(said: Mapping[str, Any]) -> Table:
    rows = []
    for group, c in said["chosen"].items():
        losses = ", ".join(f"{k}: {v:.3f}" if isinstance(v, int | float) else f"{k}: failed" for k, v in c["loss"].items())
        rows.append([group, losses, f"{c['value']}{' (at the edge)' if c.get('at_edge') else ''}"])
    return Table("search", f"Search of {said['searched']}", "By validation loss of shorter runs of one seed.", (("group", False), ("losses", False), ("chosen", True)), rows)


def markdown(said: Mapping[str, Any]) -> str:
    """report.md."""
    lines = [f"# {said['study']}", "", "## Conclusion", ""]
    for text in [*said["conclusion"], *(f"Note: {note}" for note in said["notes"])]:
        lines += [text, ""]
    for table in tables(said):
        lines += [f"## {table.title}", "", table.lead, "", _row([title for title, _ in table.heads]), _row(["---:" if number else "---" for _, number in table.heads])]
        lines += [_row([cell.replace("|", "\\|") for cell in row]) for row in table.rows] + [""]
    if said["failed"]:
        lines += ["## Failed", ""] + [f"- {', '.join(str(v) for v in r['keys'].values())}: {r['error']}" for r in said["failed"]] + [""]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def to_csv(study: Study, sizes: Mapping[str, Mapping[str, Any]]) -> str:
    """runs.csv: a line for each run, raw numbers. sizes: {size: {"embeddings"}}."""
    names = ["size", "arm", "seed", "kind", "optimizer", study.searched or "searched", "run", "nats_per_token", "bits_per_byte", "tokens", "steps", "seconds", "tokens_per_s", "peak_bytes", "start_bytes", "cpu_seconds", "activation_bytes"]
    names += ["params", "non_embedding", "params_dense", "flops_per_token"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for r in study.runs:
        values = [r.size, r.arm, r.seed, r.kind, r.optimizer, r.chosen, r.run, r.loss, r.bits, r.tokens, r.steps, r.seconds, r.rate, r.peak_bytes, r.start_bytes, r.cpu_seconds, r.activation]
        writer.writerow(["" if v is None else v for v in [*values, r.params, r.params - sizes[r.size]["embeddings"], r.dense, 6 * r.work]])
    return out.getvalue()


def estimate(found: Mapping[str, Any] | None, digits: int) -> str:
    """A mean with its interval, where it has one."""
    if not found:
        return DASH
    low_high = f" [{found['low']:.{digits}f}, {found['high']:.{digits}f}]" if found["low"] is not None else ""
    return f"{found['value']:.{digits}f}{low_high}"


def _difference(d: Mapping[str, Any], digits: int = 3) -> str:
    return signed(d["value"], digits) + (f" [{signed(d['low'], digits)}, {signed(d['high'], digits)}]" if d["low"] is not None else "")


def _p(p: float | None) -> str:
    return DASH if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _plain(value: Any) -> str:
    return DASH if value is None else f"{value:g}" if isinstance(value, float) else str(value)
