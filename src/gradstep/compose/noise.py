"""Noise added to gradients, from a generator of the optimizer's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradstep.compose.wrapper import Wrapper


class GradientNoise(Wrapper):
    """Adds noise to each gradient, less and less of it.

    The noise of step t (0 at the first) is normal, of the variance ``eta / (1 + t)^gamma``. It
    depends on ``seed``, t and the parameter's place alone, never on torch's global generator, so
    that a resumed run draws the same; all processes of DDP and FSDP2 draw the same, too. The
    gradients themselves stay as they are. The first group holds t as ``noise_step``.

    Paper: Neelakantan et al. 2015, "Adding gradient noise improves learning for very deep
    networks", arXiv:1511.06807. Agrees with optax's add_noise, but for the numbers drawn.

    Args:
        optimizer: any but LBFGS.
        eta: the variance at the first step. Default: 0.01, the paper's smallest.
        gamma: how fast it falls. Default: 0.55, the paper's.
        seed: of the generator. Default: 0.

    Raises:
        TypeError: no optimizer, or LBFGS.
        ValueError: an eta or gamma below 0.
        RuntimeError: at a step, a sparse gradient.
    """

    _needs_all_gradients = "it draws the noise of all weights in their order"

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        eta: float = 0.01,
        gamma: float = 0.55,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer)
        for name, value in (("eta", eta), ("gamma", gamma)):
            if not value >= 0:
                raise ValueError(f"Invalid {name}: {value}; it must be at least 0")
        self.eta, self.gamma, self.seed = eta, gamma, seed
        self._begin_numbers()

    def _own_numbers(self) -> Mapping[str, Any]:
        return {"noise_step": 0}

    def _step(self, closure: Callable[[], Any] | None) -> Any:
        loss = self._loss_of(closure)
        step = int(self._numbers()["noise_step"])
        deviation = float((self.eta / (1 + step) ** self.gamma) ** 0.5)
        generator = torch.Generator().manual_seed((self.seed << 32) + step)
        given = [(p, p.grad) for p in self._weights()]
        try:
            with torch.no_grad():
                for p, gradient in given:
                    # Drawn for all, so that a gradient that is missing shifts no other's noise.
                    noise = _normal(p, generator)
                    if gradient is None:
                        continue
                    if gradient.is_sparse:
                        raise RuntimeError(
                            f"GradientNoise does not support sparse gradients, and "
                            f"{self.name_of(p)} has one"
                        )
                    p.grad = gradient + deviation * noise
            self._inner_step(loss)
        finally:
            for p, gradient in given:
                p.grad = gradient
        self._numbers()["noise_step"] = step + 1
        return loss


def _normal(p: Any, generator: torch.Generator) -> Tensor:
    """Normal numbers of a parameter's shape, dtype and device; the whole's, where it is split."""
    whole = torch.randn(tuple(p.shape), generator=generator, dtype=p.dtype, device="cpu")
    whole = whole.to(p.device)
    if not hasattr(p, "full_tensor"):
        return whole
    from torch.distributed.tensor import DTensor, Replicate

    mesh = p.device_mesh
    everywhere = [Replicate()] * mesh.ndim
    distributed = DTensor.from_local(whole, mesh, everywhere, run_check=False)
    return distributed.redistribute(placements=p.placements)
