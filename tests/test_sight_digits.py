"""Printed equations: each holds as it is printed, or says what was rounded."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradstep.rule.graph import Node
from gradstep.sight.arithmetic import nearest
from gradstep.sight.digits import Equation, digits_text, equation
from printed import holds, number

W, G, LR = Node("input", (), True, value="w"), Node("input", (), True, value="g"), Node("input")
STEP = Node("sub", (W, Node("mul", (LR, G))))


def step_equation(w: float, g: float, lr: float, real: Any = numpy.float32) -> Equation:
    """``w − lr · g``, rounded once."""
    w, g, rate = real(w), real(g), real(lr)
    exact = Fraction(float(w)) - Fraction(float(rate)) * Fraction(float(g))
    values = {id(W): w, id(G): g, id(LR): lr, id(STEP): real(nearest(exact, real))}
    return equation(STEP, lambda n: not n.arguments, values, unlike=w, real=real)


def test_four_digits_where_they_are_enough() -> None:
    assert step_equation(0.0513, 0.0051, 0.1) == Equation("0.0513 − 0.1 · 0.0051", "0.05079")


def test_operands_get_more_digits_where_four_would_not_give_the_result() -> None:
    # 0.1235 − 0.1 · 0.02346 would be 0.1212.
    found = step_equation(0.123456, 0.0234567, 0.1)
    assert found == Equation("0.12346 − 0.1 · 0.023457", "0.1211")


def test_more_digits_where_the_change_would_not_show() -> None:
    found = step_equation(0.5, 1e-5, 0.1)
    assert found == Equation("0.5 − 0.1 · 1e-5", "0.499999")
    assert step_equation(-0.2345678, 1.456263e-5, 0.1).paper != digits_text(
        numpy.float32(-0.2345678), 4
    )


def test_a_change_that_is_lost_in_rounding_is_no_change() -> None:
    found = step_equation(0.5, 1e-12, 0.1)
    assert found == Equation("0.5 − 0.1 · 1e-12", "0.5")
    assert holds(found.numbers, found.paper)


def test_both_numbers_where_rounding_shows() -> None:
    """The sum of these two is not a float32 number, and the difference shows in any digits."""
    total = Node("add", (W, G))
    w, g = numpy.float32(16777216.0), numpy.float32(1.0)
    values = {id(W): w, id(G): g, id(total): w + g}
    found = equation(total, lambda n: not n.arguments, values)
    assert holds(found.numbers, found.paper)
    lost = Node("sub", (total, W))
    values[id(lost)] = (w + g) - w
    found = equation(lost, lambda n: not n.arguments, values)
    assert found.paper == "1"
    assert found.kept == "0"
    assert holds(found.numbers, found.paper)


def test_infinite_and_nan() -> None:
    for text in ("inf", "nan"):
        odd = numpy.float32(text)
        values = {id(W): odd, id(G): numpy.float32(1), id(LR): 0.1, id(STEP): odd}
        found = equation(STEP, lambda n: not n.arguments, values, unlike=odd)
        assert found == Equation(f"{text} − 0.1 · 1", text)


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=400)
@given(
    st.one_of(finite, st.floats(-1, 1, width=32)),
    st.one_of(finite, st.floats(-1, 1, width=32)),
    st.sampled_from([0.0, 0.1, 0.5, 1e-3, 3e-4, 1.0, 0.0123456789]),
    st.sampled_from([numpy.float32, numpy.float64]),
)
def test_every_equation_holds(w: float, g: float, lr: float, real: Any) -> None:
    found = step_equation(w, g, lr, real)
    if found.paper not in ("inf", "−inf", "nan"):
        assert holds(found.numbers, found.paper), found
    # What the machine kept is within its rounding of what the paper says.
    kept = number(found.kept or found.paper)
    rate = Fraction(float(real(lr)))
    exact = Fraction(float(real(w))) - rate * Fraction(float(real(g)))
    expected = nearest(exact, real)
    assert float(kept) == pytest.approx(expected, rel=0.5)
    changed = float(real(w)) != expected and math.isfinite(expected)
    if changed:
        before = numbers_first(found.numbers)
        assert number(found.kept or found.paper) != number(before)


def numbers_first(text: str) -> str:
    return text.split(" − ")[0]


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.1, 4, "0.1"),
        (numpy.float32(0.1), 4, "0.1"),
        (0.1234567, 4, "0.1235"),
        (0.5000001, 4, "0.5000"),
        (-0.00012345678, 4, "−0.0001235"),
        (0.000012345678, 3, "1.23e-5"),
        (1234567.0, 4, "1.235e6"),
        (1234567.0, 7, "1234567"),
        (1235000.0, 4, "1235000"),
        (12345678.0, 4, "1.235e7"),
        (9.99996, 4, "10.00"),
        (0.0, 4, "0"),
        (-0.0, 4, "0"),
        (1e-45, 4, "1e-45"),
        (1e22, 4, "1e22"),
        (Fraction(1, 3), 5, "0.33333"),
        (Fraction(1, 4), 5, "0.25"),
        (math.inf, 4, "inf"),
        (-math.inf, 4, "−inf"),
        (math.nan, 4, "nan"),
        (100.0, 4, "100"),
    ],
)
def test_digits_text(value: Any, digits: int, text: str) -> None:
    assert digits_text(value, digits) == text


@given(finite, st.integers(1, 9))
def test_digits_text_is_the_number_to_that_many_digits(value: float, digits: int) -> None:
    text = digits_text(numpy.float32(value), digits)
    assert float(number(text)) == pytest.approx(value, rel=0.51 * 10.0 ** (1 - digits))
    assert len(text.lstrip("−0.").partition("e")[0].replace(".", "")) <= max(digits, 7)
    if digits == 9:
        assert numpy.float32(float(number(text))) == numpy.float32(value)
