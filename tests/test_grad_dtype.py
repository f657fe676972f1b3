"""Gradients in another dtype than their weight's: torch's ``grad_dtype``."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradstep

pytestmark = pytest.mark.skipif(
    not hasattr(torch.Tensor, "grad_dtype"), reason="this torch has no grad_dtype"
)

bf16, half, single, double = torch.bfloat16, torch.float16, torch.float32, torch.float64
#: Weight and gradient.
DTYPES = [(bf16, single), (half, single), (single, double), (single, bf16), (single, half)]

#: Of torch's classes, those whose own step takes such gradients.
IN_TORCH: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1}), ("SGD", {"lr": 0.1, "momentum": 0.9}), ("RMSprop", {}),
    ("Adagrad", {}), ("Rprop", {}), ("Muon", {}),
]  # fmt: skip

ALL: list[tuple[str, dict[str, Any]]] = [
    *IN_TORCH, ("Adam", {}), ("AdamW", {}), ("NAdam", {}), ("Lion", {}), ("LAMB", {}),
    ("Prodigy", {}), ("SOAP", {}), ("Adafactor", {}),
]  # fmt: skip


def weight(of: tuple[torch.dtype, torch.dtype]) -> nn.Parameter:
    p = nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=of[0]))
    p.grad_dtype = of[1]
    return p


def backward(p: Tensor, dtype: torch.dtype, step: int) -> None:
    p.grad = None
    factor = torch.tensor([[0.3, -0.1], [0.2, 0.7]], dtype=dtype) / (step + 1)
    (p.to(dtype) * factor).sum().backward()
    assert p.grad is not None and p.grad.dtype == dtype


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "options"), IN_TORCH)
def test_as_torch_moves_it(
    name: str, options: dict[str, Any], dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    moved = []
    for library in (torch.optim, gradstep):
        p = weight(dtypes)
        optimizer = getattr(library, name)([p], **options)
        for step in range(3):
            backward(p, dtypes[1], step)
            optimizer.step()
        moved.append(p.detach())
    # torch rounds at every operation, and its running sum has the gradient's dtype.
    close = 1e-2 if bf16 in dtypes else 4e-3 if half in dtypes else 1e-4
    torch.testing.assert_close(moved[1], moved[0], rtol=close, atol=close / 10)


@pytest.mark.parametrize("engine", ["auto", "eager"])
@pytest.mark.parametrize("dtypes", [(bf16, single), (single, bf16)], ids=str)
@pytest.mark.parametrize(("name", "options"), ALL)
def test_a_gradient_of_numbers_that_both_dtypes_have_moves_it_alike(
    name: str, options: dict[str, Any], dtypes: tuple[torch.dtype, torch.dtype], engine: str
) -> None:
    moved = []
    for gradient in dtypes:
        p = nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=dtypes[0]))
        p.grad_dtype = gradient
        optimizer = getattr(gradstep, name)([p], engine=engine, **options)
        for step in range(3):
            p.grad = torch.tensor([[0.5, -0.25], [2.0, step + 1.0]], dtype=gradient)
            optimizer.step()
        moved.append(p.detach())
    close = {bf16: 1e-2, single: 1e-5}[dtypes[0]]  # one goes by a kernel, one by torch
    torch.testing.assert_close(moved[1], moved[0], rtol=close, atol=close / 10)


def test_nothing_of_a_wide_gradient_is_lost_on_the_way() -> None:
    """It is beyond what float16 can hold; Adam divides it away again."""
    p = weight((half, single))
    before = p.detach().clone()
    optimizer = gradstep.SGD([p], lr=1e-6)
    p.grad = torch.full((2, 2), 1e6)
    optimizer.step()
    torch.testing.assert_close(p.detach(), before - 1)


def test_the_engine_changes_with_the_gradients_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    p = weight((single, bf16))
    p.grad_dtype = None  # any
    optimizer = gradstep.AdamW([("w", p)])
    used = []
    with caplog.at_level(logging.WARNING, logger="gradstep"):
        for dtype in (single, bf16, bf16, single):
            p.grad = torch.ones(2, 2, dtype=dtype)
            optimizer.step()
            used.append(optimizer.engines_used()["w"])
    assert used == ["fused", "eager", "eager", "fused"]
    said = [r.getMessage() for r in caplog.records]
    assert said == ["w is updated by the eager engine: its gradient is torch.bfloat16"]


def test_a_gradient_that_was_left_behind_is_still_refused() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = gradstep.SGD([("w", p)])
    p.grad = torch.ones(3)
    p.data = p.data.double()
    with pytest.raises(ValueError, match="gradient of w is float32 3 on cpu; its weight is float6"):
        optimizer.step()
    assert torch.equal(p.detach(), torch.ones(3, dtype=double))
