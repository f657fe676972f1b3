"""Every scheduler of torch, on every class."""

from __future__ import annotations

import copy
import io
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler, swa_utils

import gradstep
from classes import IN_TORCH, ROWS, Row, Task, assert_same_bits, assert_same_values, each
from torch_release import IS_LOWEST

pytestmark = pytest.mark.sweep

s = lr_scheduler
SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: s.LambdaLR(o, lambda e: 0.9**e),
    "MultiplicativeLR": lambda o: s.MultiplicativeLR(o, lambda e: 0.95),
    "StepLR": lambda o: s.StepLR(o, 3, 0.5),
    "MultiStepLR": lambda o: s.MultiStepLR(o, [2, 5], 0.5),
    "ConstantLR": lambda o: s.ConstantLR(o, 0.5, 4),
    "LinearLR": lambda o: s.LinearLR(o, 0.1, 1.0, 6),
    "ExponentialLR": lambda o: s.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: s.PolynomialLR(o, 8, 2.0),
    "CosineAnnealingLR": lambda o: s.CosineAnnealingLR(o, 10),
    "CosineAnnealingWarmRestarts": lambda o: s.CosineAnnealingWarmRestarts(o, 4),
    "SequentialLR": lambda o: s.SequentialLR(
        o, [s.LinearLR(o, 0.1, 1.0, 4), s.CosineAnnealingLR(o, 8)], [4]
    ),
    "ChainedScheduler": lambda o: s.ChainedScheduler(
        [s.ConstantLR(o, 0.5, 4), s.ExponentialLR(o, 0.9)], optimizer=o
    ),
    "ReduceLROnPlateau": lambda o: s.ReduceLROnPlateau(o, patience=1, factor=0.5),
    "CyclicLR": lambda o: s.CyclicLR(o, 0.01, 0.1, 3, cycle_momentum=cycles(o)),
    "OneCycleLR": lambda o: s.OneCycleLR(o, 0.1, 12, cycle_momentum=cycles(o)),
    "SWALR": lambda o: swa_utils.SWALR(o, swa_lr=0.02, anneal_epochs=4),
}


def cycles(optimizer: Any) -> bool:
    """Whether there is a momentum or a beta that could cycle along."""
    group = optimizer.param_groups[0]
    return "betas" in group or "momentum" in group


def test_the_table_has_every_scheduler_of_torch() -> None:
    assert set(lr_scheduler.__all__) == set(SCHEDULERS) - {"SWALR"} | {"LRScheduler"}


@pytest.fixture
def _warnings_are_errors() -> Iterator[None]:
    """Of a scheduler's step before the optimizer's, above all."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="The epoch parameter")
        warnings.filterwarnings("ignore", message=".*torch.jit")
        yield


def started(row: Row, ours: bool, scheduler: str) -> tuple[Task, Any, Any]:
    """Two groups, the rate of one a number and of the other a tensor, where groups are allowed."""
    task = Task(row)
    first, second = task
    groups = [{"params": [first], "lr": 0.05}, {"params": [second], "lr": torch.tensor(0.02)}]
    options: dict[str, Any] = {"momentum": 0.8} if row.name == "SGD" else {}
    if not row.takes_groups:
        options["lr"] = torch.tensor(0.05)
    given = groups if row.takes_groups else [first, second]
    optimizer = (row.make if ours else row.make_theirs)(given, options)
    return task, optimizer, SCHEDULERS[scheduler](optimizer)


@pytest.mark.usefixtures("_warnings_are_errors")
@pytest.mark.parametrize(
    ("row", "scheduler"),
    [
        pytest.param(
            row,
            scheduler,
            id=f"{row.name}-{scheduler}",
            # A scheduler meets a rate and momenta, of which these two have each kind.
            marks=[pytest.mark.deep] * (number > 1 and row.name not in ("SGD", "Adam")),
        )
        for row in IN_TORCH
        for number, scheduler in enumerate(SCHEDULERS)
    ],
)
def test_every_scheduler(row: Row, scheduler: str) -> None:
    runs = [started(row, ours, scheduler) for ours in (True, False)]
    for _ in range(12):
        for task, optimizer, schedule in runs:
            task.train(optimizer, 1, schedule)
        for left, right in zip(runs[0][1].param_groups, runs[1][1].param_groups, strict=True):
            for key in ("lr", "momentum", "betas"):
                assert type(left.get(key)) is type(right.get(key))
                assert left.get(key) == right.get(key)
    for p, q in zip(runs[0][0], runs[1][0], strict=True):
        # The gradients follow the weights, and each step is of a size that rounding may turn.
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


@each(ROWS)
def test_a_cycle_moves_momentum_and_betas(row: Row) -> None:
    options: dict[str, Any] = {"momentum": 0.9} if row.name == "SGD" else {}
    task = Task(row)
    optimizer = row.make(task, options)
    if not cycles(optimizer):
        with pytest.raises(ValueError, match="momentum"):
            s.CyclicLR(optimizer, base_lr=1, max_lr=5, cycle_momentum=True)
        return
    key = "betas" if "betas" in optimizer.param_groups[0] else "momentum"
    seen = set()
    for scheduler in (
        s.OneCycleLR(optimizer, 0.1, 10),
        s.CyclicLR(optimizer, base_lr=0.001, max_lr=0.002, step_size_up=4, cycle_momentum=True),
    ):
        for _ in range(9):
            task.train(optimizer, 1, scheduler)
            seen.add(optimizer.param_groups[0][key])
    assert len(seen) > 8


# Warnings about the order of steps, which a scheduler gives by looking at the optimizer's step.


@pytest.mark.parametrize("resumed", [False, True])
@each(ROWS)
def test_a_schedulers_step_before_the_optimizers_is_warned_of(row: Row, resumed: bool) -> None:
    optimizer = row.make(Task(row))
    if resumed:
        optimizer.param_groups[0]["initial_lr"] = 0.01
    scheduler = s.StepLR(optimizer, 3, 0.1, last_epoch=10 if resumed else -1)
    with pytest.warns(UserWarning, match="how-to-adjust-learning-rate"):
        scheduler.step()


@each(ROWS)
def test_a_step_that_somebody_replaced_is_warned_of(row: Row) -> None:
    task = Task(row)
    optimizer = row.make(task)
    scheduler = s.StepLR(optimizer, 3, 0.1)
    own = optimizer.step
    optimizer.step = types.MethodType(lambda self, *args: own(*args), optimizer)
    with pytest.warns(UserWarning, match=r"`optimizer.step\(\)` has been overridden"):
        task.train(optimizer, 2, scheduler)


def test_a_scheduler_that_resumes_asks_for_the_initial_rate() -> None:
    optimizer = gradstep.SGD([nn.Parameter(torch.zeros(2))], 0.1)
    with pytest.raises(KeyError, match="'initial_lr' is not specified in param_groups"):
        s.StepLR(optimizer, step_size=3, gamma=0.1, last_epoch=1)


# Saved and loaded.


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize(
    "row", [r for r in ROWS if r.name in ("SGD", "AdamW")], ids=lambda r: r.name
)
def test_optimizer_and_scheduler_from_a_file(row: Row, scheduler: str) -> None:
    if scheduler == "SWALR" and IS_LOWEST:
        pytest.skip("torch 2.7 saves a function in the scheduler's state")
    task, optimizer, schedule = started(row, True, scheduler)
    task.train(optimizer, 4, schedule)
    file = io.BytesIO()
    torch.save((optimizer.state_dict(), schedule.state_dict()), file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    assert_same_values(states[1], schedule.state_dict())
    rest, resumed, other = started(row, True, scheduler)
    for p, q in zip(rest, task, strict=True):
        p.data.copy_(q.data)
    resumed.load_state_dict(states[0])
    other.load_state_dict(states[1])
    for t, o, f in ((task, optimizer, schedule), (rest, resumed, other)):
        t.train(o, 5, f)
    assert_same_bits(task, rest)
    assert [g["lr"] for g in resumed.param_groups] == [g["lr"] for g in optimizer.param_groups]


NO_STEP_BEFORE = ("SequentialLR", "ChainedScheduler", "ReduceLROnPlateau")


@pytest.mark.parametrize("scheduler", [n for n in SCHEDULERS if n not in NO_STEP_BEFORE])
def test_a_scheduler_made_anew_for_a_loaded_optimizer(scheduler: str) -> None:
    """last_epoch=0: it goes on from the groups' own initial rates."""
    rates = []
    for module in (gradstep, torch.optim):
        model = nn.Linear(3, 3)
        optimizer = module.AdamW(model.parameters())
        first = SCHEDULERS[scheduler](optimizer)
        optimizer.step()
        first.step()
        loaded = module.AdamW(model.parameters())
        loaded.load_state_dict(optimizer.state_dict())
        kind = type(first)
        arguments = {
            "LambdaLR": {"lr_lambda": lambda e: 0.9**e},
            "MultiplicativeLR": {"lr_lambda": lambda e: 0.95},
            "StepLR": {"step_size": 3, "gamma": 0.5},
            "MultiStepLR": {"milestones": [2, 5], "gamma": 0.5},
            "ExponentialLR": {"gamma": 0.9},
            "CosineAnnealingLR": {"T_max": 10},
            "CosineAnnealingWarmRestarts": {"T_0": 4},
            "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 3},
            "OneCycleLR": {"max_lr": 0.1, "total_steps": 12},
            "SWALR": {"swa_lr": 0.02, "anneal_epochs": 4},
        }.get(scheduler, {})
        again = kind(loaded, last_epoch=0, **arguments)
        rates.append([*again.get_last_lr(), loaded.param_groups[0]["initial_lr"]])
    assert rates[0] == rates[1]


def test_a_scheduler_and_its_optimizer_copied_together() -> None:
    row = next(row for row in ROWS if row.name == "SGD")
    task, optimizer, schedule = started(row, True, "CosineAnnealingLR")
    task.train(optimizer, 4, schedule)
    rest = Task(row)
    params, other, follower = copy.deepcopy((list(task), optimizer, schedule))
    rest.params = dict(zip(rest.params, params, strict=True))
    assert follower.optimizer is other
    task.train(optimizer, 4, schedule)
    rest.train(other, 4, follower)
    assert_same_bits(task, rest)


# Rates that are tensors stay tensors of their own.


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@each(IN_TORCH)
def test_initial_rates_are_not_the_rate_itself(row: Row, scheduler: str) -> None:
    if scheduler == "SequentialLR" and IS_LOWEST:
        pytest.skip("torch 2.7 keeps the very tensor of the rate there")
    lr = torch.tensor(0.1)
    task = Task(row)
    optimizer = row.make(task, lr=0.1)
    optimizer.param_groups[0]["lr"] = lr
    schedule = SCHEDULERS[scheduler](optimizer)
    initial = copy.deepcopy(optimizer.param_groups[0].get("initial_lr"))
    for _ in range(2):
        task.train(optimizer, 1, schedule)
        lr.mul_(0.1)
    assert type(optimizer.param_groups[0]["lr"]) is torch.Tensor
    assert optimizer.param_groups[0].get("initial_lr") == initial
