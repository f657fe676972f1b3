"""Functions that a rule calls and that are not looked into: matrix work, in torch's own operations.

Everything else in a rule is traced, operation by operation. An opaque function gets whole tensors
and returns whole tensors, several parameters of one shape at a time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
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
        function: takes tensors, then numbers. Each tensor is a batch: (batch, *the shape of one
            parameter's). The first may have the parameter's shape, the others (or all) are states
            of a shape of their own. Returns what takes the place of those in ``returns``, each of
            the same shape and dtype. It may overwrite what it returns anew and the first, draws
            no random numbers but from a generator of its own, and treats each of the batch as if it
            were alone.
        dtype: what it wants the tensor of the parameter's shape as; None for float32, or float64
            where the weight is that.
        dimensions: how many dimensions a parameter must have; None for any number.
        returns: the places of the arguments that it returns anew, in order.
    """

    name: str
    function: Callable[..., Any] = field(repr=False)
    dtype: torch.dtype | None = None
    dimensions: int | None = None
    returns: tuple[int, ...] = (0,)

    def argument_names(self) -> list[str]:
        """What the function calls its arguments."""
        return list(inspect.signature(self.function).parameters)

    def __call__(self, *arguments: Any) -> Any:
        """Call it in a rule, or on one parameter's tensors.

        Raises:
            ValueError: the function returned another shape, or another number of tensors.
        """
        symbol = next((a for a in arguments if isinstance(a, Symbol)), None)
        if symbol is not None:
            return symbol.recorder.call(self, arguments)
        x = arguments[0]
        if hasattr(x, "full_tensor"):
            return _in_parts(self, x, arguments[1:])
        if not x.numel():  # of nothing, nothing is made: the function is not asked
            kept = tuple(arguments[place] for place in self.returns)
            return kept[0] if len(kept) == 1 else kept
        plain = torch.contiguous_format
        given: list[Any] = [
            a.unsqueeze(0).clone(memory_format=plain) if isinstance(a, Tensor) and a.dim() else a
            for a in arguments
        ]
        given[0] = x.unsqueeze(0).to(self.dtype or x.dtype, copy=True)
        made = [
            result[0].to(arguments[place].dtype)
            for place, result in zip(self.returns, self.on_batch(*given), strict=True)
        ]
        return made[0] if len(made) == 1 else tuple(made)

    def on_batch(self, *arguments: Any) -> list[Tensor]:
        """Call it on batches, the first of its own dtype; returns a list.

        Raises:
            ValueError: the function returned another shape, or another number of tensors.
        """
        result = self.function(*arguments)
        results = [result] if isinstance(result, Tensor) else list(result)
        if len(results) != len(self.returns):
            raise ValueError(
                f"{self.name} returned {len(results)} tensor(s) and must return {len(self.returns)}"
            )
        for place, made in zip(self.returns, results, strict=True):
            given = arguments[place].shape
            if made.shape != given:
                raise ValueError(
                    f"{self.name} returned shape {tuple(made.shape)} for a batch of shape "
                    f"{tuple(given)}; it must return the shape that it got"
                )
        return results


def _in_parts(function: Opaque, x: Any, others: tuple[Any, ...]) -> Any:
    """Of a DTensor: gather the whole in each process, call, and keep this process's part.

    States of a shape of their own are whole in each process.
    """
    from torch.distributed.tensor import DTensor, Replicate

    results = function(x.full_tensor(), *others)
    if function.returns[0] != 0:
        return results
    whole = [Replicate()] * x.device_mesh.ndim
    first = results[0] if isinstance(results, tuple) else results
    distributed = DTensor.from_local(first, x.device_mesh, whole, run_check=False)
    own = distributed.redistribute(placements=x.placements)
    return (own, *results[1:]) if isinstance(results, tuple) else own


@overload
def opaque(function: Callable[..., Any], /) -> Opaque: ...
@overload
def opaque(
    *,
    dtype: torch.dtype | None = None,
    dimensions: int | None = None,
    returns: Sequence[str] = (),
) -> Callable[[Callable[..., Any]], Opaque]: ...


def opaque(
    function: Callable[..., Any] | None = None,
    /,
    *,
    dtype: torch.dtype | None = None,
    dimensions: int | None = None,
    returns: Sequence[str] = (),
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

    It may also take states of a shape of their own (:func:`gradstep.shaped`), and return them anew:
    ``returns`` then names those of its arguments that it returns.

    If it raises, the parameters that it was called for are as they were, and so are their states;
    those that were updated before in the same step are not taken back, and the error names them.

    Args:
        function: see :class:`Opaque`.
        dtype: what it wants its tensor as. Default: as the engine works, float32 or float64.
        dimensions: how many dimensions a parameter must have. Default: any number.
        returns: the names of the arguments that it returns anew, in their order. Default: the
            first.

    Raises:
        ValueError: ``returns`` names something else, or not in their order.
    """
    if function is None:
        return lambda f: _made(f, dtype, dimensions, returns)
    return _made(function, dtype, dimensions, returns)


def _made(
    function: Callable[..., Any],
    dtype: torch.dtype | None,
    dimensions: int | None,
    returns: Sequence[str],
) -> Opaque:
    names = list(inspect.signature(function).parameters)
    unknown = [name for name in returns if name not in names]
    if unknown:
        raise ValueError(f"{function.__name__} has no argument {unknown[0]!r} to return anew")
    places = tuple(map(names.index, returns)) or (0,)
    if list(places) != sorted(set(places)):
        raise ValueError(f"{function.__name__} returns {', '.join(returns)}: name them in order")
    return Opaque(function.__name__, function, dtype, dimensions, places)
