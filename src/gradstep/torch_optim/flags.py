"""The flags that torch.optim's classes share, and what torch refuses about them."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def check_flags(
    *,
    foreach: bool | None,
    differentiable: bool,
    fused: bool | None = None,
    capturable: bool = False,
    numbers: dict[str, Any] | None = None,
) -> None:
    """Raise what torch raises about flags that exclude each other.

    Args:
        numbers: hyperparameters that may not be tensors with ``foreach=True`` unless
            ``capturable``, by the name that a message uses.

    Raises:
        RuntimeError: ``fused`` with ``differentiable`` or ``foreach``.
        ValueError: a tensor hyperparameter with ``foreach`` and without ``capturable``.
    """
    if fused and differentiable:
        raise RuntimeError("`fused` does not support `differentiable`")
    if fused and foreach:
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
    for name, value in (numbers or {}).items():
        if isinstance(value, Tensor) and foreach and not capturable:
            raise ValueError(
                f"{name} as a Tensor is not supported for capturable=False and foreach=True"
            )
