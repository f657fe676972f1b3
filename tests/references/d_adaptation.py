"""D-Adaptation, for Adam and for SGD. All weights are one vector here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference, f64


def dadapt_adam(
    w: Array,
    gradients: Iterable[Array],
    *,
    lr: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    d0: float = 1e-6,
    decoupled_weight_decay: bool = False,
) -> Iterator[Array]:
    """Defazio & Mishchenko 2023, algorithm 5."""
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    kept = numpy.sqrt(beta2)
    m, v, s, r, d = 0 * w, 0 * w, 0 * w, 0, d0
    for g in gradients:
        step = d * lr
        if not decoupled_weight_decay:
            g = g + weight_decay * w
        r = kept * r + (1 - kept) * step * numpy.sum(g * s / (numpy.sqrt(v) + eps))
        m = beta1 * m + (1 - beta1) * step * g
        v = beta2 * v + (1 - beta2) * g**2
        s = kept * s + (1 - kept) * step * g
        d = max(d, r / ((1 - kept) * numpy.sum(numpy.abs(s))))
        if decoupled_weight_decay:
            w = w - step * weight_decay * w
        w = w - m / (numpy.sqrt(v) + eps)
        yield w


def dadapt_sgd(
    w: Array,
    gradients: Iterable[Array],
    *,
    lr: float = 1.0,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    d0: float = 1e-6,
) -> Iterator[Array]:
    """Defazio & Mishchenko 2023, algorithm 4."""
    start, s, r, d, first = w, 0 * w, 0, d0, None
    for g in gradients:
        g = g + weight_decay * w
        first = numpy.sqrt(numpy.sum(g**2)) if first is None else first
        step = d * lr / first
        r = r + step * numpy.sum(g * s)
        s = s + step * g
        d = max(d, 2 * r / numpy.sqrt(numpy.sum(s**2)))
        w = momentum * w + (1 - momentum) * (start - s)
        yield w


def _dadapt_adam(parameters: Any, options: dict[str, Any]) -> Any:
    from dadaptation import DAdaptAdam

    decouple = options.pop("decoupled_weight_decay", False)
    return DAdaptAdam(parameters, decouple=decouple, **options)


def _dadapt_sgd(parameters: Any, options: dict[str, Any]) -> Any:
    from dadaptation import DAdaptSGD

    return DAdaptSGD(parameters, **options)


REFERENCES = [
    Reference(
        gradstep.DAdaptAdam,
        gradstep.dadapt_adam,
        dadapt_adam,
        # At lr 1 it shoots past the target of test_every_class.py, as dadaptation does.
        extra=[
            {"lr": 0.3},
            {
                "lr": f64(0.3),
                "d0": 1e-3,
                "betas": (0.8, 0.99),
                "weight_decay": 0.1,
                "maximize": True,
            },
            {"lr": 0.3, "d0": 1e-3, "weight_decay": 0.1, "decoupled_weight_decay": True},
        ],
        takes_complex=False,
        elementwise=False,
        coupled=True,
        bound=16.0,  # a longer step makes the next longer: roundings grow
        oracle=_dadapt_adam,
    ),
    Reference(
        gradstep.DAdaptSGD,
        gradstep.dadapt_sgd,
        dadapt_sgd,
        # Without decay, which dadaptation leaves out of the norm of the first gradient.
        extra=[{}, {"lr": f64(0.5), "d0": 1e-2, "momentum": 0.9, "maximize": True}],
        takes_complex=False,
        elementwise=False,
        coupled=True,
        bound=16.0,  # a longer step makes the next longer: roundings grow
        oracle=_dadapt_sgd,
    ),
]
