"""Gradients of several batches for one step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradstep.compose.wrapper import Wrapper, without
from gradstep.optimizer.checkpoint import ACCUMULATED_GRADIENT, ACCUMULATED_SUM


class Accumulate(Wrapper):
    """Lets a loop of steps make one step every few batches, on the mean of their gradients.

    The loop stays as it is: until enough batches have come, ``step()`` only counts and
    ``zero_grad()`` leaves the gradients, so that ``backward()`` adds to them. No memory is needed
    for it. ``zero_grad()`` of the model itself would throw them away.

    Schedulers count the calls of the loop: call theirs when ``optimizer.pending`` is 0.

    Under ``torch.amp.GradScaler`` each batch is unscaled by the scale that it was made with, and
    one whose gradients are inf or nan is left out of the round. The sum of the batches before is
    kept apart for that, which takes as much memory as the gradients.

    Args:
        optimizer: any but LBFGS.
        steps: batches for each step.
        mean: divide the gradients by ``steps``, in place, before the step. Default: True.

    Raises:
        TypeError: no optimizer, or LBFGS.
        ValueError: fewer than one batch.
        RuntimeError: at a step, a GradScaler that comes in the middle of a round.
    """

    _keeps_gradients = True
    _needs_all_gradients = None

    def __init__(self, optimizer: torch.optim.Optimizer, steps: int, *, mean: bool = True) -> None:
        super().__init__(optimizer)
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"Invalid steps: {steps!r}; expected a whole number of at least 1")
        self.steps = steps
        self.mean = mean
        #: The sum of the batches so far, by the parameter; None: it is in the gradients themselves.
        self._apart: dict[Tensor, Tensor] | None = None
        self._begin_numbers()

    @property
    def pending(self) -> int:
        """How many batches have come since the last step."""
        return int(self._numbers()["accumulated"])

    def _own_numbers(self) -> Mapping[str, Any]:
        return {"accumulated": 0}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, if they have been used."""
        if not self.pending or self._apart is not None:
            super().zero_grad(set_to_none)

    def _keep_apart(self) -> None:
        if self._apart is not None:
            return
        if self.pending:
            raise RuntimeError(
                f"GradScaler came after {self.pending} of {self.steps} batches, whose gradients "
                "are in the parameters without its scale. Make every step of a round with "
                "scaler.step(), or none"
            )
        self._apart = {}

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = self._loss_of(closure)
        count = self.pending + 1
        if count < self.steps:
            if self._apart is not None:
                self._put_apart(self._apart)
            self._numbers()["accumulated"] = count
            return loss
        batch = [(p, p.grad) for p in self._weights()]
        self._gather(self._apart)
        # First, so that what the optimizer inside saves in a hook is the state between rounds.
        apart, self._apart = self._apart, None
        self._numbers()["accumulated"] = 0
        try:
            self._inner_step(loss)
        except BaseException:
            self._numbers()["accumulated"], self._apart = count - 1, apart
            with torch.no_grad():
                for p, gradient in batch:
                    if apart is None and gradient is not None:
                        gradient.mul_(self._share())
                    p.grad = gradient
            raise
        return loss

    def _takes_now(self, p: Tensor) -> bool:
        return self.pending + 1 >= self.steps

    @torch.no_grad()
    def _take_gradient(self, p: Tensor) -> None:
        if self._share() > 1 and p.grad is not None:
            p.grad.div_(self._share())

    def _share(self) -> int:
        return self.steps if self.mean else 1

    @torch.no_grad()
    def _put_apart(self, apart: dict[Tensor, Tensor]) -> None:
        """Add the gradients of a batch to those of the others, and make room for the next."""
        for p in self._weights():
            if p.grad is None:
                continue
            if p in apart:
                apart[p] += p.grad
            else:
                apart[p] = p.grad.detach().clone()
            p.grad = None

    @torch.no_grad()
    def _gather(self, apart: Mapping[Tensor, Tensor] | None) -> None:
        """Put the sum, or the mean, of all batches into the gradients."""
        if apart is None:
            if self._share() > 1:
                for p in self._weights():
                    if p.grad is not None:
                        p.grad.div_(self._share())
            return
        for p in self._weights():
            if p.grad is None:
                total = apart.get(p)
            else:
                total = p.grad + apart[p] if p in apart else p.grad
            p.grad = None if total is None else total / self._share()

    def _save(self) -> dict[str, Any]:
        """Within a round, the gradients so far are among the states."""
        saved = super()._save()
        if self.pending:
            name = ACCUMULATED_GRADIENT if self._apart is None else ACCUMULATED_SUM
            for i, p in enumerate(self._weights()):
                found = p.grad if self._apart is None else self._apart.get(p)
                if found is not None:
                    own = {name: found.detach().clone()}
                    saved["state"][i] = {**saved["state"].get(i, {}), **own}
        return saved

    def _load(self, state_dict: dict[str, Any], strict: bool) -> None:
        state_dict, gradients = without(state_dict, ACCUMULATED_GRADIENT)
        state_dict, sums = without(state_dict, ACCUMULATED_SUM)
        super()._load(state_dict, strict)
        self._apart = {} if sums else None
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        for key, p in zip(keys, self._weights(), strict=True):
            found = gradients.get(key)
            p.grad = None if found is None else found.to(p.device, copy=True)
            if self._apart is not None and key in sums:
                self._apart[p] = sums[key].to(p.device, copy=True)
