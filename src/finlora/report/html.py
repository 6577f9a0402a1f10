"""The page: one HTML file with its style, script and plots inside, which asks the network for nothing.

Every text that came from a receipt goes through `esc`. The content policy in the head forbids requests, so that even
a slip there could not call out. Order of the page: what was found, the table, the paired differences, the plots, the
confusion matrices, the data, the environment, and how to read it.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

from finlora.receipt import Found
from finlora.report import compare, plots, tables
from finlora.report.tables import part

esc = html.escape
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def page(found: Sequence[Found], warnings: Sequence[str] = (), baseline: str | None = None) -> str:
    """The whole page. found: receipts with their paths; warnings: receipts that could not be read."""
    rows = tables.ordered(found)
    names = tables.labels(rows)
    compared, notes = [], []
    for at in compare.references(rows, baseline):
        differences, left_out = compare.differences(rows, at)
        compared.append((names[at], differences))
        notes += [note for note in left_out if note not in notes]
    sections = [
        ("summary", "Summary", _summary(rows, compared, [*compare.doubts(rows), *warnings])),
        ("runs", "Runs", _runs(tables.build(rows))),
        ("differences", "Paired differences", _differences(compared, notes)),
        ("cost", "Accuracy against cost", _cost(rows, names)),
        ("learning", "Learning curves", _learning(rows, names)),
        ("confusion", "Confusion matrices", _confusion(rows, names)),
        ("data", "Data", _data(found)),
        ("environment", "Environment", _environment(found)),
        ("reading", "How to read the intervals", READING),
    ]
    sections = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in sections[1:])
    body = "".join(f'<section id="{key}">{"" if key == "summary" else f"<h2>{title}</h2>"}{text}</section>\n' for key, title, text in sections)
    read = resources.files("finlora.report")
    style = read.joinpath("style.css").read_text(encoding="utf-8")
    script = read.joinpath("table.js").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>FinLoRA report</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f'<header><h1>FinLoRA report</h1><nav aria-label="Sections">{links}</nav></header>\n<main>\n{body}</main>\n'
        f'<p id="said" role="status" class="muted" style="position:absolute;left:-99rem"></p>\n<script>\n{script}</script>\n</body>\n</html>\n'
    )


def _summary(found: Sequence[Found], compared: Sequence[tuple[str, Sequence[compare.Difference]]], doubts: Sequence[str]) -> str:
    text = "".join(f"<p>{esc(sentence)}</p>" for sentence in compare.summary(found, compared))
    return text + "".join(f'<p class="note">{esc(doubt)}</p>' for doubt in doubts)


# -- the table ---------------------------------------------------------------------------------------------------------


def _runs(table: tables.Table) -> str:
    keep = [at for at, c in enumerate(table.columns) if at < 3 or any(line.cells[at].sort is not None for line in table.lines)]
    columns = [table.columns[at] for at in keep]
    edge = [k > 0 and (c.group != columns[k - 1].group) for k, c in enumerate(columns)]
    groups, at = [], 0
    while at < len(columns):
        end = at
        while end < len(columns) and columns[end].group == columns[at].group:
            end += 1
        # the first column stands alone, so that it can stay in sight while the others scroll
        spans = [(1, "pin"), (end - 1, "")] if at == 0 else [(end - at, "edge")]
        for width, mark in spans:
            text = f' scope="colgroup">{esc(columns[at].group)}' if columns[at].group else ' aria-hidden="true">'
            groups.append(f'<th colspan="{width}" class="{mark}"{text}</th>')
        at = end
    heads = "".join(
        f'<th scope="col" data-column="{k}" aria-sort="none" class="{_classes(n=c.numeric, edge=edge[k], pin=k == 0)}">'
        f'<button type="button"{_title(c.about)}>{esc(c.title)}</button></th>'
        for k, c in enumerate(columns)
    )
    fixed = max((at for at, line in enumerate(table.lines) if line.kind != "run"), default=-1)
    lines = []
    for at, line in enumerate(table.lines):
        cells = "".join(_cell(line.cells[i], c, edge[k], k == 0) for k, (i, c) in enumerate(zip(keep, columns)))
        last = " last-fixed" if at == fixed and at + 1 < len(table.lines) else ""
        lines.append(f'<tr class="{line.kind}{last}">{cells}</tr>\n')
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of runs"><table class="sortable">'
        f'<thead><tr class="groups">{"".join(groups)}</tr>\n<tr>{heads}</tr></thead>\n<tbody>\n{"".join(lines)}</tbody></table></div>'
        '<p class="muted">Value [95% interval]. Press a column’s name to sort, again to turn the order, a third time for '
        "the first order. A dotted line means that there is more to read under the pointer. "
        'The same table: <a href="table.csv">CSV</a>, <a href="table.md">Markdown</a>, <a href="table.tex">LaTeX</a>.</p>'
    )


def _cell(cell: tables.Cell, column: tables.Column, edge: bool, first: bool) -> str:
    sort = "" if cell.sort is None else f' data-sort="{esc(str(cell.sort))}"'
    shown = f"<span{_title(cell.about)}>{esc(cell.text)}</span>"
    if column.estimate:
        shown = f'<span class="est">{shown}</span><span class="ci">{esc(cell.detail)}</span>'
    tag, scope = ("th", ' scope="row"') if first else ("td", "")
    return f'<{tag}{scope} class="{_classes(n=column.numeric, edge=edge)}"{sort}>{shown}</{tag}>'


def _classes(**on: bool) -> str:
    return " ".join(name for name, value in on.items() if value)


def _title(text: str) -> str:
    return f' title="{esc(text)}"' if text else ""


# -- paired differences ------------------------------------------------------------------------------------------------

COUNTS = (
    ("only it right", "examples that only this run has right", " edge"),
    ("only reference right", "examples that only the reference has right", ""),
    ("McNemar p", "two-sided exact test of the two counts, by cluster", ""),
)

def _differences(compared: Sequence[tuple[str, Sequence[compare.Difference]]], notes: Sequence[str]) -> str:
    out = []
    for reference, differences in compared:
        rows: dict[tuple[str, str], dict[str, compare.Difference]] = {}
        for d in differences:
            rows.setdefault((d.run, d.task), {})[d.metric] = d
        metrics = list(dict.fromkeys(d.metric for d in differences))
        if not rows:
            continue
        heads = '<th scope="col" class="plain pin">run</th><th scope="col" class="plain">task</th>'
        for metric in metrics:
            name = esc(tables.METRICS.get(metric, metric).removesuffix(" %"))
            heads += f'<th scope="col" class="plain n edge">{name}, points</th><th scope="col" class="plain">verdict</th>'
        heads += "".join(f'<th scope="col" class="plain n{edge}"{_title(about)}>{text}</th>' for text, about, edge in COUNTS)
        lines = ""
        for (run, task), each in rows.items():
            lines += f'<tr><th scope="row">{esc(run)}</th><td>{esc(task)}</td>' + "".join(_difference(each.get(metric)) for metric in metrics)
            d = each["accuracy"]
            lines += f'<td class="n edge">{d.only_run:,}</td><td class="n">{d.only_reference:,}</td><td class="n">{_p(d.p)}</td></tr>\n'
        name = esc(reference)
        out.append(
            f'<h3>Against {name}</h3><div class="scroll" tabindex="0" role="region" aria-label="Differences from {name}">'
            f"<table><thead><tr>{heads}</tr></thead><tbody>\n{lines}</tbody></table></div>"
        )
    lead = (
        "<p>Run minus reference on the same examples, in percentage points. The verdict is <i>undecided</i> wherever the 95% interval holds "
        "zero, however large the difference looks. Intervals are not widened for the number of comparisons: of twenty true ties, about "
        "one will look decided.</p>"
    )
    left = f'<p class="muted">Not compared: {esc("; ".join(notes))}.</p>' if notes else ""
    return (lead if out else "") + "".join(out) + left


def _difference(d: compare.Difference | None) -> str:
    if d is None:
        return '<td class="n edge">–</td><td></td>'
    value = f"<span{_title(f'{d.how}, {d.n:,} examples')}>{compare.signed(d.value)}</span>"
    return (
        f'<td class="n edge"><span class="est">{value}</span><span class="ci">[{compare.signed(d.low)}, {compare.signed(d.high)}]</span></td>'
        f'<td class="{d.verdict}">{d.verdict}</td>'
    )


def _p(p: float | None) -> str:
    return tables.DASH if p is None else "&lt; 0.001" if p < 0.001 else f"{p:.3f}"


# -- plots -------------------------------------------------------------------------------------------------------------


def _cost(found: Sequence[Found], names: Sequence[str]) -> str:
    figures, series = [], _series(found)
    for task in tables.tasks_of(found):
        metric = next(iter(tables.metrics_of(found, task)), None)
        if metric is None:
            continue
        floors = [(tables.FLOORS[name], tables.floor_of(found, task, name).get(metric)) for name in tables.FLOORS]
        levels = [(name, floor["value"]) for name, floor in floors if floor]
        levels += [("untuned base", e["value"]) for f in found if tables.is_base(f.receipt) and (e := _metric(f, task, metric))][:1]
        title = tables.METRICS.get(metric, metric)
        for key, scale, x_title in (("peak_bytes", 1e-6, "peak memory of training, MB"), ("seconds", 1.0, "training time, s")):
            points = []
            for at, f in enumerate(found):
                e, x = _metric(f, task, metric), part(f.receipt, "train").get(key)
                if e and x is not None:
                    low, high = (e["value"] if e.get(k) is None else e[k] for k in ("low", "high"))
                    points.append(plots.Point(names[at], x * scale, e["value"], low, high, series[at]))
            what = f"{title.rstrip(' %')} against {x_title.split(',')[0]}"
            svg = plots.trade_off(points, x_title, title, f"{task}: {what}", levels)
            figures.append(f"<figure><figcaption><b>{esc(task)}</b>: {esc(what)}</figcaption>{svg}</figure>" if svg else "")
    if not any(figures):
        return ""
    return '<p class="muted">Bars are 95% intervals of each run alone.</p>' + f'<div class="plots">{"".join(figures)}</div>'


def _series(found: Sequence[Found]) -> list[int]:
    """The number of each run's colour, the same in every plot; the untuned base is a line in them and takes none of the first."""
    order = sorted(range(len(found)), key=lambda at: tables.is_base(found[at].receipt))
    return [order.index(at) for at in range(len(found))]


def _metric(f: Found, task: str, metric: str) -> Mapping[str, Any] | None:
    value = part(part(part(f.receipt, "results"), task), "metrics").get(metric)
    return value if value and value.get("value") is not None else None


def _learning(found: Sequence[Found], names: Sequence[str]) -> str:
    out, series = [], _series(found)
    for kind, title in (("finetune", "Fine-tuning"), ("pretrain", "Pretraining")):
        curves = []
        for at, f in enumerate(found):
            train = part(f.receipt, "train")
            if f.receipt["kind"] == kind:
                steps = [(p[0], p[1]) for p in train.get("curve") or [] if p[1] is not None]
                held = [(p[0], p[1]) for p in train.get("val") or [] if p[1] is not None]
                curves.append(plots.Curve(names[at], steps, held, series[at]))
        svg = plots.learning(curves, f"{title}: loss by step")
        if svg:
            shown = [c for c in curves if len(c.train) > 1 or c.validation]
            key = "".join(f"<li>{plots.mark(c.series, len(shown) == 1)}{esc(c.label)}</li>" for c in shown)
            points = max(len(c.train) for c in shown)
            width = plots.span(points)
            strong = f"mean of {width} logged points around each step; faint: as logged" if width > 1 else "as logged"
            how = f"Strong line: training loss, {strong}; markers: validation loss."
            out.append(f'<figure><figcaption><b>{title}</b>. {how}</figcaption><ul class="key">{key}</ul>{svg}</figure>')
    return f'<div class="plots">{"".join(out)}</div>' if out else ""


# -- confusion matrices ------------------------------------------------------------------------------------------------


def _confusion(found: Sequence[Found], names: Sequence[str]) -> str:
    out = []
    for task in tables.tasks_of(found):
        blocks = []
        for f, name in zip(found, names):
            result = part(part(f.receipt, "results"), task)
            if part(result, "confusion").get("matrix"):
                blocks.append(f"<div><h3>{esc(name)}</h3>{_matrix(result)}{_ways(result)}</div>")
        if blocks:
            first = " open" if not out else ""
            out.append(f'<details{first}><summary>{esc(task)} <span class="muted">{len(blocks)} runs</span></summary><div class="matrices">{"".join(blocks)}</div></details>')
    if not out:
        return ""
    return '<p class="muted">Rows: the right answer. Columns: what the run answered. Shade: share of the row; framed: right. Where both ways of asking were used, the one that counts is marked.</p>' + "".join(out)


def _matrix(result: Mapping[str, Any]) -> str:
    confusion = part(result, "confusion")
    labels, matrix = confusion["labels"], confusion["matrix"]
    columns = confusion.get("columns") or labels
    width = max(len(row) for row in matrix)
    columns = [*columns, *["unreadable"] * (width - len(columns))]
    # a column that nothing fell into, such as unreadable answers of a run that chose among labels, only takes room
    keep = [k for k in range(width) if k < len(labels) or any(row[k] for row in matrix)]
    rows = []
    for at, (label, row) in enumerate(zip(labels, matrix)):
        total = sum(row) or 1
        cells = "".join(
            f'<td style="--share:{row[k] / total:.3f}"{" class=right" if k == at else ""} title="{esc(f"{label} answered as {columns[k]}: {row[k]:,} of {sum(row):,}")}">{row[k]:,}</td>'
            for k in keep
        )
        rows.append(f'<tr><th scope="row">{esc(str(label))}</th>{cells}</tr>')
    heads = "".join(f'<th scope="col" class="n">{esc(str(columns[k]))}</th>' for k in keep)
    return f'<table class="heat"><thead><tr><td style="background:none"></td>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _ways(result: Mapping[str, Any]) -> str:
    """Both ways of asking, where both were used."""
    lines = []
    for way, each in part(result, "by_way").items() if len(part(result, "by_way")) > 1 else ():
        metrics = part(each, "metrics") or each
        values = [f"{tables.METRICS.get(m, m)[:-2]} {c.text}% {c.detail}" for m in ("accuracy", "macro_f1") if (c := tables.estimate(metrics.get(m))).sort is not None]
        lost = tables.unreadable({"n": result.get("n"), "unreadable": each.get("unreadable")})
        values += [f"{lost.text} unreadable"] if lost.sort is not None else []
        first = " (counts)" if way == result.get("way") else ""
        lines.append(f"<li>{esc(way)}{first}: {esc(', '.join(values))}</li>" if values else "")
    return f'<ul class="muted">{"".join(lines)}</ul>' if any(lines) else ""


# -- data, environment -------------------------------------------------------------------------------------------------


def _data(found: Sequence[Found]) -> str:
    rows: dict[tuple, dict[str, Any]] = {}
    for f in found:
        for d in f.receipt.get("data") or []:
            rows.setdefault((d.get("task"), d.get("split"), d.get("sha256")), d)
    notes = {str(d["task"]): str(d["errata"]) for d in rows.values() if d.get("errata") and d.get("task")}
    for f in found:
        notes |= {task: str(r["errata"]) for task, r in part(f.receipt, "results").items() if r.get("errata")}
    if not rows and not notes:
        return ""
    licensed = any(d.get("licence") for d in rows.values())
    lines = ""
    for d in rows.values():
        digest = str(d.get("sha256") or "")
        lines += f'<tr><th scope="row">{esc(str(d.get("task") or d.get("source") or ""))}</th><td>{esc(str(d.get("split") or ""))}</td>'
        lines += f'<td class="n">{_count(d.get("rows"))}</td>'
        lines += f"<td>{esc(str(d.get('licence') or tables.DASH))}</td>" if licensed else ""
        lines += f'<td><code title="{esc(digest)}">{esc(digest[:16])}</code></td></tr>'
    heads = "".join(f'<th scope="col" class="plain{n}">{t}</th>' for t, n in (("task", ""), ("split", ""), ("rows", " n"), ("licence", ""), ("sha256", "")) if t != "licence" or licensed)
    table = f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>' if rows else ""
    said = "".join(f"<li><b>{esc(task)}</b>: {esc(text)}</li>" for task, text in notes.items())
    return table + (f"<h3>Known errata</h3><ul>{said}</ul>" if said else "")


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else tables.DASH


def _environment(found: Sequence[Found]) -> str:
    names = tables.labels(found)
    reads: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("kind", lambda r: r["kind"]),
        ("created", lambda r: str(r.get("created") or "")),
        ("seed", lambda r: ", ".join(map(str, _seeds(r.get("spec") or {}))) or tables.DASH),
        ("model", lambda r: str(part(r, "model").get("name") or tables.DASH)),
        ("model sha256", lambda r: str(part(r, "model").get("sha256") or tables.DASH)[:16]),
        ("finlora", lambda r: _code(part(r, "code"))),
        ("versions", lambda r: ", ".join(f"{k} {v}" for k, v in part(r, "versions").items())),
        ("device", lambda r: _device(part(r, "device"))),
    ]
    same, own = [], []
    for title, read in reads:
        values = [read(f.receipt) for f in found]
        (same if len(set(values)) == 1 else own).append((title, values))
    text = "".join(f'<tr><th scope="row">{t}</th><td>{esc(v[0])}</td></tr>' for t, v in same)
    out = f'<table class="facts"><caption>The same for all {len(found)} receipts</caption><tbody>{text}</tbody></table>' if same else ""
    if own:
        heads = '<th scope="col" class="plain pin">receipt</th>' + "".join(f'<th scope="col" class="plain">{t}</th>' for t, _ in own)
        lines = "".join(
            f'<tr class="run"><th scope="row">{esc(name)}</th>' + "".join(f"<td>{esc(v[at])}</td>" for _, v in own) + "</tr>" for at, name in enumerate(names)
        )
        out += f'<h3>By receipt</h3><div class="scroll" tabindex="0" role="region" aria-label="Environment by receipt"><table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>'
    return out


def _seeds(spec: Mapping[str, Any]) -> list[Any]:
    """All values named `seed` in a spec, wherever its sections keep them."""
    out = [spec["seed"]] if "seed" in spec else []
    for value in spec.values():
        out += _seeds(value) if isinstance(value, Mapping) else []
    return out


def _code(code: Mapping[str, Any]) -> str:
    commit = f", commit {str(code['commit'])[:12]}" if code.get("commit") else ""
    return f"{code.get('version') or tables.DASH}{commit}{' with uncommitted changes' if code.get('dirty') else ''}"


def _device(device: Mapping[str, Any]) -> str:
    said = [str(device.get("gpu") or ""), str(device.get("cpu") or "")]
    said += [f"{device.get('cores_usable') or device['cores']} cores"] if device.get("cores") else []
    said += [f"{device['ram_bytes'] / 2**30:.0f} GiB"] if device.get("ram_bytes") else []
    return ", ".join(filter(None, [*said, str(device.get("system") or "")]))


READING = """
<p>A test set is a sample. The bracket after a value is its 95% interval: a procedure that, over many such samples, misses the true value
about one time in twenty. Plain accuracy of independent examples has Wilson’s interval, which never has zero width even when all answers
are right; F1, and tasks whose examples share a document or a paraphrase (clusters), have a bootstrap over clusters. The tooltip of a value
says which was used and on how many examples.</p>
<p>To compare two runs, use <i>Paired differences</i>, not the overlap of two intervals: on the same examples much of the luck is shared,
so the interval of the difference is narrower than the two suggest. McNemar’s p counts only the examples on which exactly one of the two is right.</p>
<p>The intervals say nothing about a different seed, another prompt or other data. A run with one seed is one draw of training; only several
seeds show how much of a difference training itself makes. Unreadable answers count as wrong.</p>
<p>The majority floor and naive Bayes know no language; a model that does not clear them has not been shown to read.</p>
"""
