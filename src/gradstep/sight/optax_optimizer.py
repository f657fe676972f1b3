"""A transformation of optax behind torch.optim's manners, to be held against a rule."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor


def is_optax(factory: Any) -> bool:
    """Whether it is a function of optax, or one with some arguments filled in."""
    while hasattr(factory, "func"):
        factory = factory.func
    return str(getattr(factory, "__module__", "")).partition(".")[0] == "optax"


class OptaxOptimizer:
    """Updates torch's parameters by a transformation of optax, in float64.

    A parameter without a gradient gets zeros, since optax knows no other way.

    Args:
        params: tensors.
        factory: a function of optax, called with ``learning_rate`` and the options.
        lr: the learning rate.
        options: further arguments by name.

    Raises:
        ImportError: optax or jax is not installed.
        TypeError: an argument that the function does not take.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        factory: Callable[..., Any],
        lr: float,
        options: Mapping[str, Any],
    ) -> None:
        self._jax: Any = importlib.import_module("jax")
        self._optax: Any = importlib.import_module("optax")
        self._jax.config.update("jax_enable_x64", True)
        self._params = list(params)
        self._make = lambda rate: factory(learning_rate=rate, **options)
        self._made = (lr, self._make(lr))
        self._state = self._made[1].init(self._arrays(self._params))
        self.param_groups: list[dict[str, Any]] = [{"params": self._params, "lr": lr}]

    def _arrays(self, tensors: Sequence[Tensor]) -> list[Any]:
        array = self._jax.numpy.array
        return [array(t.detach().numpy(), dtype="float64") for t in tensors]

    def step(self) -> None:
        """Update every parameter."""
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._params]
        weights = self._arrays(self._params)
        lr = self.param_groups[0]["lr"]
        if lr != self._made[0]:  # the state does not depend on it
            self._made = (lr, self._make(lr))
        update = self._made[1].update
        changes, self._state = update(self._arrays(gradients), self._state, weights)
        new = self._optax.apply_updates(weights, changes)
        with torch.no_grad():
            for p, w in zip(self._params, new, strict=True):
                p.copy_(torch.from_numpy(numpy.array(w)))
