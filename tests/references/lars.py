"""LARS."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy
import torch

import gradstep
from reference_row import Array, Reference, f64


def lars(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1.0,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    trust_coefficient: float = 1e-3,
    lr_in_momentum: bool = True,
) -> Iterator[Array]:
    """You, Gitman & Ginsburg 2017, algorithm 1, without its schedule.

    While the learning rate is constant it does not matter where it stands.
    """
    v = 0 * w
    momentum = w.dtype.type(momentum)
    for g in gradients:
        if g is not None:
            size, slope = numpy.sqrt(numpy.sum(w**2)), numpy.sqrt(numpy.sum(g**2))
            whole = slope + weight_decay * size
            local = trust_coefficient * size / whole if size > 0 and whole > 0 else 1
            v = momentum * v + lr * local * (g + weight_decay * w)
            w = w - v
        yield w


def timm_lars(params: Any, options: dict[str, Any]) -> torch.optim.Optimizer:
    from timm.optim import Lars

    given = {"lr": 1.0, "momentum": 0.9, "weight_decay": 5e-4, "trust_coefficient": 1e-3, **options}
    given["trust_coeff"] = given.pop("trust_coefficient")
    given.pop("lr_in_momentum", None)
    return Lars(params, **given, always_adapt=True, eps=0.0)


REFERENCES = [
    Reference(
        gradstep.LARS,
        gradstep.lars,
        lars,
        extra=[
            {},
            {"lr": 2.0, "weight_decay": 0.1, "momentum": 0.5, "maximize": True},
            {"lr": f64(4.0), "weight_decay": 0.0, "lr_in_momentum": False},
        ],
        takes_complex=False,
        elementwise=False,
        oracle=timm_lars,
    ),
]
