"""The functional form: the optimizer's bits, derivatives through it, and many nets at once."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradstep
from configurations import CONFIGURATIONS

SHAPES = {"matrix": (6, 5), "vector": (7,), "filter": (3, 2, 3, 3)}
#: One of each kind: states of numbers, along rows, for all parameters, of a first gradient.
RULES: dict[str, gradstep.Rule] = {
    "adam": gradstep.adam(weight_decay=0.1),
    "momentum": gradstep.sgd(momentum=0.9, nesterov=True),
    "nadam": gradstep.nadam,
    "adafactor": gradstep.adafactor,
    "prodigy": gradstep.prodigy,
    "a chain": gradstep.chain(
        gradstep.clip_by_global_norm(1.0),
        gradstep.lion(),
        gradstep.decay_weights(0.1),
        gradstep.average_weights(0.9),
    ),
    "radam": gradstep.radam(beta2=0.9),
    "adan": gradstep.adan,
    "schedule-free": gradstep.adamw_schedule_free(warmup_steps=4),
}
each_rule = pytest.mark.parametrize("name", RULES)


def drawn(number: int, shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(number)
    return {n: torch.randn(s, generator=generator) for n, s in shapes.items()}


def gradients(number: int) -> dict[str, Any]:
    """The vector's first one comes later."""
    found: dict[str, Any] = drawn(100 + number)
    return found if number > 1 else {**found, "vector": None}


def assert_as_the_optimizer(
    rule: gradstep.Rule, engine: str, followed: bool, **options: Any
) -> None:
    params = drawn(1)
    weights = {n: nn.Parameter(p.clone()) for n, p in params.items()}
    optimizer = gradstep.Optimizer(weights.items(), rule, engine=engine, **options)
    state = rule.init(params, lr=options.get("lr"))
    update = {n: v for n, v in options.items() if n in ("lr", "maximize")}
    for number in range(6):
        given = gradients(number)
        for n, w in weights.items():
            w.grad = given[n]
        optimizer.step()
        if followed:
            for p in params.values():
                p.requires_grad_()
        params, state = rule.update(given, state, params, **update)
        assert params["matrix"].requires_grad == followed
        params = {n: p.detach() for n, p in params.items()}
        state = {n: {k: v.detach() for k, v in e.items()} for n, e in state.items()}
        for n, w in weights.items():
            assert torch.equal(params[n], w), (number, n)
            for key, value in optimizer.state[w].items():
                assert torch.equal(state[n][key], value), (number, n, key)


@each_rule
@pytest.mark.parametrize("followed", [False, True], ids=["plain", "recorded"])
def test_the_bits_are_the_optimizers(name: str, followed: bool) -> None:
    """Those of the fused engine; and, where autograd follows, those of torch's operations."""
    engine = "eager" if followed else "auto"
    assert_as_the_optimizer(RULES[name], engine, followed, lr=0.02, maximize=name == "adan")


@pytest.mark.deep
@pytest.mark.parametrize("reference", CONFIGURATIONS, ids=lambda r: f"{r[0].name}-{r[1]}")
def test_the_bits_of_every_rule(reference: Any) -> None:
    row, options = reference
    names = {n: v for n, v in options.items() if n in row.rule.hyperparameters}
    if "loss" in row.rule.inputs or row.dimensions is not None or row.rule.sparse == "only":
        pytest.skip("asks for more")
    assert_as_the_optimizer(row.rule(**names), "auto", False, lr=0.02)


def test_nothing_that_is_given_is_changed() -> None:
    for name, rule in RULES.items():
        params, given = drawn(1), drawn(2)
        state = rule.init(params)
        for _ in range(2):
            before = copy.deepcopy((params, state, given))
            made, after = rule.update(given, state, params, lr=0.1)
            assert not torch.equal(made["matrix"], params["matrix"]), name
            for a, b in zip(
                torch.utils._pytree.tree_leaves((params, state, given)),
                torch.utils._pytree.tree_leaves(before),
                strict=True,
            ):
                assert torch.equal(a, b), name
            params, state = made, after


def test_any_nest() -> None:
    rule = gradstep.adam()
    a, b, c = (torch.ones(2) * i for i in range(3))
    for params in (a, [a, b], {"x": a, "y": (b, [c])}):
        state = rule.init(params)
        moved, after = rule.update(params, state, params, lr=0.1)
        assert type(moved) is type(params)
        moved, after = rule.update(params, after, moved)
    assert after["y"][1][0]["step"] == 2 and {*after["x"]} == {"step", "exp_avg", "exp_avg_sq"}


# Derivatives.


def ten_steps(
    rule: gradstep.Rule, names: tuple[str, ...], dtype: torch.dtype, *inputs: Tensor
) -> Tensor:
    """The loss after ten steps, as a function of numbers and the first weights."""
    numbers = dict(zip(names, inputs, strict=False))
    weights = list(inputs[len(names) :])
    state = rule.init([w.detach() for w in weights])
    state = [{n: v.to(dtype) for n, v in entry.items()} for entry in state]
    for number in range(10):
        slopes = [torch.cos(w * (1 + number)) + 0.1 * w for w in weights]
        weights, state = rule.update(slopes, state, weights, **numbers)
    return torch.stack([(w**2).sum() for w in weights]).sum()


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        (gradstep.sgd(momentum=0.5, weight_decay=0.1), ("lr", "momentum", "weight_decay")),
        (gradstep.adam(weight_decay=0.1), ("lr", "beta1", "beta2", "weight_decay")),
        (gradstep.nadam, ("lr", "beta1")),
        (gradstep.chain(gradstep.clip_by_global_norm(1.0), gradstep.trace()), ("lr", "max_norm")),
        pytest.param(gradstep.rmsprop(momentum=0.5), ("lr", "alpha"), marks=pytest.mark.deep),
        pytest.param(gradstep.adabelief, ("lr", "beta2"), marks=pytest.mark.deep),
        pytest.param(gradstep.adafactor, ("lr",), marks=pytest.mark.deep),
        pytest.param(gradstep.laprop, ("lr", "beta2"), marks=pytest.mark.deep),
    ],
    ids=lambda v: v.name if isinstance(v, gradstep.Rule) else "",
)
def test_gradients_through_ten_steps(rule: gradstep.Rule, names: tuple[str, ...]) -> None:
    start = {
        "lr": 0.1,
        "momentum": 0.5,
        "weight_decay": 0.1,
        "beta1": 0.8,
        "beta2": 0.9,
        "max_norm": 0.7,
        "alpha": 0.9,
    }
    inputs = [torch.tensor(start[n], dtype=torch.float64, requires_grad=True) for n in names]
    for shape in ((3, 2), (4,)):
        made = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        inputs.append(made.requires_grad_())
    function = functools.partial(ten_steps, rule, names, torch.float64)
    assert torch.autograd.gradcheck(function, inputs)
    assert all(d.abs().max() > 1e-6 for d in torch.autograd.grad(function(*inputs), inputs))


def test_torch_func_grad_agrees_with_autograd() -> None:
    def after(lr: Tensor) -> Tensor:
        return ten_steps(gradstep.adam, ("lr",), torch.float32, lr, torch.linspace(-1, 1, 5))

    rate = torch.tensor(0.05, requires_grad=True)
    (expected,) = torch.autograd.grad(after(rate), rate)
    torch.testing.assert_close(torch.func.grad(after)(torch.tensor(0.05)), expected)
    assert torch.isfinite(torch.func.hessian(after)(torch.tensor(0.05)))


# Many nets.


@pytest.mark.parametrize("name", ["adam", "momentum", "a chain", "nadam"])
def test_a_hundred_nets_train_at_once_each_with_its_own_rate(name: str) -> None:
    """vmap over learning rates, weights and states; each net is as if it were alone."""
    rule = RULES[name]
    generator = torch.Generator().manual_seed(4)
    points = torch.randn(32, 4, generator=generator)
    labels = (points[:, 0] > points[:, 1]).long()
    first = {"a": torch.randn(4, 8, generator=generator) / 2, "b": torch.zeros(8),
             "c": torch.randn(8, 2, generator=generator) / 2}  # fmt: skip

    def loss(params: dict[str, Tensor]) -> Tensor:
        hidden = torch.tanh(points @ params["a"] + params["b"])
        return nn.functional.cross_entropy(hidden @ params["c"], labels)

    def step(params: Any, state: Any, lr: Any) -> Any:
        return rule.update(torch.func.grad(loss)(params), state, params, lr=lr)

    rates = torch.logspace(-4, -0.5, 100)
    params = {n: p.expand(100, *p.shape) for n, p in first.items()}
    one = rule.init(first)
    state = {n: {k: v.expand(100, *v.shape) for k, v in e.items()} for n, e in one.items()}
    for _ in range(20):
        params, state = torch.func.vmap(step)(params, state, rates)
    losses = torch.func.vmap(loss)(params)
    assert losses.min() < loss(first) - 0.2 and losses.std() > 0.01
    for number in (3, 60):
        alone, own = first, one
        for _ in range(20):
            alone, own = step(alone, own, float(rates[number]))
        for n, p in alone.items():
            torch.testing.assert_close(params[n][number], p, rtol=2e-4, atol=2e-5)


def test_vmap_over_any_number() -> None:
    """A decay that is mapped counts as other than 0, also where one of them is 0."""
    weight, given = torch.ones(3), torch.ones(3) * 0.5
    rule = gradstep.sgd()
    state = rule.init(weight)

    def after(decay: Any) -> Tensor:
        return rule.update(given, state, weight, lr=0.1, weight_decay=decay)[0]  # type: ignore[no-any-return]

    decays = torch.tensor([0.0, 0.1, 0.2])
    found = torch.func.vmap(after)(decays)
    torch.testing.assert_close(found, torch.stack([after(float(d)) for d in decays]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adam", "momentum", "a chain"])
def test_under_torch_compile_in_one_graph(name: str) -> None:
    rule = RULES[name]
    torch.compiler.reset()
    compiled = torch.compile(
        lambda g, s, p, lr: rule.update(g, s, p, lr=lr), fullgraph=True, backend="aot_eager"
    )
    params, theirs = drawn(1), drawn(1)
    state, other = rule.init(params), rule.init(params)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number in range(4):
            given, lr = drawn(50 + number), 0.1 / (number + 1)
            params, state = compiled(given, state, params, torch.tensor(lr))
            theirs, other = rule.update(given, other, theirs, lr=lr)
    for n, p in theirs.items():
        torch.testing.assert_close(params[n], p, rtol=1e-5, atol=1e-6)
        assert state[n]["step"] == 4


# What does not fit.


def test_what_does_not_fit_is_named() -> None:
    rule, params = gradstep.adam(), drawn(1)
    state = rule.init(params)
    with pytest.raises(ValueError, match=r"adam\.update\(\): grads has another structure"):
        rule.update({"matrix": params["matrix"]}, state, params)
    with pytest.raises(TypeError, match="adam has no hyperparameter 'momentum'; it has: beta1"):
        rule.update(params, state, params, momentum=0.9)
    with pytest.raises(
        TypeError, match=r"adam\.init\(\) takes floating-point .*leaf 0 is torch\.int64"
    ):
        rule.init({"a": torch.ones(2, dtype=torch.int64)})
    with pytest.raises(TypeError, match=r"adam has a schedule for weight_decay.*schedule\(step\)"):
        gradstep.adam(weight_decay=gradstep.schedule.linear(0, 1, 9)).init(params)
    with pytest.raises(TypeError, match=r"momo\.update\(\) needs the loss"):
        gradstep.momo.update(params, gradstep.momo.init(params), params)
    momentum = gradstep.sgd(momentum=0.9)
    without = gradstep.sgd.init(params)
    following = {n: p.clone().requires_grad_() for n, p in params.items()}
    with pytest.raises(ValueError, match="the state has no 'momentum_buffer'"):
        momentum.update(params, without, following)
    with pytest.raises(ValueError, match="leave out stored_as"):
        gradstep.stored_as(rule, exp_avg="bfloat16").update(params, state, following)


def test_a_loss_and_states_of_few_bits() -> None:
    params, given = drawn(1), drawn(2)
    moved, _ = gradstep.momo.update(
        given, gradstep.momo.init(params), params, loss=torch.tensor(2.0)
    )
    assert not torch.equal(moved["vector"], params["vector"])
    rule = gradstep.stored_as(gradstep.adam(), exp_avg="bfloat16")
    state = rule.init(params)
    assert state["vector"]["exp_avg"].dtype == torch.bfloat16
    _, state = rule.update(given, state, params)
    assert state["vector"]["exp_avg"].dtype == torch.bfloat16
