"""Adam in a subspace of a matrix's shorter side, as GaLore and APOLLO have it.

A weight of more than two dimensions is a matrix of its first dimension and all others together.
Here all matrices lie: their shorter side is their rows; where both are equal, their columns are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradstep.linalg.bases import rounding_as_inf, signed, singular_basis, without_rounding
from gradstep.linalg.batches import each, product
from gradstep.linalg.random_numbers import generator, normal
from gradstep.rule import opaque


def sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """The shorter and the longer side of a weight as a matrix."""
    first, rest = shape[0], torch.Size(shape[1:]).numel()
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
    lie = x.shape[1] < x.shape[2:].numel()
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
    rank = projector.shape[-1]
    return each(lambda x: signed(singular_basis(x, rank)).to(projector.dtype), lying(g))


@opaque(returns=("exp_avg",))
def projected(g: Tensor, projector: Tensor, exp_avg: Tensor) -> Tensor:
    """The gradient within the subspace: ``Pᵀ G``.

    Args:
        g: (batch, *shape): the gradient.
        projector: (batch, shorter side, rank): P.
        exp_avg: (batch, rank, longer side): is of the shape wanted.
    """
    return product(projector.mT, lying(g))


@opaque(returns=("exp_avg",))
def randomly_projected(
    g: Tensor, exp_avg: Tensor, step: float, update_proj_gap: float, seed: float
) -> Tensor:
    """The gradient by a random P, another one every ``update_proj_gap`` steps: ``P G``.

    Args:
        g: (batch, *shape): the gradient.
        exp_avg: (batch, rank, longer side): is of the shape wanted.
        step: 1 at the first.
        update_proj_gap: how many steps a P is kept for.
        seed: chooses the P.
    """
    matrices, rank = lying(g), exp_avg.shape[1]
    source = generator(seed, int(step - 1) // int(update_proj_gap))
    projection = normal((matrices.shape[1], rank), source, g) / rank**0.5
    return product(projection.mT.expand(len(g), -1, -1), matrices)


@opaque
def average(exp_avg: Tensor, low: Tensor, beta1: float) -> Tensor:
    """The moving average of projected gradients: ``beta1·m + (1 − beta1)·R``.

    Args:
        exp_avg: (batch, rank, longer side): m.
        low: the same: R.
        beta1: how much of the average is kept.
    """
    return beta1 * exp_avg + (1 - beta1) * low


@opaque
def average_square(exp_avg_sq: Tensor, low: Tensor, beta2: float) -> Tensor:
    """The moving average of their squares: ``beta2·v + (1 − beta2)·R²``.

    Args:
        exp_avg_sq: (batch, rank, longer side): v.
        low: the same: R.
        beta2: how much of the average is kept.
    """
    return beta2 * exp_avg_sq + (1 - beta2) * (low * low)


@opaque(returns=("g",))
def taken_back(
    g: Tensor, projector: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, eps: float
) -> Tensor:
    """Adam's direction within the subspace, as one of the whole space: ``P (m / (√v + eps))``.

    It is 0 where √v is rounding of its largest.

    Args:
        g: (batch, *shape): is of the shape wanted.
        projector: (batch, shorter side, rank): P.
        exp_avg, exp_avg_sq: (batch, rank, longer side): m and v.
        eps: of Adam.
    """
    size = rounding_as_inf(exp_avg_sq.sqrt())
    return as_before(product(projector, exp_avg / (size + eps)), g)


@opaque(returns=("g",))
def scaled_as_adam(
    g: Tensor, low: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, eps: float, tensor_wise: float
) -> Tensor:
    """The gradient, each channel scaled as Adam scales that of R: by ``|m / (√v + eps)| / |R|``.

    Args:
        g: (batch, *shape): the gradient.
        low: (batch, rank, longer side): R, its projection.
        exp_avg, exp_avg_sq: the same: m and v.
        eps: of Adam.
        tensor_wise: whether to scale all by one number, and not each channel by its own.
    """
    direction = exp_avg / (exp_avg_sq.sqrt() + eps)
    dim = None if tensor_wise else 0
    before, after = (
        each(lambda x: torch.linalg.vector_norm(x, dim=dim, keepdim=True), batch)
        for batch in (low, direction)
    )
    return as_before(lying(g) * (after / (before + 1e-8)), g)


@opaque(returns=("g",))
def outside(
    g: Tensor,
    projector: Tensor,
    low: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    eps: float,
) -> Tensor:
    """What the subspace leaves of the gradient, ``G − P R``, scaled as Adam scales R, by channels.

    Args:
        g: (batch, *shape): the gradient.
        projector: (batch, shorter side, rank): P.
        low: (batch, rank, longer side): R, its projection.
        exp_avg, exp_avg_sq: the same: m and v.
        eps: of Adam.
    """
    direction = exp_avg / (rounding_as_inf(exp_avg_sq.sqrt()) + eps)
    before, after = (each(_channel_norms, batch) for batch in (low, direction))
    whole = lying(g)
    rest = without_rounding(whole - product(projector, low), whole)
    return as_before(rest * (after / (before + 1e-8)), g)


def _channel_norms(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=0, keepdim=True)
