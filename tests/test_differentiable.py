"""Steps that autograd records: derivatives checked by gradcheck, and against torch's."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradstep
from classes import ROWS

#: Class, arguments, states that are tensors, step count or None, and states that are numbers.
Case = tuple[str, dict[str, Any], tuple[str, ...], float | None, dict[str, float]]
MOMENTS = ("exp_avg", "exp_avg_sq")
CASES: list[Case] = [
    ("SGD", {"lr": 0.9}, (), None, {}),
    ("SGD", {"lr": 0.9, "maximize": True, "weight_decay": 0.1}, (), None, {}),
    ("SGD", {"lr": 0.9, "momentum": 0.7, "dampening": 0.2}, ("momentum_buffer",), None, {}),
    ("SGD", {"lr": 0.9, "momentum": 0.7, "nesterov": True}, ("momentum_buffer",), None, {}),
    ("Adam", {"lr": 0.9, "weight_decay": 0.1}, MOMENTS, 10.0, {}),
    ("Adam", {"lr": 0.9, "amsgrad": True}, (*MOMENTS, "max_exp_avg_sq"), 10.0, {}),
    ("AdamW", {"lr": 0.9}, MOMENTS, 10.0, {}),
    ("AdamW", {"lr": 0.9, "amsgrad": True}, (*MOMENTS, "max_exp_avg_sq"), 10.0, {}),
    ("RMSprop", {"lr": 0.9, "momentum": 0.9, "weight_decay": 0.1},
     ("square_avg", "momentum_buffer"), 5.0, {}),
    ("RMSprop", {"lr": 0.9, "centered": True, "maximize": True},
     ("square_avg", "grad_avg"), 5.0, {}),
    ("Adagrad", {"lr": 0.9, "lr_decay": 0.1, "weight_decay": 0.1}, ("sum",), 10.0, {}),
    ("Adadelta", {"lr": 0.9, "weight_decay": 0.1}, ("square_avg", "acc_delta"), 10.0, {}),
    ("Adamax", {"lr": 0.9, "weight_decay": 0.1}, ("exp_avg", "exp_inf"), 10.0, {}),
    ("ASGD", {"lr": 0.9, "lambd": 0.1}, ("ax",), 10.0, {"eta": 0.9, "mu": 1.0}),
    ("ASGD", {"lr": 0.9, "t0": 5.0}, ("ax",), 10.0, {"eta": 0.8, "mu": 0.25}),
    ("NAdam", {"lr": 0.9}, MOMENTS, 10.0, {"mu_product": 0.5}),
    ("NAdam", {"lr": 0.9, "weight_decay": 0.1, "decoupled_weight_decay": True}, MOMENTS, 10.0,
     {"mu_product": 0.5}),
    ("RAdam", {"lr": 0.9}, MOMENTS, 2.0, {}),
    ("RAdam", {"lr": 0.9}, MOMENTS, 10.0, {}),
    ("RAdam", {"lr": 0.9, "weight_decay": 0.1, "decoupled_weight_decay": True}, MOMENTS, 10.0, {}),
    ("Rprop", {"lr": 0.9}, ("prev", "step_size"), 10.0, {}),
    ("Lion", {"lr": 0.9, "weight_decay": 0.1}, ("exp_avg",), None, {}),
]  # fmt: skip


def label(value: Any) -> str:
    return value if isinstance(value, str) else ""


def takes_derivatives(row: Any) -> bool:
    return "differentiable" in inspect.signature(row.ours).parameters


def test_every_class_that_takes_the_flag_has_a_case() -> None:
    # torch lists Adafactor's flag as no implementation of its own. Lion stands for all classes that
    # are made from their rules: none has code of its own.
    by_hand = {row.name for row in ROWS if row.theirs is not None and takes_derivatives(row)}
    assert {name for name, *_ in CASES} == (by_hand | {"Lion"}) - {"Adafactor"}


def make_torch(name: str, params: Any, **options: Any) -> Any:
    return getattr(torch.optim, name)(params, foreach=False, **options)


def makers(name: str) -> list[Callable[..., Any]]:
    found: list[Callable[..., Any]] = [getattr(gradstep, name)]
    return [*found, functools.partial(make_torch, name)] if hasattr(torch.optim, name) else found


def one_step(
    maker: Callable[..., Any], case: Case, weight: Tensor, gradient: Tensor, *states: Tensor
) -> tuple[Tensor, ...]:
    _, options, names, count, numbers = case
    weight = weight.clone()
    weight.grad = gradient
    optimizer = maker([weight], differentiable=True, **options)
    entry: dict[str, Any] = {n: s.clone() for n, s in zip(names, states, strict=True)}
    entry.update({n: torch.tensor(v, dtype=torch.float64) for n, v in numbers.items()})
    if count is not None:
        entry["step"] = torch.tensor(count, dtype=torch.float64)
    optimizer.state[weight].update(entry)
    optimizer.step()
    held = optimizer.state[weight]
    return (weight, *(held[n] for n in names))


def drawn(case: Case) -> list[Tensor]:
    """A weight, a gradient and states, all above 0."""
    random = torch.Generator().manual_seed(5)
    count = 2 + len(case[2])
    made = [torch.rand(10, dtype=torch.float64, generator=random) for _ in range(count)]
    if "grad_avg" in case[2]:
        made[2] += 1.0  # the average square is above the squared average
        made[3] *= 0.5
    return [t.requires_grad_() for t in made]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}-{'-'.join(map(str, c[1]))}")
def test_a_step_has_the_right_derivatives(case: Case) -> None:
    ours, *others = (functools.partial(one_step, maker, case) for maker in makers(case[0]))
    assert torch.autograd.gradcheck(ours, drawn(case))
    for theirs in others:
        inputs = drawn(case), drawn(case)
        outputs = ours(*inputs[0]), theirs(*inputs[1])
        torch.testing.assert_close(*outputs, rtol=1e-6, atol=1e-6)  # some round their numbers
        try:
            for own in outputs:
                sum((o * o).sum() for o in own).backward()
        except RuntimeError:
            assert case[0] in ("Adamax", "ASGD", "Rprop")  # torch writes over what it needs
            continue
        for a, b in zip(*inputs, strict=True):
            found, expected = (torch.zeros(10) if t.grad is None else t.grad for t in (a, b))
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6, check_dtype=False)


# Through several steps, by the numbers that steer them.


def several_steps(
    maker: Callable[..., Any], names: tuple[str, ...], more: dict[str, Any], *inputs: Tensor
) -> Tensor:
    """The weight after steps down a loss that follows it, as a function of the named numbers."""
    numbers = dict(zip(names, inputs, strict=False))
    options = {k: v for k, v in numbers.items() if k not in ("beta1", "beta2")}
    if "beta1" in numbers:
        options["betas"] = (numbers["beta1"], numbers["beta2"])
    weight = inputs[len(names)].clone()
    optimizer = maker([weight], differentiable=True, **options, **more)
    for g in inputs[len(names) + 1 :]:
        weight.grad = g * weight.clone().cos()  # the copy is what autograd keeps
        optimizer.step()
    return weight


VALUES = {"lr": 0.3, "weight_decay": 0.2, "beta1": 0.8, "beta2": 0.9, "momentum": 0.5}
STEERED: list[tuple[str, tuple[str, ...], dict[str, Any]]] = [
    ("SGD", ("lr",), {}),
    ("SGD", ("lr",), {"momentum": 0.5}),
    ("SGD", ("weight_decay",), {"lr": 0.3}),
    ("SGD", ("lr", "weight_decay"), {}),
    ("SGD", ("lr", "momentum"), {}),
    ("RMSprop", ("lr",), {"momentum": 0.5}),
    ("RMSprop", ("lr", "weight_decay"), {}),
    ("Adagrad", ("lr", "weight_decay"), {}),
    ("Adadelta", ("lr", "weight_decay"), {}),
    ("Adamax", ("lr", "weight_decay", "beta1", "beta2"), {}),
    ("NAdam", ("lr", "weight_decay"), {}),
    ("NAdam", ("beta1", "beta2"), {}),  # by way of a state that is one number
    ("RAdam", ("lr", "weight_decay"), {}),
    ("RAdam", ("beta1", "beta2"), {}),  # beside a formula that does not hold yet
    ("ASGD", ("weight_decay",), {"lr": 0.3}),
    ("ASGD", ("lr", "weight_decay"), {}),  # the first step's is a state's start
    *(
        (name, names, {"amsgrad": amsgrad})
        for name in ("Adam", "AdamW")
        for amsgrad in (False, True)
        for names in (
            ("lr",),
            ("weight_decay",),
            ("beta1", "beta2"),
            ("lr", "weight_decay", "beta1", "beta2"),
        )
    ),
]  # fmt: skip


@pytest.fixture
def double_numbers() -> Iterator[None]:
    """States that are one number are float64: differences see what rounding to float32 does."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("name", "names", "more"),
    STEERED,
    ids=lambda v: v if isinstance(v, str) else "-".join(v),
)
def test_derivatives_by_hyperparameters_through_several_steps(
    name: str, names: tuple[str, ...], more: dict[str, Any], double_numbers: None
) -> None:
    random = torch.Generator().manual_seed(5)
    inputs = [torch.tensor(VALUES[n], dtype=torch.float64, requires_grad=True) for n in names]
    steps = 8 if name == "RAdam" else 3  # beta2 plays no part in its first ones
    inputs += [
        torch.randn(4, dtype=torch.float64, generator=random).requires_grad_()
        for _ in range(1 + steps)
    ]
    functions = [functools.partial(several_steps, make, names, more) for make in makers(name)]
    assert torch.autograd.gradcheck(functions[0], inputs)
    result = functions[0](*inputs)
    derivatives = torch.autograd.grad(result.sum(), inputs[: len(names)])
    assert all(d.abs() > 1e-6 for d in derivatives)
    if name != "SGD" or "momentum" in (*names, *more):
        return  # torch writes over what its own backward pass would need
    theirs = functions[1](*inputs)
    torch.testing.assert_close(result, theirs, rtol=1e-12, atol=1e-12)
    expected = torch.autograd.grad(theirs.sum(), inputs[: len(names)])
    torch.testing.assert_close(derivatives, expected, rtol=1e-9, atol=1e-9)


def test_differentiable_can_be_switched_on_in_training() -> None:
    w = torch.ones(3, dtype=torch.float64, requires_grad=True)
    moved = w.clone()
    optimizer = gradstep.SGD([moved], lr=0.1, differentiable=True)
    moved.grad = torch.full((3,), 2.0, dtype=torch.float64)
    optimizer.step()
    assert moved.requires_grad and torch.allclose(moved, w - 0.2)
    parameter = nn.Parameter(torch.ones(3))
    optimizer = gradstep.Adam([parameter], lr=0.1)
    for _ in range(2):
        parameter.grad = torch.ones(3)
        optimizer.step()
        assert optimizer.engines_used().popitem()[1] == "fused"
    optimizer.param_groups[0]["differentiable"] = True
    before = parameter.detach().clone()
    parameter.grad = torch.ones(3)
    with torch.no_grad():
        optimizer.step()
    assert optimizer.engines_used().popitem()[1] == "eager"
    assert not torch.equal(before, parameter.detach())


@pytest.mark.parametrize("engine", ["eager", "fused"])
def test_differentiable_can_be_switched_off_in_training(engine: str) -> None:
    """States of one number that autograd followed go on as those that it never did."""
    gradients = torch.randn(5, 4, generator=torch.Generator().manual_seed(5))
    found = []
    for differentiable in (True, False):
        betas = tuple(torch.tensor(b, requires_grad=differentiable) for b in (0.75, 0.875))
        weight = torch.ones(4)
        options = {"differentiable": differentiable, "engine": engine}
        optimizer = gradstep.NAdam([weight], lr=0.125, betas=betas, **options)
        for number, gradient in enumerate(gradients):
            if number == 2:
                assert optimizer.state[weight]["mu_product"].requires_grad == differentiable
                optimizer.param_groups[0]["differentiable"] = False
                weight.detach_()
            weight.grad = gradient.clone()
            optimizer.step()
        found.append((weight.detach(), optimizer.state[weight]["mu_product"].detach()))
    torch.testing.assert_close(found[0], found[1])
    assert found[0][1] < 0.1  # of five steps, not of two
