"""Gradients of several batches for one step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from gradstep.checkpoint import ACCUMULATED_GRADIENT
from gradstep.compose.wrapper import Wrapper, without


class Accumulate(Wrapper):
    """Lets a loop of steps make one step every few batches, on the mean of their gradients.

    The loop stays as it is: until enough batches have come, ``step()`` does nothing and
    ``zero_grad()`` leaves the gradients, so that ``backward()`` adds to them. No memory is needed
    for it. ``zero_grad()`` of the model itself would throw them away.

    Schedulers count the calls of the loop: call theirs when ``optimizer.pending`` is 0.

    Args:
        optimizer: any but LBFGS.
        steps: batches for each step.
        mean: divide the gradients by ``steps``, in place, before the step. Default: True.

    Raises:
        TypeError: no optimizer, or LBFGS.
        ValueError: fewer than one batch.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, steps: int, *, mean: bool = True) -> None:
        super().__init__(optimizer)
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"Invalid steps: {steps!r}; expected a whole number of at least 1")
        self.steps = steps
        self.mean = mean
        self._begin_numbers()

    @property
    def pending(self) -> int:
        """How many batches have come since the last step."""
        return int(self._numbers()["accumulated"])

    def _own_numbers(self) -> Mapping[str, Any]:
        return {"accumulated": 0}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, if they have been used."""
        if not self.pending:
            super().zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Count a batch, and make the step if it is the last of its round.

        Args:
            closure: computes the loss and its gradients anew; called first.

        Returns:
            the closure's loss, or None.
        """
        loss = self._loss_of(closure)
        count = self.pending + 1
        if count < self.steps:
            self._numbers()["accumulated"] = count
            return loss
        if self.mean and self.steps > 1:
            with torch.no_grad():
                for p in self._weights():
                    if p.grad is not None:
                        p.grad.div_(self.steps)
        # First, so that what the optimizer inside saves in a hook is the state between rounds.
        self._numbers()["accumulated"] = 0
        self._inner_step(loss)
        return loss

    def _save(self) -> dict[str, Any]:
        saved = super()._save()
        if self.pending:
            for i, p in enumerate(self._weights()):
                if p.grad is not None:
                    own = {ACCUMULATED_GRADIENT: p.grad.detach().clone()}
                    saved["state"][i] = {**saved["state"].get(i, {}), **own}
        return saved

    def _load(self, state_dict: dict[str, Any]) -> None:
        state_dict, gradients = without(state_dict, ACCUMULATED_GRADIENT)
        super()._load(state_dict)
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        for key, p in zip(keys, self._weights(), strict=True):
            found = gradients.get(key)
            p.grad = None if found is None else found.to(p.device, copy=True)
