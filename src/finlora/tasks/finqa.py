"""FinQA: a question about a page of an annual report, its table and its text, answered by a program (Chen et al. 2021).

Source: arXiv 2109.00122, github.com/czyssrs/FinQA; hub `dreamerdeo/finqa` (answers without programs) and `ibm-research/finqa`
(the nested `program_re`).  Rows are read in the original form (pre_text, post_text, table, qa with question, program,
exe_ans), in those of both hubs, and as a prompt with a program (`context`, `target`), such as the CBR-FinQA prompts.
Licence: MIT (czyssrs/FinQA); the card of `ibm-research/finqa` says CC BY 4.0.  No revision of either hub set was verified.
Splits: train 6,251 questions, dev 883, test 1,147 (hub card).  `finqa_dev_program.jsonl`, the whole dev set as prompts with
retrieved facts, stands in for a test where no test file is.
Known errata: most percentages are shares of one, a few programs multiply by const_100 (12 of the 380 dev questions that
say percent do), so a number is taken either way there; the prompts' facts were retrieved and may miss the evidence; 883 prompts are
876 different ones; 485 of 818 dev questions with a long fact share it with a ConvFinQA document, which was made from this set.
Cluster: the page, known by its table: 299 in dev.
Floor: the commonest answer, no, is right in 7 of 883 (0.008).  All 883 dev programs run and are marked right.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import FinloraError
from ..text import Example
from . import Source, Task, cluster_of, column_of, place_of, prompt_in, text_in
from ._programs import ASK, asks_percent, gold_of, mark, page_text, read, table_in, table_text

_TABLE = re.compile(r"Table: (\[\[.{0,20000}?\]\])\s*\n", re.DOTALL)
_QUESTION = re.compile(r"Question: (.*?)\s*(?:Output|Answer|Program):\s*\Z", re.DOTALL)


def finqa_prompt(page: str, question: str) -> str:
    """The prompt of a row that brings none."""
    return f"Instruction: {ASK}\nInput: {page}\nQuestion: {question}\nAnswer: "


def prompt_parts(prompt: str) -> tuple[list[list[str]], str]:
    """(table, question) of a prompt that writes its table as a list of lists; [] and the whole prompt else."""
    found, asked = _TABLE.search(prompt), _QUESTION.search(prompt)
    table: Any = []
    if found:
        try:
            table = ast.literal_eval(found[1])
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            table = []
    fine = isinstance(table, list) and all(isinstance(r, list) for r in table)
    return (table if fine else []), asked[1] if asked else prompt


def _examples(row: Mapping[str, Any], index: int) -> Iterator[Example]:
    place = place_of(row, index)
    given = prompt_in(row, place)
    if given is None:
        qa = row.get("qa", row)
        if not isinstance(qa, Mapping):
            raise FinloraError(f"{place}: column `qa` should hold a question but is {type(qa).__name__}", "fix or drop the row")
        table = table_in(row, place)
        question = text_in(qa, column_of(qa, ("question",), place, "question"), place)
        written = next((qa[c] for c in ("answer", "answers") if qa.get(c) not in (None, "")), None)
        program = next((qa[c] for c in ("program", "program_re") if isinstance(qa.get(c), str) and qa[c].strip()), "")
        result = next((qa[c] for c in ("exe_ans", "final_result") if qa.get(c) not in (None, "")), None if program else written)
        prompt = finqa_prompt(page_text(row, table, place), question)
        percent = asks_percent(question, written)
    else:
        prompt, column = given
        table, question = prompt_parts(prompt)
        target = text_in(row, column, place)
        program, result = (target, None) if "(" in target and read(target) else ("", target)
        percent = asks_percent(question)
    gold, answer = gold_of(program, result, percent, table, place)
    cluster = cluster_of(table_text(table)) if table else cluster_of(prompt)
    yield Example(f"finqa-{index}", (("user", prompt),), gold, answer, cluster)


TASK = Task(
    name="finqa",
    labels=(),
    examples=_examples,
    kind="program",
    way="say",
    read=read,
    mark=mark,
    source=Source(
        hub="dreamerdeo/finqa",
        url="https://github.com/czyssrs/FinQA",
        licence="MIT",
        files={
            "train": ("finqa_train.json",),
            "validation": ("finqa_dev.json", "finqa_dev_program.jsonl"),
            "test": ("finqa_test.json", "finqa_dev_program.jsonl"),
        },
        rows={"train": 6251, "validation": 883, "test": 1147},
        columns={"text": ("pre_text", "table", "post_text"), "label": ("qa", "program_re", "final_result", "answers")},
    ),
    errata="percentages are shares of one or, rarely, hundreds; ConvFinQA was made from the same pages",
    metric="numeric",
    metrics=("numeric",),
    max_new=96,
    group="qa",
)
