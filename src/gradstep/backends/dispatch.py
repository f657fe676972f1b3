"""Which backend updates which tensor of a group: one loop over an ordered list."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from gradstep.backends.base import Backend, Binding, Run, Values
from gradstep.backends.cpu import Cpu
from gradstep.backends.cuda import Cuda
from gradstep.backends.eager import Eager
from gradstep.backends.eligibility import is_recorded, overlapping
from gradstep.backends.inductor import Inductor
from gradstep.backends.update import AlikeUpdates, Update, check, is_matrix
from gradstep.program.program import Program
from gradstep.program.registration import checked_name
from gradstep.rule.definition import Rule
from gradstep.rule.graph import Graph

_EAGER, _CPU, _CUDA = Eager(), Cpu(), Cuda()

#: What ``engine=`` names: backends, of which the first takes a weight that does not refuse it. The
#: last refuses none.
_engines: dict[str, tuple[Backend, ...]] = {
    "auto": (_CPU, _CUDA, Inductor(elsewhere=True), _EAGER),
    "eager": (_EAGER,),
    "fused": (_CPU, _EAGER),
    "compile": (Inductor(), _EAGER),
    "cuda": (_CUDA, _EAGER),
}
_OURS = tuple(_engines)

_log = logging.getLogger("gradstep")


def engines() -> tuple[str, ...]:
    """The names that ``engine=`` takes."""
    return tuple(_engines)


def register(backend: Backend) -> None:
    """Let ``engine="its name"`` choose a backend from outside the package.

    What it refuses is updated eagerly, and the reason logged. Registered again, the new one takes
    the place of the one of that name.

    Raises:
        TypeError: no :class:`gradstep.backends.Backend`.
        ValueError: a name that is taken, or none.
    """
    name = checked_name(
        backend, Backend, "gradstep.backends.Backend", "engine=", _OURS, "names an engine"
    )
    _engines[name] = (backend, _EAGER)


def check_engine(name: Any) -> None:
    """Raise unless ``engine=`` takes this.

    Raises:
        ValueError: says which there are.
    """
    if name not in _engines:
        raise ValueError(f"Invalid engine: {name!r}; choose one of {', '.join(_engines)}")


def check_dimensions(rule: Rule, graph: Graph, weight: Tensor, name: Callable[[], str]) -> None:
    """Raise unless the rule can update weights of so many dimensions.

    Raises:
        ValueError: names the weight, and says what the rule takes.
    """
    for node in graph.gathered:
        if node.operation != "opaque":
            continue
        refusal = node.value.refusal(weight.shape)
        if refusal is not None:
            wanted = node.value.dimensions
            takes = "" if wanted is None else f", which takes weights of {wanted} dimensions"
            raise ValueError(f"{rule.name} calls {node.value.name}{takes}, and {name()} {refusal}.")
    if graph.needs_matrix and not is_matrix(weight):
        raise ValueError(
            f"{rule.name} works along rows and columns, and {name()} has {weight.dim()} "
            "dimension(s). Give it to another rule."
        )


def _check_rule(program: Program, update: Update) -> None:
    """Raise unless the rule can update such a weight at all."""
    rule, graph, weight = program.rule, program.graph, update.weight
    if rule.sparse == "only" and not update.gradient.is_sparse:
        raise RuntimeError(
            f"{rule.name} does not support dense gradients, and {update.name()} has one; please "
            "consider Adam instead"
        )
    if program.differentiable and update.weight_format is not None:
        raise RuntimeError(
            f"`differentiable` is not supported with low_precision={rule.low_precision!r}, with "
            f"which {update.name()} is kept. Set differentiable=False."
        )
    if graph.is_elementwise and not graph.shared:
        return
    if weight.is_complex() and not graph.is_elementwise:
        name = rule.name[:1].upper() + rule.name[1:]
        raise RuntimeError(
            f"{name} does not support complex parameters, and {update.name()} is one: it looks "
            "beyond single elements. Give it to a rule that works on each element alone, such as "
            "adam."
        )
    check_dimensions(rule, graph, weight, update.name)
    step = update.numbers.get("step")
    if program.differentiable and step is not None and step.requires_grad:
        raise RuntimeError(
            f"`requires_grad` is not supported for `step` of {update.name()} in differentiable mode"
        )
    if program.differentiable and graph.sums_over_all:
        raise RuntimeError(
            f"`differentiable` is not supported by {rule.name}, which sums over all parameters, "
            f"{update.name()} among them. Set differentiable=False."
        )


def takes_plain(engine: str, programs: Mapping[bool, Program]) -> Backend | None:
    """The backend that takes any plain weight of these programs without a further look, if any."""
    first = _engines[engine][0]
    taken = all(first.takes_plain(program) for program in programs.values())
    return first if taken and not is_recorded() else None


class Plan:
    """How one group's tensors are updated.

    ``programs`` are the rule's for weights with rows and columns (True) and without (False): the
    same one, unless the rule tells them apart.

    :meth:`anew` checks every tensor with care and remembers; :meth:`again` takes the same tensors'
    next gradients after a quick look. Both only read: what they return does the writing.

    Attributes:
        backends: after :meth:`anew`, the backend of each update, in their order.
        rows: after :meth:`anew` with ``by_row``, what bindings know of updates by themselves.
    """

    def __init__(self, programs: Mapping[bool, Program], engine: str) -> None:
        self.programs = programs
        self.engine = engine
        self.backends: list[Backend] = []
        self.rows: dict[int, Any] = {}
        self._bound: list[tuple[list[int], Binding]] = []

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
        self._bound = []
        for ours in by_kind.values():
            own = [rows[i] for i in ours]
            self._bound.append((ours, own[0].bind(own, [weights[i] for i in ours])))

    def again(
        self,
        weights: Sequence[Tensor],
        gradients: Sequence[Tensor],
        entries: Sequence[Mapping[str, Any]],
        values: Values,
    ) -> list[Run] | None:
        """The step for the weights of the last :meth:`anew`; None if it must be planned anew.

        Args:
            weights: the parameters.
            gradients: one a weight.
            entries: one mapping a weight that holds its states, and its step count, by name.
            values: the numbers of the step.
        """
        bound = self._bound
        if not bound or is_recorded():
            return None
        runs: list[Run] = []
        for positions, binding in bound:
            if len(bound) == 1:
                accepted = binding.accepts(weights, gradients, entries)
            else:
                accepted = binding.accepts(
                    [weights[i] for i in positions],
                    [gradients[i] for i in positions],
                    [entries[i] for i in positions],
                )
            if not accepted:
                return None
            runs.append(binding.prepare(values))
        return runs

    def anew(
        self,
        updates: Sequence[Update],
        values: Values,
        said: set[str],
        by_row: bool = False,
        plain: bool = False,
    ) -> list[Run]:
        """Check everything, choose a backend for each weight, and return what makes the step.

        Args:
            updates: one a weight.
            values: the numbers of the step.
            said: reasons for eager steps that have been logged; added to.
            by_row: also remember each weight by itself, for other masks.
            plain: :func:`gradstep.optimizer.preparing.are_plain` has said so of all.

        Raises:
            TypeError, ValueError, RuntimeError: tensors that do not belong together, each naming
                its parameter. Nothing has been changed then.
        """
        takes_all = takes_plain(self.engine, self.programs) if plain else None
        refusals: dict[int, str] = {}
        one = takes_all is not None and self._are_of_one(updates)
        if not one:
            updates = list(updates)
        if takes_all is not None:
            self.backends = [takes_all] * len(updates)
        else:
            for update in updates:
                check(update)
                _check_rule(self._program_of(update), update)
            self.backends, refusals = self._choose(updates)
        by_kind: dict[Any, list[int]] = {}
        if one:
            by_kind[self._kind(updates[0], self.backends[0])] = list(range(len(updates)))
        else:
            for i, (update, backend) in enumerate(zip(updates, self.backends, strict=True)):
                by_kind.setdefault(self._kind(update, backend), []).append(i)
        runs: list[Run] = []
        # Kept when all is bound: where the second refuses, the first alone is no plan.
        self._bound, self.rows = [], {}
        bound: list[tuple[list[int], Binding]] = []
        rows: dict[int, Any] = {}
        order = {backend: place for place, backend in enumerate(_engines[self.engine])}
        for kind in sorted(by_kind, key=lambda kind: order[kind[0]]):
            positions, backend = by_kind[kind], kind[0]
            own = updates if len(by_kind) == 1 else [updates[i] for i in positions]
            binding = backend.bind(self._program_of(own[0]), own)
            runs.append(binding.prepare(values))
            bound.append((positions, binding))
            if by_row:
                rows.update(zip(positions, binding.rows(kind, own), strict=False))
        self.rows = rows
        if all(binding.lasts for _, binding in bound):  # else some need care at every step
            self._bound = bound
        for i, reason in refusals.items():
            if reason not in said:
                said.add(reason)
                by = "the eager engine" if self.backends[i] is _EAGER else self.backends[i].name
                _log.warning("%s is updated by %s: %s", updates[i].name(), by, reason)
        return runs

    def _are_of_one(self, updates: Sequence[Update]) -> bool:
        """Whether one look tells the program and kind of all, which a backend takes as plain."""
        if not isinstance(updates, AlikeUpdates):
            return False
        one = len(set(map(id, self.programs.values()))) == 1
        return one or len(updates.kinds) == 1

    def _kind(self, update: Update, backend: Backend) -> tuple[Any, ...]:
        """Updates of equal kinds are bound together."""
        program = self._program_of(update)
        return backend, id(program), backend.kind(update, program)

    def _program_of(self, update: Update) -> Program:
        return self.programs[is_matrix(update.weight)]

    def _choose(self, updates: Sequence[Update]) -> tuple[list[Backend], dict[int, str]]:
        """For each update a backend, and why it is no other, for those that it is to be said of.

        That is the refusal of the backend that is made for the weight's device; or the first, of
        those that are left to the last.
        """
        chosen: list[Backend] = []
        refusals: dict[int, str] = {}
        of_own: set[int] = set()
        for i, update in enumerate(updates):
            program = self._program_of(update)
            # Only torch's own operations are seen by autograd.
            backends = (_EAGER,) if program.differentiable else _engines[self.engine]
            for backend in backends:
                reason = backend.refusal(update, program)
                if reason is None:
                    break
                if update.weight.device.type in backend.device_types:
                    of_own.add(i)
                    refusals[i] = reason
                refusals.setdefault(i, reason)
            if backend is not _EAGER and i not in of_own:
                refusals.pop(i, None)
            chosen.append(backend)
        at_once = [i for i, backend in enumerate(chosen) if backend.at_once]
        for position in overlapping([updates[i] for i in at_once]):
            # One after the other, as torch does it, or threads would race.
            i = at_once[position]
            chosen[i], refusals[i] = _EAGER, "it shares memory with another tensor"
        return chosen, refusals
