"""``gradstep.formula``: a rule alone, without numbers."""

from __future__ import annotations

import sys
from typing import Any

import torch

from gradstep.optimizer import Optimizer
from gradstep.rule.definition import Rule
from gradstep.rule.formula import formula as formula_of
from gradstep.rule.graph import Graph
from gradstep.rule.hyperparameter import is_number
from gradstep.rule.latex import latex_name
from gradstep.rule.notation import number_text
from gradstep.rule.trace import trace
from gradstep.sight.account import class_name
from gradstep.sight.ink import ink_for
from gradstep.sight.page import Page, Row, sections
from gradstep.sight.show import Shown


def formula(rule: Rule | Optimizer, *, greek: bool = False, **flags: Any) -> RuleFormula:
    """The formula of a rule: each named intermediate, each state, and the weight.

    ::

        print(gradstep.formula(gradstep.adam, amsgrad=True))
        print(gradstep.formula(optimizer).latex())

    Args:
        rule: a rule or a chain; or an optimizer, whose first group's options then hold.
        greek: write ``beta1`` as β₁, ``eps`` as ε, and so on. LaTeX always does.
        flags: the rule's hyperparameters, by its own names, where they are to be others; and
            ``maximize``.

    Returns:
        an object that prints the formula; in a notebook it shows it.

    Raises:
        TypeError: no rule, LBFGS, or an unknown hyperparameter.
        ValueError: a hyperparameter out of range.
        RuleError: a rule that cannot be traced.
    """
    if isinstance(rule, torch.optim.LBFGS):
        raise TypeError("LBFGS searches along a direction with its closure; it has no formula")
    maximize = bool(flags.pop("maximize", False))
    if isinstance(rule, Optimizer):
        group, own = rule.param_groups[0], rule.rule
        found = {n: rule.hyperparameter(group, n) for n in own.hyperparameters}
        given = {n: v for n, v in found.items() if v != own.hyperparameters[n]}
        maximize = maximize or bool(group.get("maximize", False))
        title, changed = class_name(rule), {**given, **flags}
    elif isinstance(rule, Rule):
        title, own, changed = rule.name, rule, dict(flags)
    else:
        kind = getattr(rule, "__name__", type(rule).__name__)
        raise TypeError(
            f"formula() takes a rule, a chain or an optimizer of gradstep; got {kind}. Put "
            "@gradstep.rule above a function."
        )
    values = {n: _plain(v) for n, v in own(**changed).hyperparameters.items()}
    graph = trace(own, {**values, "lr": 1e-3}, maximize)
    said = [f"{name}={_shown(value)}" for name, value in changed.items()]
    said += ["maximize=True"] if maximize else []
    return RuleFormula(f"{title} with {', '.join(said)}" if said else title, graph, greek)


class RuleFormula(Shown):
    """A rule's formula. Made by :func:`formula`; print it, or take one of its four forms.

    Attributes:
        title: the rule, and what of it is not the default.
    """

    def __init__(self, title: str, graph: Graph, greek: bool = False) -> None:
        self.title = title
        found = formula_of(graph, greek)
        names = formula_of(graph).lines if greek else found.lines
        rows = (
            (
                line.stage,
                Row(line.name, line.text, latex_name(plain.name), line.latex),
            )
            for line, plain in zip(found.lines, names, strict=True)
        )
        self._page = Page(title, sections(rows))

    def _pages(self) -> list[Page]:
        return [self._page]

    def __repr__(self) -> str:
        return f"<formula of {self.title}>"

    def __str__(self) -> str:
        """The text, in colours if the standard output is a terminal."""
        return self.text(ink_for(sys.stdout))


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.detach().item()
    return float(value) if is_number(value) else value


def _shown(value: Any) -> str:
    value = _plain(value)
    return number_text(value) if is_number(value) else str(value)
