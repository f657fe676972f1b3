"""Steps whose gradients are inf or nan, left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from gradstep.compose.wrapper import Wrapper


class SkipNonFinite(Wrapper):
    """Leaves out every step in which a gradient is inf or nan, and counts them.

    Weights, states and step counts stand still then. The first group holds the counts, and a
    checkpoint keeps them: ``nonfinite`` in all, ``nonfinite_in_a_row`` since the last good step.

    It reads the gradients once before each step. Within DDP and FSDP2 all processes leave out the
    same steps.

    Args:
        optimizer: any but LBFGS.
        limit: how many steps in a row may be left out; one more raises. Default: 10.

    Raises:
        TypeError: no optimizer, or LBFGS.
        ValueError: a limit below 0.
        FloatingPointError: at a step, more of them in a row than the limit; names a weight.
    """

    _needs_all_gradients = "it looks at all gradients before the first weight moves"

    def __init__(self, optimizer: torch.optim.Optimizer, limit: int = 10) -> None:
        super().__init__(optimizer)
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
            raise ValueError(f"Invalid limit: {limit!r}; expected a whole number of at least 0")
        self.limit = limit
        self._begin_numbers()

    def _own_numbers(self) -> Mapping[str, Any]:
        return {"nonfinite": 0, "nonfinite_in_a_row": 0}

    def _step(self, closure: Callable[[], Any] | None) -> Any:
        loss = self._loss_of(closure)
        if self._finite():
            self._inner_step(loss)
            self._numbers()["nonfinite_in_a_row"] = 0
            return loss
        group = self._numbers()
        group["nonfinite"] += 1
        group["nonfinite_in_a_row"] += 1
        if group["nonfinite_in_a_row"] > self.limit:
            raise FloatingPointError(
                f"{group['nonfinite_in_a_row']} steps in a row had gradients that are inf or nan, "
                f"the last in {self._culprit()}. Lower the learning rate, or find out where the "
                "loss overflows: torch.autograd.set_detect_anomaly(True)"
            )
        return loss

    @torch.no_grad()
    def _finite(self) -> bool:
        gradients = [p.grad for p in self._weights() if p.grad is not None]
        if not gradients:
            return True
        # The largest magnitude: unlike a sum of squares it overflows for no finite gradient.
        largest = torch.nn.utils.get_total_norm(gradients, norm_type=math.inf)
        return math.isfinite(float(getattr(largest, "full_tensor", lambda: largest)()))

    def _culprit(self) -> str:
        for p in self._weights():
            if p.grad is not None and not torch.isfinite(p.grad).all():
                return self.name_of(p)
        return "a part of a weight in another process"
