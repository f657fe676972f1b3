"""SPlus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any
from unittest import mock

import numpy
import torch

import gradstep
from reference_row import Array, Reference, f64
from references.soap import first_basis, wide


def splus(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.01,
    inverse_steps: int = 100,
    nonstandard_constant: float = 1e-3,
    max_size: int = 10000,
) -> Iterator[Array]:
    """Frans et al. 2025, algorithm 1, without the average; every matrix of a stack by itself.

    What is nothing but rounding has the sign 0; bases as SOAP's.
    """
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    noise = 2.0**-20 if w.dtype == numpy.float32 else 2.0**-36
    eps = max(float(numpy.finfo(w.dtype).eps), float(numpy.finfo(numpy.float64).eps))
    scale = nonstandard_constant
    if w.ndim > 1 and max(w.shape[-2:]) <= max_size:
        scale = 2 / (w.shape[-2] + w.shape[-1])
    stack = numpy.ndindex(*w.shape[:-2]) if w.ndim > 1 else ()
    bases: dict[Any, dict[int, Array]] = {place: {} for place in stack}
    averages: dict[Any, dict[int, Array]] = {place: {} for place in bases}
    m, step = 0 * w, 0
    for g in gradients:
        if g is not None:
            step += 1
            m = beta1 * m + (1 - beta1) * g
            d = numpy.sign(m)
            for place, own in bases.items():
                x = m[place]
                for i, basis in own.items():
                    x = basis.T @ x if i == 0 else x @ basis
                if step > 1:
                    signs = numpy.where(abs(x) > noise * abs(x).max(), numpy.sign(x), 0)
                    for i, basis in own.items():
                        signs = basis @ signs if i == 0 else signs @ basis.T
                    d[place] = signs
                for i in range(2):
                    rows = g[place] if i == 0 else g[place].T
                    if len(rows) <= max_size:
                        before = averages[place].get(i, 0)
                        averages[place][i] = beta2 * before + (1 - beta2) * rows @ rows.T
                        if step == 1:
                            own[i] = first_basis(wide(rows), eps).astype(w.dtype)
                        elif step % inverse_steps == 0:
                            own[i] = eigenbasis(averages[place][i], eps)
            w = (w - lr * scale * d) * (1 - lr * scale * weight_decay)
        yield w


def eigenbasis(average: Array, eps: float) -> Array:
    """Eigenvectors, and of what the matrix lacks those of a diagonal there."""
    values, vectors = numpy.linalg.eigh(wide(average))
    noise = 2.0**-20 if average.dtype == numpy.float32 else 2.0**-36
    found = vectors[:, values > max(len(average) * eps, noise) * values[-1]]
    falling = found * numpy.arange(found.shape[1], 0.0, -1.0)  # first_basis goes by singular values
    return first_basis(falling, 1e-9).astype(average.dtype)


def library_splus(params: Any, options: dict[str, Any]) -> torch.optim.Optimizer:
    """pytorch_optimizer's, with its eigenvectors in float64, not float32."""
    from pytorch_optimizer import SPlus

    class Wide(SPlus):  # type: ignore[misc]
        def step(self, closure: Any = None) -> Any:
            with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
                return super().step(closure)

    given = dict(options)
    given["max_dim"] = given.pop("max_size", 10000)
    return Wide(params, **given)


REFERENCES = [
    Reference(
        gradstep.SPlus,
        gradstep.splus,
        splus,
        extra=[
            {},
            {"lr": 0.02, "betas": (0.5, 0.9), "weight_decay": 0.1, "maximize": True},
            {"lr": f64(1e-4), "inverse_steps": 4, "max_size": 12, "nonstandard_constant": 0.01},
        ],
        takes_complex=False,
        elementwise=False,
        longest=40,
        bound=64.0,
        oracle=library_splus,
        oracle_shapes=[(6, 6), (8, 8), (5,)],
    ),
]
