"""The kin of SAM: other gradients are made of the two, or the way up is another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradstep.compose.remembering import Remembering
from gradstep.compose.sharpness import SAM, over_all
from gradstep.optimizer.checkpoint import SHARPNESS_MEMORY


class GSAM(SAM):
    """GSAM: SAM that also makes the gap to the point above smaller.

    Of the gradient g at the weights, the part across the gradient from above is taken away:
    g_above − alpha · (g − its share along g_above). Args, closure and the rest as of :class:`SAM`.

    Args:
        optimizer: makes the steps.
        rho: how far up the slope. Default: 0.05.
        alpha: how much of the part across is taken away. Default: 0.2.

    Paper: Zhuang et al. 2022, "Surrogate gap minimization improves sharpness-aware training",
    arXiv:2203.08065; which lets rho follow the learning rate.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, rho: float | None = None, alpha: float = 0.2
    ) -> None:
        super().__init__(optimizer, rho)
        self.alpha = _at_least_0("alpha", alpha)

    def _step_from(self, loss: Any, closure: Callable[[], Any]) -> None:
        below = self._gradients()
        self._look_up(closure)
        above = self._gradients()
        share = over_all(below, above) / (over_all(above, above) + 1e-16)
        self._replace(
            {
                p: g - self.alpha * (below[p] - share.to(g) * g)
                for p, g in above.items()
                if p in below
            }
        )
        self._inner_step(loss)


class WSAM(SAM):
    """WSAM: the sharpness has a weight, which may be larger than SAM's.

    ``gamma`` of ½ is SAM, 0 the optimizer alone. Args, closure and the rest as of :class:`SAM`.

    Args:
        optimizer: makes the steps.
        rho: how far up the slope. Default: 0.05.
        gamma: the weight of the sharpness, below 1. Default: 0.9.
        decouple: take the sharpness out of the optimizer's gradient, and move the weights by it
            directly, times their learning rate. Default: True.

    Paper: Yue et al. 2023, "Sharpness-aware minimization revisited: weighted sharpness as a
    regularization term", arXiv:2305.15817.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        rho: float | None = None,
        gamma: float = 0.9,
        *,
        decouple: bool = True,
    ) -> None:
        super().__init__(optimizer, rho)
        if not 0 <= gamma < 1:
            raise ValueError(f"Invalid gamma: {gamma}; it must be at least 0 and below 1")
        self.gamma, self.decouple = gamma, decouple

    def _step_from(self, loss: Any, closure: Callable[[], Any]) -> None:
        below = self._gradients()
        self._look_up(closure)
        weight = self.gamma / (1 - self.gamma)
        sharpness = {p: g - below[p] for p, g in self._gradients().items() if p in below}
        if not self.decouple:
            self._replace({p: below[p] + weight * s for p, s in sharpness.items()})
            self._inner_step(loss)
            return
        self._replace(below)
        self._inner_step(loss)
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    if p in sharpness:
                        sign = -1.0 if group.get("maximize") else 1.0
                        p.sub_(sharpness[p] * (sign * weight * float(group["lr"])))


class LookSAM(Remembering, SAM):
    """LookSAM: looks up only every few steps, and goes on along what it has seen there.

    The part of the gradient from above that lies across the gradient changes slowly; between, it is
    added to the gradient. So most steps cost one gradient. Args, closure and the rest as of
    :class:`SAM`.

    Args:
        optimizer: makes the steps.
        rho: how far up the slope. Default: 0.05.
        every: steps from one look to the next. Default: 5.
        alpha: how long the part across is beside the gradient. Default: 0.7.

    Paper: Liu et al. 2022, "Towards efficient and scalable sharpness-aware minimization",
    arXiv:2203.02714.
    """

    _memory_name = SHARPNESS_MEMORY

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        rho: float | None = None,
        every: int = 5,
        alpha: float = 0.7,
    ) -> None:
        super().__init__(optimizer, rho)
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"Invalid every: {every!r}; expected a whole number of at least 1")
        self.every, self.alpha = every, _at_least_0("alpha", alpha)
        self._begin_numbers()

    def _own_numbers(self) -> Mapping[str, Any]:
        return {**super()._own_numbers(), "looksam_step": 0}

    def _step_from(self, loss: Any, closure: Callable[[], Any]) -> None:
        numbers, below = self._numbers(), self._gradients()
        count = int(numbers["looksam_step"])
        if count % self.every == 0:
            self._look_up(closure)
            above = self._gradients()
            share = over_all(below, above) / (over_all(below, below) + 1e-16)
            self._memory = {p: g - share.to(g) * below[p] for p, g in above.items() if p in below}
        else:
            across = (over_all(self._memory, self._memory) + 1e-16).sqrt()
            length = self.alpha * over_all(below, below).sqrt() / across
            self._replace({p: g + length.to(g) * self._memory.get(p, 0) for p, g in below.items()})
        numbers["looksam_step"] = count + 1
        self._inner_step(loss)


class FriendlySAM(Remembering, SAM):
    """Friendly SAM: the way up goes along what is new in a batch's gradient.

    What all batches have in common is taken from the gradient before it climbs. Args, closure and
    the rest as of :class:`SAM`.

    Args:
        optimizer: makes the steps.
        rho: how far up the slope. Default: 0.05.
        sigma: how much of the average gradient is taken away. Default: 1.
        decay: how much of the average gradient is kept at each step. Default: 0.6.

    Paper: Li et al. 2024, "Friendly sharpness-aware minimization", arXiv:2403.12350.
    """

    _memory_name = SHARPNESS_MEMORY

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        rho: float | None = None,
        sigma: float = 1.0,
        decay: float = 0.6,
    ) -> None:
        super().__init__(optimizer, rho)
        if not 0 <= decay < 1:
            raise ValueError(f"Invalid decay: {decay}; it must be at least 0 and below 1")
        self.sigma, self.decay = _at_least_0("sigma", sigma), decay

    def _step_from(self, loss: Any, closure: Callable[[], Any]) -> None:
        for p, g in self._gradients().items():
            before = self._memory.get(p)
            self._memory[p] = (
                (1 - self.decay) * g if before is None else torch.lerp(g, before, self.decay)
            )
        super()._step_from(loss, closure)

    def _scaled(self, p: Tensor, slope: Any) -> Any:
        # Once for the norm of the way and once for the way itself: only the first is the gradient.
        gradient: Any = p.grad
        return slope - self.sigma * self._memory[p] if slope is gradient else slope


def _at_least_0(name: str, value: float) -> float:
    if not value >= 0:
        raise ValueError(f"Invalid {name}: {value}; it must be at least 0")
    return value
