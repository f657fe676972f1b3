"""Where in the forward pass values that are not finite began, and what a diagnosis says of it."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

import gradstep


class Exp(nn.Module):
    """Overflows where ``scale`` is large."""

    scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(x * self.scale)


class Both(nn.Module):
    """Calls a part by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.exp, self.last = nn.Linear(6, 8), Exp(), Named(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(values=self.exp(self.first(x)))


class Named(nn.Linear):
    """Takes its input by keyword."""

    def forward(self, values: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(values)


def made() -> tuple[Both, Any]:
    torch.manual_seed(0)
    model = Both()
    return model, torch.optim.SGD(model.parameters(), lr=1e-3)


def backward(model: nn.Module, x: Tensor | None = None) -> None:
    model.zero_grad()
    model(torch.randn(5, 6) if x is None else x).square().mean().backward()


def overflow(model: Both) -> None:
    model.exp.scale = 1e6
    backward(model)


def nan_in_batch(model: Both) -> None:
    backward(model, torch.full((5, 6), math.nan))


def weight_of_inf(model: Both) -> None:
    # Only as a constant: a parameter that is not finite is said to be so in any case.
    model.first.weight.requires_grad_(False)
    model.first.weight.fill_(math.inf)
    backward(model)


def nan_by_keyword(model: Both) -> None:
    model.zero_grad()
    model.last(values=torch.full((5, 8), math.nan)).square().mean().backward()


def loss_alone(model: Both) -> None:
    model.zero_grad()
    (model(torch.randn(5, 6)).mean() * math.inf).backward()


@pytest.mark.parametrize(
    "spoil, seen",
    [
        (overflow, r"^exp \(Exp\) returned inf in the forward pass, though its input"),
        (nan_in_batch, r"^what first \(Linear\) was given in the forward pass is nan already"),
        (weight_of_inf, r"^weights of first \(Linear\) are inf, and so"),
        (nan_by_keyword, r"^what last \(Named\) was given in the forward pass is nan already"),
        (loss_alone, r"what the modules returned in the forward pass was finite$"),
    ],
)
def test_the_beginning_is_named(spoil: Callable[[Both], None], seen: str) -> None:
    model, _ = made()
    if spoil is weight_of_inf:
        held: Any = [*model.exp.parameters(), *model.last.parameters()]
    else:
        held = list(model.parameters())
    optimizer = torch.optim.SGD(held, lr=1e-3)
    with gradstep.diagnose(model, optimizer, on_mistake="list") as diagnosis:
        spoil(model)
        optimizer.step()
    [finding] = [f for f in diagnosis.findings if f.name == "non-finite-gradient"]
    assert re.search(seen, finding.seen), finding.seen


def test_values_that_gradients_do_not_suffer_from_are_no_mistake() -> None:
    """A mask of -inf before a softmax."""

    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.masked_fill(torch.eye(*x.shape[-2:]).bool(), -math.inf)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), Masked(), nn.Softmax(-1), nn.Linear(5, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with gradstep.diagnose(model, optimizer, on_mistake="list") as diagnosis:
        for _ in range(5):
            backward(model)
            optimizer.step()
    assert diagnosis.findings == []


def test_after_the_first_steps_it_looks_when_gradients_were_not_finite() -> None:
    model, optimizer = made()
    hooks = torch_module._global_forward_hooks
    before = len(hooks)
    with gradstep.diagnose(model, optimizer, on_mistake="raise") as diagnosis:
        counts = []
        for _ in range(5):
            counts.append(len(hooks) - before)
            backward(model)
            optimizer.step()
        assert counts == [1, 1, 1, 0, 0]
        for named in ("first", "exp (Exp) returned inf"):
            overflow(model)
            with pytest.raises(gradstep.MistakeError) as caught:  # so the step is left out
                optimizer.step()
            assert named in str(caught.value)
            assert len(hooks) == before + 1
        model.exp.scale = 1.0
        for _ in range(3):
            backward(model)
            optimizer.step()
        assert len(hooks) == before
    assert [f.name for f in diagnosis.findings] == ["non-finite-gradient"] * 2


def test_closing_takes_the_hooks_off() -> None:
    model, optimizer = made()
    before = len(torch_module._global_forward_hooks)
    others = dict(torch_module._global_forward_hooks_with_kwargs)
    diagnosis = gradstep.diagnose(model, optimizer)
    assert len(torch_module._global_forward_hooks) == before + 1
    diagnosis.close()
    assert len(torch_module._global_forward_hooks) == before
    assert dict(torch_module._global_forward_hooks_with_kwargs) == others


def test_a_compiled_module_is_quiet() -> None:
    model, optimizer = made()
    compiled: Any = torch.compile(model, backend="eager")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*global hooks")
        filters = list(warnings.filters)
        with gradstep.diagnose(model, optimizer, on_mistake="list") as diagnosis:
            backward(compiled)
            optimizer.step()
        # torch 2.7's compiler puts one of its own in front, about torch.distributed.
        own = [f for f in warnings.filters if getattr(f[3], "pattern", "") != "torch.distributed"]
        assert own == filters
    assert diagnosis.findings == []
