"""ConvFinQA: FinQA's questions asked step by step, each turn after the questions before it (Chen et al. 2022).

Source: arXiv 2210.03849, github.com/czyssrs/ConvFinQA.  Rows are read in three forms: a conversation with `doc` and `dialogue`
(conv_questions, turn_program, executed_answers; the table as columns), the original conversation with `annotation`
(dialogue_break, turn_program, exe_ans_list), and its turn-level files (cur_dial, cur_program, exe_ans).
Licence: MIT (czyssrs/ConvFinQA).  No data set of the hub was verified.
Splits: train 3,037 conversations, dev 421 with 1,490 turns, test 434 (repository).  The dev file `convfinqa_dev.jsonl` stands in for
a test where no test file is.
Known errata: 121 of the 421 dev conversations join the questions of two FinQA items of one page; 17 have a table with columns
of one name, 32 cells that are no numbers (flags of the cleaned file).  A turn asks about "that change" or "it": the history holds
the questions only, so that no earlier gold answer is given away.
Cluster: the page, 218 in dev; the turns of a conversation, and conversations about a page, share it.
Floor: the commonest answer, 100, is right in 8 of 1,490 turns (0.005).  All 1,490 dev programs run, and give the executed answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import FinloraError
from ..programs import table_rows
from ..text import Example
from . import Source, Task, cluster_of, column_of, place_of, text_in
from ._programs import ASK, asks_percent, gold_of, mark, page_text, read, table_in

_PAGE = re.compile(r"^(?:Single|Double)_|-\d+$|_\d+$")


def convfinqa_prompt(page: str, history: list[str], question: str) -> str:
    """The prompt of one turn: the page, the questions before it, its own."""
    before = "".join(f"Earlier question: {q}\n" for q in history)
    return f"Instruction: {ASK}\nInput: {page}\n{before}Question: {question}\nAnswer: "


def _list(holder: Mapping[str, Any], column: str, place: str) -> list[Any]:
    value = holder.get(column)
    if not isinstance(value, list | tuple) or not value:
        raise FinloraError(f"{place}: column `{column}` should hold a list but is {type(value).__name__ if value is not None else 'missing'}", "fix or drop the row")
    return list(value)


def _turns(row: Mapping[str, Any], place: str) -> Iterator[tuple[int, list[str], str, Any, Any]]:
    """(number, questions up to it, program, result, written answer) of each turn of a row."""
    if "dialogue" in row or "annotation" in row:
        talk = row["dialogue"] if "dialogue" in row else row["annotation"]
        if not isinstance(talk, Mapping):
            raise FinloraError(f"{place}: the dialogue should be an object but is {type(talk).__name__}", "fix or drop the row")
        if "cur_dial" not in talk:
            names = ("conv_questions", "executed_answers") if "conv_questions" in talk else ("dialogue_break", "exe_ans_list")
            questions, results = (_list(talk, n, place) for n in names)
            programs = _list(talk, "turn_program", place)
            written = talk.get("conv_answers") or [None] * len(questions)
            if not len(questions) == len(results) == len(programs) == len(written):
                raise FinloraError(f"{place}: {len(questions)} questions, {len(programs)} programs and {len(results)} results", "each turn has one of each")
            for k in range(len(questions)):
                yield k, [str(q) for q in questions[: k + 1]], str(programs[k]), results[k], written[k]
            return
        row = talk
    questions = [str(q) for q in _list(row, "cur_dial", place)]
    program = text_in(row, column_of(row, ("cur_program",), place, "program"), place)
    yield len(questions) - 1, questions, program, row.get("exe_ans"), None


def _examples(row: Mapping[str, Any], index: int) -> Iterator[Example]:
    place = place_of(row, index)
    document = row.get("doc", row)
    if not isinstance(document, Mapping):
        raise FinloraError(f"{place}: column `doc` should be an object but is {type(document).__name__}", "fix or drop the row")
    columns = document.get("table")
    if isinstance(columns, Mapping):
        if not all(isinstance(c, Mapping) for c in columns.values()):
            raise FinloraError(f"{place}: the columns of the table should be objects", "such as {column: {row: cell}}")
        table = table_rows(columns)
    else:
        table = table_in(document, place)
    page = page_text(document, table, place)
    name = str(row.get("filename") or _PAGE.sub("", str(row.get("id") or "")))
    cluster = cluster_of(name) if name else cluster_of(page)
    for turn, questions, program, result, written in _turns(row, place):
        percent = asks_percent(questions[-1], written)
        gold, answer = gold_of(program, result, percent, table, f"{place}: turn {turn + 1}")
        prompt = convfinqa_prompt(page, questions[:-1], questions[-1])
        yield Example(f"convfinqa-{index}-{turn}", (("user", prompt),), gold, answer, cluster)


TASK = Task(
    name="convfinqa",
    labels=(),
    examples=_examples,
    kind="program",
    way="say",
    read=read,
    mark=mark,
    source=Source(
        url="https://github.com/czyssrs/ConvFinQA",
        licence="MIT",
        files={
            "train": ("convfinqa_train.json", "train_turn.json"),
            "validation": ("convfinqa_dev.jsonl", "dev_turn.json"),
            "test": ("convfinqa_test.json", "test_turn.json", "convfinqa_dev.jsonl"),
        },
        rows={"train": 3037, "validation": 421, "test": 434},
        columns={"text": ("doc", "pre_text", "table", "post_text"), "label": ("dialogue", "annotation", "cur_program")},
    ),
    errata="made from FinQA's pages: no test of a model trained on FinQA's dev set",
    metric="numeric",
    metrics=("numeric",),
    max_new=96,
    group="qa",
)
