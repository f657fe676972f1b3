"""Arithmetic between numbers: in float64 on the host, with IEEE's answers where Python has none."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gradstep
from gradstep.program.scalars import scalar_function
from gradstep.rule.trace import trace

NAMES = ("step", "lr", "beta")


def on_host(formula: Callable[..., Any]) -> Callable[..., float]:
    """The host's function for a formula of three numbers, by way of a rule that uses it."""

    @gradstep.rule
    def trial(g: Any, *, step: Any, lr: Any, beta: float = 0.5) -> Any:
        return g * formula(step, lr, beta)

    graph = trace(trial, {"beta": 0.5})
    product = graph.direction
    assert product is not None and product.operation == "mul"
    numbers = scalar_function([product.arguments[1]], NAMES)
    return lambda *values: numbers(*values)[0]


def same(a: float, b: float) -> bool:
    """The same float64 to the last bit; nan is one value."""
    return (math.isnan(a) and math.isnan(b)) or struct.pack("d", a) == struct.pack("d", b)


# Directly in Python, with IEEE's answers by way of NumPy.


def in_ieee(function: Callable[..., Any]) -> Callable[..., Any]:
    def of(*values: Any) -> Any:
        try:
            result = function(*map(float, values))
        except ArithmeticError:
            with numpy.errstate(all="ignore"):
                result = function(*map(numpy.float64, values))
        except ValueError:
            result = math.nan
        return math.nan if isinstance(result, complex) else float(result)

    return of


def log(x: float) -> float:
    return -math.inf if x == 0 else math.log(x)


DIRECT: dict[str, Callable[..., Any]] = {
    "+": in_ieee(lambda a, b: a + b),
    "-": in_ieee(lambda a, b: a - b),
    "*": in_ieee(lambda a, b: a * b),
    "/": in_ieee(lambda a, b: a / b),
    "**": in_ieee(lambda a, b: a**b),
    "sqrt": in_ieee(math.sqrt),
    "rsqrt": lambda a: DIRECT["/"](1.0, DIRECT["sqrt"](a)),
    "abs": abs,
    "neg": lambda a: -a,
    "exp": in_ieee(lambda a: numpy.inf if a > 710 else math.exp(a)),
    "log": in_ieee(log),
    "sign": lambda a: float((a > 0) - (a < 0)),
    "maximum": lambda a, b: math.nan if math.isnan(a) or math.isnan(b) else b if b > a else a,
    "minimum": lambda a, b: math.nan if math.isnan(a) or math.isnan(b) else b if b < a else a,
    "where<": lambda a, b, c, d: c if a < b else d,
    "where>=": lambda a, b, c, d: c if a >= b else d,
    "where!=": lambda a, b, c, d: c if a != b else d,
}

TRACED: dict[str, Callable[..., Any]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "**": lambda a, b: a**b,
    "neg": lambda a: -a,
    "where<": lambda a, b, c, d: gradstep.where(a < b, c, d),
    "where>=": lambda a, b, c, d: gradstep.where(a >= b, c, d),
    "where!=": lambda a, b, c, d: gradstep.where(a != b, c, d),
    **{
        name: getattr(gradstep, name)
        for name in ("sqrt", "rsqrt", "abs", "exp", "log", "sign", "maximum", "minimum")
    },
}

ARGUMENTS = {"+": 2, "-": 2, "*": 2, "/": 2, "**": 2, "maximum": 2, "minimum": 2}
ARGUMENTS |= {name: 4 for name in DIRECT if name.startswith("where")}

Tree = Any  # a name, a number, or (operation, tree, …)


CONSTANTS = st.sampled_from([0.0, -0.0, 1.0, 0.5, 2.0, -3.0, 0.999, 1e-8, 1e300, math.inf, 5])


def operations(trees: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
    """Each with a number of the rule's in it: constants alone are Python's affair."""
    rest = st.one_of(trees, CONSTANTS)
    return st.one_of(
        [st.tuples(st.just(n), trees, *[rest] * (ARGUMENTS.get(n, 1) - 1)) for n in sorted(DIRECT)]
    )


TREES = st.recursive(st.sampled_from(NAMES), operations, max_leaves=12)


def evaluate(tree: Tree, table: dict[str, Callable[..., Any]], known: dict[str, Any]) -> Any:
    if isinstance(tree, str):
        return known[tree]
    if isinstance(tree, tuple):
        return table[tree[0]](*(evaluate(t, table, known) for t in tree[1:]))
    return tree


NUMBERS = st.one_of(
    st.sampled_from([0.0, 1.0, 2.0, -1.0, 1e308, 5e-324]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(-10, 10),
)


@settings(max_examples=500)
@given(tree=TREES, values=st.tuples(NUMBERS, NUMBERS, NUMBERS))
def test_any_expression_is_worked_out_as_python_does(
    tree: Tree, values: tuple[float, float, float]
) -> None:
    traced = on_host(
        lambda *symbols: evaluate(tree, TRACED, dict(zip(NAMES, symbols, strict=True)))
    )
    expected = evaluate(tree, DIRECT, dict(zip(NAMES, values, strict=True)))
    assert same(traced(*values), expected)


# By name, what the search above might miss.

EDGES: dict[str, tuple[Callable[[Any, Any, Any], Any], float]] = {
    "1 / 0": (lambda step, lr, beta: 1 / (step - 1), math.inf),
    "−1 / 0": (lambda step, lr, beta: -1 / (step - 1), -math.inf),
    "1 / −0": (lambda step, lr, beta: 1 / -(step - 1), -math.inf),
    "0 / 0": (lambda step, lr, beta: (step - 1) / (step - 1), math.nan),
    "a root below zero": (lambda step, lr, beta: gradstep.sqrt(-step), math.nan),
    "1 / root of zero": (lambda step, lr, beta: 1 / gradstep.sqrt(step - 1), math.inf),
    "rsqrt of zero": (lambda step, lr, beta: gradstep.rsqrt(step - 1), math.inf),
    "rsqrt below zero": (lambda step, lr, beta: gradstep.rsqrt(-step), math.nan),
    "log of zero": (lambda step, lr, beta: gradstep.log(step - 1), -math.inf),
    "log below zero": (lambda step, lr, beta: gradstep.log(-step), math.nan),
    "exp beyond float64": (lambda step, lr, beta: gradstep.exp(step * 1000), math.inf),
    "product beyond float64": (lambda step, lr, beta: (lr * 1e200) * 1e200, math.inf),
    "power beyond float64": (lambda step, lr, beta: (lr * 1e200) ** 2, math.inf),
    "0 to a negative power": (lambda step, lr, beta: (step - 1) ** -1, math.inf),
    "a root of a negative number": (lambda step, lr, beta: (-step) ** beta, math.nan),
    "division by a choice": (
        lambda step, lr, beta: 1 / gradstep.where(step > 5, step, 0.0), math.inf
    ),
    "division by a larger one": (lambda step, lr, beta: 1 / gradstep.maximum(-step, 0.0), math.inf),
    "division by a sign": (lambda step, lr, beta: 1 / gradstep.sign(step - 1), math.inf),
    "what is not chosen may be nan": (
        lambda step, lr, beta: gradstep.where(step > 5, gradstep.sqrt(step - 5), 7.0), 7.0
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EDGES)
def test_ieee_answers(name: str) -> None:
    formula, expected = EDGES[name]
    assert same(on_host(formula)(1.0, 1.0, 0.5), expected)


@pytest.mark.parametrize("engine", ["fused", "eager"])
@pytest.mark.parametrize("name", EDGES)
def test_ieee_answers_reach_the_weight(name: str, engine: str) -> None:
    formula, expected = EDGES[name]

    @gradstep.rule
    def trial(g: Any, *, step: Any, lr: Any, w: Any, beta: float = 0.5) -> Any:
        return gradstep.new_weight(w * 0 + formula(step, lr, beta))

    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    weight.grad = torch.ones(3, dtype=torch.float64)
    gradstep.Optimizer([weight], trial, lr=1.0, engine=engine).step()
    assert all(same(found, expected) for found in weight.tolist())


def test_numbers_are_float64_until_they_reach_a_tensor() -> None:
    """1 − beta² loses 5 digits in float32; here it is rounded to float32 once, at the end."""
    beta = 0.9999
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.ones(1)

    @gradstep.rule
    def trial(g: Any, *, beta: float = beta) -> Any:
        return g * (1 - beta**2)

    gradstep.Optimizer([weight], trial, lr=1.0, engine="fused").step()
    expected = numpy.float32(1 - beta**2)
    assert -weight.item() == expected
    assert expected != 1 - numpy.float32(beta) ** 2  # what float32 would have given


@pytest.mark.parametrize("names", [("n0", "n1", "n2", "n3"), ("float", "numbers", "a0", "_sqrt")])
def test_a_hyperparameter_may_have_any_name(names: tuple[str, ...]) -> None:
    """Also one that the host's generated text uses for itself."""
    listed = ", ".join(f"{name}=1.0" for name in names)
    scope: dict[str, Any] = {"sqrt": gradstep.sqrt, "inf": math.inf, "minimum": gradstep.minimum}
    a, b, c, d = names
    exec(
        f"def trial(g, *, {listed}):\n"
        f"    return g * (sqrt({a} + 1) * sqrt({b}) - sqrt(minimum({c}, inf) / {d}))",
        scope,
    )
    values = dict(zip(names, (8.0, 16.0, 9.0, 4.0), strict=True))
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.ones(1)
    rule = gradstep.rule(scope["trial"])
    gradstep.Optimizer([weight], rule, lr=1.0, engine="fused", **values).step()
    assert -weight.item() == 3 * 4 - 1.5
