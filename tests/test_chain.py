"""Chains of rules, and rules of one's own: everything that the rules of the package get."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import gradstep
from gradstep import chain, clip_by_value, decay_weights, new_weight, sqrt
from gradstep.backends.cpu import compiler


@gradstep.rule
def heavy_ball(g, velocity, *, momentum=0.9):
    velocity = momentum * velocity + g
    return velocity, velocity


@gradstep.rule
def shrink(g, *, w, lr, share=0.1):
    return new_weight(w * (1 - lr * share) - lr * g)


@gradstep.rule
def normed(g, square, *, step, beta=0.9, eps=0.1):
    square = beta * square + (1 - beta) * g * g
    return g / (sqrt(square / (1 - beta**step)) + eps), square


def train(
    make: Callable[[list[Tensor]], gradstep.Optimizer], dtype: torch.dtype, steps: int = 25
) -> tuple[list[Tensor], gradstep.Optimizer]:
    """Weights after some steps with gradients of sizes around 1."""
    generator = torch.Generator().manual_seed(3)
    shapes = [(), (7,), (3, 5)]
    weights = [
        torch.nn.Parameter(torch.randn(s, dtype=torch.float64, generator=generator).to(dtype))
        for s in shapes
    ]
    optimizer = make(weights)
    go_on(optimizer, weights, steps, generator)
    return [w.detach() for w in weights], optimizer


def go_on(
    optimizer: gradstep.Optimizer,
    weights: list[Any],
    steps: int,
    generator: torch.Generator | None = None,
) -> None:
    generator = generator or torch.Generator().manual_seed(4)
    for _ in range(steps):
        for w in weights:
            g = torch.randn(w.shape, dtype=torch.float64, generator=generator) * 2
            w.grad = g.to(w.dtype)
        optimizer.step()


# A chain against its formula.


def by_hand(w: Any, gradients: list[Any], limit: float, decay: float, lr: float) -> Any:
    """Clipping, Adam and decoupled decay in NumPy."""
    m, v = 0 * w, 0 * w
    for t, g in enumerate(gradients, 1):
        g = numpy.clip(g, -limit, limit)
        m = 0.8 * m + 0.2 * g
        v = 0.99 * v + 0.01 * g**2
        direction = m / (1 - 0.8**t) / (numpy.sqrt(v / (1 - 0.99**t)) + 1e-8)
        w = w - lr * (direction + decay * w)
    return w


@pytest.mark.parametrize("engine", ["fused", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_clipped_adam_with_decay(engine: str, dtype: torch.dtype) -> None:
    rule = chain(
        clip_by_value(limit=0.75),
        gradstep.adam(beta1=0.8, beta2=0.99),
        decay_weights(weight_decay=0.1),
    )
    generator = torch.Generator().manual_seed(5)
    start = torch.randn(40, 3, dtype=torch.float64, generator=generator).to(dtype)
    gradients = torch.randn(25, 40, 3, dtype=torch.float64, generator=generator).to(dtype)
    weight = torch.nn.Parameter(start.clone())
    optimizer = gradstep.Optimizer([weight], rule, lr=0.05, engine=engine)
    for g in gradients:
        weight.grad = g
        optimizer.step()
    expected = by_hand(start.double().numpy(), list(gradients.double().numpy()), 0.75, 0.1, 0.05)
    error = (weight.detach().double() - torch.from_numpy(expected)).abs().max().item()
    assert error <= 16 * torch.finfo(dtype).eps * start.abs().max().item()
    assert set(optimizer.engines_used().values()) == {engine}


def test_a_chain_is_one_kernel() -> None:
    compiled = len(compiler._functions)
    rule = chain(clip_by_value(limit=0.3), heavy_ball, normed, decay_weights())
    _, optimizer = train(lambda p: gradstep.Optimizer(p, rule, engine="fused"), torch.float32)
    assert set(optimizer.engines_used().values()) == {"fused"}
    # Beside it the two small functions that read and raise step counts, if nobody had them yet.
    assert len(compiler._functions) - compiled <= 2
    assert set(optimizer.state[optimizer.param_groups[0]["params"][0]]) == {
        "step", "velocity", "square"
    }  # fmt: skip


def test_a_chain_of_one_has_the_bits_of_its_rule() -> None:
    alone, _ = train(lambda p: gradstep.Optimizer(p, gradstep.adam, lr=0.1), torch.float32)
    in_chain, _ = train(
        lambda p: gradstep.Optimizer(p, chain(gradstep.adam), lr=0.1), torch.float32
    )
    in_two, _ = train(
        lambda p: gradstep.Optimizer(p, chain(chain(gradstep.adam)), lr=0.1), torch.float32
    )
    for a, b, c in zip(alone, in_chain, in_two, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_chains_within_chains_have_the_bits_of_a_flat_one() -> None:
    stages = [clip_by_value(limit=0.5), heavy_ball, normed, decay_weights]
    flat, _ = train(lambda p: gradstep.Optimizer(p, chain(*stages)), torch.float32)
    nested = chain(chain(*stages[:2]), chain(*stages[2:]))
    assert nested.name == chain(*stages).name and nested.name.count("chain") == 1
    other, _ = train(lambda p: gradstep.Optimizer(p, nested), torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(flat, other, strict=True))


def test_a_chain_takes_its_own_defaults_along() -> None:
    """Into another chain, into a pickle, and into an optimizer."""
    rule = chain(heavy_ball, heavy_ball)(heavy_ball2_momentum=0.25)
    wider = chain(clip_by_value(limit=3.0), rule, heavy_ball(momentum=0.125))
    for found in (wider, pickle.loads(pickle.dumps(wider)), copy.deepcopy(wider)):
        assert dict(found.hyperparameters) == {
            "limit": 3.0,
            "heavy_ball_momentum": 0.9,
            "heavy_ball2_momentum": 0.25,
            "heavy_ball3_momentum": 0.125,
        }
    changed = wider(limit=4.0)
    assert pickle.loads(pickle.dumps(changed)).hyperparameters["limit"] == 4.0
    assert wider.hyperparameters["limit"] == 3.0
    optimizer = gradstep.Optimizer([torch.zeros(2)], changed)
    assert optimizer.param_groups[0]["limit"] == 4.0


STAGES = {
    "clip": clip_by_value(limit=0.7),
    "decay": decay_weights(weight_decay=0.05),
    "ball": heavy_ball,
    "normed": normed,
    "sgd": gradstep.sgd(momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": gradstep.adam(eps=0.1, amsgrad=True),
    "adagrad": gradstep.adagrad(eps=0.1, lr_decay=0.1),
    "rmsprop": gradstep.rmsprop(eps=0.1, momentum=0.5),
}


@settings(max_examples=25)
@given(
    names=st.lists(st.sampled_from(sorted(STAGES)), min_size=1, max_size=4),
    maximize=st.booleans(),
)
def test_any_chain_is_the_same_fused_and_eager(names: list[str], maximize: bool) -> None:
    rule = chain(*(STAGES[n] for n in names))
    results = [
        train(
            lambda p, e=engine: gradstep.Optimizer(p, rule, lr=0.01, maximize=maximize, engine=e),
            torch.float64,
            steps=5,
        )
        for engine in ("fused", "eager")
    ]
    for fused, eager in zip(results[0][0], results[1][0], strict=True):
        torch.testing.assert_close(fused, eager, rtol=1e-11, atol=1e-11)
    assert set(results[0][1].engines_used().values()) == {"fused"}


# Names.


def test_names_are_kept_where_they_do_not_clash() -> None:
    rule = chain(clip_by_value(limit=2.0), heavy_ball)
    assert dict(rule.hyperparameters) == {"limit": 2.0, "momentum": 0.9}
    assert list(rule.states) == ["velocity"]
    assert rule.name == "chain(clip_by_value, heavy_ball)"


def test_clashing_names_get_their_rule_in_front() -> None:
    rule = chain(gradstep.adam, decay_weights(weight_decay=0.3))
    assert rule.hyperparameters["adam_weight_decay"] == 0.0
    assert rule.hyperparameters["decay_weights_weight_decay"] == 0.3
    assert "weight_decay" not in rule.hyperparameters
    assert {"beta1", "beta2", "eps", "amsgrad"} <= set(rule.hyperparameters)
    assert list(rule.states) == ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]


def test_a_rule_that_stands_twice_is_numbered() -> None:
    rule = chain(heavy_ball(momentum=0.5), heavy_ball(momentum=0.25), heavy_ball)
    assert dict(rule.hyperparameters) == {
        "heavy_ball_momentum": 0.5,
        "heavy_ball2_momentum": 0.25,
        "heavy_ball3_momentum": 0.9,
    }
    assert list(rule.states) == [
        "heavy_ball_velocity",
        "heavy_ball2_velocity",
        "heavy_ball3_velocity",
    ]


def test_a_state_and_a_hyperparameter_of_one_name_clash_too() -> None:
    @gradstep.rule
    def other(g: Any, momentum: Any) -> Any:
        return g + momentum, momentum + g

    rule = chain(heavy_ball, other)
    assert list(rule.states) == ["velocity", "other_momentum"]
    assert list(rule.hyperparameters) == ["heavy_ball_momentum"]


def test_no_two_things_ever_share_a_name() -> None:
    """Not even where a rule is called what a second copy of another would be called."""

    @gradstep.rule
    def heavy_ball2(g: Any, velocity: Any, *, momentum: float = 0.125) -> Any:
        velocity = momentum * velocity + g
        return velocity, velocity

    @gradstep.rule
    def sly(g: Any, heavy_ball_velocity: Any, *, heavy_ball_momentum: float = 0.75) -> Any:
        heavy_ball_velocity = heavy_ball_momentum * heavy_ball_velocity + g
        return heavy_ball_velocity, heavy_ball_velocity

    rule = chain(heavy_ball, heavy_ball2, heavy_ball(momentum=0.5), sly)
    assert len(rule.states) == 4
    assert sorted(rule.hyperparameters.values()) == [0.125, 0.5, 0.75, 0.9]
    assert rule.hyperparameters["heavy_ball_momentum"] == 0.75  # it had the name first
    fused, _ = train(lambda p: gradstep.Optimizer(p, rule, engine="fused"), torch.float64)
    eager, _ = train(lambda p: gradstep.Optimizer(p, rule, engine="eager"), torch.float64)
    for a, b in zip(fused, eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_conditions_and_constants_of_states_follow_their_names() -> None:
    rule = chain(
        gradstep.sgd(momentum=0.9),
        gradstep.rmsprop(momentum=0.0),
        gradstep.adagrad(initial_accumulator_value=2.0),
    )
    assert rule.states["sgd_momentum_buffer"].when == "sgd_momentum"
    assert rule.states["rmsprop_momentum_buffer"].when == "rmsprop_momentum"
    assert rule.states["sum"].value == "initial_accumulator_value"
    _, optimizer = train(lambda p: gradstep.Optimizer(p, rule, engine="fused"), torch.float32, 1)
    states = optimizer.state[optimizer.param_groups[0]["params"][1]]
    assert "sgd_momentum_buffer" in states and "rmsprop_momentum_buffer" not in states
    assert states["sum"].min() > 2


def test_hyperparameters_are_set_by_the_names_of_the_chain() -> None:
    rule = chain(gradstep.adam, decay_weights)
    weight = torch.zeros(3)
    optimizer = gradstep.Optimizer([weight], rule, decay_weights_weight_decay=0.5, beta1=0.25)
    group = optimizer.param_groups[0]
    assert (group["decay_weights_weight_decay"], group["beta1"]) == (0.5, 0.25)
    with pytest.raises(TypeError, match=r"no hyperparameter 'weight_decay'; it has: .*adam_"):
        gradstep.Optimizer([weight], rule, weight_decay=0.5)
    with pytest.raises(ValueError, match="decay_weights_weight_decay must be at least 0"):
        gradstep.Optimizer([weight], rule, decay_weights_weight_decay=-0.5)
    group["decay_weights_weight_decay"] = "0.5"
    weight.grad = torch.ones(3)
    with pytest.raises(TypeError, match="decay_weights_weight_decay takes a number"):
        optimizer.step()
    assert weight.tolist() == [0, 0, 0]


# What cannot be chained.


def test_a_rule_that_sets_the_weight_stands_last() -> None:
    last, _ = train(
        lambda p: gradstep.Optimizer(p, chain(heavy_ball, shrink), lr=0.1), torch.float64
    )
    as_decay, _ = train(
        lambda p: gradstep.Optimizer(p, chain(heavy_ball, decay_weights(weight_decay=0.1)), lr=0.1),
        torch.float64,
    )
    for a, b in zip(last, as_decay, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    with pytest.raises(gradstep.RuleError, match="heavy_ball follows a rule that sets the weight"):
        gradstep.Optimizer([torch.zeros(3)], chain(shrink, heavy_ball))
    decoupled = gradstep.adam(weight_decay=0.1, decoupled_weight_decay=True)
    with pytest.raises(gradstep.RuleError, match="can only stand last"):
        gradstep.Optimizer([torch.zeros(3)], chain(decoupled, heavy_ball))
    gradstep.Optimizer([torch.zeros(3)], chain(heavy_ball, decoupled))


def test_what_is_no_chain() -> None:
    with pytest.raises(ValueError, match="at least one rule"):
        chain()
    with pytest.raises(TypeError, match=r"takes rules; got .*Is a decorator @gradstep\.rule"):
        chain(gradstep.adam, lambda g: g)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"is a chain: call run\(\)"):
        chain(gradstep.adam)(torch.zeros(3))


# A rule of one's own.


def same(a: list[Tensor], b: list[Any]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(heavy_ball, id="own"),
        pytest.param(chain(clip_by_value, heavy_ball, normed, decay_weights), id="chain"),
        pytest.param(chain(heavy_ball, heavy_ball(momentum=0.5), shrink), id="own chain"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_rule_of_ones_own_gets_everything(rule: gradstep.Rule, dtype: torch.dtype) -> None:
    """The kernel, checkpoints, copies and pickles; training goes on from each bit for bit."""

    def make(p: list[Any]) -> gradstep.Optimizer:
        return gradstep.Optimizer(p, rule, lr=0.1)

    weights, optimizer = train(make, dtype, steps=4)
    assert set(optimizer.engines_used().values()) == {"fused"}
    params = optimizer.param_groups[0]["params"]

    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    loaded_params = [torch.nn.Parameter(w.clone()) for w in weights]
    loaded = make(loaded_params)
    loaded.load_state_dict(torch.load(file))

    deep_params, deep = copy.deepcopy((params, optimizer))
    pickled_params, pickled = pickle.loads(pickle.dumps((params, optimizer)))
    go_on(optimizer, params, 4)
    for other, others in ((loaded, loaded_params), (deep, deep_params), (pickled, pickled_params)):
        assert not same(params, others)
        go_on(other, others, 4)
        assert same(params, others)
        assert set(other.engines_used().values()) == {"fused"}


def test_a_rule_of_ones_own_is_as_fast_as_the_packages_own() -> None:
    """The same text under another name makes the same kernel, to the last bit of machine code."""

    @gradstep.rule
    def mine(g: Any, momentum_buffer: Any, *, first: Any, momentum: float = 0.9) -> Any:
        momentum_buffer = gradstep.where(first, g, momentum * momentum_buffer + (1 - 0.0) * g)
        return momentum_buffer, momentum_buffer

    weights, _ = train(lambda p: gradstep.Optimizer(p, mine, lr=0.1), torch.float32)
    theirs, _ = train(lambda p: gradstep.SGD(p, lr=0.1, momentum=0.9), torch.float32)
    assert same(weights, theirs)


def test_states_may_start_as_anything() -> None:
    @gradstep.rule
    def starts(
        g: Any,
        plain: Any,
        constant: Any = gradstep.full(2.5),
        by_name: Any = gradstep.full("height"),
        weight: Any = gradstep.copy_of_weight(),
        first_gradient: Any = gradstep.copy_of_gradient(),
        *,
        height: float = -3.0,
    ) -> Any:
        total = plain + constant + by_name + weight + first_gradient
        return total, plain, constant, by_name, weight, first_gradient

    for engine in ("fused", "eager"):
        weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        weight.grad = torch.tensor([10.0, 20.0])
        optimizer = gradstep.Optimizer([weight], starts, lr=1.0, engine=engine)
        optimizer.step()
        # The direction is 0 + 2.5 − 3 + w + g.
        assert weight.tolist() == [-9.5, -19.5]
        entry = optimizer.state[weight]
        assert entry["weight"].tolist() == [1.0, 2.0]
        assert entry["first_gradient"].tolist() == [10.0, 20.0]
        assert entry["by_name"].tolist() == [-3.0, -3.0]


def test_hyperparameters_by_their_place():
    assert gradstep.decay_weights(0.1).hyperparameters == {"weight_decay": 0.1}
    assert gradstep.adam(0.8, 0.9).hyperparameters["beta2"] == 0.9
    with pytest.raises(TypeError, match=r"1 hyperparameter.*got 2"):
        gradstep.decay_weights(0.1, 0.2)
    with pytest.raises(TypeError, match="twice"):
        gradstep.decay_weights(0.1, weight_decay=0.1)
    with pytest.raises(ValueError, match="weight_decay"):
        gradstep.decay_weights(-0.1)
