"""A module whose tensors are swapped by ``to()`` is watched on, with nothing in torch's way."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import forked
import gradstep


@pytest.fixture(params=["swapped by the flag", "a subclass of tensors", "in place"])
def model(request: pytest.FixtureRequest) -> Iterator[nn.Module]:
    net = nn.Sequential(nn.Linear(3, 4), nn.GRU(4, 4), nn.Linear(4, 2))
    if request.param == "a subclass of tensors":
        for module in (net[0], net[2]):
            module.weight = nn.Parameter(module.weight.detach().as_subclass(Marked))
    torch.__future__.set_swap_module_params_on_conversion(request.param == "swapped by the flag")
    yield net
    torch.__future__.set_swap_module_params_on_conversion(False)


class Marked(Tensor):
    """Torch swaps those of a class that says so."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.__future__.get_swap_module_params_on_conversion:
            return True
        return super().__torch_function__(func, types, args, kwargs or {})


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer, clear: bool = True) -> None:
    if clear:
        optimizer.zero_grad()
    dtype = next(model.parameters()).dtype
    hidden = model[1](model[0](torch.randn(5, 3, dtype=dtype)))[0]
    model[2](hidden).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("before", [0, 1, 2, 6])
@pytest.mark.parametrize("keeps", [False, True], ids=["cleared gradients", "kept gradients"])
def test_a_conversion_goes_through_in_silence(model: nn.Module, before: int, keeps: bool) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error", gradstep.MistakeWarning)
        with gradstep.diagnose(model, optimizer) as diagnosis:
            for _ in range(before):
                one_step(model, optimizer)
            if not keeps:
                optimizer.zero_grad()
            model.to(torch.float64)
            model.to(torch.float32)
            for _ in range(5):
                one_step(model, optimizer)
    assert not diagnosis.findings
    assert not any(p._backward_hooks for p in model.parameters())


def test_a_mistake_after_a_conversion_is_found(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    with pytest.warns(gradstep.MistakeWarning), gradstep.diagnose(model, optimizer) as diagnosis:
        one_step(model, optimizer)
        model.to(torch.float64)
        for _ in range(3):
            one_step(model, optimizer, clear=False)
    assert [finding.name for finding in diagnosis.findings] == ["forgotten-zero-grad"]


def test_a_conversion_that_fails_leaves_the_watch_on(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    with pytest.warns(gradstep.MistakeWarning), gradstep.diagnose(model, optimizer) as diagnosis:
        one_step(model, optimizer)
        with pytest.raises(TypeError):
            model.to(torch.int32)
        with pytest.raises(ZeroDivisionError):
            model._apply(lambda tensor: 1 / 0)
        for _ in range(3):
            one_step(model, optimizer, clear=False)
    assert [finding.name for finding in diagnosis.findings] == ["forgotten-zero-grad"]


def test_the_doctor_lets_a_script_swap(tmp_path: Path) -> None:
    script = tmp_path / "swaps.py"
    script.write_text(
        "import torch\n"
        "torch.__future__.set_swap_module_params_on_conversion(True)\n"
        "net = torch.nn.Linear(3, 2)\n"
        "optimizer = torch.optim.SGD(net.parameters(), lr=0.01)\n"
        "for dtype in (torch.float32, torch.float64, torch.float32):\n"
        "    net.to(dtype)\n"
        "    for _ in range(3):\n"
        "        optimizer.zero_grad()\n"
        "        net(torch.randn(4, 3, dtype=dtype)).square().sum().backward()\n"
        "        optimizer.step()\n"
        "print('trained')\n"
    )
    done = forked.run("-m", "gradstep", "doctor", str(script))
    assert done.returncode == 0 and "trained" in done.stdout, done.stderr
