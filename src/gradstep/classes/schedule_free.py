"""``train()`` and ``eval()`` of the Schedule-Free classes, as their authors' have them."""

from __future__ import annotations

import torch

from gradstep.optimizer.observer import StepObserver
from gradstep.optimizer.optimizer import Optimizer, planner_of
from gradstep.optimizer.step import Step
from gradstep.optimizer.weight_spec import state_specs


class InTraining(StepObserver):
    """Refuses a step while the weights stand at their average."""

    def begun(self, step: Step) -> None:
        """Before anything of the step is read.

        Raises:
            RuntimeError: they do.
        """
        groups = [group for planner in step.planners for group in planner.contents.groups]
        if not all(group.get("train_mode", True) for group in groups):
            raise RuntimeError(
                "step() while the weights stand at their average, for evaluation: call "
                "optimizer.train() first"
            )


class ScheduleFreeOptimizer(Optimizer):
    """An optimizer whose weights are trained at one point, and evaluated at another: the average.

    Training begins without a call, and ``train()`` does nothing then. Each change of the point
    rounds the weights once, as the authors' does; with :class:`gradstep.AveragedWeights` around the
    optimizer, which keeps a copy, they come back to the bit.
    """

    _observers = (InTraining(),)

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
        reader = planner_of(self).reader
        name = "momentum" if "momentum" in reader.rule.hyperparameters else "beta1"
        changed = [g for g in self.param_groups if g.get("train_mode", True) is not train]
        for group in changed:
            if not float(reader.hyperparameter(group, name)):
                raise ValueError(f"{name} is 0: the weights say nothing of their average then")
        for group in changed:
            beta = float(reader.hyperparameter(group, name))
            for p in group["params"]:
                if "z" in self.state.get(p, {}):
                    # Where z is kept in more digits, the point between them is rounded but once.
                    z = state_specs(reader.rule)["z"].numbers(self.state[p], p)
                    wide = torch.promote_types(p.dtype, z.dtype)
                    share = 1 - beta if train else 1 - 1 / beta
                    p.copy_(p.to(wide).lerp(z.to(p.device, wide), share))
            group["train_mode"] = train
