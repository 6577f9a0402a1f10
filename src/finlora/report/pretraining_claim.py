"""The paper's claim against a study's figures, in words that a rule makes: 2.64x smaller, 1.3x faster, no loss.

    smaller    the arm's linears hold 1 / 2.64 of dense's values (to 5%); what that makes of the whole model is told beside it
    no loss    the interval of the difference to dense at equal tokens: all above 0, a loss; its upper end at most MARGIN, none;
               else open
    faster     the interval of the ratio of tokens a second: all below 1.3, no; all at or above it, yes; else open

The claim is contradicted for an arm at a size where there is a loss or it is not faster, holds where there is none and it is,
and is open otherwise.  With one seed there is no interval, and all is open.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from finlora.report.pretraining_compare import big
from finlora.report.pretraining_sizes import CLAIM

MARGIN = 0.01  # nats a token, 1% of perplexity: what counts as no loss
NEAR, APART = 0.05, 1.1  # of one compression; of two
FAST, SLOW = f"at least {CLAIM['faster']}x", f"below {CLAIM['faster']}x"
WAYS = {"tokens": "equal tokens", "flops": "equal training FLOPs", "wall": "equal wall time", "memory": "equal memory of training"}


def judged(said: Mapping[str, Any]) -> list[dict[str, Any]]:
    """{"size", "arm", "loss", "speed", "verdict"} of every arm near the claim's compression. said: the report's figures."""
    out = []
    for row in said["arms"]:
        if row["compared"] and abs(row["smaller_linears"] / CLAIM["smaller"] - 1) <= NEAR:
            loss, speed = _loss(_of(said["comparisons"]["tokens"], row)), _speed(_of(said["speeds"], row))
            bad, good = loss == "a loss" or speed == SLOW, loss == "no loss" and speed == FAST
            verdict = "contradicted" if bad else "holds" if good else "open"
            out.append({"size": row["size"], "arm": row["arm"], "loss": loss, "speed": speed, "verdict": verdict})
    return out


def sentences(said: Mapping[str, Any]) -> list[str]:
    """The conclusion, a sentence or a few for each paragraph."""
    found = judged(said)
    out = [_overall(found)]
    for size in said["sizes"]:
        rows = [row for row in found if row["size"] == size["size"]]
        if rows:
            out.append(_size(said, size, rows))
    out += [text for text in (_others(said, found), *(_way(said, way) for way in ("flops", "wall", "memory")), _trend(said)) if text]
    return out


def notes(said: Mapping[str, Any]) -> list[str]:
    """What weakens the conclusion: few seeds, missing runs, rates at the edge of their list, several machines."""
    out = []
    few = [row for row in said["arms"] if row["seeds"] < 2]
    if few:
        where = _some([f"{row['arm']} at {row['size']}" for row in few])
        out.append(f"Fewer than 2 seeds: {where}. Their values have no interval, and nothing is concluded from them.")
    elif max(row["seeds"] for row in said["arms"]) < 5:
        out.append(f"{max(row['seeds'] for row in said['arms'])} seeds at most: the intervals rest on very few degrees of freedom, and are wide for it.")
    if said["missing"]:
        out.append(f"{len(said['missing'])} runs are missing, of {len({(a, s) for s, a, _ in said['missing']})} arms: {_some([f'{a} at {s}, seed {n}' for s, a, n in said['missing']])}.")
    if said["failed"]:
        out.append(f"{len(said['failed'])} runs failed or were not finished; they are listed below.")
    edges = [group for group, c in said["chosen"].items() if c.get("at_edge")]
    if edges:
        out.append(f"For {len(edges)} of {len(said['chosen'])} groups the search of {said['searched']} chose a value at the edge of its list: a better one may lie beyond ({_some(edges)}).")
    if len(said["machines"]) > 1:
        out.append("The runs were timed on different machines: speeds, and comparisons at equal wall time, are not of one kind.")
    return out


def levels(arms: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """{"2.7x": structured arms whose linears are about so much smaller}: whole ranks make it no exact number."""
    found: list[list[Mapping[str, Any]]] = []
    for row in sorted((row for row in arms if row["structured"]), key=lambda row: row["smaller_linears"]):
        if not found or row["smaller_linears"] > APART * found[-1][-1]["smaller_linears"]:
            found.append([])
        found[-1].append(row)
    return {f"{statistics.median(row['smaller_linears'] for row in rows):.2g}x": rows for rows in found}


def _overall(found: Sequence[Mapping[str, str]]) -> str:
    claim = f"The claim is {CLAIM['smaller']}x smaller, {CLAIM['faster']}x faster, and no loss."
    if not found:
        return f"{claim} No arm of this study is {CLAIM['smaller']}x smaller: it says nothing on the claim as a whole."
    many = {verdict: [row for row in found if row["verdict"] == verdict] for verdict in ("holds", "contradicted", "open")}
    loss, slow = (sum(row[key] == bad for row in many["contradicted"]) for key, bad in (("loss", "a loss"), ("speed", SLOW)))
    why = f" (a loss in {loss}, less than {CLAIM['faster']}x the speed in {slow})" if many["contradicted"] else ""
    text = f"{claim} Of {len(found)} arms and sizes that are {CLAIM['smaller']}x smaller in their linears it holds in {len(many['holds'])}, is contradicted in {len(many['contradicted'])}{why}, and is open in {len(many['open'])}."
    return text + (" It holds for " + _some([f"{row['arm']} at {row['size']}" for row in many["holds"]]) + "." if many["holds"] else "")


def _size(said: Mapping[str, Any], size: Mapping[str, Any], rows: Sequence[Mapping[str, str]]) -> str:
    parts = []
    for row in rows:
        arm = next(a for a in said["arms"] if (a["size"], a["arm"]) == (row["size"], row["arm"]))
        speed, memory = _of(said["speeds"], row), _of(said["comparisons"]["memory"], row)
        ratio = f"{_x(speed['ratio'])} the speed of dense" if speed else "no speed to compare"
        beside = _against(memory["difference"]) if memory and memory["difference"] else "not measured"
        parts.append(
            f"{row['arm']} (the whole model {arm['smaller']:.2f}x smaller): {_verdict(_of(said['comparisons']['tokens'], row))}; {ratio}: {row['speed']}; against dense of as many parameters: {beside}"
        )
    return f"{size['size']} ({big(size['non_embedding'])} parameters without embeddings, {big(size['params'])} in all). " + ". ".join(parts) + "."


def _others(said: Mapping[str, Any], found: Sequence[Mapping[str, str]]) -> str:
    """The other compressions, and what the least loss is at each."""
    near = {(row["size"], row["arm"]) for row in found}
    parts = []
    for smaller, rows in levels(said["arms"]).items():
        tested = [d for row in rows if (row["size"], row["arm"]) not in near and (d := _of(said["comparisons"]["tokens"], row)) and d["difference"]]
        if tested:
            states = [_loss(d) for d in tested]
            least = min(tested, key=lambda d: d["difference"]["value"])
            parts.append(f"at about {smaller} a loss in {states.count('a loss')} of {len(tested)} arms and sizes, none in {states.count('no loss')}; the least is {_against(least['difference'])} ({least['arm']} at {least['size']})")
    return f"Elsewhere, by linears and at equal tokens: {'. '.join(parts)}." if parts else ""


def _way(said: Mapping[str, Any], way: str) -> str:
    rows = [row for row in said["comparisons"][way] if _structured(said, row)]
    if not rows:
        return ""
    measured = [row for row in rows if row["difference"]]
    if not measured:
        return f"At {WAYS[way]}, none of {len(rows)} arms and sizes could be measured."
    lower = [row for row in measured if row["difference"]["high"] is not None and row["difference"]["high"] < 0]
    higher = [row for row in measured if row["difference"]["low"] is not None and row["difference"]["low"] > 0]
    text = f"At {WAYS[way]}, of {len(rows)} arms and sizes {len(measured)} could be measured: {len(lower)} have a lower loss than dense, {len(higher)} a higher one, and {len(measured) - len(lower) - len(higher)} cannot be told from it"
    names = _some([f"{row['arm']} at {row['size']}" for row in lower])
    return text + (f" (lower: {names})." if lower else ".")


def _trend(said: Mapping[str, Any]) -> str:
    grows, shrinks, open_ = [], [], []
    for row in said["trend"]:
        if row["slope"] and _structured(said, row):
            into = grows if row["slope"]["low"] > 0 else shrinks if row["slope"]["high"] < 0 else open_
            into.append(f"{row['arm']} {signed(row['slope']['value'])} [{signed(row['slope']['low'])}, {signed(row['slope']['high'])}]")
    if not grows + shrinks + open_:
        return ""
    sizes = max(row["sizes"] for row in said["trend"])
    text = f"With each doubling of the model (over {sizes} sizes, nothing beyond them) the difference to dense at equal tokens grows for {len(grows)} arms, shrinks for {len(shrinks)}, and shows no trend for {len(open_)}."
    return text + (f" Grows, nats a token: {_some(grows)}." if grows else "") + (f" Shrinks: {_some(shrinks)}." if shrinks else "")


def _loss(row: Mapping[str, Any] | None) -> str:
    d = (row or {}).get("difference")
    if not d or d["low"] is None:
        return "open"
    return "a loss" if d["low"] > 0 else "no loss" if d["high"] <= MARGIN else "open"


def _speed(row: Mapping[str, Any] | None) -> str:
    if not row or row["ratio"]["low"] is None:
        return "open"
    low, high = row["ratio"]["low"], row["ratio"]["high"]
    return FAST if low >= CLAIM["faster"] else SLOW if high < CLAIM["faster"] else "open"


def _verdict(row: Mapping[str, Any] | None) -> str:
    """The difference at equal tokens in words."""
    d = (row or {}).get("difference")
    if not d:
        return f"no loss to compare ({(row or {}).get('why') or 'no such run'})"
    if d["low"] is None:
        return f"{_against(d)} at equal tokens, one seed, no interval"
    state = {"a loss": "a loss", "no loss": f"no loss (below {MARGIN})", "open": f"not told from dense, and a loss of up to {d['high']:.3f} is not excluded"}[_loss(row)]
    return f"{_against(d)} at equal tokens: {state}"


def _against(d: Mapping[str, Any]) -> str:
    low_high = f" [{signed(d['low'])}, {signed(d['high'])}]" if d["low"] is not None else " (one seed)"
    return f"{signed(d['value'])}{low_high} nats a token"


def _x(ratio: Mapping[str, Any]) -> str:
    return f"{ratio['value']:.2f}x" + (f" [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio["low"] is not None else "")


def _of(rows: Sequence[Mapping[str, Any]], like: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return next((row for row in rows if (row["size"], row["arm"]) == (like["size"], like["arm"])), None)


def _structured(said: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    return any(a["structured"] for a in said["arms"] if a["arm"] == row["arm"])


def _some(texts: Sequence[str], most: int = 6) -> str:
    return "; ".join(texts[:most]) + (f"; and {len(texts) - most} more" if len(texts) > most else "")


def signed(value: float, digits: int = 3) -> str:
    """A difference with its sign, a true minus."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"
