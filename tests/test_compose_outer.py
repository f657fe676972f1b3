"""Last stages that move the weight beyond the step: each beside its algorithm, written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradstep
from gradstep import chain

LR, STEPS = 0.05, 11


@pytest.fixture(autouse=True)
def double_numbers() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def slope(w: Tensor) -> Tensor:
    """The gradient of a loss, so that it matters where it is taken."""
    return torch.sin(3 * w) + 0.3 * w


def start() -> Tensor:
    return torch.linspace(-2, 2, 11)


def ours(rule: gradstep.Rule, engine: str, lr: Any = LR) -> tuple[Tensor, dict[str, Any]]:
    weight = nn.Parameter(start())
    optimizer = gradstep.Optimizer([weight], rule, lr=lr, engine=engine)
    for _ in range(STEPS):
        weight.grad = slope(weight.detach())
        optimizer.step()
    return weight.detach(), optimizer.state[weight]


class Adam:
    """The base step from a point."""

    def __init__(self) -> None:
        self.m = self.v = torch.zeros(11)
        self.t = 0

    def __call__(self, x: Tensor) -> Tensor:
        g = slope(x)
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * g
        self.v = 0.99 * self.v + 0.01 * g**2
        root = (self.v / (1 - 0.99**self.t)).sqrt() + 1e-8
        return x - LR * self.m / (1 - 0.9**self.t) / root


ADAM = gradstep.adam(beta1=0.9, beta2=0.99)


@pytest.mark.parametrize("engine", ["fused", "eager"])
def test_ema_nesterov(engine: str) -> None:
    """x' = A(x + βₜ m), m' = γ m + (1 − γ)(x' − x), with a rate that is there for some steps."""
    rates = [0.0 if t in (0, 1, 9, 10) else 0.6 for t in range(STEPS + 1)]
    rule = chain(ADAM, gradstep.ema_nesterov(0.8, lambda t: rates[t + 1]))
    found, state = ours(rule, engine)
    base, x, m = Adam(), start(), torch.zeros(11)
    for t in range(STEPS):
        after = base(x + rates[t] * m)
        m = 0.8 * m + 0.2 * (after - x)
        x = after
    torch.testing.assert_close(found, x + rates[STEPS] * m, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(state["update_avg"], m, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("engine", ["fused", "eager"])
def test_outer_nesterov_is_torchs_sgd_on_the_ways(engine: str) -> None:
    found, _ = ours(chain(ADAM, gradstep.outer_nesterov(3, 0.7, 0.8)), engine)
    base, x = Adam(), start()
    outer = nn.Parameter(start())
    theirs = torch.optim.SGD([outer], lr=0.7, momentum=0.8, nesterov=True)
    for t in range(1, STEPS + 1):
        x = base(x)
        if t % 3 == 0:
            outer.grad = outer.detach() - x
            theirs.step()
            x = outer.detach().clone()
    torch.testing.assert_close(found, x, rtol=1e-10, atol=1e-12)
    same, _ = ours(chain(ADAM, gradstep.outer_nesterov(2, 1.0, 0.0)), engine)
    torch.testing.assert_close(same, ours(ADAM, engine)[0], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("engine", ["fused", "eager"])
@pytest.mark.parametrize("inner", ["sgd", "lion"])
def test_schedule_free_around_a_rule(inner: str, engine: str) -> None:
    """z moves by the rule's step, x is the average of the z, and y is between the two."""
    rule = gradstep.sgd() if inner == "sgd" else gradstep.lion()
    lr = gradstep.schedule.warmup(0.05, 3)
    found, state = ours(chain(rule, gradstep.schedule_free(0.75, 1.0, 2.0)), engine, lr)
    x = z = y = start()
    m, total, largest = torch.zeros(11), 0.0, 0.0
    for t in range(1, STEPS + 1):
        rate, g = lr(t - 1), slope(y)
        if inner == "sgd":
            move = g
        else:
            move = torch.sign(0.9 * m + 0.1 * g)
            m = 0.99 * m + 0.01 * g
        z = z - rate * move
        largest = max(largest, rate)
        weight = t * largest**2
        total += weight
        c = weight / total if total else 0.0
        x = (1 - c) * x + c * z
        y = 0.25 * z + 0.75 * x
    torch.testing.assert_close(found, y, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(state["z"], z, rtol=1e-9, atol=1e-11)


def test_schedule_free_behind_sgd_is_the_class_and_averages_are_seen() -> None:
    weights = [nn.Parameter(start()) for _ in range(2)]
    a: Any = gradstep.SGDScheduleFree([weights[0]], lr=LR)
    b = gradstep.AveragedWeights(
        gradstep.Optimizer([weights[1]], chain(gradstep.sgd(), gradstep.schedule_free()), lr=LR)
    )
    for _ in range(5):
        for w, o in zip(weights, (a, b), strict=True):
            w.grad = slope(w.detach())
            o.step()
    torch.testing.assert_close(*weights, rtol=1e-10, atol=1e-12)
    a.eval()
    b.eval()
    torch.testing.assert_close(*weights, rtol=1e-10, atol=1e-12)
