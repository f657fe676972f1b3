"""What is known of one parameter group from its last step: its numbers, graphs and plans.

Groups with the same flags share graphs and kernels: there may be thousands, of one parameter each.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from gradstep.backends.base import Values
from gradstep.backends.dispatch import Plan
from gradstep.backends.eligibility import sharing
from gradstep.backends.update import has_shape, is_matrix
from gradstep.optimizer.parameter_groups import Groups
from gradstep.program.program import Program
from gradstep.rule.definition import Rule
from gradstep.rule.free_variables import FreeVariables
from gradstep.rule.graph import Graph
from gradstep.rule.hyperparameter import is_number, like_default
from gradstep.rule.trace import trace


@dataclass
class Planned:
    """A plan, and the parameters that it is for.

    Attributes:
        ids: of the parameters. They are not kept alive, so that one that is replaced is freed.
            Another may then get its id: that the plan fits, its guards find out at each step.
        plan: the plan.
        entries: the parameters' states, as far as they have been looked up.
    """

    ids: list[int]
    plan: Plan
    entries: list[Any] | None = None


@dataclass
class Traced:
    """The graphs of a rule with its flags set.

    Attributes:
        flags: all that the tracing depends on, the functions' code included, beside whether numbers
            are 0.
        graphs: whether a parameter has rows and columns -> its graph.
        free: what the rule read beside its arguments; None if nothing.
        programs: the same, with what backends make of them; one for both if nothing differs.
    """

    flags: list[Any]
    graphs: dict[bool, Graph]
    free: FreeVariables | None
    programs: dict[bool, Program]

    def holds_for(self, flags: list[Any], kinds: Collection[bool], numbers: dict[str, Any]) -> bool:
        """Whether they are the graphs for a group of these flags, kinds and numbers."""
        return (
            self.flags == flags
            and set(kinds) <= set(self.graphs)
            and all(graph.holds_for(numbers) for graph in self.graphs.values())
            and (self.free is None or self.free.unchanged())
        )

    def for_another(self) -> Traced:
        """The same for another optimizer."""
        programs = {id(p): p.for_another() for p in self.programs.values()}
        return replace(self, programs={k: programs[id(p)] for k, p in self.programs.items()})


class Traces:
    """The graphs of a rule, with each setting of its flags that some group has."""

    def __init__(self, rule: Rule) -> None:
        self._known: list[Traced] = []
        #: What earlier optimizers of this very rule have left: a first step in a third of the time.
        self._before: list[Traced] = rule.kept.setdefault("traced", [])

    def get(
        self,
        rule: Rule,
        flags: list[Any],
        kinds: Collection[bool],
        numbers: dict[str, Any],
        make: Callable[[], dict[bool, Graph]],
        program: Callable[[Graph], Program],
    ) -> Traced:
        """The graphs for a group; ``make`` traces the rule, where that was not done yet.

        And ``program`` makes a graph a program.
        """
        # A notebook that reloads modules puts new code into functions that are already there.
        flags = [*flags, *(function.__code__ for function in rule.functions())]
        for known in reversed(self._known):
            if known.holds_for(flags, kinds, numbers):
                return known
        for known in reversed(self._before):
            if known.holds_for(flags, kinds, numbers):
                return self._know(known.for_another())
        graphs = make()
        known_by: dict[int, Program] = {id(g): program(g) for g in graphs.values()}
        programs = {kind: known_by[id(g)] for kind, g in graphs.items()}
        made = Traced(flags, graphs, FreeVariables(rule) or None, programs)
        self._before[:] = [*self._before[-15:], made]  # as many settings as anybody goes back to
        return self._know(made)

    def _know(self, made: Traced) -> Traced:
        self._known = [*self._known[-15:], made]
        return made


class GroupRun:
    """What is known of one parameter group from its last step: numbers, graph and plans."""

    def __init__(self, group: dict[str, Any]) -> None:
        self.group = group
        self.raw: tuple[Any, ...] | None = None
        self.numbers: dict[str, Any] = {}
        self.values = Values((), {})
        self.flags: list[Any] | None = None
        #: Whether a parameter has rows and columns -> its graph; one for both if nothing differs.
        self.graphs: dict[bool, Graph] = {}
        #: What the rule read beside its arguments when it was traced; None if nothing.
        self.free: FreeVariables | None = None
        #: Which parameters had a gradient, () for all -> the plan for those.
        self.plans: dict[tuple[bool, ...], Planned] = {}
        #: By the ids of parameters: their rows, for plans of other masks.
        self.rows: dict[int, Any] = {}
        #: The same: the engine that updated each at its last step.
        self.engines: dict[int, str] = {}
        self.programs: dict[bool, Program] = {}

    def params(self) -> list[Any]:
        """The group's parameters."""
        return self.group["params"]

    def remember(self, ids: Sequence[int], plan: Plan) -> None:
        """What a step with care has found out about parameters, for steps of another mask."""
        for key, backend in zip(ids, plan.backends, strict=True):
            if self.engines.get(key) != backend.name:
                self.engines[key] = backend.name
                self.rows.pop(key, None)
        if plan.rows:
            self.rows.update((ids[i], row) for i, row in plan.rows.items())
            spans = [span for row in self.rows.values() for span in row.spans]
            for key in sharing(spans):  # they were not in one step yet
                self.rows.pop(key, None)
        self._forget_gone()

    def _forget_gone(self) -> None:
        """Forget the parameters that the group has no more."""
        params = self.params()
        for known in (self.rows, self.engines):
            if len(known) > len(params):
                held = set(map(id, params))
                for key in [key for key in known if key not in held]:
                    del known[key]

    def read(self, groups: Groups, traces: Traces, loss: float) -> bool:
        """Read the group's numbers and flags, check them, and trace the rule if flags are new.

        Args:
            groups: the optimizer.
            traces: the graphs of all groups.
            loss: of the present step; read if the rule asks for it.

        Returns:
            whether the graphs are others than before.

        Raises:
            TypeError, ValueError: an option that is not allowed.
        """
        group, rule = self.group, groups.rule
        groups.check_changed(group)
        raw = groups.read_options(group)
        numbers = {n: groups.hyperparameter(group, n) for n in rule.hyperparameters}
        flags = [numbers[n] for n in groups.flag_names]
        # What gives states their shapes: another value asks for a look with care at those that are.
        flags += [_as_given(numbers[n]) for state in rule.states.values() for n in state.of]
        flags += [bool(group.get("maximize")), bool(group.get("differentiable"))]
        floats = {
            n: as_float(v)
            for n, v in (("lr", group["lr"]), *numbers.items())
            if n in groups.number_names
        }
        scale = groups.__dict__.get("grad_scale")
        scale = None if scale is None else float(scale)
        flags.append(scale is not None)
        plain = {**numbers, **floats}
        if self.flags != flags or not all(g.holds_for(plain) for g in self.graphs.values()):
            self.graphs = {}
        if self.free is not None and not self.free.unchanged():
            self.graphs = {}
        kinds = {True, False}
        if rule.tells_vectors_apart:
            kinds = {is_matrix(p) for p in self.params() if has_shape(p)} or {True}
        anew = not kinds <= set(self.graphs)
        if anew:
            maximize = bool(group.get("maximize", False))

            def make() -> dict[bool, Graph]:
                if rule.tells_vectors_apart:
                    return {k: trace(rule, plain, maximize, k, scale is not None) for k in kinds}
                return dict.fromkeys(kinds, trace(rule, plain, maximize, scaled=scale is not None))

            def program(graph: Graph) -> Program:
                differentiable = bool(group.get("differentiable"))
                return Program(rule, graph, groups.number_names, maximize, differentiable)

            traced = traces.get(rule, flags, kinds, plain, make, program)
            self.graphs, self.programs, self.free = traced.graphs, traced.programs, traced.free
            self.flags = flags
            self.plans, self.rows = {}, {}
        lr = like_default(group["lr"], rule.lr)
        self.numbers = {n: _as_given(v) for n, v in (("lr", lr), *numbers.items())}
        self.numbers["grad_scale"] = floats["grad_scale"] = 1.0 if scale is None else scale
        if "loss" in groups.number_names:
            sign = -1.0 if group.get("maximize") else 1.0  # what is climbed is its negative
            self.numbers["loss"] = floats["loss"] = sign * loss
        self.values = Values(tuple(floats[n] for n in groups.number_names), self.numbers)
        settled = all(isinstance(v, int | float | str | bool | tuple | None) for v in raw)
        parts = [v for t in raw if isinstance(t, tuple) for v in t]
        inside = all(isinstance(v, int | float | None) for v in parts)
        self.raw = raw if settled and inside and scale is None else None
        return anew


def as_float(value: Any) -> float:
    """A number, or the one number that a tensor holds."""
    return float(value.detach().item() if isinstance(value, Tensor) else value)


def _as_given(value: Any) -> Any:
    """Numbers as floats; flags, and tensors that autograd follows, as they are."""
    if isinstance(value, Tensor):
        return value if value.requires_grad else as_float(value)
    return float(value) if is_number(value) else value
