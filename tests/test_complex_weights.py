"""Complex weights are pairs of real ones, in every class and configuration that takes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from classes import ROWS, Row, Task, assert_same_bits, each_configuration

COMPLEX = [row for row in ROWS if row.takes_complex]


@each_configuration(COMPLEX)
def test_complex_weights_beside_real_ones_move_as_their_views(
    row: Row, options: dict[str, Any]
) -> None:
    """All that a line search tries on the way included."""
    random = torch.Generator().manual_seed(3)
    shapes = [(10, 5), (10,), (10, 5)]
    dtypes = [torch.complex64, torch.complex64, torch.float32]
    starts = [
        torch.randn(s, dtype=d, generator=random) for s, d in zip(shapes, dtypes, strict=True)
    ]
    passed: list[list[Tensor]] = []
    for as_real in (False, True):

        def given(values: Tensor, as_real: bool = as_real) -> Tensor:
            return torch.view_as_real(values) if as_real and values.is_complex() else values

        params = [given(s).clone().requires_grad_() for s in starts]
        optimizer = row.make(params, options)
        gradients = torch.Generator().manual_seed(4)
        seen: list[Tensor] = []

        def closure(
            params: Any = params, seen: Any = seen, gradients: Any = gradients, given: Any = given
        ) -> Tensor:
            for p, s in zip(params, starts, strict=True):
                p.grad = given(torch.randn(s.shape, dtype=s.dtype, generator=gradients))
                seen.append((torch.view_as_real(p) if p.is_complex() else p).detach().clone())
            return torch.randn(1, generator=gradients)

        for _ in range(3):
            optimizer.step(closure)
        seen.extend((torch.view_as_real(p) if p.is_complex() else p).detach() for p in params)
        passed.append(seen)
    assert_same_bits(*passed)


@each_configuration(COMPLEX)
def test_a_complex_weight_moves_as_its_two_parts(row: Row, options: dict[str, Any]) -> None:
    if row.needs_closure:
        # It sums over all numbers, and the parts stand in another order.
        tolerance = {"rtol": 1e-4, "atol": 1e-5}
    else:
        tolerance = {"rtol": 0.0, "atol": 0.0}
    whole = Task(row, torch.complex64)
    parts = [p.detach().clone() for p in whole]
    parts = [part.clone().requires_grad_() for p in parts for part in (p.real, p.imag)]
    left, right = row.make(whole, options), row.make(parts, options)

    def of_parts() -> Tensor:
        right.zero_grad()
        task = Task(row, torch.complex64)
        pairs = zip(task.params, parts[::2], parts[1::2], strict=True)
        task.params = {name: torch.complex(a, b) for name, a, b in pairs}  # type: ignore[misc]
        loss = task.loss()
        loss.backward()
        return loss.detach()

    for _ in range(3):
        left.step(whole.closure(left))
        right.step(of_parts)
        for p, a, b in zip(whole, parts[::2], parts[1::2], strict=True):
            torch.testing.assert_close(p.detach().real, a.detach(), **tolerance)
            torch.testing.assert_close(p.detach().imag, b.detach(), **tolerance)
