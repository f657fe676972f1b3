"""D-Adaptation, for Adam, SGD, AdaGrad, Adan and Lion. All weights are one vector here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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


def dadapt_adagrad(
    w: Array,
    gradients: Iterable[Array],
    *,
    lr: float = 1.0,
    momentum: float = 0.0,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    d0: float = 1e-6,
) -> Iterator[Array]:
    """Defazio & Mishchenko 2023, algorithm 3, from sums of squares of 1e-6 as its code."""
    start, s, squares, q, d = w, 0 * w, 0 * w + 1e-6, 0, d0
    for g in gradients:
        g = g + weight_decay * w
        squares = squares + g**2
        root = numpy.sqrt(squares) + eps
        q = q + (d * lr) ** 2 * numpy.sum(g**2 / root)
        s = s + d * lr * g
        d = max(d, (numpy.sum(s**2 / root) - q) / numpy.sum(numpy.abs(s)))
        w = momentum * w + (1 - momentum) * (start - s / root)
        yield w


def dadapt_adan(
    w: Array,
    gradients: Iterable[Array],
    *,
    lr: float = 1.0,
    betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
    eps: float = 1e-8,
    weight_decay: float = 0.02,
    d0: float = 1e-6,
    no_prox: bool = False,
) -> Iterator[Array]:
    """Adan's algorithm 1 without corrections, and d as in the authors' code."""
    b1, b2, b3 = (w.dtype.type(b) for b in betas)
    m, u, n, s, q, d, before = 0 * w, 0 * w, 0 * w, 0 * w, 0, d0, None
    for g in gradients:
        change = 0 * w if before is None else g - before
        step = d * lr
        m = b1 * m + (1 - b1) * step * g
        u = b2 * u + (1 - b2) * step * change
        n = b3 * n + (1 - b3) * (g + b2 * change) ** 2
        root = numpy.sqrt(n) + eps
        s = b3 * s + (1 - b3) * step * g
        q = b3 * q + (1 - b3) * step**2 * numpy.sum(g**2 / root)
        d = max(d, (numpy.sum(s**2 / root) / (1 - b3) - q) / numpy.sum(numpy.abs(s)))
        w = w * (1 - step * weight_decay) if no_prox else w
        w = w - (m + b2 * u) / root
        w = w if no_prox else w / (1 + step * weight_decay)
        before = g
        yield w


def dadapt_lion(
    w: Array,
    gradients: Iterable[Array],
    *,
    lr: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
    d0: float = 1e-6,
) -> Iterator[Array]:
    """As the authors' code has it."""
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    kept = numpy.sqrt(beta2)
    m, s, r, d = 0 * w, 0 * w, 0, d0
    for g in gradients:
        step = d * lr
        w = w - step * weight_decay * w
        update = numpy.sign(beta1 * m + (1 - beta1) * g)
        w = w - step * update
        m = beta2 * m + (1 - beta2) * step * g
        r = kept * r + (1 - kept) * step * numpy.sum(update * s)
        s = kept * s + (1 - kept) * step * update
        d = max(d, r / ((1 - kept) * numpy.sum(numpy.abs(s))))
        yield w


def _dadapt_adam(parameters: Any, options: dict[str, Any]) -> Any:
    from dadaptation import DAdaptAdam

    decouple = options.pop("decoupled_weight_decay", False)
    return DAdaptAdam(parameters, decouple=decouple, **options)


def _of_dadaptation(name: str) -> Callable[[Any, dict[str, Any]], Any]:
    """The authors' class of that name, where it takes the arguments of ours."""

    def oracle(parameters: Any, options: dict[str, Any]) -> Any:
        import dadaptation

        return getattr(dadaptation, name)(parameters, **options)

    return oracle


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
        oracle=_of_dadaptation("DAdaptSGD"),
    ),
    Reference(
        gradstep.DAdaptAdaGrad,
        gradstep.dadapt_adagrad,
        dadapt_adagrad,
        extra=[
            {"lr": 0.3},
            {"lr": f64(0.1), "d0": 1e-3, "momentum": 0.9, "weight_decay": 0.1, "maximize": True},
        ],
        takes_complex=False,
        elementwise=False,
        coupled=True,
        bound=16.0,  # a longer step makes the next longer: roundings grow
        oracle=_of_dadaptation("DAdaptAdaGrad"),
    ),
    Reference(
        gradstep.DAdaptAdan,
        gradstep.dadapt_adan,
        dadapt_adan,
        extra=[
            {"lr": 0.3},
            {
                "lr": f64(0.1),
                "d0": 1e-3,
                "betas": (0.9, 0.8, 0.95),
                "weight_decay": 0.1,
                "maximize": True,
            },
            {"lr": 0.3, "d0": 1e-3, "weight_decay": 0.1, "no_prox": True},
        ],
        takes_complex=False,
        elementwise=False,
        coupled=True,
        bound=16.0,  # a longer step makes the next longer: roundings grow
        oracle=_of_dadaptation("DAdaptAdan"),
    ),
    Reference(
        gradstep.DAdaptLion,
        gradstep.dadapt_lion,
        dadapt_lion,
        extra=[
            {"lr": 0.3},
            {"lr": f64(0.1), "d0": 1e-3, "betas": (0.8, 0.95), "weight_decay": 0.1},
            {"lr": 0.3, "d0": 1e-4, "maximize": True},
        ],
        takes_complex=False,
        elementwise=False,
        coupled=True,
        bound=16.0,  # a longer step makes the next longer: roundings grow
        oracle=_of_dadaptation("DAdaptLion"),
    ),
]
