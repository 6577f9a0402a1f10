"""TAT-QA: a question about a table and the paragraphs round it, answered by spans or by arithmetic, with a scale (Zhu et al. 2021).

Source: arXiv 2105.07624, github.com/NExTplusplus/TAT-QA, dataset_raw (a row: table, paragraphs, questions).  No data set of the hub
was verified.
Licence: CC BY 4.0 for the data (README), MIT for the code.
Splits: dev 278 contexts with 1,668 questions: span 701, multi-span 217, arithmetic 718, count 32; test 277 with 1,663
(`tatqa_dataset_test_gold.json`).  `tatqa_dev.json` stands in for a test where no test file is.
Known errata: 50 of 1,279 test paragraphs and 19 of 1,663 test questions also occur in dev (exact).  Some gold spans hold a ";",
which parts the spans of an answer here; they are read and marked right.
Answer: spans parted by "; ", then the scale in words: "-12.6 million", "19,911; 15,916 thousand", "-22.22 percent".
Marks: exact match as the paper defines it, scale counted: numbers are rounded to 2 decimals, multiplied by their scale and
compared to 4; spans are sorted, joined and compared as words without case, articles and punctuation; a bare share (0.2342)
is forgiven for a percentage.  `tatqa@f1` marks the paper's numeracy-aware F1: of the sets of words, exact match for
arithmetic and count, rounded to 2 decimals as published.  `metrics` cannot give it: it depends on the kind of the question.
How this differs from the paper's program: "$480 million" given the scale million is not multiplied twice, "(2088)" is
negative with and without its comma, and an article before a number is dropped; 78 of 13,319 altered gold answers are marked
otherwise for it (0.6%), no unaltered one.
Cluster: the context, 278 in dev and 277 in test.
Floor: the commonest answer, 2019, is right in 29 of 1,668 (0.017).  All 1,668 dev and 1,663 test answers are
read and marked right; shuffled among the questions 2 of dev are.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import FinloraError
from ..numbers import parse_number
from ..text import Example
from . import Source, Task, cluster_of, place_of, text_in
from ._programs import table_text

SCALES = {"": 1.0, "thousand": 1e3, "million": 1e6, "billion": 1e9, "percent": 0.01}
SHA256 = {
    **dict.fromkeys(("tatqa_dev.json", "tatqa_dataset_dev.json"), "8da095a819af6db3c14877c6df2d4d29960e41d1a63dd1fa853507bd2a616af5"),
    "tatqa_dataset_test_gold.json": "c4d08418359c1d76468dec420ee748a37f48c06b63cb8ec2766f19d5d314b597",
}
KINDS = ("span", "multi-span", "arithmetic", "count")
ASK = (
    "Answer the question about the table and the text. Give the number or the words of the text; several are parted by semicolons. "
    "End with the scale, one of thousand, million, billion or percent, where the answer has one."
)

_SCALE = re.compile(r"\s*\b(?:in\s+)?(thousand|million|billion|percent)s?[.)]*\s*\Z", re.IGNORECASE)
_LEAD = re.compile(r"\s*answer\s*:\s*", re.IGNORECASE)
_FIGURE = re.compile(r"[-+(−–$€£¥\s]*[\d.,]*\d[\d.,]*\s*[)%\s]*(?P<scale>(?:thousand|million|billion)s?)?[)\s]*", re.IGNORECASE)


def tatqa_prompt(table: str, paragraphs: str, question: str) -> str:
    """The prompt of one question."""
    return f"Instruction: {ASK}\nInput: {table}\n{paragraphs}\nQuestion: {question}\nAnswer: "


def _gold(question: Mapping[str, Any], place: str) -> tuple[tuple[str, ...], str, str]:
    kind, scale, value = question.get("answer_type"), question.get("scale", ""), question.get("answer")
    if kind not in KINDS or scale not in SCALES:
        raise FinloraError(f"{place}: answer_type {str(kind)[:20]!r} with scale {str(scale)[:20]!r}", f"one of {', '.join(KINDS)}; {', '.join(filter(None, SCALES))}")
    spans = value if isinstance(value, list | tuple) else [value]
    if not spans or not all(isinstance(s, str | int | float) and not isinstance(s, bool) for s in spans):
        raise FinloraError(f"{place}: the answer should be text or numbers but is {str(value)[:40]!r}", "fix or drop the row")
    spans = [s.strip() if isinstance(s, str) else f"{s:.10g}" if isinstance(s, float) else str(s) for s in spans]
    return tuple(" ".join(s.split()) for s in spans), str(scale), str(kind)


def _examples(row: Mapping[str, Any], index: int) -> Iterator[Example]:
    place = place_of(row, index)
    table = row.get("table")
    cells = table.get("table") if isinstance(table, Mapping) else table
    paragraphs, questions = row.get("paragraphs"), row.get("questions")
    if not isinstance(cells, list | tuple) or not all(isinstance(r, list | tuple) for r in cells):
        raise FinloraError(f"{place}: column `table` should hold rows", "such as {table: {uid, table: [[...]]}, paragraphs, questions}")
    for column, values in (("paragraphs", paragraphs), ("questions", questions)):
        if not isinstance(values, list | tuple) or not all(isinstance(v, Mapping) for v in values):
            raise FinloraError(f"{place}: column `{column}` should hold a list of objects", "such as {table, paragraphs, questions}")
    words = "\n".join(text_in(p, "text", place) for p in paragraphs)
    shown = table_text(cells)
    cluster = cluster_of(shown, words)
    for k, question in enumerate(questions):
        spans, scale, kind = _gold(question, f"{place}: question {k + 1}")
        prompt = tatqa_prompt(shown, words, text_in(question, "question", place))
        answer = "; ".join(spans) + (f" {scale}" if scale else "")
        yield Example(f"tatqa-{index}-{k}", (("user", prompt),), (spans, scale, kind), answer, cluster)


def read(text: str, labels: Sequence[str] = ()) -> tuple[tuple[str, ...], str] | None:
    """(spans, scale) of an answer, or None where it has no word."""
    line = next((x for x in text.splitlines() if re.search(r"\w", x)), "")
    line = line[m.end() :] if (m := _LEAD.match(line)) else line
    found = _SCALE.search(line)
    last = line[: found.start()].rpartition(";")[2] if found else ""
    scale = found[1].lower() if _FIGURE.fullmatch(last.strip()) else ""  # behind words it is one of them
    line = line[: found.start()] if scale else line
    spans = tuple(s.strip() for s in line.split(";") if re.search(r"\w", s))
    return (spans, scale) if spans else None


def exact(gold: Any, answer: Any) -> float:
    """The paper's exact match, scale counted."""
    return _both(gold, answer)[0]


def f1(gold: Any, answer: Any) -> float:
    """The paper's numeracy-aware F1, scale counted."""
    return _both(gold, answer)[1]


def _both(gold: Any, answer: Any) -> tuple[float, float]:
    if not isinstance(answer, list | tuple) or len(answer) < 2:
        return 0.0, 0.0
    spans, scale, kind = gold
    wanted = _words(_joined(spans, scale))
    said = [_joined(answer[0], answer[1])]
    if len(answer[0]) == 1 and not answer[1] and "%" not in answer[0][0] and (value := _figure(answer[0][0])) is not None:
        said.append(f"{value:.4f}")
    best = max((float(w == wanted), _overlap(set(w), set(wanted))) for w in map(_words, said))
    whole = float(_parts(spans, scale) == _parts(answer[0], answer[1]))  # a span that holds the parting sign
    best = max(best, (whole, whole))
    return best[0], best[0] if kind in ("arithmetic", "count") else best[1]


def _joined(spans: Sequence[str], scale: str) -> str:
    return " ".join(_value(s, scale) for s in sorted(spans))


def _parts(spans: Sequence[str], scale: str) -> list[str]:
    return sorted(" ".join(_words(_value(p, scale))) for s in spans for p in s.split(";") if re.search(r"\w", p))


def _figure(span: str) -> float | None:
    """The number that a span is, a percentage as its share of one; None where it has other words."""
    number = parse_number(span) if _FIGURE.fullmatch(span) else None
    return None if number is None else number.fraction


def _value(span: str, scale: str) -> str:
    """A span in the form that is compared: a number with 4 decimals, its scale applied, or the words with the scale."""
    value = _figure(span)
    if value is None:
        return f"{span} {scale}" if scale else span
    own = "%" in span or _FIGURE.fullmatch(span)["scale"]
    return f"{value:.4f}" if own else f"{round(value, 2) * SCALES[scale]:.4f}"


def _words(text: str) -> list[str]:
    """Words in lower case, without articles and, unless they are numbers, without punctuation."""
    out = []
    for token in text.lower().split():
        number = _FIGURE.fullmatch(token) and parse_number(token)
        word = f"{number.fraction:.4f}" if number else "".join(c for c in token if c not in string.punctuation)
        if word and word not in ("a", "an", "the"):
            out.append(word)
    return out


def _overlap(said: set[str], gold: set[str]) -> float:
    both = len(said & gold)
    return round(2 * both / (len(said) + len(gold)), 2) if both else 0.0


def _task(name: str, mark: Any, errata: str) -> Task:
    return Task(
        name=name,
        labels=(),
        examples=_examples,
        kind="text",
        way="say",
        read=read,
        mark=mark,
        source=Source(
            url="https://github.com/NExTplusplus/TAT-QA",
            licence="CC BY 4.0",
            files={
                "train": ("tatqa_train.json", "tatqa_dataset_train.json"),
                "validation": ("tatqa_dev.json", "tatqa_dataset_dev.json"),
                "test": ("tatqa_test.json", "tatqa_dataset_test_gold.json", "tatqa_dev.json"),
            },
            rows={"validation": 278, "test": 277},
            sha256=SHA256,
            columns={"text": ("table", "paragraphs"), "label": ("questions",)},
        ),
        errata=errata,
        metric="numeric",
        metrics=("numeric",),
        max_new=128,
        group="qa",
    )


TASK = _task("tatqa", exact, "50 of 1,279 test paragraphs and 19 of 1,663 test questions are in dev")
VARIANTS = {"f1": _task("tatqa@f1", f1, "the paper's numeracy-aware F1 as the mark; rounded to 2 decimals as published")}
