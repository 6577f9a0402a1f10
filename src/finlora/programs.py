"""Arithmetic that was written as text, run without `eval`: expressions, and the programs of FinQA.

    calculate("(11311000000 / 45754000000) * 100")                   24.72...
    run_program("subtract(5829, 5735), divide(#0, 5735)")            0.01639 (rounded to 5 decimals, as FinQA does)
    run_program("table_average(net sales, none)", table)             the mean of that row
    same_program("add(1, 2)", "add(2, 1)")                           True

Expressions: + - * / ^ **, signs, parentheses of any kind, thousands commas, % after a number, $ ignored; read by recursive
descent, at most LONGEST characters and DEEPEST levels.  Programs (Chen et al. 2021, arXiv 2109.00122): steps `op(a, b)`, an
argument being a number, `13.4%` (0.134), `const_100`, `const_m1` (-1), or `#k`, the result of step k; `greater` gives yes or
no; `table_max`, `_min`, `_sum`, `_average` take the name of a row and `none`.  Steps may also stand within steps, as in
FinQA's `program_re`.  A number alone is a program too (ConvFinQA).

How this differs from the usual way: FinQA's evaluator cuts programs at ", " and brackets, so that a row name with a bracket
cannot be run; here the name goes up to `, none)`.  Programs are compared there by rewriting with sympy, whose time on a
written text has no bound; here both are evaluated as rational functions in two places modulo the prime 2^61 - 1, numbers
and rows standing for themselves, so that equal functions are always equal and different ones with chance below 1e-30.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .errors import FinloraError

LONGEST = 4000  # characters
DEEPEST = 50  # parentheses within parentheses, signs before signs
STEPS = 64
PLACES = 5  # decimals that FinQA's results are rounded to
OPS = ("add", "subtract", "multiply", "divide", "exp", "greater")
TABLE_OPS = ("table_max", "table_min", "table_sum", "table_average")
VALUE = "value"  # the step of a program that is a number alone

_PRIME = 2**61 - 1
_TOKEN = re.compile(r"\s*(?:(?P<number>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d*)?(?:[eE][+-]?\d{1,3})?|\.\d+)|(?P<op>\*\*|[-+*/^%()]))")
_SAME = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "[": "(", "]": ")", "{": "(", "}": ")", "$": None})
_STEP = re.compile(r"[\s,]*(?P<op>[a-z_]{2,20})\s*\(", re.IGNORECASE)
_FIGURE = re.compile(r"(?P<sign>-?)\s*\$?\s*(?P<number>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)\s*(?P<percent>%?)")


@dataclass(frozen=True)
class Step:
    """One step of a program: op(first, second), the arguments as written."""

    op: str
    first: str
    second: str = "none"

    def __str__(self) -> str:
        return self.first if self.op == VALUE else f"{self.op}({self.first}, {self.second})"


# -- expressions -----------------------------------------------------------------------------------------------------


def calculate(text: str) -> float:
    """The value of an arithmetic expression.

    Raises: FinloraError for anything else, too long or too deep a text, a division by zero, and results that are no number.
    """
    shown = _shown(text)
    tokens = _tokens(str(text), shown)
    value, at = _sum(tokens, 0, 0, shown)
    if at < len(tokens):
        raise FinloraError(f"`{shown}` has a `{tokens[at]}` too many", "write one arithmetic expression")
    return _finite(value, shown)


def _tokens(text: str, shown: str) -> list[str]:
    if len(text) > LONGEST:
        raise FinloraError(f"an expression of {len(text)} characters: `{shown}`", f"at most {LONGEST}")
    text = text.translate(_SAME).strip()
    out, at = [], 0
    while at < len(text):
        m = _TOKEN.match(text, at)
        if m is None:
            raise FinloraError(f"`{shown}` has `{_shown(text[at:], 12)}`, which is no arithmetic", "numbers, + - * / ^ and parentheses")
        out.append(m["op"] or m["number"])
        at = m.end()
    return out


def _sum(tokens: list[str], at: int, depth: int, shown: str) -> tuple[float, int]:
    value, at = _product(tokens, at, depth, shown)
    while at < len(tokens) and tokens[at] in "+-":
        other, after = _product(tokens, at + 1, depth, shown)
        value, at = (value + other if tokens[at] == "+" else value - other), after
    return value, at


def _product(tokens: list[str], at: int, depth: int, shown: str) -> tuple[float, int]:
    value, at = _signed(tokens, at, depth, shown)
    while at < len(tokens) and tokens[at] in ("*", "/"):
        other, after = _signed(tokens, at + 1, depth, shown)
        value, at = _apply("multiply" if tokens[at] == "*" else "divide", value, other, shown), after
    return value, at


def _signed(tokens: list[str], at: int, depth: int, shown: str) -> tuple[float, int]:
    if depth > DEEPEST:
        raise FinloraError(f"`{shown}` is more than {DEEPEST} levels deep", "write it with fewer parentheses")
    if at < len(tokens) and tokens[at] in "+-":
        value, after = _signed(tokens, at + 1, depth + 1, shown)
        return (-value if tokens[at] == "-" else value), after
    value, at = _atom(tokens, at, depth, shown)
    if at < len(tokens) and tokens[at] in ("^", "**"):
        power, at = _signed(tokens, at + 1, depth + 1, shown)
        value = _apply("exp", value, power, shown)
    return value, at


def _atom(tokens: list[str], at: int, depth: int, shown: str) -> tuple[float, int]:
    if at >= len(tokens):
        raise FinloraError(f"`{shown}` ends where a number is wanted", "complete the expression")
    if tokens[at] == "(":
        value, at = _sum(tokens, at + 1, depth + 1, shown)
        if at >= len(tokens) or tokens[at] != ")":
            raise FinloraError(f"`{shown}` has a parenthesis that is not closed", "close it")
    elif tokens[at][-1].isdigit() or tokens[at][-1] == ".":
        value = float(tokens[at].replace(",", ""))
    else:
        raise FinloraError(f"`{shown}` has a `{tokens[at]}` where a number is wanted", "complete the expression")
    at += 1
    while at < len(tokens) and tokens[at] == "%":
        value, at = value / 100, at + 1
    return value, at


def _apply(op: str, a: float, b: float, shown: str) -> float:
    try:
        if op == "add":
            return a + b
        if op == "subtract":
            return a - b
        if op == "multiply":
            return a * b
        value = a / b if op == "divide" else a**b
    except ZeroDivisionError:
        raise FinloraError(f"`{shown}` divides by zero", "check the numbers") from None
    except OverflowError:
        raise FinloraError(f"`{shown}` grows beyond all numbers", "check the exponents") from None
    if isinstance(value, complex):
        raise FinloraError(f"`{shown}` takes a root of a negative number", "check the numbers")
    return value


def _finite(value: float, shown: str) -> float:
    if not math.isfinite(value):
        raise FinloraError(f"`{shown}` is no finite number", "check the numbers")
    return value


def _shown(text: object, width: int = 60) -> str:
    flat = " ".join(str(text)[: 4 * width].split())
    return flat if len(flat) <= width else f"{flat[: width - 3]}..."


# -- programs --------------------------------------------------------------------------------------------------------


def parse_program(text: str) -> tuple[Step, ...]:
    """The steps of a program, each argument checked; "EOF" at its end is ignored.

    Raises: FinloraError for anything else, or more than STEPS steps.
    """
    shown = _shown(text)
    if not isinstance(text, str) or len(text) > LONGEST:
        raise FinloraError(f"`{shown}` is no program", f"a text of at most {LONGEST} characters such as divide(#0, 5735)")
    body = re.sub(r"[\s,]*(?:EOF)?[\s,.;]*\Z", "", text.strip())
    if _FIGURE.fullmatch(body):
        return (Step(VALUE, body),)
    steps: list[Step] = []
    at, nested = 0, False
    while at < len(body):
        before = len(steps)
        at = _call(body, at, steps, 0, shown)
        if nested or (before and len(steps) > before + 1):
            raise FinloraError(f"the program `{shown}` has steps both within and beside others", "number the steps, or nest them all")
        nested = len(steps) > before + 1
    if not steps:
        raise FinloraError(f"the program `{shown}` has no step", "such as subtract(5829, 5735)")
    return tuple(steps)


def write_program(program: Sequence[Step]) -> str:
    """A program as text, the inverse of parse_program."""
    return ", ".join(map(str, program))


def run_program(program: str | Sequence[Step], table: Sequence[Sequence[object]] = ()) -> float | str:
    """The result of a program's last step: a number rounded to PLACES decimals, or "yes" or "no".

    table: its rows, the name first. Raises: FinloraError for what is no program or cannot be run.
    """
    program = parse_program(program) if isinstance(program, str) else tuple(program)
    shown = _shown(write_program(program))
    results: list[float | str] = []
    for step in program:
        if step.op == VALUE:
            results.append(_figure(step.first, shown))
        elif step.op in TABLE_OPS:
            results.append(_row_figure(step, table, shown))
        else:
            a, b = (_argument(x, results, shown) for x in (step.first, step.second))
            if step.op == "greater":
                results.append("yes" if a > b else "no")
            else:
                results.append(_finite(_apply(step.op, a, b, shown), shown))
    last = results[-1]
    return last if isinstance(last, str) else round(last, PLACES) + 0.0  # no -0.0


def same_program(gold: str | Sequence[Step], answer: str | Sequence[Step]) -> bool:
    """Whether both programs compute the same function of the numbers and rows they name; False where one cannot be read.

    `divide(subtract(a, b), b)` is not `a / b - 1`, as 1 is a number of its own. 5,829 and 5829.0 are one number.
    """
    try:
        programs = [parse_program(p) if isinstance(p, str) else tuple(p) for p in (gold, answer)]
        values = [[_residue(p, place) for place in (1, 2)] for p in programs]
    except FinloraError:
        return False
    return values[0] == values[1] and None not in values[0]


def same_result(gold: float | str, answer: float | str) -> bool:
    """Whether two results of programs are one, numbers to PLACES decimals (or to 1e-9 of them where they are large)."""
    if isinstance(gold, str) or isinstance(answer, str):
        return gold == answer
    return abs(gold - answer) <= max(1.000001 * 10.0**-PLACES, 1e-9 * abs(gold))


def table_rows(columns: Mapping[str, Mapping[str, object]]) -> list[list[object]]:
    """ConvFinQA's {column: {row: cell}} as rows with their names, the first row being the columns' names."""
    names = list(dict.fromkeys(name for cells in columns.values() for name in cells))
    return [["", *columns], *([name, *(cells.get(name, "") for cells in columns.values())] for name in names)]


def _call(body: str, at: int, steps: list[Step], depth: int, shown: str) -> int:
    """Read one op(...) at that place, those within it first, each becoming a step; the place behind it."""
    m = _STEP.match(body, at)
    op = m["op"].lower() if m else ""
    if m is None or op not in (*OPS, *TABLE_OPS):
        raise FinloraError(f"the program `{shown}` has `{_shown(body[at:].lstrip(' ,'), 20)}`, which is no step", f"steps are {', '.join((*OPS, *TABLE_OPS))}")
    if depth > DEEPEST:
        raise FinloraError(f"the program `{shown}` is more than {DEEPEST} levels deep", "number the steps: subtract(5, 3), divide(#0, 3)")
    if op in TABLE_OPS:
        at, step = _table_step(body, m.end(), op, shown)
    else:
        at, first = _part(body, m.end(), ",", steps, depth, shown)
        at, second = _part(body, at, ")", steps, depth, shown)
        step = Step(op, first, second)
    if len(steps) == STEPS:
        raise FinloraError(f"the program `{shown}` has more than {STEPS} steps", "write a shorter one")
    steps.append(step)
    return at


def _part(body: str, at: int, end: str, steps: list[Step], depth: int, shown: str) -> tuple[int, str]:
    """(place behind `end`, argument) of one argument: a figure, a result, or a step within, which becomes a result."""
    if (m := _STEP.match(body, at)) and m["op"].lower() in (*OPS, *TABLE_OPS):
        at = _call(body, at, steps, depth + 1, shown)
        part = f"#{len(steps) - 1}"
        m = re.compile(rf"\s*{re.escape(end)}").match(body, at)
    else:
        stop = re.escape(end)
        m = re.compile(rf"\s*(?P<part>[-$]{{0,2}}\d{{1,3}}(?:,\d{{3}})+(?:\.\d*)?%?|[^,()]+?)\s*{stop}").match(body, at)
        part = m["part"].strip() if m else ""
        if part[:1] == "#":
            if depth or not re.fullmatch(r"#\d{1,2}", part) or int(part[1:]) >= len(steps):
                raise FinloraError(f"the program `{shown}` names `{_shown(part, 12)}` before that step", "#0 is the result of the first step")
        elif m:
            _figure(part, shown)
    if m is None:
        raise FinloraError(f"the program `{shown}` wants two arguments in every step", "such as divide(#0, 5735)")
    return m.end(), part


def _table_step(body: str, at: int, op: str, shown: str) -> tuple[int, Step]:
    last = re.compile(r"\s*,\s*none\s*\)").search(body, at)
    end = last.start() if last else body.find(")", at)
    name = " ".join(body[at:end].split()) if end >= 0 else ""
    if not name:
        raise FinloraError(f"the program `{shown}` wants the name of a row in `{op}(...)`", f"such as {op}(net sales, none)")
    return (last.end() if last else end + 1), Step(op, name)


def _figure(text: str, shown: str) -> float:
    """The value of a written argument: a number, a percentage as its share, or a constant."""
    if constant := re.fullmatch(r"const_(m?)(\d{1,12})", text):
        return float(constant[2]) * (-1 if constant[1] else 1)
    m = _FIGURE.fullmatch(text)
    if m is None or len(m["number"]) > 60:
        raise FinloraError(f"the program `{shown}` has `{_shown(text, 20)}`, which is no argument", "a number, const_100, or #0")
    value = float(m["number"].replace(",", "")) / (100 if m["percent"] else 1)
    return -value if m["sign"] else value


def _argument(text: str, results: Sequence[float | str], shown: str) -> float:
    value = results[int(text[1:])] if text[:1] == "#" else _figure(text, shown)
    if isinstance(value, str):
        raise FinloraError(f"the program `{shown}` calculates with `{value}`", "yes and no are last")
    return value


def _row_figure(step: Step, table: Sequence[Sequence[object]], shown: str) -> float:
    rows = {" ".join(str(row[0]).split()): row[1:] for row in table if len(row)}
    if step.first not in rows:
        raise FinloraError(f"the program `{shown}` names the row `{_shown(step.first, 30)}`, which the table has not", "name a row as it is written")
    cells = [_cell(c, shown) for c in rows[step.first]]
    if not cells:
        raise FinloraError(f"the row `{_shown(step.first, 30)}` has no cells", "name another row")
    total = math.fsum(cells)
    return {"table_max": max(cells), "table_min": min(cells), "table_sum": total, "table_average": total / len(cells)}[step.op]


def _cell(cell: object, shown: str) -> float:
    """The number of a table's cell, without $ and what FinQA writes after it in parentheses: "$ -12 ( 12 )"."""
    if isinstance(cell, int | float) and not isinstance(cell, bool):
        return _finite(float(cell), shown)
    return _figure(str(cell).replace("$", "").split("(")[0].strip(), shown)


def _residue(program: Sequence[Step], place: int) -> int | None:
    """The program as a rational function at one place modulo the prime; None where it divides by what is always zero."""
    results: list[int | None] = []
    for step in program:
        if step.op in TABLE_OPS:
            results.append(_symbol(place, step.op, step.first.casefold()))
            continue
        args = [results[int(x[1:])] if x[:1] == "#" else _symbol(place, "n", repr(_figure(x, x))) for x in (step.first, step.second) if x != "none"]
        if None in args:
            results.append(None)
        elif step.op == VALUE:
            results.append(args[0])
        else:
            results.append(_step_residue(step.op, args[0], args[1], place))
    return results[-1]


def _step_residue(op: str, a: int, b: int, place: int) -> int | None:
    if op == "add":
        return (a + b) % _PRIME
    if op == "subtract":
        return (a - b) % _PRIME
    if op == "multiply":
        return a * b % _PRIME
    if op == "divide":
        return a * pow(b, _PRIME - 2, _PRIME) % _PRIME if b else None
    return _symbol(place, op, f"{a} {b}")


def _symbol(place: int, *words: str) -> int:
    return int.from_bytes(hashlib.sha256("\n".join((str(place), *words)).encode()).digest()[:16], "big") % _PRIME
