"""What newer releases of torch brought: where torch does it, ours does; the rest everywhere."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

import gradstep
import reference
from classes import IN_TORCH, Row, each

#: Whether torch's own LBFGS can climb, as it can since 2.14.
LBFGS_CLIMBS = "maximize" in inspect.signature(torch.optim.LBFGS).parameters
climbing = pytest.mark.skipif(not LBFGS_CLIMBS, reason="LBFGS climbs since torch 2.14")
SEARCHES = pytest.mark.parametrize("search", [None, "strong_wolfe"])


class TurnsTheSign(torch.optim.LBFGS):
    """As another release of torch might: what it gathers is not the plain gradient."""

    def _gather_flat_grad(self) -> Tensor:
        return super()._gather_flat_grad().neg()


class OursOnIt(gradstep.LBFGS, TurnsTheSign):
    pass


def hill(p: Tensor) -> Tensor:
    away = (p - 1).reshape(-1)  # in the same order whatever the layout
    return -(away**2).sum() - 0.1 * (away**4).sum()


def weights(layout: str) -> nn.Parameter:
    values = torch.linspace(-1, 2, 6, dtype=torch.float64).reshape(2, 3)
    return nn.Parameter(values.t().contiguous().t() if layout == "transposed" else values)


def closure(optimizer: Any, p: nn.Parameter, loss: Callable[[Tensor], Tensor]) -> Any:
    def evaluated() -> Tensor:
        optimizer.zero_grad()
        value = loss(p)
        value.backward()
        return value

    return evaluated


@pytest.mark.parametrize("layout", ["rows", "transposed"])
def test_what_torch_makes_of_the_gradient_is_kept_in_every_layout(layout: str) -> None:
    """The sign above climbs: with a gradient of its own, ours would go down for ever."""
    p = weights(layout)
    optimizer = OursOnIt([p], lr=0.3)
    for _ in range(5):
        optimizer.step(closure(optimizer, p, hill))
    torch.testing.assert_close(p.detach(), torch.ones_like(p), rtol=0, atol=1e-3)


def test_no_other_private_method_of_torchs_optimizers_is_overridden() -> None:
    """Each may change with the next release; those here call torch's."""
    found = set()
    for row in IN_TORCH:
        for owner in row.ours.__mro__:
            if owner.__module__.startswith("gradstep"):
                own = {n for n in vars(owner) if n.startswith("_") and not n.startswith("__")}
                found |= {n for n in own if hasattr(torch.optim.Optimizer, n)}
                found |= {n for n in own if n in vars(row.theirs)}
    assert found == {"_gather_flat_grad", "_patch_step_function"}


@climbing
@SEARCHES
@pytest.mark.parametrize("layout", ["rows", "transposed"])
def test_lbfgs_climbs_as_it_descends_on_the_negative(search: str | None, layout: str) -> None:
    up, down = weights(layout), weights("rows")
    climber = gradstep.LBFGS([up], max_iter=4, line_search_fn=search, maximize=True)
    faller = torch.optim.LBFGS([down], max_iter=4, line_search_fn=search)
    for number in range(6):
        high = climber.step(closure(climber, up, hill))
        low = faller.step(closure(faller, down, lambda p: -hill(p)))
        assert high.item() == -low.item()
        assert torch.equal(up, down)
        if number == 2:  # a checkpoint climbs on
            state = climber.state_dict()
            climber = gradstep.LBFGS([up])
            climber.load_state_dict(state)
    torch.testing.assert_close(up.detach(), torch.ones_like(up), rtol=0, atol=1e-4)


@pytest.mark.skipif(LBFGS_CLIMBS, reason="torch's own climbs")
def test_lbfgs_refuses_to_climb_where_torchs_cannot() -> None:
    p = weights("rows")
    with pytest.raises(TypeError, match="maximize"):
        gradstep.LBFGS([p], maximize=True)
    optimizer = gradstep.LBFGS([p])
    state = optimizer.state_dict()
    state["param_groups"][0]["maximize"] = True
    with pytest.raises(ValueError, match=r"group 0 .* maximizes, .* torch 2\.14 or later"):
        optimizer.load_state_dict(state)
    state["param_groups"][0]["maximize"] = False  # as newer ones write it
    optimizer.load_state_dict(state)


@pytest.mark.parametrize("engine", ["fused", "eager"])
@pytest.mark.parametrize("shape", [(6, 3), (3, 6), (4, 4), (1, 7), (5, 1)], ids=str)
def test_muon_takes_the_spectral_scale(engine: str, shape: tuple[int, int]) -> None:
    random = torch.Generator().manual_seed(4)
    p = nn.Parameter(torch.randn(shape, generator=random, dtype=torch.float64))
    gradients = [torch.randn(shape, generator=random, dtype=torch.float64) for _ in range(3)]
    options = {"lr": 0.02, "adjust_lr_fn": "spectral_unclamped"}
    expected = reference.muon(p.detach().numpy().copy(), [g.numpy() for g in gradients], **options)
    optimizer = gradstep.Muon([p], engine=engine, **options)
    for g, there in zip(gradients, expected, strict=True):
        p.grad = g
        optimizer.step()
        # The iteration runs in bfloat16.
        numpy.testing.assert_allclose(p.detach().numpy(), there, rtol=0, atol=2e-3)
    clamped = nn.Parameter(p.detach().clone())
    for q, how in ((p, "spectral_unclamped"), (clamped, "original")):
        q.grad = gradients[0]
        gradstep.Muon([q], lr=0.02, weight_decay=0.0, adjust_lr_fn=how, engine=engine).step()
    assert torch.equal(p, clamped) == (shape[0] >= shape[1])


@pytest.mark.parametrize("name", ["lambd", "alpha"])
def test_asgd_refuses_negative_powers_and_decays(name: str) -> None:
    with pytest.raises(ValueError, match=f"Invalid {name} value: -0.5"):
        gradstep.ASGD([weights("rows")], **{name: -0.5})


@each(IN_TORCH)
def test_ours_takes_all_that_the_installed_torch_takes(row: Row) -> None:
    """In torch's order and with torch's defaults, so that a call by position means the same."""
    ours, theirs = (inspect.signature(c).parameters for c in (row.ours, row.theirs))
    assert {n for n, p in theirs.items() if n not in ours or p.kind != ours[n].kind} == set()
    assert {n: p.default for n, p in theirs.items()} == {n: ours[n].default for n in theirs}
    positional = [n for n, p in theirs.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [n for n in ours if n in positional] == positional
