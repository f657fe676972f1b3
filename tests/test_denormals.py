"""``torch.set_flush_denormal``: every thread of a step has the mode of the thread that steps."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import gradstep
from gradstep.backends.cpu import threads

SIZE = 1 << 20


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot")
    torch.set_flush_denormal(False)
    count = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(count)
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("name", ["SGD", "Adam", "Lion"])
def test_what_is_written_does_not_depend_on_the_thread(name: str) -> None:
    ends = []
    for count in (1, 4):
        torch.set_num_threads(count)
        p = nn.Parameter(torch.full((SIZE,), 1e-39))
        p.grad = torch.zeros(SIZE)
        optimizer = getattr(gradstep, name)([p], lr=0.1)
        seen = []
        for flush in (False, True, False):
            torch.set_flush_denormal(flush)
            with torch.no_grad():
                p.copy_(torch.full((SIZE,), 1e-39))
            optimizer.step()
            torch.set_flush_denormal(False)
            seen.append(p.detach().clone())
        ends.append(seen)
    for alone, shared in zip(*ends, strict=True):
        assert torch.equal(alone.view(torch.int32), shared.view(torch.int32))
    assert not torch.equal(ends[1][0], ends[1][1])


def test_helpers_take_over_the_mode_at_each_run() -> None:
    for flush in (False, True, False, True):
        torch.set_flush_denormal(flush)
        found: list[bool] = []
        together = threading.Barrier(4)

        def work(found: list[bool] = found, together: threading.Barrier = together) -> None:
            together.wait(60)
            found.append(threads.flushes_denormals())

        threads.run(work, 4)
        assert found == [flush] * 4
