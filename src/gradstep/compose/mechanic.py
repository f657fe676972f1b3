"""A learning rate that tunes itself, around any optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradstep.compose.remembering import Remembering
from gradstep.compose.sharpness import over_all
from gradstep.optimizer.checkpoint import MECHANIC_START


class Mechanic(Remembering):
    """Mechanic: finds the scale of an optimizer's steps while it trains.

    ::

        optimizer = gradstep.Mechanic(gradstep.AdamW(model.parameters(), lr=1.0))

    The optimizer inside has a learning rate of 1, or of a schedule whose peak is 1. What its steps
    add up to, from where the training began, is scaled by ``scale``, which is tuned at each step.

    Paper: Cutkosky, Defazio & Mehta 2023, "Mechanic: a learning rate tuner", arXiv:2306.00144.
    Agrees with optax's mechanize.

    Args:
        optimizer: any but LBFGS; not one whose steps are normalized, such as LARS.
        decay: of the tuner, not of the weights. Default: 0.01.
        s_init: the scale at the first step. Default: 1e-6.
        betas: how many averages there are, of 0.9, 0.99, 0.999 and so on. Default: 6.
        eps: keeps divisions from blowing up. Default: 1e-8.

    Raises:
        TypeError: no optimizer, or LBFGS.
        ValueError: a number that is not above 0, or a decay below it.
    """

    _memory_name = MECHANIC_START
    _needs_all_gradients = "its scale hangs on the gradients of all weights"

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        decay: float = 0.01,
        s_init: float = 1e-6,
        betas: int = 6,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(optimizer)
        if not decay >= 0:
            raise ValueError(f"Invalid decay: {decay}; it must be at least 0")
        for name, value in (("s_init", s_init), ("betas", betas), ("eps", eps)):
            if not value > 0:
                raise ValueError(f"Invalid {name}: {value}; it must be above 0")
        self.decay, self.s_init, self.betas, self.eps = decay, s_init, int(betas), eps
        self._begin_numbers()

    def _own_numbers(self) -> Mapping[str, Any]:
        zeros = (0.0,) * self.betas
        return {
            "mechanic_s": (self.s_init,) * self.betas,
            "mechanic_m": zeros,
            "mechanic_v": zeros,
            "mechanic_r": zeros,
        }

    @property
    def scale(self) -> float:
        """What the steps so far are multiplied by."""
        return math.fsum(self._numbers()["mechanic_s"])

    def _step(self, closure: Callable[[], Any] | None) -> Any:
        loss = self._loss_of(closure)
        before = {p: p.detach().clone() for p in self._weights()}
        for p, value in before.items():
            if p.grad is not None:
                self._memory.setdefault(p, value.clone())
        gradients = self._signed_gradients()
        self._inner_step(loss)
        with torch.no_grad():
            self._scale_steps(before, gradients)
        return loss

    def _signed_gradients(self) -> dict[Tensor, Tensor]:
        return {
            p: -p.grad.detach() if group.get("maximize") else p.grad.detach()
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None
        }

    def _scale_steps(
        self, before: Mapping[Tensor, Tensor], gradients: Mapping[Tensor, Tensor]
    ) -> None:
        """Tune the scale, and put the weights where the scaled sum of all steps leads."""
        old = self.scale
        ways = {p: (start - before[p]) / (old + self.eps) for p, start in self._memory.items()}
        held = {p: before[p] for p in gradients}
        sizes = [math.sqrt(float(over_all(each, each))) for each in (gradients, held)]
        share = self.decay * old * sizes[0] / (sizes[1] + self.eps)
        along = float(over_all(gradients, ways) + share * over_all(held, ways))
        new = self._tuned(along)
        for p, start in self._memory.items():
            way = ways[p] - (p - before[p])
            p.copy_(start - new * way)

    def _tuned(self, along: float) -> float:
        """The new scale, from how far the gradients go along the way so far."""
        numbers = self._numbers()
        found: dict[str, list[float]] = {n: [] for n in "smvr"}
        given = (numbers[f"mechanic_{n}"] for n in "smvr")
        for place, (s, m, v, r) in enumerate(zip(*given, strict=True), 1):
            beta = 1 - 0.1**place
            r = beta * r + min(max(along, -m), m) * s
            m = max(beta * m, abs(along) + self.eps)
            v = beta**2 * v + along**2
            wealth = self.s_init / self.betas * m + max(0.0, r)
            s = wealth / (math.sqrt(v) + self.eps)
            for name, value in zip("smvr", (s, m, v, r), strict=True):
                found[name].append(value)
        for name, values in found.items():
            numbers[f"mechanic_{name}"] = tuple(values)
        return self.scale
