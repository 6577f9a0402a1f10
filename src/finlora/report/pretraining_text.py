"""A pretraining study's figures as tables, once for Markdown and the page, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finlora.report.pretraining_claim import MARGIN, WAYS, signed
from finlora.report.pretraining_compare import STATE, big
from finlora.report.pretraining_data import Study
from finlora.report.pretraining_sizes import CLAIM
from finlora.report.tables import DASH

LEADS = {
    "tokens": "Loss of the arm less that of dense of the same size, seed and tokens, nats a token.",
    "flops": "Dense on the tokens that the arm's FLOPs buy it (6 for each multiply-add of a token forward: 2, and twice that backward), by a line in log tokens between two dense budgets.",
    "wall": "Dense on the tokens that it would see in the arm's seconds at the median tokens a second of each, by the same line.",
    "memory": f"Dense of the size whose training state ({STATE} bytes for each value: fp32 weight, gradient and AdamW's two moments) is as large, by a line in log parameters between two sizes of dense; models of as many values are as many bytes in 16 bits too.",
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
    out = [_claim(said), _sizes(said), _arms(said), _bytes(said), *(_compared(said, way) for way in WAYS), _speeds(said), _trend(said), _gpt2(said), _search(said)]
    return [table for table in out if table.rows]


def _claim(said: Mapping[str, Any]) -> Table:
    heads = (("size", False), ("arm", False), ("loss", False), ("speed", False), ("the claim", False))
    rows = [[v["size"], v["arm"], v["loss"], v["speed"], v["verdict"]] for v in said["claim"]]
    lead = (
        f"Arms whose linears are {CLAIM['smaller']}x smaller. No loss: the interval of the difference at equal tokens ends at most {MARGIN} nats a token above 0. "
        "Contradicted: a loss, or too slow; holds: neither loss nor too slow; else open."
    )
    return Table("claim", "The claim by size and arm", lead, heads, rows)


def _sizes(said: Mapping[str, Any]) -> Table:
    heads = (("size", False), ("linears", True), ("without embeddings", True), ("embeddings", True), ("all", True), ("vocabulary", True), ("architecture", False))
    rows = [
        [s["size"], *(f"{s[k]:,}" for k in ("linears", "non_embedding", "embeddings", "params", "vocabulary")), ", ".join(f"{k} {v}" for k, v in s["config"].items())]
        for s in said["sizes"]
    ]
    return Table("sizes", "Sizes", "Parameters of the dense models; embeddings are those of tokens and positions, and an output layer of its own.", heads, rows)


def _arms(said: Mapping[str, Any]) -> Table:
    heads = (("size", False), ("arm", False), ("structure", False), ("optimiser", False), (said["searched"] or "searched", True), ("seeds", True), ("tokens", True), ("nats/token", True), ("bits/byte", True))
    heads += tuple((title, True) for title in ("parameters", "without embeddings", "smaller", "linears smaller", "FLOPs/token", "tokens/s", "peak MB"))
    rows = []
    for a in said["arms"]:
        mega = f"{a['peak_bytes'] / 1e6:,.0f}" if a["peak_bytes"] else DASH
        rows.append([
            a["size"], a["arm"] + (" (reference)" if a["arm"] == said["reference"] else ""), a["kind"], a["optimizer"], _plain(a["chosen"]), str(a["seeds"]), big(a["tokens"]),
            estimate(a["loss"], 4), estimate(a["bits_per_byte"], 4), f"{a['params']:,}", f"{a['non_embedding']:,}", f"{a['smaller']:.2f}x", f"{a['smaller_linears']:.2f}x",
            big(a["flops_per_token"]), f"{a['tokens_per_s']:,.0f}", mega,
        ])  # fmt: skip
    return Table("arms", "Arms", "Held-out loss at the end of training, mean over seeds with Student's 95% interval; tokens a second: median over seeds; peak: the largest of a run, as its receipt measured it.", heads, rows)


def _bytes(said: Mapping[str, Any]) -> Table:
    heads = (("size", False), ("arm", False), ("parameters", True), ("16 bits, MB", True), *((f"{codec}, MB", True) for codec in said["codecs"]), ("training state, MB", True))
    rows = [
        [a["size"], a["arm"], f"{a['params']:,}", *(f"{v / 1e6:.3f}" for v in a["bytes"].values()), f"{a['state_bytes'] / 1e6:.2f}"]
        for a in said["arms"] if a["compared"] or a["arm"] == said["reference"]
    ]  # fmt: skip
    return Table("bytes", "Bytes", f"Linears under each codec, embeddings, norms and biases in 16 bits. Training state: {STATE} bytes for each value, and a fixed support.", heads, rows)


def _compared(said: Mapping[str, Any], way: str) -> Table:
    unit = "parameters of dense" if way == "memory" else "tokens of dense"
    heads = (("size", False), ("arm", False), ("seeds", True), (unit, True), ("difference, nats/token", True), ("p (Holm)", True))
    rows = []
    for row in said["comparisons"][way]:
        d = row["difference"]
        shown = _difference(d) if d else f"not measured: {row['why']}"
        rows.append([row["size"], row["arm"], str(d["n"]) if d else DASH, big(row["dense"]) if row["dense"] else DASH, shown, _p(d.get("holm_p")) if d else DASH])
    return Table(f"equal-{way}", f"At {WAYS[way]}", LEADS[way] + " Below 0 the arm is better than dense. p by Holm over this table; intervals are not widened for its length.", heads, rows)


def _speeds(said: Mapping[str, Any]) -> Table:
    heads = (("size", False), ("arm", False), ("seeds", True), ("times dense's tokens/s", True), ("ratio of medians", True))
    rows = []
    for row in said["speeds"]:
        r = row["ratio"]
        low_high = f" [{r['low']:.2f}, {r['high']:.2f}]" if r["low"] is not None else ""
        rows.append([row["size"], row["arm"], str(r["n"]), f"{r['value']:.2f}{low_high}", f"{row['median']:.2f}"])
    return Table("speed", "Speed of training", "Ratio to dense of the same size and seed, geometric mean with Student's 95% interval over seeds.", heads, rows)


def _trend(said: Mapping[str, Any]) -> Table:
    heads = (("arm", False), ("sizes", True), ("points", True), ("nats/token a doubling", True), ("p", True))
    rows = [[r["arm"], str(r["sizes"]), str(r["slope"]["n"]), _difference(r["slope"], 4), _p(r["slope"]["p"])] for r in said["trend"] if r["slope"]]
    return Table("trend", "Trend over size", "Slope of the difference to dense at equal tokens over log2 of dense's parameters without embeddings; each seed at each size is a point. Above 0: dense gains on the arm as models grow.", heads, rows)


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
    names = ["size", "arm", "seed", "kind", "optimizer", study.searched or "searched", "run", "nats_per_token", "bits_per_byte", "tokens", "steps", "seconds", "tokens_per_s", "peak_bytes"]
    names += ["params", "non_embedding", "params_dense", "flops_per_token"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for r in study.runs:
        values = [r.size, r.arm, r.seed, r.kind, r.optimizer, r.chosen, r.run, r.loss, r.bits, r.tokens, r.steps, r.seconds, r.rate, r.peak_bytes]
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
