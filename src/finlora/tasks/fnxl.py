"""FNXL: which US-GAAP tag does a number in a sentence of a 10-K bear, of thousands? (Sharma et al. 2023)

Source: `soummyaah/FNXL` on GitHub at 250200aa663d ({train,dev,test}_sample.csv: sentence, numerals-tags, company, ...),
1,000 sentences a split; the whole set has 2,794 tags (arXiv 2306.03723).  FinLoRA (arXiv 2505.19819) tests on its sample,
four questions a prompt under a list of the test's own 587 tags.  A row is one of FinLoRA's batches, one question of it
({"context": the question's line, "target": the tag}), or a sentence of the CSV.
Licence: none stated; filings of the SEC.  Taken as non-commercial.
Splits: train 1,240 questions about 981 sentences, 731 tags; dev 891 about 891, 554 tags, which serves as the test where
FinLoRA's is not at hand.  `fnxl` asks one question a number, `fnxl@finlora` four at a time as published, a mark being the
share of right tags.
Known errata: FinLoRA asks for the first number of each tag only, trains on none of this (it takes its FiNER adapter), and
its prompts have no "Answer:", at which its evaluator cuts, so that a perfect model scores 0.001 at most.  94 of 988 of its
questions (9.5%) are about a sentence of the upstream dev file, 19 about one of train; those rows were dropped from ours.  10
of our 891 dev sentences are in train, up to case and punctuation; 21 train prompts have two answers (one number that bears
two tags); 505 of 891 dev questions have a tag that train never shows (364 tags), so what was learned by heart from train
stops at 0.433; 702 are of companies in train.
Cluster: the sentence.
Floor: the tag commonest in train, LineOfCreditFacilityMaximumBorrowingCapacity (18 of 1,240), is right in no dev question;
the commonest of dev itself in 9 of 891 (0.0101).  Naive Bayes 0.039, the answer of the likest train question 0.088.
FinLoRA's test (988): 0.0071.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import FinloraError
from ..text import Example
from . import Source, Task, place_of, text_in
from ._tags import ENDING, Ask, asked, bare, batched, is_tag, mark_batch, one_each, read_batch, read_tag

QUESTION = 'What is the best us gaap tag for entity "{entity}" in sentence: "{sentence}"?'  # FinLoRA's
_ASK = re.compile(r'^(?P<line>What is the best us gaap tag for entity "(?P<entity>.*?)" in sentence: "(?P<sentence>.*?)"\?)$', re.DOTALL | re.MULTILINE)


def one_prompt(line: str) -> str:
    """The prompt of one question; a list of thousands of tags is not shown."""
    return f"You are XBRL expert. Answer the following question by providing only the US GAAP tag. Provide nothing else.\n{line}\nOutput US GAAP tag: "


def batch_prompt(lines: list[str]) -> str:
    """FinLoRA's prompt without its list, which is that of the test's answers."""
    return (
        "You are XBRL expert. Choose the best XBRL US GAAP tag for each highlighted entity in the sentences below. Provide only the US GAAP tags,"
        " comma-separated, in the order of the sentences and highlighted entity. Provide nothing else\n" + "\n".join(lines) + "\n" + ENDING
    )


def spans(row: Mapping[str, Any], place: str) -> list[Ask]:
    """The questions of a sentence in the CSV's form, one for each number of each tag.

    Raises: FinloraError for a cell `numerals-tags` that is not {tag: [numbers]}.
    """
    sentence, cell = text_in(row, "sentence", place), row["numerals-tags"]
    try:
        tags = ast.literal_eval(cell) if isinstance(cell, str) and len(cell) < 100_000 else cell
        pairs = [(bare(t), str(n)) for t, numbers in tags.items() for n in (numbers if isinstance(numbers, list) else [numbers])]
    except (ValueError, SyntaxError, AttributeError, MemoryError, RecursionError):
        pairs = [("", "")]
    bad = next((t for t, n in pairs if not is_tag(t) or not n), None)
    if bad is not None:
        raise FinloraError(f"{place}: column `numerals-tags` holds {str(cell):.60}", "wanted such as {'us-gaap:Revenues': ['8.4', '9.6']}")
    return [Ask(QUESTION.format(entity=n, sentence=sentence), n, sentence, t) for t, n in pairs]


def _asks(row: Mapping[str, Any], index: int) -> list[Ask]:
    place = place_of(row, index)
    return spans(row, place) if "numerals-tags" in row else asked(row, _ASK, place, is_tag)


def _examples(row: Mapping[str, Any], index: int) -> Iterator[Example]:
    yield from one_each("fnxl", _asks(row, index), index, one_prompt)


def _published(row: Mapping[str, Any], index: int) -> Iterator[Example]:
    """A batch as it stands; a row of one question, or a sentence of the CSV, as a batch of its own without the list."""
    asks = _asks(row, index)
    if not asks:
        return
    whole = str(row.get("context", "")).endswith(ENDING)
    yield batched("fnxl", asks, index, row["context"] if whole else batch_prompt([a.line for a in asks]))


_SOURCE = Source(
    url="https://github.com/soummyaah/FNXL",
    revision="250200aa663dc5b97fd17713641bd234a05a106f",
    finlora="Open-Finance-Lab/FinLoRA@7e1cf82803aa56a5f698d71e1528395e16b21093:data/test/fnxl_test_batched.jsonl",
    licence="none stated; text of SEC filings (taken as non-commercial)",
    noncommercial=True,
    files={
        "train": ("fnxl_train.jsonl", "train_sample.csv"),
        "validation": ("fnxl_dev.jsonl", "dev_sample.csv"),
        "test": ("fnxl_test_batched.jsonl", "fnxl_test.jsonl", "test_sample.csv", "fnxl_dev.jsonl", "dev_sample.csv"),
    },
    columns={"text": ("sentence",), "label": ("numerals-tags",)},
)
_ERRATA = "505 of 891 dev questions have a tag that train never shows; published: 9.5% of test questions are about sentences of dev"

TASK = Task(
    name="fnxl",
    labels=(),
    kind="text",
    way="say",
    examples=_examples,
    read=read_tag,
    source=_SOURCE,
    errata=_ERRATA,
    majority={
        "validation": ("DisposalGroupIncludingDiscontinuedOperationConsideration", 9 / 891, 891),
        "train": ("LineOfCreditFacilityMaximumBorrowingCapacity", 18 / 1240, 1240),
    },
    metrics=("macro_f1",),
    max_new=64,
    floors=("majority",),
    group="tagging",
)

VARIANTS = {
    "finlora": Task(
        name="fnxl@finlora",
        labels=(),
        kind="text",
        way="say",
        examples=_published,
        read=read_batch,
        mark=mark_batch,
        source=_SOURCE,
        errata=_ERRATA,
        max_new=192,
        group="tagging",
    )
}
