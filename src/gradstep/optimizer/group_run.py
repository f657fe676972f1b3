"""What is known of one parameter group from its last step: its numbers, graphs and plans.

Groups with the same flags share graphs and kernels: there may be thousands, of one parameter each.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from gradstep.backends.base import UnreadValues, Values
from gradstep.backends.dispatch import Plan
from gradstep.backends.eligibility import sharing
from gradstep.backends.update import has_shape, is_matrix
from gradstep.optimizer.parameter_groups import GroupReader, Reading
from gradstep.program.program import Program
from gradstep.rule.definition import Rule
from gradstep.rule.free_variables import FreeVariables
from gradstep.rule.graph import Graph
from gradstep.rule.trace import refuse_what_changes, trace


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

    def holds_for(self, flags: list[Any], kinds: Collection[bool], reading: Reading) -> bool:
        """Whether they are the graphs for a group of these flags, kinds and numbers."""
        return (
            self.flags == flags
            and set(kinds) <= set(self.graphs)
            and all(map(reading.fits, self.graphs.values()))
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

    def get(self, reader: GroupReader, reading: Reading, kinds: Collection[bool]) -> Traced:
        """The graphs for a group; the rule is traced where that was not done yet.

        Args:
            reader: has the rule.
            reading: of the group.
            kinds: whether its parameters have rows and columns: of which there are graphs.
        """
        rule = reader.rule
        # A notebook that reloads modules puts new code into functions that are already there.
        flags = [*reading.flags, *(function.__code__ for function in rule.functions())]
        for known in reversed(self._known):
            if known.holds_for(flags, kinds, reading):
                return known
        for known in reversed(self._before):
            if known.holds_for(flags, kinds, reading):
                return self._know(known.for_another())
        maximize, scaled = reading.maximize, reading.scaled
        if rule.tells_vectors_apart:
            graphs = {k: trace(rule, reading.traced_with, maximize, k, scaled) for k in kinds}
        else:
            graph = trace(rule, reading.traced_with, maximize, scaled=scaled)
            graphs = dict.fromkeys(kinds, graph)
        made = {
            id(g): Program(rule, g, reader.number_names, maximize, reading.differentiable)
            for g in graphs.values()
        }
        programs = {kind: made[id(g)] for kind, g in graphs.items()}
        traced = Traced(flags, graphs, FreeVariables(rule) or None, programs)
        matrix = not rule.tells_vectors_apart or next(iter(kinds))
        refuse_what_changes(rule, reading.traced_with, matrix)
        self._before[:] = [*self._before[-15:], traced]  # as many settings as anybody goes back to
        return self._know(traced)

    def _know(self, traced: Traced) -> Traced:
        self._known = [*self._known[-15:], traced]
        return traced


class GroupRun:
    """What is known of one parameter group from its last step: numbers, graph and plans."""

    def __init__(self, group: dict[str, Any]) -> None:
        self.group = group
        self.raw: tuple[Any, ...] | None = None
        self.numbers: Mapping[str, Any] = {}
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
        params: list[Any] = self.group["params"]
        return params

    def remember(self, ids: Sequence[int], plan: Plan) -> None:
        """What a step with care has found out about parameters, for steps of another mask."""
        if not (self.rows or plan.rows) and len(set(plan.backends)) == 1:
            self.engines.update(dict.fromkeys(ids, plan.backends[0].name))
            self._forget_gone()
            return
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

    def read(
        self,
        reader: GroupReader,
        traces: Traces,
        loss: float,
        scale: Any,
        found_inf: Tensor | None = None,
    ) -> bool:
        """Read the group's numbers and flags, check them, and trace the rule if flags are new.

        Args:
            reader: reads them.
            traces: the graphs of all groups.
            loss: of the present step; used if the rule asks for it.
            scale: by which the present step divides the gradients; None: by none.
            found_inf: what the step itself is to read, to write nothing where it is not 0.

        Returns:
            whether the graphs are others than before.

        Raises:
            TypeError, ValueError: an option that is not allowed.
        """
        reading, rule = reader.read(self.group, loss, scale, found_inf), reader.rule
        if self.flags != reading.flags or not all(map(reading.fits, self.graphs.values())):
            self.graphs = {}
        if self.free is not None and not self.free.unchanged():
            self.graphs = {}
        kinds = {True, False}
        if rule.tells_vectors_apart:
            kinds = {is_matrix(p) for p in self.params() if has_shape(p)} or {True}
        anew = not kinds <= set(self.graphs)
        if anew:
            traced = traces.get(reader, reading, kinds)
            self.graphs, self.programs, self.free = traced.graphs, traced.programs, traced.free
            self.flags = reading.flags
            self.plans, self.rows = {}, {}
        self.raw, self.values = reading.raw, reading.values
        values = self.values
        self.numbers = values.as_given if isinstance(values, UnreadValues) else values.given
        return anew


class WeightRun(GroupRun):
    """What is known of one weight of a group, for steps that it makes by itself.

    Attributes:
        place: of the weight in the group. The weight itself is not kept, so that one that is
            replaced is freed.
    """

    def __init__(self, group: dict[str, Any], place: int) -> None:
        super().__init__(group)
        self.place = place

    def params(self) -> list[Any]:
        """The weight."""
        params: list[Any] = self.group["params"]
        return params[self.place : self.place + 1]

    def follow(self, whole: GroupRun) -> None:
        """Take over what is known of the group's options, which were read once for all weights."""
        if self.programs is not whole.programs:
            self.plans, self.rows = {}, {}
        self.graphs, self.programs, self.flags = whole.graphs, whole.programs, whole.flags
        self.raw, self.values, self.numbers = whole.raw, whole.values, whole.numbers
        self.free = whole.free
        for planned in self.plans.values():
            planned.entries = None  # any states may have been exchanged since its last step
