"""KL-Shampoo and KL-SOAP."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference, f64
from references.shampoo import times, unfold
from references.soap import first_basis, turned, wide


class Factors:
    """The matrices S of a weight, and their update, given each one's inverse."""

    def __init__(self, shape: tuple[int, ...], max_size: int, beta: float) -> None:
        self.kept = [i for i, d in enumerate(shape) if d <= max_size]
        self.shape, self.beta = shape, beta
        self.S: dict[int, Array] = {}

    def begin(self, g: Array) -> bool:
        """From the first gradient that is not 0: multiples of the identity."""
        if self.S or not numpy.any(g):
            return False
        size = numpy.mean(g**2) ** (g.dtype.type(1) / max(1, len(self.kept)))
        self.S = {i: size * numpy.eye(self.shape[i], dtype=g.dtype) for i in self.kept}
        return True

    def update(self, g: Array, inverses: dict[int, Array]) -> None:
        if not self.S:
            return
        beta = g.dtype.type(self.beta)
        new = {}
        for i in self.kept:
            x = g
            for j in self.kept:
                if j != i:
                    x = times(x, inverses[j], j)
            square = unfold(x, i) @ unfold(g, i).T * g.dtype.type(self.shape[i] / g.size)
            new[i] = beta * self.S[i] + (1 - beta) * square
        self.S = new


def power(a: Array, eps: float, exponent: float) -> Array:
    values, vectors = numpy.linalg.eigh(wide(a))
    made = (vectors * (numpy.maximum(values, 0) + eps) ** exponent) @ vectors.T
    return made.astype(a.dtype)


def kl_shampoo(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 3e-3,
    momentum: float = 0.9,
    shampoo_beta: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    precondition_frequency: int = 2,
    max_size: int = 2048,
) -> Iterator[Array]:
    """Lin et al. 2025, the idealized algorithm, with inverses of the roots that are in use."""
    shape, w = w.shape, w.reshape(w.shape or 1)
    factors = Factors(w.shape, max_size, shampoo_beta)
    roots: dict[int, Array] = {}
    beta1 = w.dtype.type(momentum)
    m, step = 0 * w, 0
    for g in gradients:
        if g is not None:
            step += 1
            g = g.reshape(w.shape)
            m = beta1 * m + (1 - beta1) * g
            if factors.begin(g):
                roots = {i: power(S, eps, -0.5) for i, S in factors.S.items()}
            factors.update(g, {i: root @ root for i, root in roots.items()})
            if (step - 1) % precondition_frequency == 0:
                roots = {i: power(S, eps, -0.5) for i, S in factors.S.items()}
            d = m / (1 - beta1**step)
            for i, root in roots.items():
                d = times(d, root, i)
            w = w - lr * weight_decay * w - lr * d
        yield w.reshape(shape)


def kl_soap(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 3e-3,
    betas: tuple[float, float] = (0.95, 0.95),
    shampoo_beta: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    precondition_frequency: int = 10,
    max_size: int = 10000,
) -> Iterator[Array]:
    """SOAP, as in its own file, on the matrices of KL-Shampoo."""
    noise = 2.0**-20 if w.dtype == numpy.float32 else 2.0**-36
    eps_of = max(float(numpy.finfo(w.dtype).eps), float(numpy.finfo(numpy.float64).eps))
    factors = Factors(w.shape if w.ndim > 1 else (), max_size, shampoo_beta)
    bases: dict[int, Array] = {}
    m, v, step = 0 * w, 0 * w, 0
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    for g in gradients:
        if g is not None:
            step += 1
            if step > 1:
                m = beta1 * m + (1 - beta1) * g
                rotated, average = g, m
                for i, basis in bases.items():
                    rotated, average = (times(x, basis.T, i) for x in (rotated, average))
                v = beta2 * v + (1 - beta2) * rotated**2
                size = numpy.sqrt(v)
                d: Any = average / (size + eps)
                if bases:
                    d[size < noise * size.max()] = 0
                for i, basis in bases.items():
                    d = times(d, basis, i)
                t = step - 1
                length = lr * numpy.sqrt(1 - beta2**t) / (1 - beta1**t)
                w = (w - length * d) * (1 - lr * weight_decay)
            else:
                bases = {
                    i: first_basis(wide(unfold(g, i)), eps_of).astype(w.dtype) for i in factors.kept
                }
            factors.begin(g)
            inverses = {}
            for i, S in factors.S.items():
                values = numpy.sum(bases[i] * (S @ bases[i]), 0)
                values[values <= noise * values.max()] = numpy.inf
                inverses[i] = (bases[i] / values) @ bases[i].T
            factors.update(g, inverses)
            if step > 1 and (step - 1) % precondition_frequency == 0:
                for i, S in factors.S.items():
                    bases[i], order = turned(S, bases[i], eps_of)
                    v = numpy.take(v, order, axis=i)
        yield w


REFERENCES = [
    Reference(
        gradstep.KLShampoo,
        gradstep.kl_shampoo,
        kl_shampoo,
        extra=[
            {},
            {"lr": 0.01, "momentum": 0.5, "weight_decay": 0.1, "eps": 1e-4, "maximize": True},
            {"lr": f64(0.02), "precondition_frequency": 3, "shampoo_beta": 0.8, "max_size": 12},
        ],
        takes_complex=False,
        elementwise=False,
        ill_conditioned=("roots",),
        bound=64.0,
    ),
    Reference(
        gradstep.KLSOAP,
        gradstep.kl_soap,
        kl_soap,
        extra=[
            {},
            {"lr": 0.01, "weight_decay": 0.0, "betas": (0.9, 0.99), "maximize": True},
            {"lr": f64(0.02), "precondition_frequency": 2, "shampoo_beta": 0.8, "max_size": 4},
        ],
        takes_complex=False,
        elementwise=False,
        longest=40,
        bound=64.0,
    ),
]
