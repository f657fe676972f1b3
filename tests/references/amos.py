"""Amos."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy
import torch

import gradstep
from reference_row import Array, Reference, f64


def amos(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-3,
    beta: float = 0.999,
    momentum: float = 0.0,
    scale: float | None = None,
    c_coef: float = 0.25,
    d_coef: float = 0.25,
    eps: float = 1e-18,
) -> Iterator[Array]:
    """Tian & Parikh 2022, algorithm 1; v and b are kept in float32, as all numbers are."""
    m, v, b, t = 0 * w, numpy.float32(0), numpy.float32(0), 0
    kind = w.dtype.type
    beta = kind(beta)
    eta = kind(scale or (0.5 if w.ndim < 2 else (2 / w.shape[-1]) ** 0.5))
    xi = kind(lr)
    for g in gradients:
        if g is not None:
            t += 1
            squares = numpy.mean(g**2)
            new_v = beta * kind(v) + (1 - beta) * squares
            v_hat = (new_v + kind(eps)) / (1 - beta**t)
            c = 1 / numpy.sqrt(1 + c_coef * numpy.sqrt(xi) * kind(b))
            d = 1 / (1 + d_coef * numpy.sqrt(xi * eta) * kind(b))
            gamma = c * xi**2 / v_hat * squares
            step = d * (xi * eta / numpy.sqrt(v_hat) * g + gamma / 2 * w)
            m = momentum * m + (1 - momentum) * step
            w = w - m
            v, b = numpy.float32(new_v), numpy.float32(kind(b) + gamma * (1 + kind(b)))
        yield w


def pytorch_optimizer_amos(params: Any, options: dict[str, Any]) -> torch.optim.Optimizer:
    """Theirs has another scale beyond two dimensions: it is given ours."""
    from pytorch_optimizer import Amos

    given = dict(options)
    scale = given.pop("scale", None)

    def get_scale(p: torch.Tensor) -> float:
        return scale or (0.5 if p.dim() < 2 else (2 / p.shape[-1]) ** 0.5)

    return type("Amos", (Amos,), {"get_scale": staticmethod(get_scale)})(params, **given)


REFERENCES = [
    Reference(
        gradstep.Amos,
        gradstep.amos,
        amos,
        extra=[
            {},
            {"lr": 0.05, "beta": 0.9, "momentum": 0.5, "maximize": True},
            {"lr": f64(0.02), "scale": 0.25, "c_coef": 1.0, "d_coef": 0.5},
        ],
        takes_complex=False,
        elementwise=False,
        oracle=pytorch_optimizer_amos,
    ),
]
