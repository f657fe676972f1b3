"""The memory that a step takes for its temporary tensors."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch


def temporary_bytes(step: Callable[[], object]) -> int:
    """The most bytes that torch's allocator had handed out during the step, above those before.

    Takes one step, under torch's profiler, which slows it: not for a step that is timed. It must
    not be the first, which allocates the states. What is allocated past torch, such as the
    addresses that our kernels are given, is not seen.
    """
    # The profiler's own library greets on the standard error at each start.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()
    recorded = profile.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in recorded if e.name() == "[memory]"]
    held = most = 0
    for _, change in sorted(changes, key=lambda c: c[0]):
        held += change
        most = max(most, held)
    return most
