"""The lesson of ``gradstep update``: one update of a LeNet's weights, by hand and by an optimizer.

All numbers of the lesson are made here; how they are told is the command's business.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy
import torch
from torch import Tensor, nn

import gradstep
from gradstep.lab.errors import SettingsError, UnknownOptimizer
from gradstep.lab.lenet import LeNet
from gradstep.lab.optimizers import CHOICES
from gradstep.lab.rounding import Comparison, all_weights, compare, gradient_of, steps_apart
from gradstep.optimizer.optimizer import planner_of
from gradstep.rule.graph import Graph, Node
from gradstep.rule.notation import number_text
from gradstep.rule.trace import trace
from gradstep.sight.armed import explain
from gradstep.sight.catalogue import UnknownName, find_rule, nearest, rule_names, spelled
from gradstep.sight.digits import Equation, equation
from gradstep.sight.explanation import Explanation

Index = tuple[int, ...]


@dataclass(frozen=True)
class Chosen:
    """The optimizer of the lesson.

    ``make(params, engine=…)`` makes one; ``code`` is the line of Python that does it; ``plain``
    tells whether its rule is ``weight − lr · gradient`` and nothing else.
    """

    name: str
    code: str
    lr: float
    make: Callable[..., gradstep.Optimizer]
    plain: bool


@dataclass(frozen=True)
class Step:
    """One step of the optimizer at the weight that the lesson looks at.

    ``explanation`` was made of what it started from; ``written`` is what it wrote.
    """

    gradient: float
    explanation: Explanation
    written: float


@dataclass(frozen=True)
class Lesson:
    """Everything that the lesson shows. Tensors are float32, of the parameter's shape.

    ``sizes`` has the number of weights of each parameter. ``remembered`` and ``forgotten`` are the
    step of the second batch with and without ``zero_grad()``; ``piled_up`` is the sum of gradients
    that arrives without it, and ``spoiled`` counts the weights that then end up elsewhere.
    """

    parameter: str
    index: Index
    optimizer: Chosen
    sizes: dict[str, int]
    loss: float
    before: Tensor
    gradient_before: Tensor | None
    gradient: Tensor
    by_hand: Tensor
    hand: Equation
    first: Step
    after: Tensor
    comparison: Comparison
    remembered: Step
    forgotten: Step
    piled_up: Equation
    spoiled: int


def make_lesson(
    optimizer: str, parameter: str, index: Sequence[int] | None, lr: float | None, seed: int
) -> Lesson:
    """Make the lesson.

    Args:
        optimizer: a name of :data:`CHOICES`, of a rule, or ``module:name``.
        parameter: a name such as ``"conv1.bias"``.
        index: the place of the weight to look at, one number a dimension; None for the first that
            is above 0 as its gradient is, so that the arithmetic has no signs to stumble over.
        lr: the learning rate; None for what suits the optimizer.
        seed: for the first weights, the images and the targets.

    Raises:
        SettingsError: an unknown optimizer or parameter, an index out of range, a negative lr.
    """
    chosen = choose_optimizer(optimizer, lr)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        start = LeNet()
        batches = [(torch.randn(1, 1, 32, 32), torch.randn(1, 10)) for _ in range(2)]
    check_place(start, parameter, index)
    gradient_before = start.get_parameter(parameter).grad
    loss = backward(start, *batches[0])
    own = start.get_parameter(parameter)
    gradients = {name: gradient_of(p) for name, p in start.named_parameters()}
    gradient = gradients[parameter]
    place = _readable(own, gradient) if index is None else _counted_from_0(index, own.shape)

    def again() -> LeNet:
        """The network at the start, with the gradients of the first batch."""
        model = copy.deepcopy(start)
        for name, p in model.named_parameters():
            p.grad = gradients[name].clone()
        return model

    hand_model, model = again(), again()
    for f in hand_model.parameters():
        f.data.sub_(f.grad.data * chosen.lr)  # type: ignore[union-attr]
    try:
        made = chosen.make(model.named_parameters())
        first = take_step(made, model.get_parameter(parameter), place, loss)
    except (RuntimeError, ValueError) as error:  # a rule for matrices alone, or a user's own
        said = " ".join(str(error).split())
        raise SettingsError(f"{optimizer} cannot update all of LeNet's weights: {said}") from error

    seconds, steps = [], []
    for forget in (False, True):
        second = again()
        optimizer_again = chosen.make(second.named_parameters())
        optimizer_again.step(lambda: loss)
        if not forget:
            optimizer_again.zero_grad()
        then = backward(second, *batches[1])
        steps.append(take_step(optimizer_again, second.get_parameter(parameter), place, then))
        seconds.append(all_weights(second))
    remembered, forgotten = steps

    by_hand = hand_model.get_parameter(parameter).detach()
    before = own.detach()
    return Lesson(
        parameter=parameter,
        index=place,
        optimizer=chosen,
        sizes={name: p.numel() for name, p in start.named_parameters()},
        loss=loss,
        before=before,
        gradient_before=gradient_before,
        gradient=gradient,
        by_hand=by_hand,
        hand=_hand_equation(
            before[place].item(), gradient[place].item(), chosen.lr, by_hand[place].item()
        ),
        first=first,
        after=model.get_parameter(parameter).detach(),
        comparison=compare(
            chosen.make, chosen.lr if chosen.plain else None, again, hand_model, model, loss
        ),
        remembered=remembered,
        forgotten=forgotten,
        piled_up=_sum_equation(gradient[place].item(), remembered.gradient, forgotten.gradient),
        spoiled=int((steps_apart(*seconds) != 0).sum()),
    )


def choose_optimizer(name: str, lr: float | None) -> Chosen:
    """The optimizer of that name: one of the commands', a rule of the package, or a user's own.

    Raises:
        SettingsError: no such optimizer, or one that cannot be made; an lr that is negative or too
            large for a float32 number.
    """
    if lr is not None and not 0 <= lr <= torch.finfo(torch.float32).max:
        raise SettingsError(
            f"argument --lr: {number_text(lr)} is not from 0 to 3.4e38, the largest float32 number"
        )
    settings: dict[str, Any] = {}
    make: Any
    name = spelled(name, CHOICES) or name
    if name in CHOICES:
        make = CHOICES[name].make
        lr = CHOICES[name].lr if lr is None else lr
        if isinstance(make, partial):
            make, settings = make.func, make.keywords
        start = f"gradstep.{make.__name__}(model.parameters(), "
        make = partial(make, lr=lr, **settings)
    else:
        rule = _rule(name)
        if rule.sparse == "only":
            raise SettingsError(
                f"{rule.name} is for sparse gradients, such as nn.Embedding(sparse=True) makes; "
                "LeNet has none"
            )
        lr = 1e-3 if lr is None else lr
        spoken = name.replace(".py:", ".").replace(":", ".") if ":" in name else f"gradstep.{name}"
        start = f"gradstep.Optimizer(model.parameters(), {spoken}, "
        make = partial(gradstep.Optimizer, rule=rule, lr=lr)
    written = [f"lr={number_text(lr)}", *(f"{key}={value}" for key, value in settings.items())]
    try:
        graph = _trace(make([nn.Parameter(torch.zeros(1, 1))]))  # muon takes nothing else
    except (TypeError, ValueError) as error:  # a user's own rule that cannot be used
        raise SettingsError(" ".join(str(error).split())) from error
    plain = graph.direction is graph.gradient
    return Chosen(name, f"{start}{', '.join(written)})", lr, make, plain)


def _rule(name: str) -> gradstep.Rule:
    try:
        return find_rule(name)
    except UnknownName as error:
        known = list(dict.fromkeys([*CHOICES, *rule_names()]))
        hint = nearest(name, known) or "there are " + ", ".join(known)
        said = str(error) if ":" in name else f"unknown optimizer {name!r}: {hint}"
        raise UnknownOptimizer(said) from None


def _trace(optimizer: gradstep.Optimizer) -> Graph:
    reader = planner_of(optimizer).reader
    return trace(reader.rule, reader.numbers(optimizer.param_groups[0]))


def check_place(model: nn.Module, parameter: str, index: Sequence[int] | None) -> None:
    """Raise SettingsError unless the model has that parameter, and the parameter that index."""
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    if parameter not in shapes:
        near = nearest(parameter, list(shapes)) or "there are " + ", ".join(shapes)
        raise SettingsError(f"argument --param: LeNet has no {parameter!r}: {near}")
    shape = shapes[parameter]
    if index is None:
        return
    said = ",".join(map(str, index))
    size = "×".join(map(str, shape))
    if len(index) != len(shape):
        numbers = "one number" if len(shape) == 1 else f"{len(shape)} numbers"
        raise SettingsError(
            f"argument --index: {parameter} has the shape {size} and takes {numbers}, such as "
            f"{','.join('0' * len(shape))}; not {said}"
        )
    if any(not -n <= i < n for i, n in zip(index, shape, strict=True)):
        highest = ",".join(str(n - 1) for n in shape)
        raise SettingsError(
            f"argument --index: {said} is out of range; {parameter} has the shape {size}, and its "
            f"last index is {highest}"
        )


def _counted_from_0(index: Sequence[int], shape: Sequence[int]) -> Index:
    return tuple(i % n for i, n in zip(index, shape, strict=True))


def _readable(weight: Tensor, gradient: Tensor) -> Index:
    """The first weight that, like its gradient, is above 0; else the first that moves at all."""
    for wanted in ((weight > 0) & (gradient > 0), gradient != 0):
        found = wanted.nonzero()
        if len(found):
            return tuple(found[0].tolist())
    return (0,) * weight.dim()


def backward(model: nn.Module, image: Tensor, target: Tensor) -> float:
    """Work out the loss and its gradients, adding to those that are there; return the loss."""
    loss = nn.functional.mse_loss(model(image), target)
    loss.backward()
    return float(loss.item())


def _hand_equation(weight: float, gradient: float, lr: float, result: float) -> Equation:
    """``weight − gradient · lr`` in numbers."""
    w, g, rate = Node("input", (), "element"), Node("input", (), "element"), Node("input")
    node = Node("sub", (w, Node("mul", (g, rate), "element")), "element")
    return _in_numbers(node, {w: weight, g: gradient, rate: lr}, result, unlike=weight)


def _sum_equation(left: float, right: float, result: float) -> Equation:
    a, b = Node("input", (), "element"), Node("input", (), "element")
    return _in_numbers(Node("add", (a, b), "element"), {a: left, b: right}, result)


def _in_numbers(
    node: Node, given: dict[Node, float], result: float, unlike: float | None = None
) -> Equation:
    values: dict[int, Any] = {
        id(n): numpy.float32(v) if n.per_element else v for n, v in given.items()
    }
    values[id(node)] = numpy.float32(result)
    return equation(node, lambda n: n in given, values, unlike=unlike)


def take_step(optimizer: gradstep.Optimizer, parameter: Tensor, place: Index, loss: float) -> Step:
    """Make a step that explains itself at one weight.

    Raises:
        ValueError: it cannot be explained.
    """
    armed = explain(optimizer, parameter, place)
    optimizer.step(lambda: loss)
    if not armed.accounts:
        raise ValueError(armed.note)
    (account,) = armed.accounts
    return Step(account.element.gradient, account.explanation, account.written)
