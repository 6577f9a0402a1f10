"""Expressions and programs: values, refusals in one line, equality, and that nothing hangs or raises otherwise."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finlora.errors import FinloraError
from finlora.programs import (
    OPS,
    TABLE_OPS,
    calculate,
    parse_program,
    run_program,
    same_program,
    same_result,
    table_rows,
    write_program,
)

TABLE = [["", "2021", "2020"], ["net sales ( a )", "$ 5", "-3 ( 3 )"], ["share", "4%", "6%"], ["rating", "aa", "a"], ["alone"]]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("(11311000000 / 45754000000) * 100", 24.721335839489445),
        ("1 + 2 * 3", 7),
        ("2 ^ 3 ^ 2", 512),
        ("-2**2", -4),
        ("2 - -3", 5),
        ("[1,452.4 + {10}] ÷ 2", 731.2),
        ("10 - 4 - 3", 3),
        ("50% * $8", 4),
        ("1.5e3 × .5", 750),
        ("−4 – 1", -5),
    ],
)
def test_expressions(text, value):
    assert calculate(text) == pytest.approx(value)


@pytest.mark.parametrize(
    "text",
    ["", "()", "1 +", "(1", "1)", "1 2", "1/0", "0^-1", "9^9^9^9", "(-1)^.5", "1e999", "5 % 3", "abc", "__import__('os')", "1;2", "1,23", "a.b", "\x00"]
    + ["-" * 60 + "1", "(" * 60 + "1" + ")" * 60, "1+" * 3000 + "1", "1e308*10", "\ud800"],
)
def test_expressions_that_are_refused(text):
    with pytest.raises(FinloraError) as e:
        calculate(text)
    assert "\n" not in str(e.value) and e.value.hint and len(e.value.message) < 200


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("subtract(5829, 5735), divide(#0, 5735)", 0.01639),
        ("divide(subtract(5829, 5735), 5735)", 0.01639),
        ("Add( 1,577 , const_m1 ) EOF", 1576),
        ("multiply(13.4%, const_1000)", 134),
        ("exp(2, 10)", 1024),
        ("greater(178.93, 105.34)", "yes"),
        ("add(1, 2), add(3, 4), greater(#0, #1)", "no"),
        ("table_sum(net sales ( a ), none)", 2),
        ("table_average(share, none)", 0.05),
        ("table_max(share, none), table_min(share, none), subtract(#0, #1)", 0.02),
        ("divide(table_max(net sales ( a ), none), 2)", 2.5),
        ("60.94", 60.94),
        ("13.4%", 0.134),
        ("subtract(1, 1)", 0),
    ],
)
def test_programs(text, value):
    assert run_program(text, TABLE) == value
    steps = parse_program(text)
    assert parse_program(write_program(steps)) == steps and same_program(text, write_program(steps))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no step"),
        ("five", "no step"),
        ("add(1)", "two arguments"),
        ("add(1, 2", "two arguments"),
        ("add(1, 2, 3)", "two arguments"),
        ("add(#0, 1)", "before that step"),
        ("add(1, 2), add(#1, 1)", "before that step"),
        ("add(a, 1)", "no argument"),
        ("add(nan, 1)", "no argument"),
        ("system(1, 2)", "no step"),
        ("add(1, 2) is three", "no step"),
        ("add(1, 2), add(add(1, 2), 3)", "within and beside"),
        ("divide(1, const_0)", "divides by zero"),
        ("exp(10, 1000)", "beyond all numbers"),
        ("exp(-1, 0.5)", "root of a negative"),
        ("greater(1, 2), add(#0, 1)", "yes and no are last"),
        ("table_sum(rating, none)", "no argument"),
        ("table_sum(costs, none)", "the table has not"),
        ("table_sum(alone, none)", "no cells"),
        ("table_sum(, none)", "name of a row"),
        ("add(1, 2), " * 70, "more than 64 steps"),
        ("add(" * 70 + "1", "levels deep"),
        ("add(1, 2), " * 5000, "is no program"),
    ],
)
def test_programs_that_are_refused(text, words):
    with pytest.raises(FinloraError) as e:
        run_program(text, TABLE)
    assert words in str(e.value) and "\n" not in str(e.value) and e.value.hint


def test_same_programs():
    same = [
        ("add(1, 2), add(#0, 3)", "add(3, 2), add(1, #0)"),
        ("subtract(5,829, 5735)", "subtract(5829.0, 5735)"),
        ("divide(10, 4), divide(#0, 5)", "multiply(4, 5), divide(10, #0)"),
        ("subtract(7, 3), divide(#0, 3)", "divide(subtract(7, 3), 3)"),
        ("table_sum(Net sales, none)", "table_sum(net  sales, none)"),
        ("multiply(3, 100)", "multiply(const_100, 3)"),
    ]
    other = [
        ("subtract(1, 2)", "subtract(2, 1)"),
        ("add(2, 2)", "multiply(2, 3)"),
        ("divide(7, 3), subtract(#0, const_1)", "subtract(7, 3), divide(#0, 3)"),  # equal where const_1 is one: a number of its own
        ("greater(1, 2)", "greater(2, 1)"),
        ("exp(2, 3)", "exp(3, 2)"),
        ("table_sum(a, none)", "table_max(a, none)"),
        ("add(1, 2)", "no program"),
        ("divide(1, subtract(2, 2))", "divide(1, subtract(2, 2))"),  # no function at all
    ]
    assert all(same_program(a, b) and same_program(b, a) for a, b in same)
    assert not any(same_program(a, b) for a, b in other)


def test_same_results():
    assert same_result(0.01639, 0.016391) and not same_result(0.01639, 0.01641)
    assert same_result(1e12, 1e12 + 1) and same_result("yes", "yes") and not same_result("yes", 1.0) and not same_result(1.0, "no")


def test_columns_become_rows():
    columns = {"2021": {"net sales": 5.0, "costs": 1}, "2020": {"net sales": 4}}
    assert table_rows(columns) == [["", "2021", "2020"], ["net sales", 5.0, 4], ["costs", 1, ""]]
    assert run_program("table_sum(net sales, none)", table_rows(columns)) == 9


ARGUMENTS = st.one_of(st.integers(-99, 9999).map(str), st.sampled_from(["const_100", "const_m1", "#0", "#1", "13.4%", "5,829", "x", "none"]))
STEPS = st.builds(lambda op, a, b: f"{op}({a}, {b})", st.sampled_from((*OPS, *TABLE_OPS, "log")), ARGUMENTS, ARGUMENTS)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.lists(STEPS, max_size=6).map(", ".join), st.text(max_size=60), st.text("add(divi,# )0123%e-", max_size=60)))
def test_no_program_raises_otherwise(text):
    try:
        value = run_program(text, TABLE)
    except FinloraError as e:
        assert "\n" not in str(e)
        return
    assert value in ("yes", "no") or math.isfinite(value)
    assert run_program(write_program(parse_program(text)), TABLE) == value


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=60), st.text("0123456789.+-*/^%() e,$[]", max_size=60)))
def test_no_expression_raises_otherwise(text):
    try:
        assert math.isfinite(calculate(text))
    except FinloraError as e:
        assert "\n" not in str(e)


@settings(max_examples=200, deadline=None)
@given(st.recursive(st.integers(1, 99).map(str), lambda x: st.builds("({} {} {})".format, x, st.sampled_from("+-*"), x), max_leaves=12))
def test_expressions_are_python_s(text):
    """Whole numbers under + - *: Python's own parser is the judge."""
    import ast
    import operator

    ops = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}

    def value(node):
        return node.value if isinstance(node, ast.Constant) else ops[type(node.op)](value(node.left), value(node.right))

    assert calculate(text) == pytest.approx(value(ast.parse(text, mode="eval").body), rel=1e-12)


@pytest.mark.parametrize("piece", ["add(", "(", "1+", "9", "table_sum(", ", none)", "#0", "-", "^9", "\x00"])
def test_long_texts_take_no_time(piece):
    begun = time.monotonic()
    for run in (run_program, calculate):
        for size in (900, 50000):
            try:
                run(piece * (size // len(piece)))
            except FinloraError:
                pass
    assert time.monotonic() - begun < 2  # measured: at most 0.01 s on one core
