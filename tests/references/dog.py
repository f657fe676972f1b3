"""DoG and DoWG. All weights are one vector here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference, f64


def dog(
    w: Array,
    gradients: Iterable[Array],
    *,
    lr: float = 1.0,
    reps_rel: float = 1e-6,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Ivgi et al. 2023, equation 2 with the initial distance of section 3.3."""
    start = w
    furthest, total = reps_rel * (1 + numpy.sqrt(numpy.sum(w**2))), 0
    for g in gradients:
        g = g + weight_decay * w
        furthest = max(furthest, numpy.sqrt(numpy.sum((w - start) ** 2)))
        total = total + numpy.sum(g**2)
        w = w - lr * furthest / numpy.sqrt(total + eps) * g
        yield w


def dowg(
    w: Array,
    gradients: Iterable[Array],
    *,
    lr: float = 1.0,
    eps: float = 1e-4,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Khaled et al. 2023, algorithm 1, with the authors' eps."""
    start, furthest, total = w, eps, 0
    for g in gradients:
        g = g + weight_decay * w
        furthest = max(furthest, numpy.sum((w - start) ** 2))
        total = total + furthest * numpy.sum(g**2)
        w = w - lr * furthest / (numpy.sqrt(total) + eps) * g
        yield w


def _dog(parameters: Any, options: dict[str, Any]) -> Any:
    from dog import DoG

    return DoG(parameters, **options)


def _dowg(parameters: Any, options: dict[str, Any]) -> Any:
    import optax

    from reference_optax import InOptax

    lr = options.pop("lr", 1.0)
    return InOptax(parameters, optax.contrib.dowg(lr, **options))


REFERENCES = [
    Reference(
        gradstep.DoG,
        gradstep.dog,
        dog,
        extra=[{}, {"reps_rel": 1e-3, "weight_decay": 0.1, "lr": f64(0.5), "maximize": True}],
        takes_complex=False,
        elementwise=False,
        coupled=True,
        oracle=_dog,
    ),
    Reference(
        gradstep.DoWG,
        gradstep.dowg,
        dowg,
        extra=[{}, {"eps": 1e-3, "weight_decay": 0.1, "lr": f64(0.5), "maximize": True}],
        takes_complex=False,
        elementwise=False,
        coupled=True,
        oracle=_dowg,
    ),
]
