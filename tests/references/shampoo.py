"""Shampoo."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy
import torch

import gradstep
from reference_row import Array, Reference, f64


def unfold(g: Array, dimension: int) -> Array:
    """A tensor as a matrix with one dimension as its rows."""
    return numpy.moveaxis(g, dimension, 0).reshape(g.shape[dimension], -1)


def times(g: Array, matrix: Array, dimension: int) -> Array:
    """A tensor with one dimension multiplied by a matrix."""
    moved = numpy.moveaxis(g, dimension, 0)
    return numpy.moveaxis(numpy.tensordot(matrix, moved, axes=1), 0, dimension)


def shampoo(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 0.1,
    momentum: float = 0.0,
    eps: float = 1e-4,
    weight_decay: float = 0.0,
    precondition_frequency: int = 1,
    max_size: int = 1024,
    block_size: int = 0,
    merge_dims: bool = False,
) -> Iterator[Array]:
    """Gupta, Koren & Singer 2018, algorithm 2; each block of Shi et al. 2023 as a weight alone."""
    if block_size or merge_dims:
        shape, given = w.shape, list(gradients)
        sides = list(shape)
        for place in reversed(range(len(sides) - 1)) if merge_dims else ():
            if 1 in sides[place : place + 2]:
                sides[place : place + 2] = [sides[place] * sides[place + 1]]
        place = 0
        while merge_dims and place < len(sides) - 1:
            if sides[place] * sides[place + 1] <= (block_size or max_size):
                sides[place : place + 2] = [sides[place] * sides[place + 1]]
            else:
                place += 1
        ends = [w.reshape(sides).copy() for _ in given]
        step = block_size or max(sides, default=1)
        for corner in itertools.product(*(range(0, d, step) for d in sides)):
            cut = tuple(slice(i, i + step) for i in corner)
            own = shampoo(
                w.reshape(sides)[cut],
                [None if g is None else g.reshape(sides)[cut] for g in given],
                lr=lr,
                momentum=momentum,
                eps=eps,
                weight_decay=weight_decay,
                precondition_frequency=precondition_frequency,
                max_size=max_size,
            )
            for end, part in zip(ends, own, strict=True):
                end[cut] = part
        yield from (end.reshape(shape) for end in ends)
        return
    shape, w = w.shape, w.reshape(w.shape or 1)
    kept = [i for i, d in enumerate(w.shape) if d <= max_size]
    sums = {i: eps * numpy.eye(w.shape[i]) for i in kept}
    roots: dict[int, Array] = {}
    buffer = 0 * w
    step = 0
    for g in gradients:
        if g is not None:
            g = g.reshape(w.shape) + weight_decay * w
            step += 1
            for i in kept:
                sums[i] = sums[i] + unfold(g, i) @ unfold(g, i).T
                if (step - 1) % precondition_frequency == 0:
                    values, vectors = numpy.linalg.eigh(sums[i].astype(numpy.float64))
                    root = (vectors * values ** (-1 / (2 * len(kept)))) @ vectors.T
                    roots[i] = root.astype(w.dtype)
            direction = g
            for i in kept:
                direction = times(direction, roots[i], i)
            buffer = momentum * buffer + direction
            w = w - lr * buffer
        yield w.reshape(shape)


def library_shampoo(params: Any, options: dict[str, Any]) -> torch.optim.Optimizer:
    from pytorch_optimizer import Shampoo

    given = {"lr": 0.1, "eps": 1e-4, "weight_decay": 0.0, **options}
    if given.get("momentum", 0.0):
        raise NotImplementedError("its momentum mixes in the gradient before preconditioning")
    if given.keys() & {"max_size", "block_size", "merge_dims"}:
        raise NotImplementedError("it has a matrix for every dimension")
    given["matrix_eps"] = given.pop("eps")
    given["preconditioning_compute_steps"] = given.pop("precondition_frequency", 1)
    return Shampoo(params, **given, weight_decouple=False)


REFERENCES = [
    Reference(
        gradstep.Shampoo,
        gradstep.shampoo,
        shampoo,
        extra=[
            {},
            {"lr": 0.05, "weight_decay": 0.1, "eps": 1e-2, "maximize": True},
            {"lr": f64(0.01), "momentum": 0.9, "precondition_frequency": 3, "eps": 0.1},
            {"max_size": 4},
            {"block_size": 5, "merge_dims": True, "eps": 1e-2, "weight_decay": 0.1},
            {"merge_dims": True, "max_size": 40, "eps": 1e-2},
        ],
        takes_complex=False,
        elementwise=False,
        ill_conditioned=("roots",),
        bound=64.0,
        oracle=library_shampoo,
    ),
]
