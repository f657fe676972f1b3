"""Reference data for the tests: a row a rule, torch.optim's here, all others in ``references``.

Each formula is written from its paper in plain NumPy, without a look at the rule's text: a loop
over steps that is handed the weight and all gradients and yields the weight after each step. It
works in the type of the arrays it is given, so that the same text serves as the exact answer
(float64, or extended precision where the machine has it) and as a plain float32 implementation.
A gradient of None is a step that the weight sits out.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Iterator
from typing import Any

import numpy
import torch

import gradstep
import references
from reference_row import Array, Reference, f64

Gradients = Iterable["Array | None"]


def sgd(
    w: Array,
    gradients: Gradients,
    *,
    lr: float = 1e-3,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> Iterator[Array]:
    """Sutskever et al. 2013 as torch spells it: v starts as the first gradient."""
    v = None
    for g in gradients:
        if g is not None:
            g = g + weight_decay * w
            if momentum:
                v = g if v is None else momentum * v + (1 - dampening) * g
                g = g + momentum * v if nesterov else v
            w = w - lr * g
        yield w


def adam(
    w: Array,
    gradients: Gradients,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    decoupled_weight_decay: bool = False,
) -> Iterator[Array]:
    """Kingma & Ba 2014, algorithm 1; Reddi et al. 2018 for amsgrad, before the correction."""
    m, v, largest, t = 0 * w, 0 * w, 0 * w, 0
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    for g in gradients:
        if g is not None:
            t += 1
            if decoupled_weight_decay:
                w = w - lr * (weight_decay * w)
            else:
                g = g + weight_decay * w
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g**2
            largest = numpy.maximum(largest, v)
            m_hat = m / (1 - beta1**t)
            v_hat = (largest if amsgrad else v) / (1 - beta2**t)
            w = w - lr * m_hat / (numpy.sqrt(v_hat) + eps)
        yield w


def adamw(w: Array, gradients: Gradients, **options: Any) -> Iterator[Array]:
    """Loshchilov & Hutter 2017, algorithm 2, with torch's default decay."""
    return adam(w, gradients, **{"weight_decay": 1e-2, "decoupled_weight_decay": True, **options})


def rmsprop(
    w: Array,
    gradients: Gradients,
    *,
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
) -> Iterator[Array]:
    """Graves 2013, equations 38 to 41, with eps outside of the root."""
    n, mean, delta = 0 * w, 0 * w, 0 * w
    alpha = w.dtype.type(alpha)
    for g in gradients:
        if g is not None:
            g = g + weight_decay * w
            n = alpha * n + (1 - alpha) * g**2
            mean = alpha * mean + (1 - alpha) * g
            variance = n - mean**2 if centered else n
            delta = momentum * delta + g / (numpy.sqrt(variance) + eps)
            w = w - lr * delta
        yield w


def adagrad(
    w: Array,
    gradients: Gradients,
    *,
    lr: float = 1e-2,
    lr_decay: float = 0.0,
    weight_decay: float = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-10,
) -> Iterator[Array]:
    """Duchi et al. 2011, the diagonal form."""
    total, t = 0 * w + initial_accumulator_value, 0
    for g in gradients:
        if g is not None:
            t += 1
            g = g + weight_decay * w
            total = total + g**2
            w = w - lr / (1 + (t - 1) * w.dtype.type(lr_decay)) * g / (numpy.sqrt(total) + eps)
        yield w


def adadelta(
    w: Array,
    gradients: Gradients,
    *,
    lr: float = 1.0,
    rho: float = 0.9,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Zeiler 2012, algorithm 1, with a learning rate outside."""
    squares, steps = 0 * w, 0 * w
    rho = w.dtype.type(rho)
    for g in gradients:
        if g is not None:
            g = g + weight_decay * w
            squares = rho * squares + (1 - rho) * g**2
            delta = numpy.sqrt(steps + eps) / numpy.sqrt(squares + eps) * g
            steps = rho * steps + (1 - rho) * delta**2
            w = w - lr * delta
        yield w


def adamax(
    w: Array,
    gradients: Gradients,
    *,
    lr: float = 2e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Kingma & Ba 2014, algorithm 2, with eps beside the gradient."""
    m, u, t = 0 * w, 0 * w, 0
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    for g in gradients:
        if g is not None:
            t += 1
            g = g + weight_decay * w
            m = beta1 * m + (1 - beta1) * g
            u = numpy.maximum(beta2 * u, numpy.abs(g) + eps)
            w = w - lr / (1 - beta1**t) * m / u
        yield w


def asgd(
    w: Array,
    gradients: Gradients,
    *,
    lr: float = 1e-2,
    lambd: float = 1e-4,
    alpha: float = 0.75,
    t0: float = 1e6,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Bottou 2010's falling rate on a loss with a penalty lambd; the average is not the weight."""
    eta, t = w.dtype.type(lr), 0
    for g in gradients:
        if g is not None:
            t += 1
            g = g + weight_decay * w
            w = w - eta * (g + lambd * w)
            eta = lr / (1 + w.dtype.type(lambd) * lr * t) ** w.dtype.type(alpha)
        yield w


def nadam(
    w: Array,
    gradients: Gradients,
    *,
    lr: float = 2e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum_decay: float = 4e-3,
    decoupled_weight_decay: bool = False,
) -> Iterator[Array]:
    """Dozat 2016 with the schedule of its appendix."""
    m, v, t = 0 * w, 0 * w, 0
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    product = w.dtype.type(1)

    def mu(t: int) -> Any:
        return beta1 * (1 - w.dtype.type(0.96) ** (t * w.dtype.type(momentum_decay)) / 2)

    for g in gradients:
        if g is not None:
            t += 1
            if decoupled_weight_decay:
                w = w - lr * (weight_decay * w)
            else:
                g = g + weight_decay * w
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g**2
            product = product * mu(t)
            m_bar = mu(t + 1) * m / (1 - product * mu(t + 1)) + (1 - mu(t)) * g / (1 - product)
            w = w - lr * m_bar / (numpy.sqrt(v / (1 - beta2**t)) + eps)
        yield w


def radam(
    w: Array,
    gradients: Gradients,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
) -> Iterator[Array]:
    """Liu et al. 2019, algorithm 2, with torch's threshold of 5."""
    m, v, t = 0 * w, 0 * w, 0
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    longest = 2 / (1 - beta2) - 1
    for g in gradients:
        if g is not None:
            t += 1
            if decoupled_weight_decay:
                w = w - lr * (weight_decay * w)
            else:
                g = g + weight_decay * w
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g**2
            m_hat = m / (1 - beta1**t)
            length = longest - 2 * t * beta2**t / (1 - beta2**t)
            if length > 5:
                over = (longest - 4) * (longest - 2) * length
                r = numpy.sqrt((length - 4) * (length - 2) * longest / over)
                m_hat = r * m_hat * numpy.sqrt(1 - beta2**t) / (numpy.sqrt(v) + eps)
            w = w - lr * m_hat
        yield w


def rprop(
    w: Array,
    gradients: Gradients,
    *,
    lr: float = 1e-2,
    etas: tuple[float, float] = (0.5, 1.2),
    step_sizes: tuple[float, float] = (1e-6, 50),
) -> Iterator[Array]:
    """Igel & Hüsken 2000, iRprop−."""
    delta, before = 0 * w + lr, 0 * w
    for g in gradients:
        if g is not None:
            product = numpy.sign(g) * numpy.sign(before)
            factor = numpy.where(product > 0, etas[1], numpy.where(product < 0, etas[0], 1.0))
            delta = numpy.minimum(numpy.maximum(delta * factor, step_sizes[0]), step_sizes[1])
            before = numpy.where(product < 0, 0 * g, g)
            w = w - numpy.sign(before) * delta
        yield w


def adafactor(
    w: Array,
    gradients: Gradients,
    *,
    lr: float = 1e-2,
    beta2_decay: float = -0.8,
    eps: tuple[float | None, float] = (None, 1e-3),
    d: float = 1.0,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Shazeer & Stern 2018, algorithms 4 and 5, with torch's lower bound in place of their eps1.

    The bound is float32's: it only acts on rows whose gradients are all 0.
    """
    eps1 = numpy.finfo(numpy.float32).eps if eps[0] is None else eps[0]
    rows = columns = squares = 0 * w
    t = 0
    for g in gradients:
        if g is not None:
            t += 1
            share = w.dtype.type(t) ** w.dtype.type(beta2_decay)
            size = max(eps[1], numpy.sqrt(numpy.mean(w**2))) * min(lr, 1 / t**0.5)
            w = w * (1 - lr * weight_decay)
            if w.ndim < 2:
                squares = (1 - share) * squares + share * g**2
                v = squares
            else:
                rows = (1 - share) * rows + share * numpy.mean(g**2, -1, keepdims=True)
                columns = (1 - share) * columns + share * numpy.mean(g**2, -2, keepdims=True)
                mean = numpy.mean(rows[..., :1], -2, keepdims=True)
                v = rows[..., :1] * columns[..., :1, :] / numpy.maximum(mean, eps1)
            u = g / numpy.sqrt(numpy.maximum(v, eps1**2))
            u = u / max(1.0, numpy.sqrt(numpy.mean(u**2)) / d)
            w = w - size * u
        yield w


def muon(
    w: Array,
    gradients: Gradients,
    *,
    lr: float = 1e-3,
    weight_decay: float = 0.1,
    momentum: float = 0.95,
    nesterov: bool = True,
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
    ns_steps: int = 5,
    adjust_lr_fn: str | None = None,
) -> Iterator[Array]:
    """Jordan et al. 2024 with an exponential average, the iteration in full precision."""
    average = 0 * w
    a, b, c = ns_coefficients
    height, width = w.shape
    scale = max(1.0, height / width) ** 0.5
    if adjust_lr_fn == "match_rms_adamw":
        scale = 0.2 * max(height, width) ** 0.5
    elif adjust_lr_fn == "spectral_unclamped":
        scale = (height / width) ** 0.5
    for g in gradients:
        if g is not None:
            average = momentum * average + (1 - momentum) * g
            x = (1 - momentum) * g + momentum * average if nesterov else average
            x = x / max(numpy.sqrt(numpy.sum(x**2)), 1e-7)
            for _ in range(int(ns_steps)):
                s = x @ x.T
                x = a * x + (b * s + c * s @ s) @ x
            w = w - lr * weight_decay * w - lr * scale * x
        yield w


REFERENCES = [
    Reference(
        gradstep.SGD,
        gradstep.sgd,
        sgd,
        torch.optim.SGD,
        extra=[
            {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True},
            {"lr": 0.1, "momentum": 0.5, "dampening": -0.5, "weight_decay": 0.01, "maximize": True},
            {"lr": 0.0, "momentum": 0.9},
            {"lr": 0.05, "weight_decay": f64(0.125)},
        ],
        exact=[{}, {"lr": 0.1}, {"lr": 2**-3}, {"lr": 2**-9, "maximize": True}],
    ),
    Reference(
        gradstep.Adam,
        gradstep.adam,
        adam,
        torch.optim.Adam,
        extra=[
            {"lr": 0.1, "betas": (0.0, 0.5), "eps": 0.1},
            {"lr": f64(0.01), "betas": (f64(0.75), f64(0.9375))},
            {"lr": 0.01, "decoupled_weight_decay": True, "weight_decay": 0.01, "maximize": True},
            {"lr": 0.01, "amsgrad": True, "maximize": True, "betas": (0.8, 0.6)},
        ],
    ),
    Reference(
        gradstep.AdamW,
        gradstep.adam,
        adamw,
        torch.optim.AdamW,
        extra=[
            {"lr": 0.1, "weight_decay": 0.0},
            {"lr": f64(0.01), "amsgrad": True, "betas": (0.8, 0.6), "maximize": True},
        ],
    ),
    Reference(
        gradstep.RMSprop,
        gradstep.rmsprop,
        rmsprop,
        torch.optim.RMSprop,
        extra=[
            {"lr": 0.01, "alpha": 0.5, "eps": 0.01, "momentum": 0.9},
            {"lr": f64(0.01), "momentum": 0.9, "maximize": True},
        ],
    ),
    Reference(
        gradstep.Adagrad,
        gradstep.adagrad,
        adagrad,
        torch.optim.Adagrad,
        extra=[
            {"lr": 1.0, "lr_decay": 0.01, "eps": 0.1, "maximize": True},
            {"lr": 0.1, "initial_accumulator_value": 2.0, "lr_decay": 1.0},
        ],
    ),
    Reference(
        gradstep.Adadelta,
        gradstep.adadelta,
        adadelta,
        torch.optim.Adadelta,
        extra=[{"lr": f64(0.5), "rho": 0.6, "eps": 1e-3, "maximize": True}],
    ),
    Reference(
        gradstep.Adamax,
        gradstep.adamax,
        adamax,
        torch.optim.Adamax,
        extra=[{"lr": 0.05, "betas": (0.5, 0.9), "eps": 0.1}],
    ),
    Reference(
        gradstep.ASGD,
        gradstep.asgd,
        asgd,
        torch.optim.ASGD,
        extra=[{"lr": 0.1, "lambd": 0.05, "alpha": 0.5, "t0": 10.0}],
    ),
    Reference(
        gradstep.NAdam,
        gradstep.nadam,
        nadam,
        torch.optim.NAdam,
        extra=[{"lr": 0.01, "betas": (0.5, 0.9), "eps": 1e-3, "momentum_decay": 0.1}],
    ),
    Reference(
        gradstep.RAdam,
        gradstep.radam,
        radam,
        torch.optim.RAdam,
        extra=[{"lr": 0.01, "betas": (0.5, 0.9), "eps": 1e-3, "maximize": True}],
    ),
    Reference(
        gradstep.Rprop,
        gradstep.rprop,
        rprop,
        torch.optim.Rprop,
        extra=[{"lr": 0.1, "etas": (0.25, 1.75), "step_sizes": (0.01, 0.5)}],
    ),
    Reference(
        gradstep.Adafactor,
        gradstep.adafactor,
        adafactor,
        torch.optim.Adafactor,
        extra=[{"lr": 0.1, "eps": (1e-4, 1e-2), "d": 2.0}, {"lr": f64(0.5), "weight_decay": 0.5}],
        takes_complex=False,
        elementwise=False,
        by_rows=True,
    ),
    Reference(
        gradstep.Muon,
        gradstep.muon,
        muon,
        getattr(torch.optim, "Muon", None),  # since torch 2.9
        extra=[
            {"lr": 0.02, "adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.0},
            {"lr": 0.02, "adjust_lr_fn": "original", "momentum": 0.5},
        ],
        dimensions=2,
        takes_complex=False,
        elementwise=False,
        steps_in=torch.bfloat16,
    ),
]

for _found in pkgutil.iter_modules(references.__path__):
    REFERENCES += importlib.import_module(f"references.{_found.name}").REFERENCES
