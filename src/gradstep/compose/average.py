"""Averages of the weights in the place of the weights, for evaluation, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gradstep.compose.wrapper import Wrapper, rules_inside
from gradstep.optimizer import Optimizer
from gradstep.rules.transforms.average import average_weights


class AveragedWeights(Wrapper):
    """Puts the averages that an optimizer keeps in the place of the weights, and back.

    For rules that end in :func:`gradstep.average_weights` (or see :class:`EMA`), and for the
    Schedule-Free ones, whose weights are to be evaluated at their average::

        optimizer = gradstep.AveragedWeights(optimizer)
        with optimizer.averages():
            validate(model)

    or ``optimizer.eval()`` before the validation and ``optimizer.train()`` behind it. Meanwhile the
    training weights are kept as they are, to the bit; weights that have made no step stay. A step
    or a checkpoint of the optimizer while the averages stand there raises an error; the model's own
    ``state_dict()`` holds the averages then.

    Args:
        optimizer: of gradstep, a partition, or a wrapper around one.

    Raises:
        TypeError: an optimizer of torch's.
        ValueError: no rule in it keeps an average.
    """

    _hands_closure_on = True

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer)
        self._kept: list[tuple[Tensor, Tensor]] = []
        found = rules_inside(optimizer)
        if not any(_average_of(each) for each in found):
            raise ValueError(
                f"{found[0].rule.name} keeps no average of the weights. Put "
                "gradstep.average_weights() last in its chain, or take gradstep.EMA(optimizer)"
            )

    @torch.no_grad()
    def eval(self) -> None:
        """Put the averages in the place of the weights. Twice is as good as once."""
        if self._kept:
            return
        for each in rules_inside(self.optimizer):
            average = _average_of(each)
            if average is None:
                continue
            for group in each.param_groups:
                for p in group["params"]:
                    if each.state.get(p):
                        value = average(each, group, p)
                        self._kept.append((p, p.detach().clone()))
                        p.copy_(value)

    @torch.no_grad()
    def train(self) -> None:
        """Bring the training weights back."""
        for p, value in self._kept:
            p.copy_(value)
        self._kept = []

    @contextmanager
    def averages(self) -> Iterator[None]:
        """The averages stand in the place of the weights while this lasts."""
        self.eval()
        try:
            yield
        finally:
            self.train()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """A step of the optimizer inside.

        Raises:
            RuntimeError: the averages stand in the place of the weights.
        """
        self._check_training("step")
        return self.optimizer.step(closure)

    def _save(self) -> dict[str, Any]:
        self._check_training("state_dict")
        return super()._save()

    def _check_training(self, what: str) -> None:
        if self._kept:
            raise RuntimeError(
                f"{what}() while the averages stand in the place of the weights: call train() first"
            )


class EMA(AveragedWeights):
    """An optimizer that also keeps a moving average of the weights.

    The average is made in the same pass over memory as the step, and is saved with the optimizer's
    states. ::

        optimizer = gradstep.EMA(gradstep.AdamW(model.parameters()), decay=0.999)

    Args:
        optimizer: of gradstep, or a partition, that has made no step yet. It is changed: its rule
            then ends in :func:`gradstep.average_weights`.
        decay: how much of the average is kept at each step; a group's is its ``average_decay``.
            Default: 0.999.

    Raises:
        TypeError: an optimizer of torch's.
        ValueError: one that has made steps already, or that keeps an average.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, decay: float = 0.999) -> None:
        stage = average_weights(average_decay=decay)
        for each in rules_inside(optimizer):
            if _average_of(each) is not None:
                raise ValueError(
                    f"{each.rule.name} keeps an average of the weights already. Take "
                    "gradstep.AveragedWeights(optimizer) to look at it"
                )
        for each in rules_inside(optimizer):
            each.extend(stage)
        super().__init__(optimizer)


def _average_of(optimizer: Optimizer) -> Callable[[Optimizer, dict[str, Any], Tensor], Any] | None:
    """What gives the average of a weight of a group; None if the rule keeps none."""
    rule = optimizer.rule
    own = {n: n for n in (*rule.states, *rule.hyperparameters)}
    for stage, names in rule.stages or ((rule, own),):
        if stage.name == "average_weights":
            key = names["average"]
            return lambda each, group, p: each.state[p][key]
        if "schedule_free" in stage.name and "z" in stage.states:
            z = names["z"]
            beta = names["beta1" if "beta1" in stage.hyperparameters else "momentum"]
            return lambda each, group, p: p.lerp(
                each.state[p][z], 1 - 1 / float(each.hyperparameter(group, beta))
            )
    return None
