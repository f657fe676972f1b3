"""Weights as matrices: batches, filters made flat, and matrices that are several in one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

#: Filters of convolutions are rarely larger than this.
_FILTER = 7


def as_matrices(x: Tensor, flatten: bool) -> Tensor:
    """A batch of weights as one batch of matrices: (batch, rows, columns).

    Args:
        x: (batch, …, rows, columns).
        flatten: (batch, rows, …): all dimensions behind the rows become columns.
    """
    if flatten:
        return x.reshape(len(x), x.shape[1], -1)
    return x.reshape(-1, *x.shape[-2:])


def in_parts(function: Callable[[Tensor], Tensor], x: Tensor, split: Any) -> Tensor:
    """What a function makes of the parts of each matrix, which lie one below the other.

    Args:
        function: takes and returns (batch, rows, columns).
        x: (batch, rows, columns).
        split: how many parts of equal rows, or the rows of each.
    """
    rows = rows_of_parts(x.shape[-2], split)
    if len(set(rows)) == 1:  # together, as a larger batch
        return function(x.reshape(-1, rows[0], x.shape[-1])).view(x.shape)
    return torch.cat([function(part) for part in x.split(rows, dim=-2)], dim=-2)


def rows_of_parts(rows: int, split: Any) -> list[int]:
    """How many rows each part of a matrix has.

    Args:
        rows: of the matrix.
        split: how many parts of equal rows, or the rows of each; None for the whole.
    """
    if split is None:
        return [rows]
    if isinstance(split, Sequence):
        return [int(r) for r in split]
    return [rows // int(split)] * int(split)


def parts_of(
    shape: Sequence[int], *, flatten: bool = False, split: Any = None, **_: Any
) -> list[tuple[int, int, int]]:
    """The matrices that a weight is: rows, columns, and how many there are of them."""
    if flatten:
        count, rows, columns = 1, shape[0], prod(shape[1:])
    else:
        count, (rows, columns) = prod(shape[:-2]), shape[-2:]
    return [(part, columns, count) for part in rows_of_parts(rows, split)]


def stacked(shape: Sequence[int], *, flatten: bool = False, **_: Any) -> int:
    """How many of a weight's first dimensions only count matrices."""
    return 0 if flatten else len(shape) - 2


def unfit(
    shape: Sequence[int], *, flatten: bool | None = False, split: Any = None, **_: Any
) -> str | None:
    """Why a weight cannot be taken as matrices, to be said behind its name; None if it can.

    Where nobody has said what more dimensions are (``flatten`` is None), there may be two.
    """
    if len(shape) < 2:
        return (
            f"has {len(shape)} dimension(s), which are no matrix. Give it to another rule, as "
            "gradstep.partition does"
        )
    if flatten is None and len(shape) > 2:
        return (
            f"has {len(shape)} dimensions. Set flatten=False to take a batch of matrices, or "
            f"flatten=True to take it as {shape[0]} × {prod(shape[1:])}"
        )
    if not flatten and len(shape) > 3 and shape[-1] == shape[-2] <= _FILTER:
        return (
            f"has size {tuple(shape)}, as filters of a convolution have, whose last two dimensions "
            f"are no matrix. Set flatten=True to take it as {shape[0]} × {prod(shape[1:])}, or "
            "give it to another rule"
        )
    if split is None:
        return None
    rows = shape[0] if flatten else shape[-2]
    if isinstance(split, Sequence) and not isinstance(split, str):
        if not split or not all(type(r) is int and r > 0 for r in split):
            return f"has split={split!r}, which takes a number of parts, or the rows of each"
        if sum(split) != rows:
            return f"has {rows} rows, and split={split!r} adds up to {sum(split)}"
        return None
    if type(split) is not int or split < 1:
        return f"has split={split!r}, which takes a number of parts, or the rows of each"
    if rows % split:
        return (
            f"has {rows} rows, which split={split} equal parts (heads) do not divide. Give the "
            "rows of each: split=(…, …)"
        )
    return None
