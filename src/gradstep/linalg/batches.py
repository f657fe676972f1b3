"""Batches of matrices, each of which has the bits that it would have alone.

torch's product of a batch adds up otherwise than that of one matrix, on some CPUs. And on some the
last bits of LAPACK and of a product depend on whether a matrix begins at a multiple of 64 bytes, as
one does that is alone. So here they go through one by one, each in memory of its own. What works on
each element by itself needs none of this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

#: At which addresses torch's own memory begins.
_ALIGNED = 64
#: torch's batched product of 16 bits adds up otherwise in products of fewer multiplications than
#: this; above, a batch has the bits of its matrices and takes half the time.
_SMALL = 400


def each(function: Callable[..., Any], *batches: Tensor) -> Any:
    """What a function makes of each of a batch, put together: a batch, or a tuple of them.

    Args:
        function: takes one of each, without the batch's dimension, and returns a tensor or several.
        batches: tensors of the same first dimension.
    """
    made = [function(*map(_in_own_memory, one)) for one in zip(*batches, strict=True)]
    if isinstance(made[0], Tensor):
        return _stacked(made)
    return tuple(_stacked(list(parts)) for parts in zip(*made, strict=True))


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a b`` for batches of matrices."""
    if _goes_together(a, b):
        return torch.bmm(a, b)
    return each(torch.mm, a, b)


def plus_product(c: Tensor, a: Tensor, b: Tensor, beta: float, alpha: float) -> Tensor:
    """``beta · c + alpha · a b`` for batches of matrices."""
    if _goes_together(a, b):
        return torch.baddbmm(c, a, b, beta=beta, alpha=alpha)
    added: Tensor = each(lambda *m: torch.addmm(*m, beta=beta, alpha=alpha), c, a, b)
    return added


def _goes_together(a: Tensor, b: Tensor) -> bool:
    narrow = a.dtype in (torch.bfloat16, torch.float16)
    return narrow and a.shape[-2] * a.shape[-1] * b.shape[-1] >= _SMALL


def _in_own_memory(x: Tensor) -> Tensor:
    # A tensor that torch only traces has no address.
    if torch.compiler.is_compiling() or type(x) is not Tensor or not x.data_ptr() % _ALIGNED:
        return x
    return x.clone()


def _stacked(tensors: list[Tensor]) -> Tensor:
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(tensors)
