"""AdaHessian, before any estimate of the Hessian; with estimates it is in ``test_hessian.py``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import gradstep
from reference_row import Array, Reference


def adahessian(
    w: Array,
    gradients: Iterable[Array | None],
    estimates: Mapping[int, Array] | None = None,
    *,
    lr: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    hessian_power: float = 1.0,
    hessian_decay: float = 0.0,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Yao et al. 2020, algorithm 1, with estimates by the number of the step that they precede."""
    m, v, h, t = 0 * w, 0 * w, 0 * w + 1, 0
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    for number, g in enumerate(gradients):
        if estimates and number in estimates:
            h = hessian_decay * h + (1 - hessian_decay) * estimates[number]
        if g is not None:
            t += 1
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * h**2
            root = (v / (1 - beta2**t)) ** (w.dtype.type(hessian_power) / 2)
            w = w - lr * (m / (1 - beta1**t) / (root + eps) + weight_decay * w)
        yield w


REFERENCES = [
    Reference(
        gradstep.AdaHessian,
        gradstep.adahessian,
        adahessian,
        extra=[
            {},
            {
                "lr": 0.02,
                "betas": (0.75, 0.9),
                "hessian_power": 0.5,
                "weight_decay": 0.1,
                "maximize": True,
            },
        ],
    ),
]
