"""Sharpness-aware minimization: gradients from where the loss is highest nearby."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradstep.compose.accumulate import Accumulate
from gradstep.compose.wrapper import Wrapper, _inside


class SAM(Wrapper):
    """SAM: each step goes along the gradient from a point a little way up the slope.

    It takes two gradients a step, so ``step`` needs a closure::

        optimizer = gradstep.SAM(gradstep.SGD(model.parameters(), lr=0.1), rho=0.05)

        def closure():
            optimizer.zero_grad()
            loss = loss_function(model(images), labels)
            loss.backward()
            return loss

        optimizer.step(closure)

    The weights come back from the point above to the bit. Batch norm sees the second pass, too.
    The norm is taken over all weights, of all groups, each with its own ``rho``.

    Papers: Foret et al. 2020, "Sharpness-aware minimization for efficiently improving
    generalization", arXiv:2010.01412.

    Args:
        optimizer: any but LBFGS; makes the steps.
        rho: how far up the slope. Default: 0.05.

    Raises:
        TypeError: no optimizer, or LBFGS.
        ValueError: a rho below 0, or an :class:`Accumulate` inside, whose gradients would be
            zeroed between.
        RuntimeError: at a step without a closure.
    """

    _needs_closure = True
    _needs_all_gradients = "it takes two gradients of all weights for one step"
    _rho, _eta = 0.05, 0.0

    def __init__(self, optimizer: torch.optim.Optimizer, rho: float | None = None) -> None:
        super().__init__(optimizer)
        if any(isinstance(inside, Accumulate) for inside in _inside(optimizer)):
            raise ValueError(
                f"{type(self).__name__} around Accumulate: its closure would zero the gradients "
                "that are being accumulated. Accumulate inside of the closure"
            )
        rho = self._rho if rho is None else rho
        if not rho >= 0:
            raise ValueError(f"Invalid rho: {rho}; it must be at least 0")
        self._start = rho
        for group in self.param_groups:
            group.setdefault("rho", rho)

    def _own_numbers(self) -> Mapping[str, Any]:
        return {"rho": self._start}

    def _step(self, closure: Callable[[], Any] | None) -> Any:
        if closure is None:
            raise RuntimeError(
                f"{type(self).__name__}.step() needs a closure that zeroes the gradients, computes "
                "the loss, calls backward() and returns the loss: it takes two gradients a step"
            )
        loss = self._loss_of(closure)
        self._step_from(loss, closure)
        return loss

    def _step_from(self, loss: Any, closure: Callable[[], Any]) -> None:
        """A step, from the gradients that are there."""
        self._look_up(closure)
        self._inner_step(loss)

    def _look_up(self, closure: Callable[[], Any]) -> None:
        """Put the gradients from up the slope in the place of those that are there."""
        kept = self._climb()
        try:
            self._loss_of(closure)
        finally:
            with torch.no_grad():
                for p, value in kept:
                    p.copy_(value)

    @torch.no_grad()
    def _climb(self) -> list[tuple[Tensor, Tensor]]:
        """Move the weights up the slope, and return them as they were."""
        chosen = [
            (p, float(group.get("rho", self._start)))
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        if not chosen:
            return []
        slopes = [self._scaled(p, p.grad) for p, _ in chosen]
        total = torch.nn.utils.get_total_norm(slopes)
        norm = getattr(total, "full_tensor", lambda: total)()
        kept = []
        for (p, rho), slope in zip(chosen, slopes, strict=True):
            kept.append((p, p.detach().clone()))
            p.add_(self._scaled(p, slope) * (rho / (norm + 1e-12)))
        return kept

    def _scaled(self, p: Tensor, slope: Any) -> Any:
        return slope

    # What the kin of SAM need.

    def _gradients(self) -> dict[Tensor, Tensor]:
        """Copies of the gradients that are there."""
        return {p: p.grad.detach().clone() for p in self._weights() if p.grad is not None}

    def _replace(self, made: Mapping[Tensor, Tensor]) -> None:
        for p, gradient in made.items():
            p.grad = gradient


def over_all(a: Mapping[Tensor, Tensor], b: Mapping[Tensor, Tensor]) -> Tensor:
    """The sum of products over all weights that both have."""
    found = [(a[p] * b[p]).sum() for p in a if p in b]
    whole = [getattr(each, "full_tensor", lambda each=each: each)() for each in found]
    return torch.stack([each.double().cpu() for each in whole]).sum() if whole else torch.zeros(())


class ASAM(SAM):
    """ASAM: SAM that measures the way up relative to the size of each weight.

    Args, closure and the rest as of :class:`SAM`; rho's default is 0.5. Each weight's share of the
    way is scaled by ``|w| + 0.01``, biases included.

    Paper: Kwon et al. 2021, "ASAM: adaptive sharpness-aware minimization for scale-invariant
    learning of deep neural networks", arXiv:2102.11600.
    """

    _rho, _eta = 0.5, 0.01

    def _scaled(self, p: Tensor, slope: Any) -> Any:
        return (p.abs() + self._eta) * slope
