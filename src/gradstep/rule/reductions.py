"""The part of the little language that looks at more than one element.

Along the last dimension (``dim=-1``, a value for each row), the one before it (``dim=-2``, a value
for each column), all but the first (``dim="unit"``, a value for each unit: all weights that feed
one output, a row of a matrix or a filter of a convolution), or over all of a tensor. What is left
keeps its dimensions, with one element in them, so that it combines with the tensor it came from.
Sums are taken in float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy
import torch
from torch import Tensor

from gradstep.rule.graph import FACTS, UNIT
from gradstep.rule.language import sqrt
from gradstep.rule.symbol import Symbol, refuse

#: A dimension, ``"unit"``, or all.
Along = int | str | None

__all__ = [
    "dot",
    "global_dot",
    "global_norm",
    "global_sum",
    "max",
    "mean",
    "norm",
    "rms",
    "size",
    "sum",
]


def sum(x: Any, dim: Along = None) -> Any:
    """The sum of a tensor's elements, along a dimension or of all."""
    return _reduce("sum", x, dim)


def max(x: Any, dim: Along = None) -> Any:
    """The largest of a tensor's elements, along a dimension or of all; nan where one is nan.

    For the larger of two values, element by element, see :func:`gradstep.maximum`.
    """
    return _reduce("max", x, dim)


def mean(x: Any, dim: Along = None) -> Any:
    """The mean of a tensor's elements, along a dimension or of all."""
    return sum(x, dim) / size(x, dim)


def norm(x: Any, dim: Along = None) -> Any:
    """The Euclidean norm: the root of the sum of squares, along a dimension or of all."""
    return sqrt(sum(x * x, dim))


def rms(x: Any, dim: Along = None) -> Any:
    """The root of the mean of squares, along a dimension or of all."""
    return sqrt(mean(x * x, dim))


def dot(x: Any, y: Any, dim: Along = None) -> Any:
    """The sum of the products of two tensors' elements, along a dimension or of all."""
    return sum(x * y, dim)


def global_sum(x: Any) -> Any:
    """The sum over all parameters of the optimizer that have a gradient, in float64."""
    return _over_all("global_sum", x)


def global_dot(x: Any, y: Any) -> Any:
    """The sum of the products of two tensors' elements, over all parameters with a gradient."""
    return _over_all("global_dot", x * y)


def global_norm(x: Any) -> Any:
    """The Euclidean norm over all parameters of the optimizer that have a gradient."""
    return sqrt(_over_all("global_norm", x * x))


def _over_all(function: str, x: Any) -> Any:
    if isinstance(x, Symbol):
        return x.recorder.reduce("global_sum", x, None)
    raise TypeError(
        f"{function}() looks at all parameters at once and cannot be called on one tensor. Give "
        "the rule to an optimizer."
    )


def size(x: Any, dim: Along = None) -> Any:
    """How many elements a tensor has, along a dimension or in all: a number."""
    if isinstance(x, Symbol):
        return _size_of(x, dim)
    if dim is None:
        return numpy.float64(x.numel())
    if dim == UNIT:
        return numpy.float64(x[:1].numel())
    return numpy.float64(x.shape[dim])


def facts_of(tensor: Tensor, eps: float | None = None) -> dict[str, float]:
    """The numbers that a tensor's shape and dtype give, by name.

    Args:
        tensor: the weight.
        eps: the distance from 1 to the next number, where that is not its dtype's.
    """
    rows, columns = tensor.shape[-2:] if tensor.dim() > 1 else (1, tensor.numel())
    unit = math.prod(tensor.shape[1:])
    eps = torch.finfo(tensor.dtype).eps if eps is None else eps
    values = (tensor.numel(), columns, rows, unit, eps)
    return dict(zip(FACTS, map(float, values), strict=True))


def reduce_tensor(operation: str, x: Tensor, dim: int | str | None) -> Tensor:
    """A reduction of a torch tensor; what is left of one along dimensions keeps x's dtype."""
    dims: Any = tuple(range(1, x.dim())) if dim == UNIT else dim
    if dims == ():  # which torch takes for all dimensions
        return x
    if operation == "max" and not x.numel():  # of nothing, where torch refuses
        return x.new_full((), torch.nan) if dims is None else joined(x.sum(dim=dims, keepdim=True))
    if operation == "max":
        return joined(x.amax() if dims is None else x.amax(dim=dims, keepdim=True))
    wide = torch.float32 if x.device.type == "mps" else torch.float64  # which that device lacks
    if dims is None:
        return joined(x.sum(dtype=wide))
    return joined(x.sum(dim=dims, keepdim=True, dtype=wide)).to(x.dtype)


def joined(x: Tensor) -> Tensor:
    """A DTensor's outcome for all processes; any other tensor itself.

    Of what each process has a share of torch 2.7 adds a number, and takes a lerp or a power, share
    by share. And each operation that cannot would bring the shares together anew.
    """
    placements = getattr(x, "placements", ())
    if not any(placement.is_partial() for placement in placements):
        return x
    from torch.distributed.tensor import Replicate

    everywhere = [Replicate() if placement.is_partial() else placement for placement in placements]
    whole: Tensor = x.redistribute(placements=everywhere)  # type: ignore[attr-defined]
    return whole


def _reduce(operation: str, x: Any, dim: Along) -> Any:
    if isinstance(x, Symbol):
        return x.recorder.reduce(operation, x, dim)
    if not isinstance(x, Tensor):
        refuse(f"takes the {operation} of a number.", "It takes a tensor.")
    return reduce_tensor(operation, x, dim)


def _size_of(x: Symbol, dim: Along) -> Any:
    fact = x.recorder.fact
    if dim is not None:
        return fact(f"size(w, {dim})")
    whole = fact("size(w)")
    if x.extent == "row" and x.recorder.rows == UNIT:
        whole = whole / fact(f"size(w, {UNIT})")
    elif x.extent in ("row", "matrix"):
        whole = whole / fact("size(w, -1)")
    if x.extent in ("column", "matrix"):
        whole = whole / fact("size(w, -2)")
    return whole
