"""A rule as two pure functions, of states and of a step: for torch.func, vmap and torch.compile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gradstep.backends.eager_rounds import applied, called
from gradstep.backends.global_sums import exact_sum
from gradstep.backends.update import in_pairs, is_matrix, working_dtype
from gradstep.optimizer.optimizer import Optimizer
from gradstep.optimizer.states import Beginnings, shared_states
from gradstep.rule.contraction import contracted
from gradstep.rule.definition import Rule
from gradstep.rule.graph import Graph, Node, in_order
from gradstep.rule.hyperparameter import is_number
from gradstep.rule.reductions import facts_of
from gradstep.rule.schedule import Schedule
from gradstep.rule.trace import trace

#: The states of a parameter by name, with its own count of steps.
Entry = dict[str, Any]


def init(rule: Rule, params: Any, *, lr: float | None = None) -> Any:
    """The states before the first step; see :meth:`gradstep.Rule.init`."""
    _check(rule)
    leaves, structure = pytree.tree_flatten(params)
    values = {**rule.hyperparameters, "lr": rule.lr if lr is None else lr}
    shared = shared_states(rule, [], values, {})
    for number, p in enumerate(leaves):
        if not isinstance(p, Tensor) or not (p.is_floating_point() or p.is_complex()):
            raise TypeError(
                f"{rule.name}.init() takes floating-point and complex tensors; leaf {number} is "
                f"{f'{p.dtype}' if isinstance(p, Tensor) else repr(p)}"
            )
    weights = [p.detach() for p in leaves]
    beginnings = Beginnings(rule, {"params": weights}, values, shared)
    entries: list[Entry] = []
    for number, p in enumerate(weights):
        entry: Entry = {}
        beginnings.begin(p, entry, torch.zeros_like(p), lambda n=number: f"leaf {n}")  # type: ignore[misc]
        entry.setdefault("step", torch.zeros(()))
        entries.append({"step": entry.pop("step"), **entry})
        _graph(rule, values, False, is_matrix(p))  # torch.compile finds it there
    return pytree.tree_unflatten(entries, structure)


def update(
    rule: Rule,
    grads: Any,
    state: Any,
    params: Any,
    *,
    lr: Any = None,
    loss: Any = None,
    maximize: bool = False,
    engine: str = "auto",
    **hyperparameters: Any,
) -> tuple[Any, Any]:
    """A step; see :meth:`gradstep.Rule.update`."""
    _check(rule)
    weights, structure = pytree.tree_flatten(params)
    gradients = _alike(rule, "grads", grads, structure)
    entries = _alike(rule, "state", state, structure)
    unknown = [n for n in hyperparameters if n not in rule.hyperparameters]
    if unknown:
        raise TypeError(
            f"{rule.name} has no hyperparameter {unknown[0]!r}; it has: "
            f"{', '.join(rule.hyperparameters) or 'none'}"
        )
    values = {**rule.hyperparameters, **hyperparameters, "lr": rule.lr if lr is None else lr}
    if loss is not None:
        values["loss"] = loss
    elif "loss" in rule.inputs:
        raise TypeError(f"{rule.name}.update() needs the loss: update(…, loss=loss)")
    moving = [i for i, g in enumerate(gradients) if g is not None]
    given = [(weights[i], gradients[i], entries[i]) for i in moving]
    involved = [*values.values(), *(t for w, g, e in given for t in (w, g, *e.values()))]
    if any(map(_is_followed, involved)):
        moved = _by_operations(rule, given, values, maximize)
    else:
        moved = _by_engine(rule, given, values, maximize, engine)
    for i, (weight, entry) in zip(moving, moved, strict=True):
        weights[i], entries[i] = weight, entry
    shared = [n for n, s in rule.states.items() if s.shared]
    if shared and moving:  # those without a gradient take up the present value
        held = entries[moving[0]]
        together = {n: held[n] for n in shared if n in held}
        entries = [{**entry, **together} for entry in entries]
    return pytree.tree_unflatten(weights, structure), pytree.tree_unflatten(entries, structure)


def _check(rule: Rule) -> None:
    scheduled = [n for n, v in rule.hyperparameters.items() if isinstance(v, Schedule)]
    if scheduled:
        raise TypeError(
            f"{rule.name} has a schedule for {scheduled[0]}: the functional form takes numbers. "
            f"Give update(…, {scheduled[0]}=schedule(step)) that of each step"
        )


def _alike(rule: Rule, what: str, tree: Any, structure: Any) -> list[Any]:
    try:
        found: list[Any] = structure.flatten_up_to(tree)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{rule.name}.update(): {what} has another structure than params: {error}"
        ) from None
    return found


def _is_followed(value: Any) -> bool:
    """Whether what is done with a value is recorded, mapped or compiled."""
    if not isinstance(value, Tensor):
        return False
    if torch.compiler.is_compiling():
        return True
    recorded = value.requires_grad and torch.is_grad_enabled()
    return recorded or torch._C._functorch.is_functorch_wrapped_tensor(value)


# With an engine, on copies.


def _by_engine(
    rule: Rule,
    given: Sequence[tuple[Tensor, Tensor, Entry]],
    values: Mapping[str, Any],
    maximize: bool,
    engine: str,
) -> list[tuple[Tensor, Entry]]:
    """The step of an optimizer over copies, whose bits these are."""
    if not given:
        return []
    copies = [w.detach().clone() for w, _, _ in given]
    numbers = {n: v for n, v in values.items() if n != "loss"}
    # In the group, and not in the rule: optimizers of one rule share its kernels.
    optimizer = Optimizer([{"params": copies, **numbers}], rule, engine=engine, maximize=maximize)
    counts = rule.counts_steps
    for copied, (_, gradient, entry) in zip(copies, given, strict=True):
        own = {n: v for n, v in entry.items() if n != "step" or counts}
        # What begins with the first gradient begins in the optimizer.
        if float(entry["step"]) > 0 or not _begins_with_gradient(rule):
            optimizer.state[copied] = {
                n: v.detach().clone() if isinstance(v, Tensor) else v for n, v in own.items()
            }
        copied.grad = gradient.detach()
    loss = values.get("loss")
    optimizer.step(None if loss is None else lambda: loss)
    made = []
    for copied, (_, _, entry) in zip(copies, given, strict=True):
        held = dict(optimizer.state[copied])
        step = held.pop("step") if counts else entry["step"] + 1
        copied.grad = None
        made.append((copied, {"step": step, **held}))
    return made


def _begins_with_gradient(rule: Rule) -> bool:
    return "first" in rule.inputs or any(s.start == "gradient" for s in rule.states.values())


# By torch's operations.


def _by_operations(
    rule: Rule,
    given: Sequence[tuple[Tensor, Tensor, Entry]],
    values: Mapping[str, Any],
    maximize: bool,
) -> list[tuple[Tensor, Entry]]:
    """The step by operations of torch that autograd, vmap and torch.compile follow."""
    if rule.formats or rule.low_precision != "nearest":
        raise ValueError(
            f"{rule.name}.update() under autograd, torch.func or torch.compile keeps states as "
            "their weights are: leave out stored_as() and low_precision()"
        )
    known = {
        n: _number(v) if is_number(v) or isinstance(v, Tensor) else v for n, v in values.items()
    }
    works = [_Work(rule, *each, known, maximize) for each in given]
    if torch.compiler.is_compiling():
        return _together(works)
    with numpy.errstate(all="ignore"):
        return _together(works)


def _together(works: Sequence[_Work]) -> list[tuple[Tensor, Entry]]:
    """All outcomes; sums over all parameters are waited for."""
    for number in range(works[0].sums if works else 0):
        shares = [work.share(number) for work in works]
        if torch.compiler.is_compiling() or any(map(_is_followed, shares)):
            total = sum(shares)
        else:
            total = exact_sum([float(share) for share in shares])
        for work in works:
            work.take(number, total)
    return [work.outcome() for work in works]


def _number(value: Any) -> Any:
    """A number as the host works it out, in float64; a tensor where something follows it."""
    compiling = torch.compiler.is_compiling()
    if isinstance(value, Tensor):
        if compiling or _is_followed(value):
            return value.to(torch.float64)
        return numpy.float64(value.detach())
    if not is_number(value) or isinstance(value, Schedule):
        return value
    return float(value) if compiling else numpy.float64(value)


class _Work:
    """The step of one weight, by the nodes of its rule's graph."""

    def __init__(
        self,
        rule: Rule,
        weight: Tensor,
        gradient: Tensor,
        entry: Entry,
        values: Mapping[str, Any],
        maximize: bool,
    ) -> None:
        self._weight, self._entry = weight, entry
        self._graph = graph = _graph(rule, values, maximize, is_matrix(weight))
        step = _number(entry["step"]) + 1
        dtype = working_dtype(weight)
        self._inputs = {**values, **facts_of(weight), "step": step, "first": step == 1}
        self._known: dict[int, Any] = {
            id(graph.weight): in_pairs(weight).to(dtype),
            id(graph.gradient): in_pairs(gradient).to(dtype),
        }
        for name, before, _ in graph.states:
            held = in_pairs(_held(rule, entry, name))
            if rule.states[name].start == "gradient":
                held = torch.where(torch.as_tensor(step == 1), in_pairs(gradient), held)
            self._known[id(before)] = (
                held.to(dtype) if held.shape == in_pairs(weight).shape else held
            )
        for name, _, _ in graph.numbers:
            self._inputs[name] = _number(_held(rule, entry, name))
        self._step = step
        self._made: dict[int, dict[int, Any]] = {}
        self._sums = [n for n in graph.nodes if n.operation == "global_sum"]

    @property
    def sums(self) -> int:
        """How many sums over all parameters there are."""
        return len(self._sums)

    def share(self, number: int) -> Any:
        """This weight's share of a sum over all."""
        return self._value(self._sums[number].arguments[0]).sum(dtype=torch.float64)

    def take(self, number: int, total: Any) -> None:
        """Take in the sum over all."""
        self._known[id(self._sums[number])] = _number(total)

    def outcome(self) -> tuple[Tensor, Entry]:
        """The new weight and states."""
        graph, weight, lr = self._graph, self._weight, self._inputs["lr"]
        if graph.direction is None or graph.sums_over_all:
            moved = self._value(graph.new_weight)
        else:
            direction, before = self._value(graph.direction), self._known[id(graph.weight)]
            if isinstance(lr, Tensor):
                moved = before - lr.to(before.dtype) * direction
            else:  # one rounding, as torch's own SGD
                moved = torch.add(before, direction, alpha=-float(lr))
        made = {
            name: _like(self._value(after), self._entry[name]) for name, _, after in graph.states
        }
        for name, _, after in graph.numbers:
            made[name] = _like_number(self._value(after), self._entry[name])
        step = _like_number(self._step, self._entry["step"])
        kept = {n: v for n, v in self._entry.items() if n not in made}
        return _like(moved, weight), {**kept, **made, "step": step}

    def _value(self, root: Node) -> Any:
        known = self._known
        for node in in_order([root], known.keys()):
            if id(node) not in known:
                known[id(node)] = self._worked_out(node, [known[id(a)] for a in node.arguments])
        return known[id(root)]

    def _worked_out(self, node: Node, arguments: list[Any]) -> Any:
        if node.operation == "input":
            return self._inputs[str(node.value)]
        if node.operation == "constant":
            return _number(node.constant())
        if node.operation == "part":
            return self._made[id(node.arguments[0])][node.value]
        if node.operation == "opaque":
            return called(node, arguments, self._made)
        if node.operation == "where" and isinstance(arguments[0], Tensor):
            return _chosen(*arguments)
        return applied(node, arguments)


def _chosen(condition: Tensor, a: Any, b: Any) -> Tensor:
    """As ``where``; the condition may be mapped."""
    if condition.dtype is not torch.bool:
        condition = condition != 0
    a, b = (
        x if isinstance(x, Tensor) else torch.full((), float(x), dtype=torch.float64)
        for x in (a, b)
    )
    return torch.where(condition, a, b)


def _held(rule: Rule, entry: Entry, name: str) -> Any:
    if name not in entry:
        raise ValueError(
            f"{rule.name}.update(): the state has no {name!r}. Make it with init() of a rule with "
            "these hyperparameters"
        )
    return entry[name]


def _like(value: Tensor, old: Tensor) -> Tensor:
    if old.is_complex():
        value = torch.view_as_complex(value)
    return value.to(old.dtype)


def _like_number(value: Any, old: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(old.dtype).reshape(old.shape)
    return torch.as_tensor(float(value), dtype=old.dtype).reshape(old.shape)


def _graph(rule: Rule, values: Mapping[str, Any], maximize: bool, matrix: bool) -> Graph:
    """The rule's graph with these flags; a number that something follows counts as other than 0."""
    own = {n: values[n] for n in rule.hyperparameters}
    asked = {n: (1.0 if isinstance(v, Tensor) else v) for n, v in own.items()}
    key = tuple(
        (n, bool(v != 0) if is_number(rule.hyperparameters[n]) else v) for n, v in asked.items()
    )
    about = f"functional {key} {maximize} {matrix}"
    if about not in rule.kept:
        _keep_graph(rule, about, asked, maximize, matrix)
    found: Graph = rule.kept[about]
    return found


@torch._disable_dynamo
def _keep_graph(
    rule: Rule, about: str, values: Mapping[str, Any], maximize: bool, matrix: bool
) -> None:
    graph = trace(rule, {**values, "lr": 0.0}, maximize, matrix)
    # As the eager engine has it: it works through the graph of a rule that sums over all weights.
    graph = contracted(graph) if graph.sums_over_all else graph
    rule.kept[about] = graph
    # Worked out here: torch.compile does not follow how such properties are kept.
    _ = graph.nodes, graph.sums_over_all
