"""SM3."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy
import torch

import gradstep
from reference_row import Array, Reference, f64


def sm3(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 0.1,
    momentum: float = 0.9,
) -> Iterator[Array]:
    """Anil et al. 2019, algorithm SM3-II: a matrix is covered by its rows and its columns."""
    m, row, column, total = 0 * w, 0 * w, 0 * w, 0 * w
    momentum = w.dtype.type(momentum)
    for g in gradients:
        if g is not None:
            if w.ndim < 2:
                total = total + g**2
            else:
                total = numpy.minimum(row, column) + g**2
                row = 0 * w + numpy.max(total, -1, keepdims=True)
                column = 0 * w + numpy.max(total, -2, keepdims=True)
            step = numpy.where(total > 0, g / numpy.sqrt(numpy.where(total > 0, total, 1)), 0)
            m = momentum * m + (1 - momentum) * step
            w = w - lr * m
        yield w


def pytorch_optimizer_sm3(params: Any, options: dict[str, Any]) -> torch.optim.Optimizer:
    """Theirs has one number for each index of each dimension: it is given matrices, one by one."""
    from pytorch_optimizer import SM3

    from references.adam_mini import ByMatrices

    return ByMatrices(params, lambda parts: SM3(parts, **{"momentum": 0.9, **options}), rows=False)


REFERENCES = [
    Reference(
        gradstep.SM3,
        gradstep.sm3,
        sm3,
        extra=[
            {},
            {"lr": 0.5, "momentum": 0.5, "maximize": True},
            {"lr": f64(0.05), "momentum": 0.0},
        ],
        takes_complex=False,
        elementwise=False,
        by_rows=True,
        oracle=pytorch_optimizer_sm3,
    ),
]
