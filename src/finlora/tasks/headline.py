"""Gold news headlines: nine yes/no questions on each (Sinha and Khandait 2020).

Source: the CSV of 11,412 headlines with one 0/1 column a question (Kaggle `daittan/gold-commodity-news-and-dimensions`;
hub `FinGPT/fingpt-headline-cls` as prompts).  FinLoRA: data/test/headline_test.jsonl (arXiv 2505.19819), built by FinGPT's notebook.
Licence: CC BY-NC-ND 4.0 or research use, by the cards; non-commercial.
Splits: rows 0-9,128 of the CSV are train (82,161 questions), rows 9,129-11,411 test (2,283 headlines, 20,547 questions).
Known errata: question 1 ("talk about price?") is published with the column DirectionConstant in place of PriceOrNot:
1,842 of its 2,283 test labels are wrong (9.0% of the file).  `headline` has the right labels, `headline@finlora` the
published ones; a row of the published file, read as `headline`, is refused.  257 of 2,283 test headlines (11.3%) are also in the train rows; the
2,283 are 2,218 different texts; 4 (headline, question) pairs have two answers.  FinLoRA's grader reads "no" inside "know".
Cluster: the headline, so that intervals know that nine questions share one text.
Floor: always "No" is right in 13,985 of 20,547 test rows (0.6806; published labels 15,827, 0.7703); the commonest answer of
each question 0.8285 (17,023; published labels 0.8399); naive Bayes, one model a question, 0.921.  So 0.68 is the weakest of the floors here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import FinloraError
from ..text import Example
from . import PLACE, Source, Task, cluster_of, finlora_prompt, label_in, label_rows, parse_finlora, place_of, text_in

LABELS = ("Yes", "No")
QUESTIONS = {  # column of the CSV -> the question of the prompt, in FinLoRA's order
    "PriceOrNot": "Does the news headline talk about price?",
    "DirectionUp": "Does the news headline talk about price going up?",
    "DirectionConstant": "Does the news headline talk about price staying constant?",
    "DirectionDown": "Does the news headline talk about price going down?",
    "PastPrice": "Does the news headline talk about price in the past?",
    "FuturePrice": "Does the news headline talk about price in the future?",
    "PastNews": "Does the news headline talk about a general event (apart from prices) in the past?",
    "FutureNews": "Does the news headline talk about a general event (apart from prices) in the future?",
    "AssetComparision": "Does the news headline compare gold with any other asset?",
}
ALIASES = {  # other spellings of the columns in copies of the CSV, compared without spaces, case or punctuation
    "priceornot": "PriceOrNot",
    "directionup": "DirectionUp",
    "pricedirectionup": "DirectionUp",
    "directionconstant": "DirectionConstant",
    "pricedirectionconstant": "DirectionConstant",
    "directiondown": "DirectionDown",
    "pricedirectiondown": "DirectionDown",
    "pastprice": "PastPrice",
    "pastprices": "PastPrice",
    "pastpriceinfo": "PastPrice",
    "futureprice": "FuturePrice",
    "futureprices": "FuturePrice",
    "futurepriceinfo": "FuturePrice",
    "pastnews": "PastNews",
    "pastgeneralinfo": "PastNews",
    "futurenews": "FutureNews",
    "futuregeninfo": "FutureNews",
    "futuregeneralinfo": "FutureNews",
    "assetcomparision": "AssetComparision",
    "assetcomparison": "AssetComparision",
}
_COLUMN_OF = {question: column for column, question in QUESTIONS.items()}
_CODES: dict[int | str, str] = {0: "No", 1: "Yes"}

# The first 8 hex digits of the clusters of some headlines that do talk of a price, and whose published label says No.
PRICED = frozenset(
    """
    000062fb 0010000e 00127de3 00138ae5 00166751 001a5a12 001b17ea 00226f79 002776cc 0037c443 003d1d2c 00591378 005ee02b
    0065a947 00896d6a 00a82931 00a8c018 00b4aaca 00bd6a0c 00cb762d 00cebac7 00d98d25 00f1782c 00f9e0fa 00fb80e4 00fc3ebd
    112956aa 168e2e24 1a2d40f9 1db2d7c3 22dfc9cb 3cbde58c 5666cadb 61e988b6 6b75dc74 6c4081fd 865d752c 87357dba 96a26ce4
    acbda3ea b18ce6c1 b406545a b44f6deb cb90be68 da66d072 eda7815e f32d6b97 f44bc17c f8424717
    """.split()
)


def _key(column: str) -> str:
    return "".join(c for c in column.casefold() if c.isalnum())


def _column(prompt: str) -> str:
    """The CSV column that a prompt asks for, "" for a question of another wording."""
    parsed = parse_finlora(prompt)
    return _COLUMN_OF.get(parsed[0], "") if parsed else ""


_row_of_prompt = label_rows("headline", LABELS, "")


def _make(published: bool) -> Any:
    def examples(row: Mapping[str, Any], index: int) -> Iterator[Example]:
        if "context" in row or "target" in row or "instruction" in row:
            yield from _prompted(row, index, published)
        else:
            yield from _wide(row, index, published)

    return examples


def _prompted(row: Mapping[str, Any], index: int, published: bool) -> Iterator[Example]:
    if published and "target_finlora" in row:
        row = {**row, "target": row["target_finlora"]}
    for example in _row_of_prompt(row, index):
        column = _column(example.messages[0][1])
        if column == "PriceOrNot" and example.cluster[:8] in PRICED and (example.gold == "Yes") == published:
            right, wanted = ("right", "published") if published else ("published", "right")
            raise FinloraError(
                f"{place_of(row, index)}: question 1 has the {right} label, `headline{'@finlora' if published else ''}` wants the {wanted} one",
                f"ask for `headline{'' if published else '@finlora'}`, or give the file that has PriceOrNot and DirectionConstant",
            )
        yield Example(f"headline-{index}-{column}" if column else example.id, example.messages, example.gold, example.answer, example.cluster, LABELS)


def _wide(row: Mapping[str, Any], index: int, published: bool) -> Iterator[Example]:
    place = place_of(row, index)
    names = {ALIASES[_key(k)]: k for k in row if k and _key(k) in ALIASES}
    news = next((k for k in ("News", "news", "headline", "text") if k in row), None)
    missing = [c for c in QUESTIONS if c not in names]
    if news is None or missing:
        found = ", ".join(f"{k:.40}" for k in row if k and k != PLACE) or "none"
        wanted = (["News"] if news is None else []) + missing
        raise FinloraError(f"{place}: no {', '.join(wanted)} column; found: {found}", "wanted News and nine 0/1 columns, or FinLoRA's context + target")
    text = text_in(row, news, place)
    cluster = cluster_of(text)
    for column, question in QUESTIONS.items():
        cell = names["DirectionConstant"] if published and column == "PriceOrNot" else names[column]
        gold = label_in(row[cell], LABELS, place, _CODES)
        yield Example(f"headline-{index}-{column}", (("user", finlora_prompt(question, LABELS, text)),), gold, gold, cluster, LABELS)


_SPLIT = {"train": (0, 9129), "test": (9129, None)}
_SOURCE = Source(
    hub="FinGPT/fingpt-headline-cls",
    url="https://www.kaggle.com/datasets/daittan/gold-commodity-news-and-dimensions",
    finlora="Open-Finance-Lab/FinLoRA@7e1cf82803aa56a5f698d71e1528395e16b21093:data/test/headline_test.jsonl",
    licence="CC BY-NC-ND 4.0 or research use (non-commercial)",
    noncommercial=True,
    files={"train": ("headline_train.jsonl", "headline_train_sub.jsonl"), "test": ("headline_test.jsonl", "headline_test_dev.jsonl")},
    whole={"headlines.csv": _SPLIT, "headlines_v1.csv": _SPLIT},
    columns={"text": ("News",), "label": tuple(QUESTIONS)},
)

TASK = Task(
    name="headline",
    group="headline",
    labels=LABELS,
    examples=_make(published=False),
    source=_SOURCE,
    errata="published labels of question 1 come from the wrong column (1,842 of 2,283 wrong); 11.3% of test headlines are in train",
    majority={"test": ("No", 13985 / 20547, 20547), "train_sub": ("No", 5635 / 8271, 8271)},
)

VARIANTS = {
    "finlora": Task(
        name="headline@finlora",
        group="headline",
        labels=LABELS,
        examples=_make(published=True),
        source=_SOURCE,
        errata="the labels as published: question 1 from the wrong column; only for comparison with published numbers",
        majority={"test": ("No", 15827 / 20547, 20547)},
    )
}
