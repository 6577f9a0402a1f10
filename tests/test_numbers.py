"""Numbers as models write them: what is read, what is refused, what is equal, and that nothing hangs or raises."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finlora.numbers import SCALES, Number, number_of, numbers_match, parse_number, read_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("$1,577.00", Number(1577.0, decimals=2, unit="$")),
        ("1577", Number(1577.0)),
        ("-$3.5", Number(-3.5, decimals=1, unit="$")),
        ("$-3.5", Number(-3.5, decimals=1, unit="$")),
        ("$(3.5)", Number(-3.5, decimals=1, unit="$")),
        ("(3.5)", Number(-3.5, decimals=1)),
        ("(3.5%)", Number(-3.5, percent=True, decimals=1)),
        ("($3.5 million)", Number(-3.5e6, scale=1e6, decimals=1, unit="$")),
        ("−4", Number(-4.0)),
        ("–4 %", Number(-4.0, percent=True)),
        ("+7", Number(7.0)),
        (".5", Number(0.5, decimals=1)),
        ("5.", Number(5.0)),
        ("12.5 percent", Number(12.5, percent=True, decimals=1)),
        ("12.5 percentage points", Number(12.5, percent=True, decimals=1)),
        ("12\\%", Number(12.0, percent=True)),
        ("50 bps", Number(0.5, percent=True, scale=0.01)),
        ("2.3 million", Number(2.3e6, scale=1e6, decimals=1)),
        ("US$ 5.2 billion", Number(5.2e9, scale=1e9, decimals=1, unit="$")),
        ("5M", Number(5e6, scale=1e6)),
        ("$5bn", Number(5e9, scale=1e9, unit="$")),
        ("14 million dollars", Number(14e6, scale=1e6, unit="$")),
        ("12.5 (in millions)", Number(12.5e6, scale=1e6, decimals=1)),
        ("3 crore rupees", Number(3e7, scale=1e7, unit="₹")),
        ("1.5e3", Number(1500.0)),
        ("1.5E-3", Number(0.0015, decimals=4)),
        ("1.5 x 10^3", Number(1500.0)),
        ("1.5×10³", Number(1500.0)),
        ("1,00,000", Number(100000.0)),
        ("1\u202f234\u202f567", Number(1234567.0)),
        ("３.５％", Number(3.5, percent=True, decimals=1)),
        ("3.5x", Number(3.5, decimals=1, unit="x")),
        ("€1,234", Number(1234.0, unit="€")),
        ("**42**", Number(42.0)),
        ("$\\$12$", Number(12.0, unit="$")),
        ("The answer is $42.", Number(42.0, unit="$")),
        ("We add them. Final answer: 42 (rounded)\nmore", Number(42.0)),
        ("about 25 % of 2019's total", Number(25.0, percent=True)),
        ("x = 5 / 20 = 25%", Number(25.0, percent=True)),
        ("45, 45, 45", Number(45.0)),
        ("45. 2019 was better", Number(45.0)),
        ("5 years", Number(5.0)),
        ("\n\n  7\nand so on 9", Number(7.0)),
        ("-0", Number(0.0)),
    ],
)
def test_what_is_read(text, number):
    found = parse_number(text)
    assert found == number
    assert parse_number(str(found)) == found and read_number(text) == str(found)


@pytest.mark.parametrize(
    "text",
    ["", " \n", "five", "n/a", "nan", "inf", "1e999", "12 or 15", "5 to 6", "1-2", "12, 15", "44.1 - 56.7", "3/4", "½", "1 234", "12,34", "3:45"]
    + ["2nd", "10-K", "2019-20", "1.2.3", "0x10", "(5", "(1) 45", "2019: 45", "it grew by 5", "Revenue in 2019 was 5", "--5", "9" * 100, "5 = five"],
)
def test_what_is_not_read(text):
    assert parse_number(text) is None and read_number(text) is None


def test_only_text_is_read():
    assert parse_number(None) is None and parse_number(5) is None
    assert number_of(True) is None and number_of(math.nan) is None and number_of(None) is None
    assert number_of(0.1446) == Number(0.1446, decimals=4) and number_of(5) == Number(5.0) and number_of(5.0) == Number(5.0)
    assert Number(12.5, percent=True).fraction == 0.125 and Number(2.3e6, scale=1e6).written == pytest.approx(2.3)


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        (12.35, "12.346", True),  # within half of the gold's last place
        (12.35, "12.345", True),
        (12.35, "12.3", False),
        (12.35, "12.36", False),
        (1577.0, "$1,577.00", True),
        ("14.46%", "14.46%", True),
        ("14.46%", "14.46", True),
        ("14.46%", "0.1446", True),
        ("14.46%", "0.14", False),
        (0.1446, "14.46%", True),
        (14.46, "14.46%", False),
        ("2.3 million", "2300000", True),
        ("2.3 million", "2.3", True),
        ("2.3 million", "2.3 billion", False),
        (2.3, "2.3 million", False),
        (2300000, "2.3 million", True),
        ("-3.5", "(3.5)", True),
        ("3.5", "(3.5)", False),
        ("$5", "5", True),
        ("$5", "€5", False),
        (5, "no idea", False),
        ("no number", "5", False),
        (5, None, False),
    ],
)
def test_what_is_equal(gold, answer, same):
    assert numbers_match(gold, answer) is same


def test_the_options_of_a_match():
    assert numbers_match(100.0, "100.9", rel=0.01) and not numbers_match(100.0, "101.1", rel=0.01)
    assert numbers_match(3.14159, "3.14", decimals=2) and not numbers_match(3.14159, "3.1", decimals=2)
    assert numbers_match(14.46, "0.1446", percent=True) and numbers_match(14.46, "14.46%", percent=True)
    assert not numbers_match("14.46%", "14.46", percent=False) and numbers_match("14.46%", "0.1446", percent=False)


def figures():
    return st.builds(
        lambda sign, whole, part, money, scale, percent: f"{sign}{money}{whole:,}{f'.{part}' if part else ''}{f' {scale}' if scale else ''}{percent}",
        st.sampled_from(["", "-", "−"]),
        st.integers(0, 10**9),
        st.text("0123456789", max_size=4),
        st.sampled_from(["", "$", "€"]),
        st.sampled_from(["", "thousand", "million", "billion"]),
        st.sampled_from(["", "%"]),
    )


@settings(max_examples=300, deadline=None)
@given(figures())
def test_every_figure_is_read_and_is_itself(text):
    number = parse_number(text)
    assert number is not None and parse_number(str(number)) == number and numbers_match(number, number)
    assert number.scale in (1.0, *SCALES.values()) and numbers_match(text, f"about {text}, or so")


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(max_size=80), st.text("0123456789.,$%()-+ eEkmx^=/:*or to", max_size=60)))
def test_no_text_raises(text):
    number = parse_number(text)
    assert number is None or (math.isfinite(number.value) and parse_number(str(number)) == number)
    numbers_match(5.25, text)


@pytest.mark.parametrize("piece", ["1,", "(", "1 ", "5, ", "=", "answer: ", "the ", "9", "1.", "$", "- ", "e5", "\x00", "\ud800", "10⁹"])
def test_long_texts_take_no_time(piece):
    begun = time.monotonic()
    parse_number(piece * 50000)
    assert time.monotonic() - begun < 2  # measured: at most 0.05 s on one core
