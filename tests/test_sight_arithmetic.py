"""The arithmetic for one element against what the fused kernel wrote, bit for bit."""

from __future__ import annotations

import random
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

import gradstep
from gradstep.rule.trace import trace
from gradstep.sight.arithmetic import Arithmetic, nearest
from gradstep.sight.catalogue import find_rule, rule_names, shaping_settings
from gradstep.sight.element import Element, element_of


@gradstep.rule
def everything(
    g: Any,
    slow: Any,
    largest: Any = gradstep.full("start"),
    anchor: Any = gradstep.copy_of_weight(),
    previous: Any = gradstep.copy_of_gradient(),
    *,
    w: Any,
    step: Any,
    lr: Any,
    first: Any,
    start: float = 0.25,
    power: float = 1.5,
    share: float = 0.75,
    kind: str = "log",
) -> Any:
    """Each operation of the language once."""
    slow = gradstep.lerp(slow, g, share)
    largest = gradstep.maximum(largest, gradstep.abs(g)) - gradstep.minimum(g, 0.0)
    grown = gradstep.pow(gradstep.abs(g) + 0.1, power) + gradstep.exp(-g * g)
    if kind == "log":
        grown = grown * gradstep.log(largest + 1.5)
    same = (g * previous > 0) & ~(slow == 0) | (w != w)
    chosen = gradstep.where(same, grown * gradstep.sign(slow), gradstep.rsqrt(largest + 2))
    chosen = gradstep.where(step > 2, chosen, gradstep.where(first, g, -chosen))
    pull = 0.01 * (w - anchor)
    fraction = chosen / gradstep.clamp(largest, 0.5, 2.0)
    return fraction - pull * 3 + gradstep.sqrt(largest), slow, largest, anchor, g


@gradstep.rule
def outright(g: Any, z: Any = gradstep.copy_of_weight(), *, w: Any, lr: Any, step: Any) -> Any:
    """Sets the weight, with products that a fused multiply-add takes in under a name."""
    move = lr * g
    z = z - move
    pushed = (1 - 1 / step) * w
    return gradstep.new_weight(pushed + z / step), z


def every_setting(rule: gradstep.Rule) -> Iterator[dict[str, Any]]:
    """The defaults; each setting that changes the formula, alone; and all of them together."""
    values = {
        name: True if rule.hyperparameters[name] is False else 0.7 if name == "momentum" else 0.03
        for name in shaping_settings(rule)
    }
    alone = [{name: value} for name, value in values.items()]
    for settings in [{}, *alone, values] if len(values) > 1 else [{}, *alone]:
        # Nesterov's form is nothing without momentum, nor decoupled decay without decay.
        yield {"lr": 0.03, **settings}


CONFIGURATIONS: list[tuple[str, gradstep.Rule, dict[str, Any]]] = [
    *(
        (" ".join([name, *(f"{n}={v}" for n, v in settings.items() if n != "lr")]), rule, settings)
        for name in rule_names()
        for rule in [find_rule(name)]
        if rule.sparse != "only"
        for settings in every_setting(rule)
    ),
    ("sgd maximize", gradstep.sgd, {"lr": 0.1, "maximize": True, "weight_decay": 0.03}),
    ("momentum damped", gradstep.sgd, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}),
    ("nesterov", gradstep.sgd, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ("adam maximize", gradstep.adam, {"lr": 0.01, "maximize": True}),
    ("adam slow", gradstep.adam, {"lr": 0.01, "beta1": 0.2, "beta2": 0.3}),
    ("adamw", gradstep.adam, {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    (
        "rmsprop quick",
        gradstep.rmsprop,
        {"lr": 0.01, "centered": True, "momentum": 0.9, "weight_decay": 0.1, "alpha": 0.4},
    ),
    (
        "adagrad all",
        gradstep.adagrad,
        {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.2},
    ),
    ("asgd averaging", find_rule("asgd"), {"lr": 0.1, "t0": 1.0, "lambd": 0.01}),
    ("radam short", find_rule("radam"), {"lr": 0.1, "beta2": 0.5}),
    ("lion quick", gradstep.lion, {"lr": 0.01, "weight_decay": 0.1, "beta1": 0.3}),
    (
        "chain",
        gradstep.chain(
            gradstep.clip_by_value(limit=0.8), gradstep.adam(), gradstep.decay_weights()
        ),
        {"lr": 0.01},
    ),
    ("every operation", everything, {"lr": 0.1}),
    ("every operation, another flag", everything, {"lr": 0.1, "kind": "plain"}),
    ("weight outright", outright, {"lr": 0.1}),
]

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def bits(value: float, dtype: torch.dtype) -> str:
    """Tells 0.0 from -0.0, and takes every nan for the same."""
    return str(torch.tensor(value, dtype=torch.float64).to(dtype).double().item().hex())


def gradients(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> Iterator[Tensor]:
    """Gradients of all sizes, some of them zero, tiny or huge."""
    random_numbers = torch.Generator().manual_seed(seed)
    while True:
        sizes = torch.randint(-6, 2, shape, generator=random_numbers)
        gradient = torch.randn(shape, generator=random_numbers, dtype=torch.float64) * 10.0**sizes
        gradient[torch.rand(shape, generator=random_numbers) < 0.1] = 0.0
        yield gradient.to(dtype)


def worked_out(element: Element) -> tuple[float, dict[str, float]]:
    graph = trace(element.rule, element.settings, element.maximize)
    evaluation = Arithmetic(graph, element.dtype).evaluate(
        element.weight, element.gradient, element.states, element.numbers()
    )
    return evaluation.weight, dict(evaluation.states)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rule", "settings"), [c[1:] for c in CONFIGURATIONS], ids=[c[0] for c in CONFIGURATIONS]
)
def test_equals_the_step_bit_for_bit(
    rule: gradstep.Rule, settings: dict[str, Any], dtype: torch.dtype
) -> None:
    shape = (4, 6)
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(shape, dtype=torch.float64).to(dtype))
    optimizer = gradstep.Optimizer([("w", weight)], rule, engine="fused", **settings)
    arithmetic: Arithmetic | None = None
    rest = gradients(dtype, shape, seed=1)
    places = list(numpy.ndindex(shape))
    for _ in range(3):
        weight.grad = next(rest)
        elements = {place: element_of(optimizer, weight, place) for place in places}
        optimizer.step()
        assert optimizer.engines_used() == {"w": "fused"}
        for place, element in elements.items():
            if arithmetic is None:
                graph = trace(element.rule, element.settings, element.maximize)
                arithmetic = Arithmetic(graph, element.dtype)
            evaluation = arithmetic.evaluate(
                element.weight, element.gradient, element.states, element.numbers()
            )
            assert bits(evaluation.weight, dtype) == bits(weight[place].item(), dtype)
            for name, value in evaluation.states.items():
                written = optimizer.state[weight][name][place].item()
                assert bits(value, dtype) == bits(written, dtype), name
            for name, value in evaluation.numbers.items():
                state = optimizer.state[weight][name]
                assert bits(value, state.dtype) == bits(state.item(), state.dtype), name


@pytest.mark.parametrize(
    ("gradient", "start"),
    [
        (float("nan"), 1.0),
        (float("inf"), 1.0),
        (-float("inf"), 1.0),
        (1.0, float("nan")),
        (-0.0, -0.0),
        (0.0, -0.0),
        (1e-45, 1e-44),
        (3e38, 3e38),
        (1e30, 1.0),
    ],
)
@pytest.mark.parametrize(
    "name", ["sgd", "nesterov", "adamw", "lion", "rmsprop quick", "every operation"]
)
def test_equals_the_step_at_the_edges(name: str, gradient: float, start: float) -> None:
    rule, settings = next(c[1:] for c in CONFIGURATIONS if c[0] == name)
    weight = torch.nn.Parameter(torch.tensor([start]))
    optimizer = gradstep.Optimizer([weight], rule, engine="fused", **settings)
    for _ in range(2):
        weight.grad = torch.tensor([gradient])
        element = element_of(optimizer, weight, (0,))
        optimizer.step()
        expected, states = worked_out(element)
        assert bits(expected, weight.dtype) == bits(weight.item(), weight.dtype)
        for state, value in states.items():
            written = optimizer.state[weight][state].item()
            assert bits(value, weight.dtype) == bits(written, weight.dtype), state


def test_a_weight_by_hand() -> None:
    """Adam's first step moves every weight by lr, whatever the gradient: so says the paper."""
    weight = torch.nn.Parameter(torch.tensor([0.5]))
    weight.grad = torch.tensor([0.02])
    element = element_of(gradstep.Adam([weight], lr=0.01), weight, (0,))
    assert element.first
    assert element.step == 1
    assert element.states == {"exp_avg": 0.0, "exp_avg_sq": 0.0}
    new_weight, states = worked_out(element)
    assert new_weight == pytest.approx(0.49, abs=1e-6)
    assert states["exp_avg"] == pytest.approx(0.002)
    assert states["exp_avg_sq"] == pytest.approx(0.001 * 0.0004)


@pytest.mark.parametrize("real", [numpy.float32, numpy.float64])
def test_nearest_agrees_with_the_machine(real: Any) -> None:
    random_numbers = random.Random(0)
    for _ in range(2000):
        numerator = random_numbers.randint(-(10**40), 10**40)
        denominator = random_numbers.randint(1, 10 ** random_numbers.randint(1, 80))
        exact = Fraction(numerator, denominator)
        found = nearest(exact, real)
        assert real(found) == found
        for neighbour in (-numpy.inf, numpy.inf):
            other = float(numpy.nextafter(real(found), real(neighbour)))
            if numpy.isfinite(other) and numpy.isfinite(found):
                assert abs(exact - Fraction(found)) <= abs(exact - Fraction(other))


def test_nearest_takes_the_even_one_of_two() -> None:
    unit = Fraction(1, 2**23)
    assert nearest(1 + unit / 2, numpy.float32) == 1.0
    assert nearest(1 + unit * 3 / 2, numpy.float32) == 1.0 + 2**-22
    assert nearest(-(1 + unit * 3 / 2), numpy.float32) == -(1.0 + 2**-22)
    assert nearest(Fraction(1, 2**150), numpy.float32) == 0.0
    assert nearest(Fraction(3, 2**150), numpy.float32) == 2.0**-148
    assert nearest(Fraction(2) ** 128, numpy.float32) == numpy.inf


def test_a_dtype_that_no_kernel_has_is_refused() -> None:
    graph = trace(gradstep.sgd, {**gradstep.sgd.hyperparameters, "lr": 0.1})
    with pytest.raises(ValueError, match="choose one of float32, float64"):
        Arithmetic(graph, torch.int32)


def test_element_of_says_what_is_missing() -> None:
    weight, other = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    pair = torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))
    pair.grad = torch.ones_like(pair)
    optimizer = gradstep.SGD([weight, pair])
    with pytest.raises(ValueError, match="no gradient"):
        element_of(optimizer, weight, (0,))
    other.grad = torch.ones(2)
    with pytest.raises(ValueError, match="does not hold"):
        element_of(optimizer, other, (0,))
    with pytest.raises(TypeError, match="complex"):
        element_of(optimizer, pair, (0,))
