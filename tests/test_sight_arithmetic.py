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
from gradstep.optimizer.optimizer import planner_of
from gradstep.rule.trace import trace
from gradstep.sight.arithmetic import Arithmetic, Evaluation, nearest
from gradstep.sight.catalogue import find_rule, rule_names, shaping_settings
from gradstep.sight.element import Element, element_of

pytestmark = pytest.mark.sweep


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


@gradstep.opaque
def smeared(x: Tensor, share: float) -> Tensor:
    """Each entry with a share of all that stand before it: no element alone knows its outcome."""
    return x + share * x.cumsum(-1).flip(1)


@gradstep.rule
def lamb(g: Any, exp_avg: Any, exp_avg_sq: Any, *, w: Any, step: Any, beta1: float = 0.9) -> Any:
    """Adam with a step as long, measured against the weights, as the trust ratio says."""
    exp_avg = gradstep.lerp(exp_avg, g, 1 - beta1)
    exp_avg_sq = gradstep.lerp(exp_avg_sq, g * g, 0.01)
    update = exp_avg / (1 - beta1**step) / (gradstep.sqrt(exp_avg_sq) + 1e-6)
    size, length = gradstep.norm(w), gradstep.norm(update)
    trust = gradstep.where((size > 0) & (length > 0), size / length, 1)
    return trust * update, exp_avg, exp_avg_sq


@gradstep.rule
def surroundings(
    g: Any,
    row_size: Any = gradstep.per_row(),
    column_largest: Any = gradstep.per_column(),
    slow: Any = gradstep.copy_of_gradient(),
    agreement: Any = gradstep.number(0.5),
    *,
    w: Any,
    share: float = 0.25,
) -> Any:
    """Each way to look at other elements once; of weights without rows, at all of them."""
    if row_size is None:
        agreement = gradstep.dot(g, w) / gradstep.size(w) + 0.5 * agreement
        slow = smeared(g, share) - gradstep.mean(slow)
        return slow / gradstep.max(gradstep.abs(g - w)), None, None, slow, agreement
    centred = g - gradstep.mean(g, -1)
    row_size = gradstep.lerp(row_size, gradstep.rms(g, -1), share)
    column_largest = gradstep.maximum(0.9 * column_largest, gradstep.max(gradstep.abs(g), -2))
    typical = gradstep.mean(row_size, -2) + gradstep.max(column_largest) / gradstep.size(g, -1)
    agreement = 0.9 * agreement + 0.1 * gradstep.dot(g - slow, w) / gradstep.size(g)
    slow = gradstep.lerp(slow, smeared(centred, share), 0.5)
    overall = gradstep.mean(row_size) + gradstep.sum(g * slow, -1) / gradstep.norm(w)
    update = slow / (typical + row_size + column_largest) + 0.01 * overall
    return (
        update * gradstep.exp(-gradstep.abs(agreement)),
        row_size,
        column_largest,
        slow,
        agreement,
    )


#: Settings that are words or None, and another value that changes the formula.
WORDS = {"adjust_lr_fn": "match_rms_adamw", "split": None}


def every_setting(rule: gradstep.Rule) -> Iterator[dict[str, Any]]:
    """The defaults; each setting that changes the formula, alone; and all of them together."""

    def other(name: str) -> Any:
        default = rule.hyperparameters[name]
        if isinstance(default, bool):
            return not default
        if isinstance(default, str):
            return next(word for word in rule.choices[name].values if word != default)
        return WORDS.get(name, 0.7 if name == "momentum" else 0.03)

    values = {name: other(name) for name in shaping_settings(rule)}
    alone = [{name: value} for name, value in values.items()]
    for settings in [{}, *alone, values] if len(values) > 1 else [{}, *alone]:
        # Nesterov's form is nothing without momentum, nor decoupled decay without decay.
        yield {"lr": 0.03, **settings}


CONFIGURATIONS: list[tuple[str, gradstep.Rule, dict[str, Any]]] = [
    *(
        (" ".join([name, *(f"{n}={v}" for n, v in settings.items() if n != "lr")]), rule, settings)
        for name in rule_names()
        for rule in [find_rule(name)]
        if rule.sparse != "only" and "loss" not in rule.inputs
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
    ("trust ratio", lamb, {"lr": 0.1}),
    ("surroundings", surroundings, {"lr": 0.1}),
    (
        "chain that looks around",
        gradstep.chain(gradstep.clip_by_value(limit=0.8), lamb, gradstep.decay_weights()),
        {"lr": 0.01, "maximize": True},
    ),
]


def configuration(name: str) -> tuple[gradstep.Rule, dict[str, Any]]:
    return next(c[1:] for c in CONFIGURATIONS if c[0] == name)


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


def at(state: Tensor, place: tuple[int, ...]) -> float:
    """A state's number for a weight: its own, or its row's or column's."""
    return state[tuple(min(i, n - 1) for i, n in zip(place, state.shape, strict=True))].item()


def work_out(element: Element, arithmetic: Arithmetic | None = None) -> Evaluation:
    arithmetic = arithmetic or Arithmetic(element.graph, element.dtype)
    return arithmetic.evaluate(
        element.weight, element.gradient, element.states, element.numbers(), element.outcomes
    )


def elements_of_step(optimizer: gradstep.Optimizer, weight: Tensor, places: Any) -> list[Element]:
    """Make a step; what it started from at these places."""
    explanation = gradstep.explain(optimizer, weight, places)
    optimizer.step()
    return [account.element for account in explanation.accounts]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rule", "settings"), [c[1:] for c in CONFIGURATIONS], ids=[c[0] for c in CONFIGURATIONS]
)
def test_equals_the_step_bit_for_bit(
    rule: gradstep.Rule, settings: dict[str, Any], dtype: torch.dtype
) -> None:
    check_steps(rule, settings, dtype, (4, 6))


def check_steps(
    rule: gradstep.Rule, settings: dict[str, Any], dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    """Three steps of two weights of one shape, of which the second is looked at."""
    torch.manual_seed(0)
    other, weight = (
        torch.nn.Parameter(torch.randn(shape, dtype=torch.float64).to(dtype)) for _ in range(2)
    )
    optimizer = gradstep.Optimizer(
        [("other", other), ("w", weight)], rule, engine="fused", **settings
    )
    arithmetic: Arithmetic | None = None
    rest = gradients(dtype, shape, seed=1)
    places = list(numpy.ndindex(shape))
    for _ in range(3):
        weight.grad, other.grad = next(rest), next(rest)
        elements = elements_of_step(optimizer, weight, places[:: -(-len(places) // 24)])
        assert optimizer.engines_used()["w"] == "fused"
        for element in elements:
            place = element.place
            arithmetic = arithmetic or Arithmetic(element.graph, element.dtype)
            evaluation = work_out(element, arithmetic)
            assert bits(evaluation.weight, dtype) == bits(weight[place].item(), dtype)
            assert len(evaluation.states) + len(evaluation.numbers) == len(element.states)
            for name, value in evaluation.states.items():
                written = at(optimizer.state[weight][name], place)
                assert bits(value, dtype) == bits(written, dtype), name
            for name, value in evaluation.numbers.items():
                state = optimizer.state[weight][name]
                assert bits(value, state.dtype) == bits(state.item(), state.dtype), name


BEYOND = ["adafactor", "adafactor weight_decay=0.03", "muon", "trust ratio", "surroundings"]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (name, shape)
        for name in BEYOND
        for shape in [(7,), (1, 1), (1, 5), (5, 1), (2, 3, 2, 4), (70, 2100)]
        if name != "muon" or len(shape) == 2
    ],
    ids=str,
)
def test_equals_the_step_in_every_shape(name: str, shape: tuple[int, ...]) -> None:
    """The last shape has lines longer than a tile, and several tiles."""
    check_steps(*configuration(name), torch.float32, shape)


@pytest.mark.parametrize("name", BEYOND)
def test_looking_changes_nothing(name: str) -> None:
    rule, settings = configuration(name)
    start = torch.randn(3, 4)
    weights = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    looked_at, other = (gradstep.Optimizer([("w", w)], rule, **settings) for w in weights)
    for _ in range(3):
        gradient = torch.randn(3, 4)
        for weight in weights:
            weight.grad = gradient.clone()
        gradstep.explain(looked_at, "w", [(2, 1), (0, 0)])
        looked_at.step()
        other.step()
        assert torch.equal(weights[0].grad, gradient)
        assert weights[0]._version == weights[1]._version
        pairs = [looked_at.state[weights[0]], other.state[weights[1]]]
        assert pairs[0].keys() == pairs[1].keys()
        assert all(torch.equal(pairs[0][name], pairs[1][name]) for name in pairs[0])
        assert torch.equal(*weights)


@pytest.mark.parametrize("name", ["trust ratio", "muon"])
@pytest.mark.parametrize("turned", ["weight", "gradient"])
def test_another_layout_and_an_index_from_the_end(turned: str, name: str) -> None:
    """Sums and matrix products depend, in their last bits, on the order in memory."""
    rule, settings = configuration(name)
    across, down = torch.randn(60, 50).t(), torch.randn(50, 60)
    weight = torch.nn.Parameter(across if turned == "weight" else down)
    weight.grad = down if turned == "weight" else across
    optimizer = gradstep.Optimizer([weight], rule, engine="fused", **settings)
    for _ in range(2):
        (element,) = elements_of_step(optimizer, weight, (-1, 3))
        assert element.place == (49, 3)
        assert work_out(element).weight == weight[49, 3].item()


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
    rule, settings = configuration(name)
    weight = torch.nn.Parameter(torch.tensor([start]))
    optimizer = gradstep.Optimizer([weight], rule, engine="fused", **settings)
    for _ in range(2):
        weight.grad = torch.tensor([gradient])
        element = element_of(planner_of(optimizer), weight, (0,))
        optimizer.step()
        found = work_out(element)
        assert bits(found.weight, weight.dtype) == bits(weight.item(), weight.dtype)
        for state, value in found.states.items():
            written = optimizer.state[weight][state].item()
            assert bits(value, weight.dtype) == bits(written, weight.dtype), state


@pytest.mark.parametrize("name", ["adamw", "trust ratio"])
def test_a_gradient_that_is_still_scaled(name: str) -> None:
    """As torch.amp.GradScaler leaves it to a step that can divide by the scale itself."""
    rule, settings = configuration(name)
    weight = torch.nn.Parameter(torch.randn(3, 4))
    optimizer = gradstep.Optimizer([weight], rule, engine="fused", **settings)
    optimizer.grad_scale = torch.tensor(3.0)
    weight.grad = torch.randn(3, 4)
    (element,) = elements_of_step(optimizer, weight, (1, 2))
    assert work_out(element).weight == weight[1, 2].item()


def test_a_weight_by_hand() -> None:
    """Adam's first step moves every weight by lr, whatever the gradient: so says the paper."""
    weight = torch.nn.Parameter(torch.tensor([0.5]))
    weight.grad = torch.tensor([0.02])
    element = element_of(planner_of(gradstep.Adam([weight], lr=0.01)), weight, (0,))
    assert element.first
    assert element.step == 1
    assert element.states == {"exp_avg": 0.0, "exp_avg_sq": 0.0}
    found = work_out(element)
    assert found.weight == pytest.approx(0.49, abs=1e-6)
    assert found.states["exp_avg"] == pytest.approx(0.002)
    assert found.states["exp_avg_sq"] == pytest.approx(0.001 * 0.0004)


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
        element_of(planner_of(optimizer), weight, (0,))
    other.grad = torch.ones(2)
    with pytest.raises(ValueError, match="does not hold"):
        element_of(planner_of(optimizer), other, (0,))
    with pytest.raises(TypeError, match="complex"):
        element_of(planner_of(optimizer), pair, (0,))
    weight.grad = torch.ones(2)
    with pytest.raises(IndexError, match="out of bounds"):
        element_of(planner_of(optimizer), weight, (2,))
