"""The learning rate that falls on a plateau, beside torch's scheduler."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

import gradstep

VALUES = [5, 4, 4.1, 3.9999, 4, 4.2, 4, 3, 3, 3, 3, 3, 3, 3, float("nan"), 3, 3, 3, 2, 2, 2, 2, 2]


def optimizer(kind: Any = gradstep.SGD, lr: Any = 0.5) -> Any:
    groups = [{"params": [nn.Parameter(torch.ones(2))]}, {"params": [nn.Parameter(torch.ones(2))]}]
    return kind([groups[0], {**groups[1], "lr": 0.02}], lr=lr)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("cooldown", [0, 2])
def test_as_torchs_scheduler(maximize: bool, cooldown: int) -> None:
    theirs = optimizer(torch.optim.SGD)
    scheduler = ReduceLROnPlateau(
        theirs, "max" if maximize else "min", 0.3, 2, cooldown=cooldown, min_lr=0.001
    )
    ours = gradstep.ReduceOnPlateau(
        optimizer(), 0.3, 2, cooldown=cooldown, smallest=0.001, maximize=maximize
    )
    for number, value in enumerate(VALUES):
        value = 1 / value if maximize else value
        scheduler.step(torch.tensor(value) if number % 2 else value)
        before = [g["lr"] for g in ours.param_groups]
        lowered = ours.observe(torch.tensor(value) if number % 2 else value)
        rates = [g["lr"] for g in ours.param_groups]
        assert rates == pytest.approx([g["lr"] for g in theirs.param_groups]), number
        assert lowered or rates == before
    assert ours.param_groups[0]["lr"] < 0.1 and ours.best == pytest.approx(scheduler.best)


def test_goes_on_from_a_checkpoint_and_takes_tensors() -> None:
    whole = gradstep.ReduceOnPlateau(optimizer(lr=torch.tensor(0.5)), 0.3, 2)
    for value in VALUES[:9]:
        whole.observe(value)
    resumed = gradstep.ReduceOnPlateau(optimizer(lr=torch.tensor(0.5)), 0.3, 2)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    for value in VALUES[9:]:
        assert whole.observe(value) == resumed.observe(value)
    assert [float(g["lr"]) for g in whole.param_groups] == [
        float(g["lr"]) for g in resumed.param_groups
    ]
    assert isinstance(whole.param_groups[0]["lr"], torch.Tensor)


def test_values_below_zero() -> None:
    ours = gradstep.ReduceOnPlateau(optimizer(), 0.5, 1)
    assert [ours.observe(v) for v in (-1.0, -1.0, -1.0, -2.0, -1.5, -1.5)] == [
        False, False, True, False, False, True,
    ]  # fmt: skip


def test_bad_numbers_and_a_schedule() -> None:
    with pytest.raises(ValueError, match=r"Invalid factor: 1\.5"):
        gradstep.ReduceOnPlateau(optimizer(), 1.5)
    with pytest.raises(ValueError, match="Invalid patience: -1"):
        gradstep.ReduceOnPlateau(optimizer(), patience=-1)
    scheduled = gradstep.ReduceOnPlateau(
        gradstep.SGD([nn.Parameter(torch.ones(2))], lr=gradstep.schedule.cosine(0.1, 9)), patience=0
    )
    scheduled.observe(1.0)
    assert scheduled.observe(1.0)
    with pytest.raises((RuntimeError, ValueError), match="schedule"):
        scheduled.step()
