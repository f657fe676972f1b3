"""Functions that a rule calls and that are not looked into: matrix work, in torch's own operations.

Everything else in a rule is traced, operation by operation. An opaque function gets whole tensors
and returns whole tensors, several parameters of one shape at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, overload

import torch
from torch import Tensor

from gradstep.rule.symbol import Symbol


@dataclass(frozen=True)
class Opaque:
    """A function on a batch of tensors of one shape. Made by :func:`opaque`.

    Attributes:
        name: the function's name.
        function: takes a tensor of shape (batch, *the parameter's shape) and numbers; returns a
            tensor of the same shape and dtype. It may overwrite what it got, draws no random
            numbers, and treats each of the batch as if it were alone.
        dtype: what it wants its tensor as; None for float32, or float64 where the weight is that.
        dimensions: how many dimensions a parameter must have; None for any number.
    """

    name: str
    function: Callable[..., Tensor] = field(repr=False)
    dtype: torch.dtype | None = None
    dimensions: int | None = None

    def __call__(self, x: Any, *numbers: Any) -> Any:
        """Call it in a rule, or on one parameter's tensor.

        Raises:
            ValueError: the function returned another shape.
        """
        if isinstance(x, Symbol):
            return x.recorder.call(self, (x, *numbers))
        if hasattr(x, "full_tensor"):
            return _in_parts(self, x, numbers)
        batch = x.unsqueeze(0).to(self.dtype or x.dtype, copy=True)
        return self.on_batch(batch, *numbers)[0].to(x.dtype)

    def on_batch(self, batch: Tensor, *numbers: float) -> Tensor:
        """Call it on a batch of its own dtype.

        Raises:
            ValueError: the function returned another shape.
        """
        result = self.function(batch, *numbers)
        if result.shape != batch.shape:
            raise ValueError(
                f"{self.name} returned shape {tuple(result.shape)} for a batch of shape "
                f"{tuple(batch.shape)}; it must return the shape that it got"
            )
        return result


def _in_parts(function: Opaque, x: Any, numbers: tuple[Any, ...]) -> Any:
    """Of a DTensor: gather the whole in each process, call, and keep this process's part."""
    from torch.distributed.tensor import DTensor, Replicate

    result = function(x.full_tensor(), *numbers)
    whole = [Replicate()] * x.device_mesh.ndim
    distributed = DTensor.from_local(result, x.device_mesh, whole, run_check=False)
    return distributed.redistribute(placements=x.placements)


@overload
def opaque(function: Callable[..., Tensor], /) -> Opaque: ...
@overload
def opaque(
    *, dtype: torch.dtype | None = None, dimensions: int | None = None
) -> Callable[[Callable[..., Tensor]], Opaque]: ...


def opaque(
    function: Callable[..., Tensor] | None = None,
    /,
    *,
    dtype: torch.dtype | None = None,
    dimensions: int | None = None,
) -> Any:
    """Make a function that rules may call and that is not traced.

    ::

        @gradstep.opaque
        def whiten(x, eps):                      # x: (batch, rows, columns)
            u, _, v = torch.linalg.svd(x, full_matrices=False)
            return u @ v

        @gradstep.rule
        def whitened(g, *, eps=1e-7):
            return whiten(g, eps)

    Args:
        function: see :class:`Opaque`.
        dtype: what it wants its tensor as. Default: as the engine works, float32 or float64.
        dimensions: how many dimensions a parameter must have. Default: any number.
    """
    if function is None:
        return lambda f: Opaque(f.__name__, f, dtype, dimensions)
    return Opaque(function.__name__, function, dtype, dimensions)
