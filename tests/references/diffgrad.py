"""DiffGrad."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference


def diffgrad(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Dubey et al. 2019, algorithm 1."""
    m, v, before, t = 0 * w, 0 * w, 0 * w, 0
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    for g in gradients:
        if g is not None:
            t += 1
            g = g + weight_decay * w
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g**2
            xi = 1 / (1 + numpy.exp(-numpy.abs(before - g)))
            before = g
            w = w - lr * xi * m / (1 - beta1**t) / (numpy.sqrt(v / (1 - beta2**t)) + eps)
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    from torch_optimizer import DiffGrad

    optimizer = DiffGrad(params, **options)
    eps, beta2 = options.get("eps", 1e-8), options.get("betas", (0.9, 0.999))[1]
    steps = 0

    def before(*_: Any) -> None:  # theirs adds eps to the uncorrected root
        nonlocal steps
        steps += 1
        optimizer.param_groups[0]["eps"] = eps * (1 - beta2**steps) ** 0.5

    optimizer.register_step_pre_hook(before)
    return optimizer


REFERENCES = [
    Reference(
        gradstep.DiffGrad,
        gradstep.diffgrad,
        diffgrad,
        extra=[
            {},
            {"lr": 0.01, "betas": (0.8, 0.9), "eps": 0.01, "weight_decay": 0.1, "maximize": True},
        ],
        oracle=oracle,
    ),
]
