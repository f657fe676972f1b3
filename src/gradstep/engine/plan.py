"""The plan of a step: which engine updates which tensor of a group, and with what kernel."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradstep.engine import eager
from gradstep.engine.eager_rounds import EagerRounds
from gradstep.engine.fit import is_recorded, is_sharded, overlapping, unfit, unfit_whole
from gradstep.engine.program import Program
from gradstep.engine.unusual import copy_of, is_usual, naming
from gradstep.engine.update import Update, check, is_matrix
from gradstep.rule.definition import Rule
from gradstep.rule.graph import Graph

ENGINES = ("auto", "eager", "fused", "compile")

_log = logging.getLogger("gradstep")

# A fork waits while another thread imports the compiler: else the child would find that module's
# lock taken by a thread that it does not have, and wait for ever.
_importing = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_importing.acquire,
        after_in_parent=_importing.release,
        after_in_child=_importing.release,
    )

#: What a step hands out: the part that writes, after all that may fail.
Launch = Callable[[], None]


def check_dimensions(rule: Rule, graph: Graph, weight: Tensor, name: Callable[[], str]) -> None:
    """Raise unless the rule can update weights of so many dimensions.

    Raises:
        ValueError: names the weight, and says what the rule takes.
    """
    for node in graph.gathered:
        wanted = node.value.dimensions if node.operation == "opaque" else None
        if wanted not in (None, weight.dim()):
            raise ValueError(
                f"{rule.name} calls {node.value.name}, which takes weights of {wanted} "
                f"dimensions, and {name()} has {weight.dim()}. Give it to another rule, as "
                "gradstep.partition does."
            )
    if graph.needs_matrix and not is_matrix(weight):
        raise ValueError(
            f"{rule.name} works along rows and columns, and {name()} has {weight.dim()} "
            "dimension(s). Give it to another rule."
        )


def _bind(kernel: Any, of: Sequence[Any], weights: Sequence[Tensor]) -> Any:
    with _importing:
        from gradstep.engine.binding import Binding
    return Binding(kernel, of, weights)


class Plan:
    """How one group's tensors are updated.

    ``programs`` are the rule's for weights with rows and columns (True) and without (False): the
    same one, unless the rule tells them apart.

    :meth:`anew` checks every tensor with care and remembers; :meth:`again` takes the same tensors'
    next gradients after a quick look. Both only read: what they return does the writing. What is
    remembered holds no tensor.

    Attributes:
        engines: after :meth:`anew`, the engine of each update, in their order.
        rows: after :meth:`anew` with ``by_row``, the row of each update that a kernel makes.
    """

    def __init__(
        self,
        rule: Rule,
        programs: Mapping[bool, Program],
        engine: str,
    ) -> None:
        self.rule = rule
        self.programs = programs
        self.engine = engine
        any_of_them = next(iter(programs.values()))
        self.number_names = any_of_them.names
        self.maximize = any_of_them.maximize
        self.differentiable = any_of_them.differentiable
        self.engines: list[str] = []
        self.rows: dict[int, Any] = {}
        self._fused: list[tuple[list[int], Any]] = []
        self._compiled: dict[int, Any] = {}

    def pick(self, rows: Sequence[Any], weights: Sequence[Tensor]) -> None:
        """Plan for weights that were all checked, if not together: those of another mask.

        :meth:`again` then looks at each.

        Args:
            rows: one a weight, from an earlier plan's ``rows``.
            weights: the weights.
        """
        by_kind: dict[Any, list[int]] = {}
        for i, row in enumerate(rows):
            by_kind.setdefault(row.kind, []).append(i)
        self._fused = []
        for ours in by_kind.values():
            own = [rows[i] for i in ours]
            self._fused.append((ours, _bind(own[0].kernel, own, [weights[i] for i in ours])))

    def again(
        self,
        weights: Sequence[Tensor],
        gradients: Sequence[Tensor],
        entries: Sequence[Mapping[str, Any]],
        values: Sequence[float],
    ) -> list[Launch] | None:
        """The step for the weights of the last :meth:`anew`; None if it must be planned anew.

        Args:
            weights: the parameters.
            gradients: one a weight.
            entries: one mapping a weight that holds its states, and its step count, by name.
            values: lr and the numeric hyperparameters, in the order of ``number_names``.
        """
        if not self._fused or is_recorded():
            return None
        launches: list[Launch] = []
        for positions, binding in self._fused:
            if len(self._fused) == 1:
                accepted = binding.accepts(weights, gradients, entries)
            else:
                accepted = binding.accepts(
                    [weights[i] for i in positions],
                    [gradients[i] for i in positions],
                    [entries[i] for i in positions],
                )
            if not accepted:
                return None
            launches.append(binding.prepare(values))
        return launches

    def anew(
        self,
        updates: Sequence[Update],
        values: Sequence[float],
        numbers: Mapping[str, Any],
        entries: Sequence[dict[str, Any]],
        said: set[str],
        by_row: bool = False,
    ) -> list[Launch]:
        """Check everything, choose an engine for each weight, and return what makes the step.

        Args:
            updates: one a weight.
            values: lr and the numeric hyperparameters as floats, in the order of ``number_names``.
            numbers: lr and every hyperparameter by name, as given: tensors where they are.
            entries: the states' own mappings, written by a differentiable step only.
            said: reasons for eager steps that have been logged; added to.
            by_row: also remember each weight by itself, for other masks.

        Raises:
            TypeError, ValueError, RuntimeError: tensors that do not belong together, each naming
                its parameter. Nothing has been changed then.
        """
        for update in updates:
            check(update)
            self._check_rule(update)
            if self.rule.sparse == "only" and not update.gradient.is_sparse:
                raise RuntimeError(
                    f"{self.rule.name} does not support dense gradients, and {update.name()} has "
                    "one; please consider Adam instead"
                )
        self.engines, ways = self._choose(updates, said)
        chosen: dict[str, list[int]] = {}
        for i, name in enumerate(self.engines):
            chosen.setdefault(name, []).append(i)

        launches: list[Launch] = []
        self._fused, self.rows = [], {}
        if "fused" in chosen:
            launches += self._launch_fused(updates, chosen["fused"], values, by_row)
            if len(chosen) > 1:
                self._fused = []  # the others need a look with care at every step
        if "compile" in chosen:
            from gradstep.engine.compiled import CompiledPart

            for graph in dict.fromkeys(self._graph_of(updates[i]) for i in chosen["compile"]):
                if id(graph) not in self._compiled:
                    self._compiled[id(graph)] = CompiledPart(graph, self.number_names)
                ours = [updates[i] for i in chosen["compile"]]
                ours = [u for u in ours if self._graph_of(u) is graph]
                launches.append(self._compiled[id(graph)].launch(ours, values))
        for i in chosen.get("eager", ()):
            self._try_out(updates[i], numbers, ways[i])
            launches.append(self._eager_launch(updates[i], numbers, entries[i], ways[i]))
        return launches

    def _graph_of(self, update: Update) -> Graph:
        return self._program_of(update).graph

    def _program_of(self, update: Update) -> Program:
        return self.programs[is_matrix(update.weight)]

    def _check_rule(self, update: Update) -> None:
        """Raise unless the rule can update such a weight at all."""
        graph, weight = self._graph_of(update), update.weight
        if graph.is_elementwise and not graph.shared:
            return
        if weight.is_complex() and not graph.is_elementwise:
            name = self.rule.name[:1].upper() + self.rule.name[1:]
            raise RuntimeError(
                f"{name} does not support complex parameters, and {update.name()} is one: it looks "
                "beyond single elements. Give it to a rule that works on each element alone, such "
                "as adam."
            )
        check_dimensions(self.rule, graph, weight, update.name)
        step = update.numbers.get("step")
        if self.differentiable and step is not None and step.requires_grad:
            raise RuntimeError(
                f"`requires_grad` is not supported for `step` of {update.name()} in differentiable "
                "mode"
            )
        if self.differentiable and graph.sums_over_all:
            raise RuntimeError(
                f"`differentiable` is not supported by {self.rule.name}, which sums over all "
                f"parameters, {update.name()} among them. Set differentiable=False."
            )

    def _eager_launch(
        self, update: Update, numbers: Mapping[str, Any], entry: dict[str, Any], way: str | None
    ) -> Launch:
        graph, maximize = self._graph_of(update), self.maximize
        if graph.sums_over_all:
            return EagerRounds(graph, update, numbers)
        # What a function of the user's raises is left as it is.
        own = graph.calls_opaque

        def launch() -> None:
            with contextlib.nullcontext() if own else naming(self.rule.name, update):
                if self.differentiable:
                    eager.run_differentiable(self.rule, update, numbers, maximize, entry)
                else:
                    eager.run(self.rule, update, numbers, maximize, way)

        return launch

    def _try_out(self, update: Update, numbers: Mapping[str, Any], way: str | None) -> None:
        """Raise unless torch can make such a step: once for each kind of unusual weight.

        A rule that calls opaque functions is not tried out: they are called once a step.

        Raises:
            RuntimeError, NotImplementedError, TypeError: as torch raised, with the weight's name.
        """
        graph, weight = self._graph_of(update), update.weight
        if is_usual(update) or graph.calls_opaque or is_sharded(weight) or is_recorded():
            return
        about = (type(weight), weight.dtype, weight.device, weight.layout, type(update.gradient))
        kind = ("tried", *about, way)
        kept = self._program_of(update).kept
        if kind in kept:
            return
        with naming(self.rule.name, update):
            copied = copy_of(update)
            if graph.sums_over_all:
                EagerRounds(graph, copied, numbers)()
            else:
                eager.run(self.rule, copied, numbers, self.maximize, way)
        kept[kind] = True

    def _choose(
        self, updates: Sequence[Update], said: set[str]
    ) -> tuple[list[str], dict[int, str | None]]:
        engines: list[str] = []
        ways: dict[int, str | None] = {}
        for i, update in enumerate(updates):
            ways[i] = None
            if update.gradient.is_sparse:
                ways[i] = eager.sparse_way(self.rule, self._graph_of(update), update)
            engines.append("eager" if self.differentiable else self.engine)
            graph = self._graph_of(update)
            if engines[i] == "compile" and graph.calls_opaque:
                engines[i] = "eager"
                self._say(update, "its rule calls a function that is not traced", said)
            if engines[i] == "compile" and graph.sums_over_all:
                engines[i] = "eager"
                self._say(update, "its rule sums over all parameters", said)
            unlike = update.gradient.dtype != update.weight.dtype
            if engines[i] == "compile" and unlike:
                engines[i] = "eager"
                self._say(update, f"its gradient is {update.gradient.dtype}", said)
            if engines[i] in ("eager", "compile"):
                if ways[i] is not None:
                    engines[i] = "eager"
                continue
            reason = unfit(update)
            if reason is None and not graph.is_elementwise:
                reason = unfit_whole(update, graph)
            if reason is None:
                engines[i] = "fused"
                continue
            plain = type(update.weight) in (Tensor, torch.nn.Parameter) and ways[i] is None
            elsewhere = update.weight.device.type not in ("cpu", "meta")
            alone = not (graph.calls_opaque or graph.sums_over_all or unlike)
            if self.engine == "auto" and plain and elsewhere and alone:
                engines[i] = "compile"
                continue
            engines[i] = "eager"
            self._say(update, reason, said)
        fused = [i for i, name in enumerate(engines) if name == "fused"]
        if fused:
            for position in overlapping([updates[i] for i in fused]):
                # One after the other, as torch does it, or threads would race.
                engines[fused[position]] = "eager"
                self._say(updates[fused[position]], "it shares memory with another tensor", said)
        return engines, ways

    def _say(self, update: Update, reason: str, said: set[str]) -> None:
        if reason not in said:
            said.add(reason)
            _log.warning("%s is updated by the eager engine: %s", update.name(), reason)

    def _launch_fused(
        self,
        updates: Sequence[Update],
        positions: Sequence[int],
        values: Sequence[float],
        by_row: bool,
    ) -> list[Launch]:
        with _importing:
            from gradstep.engine.kernel import kernel_for
            from gradstep.engine.table import Row

        by_kind: dict[Any, list[int]] = {}
        for i in positions:
            update = updates[i]
            number_dtypes = tuple([t.dtype for t in update.numbers.values()])
            graph = self._graph_of(update)
            kind = (update.weight.dtype, number_dtypes, is_sharded(update.weight), id(graph))
            by_kind.setdefault(kind, []).append(i)
        launches: list[Launch] = []
        for kind, ours in by_kind.items():
            own = [updates[i] for i in ours]
            kernel = kernel_for(self._program_of(own[0]), own[0].weight.dtype)
            binding = _bind(kernel, own, [u.weight for u in own])
            launches.append(binding.prepare(values))
            self._fused.append((ours, binding))
            if by_row and not binding.sharded:
                self.rows.update((i, Row(kernel, kind, updates[i])) for i in ours)
        return launches
