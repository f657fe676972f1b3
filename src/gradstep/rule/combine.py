"""Rules made of rules: one after the other, or the size of one on the direction of another."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gradstep.rule.definition import Rule, free_name, numbered
from gradstep.rule.hyperparameter import Choice, Interval
from gradstep.rule.language import where
from gradstep.rule.reductions import norm
from gradstep.rule.state import State
from gradstep.rule.symbol import RuleError
from gradstep.rule.value import NewWeight


def chain(*rules: Rule) -> Rule:
    """Rules in a row: the direction that one returns is the gradient of the next.

    A chain is again a rule, traced and fused as one; a chain within a chain is its rules. A state
    or hyperparameter keeps its name where it is the only one of that name, and gets its rule's
    name in front (and a number, where the same rule stands twice) where it is not.

    Raises:
        TypeError: something that is no rule.
        ValueError: no rules at all; or a rule behind one that takes the weight after the step.
    """
    if not rules:
        raise ValueError("chain() needs at least one rule")
    _check("chain", rules)
    rules = tuple(part for r in rules for part in (r.parts() if r.made_by is chain else (r,)))
    for before, behind in itertools.pairwise(rules):
        if "next_w" in before.inputs and "next_w" not in behind.inputs:
            raise ValueError(
                f"{behind.name} stands behind {before.name}, which takes the weight after the step "
                f"(next_w) and would see one that {behind.name} changes. Put {before.name} last"
            )
    return _made_of(rules, chain)


def graft(size: Rule, direction: Rule) -> Rule:
    """Grafting: the direction of one rule, with the length of what another would have done.

    ``direction · ‖size‖ / ‖direction‖``, for each weight on its own; both rules are given the
    same gradient and keep their states. So ``graft(sgd(), adam())`` goes where Adam points, as far
    as SGD would go: learning rates and schedules that are known for the one serve the other. A
    direction of 0 stays 0. Names are as in :func:`chain`.

    Args:
        size: the rule that says how far.
        direction: the rule that says where to.

    Raises:
        TypeError: something that is no rule.
        ValueError: a rule that takes the weight after the step (next_w).
        RuleError: when it is traced: one of them sets the weight outright and has no direction.

    Source:
        Agarwal, Anil, Hazan, Koren & Zhang 2020, "Disentangling adaptive gradient methods from
        learning rates", arXiv:2002.11803: each layer on its own.
    """
    _check("graft", (size, direction))
    for each in (size, direction):
        if "next_w" in each.inputs:
            raise ValueError(
                f"graft() takes rules that return a direction; {each.name} takes the weight after "
                "the step (next_w). Put it behind: chain(graft(size, direction), "
                f"{each.name})"
            )
    return _made_of((size, direction), graft, join=grafted)


def grafted(size: Any, direction: Any) -> Any:
    """The direction, with the norm of ``size``."""
    if isinstance(size, NewWeight) or isinstance(direction, NewWeight):
        raise RuleError(
            "graft() takes rules that return a direction, and one of these sets the weight "
            "outright. Take another, such as sgd, adam or lion"
        )
    length = norm(direction)
    return direction * where(length > 0, norm(size) / length, 0)


def _check(name: str, rules: Sequence[Any]) -> None:
    for r in rules:
        if not isinstance(r, Rule):
            raise TypeError(
                f"{name}() takes rules; got {r!r}. Is a decorator @gradstep.rule missing?"
            )


def _made_of(
    rules: Sequence[Rule], made_by: Callable[..., Rule], join: Callable[..., Any] | None = None
) -> Rule:
    """A rule of rules, whose states and hyperparameters each get a name of their own."""
    for r in rules:
        if r.low_precision != "nearest":
            raise ValueError(
                f"{made_by.__name__}() got {r.name} with low_precision={r.low_precision!r}, which "
                "says how the weight is kept that all of its rules move: give it to the optimizer, "
                f"or write low_precision({made_by.__name__}(…), {r.low_precision!r})"
            )
    owned = [[*r.states, *r.hyperparameters] for r in rules]
    count = Counter(n for own in owned for n in own)
    labels = numbered(r.name for r in rules)
    taken = [n for n in count if count[n] == 1]
    stages: list[tuple[Rule, Mapping[str, str]]] = []
    states: dict[str, State] = {}
    hyperparameters: dict[str, Any] = {}
    intervals: dict[str, Interval] = {}
    choices: dict[str, Choice] = {}
    for r, label, own in zip(rules, labels, owned, strict=True):
        names = {n: n if count[n] == 1 else free_name(f"{label}_{n}", taken) for n in own}
        taken += names.values()
        stages.append((r, names))
        for n, state in r.states.items():
            value = (
                names.get(state.value, state.value) if isinstance(state.value, str) else state.value
            )
            when = None if state.when is None else names[state.when]
            of = tuple(names[name] for name in state.of)
            states[names[n]] = replace(state, value=value, when=when, of=of)
        hyperparameters.update({names[n]: d for n, d in r.hyperparameters.items()})
        intervals.update({names[n]: i for n, i in r.intervals.items()})
        choices.update({names[n]: c for n, c in r.choices.items()})
    return Rule(
        f"{made_by.__name__}({', '.join(labels)})",
        states,
        hyperparameters,
        intervals,
        frozenset().union(*(r.inputs for r in rules)),
        "rows" if join is None and all(r.sparse == "rows" for r in rules) else None,
        next((r.lr for r in rules if r.class_name is not None), 1e-3),
        stages=tuple(stages),
        made_by=made_by,
        join=join,
        choices=choices,
    )
