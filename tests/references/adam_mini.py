"""Adam-mini."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy
import torch

import gradstep
from reference_row import Array, Reference, f64


def adam_mini(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    by_rows: bool = True,
) -> Iterator[Array]:
    """Zhang et al. 2024, algorithm 1: blocks are rows, or all of a parameter.

    The second moment of a whole parameter is kept in float32, as all its numbers are.
    """
    m, v, t = 0 * w, 0 * w, 0
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    for g in gradients:
        if g is not None:
            t += 1
            m = beta1 * m + (1 - beta1) * g
            rows = by_rows and w.ndim > 1
            mean = numpy.mean(g**2, -1, keepdims=True) if rows else numpy.mean(g**2)
            v = beta2 * v + (1 - beta2) * mean
            u = m / (1 - beta1**t) / (numpy.sqrt(v / (1 - beta2**t)) + eps)
            w = w - lr * (u + weight_decay * w)
            v = v if rows else v.astype(numpy.float32).astype(w.dtype)
        yield w


class ByMatrices(torch.optim.Optimizer):
    """Another optimizer that sees every weight of more than two dimensions as matrices.

    Args:
        params: the weights.
        make: makes the other optimizer, of a list of parameters that share the weights' memory.
        rows: all rows of a weight as one matrix; if not, each of its matrices as one.
    """

    def __init__(
        self, params: Any, make: Callable[[Any], torch.optim.Optimizer], rows: bool
    ) -> None:
        super().__init__(params, {})
        self.rows = rows
        self.parts = [
            (p, [torch.nn.Parameter(part) for part in self._cut(p.detach())])
            for p in self.param_groups[0]["params"]
        ]
        self.inner = make([part for _, parts in self.parts for part in parts])

    def _cut(self, p: torch.Tensor) -> list[torch.Tensor]:
        if p.dim() < 3:
            return [p]
        flat = p.reshape(-1, *p.shape[-2:])
        return [flat.reshape(-1, p.shape[-1])] if self.rows else list(flat)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for p, parts in self.parts:
            cut = [None] * len(parts) if p.grad is None else self._cut(p.grad)
            for part, gradient in zip(parts, cut, strict=True):
                part.grad = gradient
        self.inner.step()


def authors_adam_mini(params: Any, options: dict[str, Any]) -> torch.optim.Optimizer:
    """Theirs goes by names: "mlp" has a second moment a row, and what it does not know has one."""
    from adam_mini import Adam_mini

    given = dict(options)
    by_rows = given.pop("by_rows", True)

    def make(parts: Any) -> torch.optim.Optimizer:
        named = [("mlp" if by_rows and p.dim() > 1 else "block", p) for p in parts]
        return Adam_mini(named, **given, verbose=False)

    return ByMatrices(params, make, rows=True)


REFERENCES = [
    Reference(
        gradstep.AdamMini,
        gradstep.adam_mini,
        adam_mini,
        extra=[
            {},
            {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.1, "maximize": True},
            {"lr": f64(0.01), "by_rows": False, "weight_decay": 0.01, "eps": 1e-3},
        ],
        takes_complex=False,
        elementwise=False,
        by_rows=True,
        oracle=authors_adam_mini,
    ),
]
