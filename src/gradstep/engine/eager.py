"""Run a rule as it is written, on one tensor at a time, with torch's own operations.

Works on every device and tensor subclass, is differentiable, and takes sparse gradients where the
rule allows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy
import torch
from torch import Tensor

from gradstep.engine.update import Update
from gradstep.rule.definition import Rule
from gradstep.rule.graph import Graph, Node, in_order
from gradstep.rule.language import NewWeight


def sparse_way(rule: Rule, graph: Graph, update: Update) -> str:
    """How the rule takes a sparse gradient: ``"rows"``, ``"sparse"`` as it is, or made ``"dense"``.

    Raises:
        RuntimeError: the rule is not linear in the gradient and says nothing of rows.
    """
    decays = graph.direction is None or graph.weight in in_order([graph.direction])
    if rule.sparse == "rows":
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
        if update.step is not None:
            update.step += 1
        weight, gradient, states = update.weight, update.gradient, update.states
        if sparse == "sparse":
            inputs = {**numbers, "w": weight, "first": update.first, "step": 0.0}
            direction, _ = rule.run(-gradient if maximize else gradient, {}, inputs)
            weight.add_(direction, alpha=-float(inputs["lr"]))
            return
        rows: Any = ...
        if sparse == "rows":
            gradient = gradient.coalesce()
            rows, gradient = tuple(gradient.indices()), gradient.values()
            weight, states = weight[rows], {n: s[rows] for n, s in states.items()}
        elif sparse == "dense":
            gradient = gradient.to_dense()
        real_states = {n: _real(s) for n, s in states.items()}
        new_weight, new_states = _evaluate(
            rule, _real(weight), _real(gradient), real_states, update, numbers, maximize
        )
        for name, value in new_states.items():
            _real(update.states[name])[rows] = value.to(real_states[name].dtype)
        _real(update.weight)[rows] = new_weight.to(_real(weight).dtype)


def run_differentiable(
    rule: Rule, update: Update, numbers: Mapping[str, Any], maximize: bool, entry: dict[str, Any]
) -> None:
    """The same, with the step itself in autograd's graph.

    New states replace the old ones in ``entry``, since autograd still needs the old ones.
    """
    if update.step is not None:
        if update.step.requires_grad:
            raise RuntimeError(
                f"`requires_grad` is not supported for `step` of {update.name()} in "
                "differentiable mode"
            )
        with torch.no_grad():
            update.step += 1
    # The copy is what autograd keeps: the weight itself is written below.
    weight = _real(update.weight.clone())
    states = {n: _real(s.clone()) for n, s in update.states.items()}
    new_weight, new_states = _evaluate(
        rule, weight, _real(update.gradient), states, update, numbers, maximize
    )
    for name, value in new_states.items():
        old = update.states[name]
        entry[name] = _like(value.to(old.real.dtype if old.is_complex() else old.dtype), old)
    _real(update.weight).copy_(new_weight)


def _evaluate(
    rule: Rule,
    weight: Tensor,
    gradient: Tensor,
    states: Mapping[str, Tensor],
    update: Update,
    numbers: Mapping[str, Any],
    maximize: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    narrow = weight.dtype in (torch.bfloat16, torch.float16)
    if narrow:  # worked out in float32, as the kernels do
        weight, gradient = weight.float(), gradient.float()
        states = {n: s.float() for n, s in states.items()}
    inputs = {**numbers, "w": weight, "first": update.first}
    inputs["step"] = 0.0 if update.step is None else update.step.item()
    gradient = -gradient if maximize else gradient
    try:
        direction, new_states = rule.run(gradient, states, inputs)
    except ArithmeticError:  # Python refuses 1/0 between numbers; IEEE has inf and nan
        ieee = {n: numpy.float64(v) if type(v) is float else v for n, v in inputs.items()}
        with numpy.errstate(all="ignore"):
            direction, new_states = rule.run(gradient, states, ieee)
    return _move(weight, direction, inputs["lr"]), new_states


def _move(weight: Tensor, direction: Any, lr: Any) -> Tensor:
    if isinstance(direction, NewWeight):
        return direction.weight
    if isinstance(lr, Tensor) and lr.requires_grad:
        return weight - lr * direction
    # One rounding, as torch's own SGD.
    return torch.add(weight, direction, alpha=-float(lr))


def _real(tensor: Tensor) -> Tensor:
    # autograd hands out gradients that are lazy conjugates; what is written is never one.
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _like(value: Tensor, old: Tensor) -> Tensor:
    return torch.view_as_complex(value) if old.is_complex() else value
