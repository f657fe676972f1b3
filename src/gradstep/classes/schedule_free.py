"""``train()`` and ``eval()`` of the Schedule-Free classes, as their authors' have them."""

from __future__ import annotations

from typing import Any

import torch

from gradstep.backends.base import Run
from gradstep.optimizer.optimizer import Optimizer
from gradstep.optimizer.state_spec import state_specs


class ScheduleFreeOptimizer(Optimizer):
    """An optimizer whose weights are trained at one point, and evaluated at another: the average.

    Training begins without a call, and ``train()`` does nothing then. Each change of the point
    rounds the weights once, as the authors' does; with :class:`gradstep.AveragedWeights` around the
    optimizer, which keeps a copy, they come back to the bit.
    """

    @torch.no_grad()
    def eval(self) -> None:
        """Move the weights onto the average, to be evaluated and kept. Twice is as good as once.

        Raises:
            ValueError: a momentum of 0, from which no average can be seen.
        """
        self._move(train=False)

    @torch.no_grad()
    def train(self) -> None:
        """Move the weights back to where gradients are taken. Twice is as good as once."""
        self._move(train=True)

    def _move(self, train: bool) -> None:
        name = "momentum" if "momentum" in self.rule.hyperparameters else "beta1"
        changed = [g for g in self.param_groups if g.get("train_mode", True) is not train]
        for group in changed:
            if not float(self.hyperparameter(group, name)):
                raise ValueError(f"{name} is 0: the weights say nothing of their average then")
        for group in changed:
            beta = float(self.hyperparameter(group, name))
            for p in group["params"]:
                if "z" in self.state.get(p, {}):
                    # Where z is kept in more digits, the point between them is rounded but once.
                    z = state_specs(self.rule)["z"].numbers(self.state[p], p)
                    wide = torch.promote_types(p.dtype, z.dtype)
                    share = 1 - beta if train else 1 - 1 / beta
                    p.copy_(p.to(wide).lerp(z.to(wide), share))
            group["train_mode"] = train

    def prepare(self, loss: Any) -> list[Run]:
        """What a step will write.

        Raises:
            RuntimeError: the weights stand at their average.
        """
        if not all(group.get("train_mode", True) for group in self.param_groups):
            raise RuntimeError(
                "step() while the weights stand at their average, for evaluation: call "
                "optimizer.train() first"
            )
        return super().prepare(loss)
