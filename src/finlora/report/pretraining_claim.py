"""The paper's claim against a study's figures, in words that a rule makes: 2.64x smaller, 1.3x faster, no loss.

    smaller    the arm's linears hold 1 / 2.64 of dense's values (to 5%); what that makes of the whole model is told beside it
    no loss    the interval of the difference to dense at equal tokens: its upper end at most MARGIN, none; else, Holm's p below
               ALPHA and the difference above 0, a loss; else open
    faster     the ratio of tokens a second: Holm's p against 1.3 below ALPHA, then above it yes and below it no; else open

The claim is not reproduced by an arm at a size where there is a loss or it is not faster, reproduced where there is none and it
is, and open otherwise.  With one seed there is no interval, and all is open.  Whatever is counted as lower or higher is so by
Holm's p over its table.  A rate at the end of its list is marked wherever its arm is named: a better one may lie beyond.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from finlora.report.pretraining_compare import ALPHA, big, found_of
from finlora.report.pretraining_sizes import CLAIM

MARGIN = 0.01  # nats a token, 1% of perplexity: what counts as no loss
NEAR, APART = 0.05, 1.1  # of one compression; of two
ENOUGH = 20  # tokens a parameter at which training is about compute-optimal (2203.15556)
FAST, SLOW = f"at least {CLAIM['faster']}x", f"below {CLAIM['faster']}x"
WAYS = {"tokens": "equal tokens", "flops": "equal training FLOPs", "wall": "equal wall time", "memory": "equal memory of training"}
EDGE = " *"  # after the name of an arm whose searched value, or dense's, lies at an end of its list
VERDICTS = ("reproduced", "not reproduced", "open")


def judged(said: Mapping[str, Any]) -> list[dict[str, Any]]:
    """{"size", "arm", "smaller", "loss", "speed", "verdict"} of every arm near the claim's compression. said: the report's figures."""
    out = []
    for row in said["arms"]:
        if row["compared"] and abs(row["smaller_linears"] / CLAIM["smaller"] - 1) <= NEAR:
            loss, speed = _loss(_of(said["comparisons"]["tokens"], row)), _speed(_of(said["speeds"], row))
            bad, good = loss == "a loss" or speed == SLOW, loss == "no loss" and speed == FAST
            out.append({"size": row["size"], "arm": row["arm"], "smaller": row["smaller"], "loss": loss, "speed": speed, "verdict": VERDICTS[1 if bad else 0 if good else 2]})
    return out


def sentences(said: Mapping[str, Any]) -> list[str]:
    """The conclusion, a sentence or a few for each paragraph."""
    found = judged(said)
    out = [_scale(said), _overall(said, found), _power(said)]
    for size in said["sizes"]:
        rows = [row for row in found if row["size"] == size["size"]]
        if rows:
            out.append(_size(said, size, rows))
    out += [_others(said, found), *(_way(said, way) for way in ("flops", "wall", "memory")), _trend(said)]
    return [text for text in out if text]


def named(said: Mapping[str, Any], row: Mapping[str, Any], base: str = "") -> str:
    """The row's arm, marked where its searched value or that of `base` (dense) at that size lies at an end of the list."""
    return row["arm"] + (EDGE if _at_edge(said, row, base) else "")


def levels(arms: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """{"2.7x": structured arms whose linears are about so much smaller}: whole ranks make it no exact number."""
    found: list[list[Mapping[str, Any]]] = []
    for row in sorted((row for row in arms if row["structured"]), key=lambda row: row["smaller_linears"]):
        if not found or row["smaller_linears"] > APART * found[-1][-1]["smaller_linears"]:
            found.append([])
        found[-1].append(row)
    return {f"{statistics.median(row['smaller_linears'] for row in rows):.2g}x": rows for rows in found}


def _at_edge(said: Mapping[str, Any], row: Mapping[str, Any], base: str = "") -> bool:
    return any(a.get("at_edge") for a in said["arms"] if a["size"] == row["size"] and a["arm"] in (row["arm"], base or said["reference"]))


def _scale(said: Mapping[str, Any]) -> str:
    """What was trained, and for how long: the ground on which all else stands."""
    arms = [a for a in said["arms"] if a["arm"] == said["reference"]]
    if not arms:
        return ""
    sizes = {size["size"]: size for size in said["sizes"]}
    share = [a["tokens"] / sizes[a["size"]]["params"] for a in arms]
    kind = "An early-training comparison" if max(share) < ENOUGH else "A comparison of models trained from scratch"
    held = _span([sizes[a["size"]]["non_embedding"] for a in arms], big)
    batch = f" of {said['batch_tokens']} tokens" if said.get("batch_tokens") else ""
    return f"{kind}: models of {held} parameters without embeddings, dense trained on {_span([a['tokens'] for a in arms], big)} tokens ({_span([a['steps'] for a in arms], str)} steps{batch}), which are {_span(share, lambda v: f'{v:.2g}')} tokens a parameter{f', where {ENOUGH} are about compute-optimal' if max(share) < ENOUGH else ''}."


def _overall(said: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> str:
    claim = f"The claim is {CLAIM['smaller']}x smaller, {CLAIM['faster']}x faster, and no loss."
    if not found:
        return f"{claim} No arm of this study is {CLAIM['smaller']}x smaller: it says nothing on the claim as a whole."
    many = {verdict: [row for row in found if row["verdict"] == verdict] for verdict in VERDICTS}
    bad = many["not reproduced"]
    loss, slow = (sum(row[key] == what for row in bad) for key, what in (("loss", "a loss"), ("speed", SLOW)))
    why = f" (a loss in {loss}, less than {CLAIM['faster']}x the speed in {slow})" if bad else ""
    text = (
        f"{claim} Of {len(found)} arms and sizes whose linears are {CLAIM['smaller']}x smaller, the whole model {_span([row['smaller'] for row in found], lambda v: f'{v:.2f}')}x, "
        f"it is reproduced at these sizes in {len(many['reproduced'])}, not reproduced at these sizes in {len(bad)}{why}, and open in {len(many['open'])}."
    )
    text += " Reproduced: " + some([f"{named(said, row)} at {row['size']}" for row in many["reproduced"]]) + "." if many["reproduced"] else ""
    edges = sum(_at_edge(said, row) for row in found)
    return text + (f" In {edges} of them (marked{EDGE}) {said['searched']} of the arm or of dense lies at an end of its list." if edges else "")


def _power(said: Mapping[str, Any]) -> str:
    """What so few seeds could have told at all."""
    rows = [row for row in said["power"] if row["excluded"] is not None]
    if not rows:
        return ""
    parts = [f"{row['excluded']:.3f} at {row['size']}" for row in rows]
    hard = f" Where that is above the margin of {MARGIN}, no loss can hardly be found but of an arm that measured better than dense." if max(row["excluded"] for row in rows) > MARGIN else ""
    return (
        f"The smallest loss that {_span([row['seeds'] for row in rows], str)} seeds could have excluded at equal tokens, had none been measured, is {', '.join(parts)} nats a token; "
        f"Holm's test names a lone difference from {_span([row['named'] for row in rows], lambda v: f'{v:.3f}')} on.{hard}"
    )


def _size(said: Mapping[str, Any], size: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for row in rows:
        speed, memory = _of(said["speeds"], row), _of(said["comparisons"]["memory"], row)
        ratio = f"{_x(speed['ratio'])} the speed of dense, {row['speed'] if row['speed'] != 'open' else 'not told from ' + str(CLAIM['faster']) + 'x'}" if speed else "no speed to compare"
        parts.append(
            f"{named(said, row)} (the whole model {row['smaller']:.2f}x smaller), {row['verdict']}: {_verdict(_of(said['comparisons']['tokens'], row))}; {ratio}; against dense of equal memory: {_beside(memory)}"
        )
    return f"{size['size']} ({big(size['non_embedding'])} parameters without embeddings, {big(size['params'])} in all). " + ". ".join(parts) + "."


def _beside(row: Mapping[str, Any] | None) -> str:
    """A comparison in a few words."""
    if not row or not (row["difference"] or row["bound"]):
        return "not measured"
    if row["bound"]:
        where = "largest dense, which takes less" if row["side"] == "at least" else "smallest dense, which takes more"
        return f"{row['side']} {_against(row['bound'])} (the {where})"
    return _against(row["difference"])


def _others(said: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> str:
    """The other compressions at equal tokens."""
    near = {(row["size"], row["arm"]) for row in found}
    parts = []
    for smaller, rows in levels(said["arms"]).items():
        tested = [d for row in rows if (row["size"], row["arm"]) not in near and (d := _of(said["comparisons"]["tokens"], row)) and d["difference"]]
        if tested:
            states = [_loss(d) for d in tested]
            span = _span([d["difference"]["value"] for d in tested], signed)
            parts.append(f"at about {smaller}, {len(tested)} arms and sizes: a loss in {states.count('a loss')}, none in {states.count('no loss')}, open in {states.count('open')} (differences of {span})")
    return f"Elsewhere, by linears and at equal tokens: {'; '.join(parts)}." if parts else ""


def _way(said: Mapping[str, Any], way: str) -> str:
    rows = [row for row in said["comparisons"][way] if _structured(said, row)]
    if not rows:
        return ""
    by: dict[str, list[Mapping[str, Any]]] = {what: [row for row in rows if found_of(row) == what] for what in ("lower", "higher", "alike", "unknown")}
    bound = sum(bool(row["bound"]) for row in by["higher"])
    text = f"At {WAYS[way]}, of {len(rows)} arms and sizes {len(by['lower'])} have a lower loss than dense, {len(by['higher'])} a higher one"
    text += f" ({bound} of them by a bound: dense would need more than it was given, and has the lower loss without)" if bound else ""
    text += f", and {len(by['alike'])} cannot be told from it, by Holm's p below {ALPHA}"
    text += f"; {len(by['unknown'])} lie beyond dense's runs or have no interval, and are not known" if by["unknown"] else ""
    names = some([f"{named(said, row)} at {row['size']}{', by a bound' if row['bound'] else ''}" for row in by["lower"]])
    return text + (f" (lower: {names})." if by["lower"] else ".")


def _trend(said: Mapping[str, Any]) -> str:
    grows, shrinks, open_ = [], [], []
    for row in said["trend"]:
        if row["slope"] and _structured(said, row):
            told = row["slope"]["holm_p"] < ALPHA
            into = open_ if not told else grows if row["slope"]["value"] > 0 else shrinks
            into.append(f"{row['arm']} {signed(row['slope']['value'])} [{signed(row['slope']['low'])}, {signed(row['slope']['high'])}]")
    if not grows + shrinks + open_:
        return ""
    sizes = max(row["sizes"] for row in said["trend"])
    text = f"With each doubling of the model (over {sizes} sizes, nothing beyond them) the difference to dense at equal tokens grows for {len(grows)} arms, shrinks for {len(shrinks)}, and shows no trend for {len(open_)}."
    text += (f" Grows, nats a token: {some(grows)}." if grows else "") + (f" Shrinks: {some(shrinks)}." if shrinks else "")
    return text + confounded(said)


def confounded(said: Mapping[str, Any]) -> str:
    """What else goes with size in this study."""
    first, last = said["sizes"][0], said["sizes"][-1]
    tokens = {a["size"]: a["tokens"] for a in said["arms"] if a["arm"] == said["reference"]}
    parts = []
    if {first["size"], last["size"]} <= set(tokens) and first is not last:
        parts.append(f"tokens a parameter go from {tokens[first['size']] / first['params']:.2g} to {tokens[last['size']] / last['params']:.2g}")
    held = {size["size"]: [row["smaller"] for row in judged(said) if row["size"] == size["size"]] for size in (first, last)}
    if all(held.values()) and len(held) > 1:
        ends = [statistics.fmean(held[size["size"]]) for size in (first, last)]
        parts.append(f"the whole model at {CLAIM['smaller']}x in its linears from {ends[0]:.2f}x to {ends[1]:.2f}x smaller")
    return f" It is no trend of size alone: over these sizes {', and '.join(parts)}." if parts else ""


def _loss(row: Mapping[str, Any] | None) -> str:
    d = (row or {}).get("difference")
    if not d or d["low"] is None:
        return "open"
    return "no loss" if d["high"] <= MARGIN else "a loss" if found_of(row) == "higher" else "open"


def _speed(row: Mapping[str, Any] | None) -> str:
    p = row["ratio"].get("holm_p") if row else None
    if row is None or p is None or p >= ALPHA:
        return "open"
    return FAST if row["ratio"]["value"] >= CLAIM["faster"] else SLOW


def _verdict(row: Mapping[str, Any] | None) -> str:
    """The difference at equal tokens in words."""
    d = (row or {}).get("difference")
    if not d:
        return f"no loss to compare ({(row or {}).get('why') or 'no such run'})"
    if d["low"] is None:
        return f"{_against(d)} at equal tokens, one seed, no interval"
    state = {"a loss": "a loss", "no loss": f"no loss above the margin of {MARGIN}", "open": f"open, and a loss of up to {d['high']:.3f} is not excluded"}[_loss(row)]
    return f"{_against(d)} at equal tokens: {state}"


def _against(d: Mapping[str, Any]) -> str:
    low_high = f" [{signed(d['low'])}, {signed(d['high'])}]" if d["low"] is not None else " (one seed)"
    return f"{signed(d['value'])}{low_high} nats a token"


def _span(values: Sequence[Any], shown: Any) -> str:
    """`least to most`, or the one that they all are."""
    low, high = shown(min(values)), shown(max(values))
    return low if low == high else f"{low} to {high}"


def _x(ratio: Mapping[str, Any]) -> str:
    return f"{ratio['value']:.2f}x" + (f" [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio["low"] is not None else "")


def _of(rows: Sequence[Mapping[str, Any]], like: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return next((row for row in rows if (row["size"], row["arm"]) == (like["size"], like["arm"])), None)


def _structured(said: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    return any(a["structured"] for a in said["arms"] if a["arm"] == row["arm"])


def some(texts: Sequence[str], most: int = 6) -> str:
    """The first few, and how many more there are."""
    return "; ".join(texts[:most]) + (f"; and {len(texts) - most} more" if len(texts) > most else "")


def signed(value: float, digits: int = 3) -> str:
    """A difference with its sign, a true minus."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"
