"""``gradstep.formula``: a rule alone, without numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from gradstep.compose.partition import Partition
from gradstep.optimizer.optimizer import Optimizer, planner_of
from gradstep.rule.definition import Rule
from gradstep.rule.formula import formula as formula_of
from gradstep.rule.free_variables import FreeVariables
from gradstep.rule.hyperparameter import is_number
from gradstep.rule.latex import latex_name
from gradstep.rule.notation import number_text
from gradstep.rule.trace import refuse_what_changes, trace
from gradstep.sight.account import class_name
from gradstep.sight.page import Page, Row, sections
from gradstep.sight.show import Shown


def formula(
    rule: Rule | Optimizer | Partition, *, greek: bool = False, **flags: Any
) -> RuleFormula:
    """The formula of a rule: each named intermediate, each state, and the weight.

    ::

        print(gradstep.formula(gradstep.adam, amsgrad=True))
        print(gradstep.formula(optimizer).latex())

    Args:
        rule: a rule or a chain; or an optimizer, whose first group's options then hold; or a
            partition, for the rule of each part.
        greek: write ``beta1`` as β₁, ``eps`` as ε, and so on. LaTeX always does.
        flags: the rule's hyperparameters, by its own names, where they are to be others; and
            ``maximize``.

    Returns:
        an object that prints the formula; in a notebook it shows it.

    Raises:
        TypeError: no rule, LBFGS, or an unknown hyperparameter.
        ValueError: a hyperparameter out of range.
        RuleError: a rule that cannot be traced, or that draws, counts or reads a clock by itself.
    """
    if isinstance(rule, torch.optim.LBFGS):
        raise TypeError("LBFGS searches along a direction with its closure; it has no formula")
    if isinstance(rule, Partition):
        made = {name: _page(part, greek, flags) for name, part in rule.parts.items()}
        return RuleFormula(
            [replace(page, title=f"{name}: {page.title}") for name, page in made.items()]
        )
    if not isinstance(rule, Rule | Optimizer):
        kind = getattr(rule, "__name__", type(rule).__name__)
        raise TypeError(
            f"formula() takes a rule, a chain or an optimizer of gradstep; got {kind}. Put "
            "@gradstep.rule above a function."
        )
    return RuleFormula([_page(rule, greek, flags)])


class RuleFormula(Shown):
    """A rule's formula. Made by :func:`formula`; print it, or take one of its four forms.

    Attributes:
        title: the rule, and what of it is not the default; of a partition that of each part.
    """

    def __init__(self, pages: Sequence[Page]) -> None:
        self.title = "; ".join(page.title for page in pages)
        self._shown = list(pages)

    def _pages(self) -> list[Page]:
        return self._shown

    def __repr__(self) -> str:
        return f"<formula of {self.title}>"


def _page(rule: Rule | Optimizer, greek: bool, flags: Mapping[str, Any]) -> Page:
    changed = dict(flags)
    maximize = bool(changed.pop("maximize", False))
    if isinstance(rule, Optimizer):
        group, reader = rule.param_groups[0], planner_of(rule).reader
        own = reader.rule
        found = {n: _plain(v) for n, v in reader.hyperparameters(group).items()}
        given = {n: v for n, v in found.items() if v != own.hyperparameters[n]}
        maximize = maximize or bool(group.get("maximize", False))
        title, changed = class_name(rule), {**given, **changed}
    else:
        title, own = rule.name, rule
    values = {n: _plain(v) for n, v in own(**changed).hyperparameters.items()}
    FreeVariables(own)
    refuse_what_changes(own, {**values, "lr": own.lr})
    graph = trace(own, {**values, "lr": own.lr}, maximize)
    said = [f"{name}={_said(value)}" for name, value in changed.items()]
    said += ["maximize=True"] if maximize else []
    spoken, plain = formula_of(graph, greek).lines, formula_of(graph).lines
    rows = [
        (line.stage, Row(line.name, line.text, latex_name(named.name), line.latex))
        for line, named in zip(spoken, plain, strict=True)
    ]
    return Page(f"{title} with {', '.join(said)}" if said else title, sections(rows))


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.detach().item()
    return float(value) if is_number(value) else value


def _said(value: Any) -> str:
    value = _plain(value)
    return number_text(value) if is_number(value) else str(value)
