"""Averages of the weights in the place of the weights, for evaluation, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gradstep.backends.update import describe
from gradstep.compose.set_aside import SetAside
from gradstep.compose.wrapper import Wrapper, rules_inside, without
from gradstep.optimizer.checkpoint import TRAINING_WEIGHT
from gradstep.optimizer.optimizer import Optimizer, extend, planner_of
from gradstep.optimizer.weight_spec import state_specs
from gradstep.program.formats import Named, with_state_dtype
from gradstep.rules.transforms.average import average_weights


class AveragedWeights(Wrapper):
    """Puts the averages that an optimizer keeps in the place of the weights, and back.

    For rules that end in :func:`gradstep.average_weights` (or see :class:`EMA`), and for the
    Schedule-Free ones, whose weights are to be evaluated at their average::

        optimizer = gradstep.AveragedWeights(optimizer)
        with optimizer.averages():
            validate(model)

    or ``optimizer.eval()`` before the validation and ``optimizer.train()`` behind it. Meanwhile the
    training weights are set aside as they are, to the bit; weights that have made no step stay. A
    step while the averages stand there raises an error. The model's own ``state_dict()`` holds the
    averages then, and the optimizer's the training weights: load both, and ``train()`` gives them
    back. Weights that are loaded into the model meanwhile stay.

    Args:
        optimizer: of gradstep, a partition, or a wrapper around one.

    Raises:
        TypeError: an optimizer of torch's.
        ValueError: no rule in it keeps an average.
        RuntimeError: at a step, while the averages stand in the place of the weights.
    """

    _hands_closure_on = True
    _needs_all_gradients = None

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer)
        self._aside: list[SetAside] = []
        self._buffers: list[tuple[Tensor, Tensor]] = []
        found = rules_inside(optimizer)
        if not any(_average_of(each) for each in found):
            raise ValueError(
                f"{planner_of(found[0]).rule.name} keeps no average of the weights. Put "
                "gradstep.average_weights() last in its chain, or take gradstep.EMA(optimizer)"
            )
        self._begin_numbers()

    def _own_numbers(self) -> Mapping[str, Any]:
        # In the file, so that one without training weights is known for what it is.
        return {"train_mode": True}

    @torch.no_grad()
    def eval(self, model: nn.Module | None = None) -> None:
        """Put the averages in the place of the weights. Twice is as good as once.

        Args:
            model: whose buffers are set aside, too, and come back with the weights: so that batch
                statistics may be made for the averages by torch.optim.swa_utils.update_bn.
        """
        if model is not None and not self._buffers:
            self._buffers = [(b, b.detach().clone()) for b in model.buffers()]
        self._set_aside({id(each.parameter): each for each in self._aside})

    def _set_aside(self, known: Mapping[int, SetAside]) -> None:
        """Set the training weights aside, and put the averages in their place.

        Args:
            known: what is set aside already, by the parameter.
        """
        aside: list[SetAside] = []
        for inside in rules_inside(self.optimizer):
            average = _average_of(inside)
            if average is None:
                continue
            for group in inside.param_groups:
                for p in group["params"]:
                    if inside.state.get(p):
                        source = average(inside, group, p)
                        aside.append(_one_aside(p, known.get(id(p)), *source))
        still = {id(each.parameter) for each in aside}
        for key, each in known.items():
            if key not in still:  # it has no average any more
                each.put_back()
        self._aside = aside
        self._numbers()["train_mode"] = not aside

    @torch.no_grad()
    def train(self) -> None:
        """Bring the training weights back, and the buffers that were set aside with them."""
        for each in self._aside:
            each.put_back()
        for buffer, value in self._buffers:
            buffer.copy_(value)
        self._aside, self._buffers = [], []
        self._numbers()["train_mode"] = True

    @contextmanager
    def averages(self, model: nn.Module | None = None) -> Iterator[None]:
        """The averages stand in the place of the weights while this lasts; see :meth:`eval`."""
        self.eval(model)
        try:
            yield
        finally:
            self.train()

    def _step(self, closure: Callable[[], Any] | None) -> Any:
        self._begin_weights()
        self._numbers()  # go with the first group, and do not keep another alive
        return self.optimizer.step(closure)

    def _begin_weights(self) -> None:
        if self._aside:
            raise RuntimeError(
                "step() while the averages stand in the place of the weights: call train() first"
            )

    # Checkpoints.

    def _save(self) -> dict[str, Any]:
        saved = super()._save()
        aside = {id(each.parameter): each for each in self._aside if not each.is_replaced()}
        for key, p in enumerate(self._weights()):
            if id(p) in aside:
                own = {TRAINING_WEIGHT: aside[id(p)].weight}
                saved["state"][key] = {**saved["state"].get(key, {}), **own}
        return saved

    def _load(self, state_dict: dict[str, Any], strict: bool) -> None:
        state_dict, weights = without(state_dict, TRAINING_WEIGHT)
        groups = state_dict["param_groups"]
        if not weights and any(not group.get("train_mode", True) for group in groups):
            raise ValueError(
                "the checkpoint was saved while averages stood in the place of the weights, and "
                "the training weights were not saved with it. Save it behind train()"
            )
        super()._load(state_dict, strict)
        known = {id(each.parameter): each for each in self._aside}
        self._buffers = []
        keys = [key for group in groups for key in group["params"]]
        for key, p in zip(keys, self._weights(), strict=True):
            if key in weights:
                weight = torch.empty_like(p).copy_(weights[key]).detach()
                known[id(p)] = SetAside(p, weight, weight, None, loaded=True)
        if known:
            self._set_aside(known)
        else:
            self._numbers()["train_mode"] = True

    def __getstate__(self) -> dict[str, Any]:
        aside = [each for each in self._aside if not each.is_replaced()]
        return {**super().__getstate__(), "_aside": aside}


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
        dtype: what the averages are stored as: ``"float32"``, ``"bfloat16"``, ``"float16"``, or the
            dtype of torch. Default: float32 for weights in 16 bits, in which an average hardly
            moves, as the thousandth part of a change is less than their last bit; and what the
            weight is stored as where an optimizer (or a part) holds others.

    Raises:
        TypeError: an optimizer of torch's, or one of complex weights where a ``dtype`` is given.
        ValueError: one that has made steps already, or that keeps an average; or a dtype that no
            state can have. The optimizer is as it was.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, decay: float = 0.999, *, dtype: Named = None
    ) -> None:
        stage = with_state_dtype(average_weights(average_decay=decay), dtype)
        for each in rules_inside(optimizer):
            _check_real(each, dtype)
            if _average_of(each) is not None:
                raise ValueError(
                    f"{planner_of(each).rule.name} keeps an average of the weights already. Take "
                    "gradstep.AveragedWeights(optimizer) to look at it"
                )
        for each in rules_inside(optimizer):
            in_16_bits = dtype is None and all(map(_has_16_bits, _weights(each)))
            extend(each, with_state_dtype(stage, "float32") if in_16_bits else stage)
        super().__init__(optimizer)


def _weights(optimizer: Optimizer) -> Iterator[Tensor]:
    return (p for group in optimizer.param_groups for p in group["params"])


def _has_16_bits(p: Tensor) -> bool:
    return p.dtype in (torch.bfloat16, torch.float16)


def _check_real(optimizer: Optimizer, dtype: Named) -> None:
    for p in _weights(optimizer) if dtype is not None else ():
        if p.is_complex():
            raise TypeError(
                f"EMA got dtype={dtype!r}, of real numbers, and {optimizer.name_of(p)} holds "
                f"{describe(p)}. Leave dtype out."
            )


def _one_aside(p: Tensor, before: SetAside | None, source: Tensor, share: float | None) -> SetAside:
    """A weight set aside, and its average in its place, where it was not so already."""
    if before is None or before.is_replaced():
        aside = SetAside(p, p.detach().clone(), source, share)
    elif before.source is source:
        return before
    else:
        aside = SetAside(p, before.weight, source, share, before.loaded)
    aside.put_average()
    return aside


#: Gives what the average of a weight of a group is made of: see SetAside.
Source = Callable[[Optimizer, dict[str, Any], Tensor], tuple[Tensor, float | None]]


def _average_of(optimizer: Optimizer) -> Source | None:
    """Where an optimizer's averages come from; None if its rule keeps none."""
    rule = planner_of(optimizer).rule
    own = {n: n for n in (*rule.states, *rule.hyperparameters)}
    for stage, names in rule.stages or ((rule, own),):
        if stage.name == "average_weights":
            key = names["average"]
            average = state_specs(rule)[key]
            return lambda each, group, p: (average.numbers(each.state[p], p), None)
        if "schedule_free" in stage.name and "z" in stage.states:
            z = state_specs(rule)[names["z"]]
            beta = names["beta1" if "beta1" in stage.hyperparameters else "momentum"]
            return lambda each, group, p: (
                z.numbers(each.state[p], p),
                1 - 1 / float(planner_of(each).reader.hyperparameter(group, beta)),
            )
    return None
