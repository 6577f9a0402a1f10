"""What FinQA and ConvFinQA share: golds that are programs, answers that are programs or numbers, and their mark.

gold = (program, result, percent, rows): the program as written ("" where only a result is known), its result (a number
rounded to 5 decimals, "yes" or "no"), whether the question asks for a percentage, and the rows of the table that are all
numbers, for the table operations of an answer.

Marks: a program counts by execution, its result being the gold's (execution accuracy, Chen et al. 2021).  A number counts
where it is the gold's to 5 decimals, or to within half of its own last place when it has three digits or more: 14.5% for
0.14464, not 14%.  Where a percentage is asked for, 14.46%, 14.46 and 0.1446 are one answer: some programs of the set
multiply by const_100 and most do not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import FinloraError
from ..numbers import Number, parse_number
from ..programs import OPS, PLACES, TABLE_OPS, parse_program, run_program, same_result, write_program

Gold = tuple[str, float | str, bool, tuple[tuple[str, ...], ...]]

_PERCENT = re.compile(r"%|\bpercent", re.IGNORECASE)
_ANSWER = re.compile(r"\s*(?:program|answer)\s*:\s*", re.IGNORECASE)
_WORD = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
_CALL = re.compile(rf"\W*(?:{'|'.join((*OPS, *TABLE_OPS))})\s*\(", re.IGNORECASE)
ASK = (
    "Answer the question about this page of a financial report with a program. A program is a list of steps op(a, b); op is one of "
    f"{', '.join((*OPS, *TABLE_OPS))}; an argument is a number of the page, a constant such as const_100, or #k, the result of "
    "step k from #0 on; table operations take the name of a row and none. A question that the page answers is answered with its number."
)


def gold_of(program: str, result: Any, percent: bool, table: Sequence[Sequence[Any]], place: str) -> tuple[Gold, str]:
    """(gold, answer that training teaches). The result is run where there is a program.

    Raises: FinloraError where neither can be read, or a result that is given is not the program's.
    """
    rows = numeric_rows(table)
    if not program:
        value = _result(result)
        if value is None:
            raise FinloraError(f"{place}: neither a program nor a number: {str(result)[:40]!r}", "fix or drop the row")
        return ("", value, percent or "%" in str(result), rows), str(result).strip()
    program = program.strip()
    try:
        value = run_program(program, rows)
    except FinloraError as e:
        raise FinloraError(f"{place}: {e.message}", e.hint) from None
    given = None if result is None else _result(result)
    if given is not None and not same_result(given, value):
        raise FinloraError(f"{place}: the program `{program[:60]}` gives {value}, the row says {result}", "fix or drop the row")
    return (program, value, percent, rows), program


def asks_percent(question: str, answer: Any = None) -> bool:
    """Whether a percentage is asked for: the written answer has a %, or the question says percent."""
    return bool(_PERCENT.search(str(answer)) if answer not in (None, "") else _PERCENT.search(question))


def numeric_rows(table: Sequence[Sequence[Any]]) -> tuple[tuple[str, ...], ...]:
    """The rows of a table whose cells are all numbers, as texts, the name first."""
    out = []
    for row in table:
        cells = tuple(" ".join(str(c).split()) for c in row)
        try:
            if len(cells) > 1 and cells[0]:
                run_program(f"table_sum({cells[0]}, none)", [cells])
                out.append(cells)
        except FinloraError:
            continue
    return tuple(out)


def read(text: str, labels: Sequence[str] = ()) -> str | None:
    """A program in its written form, a number in its one form, yes, no, or None."""
    line = next((x for x in text.splitlines() if re.search(r"\w", x)), "")
    line = line[m.end() :] if (m := _ANSWER.match(line)) else line
    if _CALL.match(line):
        try:
            return write_program(parse_program(line[: line.rfind(")") + 1].lstrip(" *`'\"")))
        except FinloraError:
            return None
    if m := _WORD.match(line):
        return m[1].lower()
    number = parse_number(text)
    return None if number is None else str(number)


def mark(gold: Any, answer: Any) -> float:
    """1.0 where the answer is right, else 0.0 (see the module's docstring)."""
    if not isinstance(answer, str):
        return 0.0
    program, result, percent, rows = gold
    if _CALL.match(answer):
        try:
            return float(same_result(result, run_program(answer, rows)))
        except FinloraError:
            return float(answer == program)
    if isinstance(result, str) or answer in ("yes", "no"):
        return float(answer == result)
    number = parse_number(answer)
    return float(number is not None and _is(result, number, percent))


def table_text(table: Sequence[Sequence[Any]]) -> str:
    """A table as lines of cells with bars between them."""
    return "\n".join(" | ".join(" ".join(str(c).split()) for c in row) for row in table)


def page_text(row: Mapping[str, Any], table: Sequence[Sequence[Any]], place: str) -> str:
    """The page: the text before the table, the table, the text after it."""
    parts = []
    for column in ("pre_text", "post_text"):
        value = row.get(column) or ""
        if isinstance(value, list | tuple):
            value = " ".join(map(str, value))
        if not isinstance(value, str):
            raise FinloraError(f"{place}: column `{column}` should hold text but is {type(value).__name__}", "fix or drop the row")
        parts.append(value.strip())
    return "\n".join(x for x in (parts[0], table_text(table), parts[1]) if x)


def table_in(row: Mapping[str, Any], place: str) -> list[list[Any]]:
    """The row's table as a list of rows. Raises FinloraError for another form."""
    table = row.get("table")
    if not isinstance(table, list | tuple) or not all(isinstance(r, list | tuple) for r in table):
        raise FinloraError(f"{place}: column `table` should hold a list of rows but is {type(table).__name__}", "fix or drop the row")
    return [list(r) for r in table]


def _result(value: Any) -> float | str | None:
    """A result as it is given: yes, no, or a number, a percentage as its share of one."""
    if isinstance(value, str) and value.strip().lower() in ("yes", "no"):
        return value.strip().lower()
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return round(float(value), PLACES)
    number = parse_number(value) if isinstance(value, str) else None
    return None if number is None else round(number.fraction, PLACES)


def _is(result: float, number: Number, percent: bool) -> bool:
    values = {number.fraction, number.value, number.value / 100} if percent else {number.fraction}
    written = abs(number.written)
    digits = number.decimals + (math.floor(math.log10(written)) + 1 if written else 0)
    for value in values:
        share = abs(value / number.value) if number.value else 1.0
        own = 0.5 * 10.0**-number.decimals * number.scale * share * (1 + 1e-9)
        if same_result(result, value) or (digits >= 3 and abs(value - result) <= own):
            return True
    return False
