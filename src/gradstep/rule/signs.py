"""Which states can never be negative: read off the rule, by calculating with intervals.

A second moment is an average of squares, a maximum of such averages is none the less; a momentum
may be anything. A format may spend the bit of a sign on digits where there is none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from gradstep.rule.definition import Rule
from gradstep.rule.graph import FACTS, Graph, Node
from gradstep.rule.hyperparameter import is_number
from gradstep.rule.trace import trace

#: From, and to, both included.
Range = tuple[float, float]

_ANY: Range = (-math.inf, math.inf)
_POSITIVE: Range = (0.0, math.inf)
_SHARE: Range = (0.0, 1.0)


def never_negative(rule: Rule) -> frozenset[str]:
    """The states that are 0 or more, whatever gradients come, with hyperparameters in their ranges.

    One that is 0 or more, and by default not above 1, is taken to stay so. What cannot be told
    counts as a state that may be negative.
    """
    if "never negative" not in rule.kept:
        rule.kept["never negative"] = _found(rule)
    found: frozenset[str] = rule.kept["never negative"]
    return found


def _found(rule: Rule) -> frozenset[str]:
    graphs = list(_graphs(rule))
    held = {name for graph in graphs for name, _, _ in (*graph.states, *graph.numbers)}
    found = {name for name in held if _starts_at_least_at_0(rule, name)}
    while True:
        gone = {name for graph in graphs for name in _that_may_fall(rule, graph, found)}
        if not gone:
            return frozenset(found)
        found -= gone


def _starts_at_least_at_0(rule: Rule, name: str) -> bool:
    state = rule.states[name]
    if state.start in ("weight", "gradient"):
        return False
    value = state.value
    if isinstance(value, str):
        return _of_hyperparameter(rule, value)[0] >= 0
    return state.start == "zeros" or value >= 0


def _graphs(rule: Rule) -> Iterator[Graph]:
    """The rule with its flags as they are, and with each of them turned."""
    values = {**rule.hyperparameters, "lr": rule.lr}
    settings = [values]
    for name, value in rule.hyperparameters.items():
        if isinstance(value, bool):
            settings.append({**values, name: not value})
    conditions = {s.when for s in rule.states.values() if s.when is not None}
    settings += [{**values, n: 1.0} for n in conditions if is_number(values[n]) and not values[n]]
    for setting in settings:
        for matrix in (True, False) if rule.tells_vectors_apart else (True,):
            yield trace(rule, setting, matrix=matrix)


def _that_may_fall(rule: Rule, graph: Graph, assumed: set[str]) -> set[str]:
    """Of the states that are assumed to be 0 or more those that a step may bring below it."""
    ranges: dict[int, Range] = {}
    for node in graph.nodes:
        ranges[id(node)] = _range(rule, node, ranges, assumed)
    pairs = ((name, after) for name, _, after in (*graph.states, *graph.numbers))
    return {name for name, after in pairs if name in assumed and ranges[id(after)][0] < 0}


def _of_hyperparameter(rule: Rule, name: str) -> Range:
    if name == "lr":
        return _POSITIVE
    interval: Any = rule.intervals.get(name)
    default: Any = rule.hyperparameters.get(name)
    if interval is None:
        return _ANY
    # torch checks only one end of some decays.
    share = interval.low == 0 and is_number(default) and 0 <= float(default) <= 1
    return _SHARE if share else (interval.low, interval.high)


def _range(rule: Rule, node: Node, ranges: Mapping[int, Range], assumed: set[str]) -> Range:
    if node.operation == "constant":
        return (node.constant(), node.constant())
    if node.operation == "input":
        name = str(node.value)
        if name in assumed or name in FACTS:
            return _POSITIVE
        if name == "step":
            return (1.0, math.inf)
        return _SHARE if name == "first" else _of_hyperparameter(rule, name)
    if node.boolean:
        return _SHARE
    values = [ranges[id(a)] for a in node.arguments]
    if node.operation == "mul" and node.arguments[0] is node.arguments[1]:
        largest = max(map(abs, values[0]))
        return (0.0, largest * largest)
    rule_for: Any = _RULES.get(node.operation)
    return _ANY if rule_for is None else rule_for(*values)


def _times(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b  # 0 · inf is no number


def _mul(a: Range, b: Range) -> Range:
    ends = [_times(x, y) for x in a for y in b]
    return (min(ends), max(ends))


def _add(a: Range, b: Range) -> Range:
    return (a[0] + b[0], a[1] + b[1])


def _neg(a: Range) -> Range:
    return (-a[1], -a[0])


def _reciprocal(a: Range) -> Range:
    if a[0] < 0:
        return _ANY
    return (1 / a[1], 1 / a[0] if a[0] else math.inf)


def _union(a: Range, b: Range) -> Range:
    return (min(a[0], b[0]), max(a[1], b[1]))


def _lerp(start: Range, end: Range, weight: Range) -> Range:
    if weight[0] >= 0 and weight[1] <= 1:
        return _union(start, end)
    return _ANY


def _pow(base: Range, exponent: Range) -> Range:
    if base[0] < 0:
        return _ANY
    if base[1] <= 1 and exponent[0] >= 0:
        return _SHARE
    if base[0] >= 1:
        return _SHARE if exponent[1] <= 0 else (0.0, math.inf)
    return _POSITIVE


def _abs(a: Range) -> Range:
    return (max(a[0], -a[1], 0.0), max(-a[0], a[1]))


def _root(a: Range) -> Range:
    return (math.sqrt(max(a[0], 0.0)), math.sqrt(max(a[1], 0.0)))


def _sum(a: Range) -> Range:
    return (0.0 if a[0] >= 0 else -math.inf, 0.0 if a[1] <= 0 else math.inf)


_RULES = {
    "add": _add,
    "sub": lambda a, b: _add(a, _neg(b)),
    "mul": _mul,
    "div": lambda a, b: _mul(a, _reciprocal(b)),
    "neg": _neg,
    "lerp": _lerp,
    "pow": _pow,
    "abs": _abs,
    "sqrt": _root,
    "rsqrt": lambda a: _reciprocal(_root(a)),
    "exp": lambda a: _POSITIVE,
    "sign": lambda a: (-1.0 if a[0] < 0 else 0.0, 1.0 if a[1] > 0 else 0.0),
    "tanh": lambda a: (-1.0 if a[0] < 0 else 0.0, 1.0 if a[1] > 0 else 0.0),
    "cbrt": _sum,
    "maximum": lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
    "minimum": lambda a, b: (min(a[0], b[0]), min(a[1], b[1])),
    "where": lambda condition, a, b: _union(a, b),
    "stored": lambda a: a,
    "max": lambda a: a,
    "sum": _sum,
    "global_sum": _sum,
}
