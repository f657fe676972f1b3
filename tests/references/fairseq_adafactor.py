"""Adafactor as fairseq, Hugging Face and timm have it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference


def fairseq_adafactor(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-3,
    eps1: float = 1e-30,
    eps2: float = 1e-3,
    clip_threshold: float = 1.0,
    decay_rate: float = -0.8,
    beta1: float = 0.0,
    weight_decay: float = 0.0,
    scale_parameter: bool = True,
    relative_step: bool = False,
) -> Iterator[Array]:
    """Shazeer & Stern 2018, algorithms 4 and 5, with section 9's options."""
    r = c = m = 0 * w
    t = 0

    def size(x: Array) -> Any:
        return numpy.sqrt(numpy.mean(x**2))

    for g in gradients:
        if g is not None:
            t += 1
            new = w.dtype.type(t) ** w.dtype.type(decay_rate)
            square = g**2 + eps1
            if w.ndim < 2:
                r = (1 - new) * r + new * square
                u = g / numpy.sqrt(r)
            else:
                r = (1 - new) * r + new * numpy.mean(square, -1, keepdims=True)
                c = (1 - new) * c + new * numpy.mean(square, -2, keepdims=True)
                share = r[..., :1] / numpy.mean(r[..., :1], -2, keepdims=True)
                u = g / numpy.sqrt(share) / numpy.sqrt(c[..., :1, :])
            rate = min(1e-2, t**-0.5) if relative_step else lr
            rate = w.dtype.type(rate) * (max(eps2, size(w)) if scale_parameter else 1)
            u = rate * u / max(1, size(u) / clip_threshold)
            m = beta1 * m + (1 - beta1) * u
            w = w - rate * w.dtype.type(weight_decay) * w - m
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    from transformers.optimization import Adafactor

    names = {"eps1", "eps2"}
    given = {n: v for n, v in options.items() if n not in names}
    given.setdefault("relative_step", False)
    if given["relative_step"]:
        given["lr"] = None
    else:
        given.setdefault("lr", 1e-3)
    given["beta1"] = given.get("beta1") or None
    eps = (options.get("eps1", 1e-30), options.get("eps2", 1e-3))
    return Adafactor(params, eps=eps, **given)


REFERENCES = [
    Reference(
        gradstep.FairseqAdafactor,
        gradstep.fairseq_adafactor,
        fairseq_adafactor,
        extra=[
            {},
            {"lr": 0.02, "beta1": 0.75, "weight_decay": 0.1, "scale_parameter": False},
            {"relative_step": True, "clip_threshold": 0.5, "eps2": 0.1},
        ],
        takes_complex=False,
        elementwise=False,
        by_rows=True,
        bound=64.0,
        oracle=oracle,
        oracle_shapes=[(8, 6), (5,)],
    ),
]
