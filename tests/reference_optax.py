"""An optax transformation as an optimizer of torch's parameters, for oracles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class InOptax:
    """Makes steps as optax does, in float64."""

    def __init__(self, parameters: Sequence[Tensor], transformation: Any) -> None:
        import jax

        jax.config.update("jax_enable_x64", True)
        self.parameters = list(parameters)
        self.transformation = transformation
        self.state = transformation.init(self._arrays([p.detach() for p in self.parameters]))

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        gradients = self._arrays([p.grad for p in self.parameters])
        weights = self._arrays([p.detach() for p in self.parameters])
        updates, self.state = self.transformation.update(gradients, self.state, weights)
        with torch.no_grad():
            for p, update in zip(self.parameters, updates, strict=True):
                p += torch.tensor(update.tolist(), dtype=p.dtype)

    def _arrays(self, tensors: Sequence[Any]) -> list[Any]:
        import jax.numpy

        return [jax.numpy.asarray(t.numpy()) for t in tensors]
