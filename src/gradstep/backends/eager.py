"""Run a rule as it is written, on one tensor at a time, with torch's own operations.

Works on every device and tensor subclass, is differentiable, and takes sparse gradients where the
rule allows it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor

from gradstep.backends.base import Backend, Binding, Run, Values
from gradstep.backends.eager_rounds import EagerRounds
from gradstep.backends.eligibility import is_recorded
from gradstep.backends.owners import goes_to_owner, mesh_of
from gradstep.backends.unusual import copy_of, is_usual, naming
from gradstep.backends.update import (
    Update,
    decoded,
    encoded,
    in_pairs,
    is_matrix,
    kept_weight,
    number_eps,
    unaliased,
    wide_weight,
    working_dtype,
)
from gradstep.program.program import Program
from gradstep.program.shards import is_sharded
from gradstep.rule.definition import Rule
from gradstep.rule.graph import Graph, Node, in_order
from gradstep.rule.operations import is_followed
from gradstep.rule.value import NewWeight


class Eager(Backend):
    """The rule as it is written, weight by weight. It refuses nothing."""

    name = "eager"
    at_once = False

    def refusal(self, update: Update, program: Program) -> str | None:
        return None

    def kind(self, update: Update, program: Program) -> Hashable:
        return id(update)  # each by itself

    def bind(self, program: Program, updates: Sequence[Update]) -> Binding:
        (update,) = updates
        return _Bound(program, update)


class _Bound(Binding):
    """One weight; it holds its tensors, and is not kept."""

    def __init__(self, program: Program, update: Update) -> None:
        self._program = program
        self._update = update
        self._way: str | None = None
        if update.gradient.is_sparse:
            self._way = sparse_way(program.rule, program.graph, update)
            if self._way == "rows":
                _check_rows(update)
            elif update.weight_format is not None:
                self._way = "dense"  # only whole weights are written so

    def prepare(self, values: Values) -> Run:
        self._try_out(values)
        program, update, way, given = self._program, self._update, self._way, values.given
        if program.graph.sums_over_all or waits_for_owners(program, update):
            return EagerRounds(program.contracted, program.passes, update, given)
        # What a function of the user's raises is left as it is.
        own = program.graph.calls_opaque

        def make_step() -> None:
            with contextlib.nullcontext() if own else naming(program.rule.name, update):
                if program.differentiable:
                    run_differentiable(program.rule, update, given, program.maximize)
                else:
                    run(program.rule, update, given, program.maximize, way)

        return make_step

    def _try_out(self, values: Values) -> None:
        """Raise unless torch can make such a step: once for each kind of unusual weight.

        A rule that calls opaque functions is not tried out: they are called once a step.

        Raises:
            RuntimeError, NotImplementedError, TypeError: as torch raised, with the weight's name.
        """
        program, update = self._program, self._update
        weight = update.weight
        if is_usual(update) or program.graph.calls_opaque or is_sharded(weight) or is_recorded():
            return
        about = (type(weight), weight.dtype, weight.device, weight.layout, type(update.gradient))
        kind = (*about, self._way)
        if kind in program.tried:
            return
        with naming(program.rule.name, update):
            copied = copy_of(update)
            if program.graph.sums_over_all:
                EagerRounds(program.contracted, program.passes, copied, values.given)()
            else:
                run(program.rule, copied, values.given, program.maximize, self._way)
        program.tried.add(kind)


def waits_for_owners(program: Program, update: Update) -> bool:
    """Whether a weight's work is shared with other processes, by functions of all of it."""
    if program.differentiable or update.gradient.is_sparse or mesh_of(update.weight) is None:
        return False
    graph = program.graph
    if is_sharded(update.weight):
        return graph.calls_opaque
    return any(n.operation == "opaque" and goes_to_owner(n) for n in graph.order)


def sparse_way(rule: Rule, graph: Graph, update: Update) -> str:
    """How the rule takes a sparse gradient: ``"rows"``, ``"sparse"`` as it is, or made ``"dense"``.

    Raises:
        RuntimeError: the rule is not linear in the gradient and says nothing of rows.
    """
    # A node's == makes another node, so `in` will not do.
    decays = graph.direction is None or any(
        node is graph.weight for node in in_order([graph.direction])
    )
    if rule.sparse is not None:
        if decays:
            raise RuntimeError(
                f"weight_decay is not compatible with sparse gradients, and {update.name()} has "
                "one: rows without a gradient would have to decay too. Set weight_decay=0."
            )
        return "rows"
    if not is_linear(graph):
        raise RuntimeError(
            f"{rule.name} does not support sparse gradients, and {update.name()} has one. Use "
            "SGD or Adagrad, or build the module with sparse=False."
        )
    return "dense" if decays or update.states else "sparse"


def _check_rows(update: Update) -> None:
    """Raise where the states of some rows alone cannot be written."""
    for state, format in update.formats.items():
        if len(format.suffixes) > 1:
            raise RuntimeError(
                f"{update.name()} has a sparse gradient, which asks for some rows of its states, "
                f"and {state} is stored as {format.name}, of which rows cannot be written alone. "
                "Leave that format out, or build the module with sparse=False."
            )


def is_linear(graph: Graph) -> bool:
    """Whether direction and states are linear in the gradient, and need nothing of its square."""
    kinds: dict[int, str] = {}
    for node in graph.order:
        kinds[id(node)] = _kind(node, graph, [kinds[id(a)] for a in node.arguments])
    return all(kinds[id(node)] != "other" for node in graph.outputs())


def _kind(node: Node, graph: Graph, kinds: list[str]) -> str:
    """``"linear"`` in the gradient, ``"free"`` of it, or ``"other"``."""
    if node is graph.gradient:
        return "linear"
    if "other" in kinds:
        return "other"
    if "linear" not in kinds:
        return "free"
    if node.operation in ("add", "sub", "neg"):
        return "linear"
    if node.operation == "mul":
        return "linear" if kinds.count("linear") == 1 else "other"
    if node.operation == "div":
        return "linear" if kinds[1] == "free" else "other"
    if node.operation == "where":
        return "linear" if kinds[0] == "free" else "other"
    if node.operation == "lerp":
        return "linear" if kinds[2] == "free" else "other"
    return "other"


@dataclass
class _Outcome:
    """What one weight's step leads to, before any of it is written.

    Attributes:
        weight: the new weight, or its rows, of complex ones as pairs; None where nothing is.
        states: the same of the states.
        numbers: what states of one number become, the step count included.
        rows: which rows they are of; all, if ``...``.
        change: what is added to the weight in its place, for sparse steps.
    """

    weight: Tensor | None
    states: Mapping[str, Tensor]
    numbers: Mapping[str, float]
    rows: Any = ...
    change: tuple[Tensor, float] | None = None


def run(
    rule: Rule,
    update: Update,
    numbers: Mapping[str, Any],
    maximize: bool,
    sparse: str | None = None,
) -> None:
    """Make one weight's step.

    Args:
        rule: the rule.
        update: the weight, its gradient and states.
        numbers: lr and every hyperparameter, by name.
        maximize: turn the gradient's sign first.
        sparse: for a sparse gradient, the answer of :func:`sparse_way`.
    """
    with torch.no_grad():
        _write(update, _work_out(rule, update, numbers, maximize, sparse))


def _work_out(
    rule: Rule,
    update: Update,
    numbers: Mapping[str, Any],
    maximize: bool,
    sparse: str | None = None,
) -> _Outcome:
    """What :func:`run` writes; takes the same."""
    weight, gradient, states = wide_weight(update), update.gradient, update.states
    if gradient.is_sparse and numbers.get("grad_scale", 1.0) != 1.0:
        gradient = gradient * (1 / float(numbers["grad_scale"]))
    if sparse == "sparse":
        inputs = {**numbers, "w": weight, "first": update.first, "step": _next_step(update)}
        inputs["machine_epsilon"] = number_eps(update)
        inputs["is_matrix"] = is_matrix(update.weight)
        direction, _ = rule.run(-gradient if maximize else gradient, {}, inputs)
        change = direction, -float(inputs["lr"])
        return _Outcome(None, {}, _numbers_after(update, {}), change=change)
    rows: Any = ...
    if sparse == "rows":
        gradient = gradient.coalesce()
        rows, gradient = tuple(gradient.indices()), gradient.values()
        weight, states = weight[rows], {n: s[rows] for n, s in states.items()}
    elif sparse == "dense":
        gradient = gradient.to_dense()
    real_states = {n: in_pairs(s) for n, s in states.items()}
    new_weight, new_states = _evaluate(
        rule, in_pairs(weight), in_pairs(gradient), real_states, update, numbers, maximize
    )
    after = _numbers_after(update, new_states)
    if not weight.numel():  # of nothing, a mean is not a number: the kernels leave the states too
        return _Outcome(None, {}, after)
    converted = encoded(unaliased(new_states, real_states), real_states, update.formats)
    if any(new_weight is state for state in real_states.values()):
        new_weight = new_weight.clone()
    kept, beside = kept_weight(update, new_weight, _next_step(update), rows)
    return _Outcome(kept, {**converted, **beside}, after, rows)


def _write(update: Update, outcome: _Outcome) -> None:
    for name, state in outcome.states.items():
        in_pairs(update.states[name])[outcome.rows] = state
    if outcome.change is not None:
        update.weight.add_(outcome.change[0], alpha=outcome.change[1])
    if outcome.weight is not None:
        in_pairs(update.weight)[outcome.rows] = outcome.weight
    for name, number in outcome.numbers.items():
        update.numbers[name].fill_(number)


def run_differentiable(
    rule: Rule, update: Update, numbers: Mapping[str, Any], maximize: bool
) -> None:
    """The same, with the step itself in autograd's graph.

    New states replace the old ones in ``update.entry``, since autograd still needs the old ones.
    """
    # The copy is what autograd keeps: the weight itself is written below.
    weight = in_pairs(update.weight.clone())
    states = {n: in_pairs(s.clone()) for n, s in update.states.items()}
    new_weight, new_states = _evaluate(
        rule, weight, in_pairs(update.gradient), states, update, numbers, maximize
    )
    new = encoded(new_states, states, update.formats)
    made = {name: _like(new[name], old) for name, old in update.states.items()}
    followed = [n for n, old in update.numbers.items() if is_followed(old, new_states.get(n))]
    for name in followed:
        old = update.numbers[name]
        number = torch.as_tensor(new_states[name], dtype=old.dtype, device=old.device)
        made[name] = number.reshape(old.shape)
    after = _numbers_after(update, new_states, followed)
    in_pairs(update.weight).copy_(new_weight)
    update.entry.update(made)
    with torch.no_grad():
        for name, value in after.items():
            update.numbers[name].fill_(value)


def _evaluate(
    rule: Rule,
    weight: Tensor,
    gradient: Tensor,
    states: Mapping[str, Tensor],
    update: Update,
    numbers: Mapping[str, Any],
    maximize: bool,
) -> tuple[Tensor, dict[str, Any]]:
    weight = weight.to(working_dtype(weight))
    states = decoded(states, update.formats, weight.dtype, weight.shape)
    gradient = gradient.to(weight.dtype)
    # Python refuses 1/0 between numbers, and makes a complex one of (-1) ** 0.5. NumPy's float64
    # answers as IEEE says, as the kernels' numbers do; torch.compile, though, cannot follow it.
    kind = float if torch.compiler.is_compiling() else numpy.float64
    inputs = {n: kind(v) if type(v) is float else v for n, v in numbers.items()}
    inputs |= {"w": weight, "first": update.first, "step": kind(_next_step(update))}
    inputs["machine_epsilon"] = kind(number_eps(update))
    inputs["is_matrix"] = is_matrix(update.weight)
    own = {
        n: t if is_followed(t) else kind(t.detach())
        for n, t in update.numbers.items()
        if n != "step"
    }
    scale = float(numbers.get("grad_scale", 1.0))
    if scale != 1.0 and not update.gradient.is_sparse:
        gradient = gradient * (1 / scale)
    gradient = -gradient if maximize else gradient
    if kind is float:
        direction, new_states = rule.run(gradient, {**states, **own}, inputs)
    else:
        with numpy.errstate(all="ignore"):
            direction, new_states = rule.run(gradient, {**states, **own}, inputs)
    return _move(weight, direction, inputs["lr"]), new_states


def _next_step(update: Update) -> float:
    """The count of the step that is being made."""
    return float(update.numbers["step"]) + 1.0 if "step" in update.numbers else 1.0


def _numbers_after(
    update: Update, new_states: Mapping[str, Any], besides: Collection[str] = ()
) -> dict[str, float]:
    """What the states of one number become, but for those besides."""
    names = [name for name in update.numbers if name not in besides]
    return {n: _next_step(update) if n == "step" else float(new_states[n]) for n in names}


def _move(weight: Tensor, direction: Any, lr: Any) -> Tensor:
    moved: Tensor
    if isinstance(direction, NewWeight):
        moved = direction.weight
        return moved
    if isinstance(lr, Tensor) and lr.requires_grad:
        moved = weight - lr * direction
        return moved
    # One rounding, as torch's own SGD.
    return torch.add(weight, direction, alpha=-float(lr))


def _like(value: Tensor, old: Tensor) -> Tensor:
    return torch.view_as_complex(value) if old.is_complex() else value
