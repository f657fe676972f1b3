"""Tell quickly whether tensors are still what they were when they were checked with care.

Type, dtype, device, sizes and strides of every tensor, at every step: nothing reaches a kernel on
the strength of an earlier look. torch's own guards do it in C++, at 50 ns a tensor where the same
in Python takes 500. They are not a public part of torch, so they are tried out once, and Python
steps in where they are missing or do not tell what they should.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def _facts(tensor: Any) -> tuple[Any, ...] | None:
    if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
        return None
    return (
        type(tensor),
        tensor.dtype,
        tensor.device,
        tensor.shape,
        tensor.stride(),
        tensor.is_conj(),
        tensor.is_neg(),
    )


def python_guard(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    """The guard in Python."""
    expected = [_facts(t) for t in tensors]

    def check(*now: Any) -> bool:
        return all(map(_same, now, expected))

    def _same(tensor: Any, facts: Any) -> bool:
        return bool(_facts(tensor) == facts)

    return check


def _torch_guard(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    from torch._C._dynamo.guards import TensorGuards

    # Without lists, sizes and strides are the tensors' own: a quarter of the time.
    return TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None).check


def _torch_guard_by_lists(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    from torch._C._dynamo.guards import TensorGuards

    sizes: Any = [list(t.shape) for t in tensors]
    strides: Any = [list(t.stride()) for t in tensors]
    return TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides).check


def _works(make: Callable[[Sequence[Tensor]], Callable[..., bool]]) -> bool:
    try:
        a = torch.zeros(2, 3, device="cpu")
        b = torch.zeros(3, 2, dtype=torch.float64, device="cpu")
        check = make([a, b])
        changed: list[Any] = [
            b.float(),
            b.new_zeros(3, 3),
            b.new_zeros(2, 3).t(),
            torch.nn.Parameter(b.clone()),
            b.to_sparse(),
            None,
        ]
        return check(a, torch.ones_like(b)) and not any(check(a, c) for c in changed)
    except Exception:
        return False


_make: Callable[[Sequence[Tensor]], Callable[..., bool]] | None = None


def make_guard(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    """A function that is True for tensors that could stand in the place of these.

    Args:
        tensors: strided tensors, checked by the caller.

    Returns:
        a function of as many tensors: True if each has the type, dtype, device, sizes and strides
        of its example. It may also say False of good tensors (of one that stands twice, for
        instance), so False means: look with care.
    """
    global _make
    if _make is None:
        makers = (_torch_guard, _torch_guard_by_lists)
        _make = next(filter(_works, makers), python_guard)
    return _make(tensors)
