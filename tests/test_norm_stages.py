"""Stages that tie a step to the norm of its weight, against their formulas in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import gradstep
from gradstep import chain

LR = 0.125
SHAPES = [(7,), (6, 5), (3, 2, 4)]
Formula = Callable[[Any, Any, Any, float], Any]


def norm(x: Any) -> float:
    return float(np.sqrt((x * x).sum()))


def unit(x: Any) -> Any:
    return x / norm(x) if norm(x) else x


def hyperball(w: Any, start: Any, u: Any, lr: float) -> Any:
    radius = norm(start)
    return radius * unit(w - lr * radius * unit(u)) if radius else w - lr * u


def relative(w: Any, start: Any, u: Any, lr: float) -> Any:
    return w - lr * 0.5 * norm(w) * unit(u)


def floored(w: Any, start: Any, u: Any, lr: float) -> Any:
    return w - lr * max(norm(u), 1.5 * norm(w)) * unit(u)


def braked(w: Any, start: Any, u: Any, lr: float) -> Any:
    after = w - lr * u
    change = norm(after) - norm(w)
    return unit(after) * (norm(w) + change * (0.25 if change > 0 else 0.75))


def corrected(w: Any, start: Any, u: Any, lr: float) -> Any:
    return w - lr * u - lr * lr / LR * 0.1 * w


def rows(w: Any, start: Any, u: Any, lr: float) -> Any:
    return w - lr * u / np.maximum(np.sqrt((u * u).sum(-1, keepdims=True)), 1e-8)


def columns(w: Any, start: Any, u: Any, lr: float) -> Any:
    return w - lr * u / np.maximum(np.sqrt((u * u).sum(-2, keepdims=True)), 1e-8)


#: Stages and what they make of (weight, weight at first, direction, lr).
STAGES: dict[str, tuple[gradstep.Rule, Formula]] = {
    "hyperball": (gradstep.hyperball(), hyperball),
    "relative_update": (gradstep.relative_update(0.5), relative),
    "floor": (gradstep.relative_update(1.5, floor=True), floored),
    "radial_brake": (gradstep.radial_brake(0.25, 0.75), braked),
    "corrected_decay": (gradstep.corrected_decay(0.1), corrected),
    "corrected_decay, told": (gradstep.corrected_decay(0.1, max_lr=LR), corrected),
    "normalize_rows": (gradstep.normalize_rows(), rows),
    "normalize_columns": (gradstep.normalize_columns(), columns),
}
#: Those that take the weight after the step.
LAST = ("hyperball", "relative_update", "floor", "radial_brake")


@gradstep.rule
def outright(g: Any, *, w: Any, lr: Any) -> Any:
    """Sets the weight, as Muon does."""
    return gradstep.new_weight(w - lr * g)


@pytest.mark.parametrize("engine", ["fused", "eager"])
@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_its_formula(name: str, engine: str) -> None:
    """For four steps with a falling rate, one without a gradient, behind both kinds of rules."""
    stage, formula = STAGES[name]
    shapes = SHAPES[1:] if "normalize" in name else SHAPES
    before = [gradstep.scale(1.0), outright] if name in LAST else [gradstep.scale(1.0)]
    for rule in before:
        random = torch.Generator().manual_seed(1)
        starts = [torch.randn(s, dtype=torch.float64, generator=random) for s in shapes]
        starts.append(torch.zeros(shapes[-1], dtype=torch.float64))
        weights = [nn.Parameter(w.clone()) for w in starts]
        optimizer = gradstep.Optimizer(weights, chain(rule, stage), lr=LR, engine=engine)
        for step in range(4):
            optimizer.param_groups[0]["lr"] = lr = LR / (1 + step)
            expected = []
            for w, start in zip(weights, starts, strict=True):
                u = torch.randn(w.shape, dtype=torch.float64, generator=random) * (step != 2)
                w.grad = u
                expected.append(formula(w.detach().numpy().copy(), start.numpy(), u.numpy(), lr))
            optimizer.step()
            for w, wanted in zip(weights, expected, strict=True):
                np.testing.assert_allclose(w.detach().numpy(), wanted, rtol=1e-7, atol=1e-7)
        assert set(optimizer.engines_used().values()) == {engine}


def test_a_radius_lasts_over_a_checkpoint() -> None:
    """The sphere is that of the first weight, not of the one at which a training was resumed."""
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    rule = chain(gradstep.adam(), gradstep.hyperball())
    optimizer = gradstep.Optimizer([weight], rule, lr=0.1)
    weight.grad = torch.tensor([1.0, -2.0])
    optimizer.step()
    again = nn.Parameter(2 * weight.detach())
    resumed = gradstep.Optimizer([again], rule, lr=0.1)
    resumed.load_state_dict(optimizer.state_dict())
    again.grad = torch.tensor([1.0, -2.0])
    resumed.step()
    assert again.norm().item() == pytest.approx(5.0, rel=1e-6)


def test_rows_of_a_vector_are_refused() -> None:
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    with pytest.raises(ValueError, match="works along rows and columns"):
        gradstep.Optimizer([weight], gradstep.normalize_rows, lr=0.1).step()
