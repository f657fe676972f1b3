"""signSGD, Signum and Tiger."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference


def signsgd(
    w: Array, gradients: Iterable[Array | None], *, lr: float = 1e-4, weight_decay: float = 0.0
) -> Iterator[Array]:
    """Bernstein et al. 2018, algorithm 1, option 1, with a decay of the weight."""
    for g in gradients:
        if g is not None:
            w = w - lr * (numpy.sign(g) + weight_decay * w)
        yield w


def signum(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-4,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Bernstein et al. 2018, algorithm 2, with a decay of the weight."""
    m, beta = 0 * w, w.dtype.type(momentum)
    for g in gradients:
        if g is not None:
            m = beta * m + (1 - beta) * g
            w = w - lr * (numpy.sign(m) + weight_decay * w)
        yield w


def tiger(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-3,
    beta: float = 0.965,
    weight_decay: float = 0.01,
) -> Iterator[Array]:
    """Su 2023, equation 1."""
    return signum(w, gradients, lr=lr, momentum=beta, weight_decay=weight_decay)


def signsgd_oracle(params: Any, options: dict[str, Any]) -> Any:
    from pytorch_optimizer import SignSGD

    return SignSGD(params, **{"lr": 1e-4, **options}, momentum=0.0)


def signum_oracle(params: Any, options: dict[str, Any]) -> Any:
    from pytorch_optimizer import SignSGD

    return SignSGD(params, **{"lr": 1e-4, **options})


def tiger_oracle(params: Any, options: dict[str, Any]) -> Any:
    from pytorch_optimizer import Tiger

    return Tiger(params, **options)


REFERENCES = [
    Reference(
        gradstep.SignSGD,
        gradstep.signsgd,
        signsgd,
        extra=[{}, {"lr": 0.01, "weight_decay": 0.1, "maximize": True}],
        oracle=signsgd_oracle,
    ),
    Reference(
        gradstep.Signum,
        gradstep.signum,
        signum,
        extra=[{}, {"lr": 0.01, "momentum": 0.5, "weight_decay": 0.1, "maximize": True}],
        oracle=signum_oracle,
    ),
    Reference(
        gradstep.Tiger,
        gradstep.tiger,
        tiger,
        extra=[{}, {"lr": 0.01, "beta": 0.5, "weight_decay": 0.0, "maximize": True}],
        oracle=tiger_oracle,
    ),
]
