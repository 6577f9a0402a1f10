"""What the four XBRL tasks share: rows built from filings, FinLoRA's with the facts and without, readings and marks.

    built(kind)        rows of `finlora xbrl build`: {"context", "target", "kind", "id", "cluster", "choices"}
    published(kind)    FinLoRA's prompts, facts included ("XML File: ...")
    closed(kind)       its questions without the facts: a closed book, answered from memory or from a table of names

A row says its kind in `kind` or FinLoRA's `category`, or by the example in its prompt; a file may hold several kinds, and
each task takes its own.  Rows without facts are never given to `@finlora` in silence: what they measure has another name.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..errors import FinloraError
from ..numbers import Number, numbers_match, parse_number, read_number
from ..programs import calculate
from ..text import Example
from . import Source, cluster_of, place_of, read_label, text_in

KINDS = ("tag", "value", "formula", "calc")
CATEGORIES = {"tags": "tag", "value": "value", "formula_tags": "formula", "formula_calculations": "calc"}  # FinLoRA's names
_INTRO = (
    "You are a knowledgeable XBRL assistant. Your task is to analyze the XBRL context and provide an accurate and very concise answer to the question,"
    " The example question can help you to learn the answer format. DO NOT output xml, code, explanation or create new question. \n"
)
EXAMPLES = {  # FinLoRA's, letter for letter, with the parenthesis it lost and the name it misspelt
    "tag": (
        "What is the US GAAP XBRL tag for Cash and Cash Equivalents as reported by Example Company Inc for the Fiscal Year ending in FY 2022",
        "us-gaap:AnExampleTagName",
    ),
    "value": ("What is the value of Exapmle company's income for the Fiscal year ending in FY 2020?", "80000000"),
    "formula": (
        "What is the formula for the Gross Profit Margin of Example Inc, formatted with the relevant US GAAP XBRL tags",
        "us-gaap:ExampleTag / us-gaap:AnotherExampleTag) * 100",
    ),
    "calc": (
        "Can you provide the formula for Operating Profit Margin from Example Corp for the Fiscal Year ending in FY 2022?",
        "(50000000 / 3590000000) * 100",
    ),
}
_KIND_OF = {answer: kind for kind, (_, answer) in EXAMPLES.items()}
_EXAMPLE = re.compile(r"^Example answer: (.*)$", re.MULTILINE)
_ELEMENT = re.compile(r"(?<![\w.:])(?:[A-Za-z][\w.-]*:)?[A-Za-z_]\w*(?![\w:])")
_TAG = re.compile(r"(?:(?P<prefix>[A-Za-z][\w.-]*)\s?:\s?)?(?P<name>[A-Za-z_]\w*)")
_TERMS = re.compile(r"[\d\s.,()\[\]+\-*/^%$×÷−–]+")
_JOINED = re.compile(r"[\d)]\s*[-+*/^×÷−–][-+*/^×÷−–\s(\[$]*\d")  # an operator between numbers
_FORM = {
    "tag": re.compile(r"(?:[\w.-]+:)?[A-Za-z_]\w*|-?[\d.]+"),
    "value": re.compile(r"-?\d[\d,]*(?:\.\d+)?"),
    "formula": re.compile(r"(?=.*[A-Za-z])(?=.*[-+*/]).*", re.DOTALL),
    "calc": re.compile(rf"(?=.*[-+*/]){_TERMS.pattern}", re.DOTALL),
}
LONGEST = 2000  # characters of an option or a formula that are read
ENOUGH = 0.01  # a number in place of an expression is written finely enough where half its last place is below this share of it


# -- rows ------------------------------------------------------------------------------------------------------------


def built(kind: str, offered: bool) -> Callable[[Mapping[str, Any], int], Iterator[Example]]:
    """`examples` of rows made from filings. offered: each brings its options, which are the Example's labels.

    Raises: FinloraError for a row of FinLoRA's, which has no options, and for a gold that is not among them.
    """

    def examples(row: Mapping[str, Any], index: int) -> Iterator[Example]:
        place = place_of(row, index)
        if "kind" not in row:
            raise FinloraError(
                f"{place}: no `kind` in the row, which `finlora xbrl build` writes", f"for FinLoRA's own rows ask for `xbrl_{kind}@finlora`, without facts for `xbrl_{kind}@closed`"
            )
        if _kind(row, "", place) != kind:
            return
        prompt, gold = text_in(row, "context", place), text_in(row, "target", place).strip()
        labels = _choices(row, gold, place) if offered else ()
        if not offered:
            _check(kind, gold, place)
        id, cluster = str(row.get("id") or f"xbrl_{kind}-{index}"), str(row.get("cluster") or row.get("company") or cluster_of(prompt))
        yield Example(id, (("user", prompt),), gold, gold, cluster, labels)

    return examples


def published(kind: str) -> Callable[[Mapping[str, Any], int], Iterator[Example]]:
    """`examples` of FinLoRA's prompts with the facts; one fact is asked in 5 wordings, which share a cluster.

    Raises: FinloraError for a row without facts.
    """

    def examples(row: Mapping[str, Any], index: int) -> Iterator[Example]:
        place = place_of(row, index)
        if "context" not in row and "question" in row:
            raise FinloraError(
                f"{place}: a question without the facts of its filing", f"ask for `xbrl_{kind}@closed` to measure what is answered without them, or give files with XML in their prompts"
            )
        prompt, gold = text_in(row, "context", place), text_in(row, "target", place).strip()
        if _kind(row, prompt, place) != kind:
            return
        _check(kind, gold, place)
        document = str(row.get("doc_path") or prompt.rpartition("\nQuestion:")[0])
        yield Example(f"xbrl_{kind}-{index}", (("user", prompt),), gold, gold, cluster_of(kind, document, gold))

    return examples


def closed(kind: str) -> Callable[[Mapping[str, Any], int], Iterator[Example]]:
    """`examples` of FinLoRA's questions without facts: {"question", "target", "company", "year", ...}.

    The prompt is FinLoRA's and says that the facts are not shown. Raises: FinloraError for a row of another form.
    """

    def examples(row: Mapping[str, Any], index: int) -> Iterator[Example]:
        place = place_of(row, index)
        if "context" in row:
            raise FinloraError(f"{place}: a row with a whole prompt", f"ask for `xbrl_{kind}@finlora`")
        if ("category" in row or "kind" in row) and _kind(row, "", place) != kind:
            return
        question, gold = text_in(row, "question", place), text_in(row, "target", place).strip()
        _check(kind, gold, place)
        key = (str(row.get("company", "")), str(row.get("year", "")), str(row.get("context_id", "")), gold)
        yield Example(f"xbrl_{kind}-{index}", (("user", closed_prompt(kind, question)),), gold, gold, cluster_of(kind, *key))

    return examples


def closed_prompt(kind: str, question: str) -> str:
    """FinLoRA's prompt with a line in place of the facts that says they are not shown."""
    example, answer = EXAMPLES[kind]
    return f"{_INTRO}Example question: {example}\nExample answer: {answer}\n\nXML File: (not shown)\nQuestion: {question}\nAnswer:"


def source(name: str, train: tuple[str, ...] = ()) -> Source:
    """The Source of FinLoRA's rows. name: of the kind in its files, such as "tags". train: further names of train files."""
    test = f"xbrl_extract_{name}_test.jsonl"  # train is one file of all kinds
    return Source(
        url="https://github.com/Open-Finance-Lab/FinLoRA",
        revision="7e1cf82803aa56a5f698d71e1528395e16b21093",
        finlora=f"Open-Finance-Lab/FinLoRA@7e1cf82803aa56a5f698d71e1528395e16b21093:data/test/{test}",
        licence="OpenMDW-1.0; facts of SEC filings",
        files={"train": ("xbrl_extract_train.jsonl", *train), "test": (test, "with_xml_*_test.jsonl")},
    )


def closed_source(category: str) -> Source:
    """The Source of FinLoRA's questions without facts, by the name of their file."""
    return Source(
        url="https://github.com/Anonymous284901012/FinLoRA-ICLR-Upload",
        revision="f3d5392c91bffcf9f25f4df0fe4302f47b475c19",
        licence="OpenMDW-1.0",
        files={"train": (f"{category}_train.jsonl",), "test": (f"{category}_test.jsonl",)},
    )


def own_source(kind: str) -> Source:
    """The Source of rows that `finlora xbrl build` made."""
    return Source(
        url="https://www.sec.gov/edgar",
        licence="facts of filings, public record",
        files={s: (f"xbrl_{kind}_{s}.jsonl", f"xbrl_{s}.jsonl") for s in ("train", "validation", "test")},
    )


def _kind(row: Mapping[str, Any], prompt: str, place: str) -> str:
    """One of KINDS. Raises: FinloraError where neither row nor prompt tells it."""
    told = row.get("kind") or row.get("category")
    if told is not None:
        kind = CATEGORIES.get(str(told), str(told))
        if kind not in KINDS:
            raise FinloraError(f"{place}: unknown kind {told!r:.40}", f"wanted one of {', '.join(KINDS)}")
        return kind
    found = _EXAMPLE.search(prompt)
    if found is None or found[1].strip() not in _KIND_OF:
        raise FinloraError(f"{place}: cannot tell what kind of XBRL question this is", f"give the row a `kind`: {', '.join(KINDS)}")
    return _KIND_OF[found[1].strip()]


def _check(kind: str, gold: str, place: str) -> None:
    if not _FORM[kind].fullmatch(gold) or (kind == "formula" and formula_value(gold) is None) or (kind == "calc" and _value(gold) is None):
        wanted = {"tag": "an element name", "value": "a number", "formula": "a formula of element names", "calc": "an arithmetic expression of numbers"}[kind]
        raise FinloraError(f"{place}: the target {gold!r:.60} is not {wanted}", f"this is no row of xbrl_{kind}: name the right task or file")


def _choices(row: Mapping[str, Any], gold: str, place: str) -> tuple[str, ...]:
    choices = row.get("choices")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices) or len(set(choices)) < len(choices):
        raise FinloraError(f"{place}: `choices` should be a list of two or more different texts", "build the rows again with `finlora xbrl build`")
    if gold not in choices:
        raise FinloraError(f"{place}: the target {gold!r:.60} is not among the choices", "build the rows again with `finlora xbrl build`")
    return tuple(choices)


# -- reading and marking ---------------------------------------------------------------------------------------------


def read_option(text: str, labels: Sequence[str]) -> str | None:
    """The option that the first line with a word is, white space and a "- " before it aside, else the one it begins with.

    An element's prefix may be left out where that leaves the options different.
    """
    said = re.sub(r"^[-*•]\s+", "", _line(text).strip()[:LONGEST]).rstrip(" .")
    squeezed = re.sub(r"\s+", "", said).casefold()
    same = [label for label in labels if re.sub(r"\s+", "", label).casefold() == squeezed]
    if len(same) == 1:
        return same[0]
    for tidy in (str, lambda t: re.sub(r"\b[\w.-]+:(?=\w)", "", t)):
        options = {tidy(label): label for label in labels}
        if len(options) == len(labels) and len({re.sub(r"[\W_]+", "", o).casefold() for o in options}) == len(labels):
            found = read_label(tidy(said), tuple(options))
            if found is not None:
                return options[found]
    return None


def read_tag(text: str, labels: object = ()) -> str | None:
    """The element that the first line with a word consists of, prefix and all; a number, which FinLoRA has as "tags", as text."""
    said = _line(text).strip(" \t\r\"'`*.")
    found = _TAG.fullmatch(said)
    if found:
        return f"{found['prefix']}:{found['name']}" if found["prefix"] else found["name"]
    return read_number(said) if parse_number(said) else None


def mark_tag(gold: Any, answer: Any) -> float:
    """1.0 for the gold's element; us-gaap may be left out, case does not count. A gold that is a number is matched as one."""
    if _FORM["value"].fullmatch(str(gold)):
        return float(numbers_match(gold, answer))
    names = [re.sub(r"^us-gaap:", "", str(x).casefold()) for x in (gold, answer)]
    return float(answer is not None and names[0] == names[1])


def read_formula(text: str, labels: object = ()) -> str | None:
    """The formula of elements that the first line with a word is, one space for white space; None where it computes nothing."""
    said = " ".join(_line(text).strip(" \t\r\"'`.").split())
    return said if formula_value(said) is not None else None


def mark_formula(gold: Any, answer: Any) -> float:
    """1.0 where both compute the same, whatever the elements stand at: 100 * A / B is (A / B) * 100, A / B is not."""
    if answer is None:
        return 0.0
    pairs = [(formula_value(str(gold), salt), formula_value(str(answer), salt)) for salt in ("1", "2")]
    return float(all(g is not None and a is not None and abs(g - a) <= 1e-9 * abs(g) for g, a in pairs))


def formula_value(text: str, salt: str = "1") -> float | None:
    """What a formula computes when each element stands at a number made from its name; None for anything else.

    An opening parenthesis that the example of FinLoRA's prompt has lost may be missing here too.
    """
    if len(text) > LONGEST or not _ELEMENT.search(text):
        return None
    numbers = _ELEMENT.sub(lambda m: _stand_in(m[0], salt), text)
    if not re.search(r"[-+*/^÷×−–](?=\s*[\d(])", numbers):
        return None
    lost = numbers.count(")") - numbers.count("(")
    return _value("(" * lost + numbers if lost == 1 else numbers)


def _stand_in(name: str, salt: str) -> str:
    digest = hashlib.sha256(f"{salt} {re.sub(r'^us-gaap:', '', name.casefold())}".encode()).digest()
    return str(1 + int.from_bytes(digest[:4], "big") / 2**28)


def _value(text: str) -> float | None:
    try:
        return calculate(text)
    except FinloraError:
        return None


def read_calculation(text: str, labels: object = ()) -> str | None:
    """The expression that the first line with a word is, up to an equal sign, or else the number that it gives."""
    line = _line(text).strip(" \t\r\"'`*")
    said = " ".join(line.partition("=")[0].rstrip(" .,;").split())
    if not _JOINED.search(said):
        return read_number(text)
    return said if _TERMS.fullmatch(said) and _value(said) is not None else None


def mark_calculation(gold: Any, answer: Any) -> float:
    """1.0 for an expression of the gold's value, or that value as a number, rounded to no more than 1% of it.

    Where the gold ends in "* 100" its value is a percentage: 24.72%, 24.72 and 0.2472 are one.
    """
    value = _value(str(gold))
    if value is None or answer is None:
        return 0.0
    number = None if _JOINED.search(str(answer)) else parse_number(str(answer))
    if number is None:
        said = _value(str(answer))
        return float(said is not None and abs(said - value) <= 1e-9 * abs(value))
    percent = re.search(r"\*\s*100\s*$", str(gold)) is not None
    return float(any(abs(said - value) <= room for said, room in _said(number, percent, value)))


def _said(number: Number, percent: bool, value: float) -> Iterator[tuple[float, float]]:
    """(what a number may mean, how far from the value it may be)."""
    step = 0.5 * 10.0**-number.decimals * number.scale * (1 + 1e-9)
    scales = (1,) if percent and number.percent else (1, 100) if percent else (0.01,) if number.percent else (1,)
    for scale in scales:
        fine = step * scale <= ENOUGH * abs(value)
        yield number.value * scale, step * scale if fine else 1e-9 * abs(value)


def _line(text: str) -> str:
    return next((line for line in text.splitlines() if re.search(r"\w", line)), "")
