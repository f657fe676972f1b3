"""A diagnosis and a watch follow parameters that are replaced in training, and hold no old ones."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradstep


class Scene(nn.Module):
    """Of points, each with a place and an opacity, as in Gaussian splatting."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.randn(20, 3))
        self.opacity = nn.Parameter(torch.randn(20, 1))

    def forward(self) -> Tensor:
        return (self.place.square().sum(1) * self.opacity[:, 0]).square().sum()


def replace(scene: Scene, optimizer: torch.optim.Optimizer, model_first: bool) -> list[Any]:
    """Five points more, in the optimizer and in the model; weak references to the old tensors."""
    gone = []
    for group in optimizer.param_groups:
        old = group["params"][0]
        gone.append(weakref.ref(old))
        state = optimizer.state.pop(old, {})
        new = nn.Parameter(torch.cat([old.detach(), torch.randn_like(old[:5])]))
        for name in ("exp_avg", "exp_avg_sq"):
            if name in state:
                state[name] = torch.cat([state[name], torch.zeros_like(state[name][:5])])
        if state:
            optimizer.state[new] = state
        if model_first:
            setattr(scene, group["name"], new)
        group["params"][0] = new
        setattr(scene, group["name"], new)
    return gone


def made(scene: Scene) -> torch.optim.Optimizer:
    groups = [{"params": [p], "name": name} for name, p in scene.named_parameters()]
    return gradstep.Adam(groups, lr=1e-3)


LOOKERS: dict[str, Callable[..., Any]] = {"diagnose": gradstep.diagnose, "watch": gradstep.watch}


@pytest.mark.parametrize("model_first", [False, True], ids=["optimizer first", "model first"])
@pytest.mark.parametrize("looker", LOOKERS)
def test_replaced_parameters_are_followed_and_freed(looker: str, model_first: bool) -> None:
    scene = Scene()
    optimizer = made(scene)
    gone: list[Any] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", gradstep.MistakeWarning)
        with LOOKERS[looker](scene, optimizer) as found:
            for step in range(30):
                if step % 7 == 3:
                    gone += replace(scene, optimizer, model_first)
                optimizer.zero_grad()
                scene().backward()
                optimizer.step()
            gc.collect()
            assert len(gone) == 8 and not any(old() is not None for old in gone)
    if looker == "diagnose":
        assert not found.findings


def test_a_model_that_gets_new_parameters_without_the_optimizer_is_still_found() -> None:
    """Also when others were replaced as they should be before."""
    scene = Scene()
    optimizer = made(scene)
    with pytest.warns(gradstep.MistakeWarning), gradstep.diagnose(scene, optimizer) as diagnosis:
        for step in range(12):
            if step == 3:
                replace(scene, optimizer, False)
            if step == 6:
                scene.place = nn.Parameter(scene.place.detach().clone())
            optimizer.zero_grad()
            scene().backward()
            optimizer.step()
    assert [finding.name for finding in diagnosis.findings] == ["parameter-replaced"]
    assert diagnosis.findings[0].parameter == "place"
