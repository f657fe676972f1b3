"""Hooks around a step, run once for each, also where a subclass puts a step around its parent's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.compiler import is_compiling


class HooksOnce(torch.optim.Optimizer):
    """An optimizer whose outermost ``step()`` runs the hooks.

    torch puts hooks around the step of each class of which there is an optimizer. Of a subclass
    that overrides ``step()`` and calls ``super().step()``, both may have them, and then every hook
    runs twice.
    """

    _in_hooks = False

    def _patch_step_function(self) -> None:
        kind: Any = type(self)
        if not getattr(kind.step, "hooked", None):
            kind.step = _between_hooks(kind.step)
        super()._patch_step_function()


def without_hooks(step: Any) -> Any:
    """A class's step as it was before torch put hooks around it, and around them what else."""
    wrapper = torch.optim.Optimizer.profile_hook_step(step)
    within = step
    while within is not None:  # torch.compile wraps the steps of some classes once more
        if getattr(within, "__code__", None) is wrapper.__code__:
            return within.__wrapped__
        within = getattr(within, "__wrapped__", None)
    return step


def _between_hooks(step: Callable[..., Any]) -> Callable[..., Any]:
    hooked = torch.optim.Optimizer.profile_hook_step(step)

    @functools.wraps(step)
    def between_hooks(self: HooksOnce, *args: Any, **kwargs: Any) -> Any:
        if is_compiling():
            return outside_of_graph(self, *args, **kwargs)
        if self._in_hooks:
            return step(self, *args, **kwargs)
        self._in_hooks = True
        try:
            return hooked(self, *args, **kwargs)
        finally:
            self._in_hooks = False

    # torch.compile leaves the step as it is: there is nothing in it to compile.
    outside_of_graph = torch._disable_dynamo(between_hooks)
    between_hooks.hooked = True  # type: ignore[attr-defined]
    return between_hooks
