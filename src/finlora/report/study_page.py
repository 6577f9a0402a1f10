"""A study's page: one HTML file with its style, script and plots inside, which asks the network for nothing.

It is made as html.py makes its page, with the same style, and every text from a receipt goes through `esc`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

from finlora.report import study_facts, study_forgetting, study_plots, tables
from finlora.report.compare import signed
from finlora.report.html import POLICY, _p, _title, esc
from finlora.report.study_data import Held, frozen, told
from finlora.report.study_ranks import COSTS, LEVEL, name

STYLE = """
sup.g { color: var(--link); font-weight: 600; margin-left: 0.15em; }
.wide { white-space: normal; min-width: 18rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; max-width: 62rem; font: 0.9em ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
details pre { color: var(--muted); border-left: 3px solid var(--line); padding-left: 0.7rem; }
tr.strong > * { background: var(--card); }
"""


def page(held: Held, said: Mapping[str, Any], found: Mapping[str, Any], errors: Mapping[str, Mapping[str, Any]]) -> str:
    """The whole page. said: the summary; found: the overview with its cells; errors: of each task."""
    series = _series(found)
    sections = [
        ("summary", "Summary", _summary(held, said, found)),
        ("overview", "Methods by tasks", _overview(said, found)),
        ("fronts", "Accuracy against cost", _fronts(said, series)),
        ("tasks", "Tasks", "".join(_task(task, said, errors[task], series, at == 0 or len(found["tasks"]) < 4) for at, task in enumerate(found["tasks"]))),
        ("codec", "The same method at another setting", _across(said)),
        ("forgetting", "Before and after tuning", _before_after(held, said) + _general(said)),
        ("search", "Search", _search(said)),
        ("missing", "Failed and left out", _missing(said)),
        ("provenance", "Provenance", study_facts.provenance(held)),
        ("reading", "How to read this", READING),
    ]
    sections = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in sections[1:])
    body = "".join(f'<section id="{key}">{"" if key == "summary" else f"<h2>{title}</h2>"}{text}</section>\n' for key, title, text in sections)
    read = resources.files("finlora.report")
    style, script = (read.joinpath(file).read_text(encoding="utf-8") for file in ("style.css", "table.js"))
    title = f"FinLoRA study: {esc(said['study'])}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{title}</title>\n<style>\n{style}{STYLE}</style>\n</head>\n<body>\n"
        f'<header><h1>{title}</h1><nav aria-label="Sections">{links}</nav></header>\n<main>\n{body}</main>\n'
        f'<p id="said" role="status" class="muted" style="position:absolute;left:-99rem"></p>\n<script>\n{script}</script>\n</body>\n</html>\n'
    )


def _series(found: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], int]:
    """The number of a setting's colour and marker; where all share one setting, of a method's."""
    places = list(dict.fromkeys(frozen(row["setting"]) for row in found["rows"]))
    methods = list(dict.fromkeys(row["method"] for row in found["rows"]))
    return lambda row: places.index(frozen(row["setting"])) if len(places) > 1 else methods.index(row["method"])


def _table(heads: Sequence[tuple[str, str]], lines: Sequence[Sequence[str]], label: str) -> str:
    """heads: (title, classes); lines: cells as whole <td> or <th> elements."""
    top = "".join(f'<th scope="col" class="plain {classes}">{title}</th>' for title, classes in heads)
    rows = "".join(f"<tr>{''.join(cells)}</tr>\n" for cells in lines)
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{esc(label)}"><table><thead><tr>{top}</tr></thead><tbody>\n{rows}</tbody></table></div>'


def _share(a: Mapping[str, Any], group: str = "") -> str:
    about = f"{a['how']}, {a['n']:,} examples" + (f", {a['clusters']:,} clusters" if a["clusters"] != a["n"] else "")
    letters = f'<sup class="g">{esc(group)}</sup>' if group else ""
    return f'<span class="est"><span{_title(about)}>{100 * a["value"]:.1f}</span>{letters}</span><span class="ci">[{100 * a["low"]:.1f}, {100 * a["high"]:.1f}]</span>'


def _difference(d: Mapping[str, Any] | None) -> str:
    """Two cells: the difference with its interval, and the adjusted p."""
    if d is None:
        return '<td class="n edge">reference</td><td class="n"></td>'
    clear = d.get("holm_p", 1) < LEVEL
    verdict = ("higher" if d["value"] > 0 else "lower") if clear else ""
    return (
        f'<td class="n edge"><span class="est {verdict}">{signed(d["value"])}</span><span class="ci">[{signed(d["low"])}, {signed(d["high"])}]</span></td>'
        f'<td class="n">{_p(d.get("holm_p"))}</td>'
    )


def _summary(held: Held, said: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    seeds = sorted({row["seeds"] for table in said["tables"] for row in table["rows"]})
    many = f"{seeds[0]}" if len(seeds) == 1 else "no" if not seeds else f"{seeds[0]} to {seeds[-1]}"
    out = [
        f"{len(held.study['runs'])} graded runs: {len(held.methods())} methods, {len(found['tasks'])} {'task' if len(found['tasks']) == 1 else 'tasks'}, "
        f"{many} {'seed' if seeds == [1] else 'seeds'} each" + (", and the untuned base" if held.base else "") + "."
    ]
    rows = [row for table in said["tables"] for row in table["rows"] if "difference" in row]
    clear = [row for row in rows if row["difference"]["holm_p"] < LEVEL]
    if rows:
        better = sum(row["difference"]["value"] > 0 for row in clear)
        out.append(
            f"Against {said['reference']}, at the same setting, {len(clear)} of {len(rows)} differences are clear (paired over seeds and examples, Holm within each table)"
            + (f": {better} better, {len(clear) - better} worse." if clear else ".")
        )
    if said["across"]:
        worse = [row for row in said["across"] if row["difference"]["holm_p"] < LEVEL]
        out.append(f"Of {len(said['across'])} comparisons of a method with itself at the first setting, {len(worse)} show a difference.")
    ranked = sorted((row for row in found["rows"] if "rank" in row), key=lambda r: r["rank"])
    if ranked:
        first = ", ".join(f"{name(row)} ({row['rank']:.1f})" for row in ranked[:3])
        out.append(f"Mean ranks over {len(found['tasks'])} tasks begin with {first}; that all are alike has p = {found['friedman']:.2g} (Friedman).")
    notes = []
    if seeds and seeds[0] == 1:
        notes.append("Some methods have one seed: their intervals say nothing of how another seed would do.")
    edges = [group for group, c in said["chosen"].items() if c.get("at_edge")]
    if edges:
        notes.append(f"The search chose a value at the edge of its list for {len(edges)} of {len(said['chosen'])} groups ({'; '.join(edges[:4])}{' ...' if len(edges) > 4 else ''}): a better one may lie beyond.")
    if said["failed"]:
        notes.append(f"{len(said['failed'])} runs failed; they are listed below.")
    machines = {(s["device"].get("cpu"), s["device"].get("gpu")) for s in held.sheets.values() if s.get("device")}
    if len(machines) > 1:
        notes.append("The runs were timed on different machines: their times are not comparable.")
    shares = [share for s in held.sheets.values() if (share := (s.get("train") or {}).get("joules_share")) is not None]
    if shares and min(shares) < 0.9 and any(f["cost"] == "joules" for f in said["fronts"]):
        notes.append(f"Energy counters count all that a chip does: of the processors' busy time as little as {100 * min(shares):.0f}% was a run's own, so its energy is an upper bound.")
    text = "".join(f"<p>{esc(sentence)}</p>" for sentence in out) + "".join(f'<p class="note">{esc(note)}</p>' for note in notes)
    files = " ".join(f'<a href="{file}">{file}</a>' for file in ("report.md", "table.csv", "table.tex", "summary.json", "receipts.jsonl", "marks.json"))
    return text + f'<p class="muted">The same in other forms, and what it was computed from: {files}.</p>'


def _overview(said: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    tasks, rank = found["tasks"], any("rank" in row for row in found["rows"])
    settings = any(row["setting"] for row in found["rows"])
    columns = [("method", False), *([("setting", False)] if settings else []), *((t, True) for t in tasks), *([("mean", True), ("mean rank", True)] if rank else [])]
    heads = "".join(
        f'<th scope="col" data-column="{at}" aria-sort="none" class="{"n " if numeric else ""}{"pin" if at == 0 else ""}"><button type="button">{esc(title)}</button></th>'
        for at, (title, numeric) in enumerate(columns)
    )
    lines = ""
    for floor in dict.fromkeys(f for table in said["tables"] for f in table["floors"]):
        values = [next((t["floors"][floor] for t in said["tables"] if t["task"] == task and floor in t["floors"]), None) for task in tasks]
        cells = "".join(f'<td class="n" data-sort="{v}">{100 * v:.1f}</td>' if v is not None else f'<td class="n">{tables.DASH}</td>' for v in values)
        lines += f'<tr class="floor"><th scope="row">{esc(floor.replace("_", " "))}</th>{"<td>floor</td>" if settings else ""}{cells}{"<td></td><td></td>" if rank else ""}</tr>\n'
    for row in found["rows"]:
        cells = ""
        for task in tasks:
            c = row["cells"].get(task)
            cells += f'<td class="n" data-sort="{c["accuracy"]["value"]}">{_share(c["accuracy"], c["group"])}</td>' if c else f'<td class="n">{tables.DASH}</td>'
        if rank:
            cells += "".join(f'<td class="n" data-sort="{row[k]}">{row[k] * s:.{d}f}</td>' if k in row else f'<td class="n">{tables.DASH}</td>' for k, s, d in (("mean", 100, 1), ("rank", 1, 2)))
        place = f'<td data-sort="{esc(told(row["setting"]))}">{esc(told(row["setting"]))}</td>' if settings else ""
        lines += f'<tr class="run"><th scope="row" data-sort="{esc(row["method"])}">{esc(row["method"])}</th>{place}{cells}</tr>\n'
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Methods by tasks"><table class="sortable"><thead><tr>{heads}</tr></thead><tbody>\n{lines}</tbody></table></div>'
        '<p class="muted">Accuracy in per cent [95% interval over seeds and examples]. Two methods that share a letter on a task, at the same setting, are not told apart there: '
        "all pairs of the table, paired over seeds and examples, adjusted by Holm. Press a column’s name to sort.</p>"
    )


def _fronts(said: Mapping[str, Any], series: Callable[[Mapping[str, Any]], int]) -> str:
    alone = len({f["task"] for f in said["fronts"]}) == 1
    chosen = [f for f in said["fronts"] if not f["task"] or alone]
    figures = "".join(_figure(f, said, series) for f in chosen or said["fronts"])
    lead = "Filled: on the front, beaten by no other run in accuracy without costing more; the line joins what each cost at least buys. Intervals are not taken into account."
    lead += "" if alone else " Here the mean over the tasks; each task has its own below."
    return f'<p class="muted">{lead}</p><div class="plots">{figures}</div>' if figures else ""


def _figure(f: Mapping[str, Any], said: Mapping[str, Any], series: Callable[[Mapping[str, Any]], int]) -> str:
    title, scale = COSTS[f["cost"]]
    title += f", {said['currency']}" if f["cost"] == "dollars" else ""
    points = f["points"]
    svg = study_plots.front(points, [name(p) for p in points], [series(p) for p in points], title, f"{f['task'] or 'mean of the tasks'}: accuracy against {title}", scale)
    return f"<figure><figcaption><b>{esc(f['task'] or 'mean of the tasks')}</b>: accuracy against {esc(title.split(',')[0])}</figcaption>{svg}</figure>"


def _task(task: str, said: Mapping[str, Any], wrong: Mapping[str, Any], series: Callable[[Mapping[str, Any]], int], is_open: bool) -> str:
    found = [t for t in said["tables"] if t["task"] == task]
    lines, rows = [], []
    several = any(t["setting"] for t in found)
    for table in found:
        for row in table["rows"]:
            a = row["accuracy"]
            rows.append((name({"method": row["method"], "setting": table["setting"]}), a["value"], a["low"], a["high"], series({"method": row["method"], "setting": table["setting"]})))
            cells = [f'<th scope="row">{esc(row["method"])}</th>', *([f"<td>{esc(told(table['setting']))}</td>"] if several else [])]
            cells += [f'<td class="n">{row["lr"] if row["lr"] is not None else tables.DASH}</td>', f'<td class="n">{_share(a, row["group"])}</td>']
            cells += [f"<td>{' '.join(f'{100 * v:.1f}' for v in row['by_seed'])}</td>", _difference(row.get("difference"))]
            loss = f"{row['val_loss']:.3f}" if not math.isnan(row["val_loss"]) else tables.DASH
            peak = f"{row['peak_bytes'] / 1e6:,.0f}" if row["peak_bytes"] else tables.DASH
            seconds = f"{row['seconds']:,.0f}" if not math.isnan(row["seconds"]) else tables.DASH
            cells += [f'<td class="n">{v}</td>' for v in (loss, f"{row['trainable']:,}", f"{row['bits_per_weight']:.2f}", peak, seconds)]
            lines.append(cells)
    heads = [("method", "pin"), *([("setting", "")] if several else []), ("lr", "n"), ("accuracy %", "n"), ("by seed", ""), (f"against {esc(said['reference'])}", "n edge"), ("p (Holm)", "n")]
    heads += [("val. loss", "n"), ("trainable", "n"), ("bits/weight", "n"), ("peak MB", "n"), ("train s", "n")]
    floors = found[0]["floors"]
    rows.sort(key=lambda r: -r[1])
    svg = study_plots.intervals(rows, [(k.replace("_", " "), v) for k, v in floors.items()], f"{task}: intervals")
    plots = "".join(_figure(f, said, series) for f in said["fronts"] if f["task"] == task and any(not g["task"] for g in said["fronts"]))
    low = ", ".join(f"{k.replace('_', ' ')} {100 * v:.1f}%" for k, v in floors.items())
    text = f'<p class="muted">Floors: {esc(low or "none")}.</p>'
    text += _table(heads, lines, f"Methods on {task}") + f'<div class="plots"><figure>{svg}</figure>{plots}</div>' + _wrong(wrong)
    best = max(r[1] for r in rows)
    return f'<details{" open" if is_open else ""}><summary>{esc(task)} <span class="muted">{wrong["n"]:,} examples, {100 * rows[-1][1]:.1f}% to {100 * best:.1f}%</span></summary><div>{text}</div></details>'


def _wrong(wrong: Mapping[str, Any]) -> str:
    """Examples that most runs miss, and the commonest confusions."""
    text = f"<h3>Errors</h3><p>All {wrong['runs']} runs are right on {wrong['always']:,} of {wrong['n']:,} examples and wrong on {wrong['never']:,}.</p>"
    if wrong["confusions"]:
        parts = (f"{esc(gold)} answered as {esc(answer)} {count:,} times" for gold, answer, count in wrong["confusions"])
        text += f"<p>Commonest, over all runs: {'; '.join(parts)}.</p>"
    lines = []
    for e in wrong["examples"]:
        answers = ", ".join(f"{esc(a)} ({n})" for a, n in e["answers"])
        shown = f"<pre>{esc(e['text'])}</pre>" if e["text"] else ""
        lines.append([f'<th scope="row"><code>{esc(e["id"])}</code></th>', f"<td>{esc(e['gold'])}</td>", f'<td class="wide">{answers}{shown}</td>', f'<td class="n">{e["wrong"]} of {wrong["runs"]}</td>', f"<td><code>{esc(e['prompt'])}</code></td>"])
    heads = [("example", "pin"), ("gold", ""), ("answers (runs)", ""), ("wrong", "n"), ("prompt sha256", "")]
    return text + (_table(heads, lines, "Examples of errors") if lines else "") + f'<p class="muted">{esc(wrong["texts"])}</p>'


def _across(said: Mapping[str, Any]) -> str:
    lines = []
    for row in said["across"]:
        lines.append([f'<th scope="row">{esc(row["task"])}</th>', f"<td>{esc(row['method'])}</td>", f"<td>{esc(told(row['setting']))} against {esc(told(row['against']))}</td>", _difference(row["difference"])])
    heads = [("task", "pin"), ("method", ""), ("setting", ""), ("difference, points", "n edge"), ("p (Holm)", "n")]
    return _table(heads, lines, "The same method at another setting") if lines else ""


def _before_after(held: Held, said: Mapping[str, Any]) -> str:
    if not said["before_after"]:
        return '<p class="muted">The untuned base is not in this study, so nothing can be said of what tuning gained or forgot; [study] base = true grades it too.</p>'
    out = ""
    for title, about, trained in (("Tasks that were trained on", "What tuning gained.", True), ("Forgetting: tasks that were not trained on", "What tuning cost elsewhere; below zero is forgotten.", False)):
        rows = [row for row in said["before_after"] if row["trained"] is trained]
        lines = [
            [f'<th scope="row">{esc(row["task"])}</th>', f"<td>{esc(row['method'])}</td>", f"<td>{esc(told(row['setting']))}</td>", f'<td class="n">{100 * row["before"]:.1f}</td>', f'<td class="n">{100 * row["after"]:.1f}</td>', _difference(row["difference"])]
            for row in rows
        ]  # fmt: skip
        heads = [("task", "pin"), ("method", ""), ("setting", ""), ("before %", "n"), ("after %", "n"), ("difference, points", "n edge"), ("p (Holm)", "n")]
        text = _table(heads, lines, title) if lines else '<p class="muted">None of the graded tasks was left out of training.</p>'
        out += f"<h3>{title}</h3><p>{about} Paired with the untuned base on the same examples.</p>{text}"
    return out


def _general(said: Mapping[str, Any]) -> str:
    """Held-out general text before and after tuning."""
    if not said["text"]:
        return ""

    def cell(x: Mapping[str, Any] | None, verdict: str = "", signed: bool = False) -> str:
        value, interval = study_forgetting.shown(x, signed) if x else (tables.DASH, "")
        return f'<td class="n"><span class="est {verdict}"{_title(x["how"]) if x else ""}>{value}</span><span class="ci">{interval}</span></td>'

    lines = []
    for row in said["text"]:
        cells = [f'<th scope="row">{esc(row["method"])}</th>', f"<td>{esc(', '.join(row['tasks']))}</td>", f"<td>{esc(told(row['setting']))}</td>"]
        for figure in study_forgetting.FIGURES:
            d = row[figure]["difference"]
            clear = ("lower" if d["value"] > 0 else "higher") if d and d["holm_p"] < LEVEL else ""  # the colours of worse and better
            cells += [cell(row[figure]["before"]), cell(row[figure]["after"]), cell(d, clear, True), f'<td class="n">{_p(d["holm_p"]) if d else ""}</td>']
        lines.append(cells)
    heads = [("method", "pin"), ("trained on", ""), ("setting", "")]
    for _, _, unit in study_forgetting.FIGURES.values():
        heads += [(f"{unit} before", "n edge"), ("after", "n"), ("difference", "n"), ("p (Holm)", "n")]
    about = (
        f"{said['text'][0]['documents']:,} documents of held-out text. Lower is better; a difference above zero is forgotten. 95% intervals over seeds and documents, "
        "the difference paired by document with the untuned base."
    )
    return f"<h3>Forgetting: held-out general text</h3><p>{about}</p>{_table(heads, lines, 'Held-out general text')}"


def _search(said: Mapping[str, Any]) -> str:
    lines = []
    for group, c in said["chosen"].items():
        losses = "; ".join(f"{k}: {v:.3f}" if v is not None and math.isfinite(float(v)) else f"{k}: failed" for k, v in c["loss"].items())
        edge = ' <span class="muted">at the edge</span>' if c.get("at_edge") else ""
        lines.append([f'<th scope="row">{esc(group)}</th>', f'<td class="n">{esc(str(c["value"]))}{edge}</td>', f"<td>{esc(losses)}</td>"])
    lead = f"<p>{esc(said['key'])}, by the last validation loss, each value trained with equal budget. The test split was not read.</p>"
    return lead + _table([("group", "pin"), ("chosen", "n"), ("validation losses", "")], lines, "Search") if lines else ""


def _missing(said: Mapping[str, Any]) -> str:
    lines = [f"<li>{esc(told(r['keys']))}: {esc(str(r.get('error') or r.get('why')))}</li>" for key in ("failed", "refused") for r in said[key]]
    return f"<ul>{''.join(dict.fromkeys(lines))}</ul>" if lines else ""


READING = """
<p>An interval counts the seed as well as the examples: it says how another seed on other examples of the same kind would do. To compare two methods use the paired
differences and the letters, not the overlap of two intervals. A p is adjusted by Holm over its own table; “clear” means below 0.05, and no clear difference does not mean none.</p>
<p>Accuracy is the mean mark of a task; where a task gives marks between 0 and 1 it is their mean. Unreadable answers count as wrong. The floors know no language; a model that does
not clear them has not been shown to read. Ranks and fronts take the values as they are, without their intervals.</p>
<p>Every number can be computed again from receipts.jsonl and marks.json, which lie beside this page.</p>
"""
