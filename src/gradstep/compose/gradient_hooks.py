"""Hooks that tell one optimizer, and no other, when a weight's gradient is complete."""

from __future__ import annotations

import weakref
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.compiler import is_compiling


class TakesGradients(Protocol):
    """Is told of gradients."""

    def _arrived(self, p: Tensor) -> None:
        """The gradient of a weight is complete."""


class GradientHook:
    """What torch calls with a weight whose gradient is complete. It keeps no optimizer alive."""

    def __init__(self, owner: TakesGradients) -> None:
        self.owner = weakref.ref(owner)

    def __call__(self, p: Tensor) -> None:
        owner = self.owner()
        if owner is None:
            return
        if is_compiling():
            _tell_outside_of_graph(owner, p)
        else:
            owner._arrived(p)


# What torch.compile makes of a backward pass leaves it alone. The mark costs as much as a small
# step, and is met only where there is something to leave.
@torch._disable_dynamo
def _tell_outside_of_graph(owner: TakesGradients, p: Tensor) -> None:
    owner._arrived(p)


def owner_of(p: Any) -> Any:
    """Who is told of a weight's gradients; None if nobody is, or who was has gone."""
    for hook in (p._post_accumulate_grad_hooks or {}).values():
        if isinstance(hook, GradientHook) and hook.owner() is not None:
            return hook.owner()
    return None


def take(p: Any, owner: TakesGradients) -> None:
    """Have one told of a weight's gradients from now on, and nobody else."""
    if owner_of(p) is not owner:
        give_up(p)
        p.register_post_accumulate_grad_hook(GradientHook(owner))


def give_up(p: Any) -> None:
    """Have nobody told of a weight's gradients any more."""
    hooks = p._post_accumulate_grad_hooks or {}
    for key in [key for key, hook in hooks.items() if isinstance(hook, GradientHook)]:
        del hooks[key]
