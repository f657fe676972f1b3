"""Orthonormal bases that rounding cannot turn.

A gradient of a matrix rarely has full rank: along its longer side it never has. Where it has
nothing, its singular vectors are whatever LAPACK's roundings make them, other ones on another CPU
or in another layout, and Adam, which divides by the size of what it sees, makes whole steps of it.
So of the space where a gradient has nothing a basis is chosen here that hangs on that space alone;
and what is left there of later gradients, where they have nothing either, is told from rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Below this share of the largest, an entry in a basis is taken for rounding. In float32 that is 8
#: roundings; of float64 it is far more, since a basis of many dimensions has fewer digits.
_NOISE = {torch.float32: 2.0**-20, torch.float64: 2.0**-36}


def singular_basis(rows: Tensor, count: int) -> Tensor:
    """The first left singular vectors of a matrix, from the largest, as columns; in float64.

    Beyond its numerical rank (singular values above ``max(shape) · eps`` of the largest) come
    those of :func:`complement`. What is no number counts as 0; LAPACK would stop at it. In less
    than float64 the vectors of near singular values turn with every rounding.

    Args:
        rows: a matrix.
        count: how many; at most as many as it has rows.
    """
    wide = rows.double().nan_to_num(0.0, 0.0, 0.0)
    vectors, values, _ = torch.linalg.svd(wide, full_matrices=False)
    smallest = max(rows.shape) * torch.finfo(rows.dtype).eps * values[:1]
    rank = min(int((values > smallest).sum()), count)
    if rank == count:
        return vectors[:, :count]
    found = vectors[:, :rank]
    return torch.cat([found, complement(found)[:, : count - rank]], dim=1)


def eigenbasis(matrix: Tensor) -> Tensor:
    """The eigenvectors of a symmetric matrix without negative eigenvalues, the largest's first.

    Beyond its numerical rank (eigenvalues above ``len · eps`` of the largest, and more than
    rounding) come those of :func:`complement`. What is no number counts as 0. In float64.
    """
    values, vectors = torch.linalg.eigh(matrix.double().nan_to_num(0.0, 0.0, 0.0))
    small = max(len(matrix) * torch.finfo(matrix.dtype).eps, _NOISE[matrix.dtype])
    found = vectors.flip(-1)[:, : int((values > small * values[-1:].clamp(min=0)).sum())]
    return found if len(found) == found.shape[1] else torch.cat([found, complement(found)], dim=1)


def complement(vectors: Tensor) -> Tensor:
    """A basis of the space to which all of some orthonormal vectors are orthogonal.

    Of all its bases the one that lies along the weight's own axes as far as it can: the principal
    axes, in that space, of a diagonal matrix. An axis within the space is a vector of the basis,
    and of the whole space the basis is the identity.
    """
    size, rank = vectors.shape
    # No two alike, and none in the middle between two others, so that symmetric gradients too have
    # but one choice.
    scale = 2 - (torch.arange(size, dtype=vectors.dtype, device=vectors.device) / size).sqrt()
    projection = torch.eye(size, dtype=vectors.dtype, device=vectors.device) - vectors @ vectors.mT
    return torch.linalg.eigh(projection * scale @ projection)[1].flip(-1)[:, : size - rank]


def turned(average: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """A basis nearer to a symmetric matrix's eigenvectors, by one step of the power method.

    The columns are brought in the order of their eigenvalues first. Where the matrix makes nothing
    but rounding of a column, beside what it makes of the others, that column stays as it was, only
    made orthogonal to the others, and goes to the end.

    Args:
        average: the matrix, without negative eigenvalues.
        basis: orthonormal columns.

    Returns:
        the new basis, and which columns of the old one those of the new one were.
    """
    small = max(len(average) * torch.finfo(average.dtype).eps, _NOISE[average.dtype])
    # In float64, though it takes 2.2 times as long: in float32 a gradient's last bit would turn the
    # columns whose values are next to nothing, and Adam's steps in them are as long as any.
    old = basis.double()
    made = average.double() @ old
    values = (old * made).sum(0)
    values = torch.where(values > small * values.max(), values, 0)
    order = values.argsort(descending=True, stable=True)
    found, sizes = torch.linalg.qr(made[:, order])
    sizes = sizes.diagonal().abs()
    nothing = sizes <= small * sizes.max()
    if nothing.any():
        last = nothing.to(torch.uint8).argsort(stable=True)
        order, nothing = order[last], nothing[last]
        found = torch.linalg.qr(torch.where(nothing, old[:, order], made[:, order]))[0]
    return found.to(basis.dtype), order


def rounding_as_inf(sizes: Tensor) -> Tensor:
    """Sizes of what was multiplied by bases, made infinite where they are rounding of the largest.

    What is divided by them is then 0 there.

    Args:
        sizes: (batch, *shape), none below 0; float32 or float64. Is overwritten.
    """
    # One by one and in place: four times as fast as with the largest of each as a tensor.
    for one in sizes:
        torch.threshold_(one, _NOISE[sizes.dtype] * float(one.max()), torch.inf)
    return sizes


def without_rounding(x: Tensor, of: Tensor) -> Tensor:
    """What was left of matrices, 0 where it is rounding of the largest element that they had.

    Args:
        x, of: (batch, rows, columns).
    """
    largest = of.abs().amax(dim=(-2, -1), keepdim=True)
    return torch.where(x.abs() > _NOISE[x.dtype] * largest, x, 0)


def signed(vectors: Tensor) -> Tensor:
    """Each column with the sign that makes its largest element positive.

    The first of those that are as large but for rounding.
    """
    sizes = vectors.abs()
    first = (sizes >= (1 - 2**-20) * sizes.amax(dim=0)).to(torch.uint8).argmax(dim=0, keepdim=True)
    return vectors * vectors.gather(0, first).sign()
