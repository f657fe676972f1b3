"""The fewest configurations that have every feature of graphs: what the quick run looks at.

An engine meets a rule as a graph: operations on elements, rows and numbers, states, passes. What it
does with one graph it does with another of the same features, so most tests need not ask it again
for every rule. :func:`representatives` chooses, and :func:`deep` says of the items of one test
function which only ``make test-all`` runs. A rule that brings a new feature is chosen by itself.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import gradstep
from classes import ROWS, Row
from configurations import CONFIGURATIONS, FLAG_CONFIGURATIONS
from gradstep.optimizer.optimizer import planner_of
from gradstep.program.passes import passes
from gradstep.rule.contraction import contracted
from gradstep.rule.definition import INPUTS, Rule
from gradstep.rule.graph import FACTS, Graph
from gradstep.rule.trace import trace
from reference import Reference

Feature = tuple[Hashable, ...]
Features = frozenset[Feature]
#: Graphs with more states, or more passes over the elements, count as having this many.
MANY = 3


@dataclass(frozen=True)
class Configuration:
    """A class with arguments.

    Attributes:
        name: the class's.
        make: the class.
        options: its arguments; None where a test is about the class, and chooses them by itself.
    """

    name: str
    make: Callable[..., Any]
    options: dict[str, Any] | None

    @functools.cached_property
    def key(self) -> Hashable:
        """What tells it from others."""
        if self.options is None:
            return self.name
        return self.name, tuple((name, _plain(v)) for name, v in self.options.items())

    def __str__(self) -> str:
        options = (self.options or {}).items()
        given = ", ".join(f"{name}={_plain(value)}" for name, value in options)
        return f"{self.name}({given})"


def _plain(value: Any) -> Hashable:
    """An argument as something that compares: a tensor is not its number."""
    if isinstance(value, tuple | list):
        return tuple(map(_plain, value))
    return f"tensor({value.item()})" if isinstance(value, Tensor) else value


# What a configuration has.


def of_arguments(group: dict[str, Any], options: dict[str, Any]) -> Iterable[Feature]:
    """Flags that are set, words, and numbers that are tensors."""
    for name, value in group.items():
        if value is True:
            yield "flag", name
        elif isinstance(value, str) and name != "rule":
            yield "word", name, value
    for value in options.values():
        if isinstance(value, Tensor):
            yield "number", "tensor"
        elif isinstance(value, tuple) and any(isinstance(v, Tensor) for v in value):
            yield "number", "tensor in a tuple"


def of_rule(rule: Rule) -> Iterable[Feature]:
    """What an engine asks the rule, and not its graph."""
    yield "sparse way", rule.sparse
    yield "tells vectors from matrices", rule.tells_vectors_apart


def of_graph(graph: Graph) -> Iterable[Feature]:
    """Each operation on each extent, each input, and what the engines ask of the whole."""
    for node in graph.nodes:
        if node.operation == "opaque":
            yield "opaque call on", node.extent
            yield "opaque call returns", min(len(node.value.returns), 2)
        elif node.operation == "input":
            if node.value in INPUTS or node.value in FACTS:
                yield "input", node.value
        elif node.operation not in ("constant", "part"):
            yield "operation", node.operation
            yield "value for each", node.extent
    found = [each.domain for each in passes(contracted(graph))]
    yield "passes over elements", min(found.count("element"), MANY)
    yield from (("pass over", domain) for domain in found)
    yield "states", min(len(graph.states), MANY)
    yield "an element's step hangs on it alone", graph.is_elementwise
    yield "sums over all parameters", graph.sums_over_all
    yield "the rule sets the weight", graph.direction is None
    yield "numbers alike in all groups", bool(graph.alike)


def of_states(rule: Rule, values: dict[str, Any], matrix: bool) -> Iterable[Feature]:
    """How each state starts, for how much of a weight, for which weights, and whose it is."""
    for state in rule.states.values():
        if state.exists(values, matrix):
            yield "state starts as", state.start, isinstance(state.value, str)
            yield "state of", state.extent(), state.only, state.shared


def _features(configuration: Configuration) -> Features:
    weight = torch.zeros(1, 1)  # which each class takes
    options = configuration.options or {}
    optimizer = configuration.make([weight], **copy.deepcopy(options))
    group = optimizer.param_groups[0]
    found = set(of_arguments(group, options))
    if isinstance(optimizer, torch.optim.LBFGS):
        return frozenset({*found, ("a class without a rule",)})
    reader = planner_of(optimizer).reader
    rule = reader.rule
    found |= set(of_rule(rule))
    given = reader.hyperparameters(group)
    values = {n: v.item() if isinstance(v, Tensor) else v for n, v in given.items()}
    for matrix in (True, False) if rule.tells_vectors_apart else (True,):
        graph = trace(rule, {**values, "lr": 0.1}, bool(group.get("maximize")), matrix)
        found |= set(of_graph(graph)) | set(of_states(rule, values, matrix))
    return frozenset(found)


_known: dict[Hashable, Features] = {}


def features(configuration: Configuration) -> Features:
    """All that its arguments, its states and its graphs have."""
    key = configuration.key
    if key not in _known:
        _known[key] = _features(configuration)
    return _known[key]


# Which are looked at.


def every_configuration() -> list[Configuration]:
    """Those of all tests: of every rule with every flag, and of every class."""
    of_rules = (
        Configuration(r.name, r.ours, options)
        for r, options in itertools.chain(CONFIGURATIONS, FLAG_CONFIGURATIONS)
    )
    of_classes = (
        Configuration(row.name, row.ours, options) for row in ROWS for options in row.configurations
    )
    return list({each.key: each for each in itertools.chain(of_rules, of_classes)}.values())


@functools.lru_cache(maxsize=1)
def wanted() -> Features:
    """Every feature that some configuration has, but the flags and words that one class alone has.

    Those choose among formulas of that class, all of which are compared with the paper's.
    """
    owners: dict[Feature, set[str]] = {}
    for each in every_configuration():
        for feature in features(each):
            owners.setdefault(feature, set()).add(each.name)
    own = {f for f, names in owners.items() if f[0] in ("flag", "word") and len(names) == 1}
    return frozenset(owners) - own


def cover(
    candidates: Sequence[Configuration],
    left: Features,
    features: Callable[[Configuration], Features] = features,
) -> list[Configuration]:
    """Few of the candidates that have every one of ``left`` of the features that any of them has.

    Again and again the one that has most of what is missing; of several, the first. What turns out
    to have nothing that the others have not is left out.
    """
    wanted = left & frozenset().union(*map(features, candidates))
    chosen: list[Configuration] = []
    while missing := wanted.difference(*map(features, chosen)):
        chosen.append(max(candidates, key=lambda each: len(features(each) & missing)))
    for each in tuple(chosen):
        others = [other for other in chosen if other is not each]
        if wanted <= frozenset().union(*map(features, others)):
            chosen = others
    return chosen


@functools.lru_cache(maxsize=1)
def representatives() -> tuple[Configuration, ...]:
    """The configurations that the quick run looks at."""
    return tuple(cover(every_configuration(), wanted()))


def kept(candidates: Sequence[Configuration]) -> set[Hashable]:
    """Keys of those of one test's configurations that the quick run looks at.

    The representatives among them, the same in each test, and where one of them is not there or
    cannot be, others that have its features: what a test is asked of any graph, it is asked of all
    features that its configurations have.
    """
    chosen = {each.key for each in representatives()} | {r.name for r in representatives()}
    ours = [each for each in candidates if each.key in chosen]
    left = wanted().difference(*map(features, ours))
    return {each.key for each in (*ours, *cover(candidates, left))}


#: A test that names no more than these has chosen them by itself.
FEW = 4
#: The storage type in which every rule is compared with its formula: the one that tells most.
SHARPEST = torch.float64


def deep(items: Sequence[Mapping[str, Any]], every_rule: bool = False) -> list[bool]:
    """Whether each item of one test function is left to the deep run.

    Args:
        items: the parameters of each. A row of a table beside ``options`` stands for the class with
            these; alone, for the class with those that it has by default. A rule beside
            ``settings`` stands for an optimizer with these, and so does whatever has ``options``
            and the name of a class of gradstep.
        every_rule: whether the test asks each rule for what is its own. In float64, by the fused
            engine, each class then keeps the fewest of its configurations that have all that any of
            them has: every feature of its graphs, flag, word and argument. Other types, other
            engines and weights in ``all_layouts`` are left to the representatives; and these
            layouts, of other types than float32, to the deep run.
    """
    subjects = [{name: _subject(value, item) for name, value in item.items()} for item in items]
    looked_at: dict[str, set[Hashable]] = {}
    for parameter in subjects[0]:
        found = [each[parameter] for each in subjects]
        candidates = {each.key: each for each in found if each is not None}
        few = len(candidates) <= FEW
        looked_at[parameter] = set(candidates) if few else kept(list(candidates.values()))
    others = [
        any(s is not None and s.key not in looked_at[name] for name, s in each.items())
        for each in subjects
    ]
    if not every_rule:
        return others
    found = [next((s for s in each.values() if s is not None), None) for each in subjects]
    own = _kept_of_each([subject for subject in found if subject is not None])
    return [
        _left_of_a_rules_own(item, other, subject is not None and subject.key not in own)
        for item, other, subject in zip(items, others, found, strict=True)
    ]


def _kept_of_each(subjects: Iterable[Configuration]) -> set[Hashable]:
    """Keys of the fewest configurations of each class that have all that its others have."""
    by_class: dict[str, dict[Hashable, Configuration]] = {}
    for each in subjects:
        by_class.setdefault(each.name, {})[each.key] = each
    chosen: set[Hashable] = set()
    for own in by_class.values():
        every = frozenset().union(*map(with_arguments, own.values()))
        chosen |= {each.key for each in cover(list(own.values()), every, with_arguments)}
    return chosen


def with_arguments(configuration: Configuration) -> Features:
    """Its features, and which arguments it is given."""
    given = (("argument", name) for name in configuration.options or {})
    return features(configuration) | frozenset(given)


def _left_of_a_rules_own(item: Mapping[str, Any], other: bool, repeats: bool) -> bool:
    """Whether an item that asks a rule for its own is deep.

    Args:
        item: its parameters.
        other: whether it is of no representative.
        repeats: whether the class's other configurations have all that it has.
    """
    dtype, all_layouts = item.get("dtype", SHARPEST), item.get("all_layouts", False)
    if all_layouts and dtype != torch.float32:
        return True
    sharpest = dtype == SHARPEST and item.get("engine", "fused") == "fused" and not all_layouts
    return other and (repeats or not sharpest)


def _subject(value: Any, item: Mapping[str, Any]) -> Configuration | None:
    """The configuration that a parameter of a test stands for; None for any other parameter."""
    if isinstance(value, Reference | Row):
        options = item.get("options")
        return Configuration(value.name, value.ours, options if isinstance(options, dict) else None)
    if isinstance(value, Rule) and isinstance(item.get("settings"), dict):
        make = functools.partial(gradstep.Optimizer, rule=value)
        return Configuration(f"{value.name} as a rule", make, item["settings"])
    name, options = getattr(value, "name", None), getattr(value, "options", None)
    if isinstance(name, str) and isinstance(options, dict):
        make = getattr(gradstep, name, None)
        if isinstance(make, type):
            return Configuration(name, make, options)
    return None


if __name__ == "__main__":
    seen: Features = frozenset()
    for one in representatives():
        new = (features(one) & wanted()) - seen
        seen |= new
        print(one, *sorted(" ".join(map(str, feature)) for feature in new), sep="\n    ")
