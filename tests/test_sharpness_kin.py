"""The kin of SAM, each beside its formula on a quadratic bowl with a wave, and through a file."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradstep

LR, RHO, STEPS = 0.05, 0.1, 7


def slope(w: Tensor, t: int) -> Tensor:
    return w + torch.sin(5 * w + t)


def start() -> Tensor:
    return torch.linspace(-1, 1, 7, dtype=torch.float64)


class Two(nn.Module):
    """The vector in two parameters: norms and products are over both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(start()[:3].clone()), nn.Parameter(start()[3:].clone())

    def give(self, t: int) -> float:
        """Gradients as a closure leaves them."""
        whole = slope(torch.cat([self.a, self.b]).detach(), t)
        self.a.grad, self.b.grad = whole[:3].clone(), whole[3:].clone()
        return float(whole.norm())

    def vector(self) -> Tensor:
        return torch.cat([self.a, self.b]).detach()


def trained(make: Callable[[Any], Any], steps: int = STEPS, half: int | None = None) -> Tensor:
    """The weights after all steps, gone on from a file at ``half``."""
    model = Two()
    optimizer = make(gradstep.SGD(model.named_parameters(), lr=LR))
    for t in range(steps):
        if t == half:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = make(gradstep.SGD(model.named_parameters(), lr=LR))
            optimizer.load_state_dict(saved)
        optimizer.step(lambda t=t: model.give(t))
    return model.vector()


def climbed(w: Tensor, along: Tensor) -> Tensor:
    return w + RHO * along / (along.norm() + 1e-12)


def gsam() -> Tensor:
    w = start()
    for t in range(STEPS):
        g = slope(w, t)
        above = slope(climbed(w, g), t)
        across = g - (g @ above) / (above @ above) * above
        w = w - LR * (above - 0.3 * across)
    return w


def wsam() -> Tensor:
    """Either way it is the same behind plain descent."""
    w = start()
    for t in range(STEPS):
        g = slope(w, t)
        above = slope(climbed(w, g), t)
        w = w - LR * ((1 - 2 * 0.8) / (1 - 0.8) * g + 0.8 / (1 - 0.8) * above)
    return w


def looksam() -> Tensor:
    w = start()
    across = torch.zeros(7, dtype=torch.float64)
    for t in range(STEPS):
        g = slope(w, t)
        if t % 3 == 0:
            above = slope(climbed(w, g), t)
            across = above - (above @ g) / (g @ g) * g
            w = w - LR * above
        else:
            w = w - LR * (g + 0.7 * g.norm() / across.norm() * across)
    return w


def friendly() -> Tensor:
    w = start()
    m = torch.zeros(7, dtype=torch.float64)
    for t in range(STEPS):
        g = slope(w, t)
        m = 0.6 * m + 0.4 * g
        w = w - LR * slope(climbed(w, g - 0.9 * m), t)
    return w


KIN: dict[str, tuple[Callable[[Any], Any], Callable[[], Tensor]]] = {
    "GSAM": (lambda o: gradstep.GSAM(o, RHO, 0.3), gsam),
    "WSAM": (lambda o: gradstep.WSAM(o, RHO, 0.8), wsam),
    "WSAM in the gradient": (lambda o: gradstep.WSAM(o, RHO, 0.8, decouple=False), wsam),
    "LookSAM": (lambda o: gradstep.LookSAM(o, RHO, 3), looksam),
    "FriendlySAM": (lambda o: gradstep.FriendlySAM(o, RHO, 0.9), friendly),
}


@pytest.mark.parametrize("name", KIN)
def test_each_is_its_formula_and_goes_on_from_a_file(name: str) -> None:
    make, formula = KIN[name]
    expected = formula()
    torch.testing.assert_close(trained(make), expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(trained(make, half=4), expected, rtol=1e-9, atol=1e-11)


def test_half_of_wsam_is_sam() -> None:
    half = trained(lambda o: gradstep.WSAM(o, RHO, 0.5, decouple=False))
    torch.testing.assert_close(half, trained(lambda o: gradstep.SAM(o, RHO)), rtol=1e-12, atol=0)


def test_most_steps_of_looksam_take_one_gradient() -> None:
    model, calls = Two(), []
    optimizer = gradstep.LookSAM(gradstep.SGD(model.parameters(), lr=LR), every=4)
    for t in range(8):
        optimizer.step(lambda t=t: calls.append(t) or model.give(t))
    assert calls == [0, 0, 1, 2, 3, 4, 4, 5, 6, 7]


def test_what_does_not_fit_is_named() -> None:
    inner = gradstep.SGD(Two().parameters(), lr=LR)
    for make, words in (
        (lambda: gradstep.WSAM(inner, gamma=1.0), "Invalid gamma: 1"),
        (lambda: gradstep.GSAM(inner, alpha=-1.0), "Invalid alpha: -1"),
        (lambda: gradstep.LookSAM(inner, every=0), "Invalid every: 0"),
        (lambda: gradstep.FriendlySAM(inner, decay=1.5), "Invalid decay"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
    with pytest.raises(RuntimeError, match=r"GSAM\.step\(\) needs a closure"):
        gradstep.GSAM(inner).step()
