"""Muon's family: NorMuon, AdaMuon, AdaGO, PolarGrad, Scion, Dion, Dion2, SOAP with Muon's step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy
import torch

import gradstep
from reference_row import Array, Reference, f64
from references.soap import soap

Gradients = Iterable["Array | None"]
#: Those of You Jiacheng's five iterations.
TUNED = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


def orthogonal(x: Array, steps: int = 5, coefficients: str = "fixed") -> Array:
    """The Newton–Schulz iteration in full precision."""
    kind = x.dtype.type
    x = x / max(numpy.sqrt(numpy.sum(x**2)), kind(1e-7))
    for i in range(int(steps)):
        a, b, c = TUNED[i] if coefficients == "tuned" else (3.4445, -4.7750, 2.0315)
        s = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
        p = kind(b) * s + kind(c) * s @ s
        x = kind(a) * x + (p @ x if x.shape[0] <= x.shape[1] else x @ p)
    return x


def length(x: Array) -> Any:
    return numpy.sqrt(numpy.sum(x**2))


def adjusted(x: Array, adjust_lr_fn: str | None) -> Array:
    rows, columns = x.shape
    if adjust_lr_fn == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns)) * x
    if adjust_lr_fn == "unit_rms":
        return math.sqrt(rows / columns) * x
    return math.sqrt(max(1, rows / columns)) * x


def in_parts(x: Array, split: Any, adjust_lr_fn: str | None, *rest: Any) -> Array:
    """Each part orthogonal and adjusted by itself."""
    parts = numpy.split(x, numpy.cumsum(split)[:-1])
    return numpy.concatenate([adjusted(orthogonal(p, *rest), adjust_lr_fn) for p in parts])


def averages(
    w: Array, gradients: Gradients, momentum: float, nesterov: bool
) -> Iterator[Array | None]:
    """The average of the gradients, or None where there is none."""
    m: Any = 0 * w
    momentum = w.dtype.type(momentum)
    for g in gradients:
        if g is None:
            yield None
        else:
            m = momentum * m + (1 - momentum) * g
            yield (1 - momentum) * g + momentum * m if nesterov else m


def normuon(
    w: Array,
    gradients: Gradients,
    *,
    lr: float = 0.02,
    momentum: float = 0.95,
    beta2: float = 0.95,
    nesterov: bool = True,
    weight_decay: float = 0.0,
    eps: float = 1e-10,
    ns_steps: int = 5,
    adjust_lr_fn: str | None = None,
    coefficients: str = "fixed",
    precision: str = "",
) -> Iterator[Array]:
    """Li et al. 2025, algorithm 1, with the norm kept."""
    r: Any = 0 * w[:, :1]
    beta2 = w.dtype.type(beta2)
    for m in averages(w, gradients, momentum, nesterov):
        if m is not None:
            o = orthogonal(m, ns_steps, coefficients)
            r = beta2 * r + (1 - beta2) * numpy.mean(o**2, -1, keepdims=True)
            n = o / (numpy.sqrt(r) + eps)
            w = w - lr * weight_decay * w
            w = w - lr * adjusted(n * length(o) / length(n), adjust_lr_fn)
        yield w


def adamuon(
    w: Array,
    gradients: Gradients,
    *,
    lr: float = 1e-3,
    momentum: float = 0.95,
    beta2: float = 0.95,
    nesterov: bool = True,
    of_signs: bool = True,
    weight_decay: float = 0.0,
    eps: float = 1e-8,
    scale: float = 0.2,
    ns_steps: int = 5,
    coefficients: str = "fixed",
    split: Any = None,
    precision: str = "",
) -> Iterator[Array]:
    """Si et al. 2025, algorithm 1."""
    v: Any = 0 * w
    t = 0
    beta2 = w.dtype.type(beta2)
    for m in averages(w, gradients, momentum, nesterov):
        if m is not None:
            t += 1
            o = orthogonal(numpy.sign(m) if of_signs else m, ns_steps, coefficients)
            v = beta2 * v + (1 - beta2) * o**2
            n = o / (numpy.sqrt(v / (1 - beta2**t)) + eps)
            w = w - lr * weight_decay * w - lr * scale * math.sqrt(w.size) * n / length(n)
        yield w


def adago(
    w: Array,
    gradients: Gradients,
    *,
    lr: float = 0.05,
    momentum: float = 0.95,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    gamma: float = 10.0,
    eps: float = 5e-4,
    v0: float = 1e-6,
    ns_steps: int = 5,
    coefficients: str = "fixed",
    precision: str = "",
) -> Iterator[Array]:
    """Zhang et al. 2025, algorithm 2; v is kept in float32, as all numbers are."""
    gradients = list(gradients)
    kind, kept = w.dtype.type, numpy.float32(v0)
    for g, m in zip(gradients, averages(w, gradients, momentum, nesterov), strict=True):
        if g is not None and m is not None:
            v = numpy.sqrt(kind(kept) ** 2 + min(numpy.sum(g**2), gamma**2))
            kept = numpy.float32(v)
            step = max(eps, lr * min(length(g), gamma) / v)
            w = w - lr * weight_decay * w - step * orthogonal(m, ns_steps, coefficients)
        yield w


def polargrad(
    w: Array,
    gradients: Gradients,
    *,
    lr: float = 3e-4,
    momentum: float = 0.95,
    nesterov: bool = False,
    weight_decay: float = 0.01,
    ns_steps: int = 5,
    coefficients: str = "fixed",
    precision: str = "",
) -> Iterator[Array]:
    """Lau et al. 2025, algorithm 1 with the momentum first."""
    for m in averages(w, gradients, momentum, nesterov):
        if m is not None:
            o = orthogonal(m, ns_steps, coefficients)
            w = w - lr * weight_decay * w - lr * numpy.sum(o * m) * o
        yield w


def scion(
    w: Array,
    gradients: Gradients,
    *,
    lr: float = 1e-3,
    momentum: float = 0.9,
    radius: float = 1.0,
    layer_norm: str = "spectral",
    constrained: bool = False,
    ns_steps: int = 5,
    coefficients: str = "fixed",
    precision: str = "",
) -> Iterator[Array]:
    """Pethick et al. 2025, algorithms 1 and 2, with the norms of their table 3."""
    for m in averages(w, gradients, momentum, False):
        if m is not None:
            if m.ndim < 2:
                d = m / numpy.sqrt(numpy.mean(m**2))
            elif layer_norm == "sign":
                d = numpy.sign(m) / m.shape[-1]
            elif layer_norm == "spectral":
                d = math.sqrt(m.shape[0] / m.shape[1]) * orthogonal(m, ns_steps, coefficients)
            else:
                axis = -1 if layer_norm == "row" else -2
                size = numpy.sqrt(numpy.sum(m**2, axis, keepdims=True))
                d = numpy.where(size > 0, m / numpy.where(size > 0, size, 1), 0)
                d = d * math.sqrt(m.shape[-2]) if axis == -2 else d / math.sqrt(m.shape[-1])
            w = w * (1 - lr) - lr * radius * d if constrained else w - lr * radius * d
        yield w


def dion(
    w: Array,
    gradients: Gradients,
    *,
    lr: float = 0.01,
    momentum: float = 0.95,
    weight_decay: float = 0.01,
    rank_fraction: float = 1.0,
    seed: int = 0,
) -> Iterator[Array]:
    """Ahn et al. 2025, algorithm 1, by Gram–Schmidt, twice over."""
    kind = w.dtype.type
    scale = math.sqrt(w.shape[0] / w.shape[1])
    tall = w.shape[0] >= w.shape[1]
    shorter = min(w.shape)
    rank = max(1, math.ceil(rank_fraction * shorter))
    source = torch.Generator().manual_seed(1_000_003 * seed)
    q = torch.randn(shorter, rank, generator=source, dtype=torch.float64).numpy().astype(w.dtype)
    m = 0 * w
    for g in gradients:
        if g is not None:
            b = m + g if tall else (m + g).T
            p = (b @ q).astype(numpy.longdouble)
            for i in range(rank):
                for _ in range(2):
                    p[:, i] -= p[:, :i] @ (p[:, :i].T @ p[:, i])
                p[:, i] /= length(p[:, i])
            p = p.astype(w.dtype)
            r = b.T @ p
            q = r / numpy.sqrt(numpy.sum(r**2, 0))
            m = b - kind(1 - momentum) * p @ r.T
            m = m if tall else m.T
            d = p @ q.T if tall else q @ p.T
            w = w - lr * weight_decay * w - lr * scale * d
        yield w


def dion2(
    w: Array,
    gradients: Gradients,
    *,
    lr: float = 0.01,
    fraction: float = 0.25,
    ef_decay: float = 0.95,
    weight_decay: float = 0.01,
    ns_steps: int = 5,
    adjust_lr_fn: str | None = "unit_rms",
    coefficients: str = "fixed",
    precision: str = "",
) -> Iterator[Array]:
    """Ahn, Amsel & Langford 2025, algorithm 1."""
    axis = 1 if w.shape[0] <= w.shape[1] else 0
    m = 0 * w
    for g in gradients:
        if g is not None:
            m = m + g
            sizes = numpy.sum(numpy.abs(m), axis)
            count = max(1, math.ceil(fraction * len(sizes)))
            chosen = numpy.sort(numpy.argsort(-sizes, kind="stable")[:count])
            place = (chosen, slice(None)) if axis else (slice(None), chosen)
            d = 0 * w
            d[place] = orthogonal(m[place], ns_steps, coefficients)
            m = m.copy()
            m[place] = w.dtype.type(ef_decay) * m[place]
            w = w - lr * weight_decay * w - lr * adjusted(d, adjust_lr_fn)
        yield w


def soap_muon(
    w: Array,
    gradients: Gradients,
    *,
    lr: float = 3e-3,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.95, 0.95),
    ns_steps: int = 5,
    adjust_lr_fn: str | None = "match_rms_adamw",
    coefficients: str = "fixed",
    precision: str = "",
    **options: Any,
) -> Iterator[Array]:
    """SOAP's own ways of weights that begin at 0 and do not decay, and Muon's step along each."""
    before, count = 0 * w, 0
    given = list(gradients)
    ways = soap(0 * w, given, lr=1.0, weight_decay=0.0, betas=betas, **options)
    for g, way in zip(given, ways, strict=True):
        if g is not None:
            count += 1
            if count > 1:
                d = adjusted(orthogonal(before - way, ns_steps, coefficients), adjust_lr_fn)
                w = (w - lr * d) * (1 - lr * weight_decay)
            before = way
        yield w


FULL = {"precision": "float32"}
MATRICES: dict[str, Any] = {"takes_complex": False, "elementwise": False, "bound": 256.0}
REFERENCES = [
    Reference(
        gradstep.NorMuon,
        gradstep.normuon,
        normuon,
        extra=[
            {**FULL, "lr": f64(0.02)},
            {**FULL, "lr": 0.01, "weight_decay": 0.1, "nesterov": False, "maximize": True},
            {
                **FULL,
                "lr": 1e-3,
                "momentum": 0.5,
                "beta2": 0.9,
                "adjust_lr_fn": "match_rms_adamw",
                "coefficients": "tuned",
            },
        ],
        dimensions=2,
        by_rows=True,
        **MATRICES,
    ),
    Reference(
        gradstep.AdaMuon,
        gradstep.adamuon,
        adamuon,
        extra=[
            {**FULL, "of_signs": False},
            {**FULL, "weight_decay": 0.1, "nesterov": False, "of_signs": False, "maximize": True},
            {**FULL, "lr": f64(1e-4), "momentum": 0.5, "beta2": 0.9, "scale": 1.0},
        ],
        dimensions=2,
        **MATRICES,
    ),
    Reference(
        gradstep.AdaGO,
        gradstep.adago,
        adago,
        extra=[
            {**FULL, "lr": f64(0.05)},
            {**FULL, "gamma": 0.1, "eps": 0.0, "nesterov": True, "weight_decay": 0.1},
            {**FULL, "lr": 1e-3, "eps": 0.01, "coefficients": "tuned", "maximize": True},
        ],
        dimensions=2,
        **MATRICES,
    ),
    Reference(
        gradstep.PolarGrad,
        gradstep.polargrad,
        polargrad,
        extra=[
            {**FULL, "lr": f64(3e-4)},
            {**FULL, "lr": 1e-3, "nesterov": True, "coefficients": "tuned", "maximize": True},
        ],
        dimensions=2,
        **MATRICES,
    ),
    Reference(
        gradstep.Scion,
        gradstep.scion,
        scion,
        extra=[
            FULL,
            {**FULL, "constrained": True, "coefficients": "tuned"},
            {"lr": f64(0.01), "layer_norm": "sign", "momentum": 0.5},
            {"layer_norm": "row", "radius": 2.0},
            {"layer_norm": "column", "constrained": True},
        ],
        dimensions=2,
        by_rows=True,
        **MATRICES,
    ),
    Reference(
        gradstep.Dion,
        gradstep.dion,
        dion,
        extra=[
            {"lr": f64(0.01)},
            {"lr": 1e-3, "rank_fraction": 0.4, "momentum": 0.5, "seed": 3, "maximize": True},
        ],
        dimensions=2,
        **MATRICES,
    ),
    Reference(
        gradstep.Dion2,
        gradstep.dion2,
        dion2,
        extra=[
            {**FULL, "lr": f64(0.01)},
            {**FULL, "lr": 1e-3, "fraction": 0.6, "ef_decay": 0.5, "maximize": True},
        ],
        dimensions=2,
        **MATRICES,
    ),
    Reference(
        gradstep.SOAPMuon,
        gradstep.soap_muon,
        soap_muon,
        extra=[
            FULL,
            {**FULL, "lr": f64(1e-3), "precondition_frequency": 3, "weight_decay": 0.1},
        ],
        dimensions=2,
        longest=100,
        **MATRICES,
    ),
]
