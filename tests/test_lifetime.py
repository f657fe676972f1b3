"""What an optimizer keeps alive, and what keeps it alive."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch

from classes import ROWS, Row, Task, each

pytestmark = pytest.mark.usefixtures("few_objects")


@pytest.fixture
def _no_collection_of_cycles() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@each(ROWS)
@pytest.mark.usefixtures("_no_collection_of_cycles")
def test_an_optimizer_goes_with_its_last_reference(row: Row) -> None:
    """Its states are as large as the model: to wait for the collector of cycles is costly."""
    task = Task(row)
    optimizer = row.make(task, row.fullest)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)
    task.train(optimizer, 2, scheduler)
    optimizer.load_state_dict(optimizer.state_dict())
    task.train(optimizer, 2, scheduler)
    p = next(iter(task))
    states = [weakref.ref(s) for s in optimizer.state[p].values() if isinstance(s, torch.Tensor)]
    gone = weakref.ref(optimizer), weakref.ref(scheduler)
    del scheduler
    assert gone[1]() is None
    del optimizer
    assert gone[0]() is None
    assert all(state() is None for state in states)


@each(ROWS)
@pytest.mark.usefixtures("_no_collection_of_cycles")
def test_a_cyclic_scheduler_goes_with_its_last_reference(row: Row) -> None:
    optimizer = row.make(Task(row))
    make = torch.optim.lr_scheduler.CyclicLR
    scheduler = weakref.ref(make(optimizer, base_lr=1, max_lr=5, cycle_momentum=False))
    assert scheduler() is None
