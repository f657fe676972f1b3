"""Other libraries' optimizers as ``gradstep bench`` runs them: weights, gradients and a step."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy
import torch
from torch import Tensor

from gradstep.lab.bench_memory import temporary_bytes


class Stepper(Protocol):
    """An optimizer with weights of its own."""

    def give(self, gradients: Sequence[Tensor]) -> None:
        """The gradients of the steps to come."""

    def step(self) -> object:
        """One step, done when this returns."""

    def weights(self) -> list[Tensor]:
        """The weights as they now are."""

    def temporary(self) -> int:
        """Bytes of temporary memory in a step that is not the first."""


#: ``make(weights, gradients)`` makes a stepper, with weights of its own that begin as those.
Make = Callable[[Sequence[Tensor], Sequence[Tensor]], Stepper]


class TorchStepper:
    """Any torch.optim.Optimizer.

    Args:
        make: of a list of parameters.
        weights, gradients: to begin with.
    """

    def __init__(
        self,
        make: Callable[[list[Any]], Any],
        weights: Sequence[Tensor],
        gradients: Sequence[Tensor],
    ) -> None:
        self._parameters = [torch.nn.Parameter(w.clone()) for w in weights]
        self.give(gradients)
        with warnings.catch_warnings():  # that a mode will go away is no news for a bench
            warnings.simplefilter("ignore")
            self.step = make(self._parameters).step

    def give(self, gradients: Sequence[Tensor]) -> None:
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient

    def weights(self) -> list[Tensor]:
        return [p.detach() for p in self._parameters]

    def temporary(self) -> int:
        return temporary_bytes(self.step)


class OptaxStepper:
    """optax as it is usually run: update and application in one jitted function.

    The old weights and states are donated, so that XLA may write the new ones in their place.
    """

    def __init__(
        self, transformation: Any, weights: Sequence[Tensor], gradients: Sequence[Tensor]
    ) -> None:
        # By name, since who checks the types of this package may have neither.
        jax = importlib.import_module("jax")
        optax = importlib.import_module("optax")
        if weights[0].dtype == torch.float64:
            jax.config.update("jax_enable_x64", True)

        def step(weights: Any, state: Any, gradients: Any) -> Any:
            changes, state = transformation.update(gradients, state, weights)
            return optax.apply_updates(weights, changes), state

        self._jax = jax
        self._step = jax.jit(step, donate_argnums=(0, 1))
        self._weights = self._arrays(weights)
        # A copy, since some states begin as one and the same array, which can be donated only once.
        self._state = jax.tree.map(jax.numpy.array, transformation.init(self._weights))
        self.give(gradients)

    def _arrays(self, tensors: Sequence[Tensor]) -> list[Any]:
        array = self._jax.numpy.array
        wide = [t if t.dtype == torch.float64 else t.float() for t in tensors]  # numpy has no bf16
        name = str(tensors[0].dtype).removeprefix("torch.")
        return [array(t.numpy(), dtype=name) for t in wide]

    def give(self, gradients: Sequence[Tensor]) -> None:
        self._gradients = self._arrays(gradients)

    def step(self) -> object:
        self._weights, self._state = self._step(self._weights, self._state, self._gradients)
        return self._jax.block_until_ready((self._weights, self._state))

    def weights(self) -> list[Tensor]:
        # Copied, since the next step may write where these lie.
        return [torch.tensor(numpy.asarray(w)) for w in self._weights]

    def temporary(self) -> int:
        """What XLA plans for: its scratch memory, and results that take no donated place."""
        lowered = self._step.lower(self._weights, self._state, self._gradients)
        plan = lowered.compile().memory_analysis()
        fresh = plan.output_size_in_bytes - plan.alias_size_in_bytes
        return int(plan.temp_size_in_bytes + fresh)
