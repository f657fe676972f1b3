"""Formulas: as text, and worked out line by line against the rule's own function."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import errstate, float64

import gradstep
from gradstep.rule.formula import formula, short_formula
from gradstep.rule.graph import Node
from gradstep.rule.notation import greek_name, number_text, write
from gradstep.rule.operations import OPERATIONS
from gradstep.rule.trace import trace
from gradstep.sight.catalogue import find_rule, rule_names, shaping_settings
from printed import evaluate, functions

FLOATS = functions(math.sqrt, math.exp, math.log, 1.0)


def lines(rule: gradstep.Rule, maximize: bool = False, **changed: Any) -> list[str]:
    graph = trace(rule, {**rule.hyperparameters, **changed, "lr": 0.1}, maximize)
    return str(formula(graph)).split("\n")


def short(rule: gradstep.Rule, **changed: Any) -> str:
    return short_formula(trace(rule, {**rule.hyperparameters, **changed, "lr": 0.1}))


@gradstep.rule
def old_and_new(g: Any, avg: Any, *, lr: Any, step: Any, share: float = 0.5) -> Any:
    """Needs a value after its name has gone to another; sets lr anew for itself."""
    old = avg
    avg = gradstep.lerp(avg, g, share)
    lr = lr * 0.5 + 1 / step
    return (avg - old) * lr, avg


@gradstep.rule
def two_names(g: Any, previous: Any, z: Any, *, lr: Any) -> Any:
    """States that are copies of other values; the weight set outright."""
    z = z - lr * (g + previous)
    return gradstep.new_weight(z), g, z


@gradstep.rule
def branching(g: Any, m: Any, *, w: Any, first: Any, kind: str = "a", size: float = 2.0) -> Any:
    """Choices, comparisons, powers, and quotients of quotients."""
    m = gradstep.where(first, g, gradstep.where((g * m > 0) & ~(m == 0), m, -m / 2))
    far = (gradstep.abs(g) >= size) | (w != w)
    x = g / (1 + gradstep.abs(m)) / size * (m / (2 + g * g))
    y = (g - (m - w)) - (-g) ** 3 + gradstep.pow(gradstep.abs(g) + 1, size - 0.5)
    if kind == "b":
        x = x * gradstep.exp(-gradstep.abs(y)) - gradstep.log(2 + m * m)
    return gradstep.where(far, x, y) * gradstep.rsqrt(1 + m * m), m


OWN = [old_and_new, two_names, branching]
RULES = [find_rule(name) for name in rule_names()] + OWN
CHAINS = [
    gradstep.chain(gradstep.clip_by_value(), gradstep.adam(), gradstep.decay_weights()),
    gradstep.chain(gradstep.adam(amsgrad=True), gradstep.lion(), gradstep.sgd(momentum=0.9)),
    gradstep.chain(old_and_new, old_and_new),
]


def combinations(rule: gradstep.Rule) -> list[dict[str, Any]]:
    """Every combination of the settings that change the formula."""
    values: dict[str, list[Any]] = {}
    for name in shaping_settings(rule):
        default = rule.hyperparameters[name]
        values[name] = [False, True] if isinstance(default, bool) else [0.0, 0.3]
        if isinstance(default, str):
            values[name] = ["a", "b"]
    return [dict(zip(values, c, strict=True)) for c in itertools.product(*values.values())]


@pytest.mark.parametrize("rule", RULES + CHAINS, ids=lambda r: r.name)
def test_lines_worked_out_in_order_give_what_the_rule_gives(rule: gradstep.Rule) -> None:
    torch.set_default_dtype(torch.float64)  # stored() then rounds nothing, as the formula
    numbers = random.Random(0)
    for chosen in combinations(rule):
        for maximize in (False, True):
            values = {**rule.hyperparameters, **chosen, "lr": 0.1}
            try:
                graph = trace(rule, values, maximize)
            except gradstep.RuleError as error:
                assert "can only stand last" in str(error)  # decoupled decay within a chain
                continue
            if not graph.is_elementwise:
                continue  # more than one element: test_reductions.py
            for step in (1, 2, 9):
                first = step == 1
                g, w = numbers.uniform(-2, 2), numbers.uniform(-2, 2)
                active = [n for n, s in rule.states.items() if s.exists(values)]
                # An average of squares is never smaller than a squared average.
                states = {n: numbers.uniform(1, 2) + 4 * ("sq" in n) for n in active}
                inputs = {**values, "w": w, "step": float(step), "first": first}
                # Of NumPy, whose numbers are divided by 0 as a kernel's are.
                numpys = {n: float64(v) if type(v) is float else v for n, v in inputs.items()}
                with errstate(all="ignore"):
                    direction, after = rule.run(-g if maximize else g, states, numpys)
                new_weight = getattr(direction, "weight", None)
                if new_weight is None:
                    new_weight = w - 0.1 * direction

                known = {**FLOATS, **numpys, **states, "g": g}
                with errstate(all="ignore"):
                    for line in formula(graph).lines:
                        known[line.name] = evaluate(line.text, known)
                assert known["w"] == pytest.approx(new_weight, rel=1e-9), chosen
                for name, value in after.items():
                    assert known[name] == pytest.approx(value, rel=1e-9), (name, chosen)


def test_sgd() -> None:
    assert lines(gradstep.sgd) == ["w ← w − lr·g"]
    assert lines(gradstep.sgd, maximize=True) == ["g ← −g", "w ← w − lr·g"]
    assert lines(gradstep.sgd, momentum=0.9, nesterov=True, weight_decay=0.1) == [
        "g ← g + weight_decay·w",
        "momentum_buffer ← g if first else momentum·momentum_buffer + (1 − dampening)·g",
        "direction ← g + momentum·momentum_buffer",
        "w ← w − lr·direction",
    ]


def test_adam() -> None:
    assert lines(gradstep.adam) == [
        "correction1 ← 1 − beta1^step",
        "correction2 ← √(1 − beta2^step)",
        "exp_avg ← lerp(exp_avg, g, 1 − beta1)",
        "exp_avg_sq ← beta2·exp_avg_sq + (1 − beta2)·g²",
        "direction ← (correction2 / correction1)·(exp_avg / (√exp_avg_sq + eps·correction2))",
        "w ← w − lr·direction",
    ]
    assert lines(gradstep.adam, weight_decay=0.1, decoupled_weight_decay=True)[-2:] == [
        "shrunk ← w·(1 − lr·weight_decay)",
        "w ← shrunk − lr·direction",
    ]


def test_lion_reads_the_old_average_before_it_writes_the_new_one() -> None:
    assert lines(gradstep.lion) == [
        "direction ← sign(lerp(exp_avg, g, 1 − beta1))",
        "exp_avg ← lerp(exp_avg, g, 1 − beta2)",
        "w ← w − lr·direction",
    ]


def test_a_new_value_gets_a_prime_where_the_old_one_is_still_needed() -> None:
    assert lines(old_and_new) == [
        "lr′ ← lr·0.5 + 1 / step",
        "avg′ ← lerp(avg, g, share)",
        "direction ← (avg′ − avg)·lr′",
        "avg ← avg′",
        "w ← w − lr·direction",
    ]


def test_states_that_are_copies() -> None:
    assert lines(two_names) == ["z ← z − lr·(g + previous)", "previous ← g", "w ← z"]
    assert short(two_names) == "w ← z"


def test_means_and_norms_are_called_by_their_names() -> None:
    """Unless a sum in them has a name of its own, or the quotient is no mean."""

    @gradstep.rule
    def around(g: Any, rows: Any = gradstep.per_row(), *, w: Any) -> Any:
        rows = gradstep.lerp(0 if rows is None else rows, gradstep.mean(g, -1), 0.5)
        column = gradstep.rms(g + w, -2) * gradstep.norm(w, -1) + gradstep.max(g * w, -2)
        whole = gradstep.mean(rows) + gradstep.mean(column) + gradstep.mean(gradstep.sum(rows, -2))
        total = gradstep.sum(w * w)
        nearly = gradstep.sqrt(total) + gradstep.sum(g, -1) / gradstep.size(g, -2)
        return whole * gradstep.dot(g, w) / gradstep.rms(w) * (column + nearly), rows

    assert lines(around) == [
        "total ← sum(w²)",
        "rows ← lerp(rows, mean(g, −1), 0.5)",
        "column ← rms(g + w, −2)·norm(w, −1) + max(g·w, −2)",
        "nearly ← √total + sum(g, −1) / size(w, −2)",
        "whole ← mean(rows) + mean(column) + mean(sum(rows, −2))",
        "direction ← (whole·sum(g·w) / √(total / size(w)))·(column + nearly)",
        "w ← w − lr·direction",
    ]


def test_short_formulas() -> None:
    assert short(gradstep.sgd) == "w ← w − lr·g"
    assert short(gradstep.sgd, momentum=0.9) == "w ← w − lr·momentum_buffer"
    assert short(gradstep.rmsprop) == "w ← w − lr·(g / (√square_avg + eps))"
    assert short(gradstep.lion, weight_decay=0.1) == (
        "w ← w − lr·(sign(lerp(exp_avg, g, 1 − beta1)) + weight_decay·w)"
    )
    assert short(find_rule("adafactor")) == "w ← w − (size / max(1, rms(update) / d))·update"
    assert all(len(short(rule)) <= 92 for rule in RULES)


def test_a_formula_does_not_grow_with_what_it_repeats() -> None:
    @gradstep.rule
    def doubling(g: Any) -> Any:
        for _ in range(40):
            g = g * g + g
        return g

    @gradstep.rule
    def nameless(g: Any) -> Any:
        values = [g]
        for _ in range(40):
            values.append(values[-1] * 0.5 + values[-1] / (2 + values[-1]))
        return values[-1]

    for rule in (doubling, nameless):
        text = "\n".join(lines(rule))
        assert len(text) < 10_000
        assert len(short(rule)) < 1_000


def test_greek() -> None:
    assert [greek_name(n) for n in ("beta1", "beta12", "eps", "lambd", "alpha", "w", "beta_x")] == [
        "β₁", "β₁₂", "ε", "λ", "α", "w", "beta_x",
    ]  # fmt: skip
    graph = trace(gradstep.adam, {**gradstep.adam.hyperparameters, "lr": 0.1})
    assert str(formula(graph, greek=True).lines[2]) == "exp_avg ← lerp(exp_avg, g, 1 − β₁)"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "1"),
        (-2.0, "−2"),
        (0.5, "0.5"),
        (1e-8, "1e-8"),
        (-1e-8, "−1e-8"),
        (1e22, "1e22"),
        (0.1, "0.1"),
        (1 / 3, "0.3333333333333333"),
        (math.inf, "inf"),
        (-math.inf, "−inf"),
    ],
)
def test_number_text(value: float, text: str) -> None:
    assert number_text(value) == text


# Any expression, written and read back.

#: Operation -> number of arguments.
_PLAIN = {
    **dict.fromkeys(["add", "sub", "mul", "div", "maximum", "minimum"], 2),
    **dict.fromkeys(["neg", "abs", "sign", "sqrt", "rsqrt", "square", "pow"], 1),
    **dict.fromkeys(["lerp", "where"], 3),
}
_CONDITIONS = {
    **dict.fromkeys(["lt", "le", "gt", "ge", "eq", "ne", "and", "or"], 2),
    "not": 1,
}


def _constant(value: float) -> Node:
    return Node("constant", value=value)


@st.composite
def _expressions(draw: st.DrawFn, depth: int = 4, condition: bool = False) -> Node:
    """A tree of operations; roots are taken of what is not negative."""
    if not condition and (depth == 0 or draw(st.integers(0, 4)) == 0):
        leaves = [*(Node("input", value=n) for n in "abc"), *map(_constant, [-2.0, 0.5, 3.0, 1e-8])]
        return draw(st.sampled_from(leaves))
    operations = _CONDITIONS if condition else _PLAIN
    if condition and depth <= 1:
        operations = {"lt": 2, "eq": 2}
    operation = draw(st.sampled_from(sorted(operations)))
    inner = operation in ("and", "or", "not")
    arguments = [
        draw(_expressions(max(0, depth - 1), inner or (operation == "where" and i == 0)))
        for i in range(operations[operation])
    ]
    if operation == "square":
        return Node("mul", (arguments[0], arguments[0]))
    if operation == "pow":
        return Node("pow", (arguments[0], _constant(2.0)))
    if operation in ("sqrt", "rsqrt"):
        size = Node("abs", tuple(arguments))
        return Node(
            operation, (size if operation == "sqrt" else Node("add", (size, _constant(3.0))),)
        )
    return Node(operation, tuple(arguments))


def _worked_out(node: Node, known: dict[str, float]) -> Any:
    if node.operation == "input":
        return known[str(node.value)]
    if node.operation == "constant":
        return node.value
    arguments = [_worked_out(a, known) for a in node.arguments]
    if node.operation == "lerp":  # exactly as the formula's function, not from the nearer end
        return FLOATS["lerp"](*arguments)
    return OPERATIONS[node.operation].number(*arguments)


@settings(max_examples=500)
@given(_expressions(), st.booleans())
def test_any_expression_reads_back_as_itself(node: Node, associative: bool) -> None:
    known = {"a": 1.25, "b": -0.75, "c": 3.5}
    text = write(node, lambda n: None, associative=associative)
    try:
        expected = _worked_out(node, known)
        found = evaluate(text, {**FLOATS, **known})
    except (ZeroDivisionError, OverflowError):
        return
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-12, nan_ok=True), text
