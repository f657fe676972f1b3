"""SOAP."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy
import torch

import gradstep
from reference_row import Array, Reference, f64
from references.shampoo import times, unfold


def soap(
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
    block_size: int = 0,
) -> Iterator[Array]:
    """Vyas et al. 2024, algorithm 3, with the first step of the authors' code: the basis alone.

    What the paper leaves to chance is as the rule says it is: the basis of what a gradient lacks.
    """
    if block_size and w.ndim > 1:
        given = list(gradients)
        ends = [w.copy() for _ in given]
        for corner in itertools.product(*(range(0, d, block_size) for d in w.shape)):
            cut = tuple(slice(i, i + block_size) for i in corner)
            own = soap(
                w[cut],
                [None if g is None else g[cut] for g in given],
                lr=lr,
                betas=betas,
                shampoo_beta=shampoo_beta,
                eps=eps,
                weight_decay=weight_decay,
                precondition_frequency=precondition_frequency,
                max_size=max_size,
            )
            for end, part in zip(ends, own, strict=True):
                end[cut] = part
        yield from ends
        return
    noise = 2.0**-20 if w.dtype == numpy.float32 else 2.0**-36
    eps_of = max(float(numpy.finfo(w.dtype).eps), float(numpy.finfo(numpy.float64).eps))
    kept = [i for i, d in enumerate(w.shape) if d <= max_size and w.ndim > 1]
    averages = {i: numpy.zeros((w.shape[i], w.shape[i])) for i in kept}
    bases: dict[int, Array] = {}
    m, v, step = 0 * w, 0 * w, 0
    beta1, beta2 = betas
    for g in gradients:
        if g is not None:
            step += 1
            if step > 1:
                m = beta1 * m + (1 - beta1) * g
                rotated, average = g, m
                for i in kept:
                    rotated = times(rotated, bases[i].T, i)
                    average = times(average, bases[i].T, i)
                v = beta2 * v + (1 - beta2) * rotated**2
                size = numpy.sqrt(v)
                direction = average / (size + eps)
                if kept:
                    direction[size < noise * size.max()] = 0
                for i in kept:
                    direction = times(direction, bases[i], i)
                t = step - 1
                size = lr * numpy.sqrt(1 - beta2**t) / (1 - beta1**t)
                w = (w - size * direction) * (1 - lr * weight_decay)
            for i in kept:
                square = unfold(g, i) @ unfold(g, i).T
                averages[i] = shampoo_beta * averages[i] + (1 - shampoo_beta) * square
                if step == 1:
                    bases[i] = first_basis(wide(unfold(g, i)), eps_of).astype(w.dtype)
                elif (step - 1) % precondition_frequency == 0:
                    bases[i], order = turned(averages[i], bases[i], eps_of)
                    v = numpy.take(v, order, axis=i)
        yield w


def first_basis(rows: Array, eps: float) -> Array:
    """The eigenvectors of ``rows rowsᵀ``, and of what it lacks those of a diagonal there."""
    found, values, _ = numpy.linalg.svd(rows, full_matrices=True)
    size = len(rows)
    rank = int((values > max(rows.shape) * eps * values.max(initial=0)).sum())
    lacking = found[:, rank:]
    diagonal = 2 - numpy.sqrt(numpy.arange(size) / size)
    axes = numpy.linalg.eigh(lacking.T @ (diagonal[:, None] * lacking))[1][:, ::-1]
    return numpy.hstack([found[:, :rank], lacking @ axes])


def turned(average: Array, basis: Array, eps: float) -> tuple[Array, Array]:
    """One step of the power method, and from where its columns came; Gram–Schmidt, twice over."""
    small = max(len(average) * eps, 2.0**-36)
    values = numpy.diag(basis.T @ average @ basis)
    values = numpy.where(values > small * values.max(), values, 0)
    columns: list[Array] = []
    order: list[int] = []
    left: list[int] = []
    largest = 0.0

    def rest_of(column: Array) -> Array:
        for _ in range(2):
            for other in columns:
                column = column - other * (other @ column)
        return column

    for place in numpy.argsort(-values, kind="stable"):
        rest = rest_of(average @ basis[:, place])
        size = float(numpy.sqrt(rest @ rest))
        largest = max(largest, size)
        if size <= small * largest:
            left.append(int(place))
        else:
            columns.append(rest / size)
            order.append(int(place))
    for place in left:
        rest = rest_of(basis[:, place])
        columns.append(rest / numpy.sqrt(rest @ rest))
    return numpy.stack(columns, axis=1), numpy.array([*order, *left])


def wide(matrix: Array) -> Array:
    """In float64, which NumPy's linear algebra takes."""
    return matrix.astype(numpy.float64)


def library_soap(params: Any, options: dict[str, Any]) -> torch.optim.Optimizer:
    from pytorch_optimizer import SOAP

    given = {"lr": 3e-3, "weight_decay": 0.01, "shampoo_beta": 0.95, **options}
    if given.get("precondition_frequency", 10) <= 50:
        raise NotImplementedError("it rounds a basis to float32 when it turns it")
    given["max_precondition_dim"] = given.pop("max_size", 10000)
    return SOAP(params, **given)


REFERENCES = [
    Reference(
        gradstep.SOAP,
        gradstep.soap,
        soap,
        extra=[
            {},
            {"lr": 0.01, "betas": (0.9, 0.99), "precondition_frequency": 60},
            {"lr": 0.01, "weight_decay": 0.0, "betas": (0.9, 0.99), "maximize": True},
            {"lr": f64(0.02), "precondition_frequency": 2, "shampoo_beta": 0.8, "max_size": 4},
            {"lr": 1e-3, "precondition_frequency": 3, "block_size": 5},
        ],
        takes_complex=False,
        elementwise=False,
        longest=40,
        bound=64.0,
        oracle=library_soap,
        # Of others GGᵀ has a null space at first, where the oracle takes LAPACK's axes, which hang
        # on rounding.
        oracle_shapes=[(6, 6), (8, 8)],
    ),
]
