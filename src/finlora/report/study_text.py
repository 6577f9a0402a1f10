"""A study's numbers as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from typing import Any

from finlora.report import study_forgetting, tables
from finlora.report.study_data import told
from finlora.report.study_ranks import COSTS, LEVEL, name

DASH = tables.DASH


def markdown(said: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """report.md. said: the summary; found: the overview with its cells."""
    lines = [f"# {said['study']}", ""]
    lines += [
        "Accuracy in per cent, 95% interval over seeds and examples. Difference in points against "
        f"`{said['reference']}`, paired by seed and example; p adjusted by Holm within the table; **bold** where it is below {LEVEL}.", "",
    ]  # fmt: skip
    lines += _overview(said, found)
    for table in said["tables"]:
        where = ", ".join(f"{k.split('.')[0]} {v}" for k, v in table["setting"].items())
        floors = ", ".join(f"{k.replace('_', ' ')} {100 * v:.1f}" for k, v in table["floors"].items())
        lines += [f"## {table['task']}{', ' + where if where else ''}", "", f"Floors: {floors}." if floors else "", ""]
        lines += ["| method | lr | accuracy | by seed | difference | p | val. loss | trainable | train s |", "|---|---:|---:|---|---:|---:|---:|---:|---:|"]
        lines += [_line(row) for row in table["rows"]] + [""]
    if said["across"]:
        lines += ["## What the codec costs", "", "| task | method | setting | difference | p |", "|---|---|---|---:|---:|"]
        for row in said["across"]:
            where = ", ".join(f"{v} against {row['against'].get(k)}" for k, v in row["setting"].items())
            lines.append(f"| {row['task']} | {row['method']} | {where} | {_difference(row['difference'])} | {row['difference']['holm_p']:.3f} |")
        lines.append("")
    lines += _fronts(said) + _before_after(said) + _general(said)
    if said["chosen"]:
        lines += [f"## Search: {said['key']} by validation loss", "", "| group | losses | chosen |", "|---|---|---:|"]
        for group, c in said["chosen"].items():
            losses = ", ".join(f"{k}: {v:.3f}" if v is not None and math.isfinite(float(v)) else f"{k}: failed" for k, v in c["loss"].items())
            lines.append(f"| {group} | {losses} | {c['value']}{' (at the edge)' if c.get('at_edge') else ''} |")
        lines.append("")
    for title, key in (("Failed", "failed"), ("Left out", "refused")):
        if said[key]:
            lines += [f"## {title}", ""] + sorted({f"- {', '.join(str(v) for v in r['keys'].values())}: {r.get('error') or r.get('why')}" for r in said[key]}) + [""]
    return "\n".join(lines) + "\n"


def _overview(said: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Methods by tasks, where there are several tasks."""
    if len(found["tasks"]) < 2:
        return []
    lines = ["## Methods by tasks", "", "Two methods that share a letter in a column, at the same setting, are not told apart there (all pairs, Holm).", ""]
    lines += ["| method | " + " | ".join(found["tasks"]) + " | mean | mean rank |", "|---|" + "---:|" * (len(found["tasks"]) + 2)]
    for row in found["rows"]:
        cells = [f"{_share(c)} {c['group']}".strip() if (c := row["cells"].get(task)) else DASH for task in found["tasks"]]
        mean = f"{100 * row['mean']:.1f} | {row['rank']:.2f}" if "rank" in row else f"{100 * row['mean']:.1f} | {DASH}" if "mean" in row else f"{DASH} | {DASH}"
        lines.append(f"| {name(row)} | {' | '.join(cells)} | {mean} |")
    friedman = [f"Friedman's test that all ranks are alike: p = {found['friedman']:.3g} over {len(found['tasks'])} tasks.", ""] if found["friedman"] is not None else []
    return [*lines, "", *friedman]


def _fronts(said: Mapping[str, Any]) -> list[str]:
    """Which runs no other beats in accuracy without costing more."""
    lines = []
    for front in said["fronts"]:
        title, scale = COSTS[front["cost"]]
        best = sorted((p for p in front["points"] if p["front"]), key=lambda p: p["x"])
        text = "; ".join(f"{name(p)} ({p['x'] * scale:,.4g}, {100 * p['y']:.1f}%)" for p in best)
        lines.append(f"- {front['task'] or 'mean of the tasks'}, {_cost_title(title, front['cost'], said)}: {text}")
    return ["## Pareto fronts", "", "Runs that no other beats in accuracy without costing more; intervals are not taken into account.", "", *lines, ""] if lines else []


def _cost_title(title: str, cost: str, said: Mapping[str, Any]) -> str:
    return f"{title}, {said['currency']}" if cost == "dollars" else title


def _before_after(said: Mapping[str, Any]) -> list[str]:
    lines = []
    for title, trained in (("Against the untuned base", True), ("Forgetting: tasks that were not trained on", False)):
        rows = [row for row in said["before_after"] if row["trained"] is trained]
        if rows:
            lines += [f"## {title}", "", "| task | method | setting | before | after | difference | p |", "|---|---|---|---:|---:|---:|---:|"]
            for row in rows:
                lines.append(
                    f"| {row['task']} | {row['method']} | {told(row['setting'])} | {100 * row['before']:.1f} | {100 * row['after']:.1f} | "
                    f"{_difference(row['difference'])} | {row['difference']['holm_p']:.3f} |"
                )
            lines.append("")
    return lines


def _general(said: Mapping[str, Any]) -> list[str]:
    """Held-out general text before and after tuning."""
    if not said["text"]:
        return []
    many = said["text"][0]["documents"]
    lines = ["## Forgetting: held-out general text", "", f"Nats a token and bits a byte over {many} documents, 95% interval over seeds and documents; difference to the untuned base paired by document, above zero is forgotten; p by Holm.", ""]
    lines += ["| method | trained on | setting | nats/token before | after | difference | p | bits/byte after | difference |", "|---|---|---|---:|---:|---:|---:|---:|---:|"]
    for row in said["text"]:
        nats, bits = row["nats_per_token"], row["bits_per_byte"]
        d = nats["difference"]
        before = " ".join(study_forgetting.shown(nats["before"])) if nats["before"] else DASH
        changes = [" ".join(study_forgetting.shown(x["difference"], True)) if x["difference"] else DASH for x in (nats, bits)]
        changes[0] = f"**{changes[0]}**" if d and d["holm_p"] < LEVEL else changes[0]
        after = [" ".join(study_forgetting.shown(x["after"])) for x in (nats, bits)]
        p = f"{d['holm_p']:.3f}" if d else ""
        lines.append(f"| {row['method']} | {', '.join(row['tasks'])} | {told(row['setting'])} | {before} | {after[0]} | {changes[0]} | {p} | {after[1]} | {changes[1]} |")
    return [*lines, ""]


def _share(row: Mapping[str, Any]) -> str:
    a = row["accuracy"]
    return f"{100 * a['value']:.1f} [{100 * a['low']:.1f}, {100 * a['high']:.1f}]"


def _line(row: Mapping[str, Any]) -> str:
    by = " ".join(f"{100 * v:.1f}" for v in row["by_seed"])
    d = row.get("difference")
    p = f"{d['holm_p']:.3f}" if d else ""
    return (
        f"| {row['method']} | {row['lr']} | {_share(row)} | {by} | "
        f"{_difference(d) if d else 'reference'} | {p} | {row['val_loss']:.3f} | {row['trainable']:,} | {row['seconds']:.0f} |"
    )


def _difference(d: Mapping[str, Any]) -> str:
    text = f"{100 * d['value']:+.1f} [{100 * d['low']:+.1f}, {100 * d['high']:+.1f}]"
    return f"**{text}**" if d.get("holm_p", 1) < LEVEL else text


def latex(said: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """table.tex: methods by tasks, a booktabs tabular; letters stand as superscripts."""
    heads = ["method", *found["tasks"], *(["mean rank"] if any("rank" in row for row in found["rows"]) else [])]
    lines = ["% needs \\usepackage{booktabs}; accuracy in per cent, 95% interval over seeds and examples", rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}", r"\toprule"]
    lines += [" & ".join(map(tables.latex, heads)) + r" \\", r"\midrule"]
    before = None
    for row in found["rows"]:
        if before is not None and before != row["setting"]:
            lines.append(r"\midrule")
        before = row["setting"]
        cells = []
        for task in found["tasks"]:
            c = row["cells"].get(task)
            cells.append(f"{_share(c)}$^{{\\mathrm{{{c['group']}}}}}$" if c else "--")
        rank = [f"{row['rank']:.2f}" if "rank" in row else "--"] if heads[-1] == "mean rank" else []
        lines.append(" & ".join([tables.latex(name(row)), *cells, *rank]) + r" \\")
    for floor in dict.fromkeys(f for table in said["tables"] for f in table["floors"]):
        values = [next((t["floors"][floor] for t in said["tables"] if t["task"] == task and floor in t["floors"]), None) for task in found["tasks"]]
        lines += [r"\midrule"] if floor == next(iter(said["tables"][0]["floors"]), "") else []
        lines.append(" & ".join([tables.latex(floor.replace("_", " ") + " (floor)"), *(f"{100 * v:.1f}" if v is not None else "--" for v in values), *([""] if heads[-1] == "mean rank" else [])]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def to_csv(said: Mapping[str, Any]) -> str:
    """table.csv: a line for each task, setting and method, raw numbers."""
    keys = list(dict.fromkeys(k for table in said["tables"] for k in table["setting"]))
    names = ["task", *keys, "method", "lr", "seeds", "accuracy", "low", "high", "group", "difference", "difference_low", "difference_high", "p", "holm_p"]
    names += ["val_loss", "trainable", "bits_per_weight", "seconds", "peak_bytes", "dollars", "joules"]
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n", restval="")
    writer.writeheader()
    for table in said["tables"]:
        for row in table["rows"]:
            d = row.get("difference") or {}
            line = {k: "+".join(map(str, v)) if isinstance(v, list | tuple) else v for k, v in table["setting"].items()}
            line |= {"task": table["task"], "accuracy": row["accuracy"]["value"], "low": row["accuracy"]["low"], "high": row["accuracy"]["high"]}
            line |= {"difference": d.get("value"), "difference_low": d.get("low"), "difference_high": d.get("high"), "p": d.get("p"), "holm_p": d.get("holm_p")}
            line |= {k: row[k] for k in names if k in row and k not in line}
            writer.writerow({k: "" if v is None or (isinstance(v, float) and math.isnan(v)) else v for k, v in line.items()})
    return out.getvalue()
