"""The step that torch.distributed.checkpoint makes before the first, for states to be there."""

from __future__ import annotations

from collections.abc import Mapping
from operator import is_
from typing import Any

import torch
from torch import Tensor


def only_begins_states(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step without a closure would be that one: nothing is trained, nothing counts.

    There are no states yet, every learning rate is 0, and every parameter that takes a gradient has
    one of zeros.
    """
    if optimizer.state:
        return False
    for group in optimizer.param_groups:  # a rule without states comes here at every step
        if group.get("lr"):
            return False
    params = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    gradients = [p.grad for p in params if p.grad is not None]
    if not gradients or len(gradients) < len(params):
        return False
    return not any(bool(gradient.any()) for gradient in gradients)


class Begun:
    """States that such a step has begun.

    Args:
        parameter: whose they are.
        entry: they themselves, by name.
    """

    def __init__(self, parameter: Tensor, entry: dict[str, Any]) -> None:
        self.parameter, self.entry = parameter, entry
        self._tensors, self._versions = _seen(entry)

    def is_untouched(self, state: Mapping[Any, Any]) -> bool:
        """Whether an optimizer still has them, as they began."""
        if state.get(self.parameter) is not self.entry:
            return False
        tensors, versions = _seen(self.entry)
        same = len(tensors) == len(self._tensors) and all(map(is_, tensors, self._tensors))
        return same and versions == self._versions


def _seen(entry: Mapping[str, Any]) -> tuple[list[Any], list[int]]:
    """States, and how often torch has seen each written."""
    tensors = list(entry.values())
    # Of a DTensor a checkpoint is read into the part that is here.
    return tensors, [getattr(getattr(t, "_local_tensor", t), "_version", 0) for t in tensors]
