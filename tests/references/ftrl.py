"""FTRL-Proximal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy
import torch

import gradstep
from reference_row import Array, Reference


def ftrl(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 0.1,
    beta: float = 1.0,
    lambda_1: float = 0.0,
    lambda_2: float = 0.0,
) -> Iterator[Array]:
    """McMahan et al. 2013, algorithm 1, from a weight other than 0: z starts at −β/α · w."""
    z, n = -beta / lr * w, 0 * w
    for g in gradients:
        if g is not None:
            sigma = (numpy.sqrt(n + g**2) - numpy.sqrt(n)) / lr
            z = z + g - sigma * w
            n = n + g**2
            below = (beta + numpy.sqrt(n)) / lr + lambda_2
            w = numpy.where(numpy.abs(z) <= lambda_1, 0, (numpy.sign(z) * lambda_1 - z) / below)
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    from pytorch_optimizer import FTRL

    options = {"lr": 0.1, "beta": 1.0, **options}
    optimizer = FTRL(params, **options)
    for p in params:  # theirs starts from a weight of 0
        z = -options["beta"] / options["lr"] * p.detach()
        optimizer.state[p] = {"z": z, "n": torch.zeros_like(p)}
    return optimizer


REFERENCES = [
    Reference(
        gradstep.FTRL,
        gradstep.ftrl,
        ftrl,
        extra=[
            {},
            {"lr": 0.05, "beta": 0.5, "lambda_1": 0.1, "lambda_2": 0.2, "maximize": True},
        ],
        oracle=oracle,
    ),
]
