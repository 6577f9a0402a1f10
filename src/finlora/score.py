"""Records of what a model answered, the metrics of records, and how sure one can be of them.

Accuracy is the mean mark.  F1 of label l is 2 tp / (2 tp + fp + fn), averaged over the labels (macro) or by their gold
counts (weighted).  Two things differ from the usual way:

* An answer that is no label (unreadable, or off the label list) is wrong: a miss of its gold label, and a false alarm
  spread evenly over the other labels, as a blind wrong guess would be.  Dropping the false alarm, as published
  financial scorers do, leaves every precision at 1 and turns an accuracy a into an F1 of 2a / (1 + a).  With it the
  false alarms and the misses stay equal in number, so micro F1 is accuracy whatever is unreadable.
* Records that share a document or a paraphrased question are one cluster, and the interval resamples clusters.  Single
  0/1 marks get Wilson's interval (Wilson 1927); all else the bias-corrected and accelerated cluster bootstrap (Efron
  1987, Field and Welsh 2007) with Student quantiles for few clusters (Hesterberg 2015).

The bootstrap never touches records: every metric is a function of sums over records, clusters with equal sums are one
kind, and how often each of the K kinds is drawn is multinomial.  2000 draws of 20,000 records take milliseconds.

Legend: N records, C clusters, K kinds of cluster, S sums of a metric, L labels, J draws.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from .errors import FinloraError, unknown

Labels = Sequence[str] | None
UNREADABLE = "unreadable"


# -- records ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """What became of one example.

    id: unique within a file. cluster: the document it shares with others, "" for none. prompt: first 16 hex digits of the
    SHA-256 of the prompt. gold: the right answer. said: the generated text, None where only labels were compared.
    answer: what was read, None when unreadable. scores: log-likelihood of each label in nats. choice: the likeliest
    label. correct: mark from 0 to 1. way: "choose" or "say", where `answer` comes from.
    """

    id: str
    cluster: str
    prompt: str
    gold: Any
    said: str | None
    answer: Any
    scores: dict[str, float] | None
    choice: str | None
    correct: float
    way: str

    def to_json(self) -> str:
        """One line of JSON, without the newline.

        Raises FinloraError for a score that is not finite: JSON has no such number.
        """
        try:
            return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False)
        except ValueError as error:
            raise FinloraError(f"record `{self.id}` cannot be written: {error}", "a model that yields NaN is broken") from None

    @staticmethod
    def from_json(line: str, place: str = "records") -> Record:
        """The record of one line; place (file:line) goes into the message.

        Raises FinloraError when the line is not a whole record.
        """
        try:
            row = json.loads(line)
        except ValueError:
            raise FinloraError(f"{place}: not a whole line of JSON", "the file was cut while it was written") from None
        if not isinstance(row, dict):
            raise FinloraError(f"{place}: a record is a JSON object, this is a {type(row).__name__}")
        for key in row:
            if key not in _FIELDS:
                raise unknown("record field", key, _FIELDS, place)
        missing = [key for key in _FIELDS if key not in row]
        if missing:
            raise FinloraError(f"{place}: the record lacks {', '.join(missing)}", "was it written by `finlora evaluate`?")
        mark, scores = row["correct"], row["scores"]
        if isinstance(mark, bool) or not isinstance(mark, (int, float)) or not 0 <= mark <= 1:
            raise FinloraError(f"{place}: correct is {mark!r}", "a mark lies between 0 and 1")
        for key in ("id", "cluster", "prompt", "way"):
            if not isinstance(row[key], str):
                raise FinloraError(f"{place}: {key} is {row[key]!r}", "it must be a string")
        if scores is not None and not isinstance(scores, dict):
            raise FinloraError(f"{place}: scores is {scores!r}", "it must map each label to its log-likelihood")
        return Record(**row)


_FIELDS = tuple(f.name for f in fields(Record))


def read_records(path: str | os.PathLike, repair: bool = False) -> list[Record]:
    """The records of a JSONL file, in file order.

    repair: a last line cut by a crash is dropped, in the file too, so that `append_records` can go on after it.
    Raises FinloraError naming file:line for anything else that is no record, and for a missing or unreadable file.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FinloraError(f"cannot read records {path}: {error.strerror}", "`finlora evaluate` writes them") from None
    *whole, tail = data.split(b"\n")
    records = [_parse(line, f"{path}:{n}") for n, line in enumerate(whole, 1) if line.strip()]
    if not tail.strip():
        return records
    try:
        records.append(_parse(tail, f"{path}:{len(whole) + 1}"))
    except FinloraError:
        if not repair:
            raise
        os.truncate(path, len(data) - len(tail))
        return records
    if repair:  # a whole record that only lacks its newline
        _append(path, b"\n")
    return records


def append_records(path: str | os.PathLike, records: Iterable[Record]) -> None:
    """Adds records to the end of a JSONL file, made with its folder if missing.

    Raises FinloraError when the file cannot be written, or ends in half a line (a new record would be glued to it).
    """
    path = Path(path)
    text = "".join(record.to_json() + "\n" for record in records)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size:
            with path.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    raise FinloraError(f"{path} ends in half a line", "read it with repair=True first")
    except OSError as error:
        raise FinloraError(f"cannot write records {path}: {error.strerror}", "is the disk full or read-only?") from None
    _append(path, text.encode("utf-8", "replace"))


def _append(path: Path, data: bytes) -> None:
    try:
        with path.open("ab") as file:
            file.write(data)
    except OSError as error:
        raise FinloraError(f"cannot write records {path}: {error.strerror}", "is the disk full or read-only?") from None


def _parse(line: bytes, place: str) -> Record:
    try:
        return Record.from_json(line.decode("utf-8"), place)
    except UnicodeDecodeError:
        raise FinloraError(f"{place}: not UTF-8", "records are UTF-8 JSON lines") from None


# -- metrics ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """A number from 0 to 1 that depends on records through sums alone.

    tally: (records, labels) -> (N, S), what each record adds. finish: (..., S) sums -> (...) values.
    Called as metric(records, labels=None) it returns a float; labels are those to average over, by default the ones
    that occur in gold. A label with neither gold nor answers is left out: 0/0 has no value.
    """

    name: str
    tally: Callable[[Sequence[Record], Labels], np.ndarray]
    finish: Callable[[np.ndarray], np.ndarray]

    def __call__(self, records: Sequence[Record], labels: Labels = None) -> float:
        """The metric of records. Raises FinloraError for no records, or a gold answer that is not in labels."""
        # sorted, so that the last bit of a sum of fractional marks does not depend on the order of the records
        return float(self.finish(np.sort(self.tally(_some(records), labels), axis=0).sum(0)))


def _some(records: Sequence[Record]) -> Sequence[Record]:
    if not len(records):
        raise FinloraError("no records to score", "the evaluation wrote none; is the data file empty?")
    return records


def gold_labels(records: Sequence[Record], labels: Labels = None) -> list[str]:
    """The labels to average over: `labels`, or those that occur in gold, sorted.

    Raises FinloraError for an empty label list and for a gold answer outside it.
    """
    if labels is None:
        return sorted({str(r.gold) for r in records})
    if not len(labels):
        raise FinloraError("the label list is empty", "name the labels, or leave them out to take those in gold")
    known = set(labels)
    for r in records:
        if str(r.gold) not in known:
            raise unknown("label", str(r.gold), known, f"the gold of record `{r.id}`")
    return list(dict.fromkeys(labels))


def _marks(records: Sequence[Record], labels: Labels) -> np.ndarray:
    return np.array([(r.correct, 1.0) for r in records])


def _counts(records: Sequence[Record], labels: Labels) -> np.ndarray:
    """(N, 4 L): for each label gold and answered, answered, gold, gold and answered by no label."""
    names = gold_labels(records, labels)
    place = {label: k for k, label in enumerate(names)}
    out = np.zeros((len(records), 4, len(names)))
    rows = np.arange(len(records))
    gold = np.array([place[str(r.gold)] for r in records])
    answer = np.array([-1 if r.answer is None else place.get(str(r.answer), -1) for r in records])
    read = answer >= 0
    right = gold == answer
    out[rows[right], 0, gold[right]] = 1
    out[rows[read], 1, answer[read]] = 1
    out[rows, 2, gold] = 1
    out[rows[~read], 3, gold[~read]] = 1
    return out.reshape(len(records), -1)


def _split(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(..., 4 L) sums -> hits, answers and golds of each label (..., L); no-label answers are blind wrong guesses."""
    hit, answered, gold, off = np.moveaxis(sums.reshape(*sums.shape[:-1], 4, -1), -2, 0)
    others = max(gold.shape[-1] - 1, 1)
    return hit, answered + (off.sum(-1, keepdims=True) - off) / others, gold


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


def _f1(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    hit, answered, gold = _split(sums)
    return _ratio(2 * hit, answered + gold), answered, gold  # 2 tp + fp + fn = answered + gold


def _macro(sums: np.ndarray) -> np.ndarray:
    f1, answered, gold = _f1(sums)
    return _ratio(f1.sum(-1), (answered + gold > 0).sum(-1).astype(float))


def _weighted(sums: np.ndarray) -> np.ndarray:
    f1, _, gold = _f1(sums)
    return _ratio((f1 * gold).sum(-1), gold.sum(-1))


def _balanced(sums: np.ndarray) -> np.ndarray:
    hit, _, gold = _split(sums)
    return _ratio(_ratio(hit, gold).sum(-1), (gold > 0).sum(-1).astype(float))


accuracy = Metric("accuracy", _marks, lambda sums: _ratio(sums[..., 0], sums[..., 1]))
balanced_accuracy = Metric("balanced_accuracy", _counts, _balanced)
macro_f1 = Metric("macro_f1", _counts, _macro)
weighted_f1 = Metric("weighted_f1", _counts, _weighted)
METRICS = {m.name: m for m in (accuracy, balanced_accuracy, macro_f1, weighted_f1)}


def unreadable(records: Sequence[Record]) -> int:
    """How many answers could not be read."""
    return sum(r.answer is None for r in records)


def confusion(records: Sequence[Record], labels: Labels = None) -> dict[str, list]:
    """{"labels": L names, "columns": the same and "unreadable", "matrix": L x (L + 1) counts, gold by answer}.

    An answer outside the labels is appended to them, so that every record is seen.
    """
    names = gold_labels(_some(records), labels)
    names += sorted({str(r.answer) for r in records if r.answer is not None} - set(names))
    place = {label: k for k, label in enumerate(names)}
    matrix = [[0] * (len(names) + 1) for _ in names]
    for r in records:
        matrix[place[str(r.gold)]][len(names) if r.answer is None else place[str(r.answer)]] += 1
    return {"labels": names, "columns": [*names, UNREADABLE], "matrix": matrix}


# -- intervals -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A value with its confidence interval, and what it rests on. how: the method of the interval."""

    value: float
    low: float
    high: float
    n: int
    clusters: int
    how: str


@dataclass(frozen=True)
class Paired:
    """How two runs differ on the same records.

    difference: metric of a minus that of b. only_a, only_b: records in which a, or b, has the higher mark.
    mcnemar_p: two-sided exact binomial p of clusters, each counted for the run with more right in it; where every
    record is its own cluster that is McNemar's exact test of only_a against only_b.
    """

    metric: str
    difference: Estimate
    mcnemar_p: float
    only_a: int
    only_b: int
    n: int


def wilson(k: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for k right of n; k may be fractional. Never of zero width, never outside [0, 1]."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle, half = k + z * z / 2, z * math.sqrt(max(k * (n - k), 0.0) / n + z * z / 4)
    low = (middle - half) / (n + z * z) if k > 0 else 0.0  # exact where rounding would leave 1e-17
    return max(0.0, low), min(1.0, (middle + half) / (n + z * z) if k < n else 1.0)


def interval(
    records: Sequence[Record], metric: Metric | str = accuracy, level: float = 0.95, draws: int = 2000, seed: int = 0,
    labels: Labels = None,
) -> Estimate:
    """The metric of records with its confidence interval at `level`.

    Wilson for the accuracy of independent 0/1 marks, the cluster bootstrap else; when no draw can differ (all right, all
    wrong) Wilson with as many trials as clusters. The same for any order of the records, given the seed.
    Raises FinloraError for no records, fewer than 2 clusters, or an unknown metric or label.
    """
    metric = _metric(metric)
    tally = metric.tally(_some(records), labels)
    count, sums = _clusters(records, tally)
    value = metric(records, labels)
    n = len(records)
    if metric is accuracy and count == n and all(r.correct in (0, 1) for r in records):
        return Estimate(value, *wilson(float(sums[:, 0].sum()), n, level), n, count, "Wilson")
    found = _bootstrap(sums, metric.finish, level, draws, seed)
    if found is None:
        return Estimate(value, *wilson(value * count, count, level), n, count, "Wilson over clusters, no variation seen")
    return Estimate(value, min(found[0], value), max(found[1], value), n, count, f"cluster bootstrap BCa, {draws} draws")


def paired(
    a: Sequence[Record], b: Sequence[Record], metric: Metric | str = accuracy, level: float = 0.95, draws: int = 2000,
    seed: int = 0, labels: Labels = None,
) -> Paired:
    """How run a differs from run b on the same examples, matched by id: both runs are resampled together.

    Raises FinloraError when ids are repeated or not shared, when gold or cluster of an id differ (another edition of the
    data), or with fewer than 2 clusters.
    """
    metric = _metric(metric)
    left, right = _by_id(a, "first"), _by_id(b, "second")
    only = len(left.keys() - right.keys()), len(right.keys() - left.keys())
    if any(only):
        raise FinloraError(
            f"the runs do not share their records: {only[0]} ids only in the first, {only[1]} only in the second",
            "evaluate both on the same task and split",
        )
    ids = sorted(left)
    other = [i for i in ids if (left[i].gold, left[i].cluster) != (right[i].gold, right[i].cluster)]
    if other:
        raise FinloraError(
            f"{len(other)} records have another gold or cluster in the second run, the first is `{other[0]}`",
            "evaluate both on the same edition of the data",
        )
    a, b = [left[i] for i in ids], [right[i] for i in ids]
    tally = np.concatenate([metric.tally(a, labels), metric.tally(b, labels)], axis=1)
    count, sums = _clusters(a, tally)
    width = tally.shape[1] // 2

    def difference(total: np.ndarray) -> np.ndarray:
        return metric.finish(total[..., :width]) - metric.finish(total[..., width:])

    value = metric(a, labels) - metric(b, labels)
    found = _bootstrap(sums, difference, level, draws, seed)
    if found is None:  # nothing seen to differ in C clusters bounds how often something does
        reach = wilson(0, count, level)[1]
        low, high, how = max(-1.0, value - reach), min(1.0, value + reach), "Wilson over clusters, no variation seen"
    else:
        low, high, how = min(found[0], value), max(found[1], value), f"paired cluster bootstrap BCa, {draws} draws"
    lead = np.array([x.correct - y.correct for x, y in zip(a, b, strict=True)])
    balance = np.round(_clusters(a, lead[:, None])[1][:, 0], 9)  # 0.1 + 0.2 - 0.3 is a tie
    p = binomial_p(int((balance > 0).sum()), int((balance < 0).sum()))
    return Paired(metric.name, Estimate(value, low, high, len(ids), count, how), p, int((lead > 0).sum()), int((lead < 0).sum()), len(ids))


def binomial_p(b: int, c: int) -> float:
    """Two-sided exact p that b and c successes came from a fair coin: McNemar's exact test."""
    n = b + c
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(min(b, c) + 1)) / 2**n)


def holm(pvalues: Sequence[float]) -> list[float]:
    """p values of a family of tests, adjusted by Holm (1979), in the given order."""
    out, worst = [0.0] * len(pvalues), 0.0
    for rank, k in enumerate(sorted(range(len(pvalues)), key=pvalues.__getitem__)):
        worst = max(worst, min(1.0, pvalues[k] * (len(pvalues) - rank)))
        out[k] = worst
    return out


def _metric(metric: Metric | str) -> Metric:
    if isinstance(metric, str):
        if metric not in METRICS:
            raise unknown("metric", metric, METRICS)
        return METRICS[metric]
    return metric


def _by_id(records: Sequence[Record], which: str) -> dict[str, Record]:
    out = {r.id: r for r in _some(records)}
    if len(out) < len(records):
        raise FinloraError(f"{len(records) - len(out)} records of the {which} run repeat an id", "score one run at a time")
    return out


def _clusters(records: Sequence[Record], tally: np.ndarray) -> tuple[int, np.ndarray]:
    """Sums over each cluster (C, S); a record of no cluster is its own. Raises FinloraError for fewer than 2."""
    keys = [("cluster", r.cluster) if r.cluster else ("record", r.id) for r in records]
    place = {key: k for k, key in enumerate(sorted(set(keys)))}
    if len(place) < 2:
        raise FinloraError(f"an interval needs at least 2 clusters, {len(records)} records have {len(place)}", "add documents")
    owner = np.array([place[key] for key in keys])
    order = np.lexsort((*tally.T, owner))  # equal sums to the last bit in any order of the records
    sums = np.zeros((len(place), tally.shape[1]))
    np.add.at(sums, owner[order], tally[order])
    return len(place), sums


def _bootstrap(
    sums: np.ndarray, finish: Callable[[np.ndarray], np.ndarray], level: float, draws: int, seed: int
) -> tuple[float, float] | None:
    """BCa interval of finish over (C, S) cluster sums; None when every draw gives the same value."""
    kinds, many = np.unique(sums, axis=0, return_counts=True)
    count = int(many.sum())
    total = many @ kinds
    value = float(finish(total))
    rng = np.random.default_rng(seed)
    step = max(1, 4_000_000 // len(kinds))  # bounds the memory of the weights, 32 MB
    sizes = [min(step, draws - k) for k in range(0, draws, step)]
    drawn = np.concatenate([finish(_weights(rng, many, size) @ kinds) for size in sizes])
    if np.ptp(drawn) < 1e-12:
        return None
    left_out = finish(total - kinds)
    pull = many @ left_out / count - left_out
    spread = float(many @ pull**2)
    acceleration = float(many @ pull**3) / (6 * spread**1.5) if spread > 0 else 0.0
    below = ((drawn < value - 1e-12).mean() + (drawn <= value + 1e-12).mean()) / 2  # ties count half
    normal = NormalDist()
    bias = normal.inv_cdf(min(max(below, 0.5 / draws), 1 - 0.5 / draws))
    reach = _student((1 + level) / 2, count - 1) * math.sqrt(count / (count - 1))
    return tuple(float(np.quantile(drawn, _bca(side * reach, bias, acceleration))) for side in (-1, 1))


def _weights(rng: np.random.Generator, many: np.ndarray, size: int) -> np.ndarray:
    """(size, K): how often each kind is among C clusters drawn with replacement."""
    count, kinds = int(many.sum()), len(many)
    if kinds * 10 < count:
        return rng.multinomial(count, many / count, size=size)
    kind = np.repeat(np.arange(kinds), many)  # few repeats: drawing clusters one by one is ten times faster
    return np.stack([np.bincount(kind[rng.integers(0, count, count)], minlength=kinds) for _ in range(size)])


def _bca(z: float, bias: float, acceleration: float) -> float:
    """The quantile of the draws that BCa takes for a normal quantile z."""
    room = 1 - acceleration * (bias + z)
    if room <= 0:
        return 0.0 if z < 0 else 1.0
    return NormalDist().cdf(bias + (bias + z) / room)


def _student(p: float, freedom: int) -> float:
    """Quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, p))
