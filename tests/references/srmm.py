"""SRMM."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import gradstep
from reference_row import Array, Reference, f64


def srmm(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 0.01,
    beta: float = 0.5,
    memory_length: int = 100,
) -> Iterator[Array]:
    """Lyu 2022: the least of the averaged surrogates, each ``<g, x − w> + |x − w|²/2lr``.

    Both its parts are averaged by themselves, the first from 0, the second from the weight.
    """
    linear, centre, t = 0 * w, w, 0
    for g in gradients:
        if g is not None:
            t += 1
            share = w.dtype.type((t % memory_length + 1) ** -beta)
            linear = (1 - share) * linear + share * g
            centre = (1 - share) * centre + share * w
            w = centre - lr * linear
        yield w


REFERENCES = [
    Reference(
        gradstep.SRMM,
        gradstep.srmm,
        srmm,
        extra=[
            {},
            {"lr": f64(0.1), "beta": 0.9, "maximize": True},
            {"beta": 0.25, "memory_length": 7},
        ],
    ),
]
