"""Adam in a subspace of a matrix's shorter side, as GaLore and APOLLO have it.

A weight of more than two dimensions is a matrix of its first dimension and all others together.
Here all matrices lie: their shorter side is their rows; where both are equal, their columns are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradstep.rule import opaque
from gradstep.rules.random_numbers import generator, normal


def sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """The shorter and the longer side of a weight as a matrix."""
    first, rest = shape[0], math.prod(shape[1:])
    return min(first, rest), max(first, rest)


def projector_shape(shape: tuple[int, ...], rank: float) -> tuple[int, int]:
    """The shape of a basis of the subspace."""
    shorter, _ = sides(shape)
    return shorter, min(int(rank), shorter)


def moment_shape(shape: tuple[int, ...], rank: float) -> tuple[int, int]:
    """The shape of a matrix within the subspace."""
    shorter, longer = sides(shape)
    return min(int(rank), shorter), longer


def lying(x: Tensor) -> Tensor:
    """A batch of weights as matrices that lie."""
    matrices = x.reshape(len(x), x.shape[1], -1)
    return matrices if matrices.shape[1] < matrices.shape[2] else matrices.mT


def as_before(matrices: Tensor, x: Tensor) -> Tensor:
    """Matrices that lie, in the shape of ``x``."""
    lie = x.shape[1] < math.prod(x.shape[2:])
    return (matrices if lie else matrices.mT).reshape(x.shape)


@opaque(returns=("projector",))
def subspace(g: Tensor, projector: Tensor, step: float, update_proj_gap: float) -> Tensor:
    """The gradient's first left singular vectors, every ``update_proj_gap`` steps.

    Args:
        g: (batch, *shape): the gradient.
        projector: (batch, shorter side, rank): the vectors until now.
        step: 1 at the first.
        update_proj_gap: how many steps they are kept for.
    """
    if int(step - 1) % int(update_proj_gap):
        return projector
    # In float64: in float32 the vectors of near singular values turn with every rounding. What is
    # no number comes out of the moments too, and would be an error here.
    matrices = lying(g).double().nan_to_num(0.0, 0.0, 0.0)
    vectors = torch.linalg.svd(matrices, full_matrices=False)[0][..., : projector.shape[-1]]
    # Of the two signs that each may have, the one that makes its largest element positive.
    largest = vectors.gather(-2, vectors.abs().argmax(dim=-2, keepdim=True))
    return (vectors * largest.sign()).to(projector.dtype)


@opaque(returns=("g", "exp_avg", "exp_avg_sq"))
def adam_within(
    g: Tensor,
    projector: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Adam's direction within a subspace, taken back to the whole space; the moments anew.

    Args:
        g: (batch, *shape): the gradient.
        projector: (batch, shorter side, rank): a basis of the subspace.
        exp_avg, exp_avg_sq: (batch, rank, longer side): the moments.
        beta1, beta2, eps: of Adam.
    """
    low = projector.mT @ lying(g)
    exp_avg, exp_avg_sq, direction = _adam(low, exp_avg, exp_avg_sq, beta1, beta2, eps)
    return as_before(projector @ direction, g), exp_avg, exp_avg_sq


@opaque(returns=("g", "exp_avg", "exp_avg_sq"))
def scaled_as_adam(
    g: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: float,
    beta1: float,
    beta2: float,
    eps: float,
    update_proj_gap: float,
    tensor_wise: float,
    seed: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient, scaled as Adam scales its random projection; the moments anew.

    Args:
        g: (batch, *shape): the gradient.
        exp_avg, exp_avg_sq: (batch, rank, longer side): the projection's moments.
        step: 1 at the first.
        beta1, beta2, eps: of Adam.
        update_proj_gap: how many steps a projection is kept for.
        tensor_wise: one scale for all, not one for each channel of the longer side.
        seed: of the projections.
    """
    matrices, rank = lying(g), exp_avg.shape[1]
    source = generator(seed, int(step - 1) // int(update_proj_gap))
    projection = normal((matrices.shape[1], rank), source, g) / math.sqrt(rank)
    low = projection.mT.expand(len(g), -1, -1) @ matrices
    exp_avg, exp_avg_sq, direction = _adam(low, exp_avg, exp_avg_sq, beta1, beta2, eps)
    channels = (-2, -1) if tensor_wise else -2
    before = torch.linalg.vector_norm(low, dim=channels, keepdim=True)
    after = torch.linalg.vector_norm(direction, dim=channels, keepdim=True)
    return as_before(matrices * (after / (before + 1e-8)), g), exp_avg, exp_avg_sq


def _adam(
    x: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, beta1: float, beta2: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Adam's moments anew, and its direction without the corrections."""
    exp_avg = beta1 * exp_avg + (1 - beta1) * x
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (x * x)
    return exp_avg, exp_avg_sq, exp_avg / (exp_avg_sq.sqrt() + eps)
