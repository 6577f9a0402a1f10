"""A pretraining study's page: one HTML file with its style and plots inside, which asks the network for nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from finlora.report import study_facts
from finlora.report.html import POLICY, esc
from finlora.report.pretraining_claim import levels
from finlora.report.pretraining_data import Study
from finlora.report.pretraining_plots import Line, key, lines
from finlora.report.pretraining_text import Table, tables
from finlora.report.study_page import STYLE
from finlora.report.study_page import _table as drawn


def page(study: Study, said: Mapping[str, Any]) -> str:
    """The whole page. said: the figures of report.json."""
    parts = tables(said)
    sections = [
        ("conclusion", "Conclusion", _conclusion(said)),
        ("plots", "Plots", _plots(said)),
        *((table.key, table.title, _table(table)) for table in parts),
        ("failed", "Failed", "".join(f"<p>{esc(', '.join(str(v) for v in r['keys'].values()))}: {esc(str(r['error']))}</p>" for r in said["failed"])),
        ("provenance", "Provenance", study_facts.provenance(study.held)),
        ("reading", "How to read this", READING),
    ]
    sections = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{name}">{esc(title)}</a>' for name, title, _ in sections[1:])
    body = "".join(f'<section id="{name}"><h2>{esc(title)}</h2>{text}</section>\n' for name, title, text in sections)
    style = resources.files("finlora.report").joinpath("style.css").read_text(encoding="utf-8")
    title = f"FinLoRA study: {esc(said['study'])}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{title}</title>\n<style>\n{style}{STYLE}</style>\n</head>\n<body>\n"
        f'<header><h1>{title}</h1><nav aria-label="Sections">{links}</nav></header>\n<main>\n{body}</main>\n</body>\n</html>\n'
    )


def _conclusion(said: Mapping[str, Any]) -> str:
    text = "".join(f"<p>{esc(sentence)}</p>" for sentence in said["conclusion"]) + "".join(f'<p class="note">{esc(note)}</p>' for note in said["notes"])
    files = " ".join(f'<a href="{file}">{file}</a>' for file in ("report.md", "report.json", "runs.csv", "receipts.jsonl"))
    return f'{text}<p class="muted">The same in other forms: {files}.</p>'


def _table(table: Table) -> str:
    heads = [(esc(title), ("n" if number else "") + (" pin" if at == 0 else "")) for at, (title, number) in enumerate(table.heads)]
    rows = []
    for row in table.rows:
        cells = [f'<td class="{"n" if number else ""}{" wide" if len(cell) > 60 else ""}">{esc(cell)}</td>' for cell, (_, number) in zip(row, table.heads)]
        rows.append([f'<th scope="row">{esc(row[0])}</th>', *cells[1:]])
    return f"<p>{esc(table.lead)}</p>{drawn(heads, rows, table.title)}"


# -- plots -------------------------------------------------------------------------------------------------------------


def _plots(said: Mapping[str, Any]) -> str:
    arms = [a for a in said["arms"] if a["structured"]]
    families = list(dict.fromkeys(a["family"] for a in arms))
    equal = {(r["size"], r["arm"]): r["difference"] for r in said["comparisons"]["tokens"]}
    width = {s["size"]: s["non_embedding"] for s in said["sizes"]}
    figures, drawn_lines = [], []
    for size in width:
        given = [Line(f, [_point(a["smaller_linears"], d) for a in arms if (a["size"], a["family"]) == (size, f) and (d := equal.get((size, a["arm"])))], at) for at, f in enumerate(families)]
        drawn_lines += given
        figures.append((f"{size}: difference to dense at equal tokens, by how much smaller the linears are", lines(given, "linears smaller, times", "difference, nats/token", f"{size}: difference by compression", level=True)))
    for smaller, rows in levels(arms).items() if len(width) > 1 else ():
        given = [Line(f, [_point(width[a["size"]] / 1e6, d) for a in rows if a["family"] == f and (d := equal.get((a["size"], a["arm"])))], at) for at, f in enumerate(families)]
        figures.append((f"Linears about {smaller} smaller: difference to dense at equal tokens, by size", lines(given, "parameters of dense without embeddings, millions", "difference, nats/token", f"{smaller}: difference by size", level=True)))
    for size in width:
        own = [a for a in said["arms"] if a["size"] == size]
        given = [Line("dense", [_point(a["tokens"] * a["flops_per_token"] / 1e12, a["loss"]) for a in own if a["budget"]], len(families))]
        given += [Line(f, [_point(a["tokens"] * a["flops_per_token"] / 1e12, a["loss"]) for a in own if a["structured"] and a["family"] == f], at) for at, f in enumerate(families)]
        drawn_lines += given[:1]
        figures.append((f"{size}: held-out loss by the FLOPs of training; dense at its budgets", lines(given, "FLOPs of training, 10^12", "nats/token", f"{size}: loss by FLOPs")))
    shown = "".join(f"<figure><figcaption>{esc(caption)}</figcaption>{svg}</figure>" for caption, svg in figures if svg)
    return f'<p class="muted">Bars are 95% intervals over seeds.</p>{key([one for one in drawn_lines if one.points])}<div class="plots">{shown}</div>' if shown else ""


def _point(x: float, found: Mapping[str, Any]) -> tuple[float, float, float, float]:
    value = found["value"]
    ends: Sequence[float] = (value, value) if found["low"] is None else (found["low"], found["high"])
    return x, value, ends[0], ends[1]


READING = """
<p>All runs of a size see the same held-out text; arms with the same seed see the same training text in the same order. A difference is taken seed by seed, and its interval counts the seeds
alone: it says how another seed would do on this text, not how another text would. With three seeds Student’s factor is 4.3, and an interval that holds zero decides nothing; nor, among many arms, does one that leaves it out: arms are counted and named by Holm’s p.</p>
<p>At equal tokens a smaller model is helped by costing less and hurt by holding less; at equal FLOPs and equal wall time dense is given what the arm saved. Where that lies
beyond dense’s runs, the arm is compared with the last of them: a bound, which tells only one side. Equal memory of training is that of these batches: what is kept for the backward pass grows with
them, and is most of it at such sizes. Wall time is that of this machine and these widths: narrow products waste more of a processor than wide ones.</p>
<p>Each arm’s learning rate was chosen on shorter runs of one seed, from the same list for all.</p>
"""
