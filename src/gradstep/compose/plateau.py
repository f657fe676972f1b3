"""A learning rate that falls where a measured value stays where it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from gradstep.compose.wrapper import Wrapper


class ReduceOnPlateau(Wrapper):
    """Lowers the learning rates once a value, such as the validation loss, no longer gets better.

    ::

        optimizer = gradstep.ReduceOnPlateau(gradstep.AdamW(model.parameters()), patience=5)
        ...
        optimizer.observe(validation_loss)          # after each evaluation

    The same numbers as torch's ``ReduceLROnPlateau`` for values above 0 (below, torch takes any
    value for a better one); what it remembers is saved with the optimizer.

    Args:
        optimizer: any but LBFGS.
        factor: what the learning rates are multiplied by. Default: 0.1.
        patience: how many values in a row may be no better before that. Default: 10.
        threshold: by what share a value has to be better than the best. Default: 1e-4.
        cooldown: values after a reduction that are not counted. Default: 0.
        smallest: no learning rate falls below it. Default: 0.
        maximize: whether the larger value is the better, as of an accuracy. Default: False.

    Raises:
        TypeError: no optimizer, or LBFGS.
        ValueError: a factor that is not between 0 and 1, or a number below 0.
    """

    _hands_closure_on = True
    _needs_all_gradients = None

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        factor: float = 0.1,
        patience: int = 10,
        *,
        threshold: float = 1e-4,
        cooldown: int = 0,
        smallest: float = 0.0,
        maximize: bool = False,
    ) -> None:
        super().__init__(optimizer)
        if not 0 < factor < 1:
            raise ValueError(f"Invalid factor: {factor}; it must be between 0 and 1")
        numbers = {
            "patience": patience,
            "threshold": threshold,
            "cooldown": cooldown,
            "smallest": smallest,
        }
        for name, value in numbers.items():
            if not value >= 0:
                raise ValueError(f"Invalid {name}: {value}; it must be at least 0")
        self.factor, self.patience, self.threshold = factor, patience, threshold
        self.cooldown, self.smallest, self.maximize = cooldown, smallest, maximize
        self._begin_numbers()

    def _own_numbers(self) -> Mapping[str, Any]:
        return {"plateau_best": None, "plateau_bad": 0, "plateau_cooldown": 0}

    @property
    def best(self) -> float | None:
        """The best value so far; None before the first."""
        best = self._numbers()["plateau_best"]
        return None if best is None else float(best)

    def observe(self, value: Any) -> bool:
        """Take in a value, and lower the learning rates if it is time.

        Args:
            value: a number, or a tensor of one element. One that is nan is no better.

        Returns:
            whether the learning rates were lowered.

        Raises:
            RuntimeError: at the next step, if they follow a schedule, which says so.
        """
        value, numbers = float(value), self._numbers()
        if self._is_better(value, numbers["plateau_best"]):
            numbers["plateau_best"], numbers["plateau_bad"] = value, 0
        else:
            numbers["plateau_bad"] += 1
        if numbers["plateau_cooldown"] > 0:
            numbers["plateau_cooldown"] -= 1
            numbers["plateau_bad"] = 0
        if numbers["plateau_bad"] <= self.patience:
            return False
        numbers["plateau_bad"], numbers["plateau_cooldown"] = 0, self.cooldown
        for group in self.param_groups:
            self._lower(group)
        return True

    def _is_better(self, value: float, best: float | None) -> bool:
        if best is None:
            return not math.isnan(value)
        margin = self.threshold * abs(best)
        return value > best + margin if self.maximize else value < best - margin

    @torch.no_grad()
    def _lower(self, group: dict[str, Any]) -> None:
        lr = group["lr"]
        lower = max(float(lr) * self.factor, self.smallest)
        if float(lr) - lower <= 1e-8:  # as torch has it: what changes nothing is left alone
            return
        if isinstance(lr, torch.Tensor):
            lr.fill_(lower)
        else:
            group["lr"] = lower
