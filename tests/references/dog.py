"""DoG, LDoG and DoWG. All weights are one vector here, but of LDoG."""

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


def ldog(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1.0,
    reps_rel: float = 1e-6,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Ivgi et al. 2023, equation 2 for each layer; numbers are kept in float32, as all are."""
    start, kind = w, w.dtype.type
    furthest, total = numpy.float32(0), numpy.float32(0)
    for g in gradients:
        if g is not None:
            g = g + weight_decay * w
            way = max(kind(furthest), numpy.sqrt(numpy.sum((w - start) ** 2)))
            way = way if furthest else reps_rel * (1 + numpy.sqrt(numpy.sum(w**2)))
            squares = kind(total) + numpy.sum(g**2)
            w = w - lr * way / numpy.sqrt(squares + eps) * g
            furthest, total = numpy.float32(way), numpy.float32(squares)
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


def _ldog(parameters: Any, options: dict[str, Any]) -> Any:
    from dog import LDoG

    return LDoG(parameters, **options)


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
        gradstep.LDoG,
        gradstep.ldog,
        ldog,
        extra=[
            {},
            {"reps_rel": 0.01},
            {"reps_rel": 1e-3, "weight_decay": 0.1, "lr": f64(0.5), "maximize": True},
        ],
        takes_complex=False,
        elementwise=False,
        oracle=_ldog,
    ),
    Reference(
        gradstep.DoWG,
        gradstep.dowg,
        dowg,
        extra=[{}, {"eps": 1e-3, "weight_decay": 0.1, "lr": f64(0.5), "maximize": True}],
        takes_complex=False,
        elementwise=False,
        coupled=True,
        # In NumPy's float64 the formula itself is 28 eps off what it is in more digits.
        bound=32.0,
        oracle=_dowg,
    ),
]
