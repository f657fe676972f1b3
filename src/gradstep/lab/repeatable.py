"""What makes torch compute the very same bits again.

A run that was killed and resumed must end with the same weights as one that was left alone. The
optimizer's part of that is settled by gradstep itself: its bits do not depend on threads,
alignment or CPU. The forward and backward pass are torch's. What they need was found by trial,
with 12 fresh processes a setting, under load and without, and with tensors moved in memory:

- *The number of threads* changes how sums are cut in pieces, and with them the last bits: one
  thread and two gave other weights. A run keeps the number that it began with.
  ``torch.set_num_threads`` also forbids MKL to choose another number by itself.
- *Where a tensor stands in memory.* MKL, which multiplies torch's matrices on x86, gave other
  bits for the last layer (120 → 84 → 10) in three of four cases as soon as a tensor did not
  begin at a multiple of 64 bytes. torch's own tensors do begin there, those from elsewhere need
  not. ``MKL_CBWR=AUTO`` in the environment, before MKL's first call, cured that in 200 of 200
  cases, at no cost that could be measured.
- *The random numbers*: order of the images and their shifts come from one generator, whose state
  is in the checkpoint, next to that of torch's global one.
- torch's switch for deterministic algorithms, and oneDNN on or off, made no difference for LeNet
  on a CPU: no run drifted without. The former is on all the same: torch then refuses any
  operation that it cannot repeat, in place of drifting silently.

Another CPU, another version of torch or another number of processes, which add up their gradients,
may give other last bits: a run notes them, and a resumed run says so when they have changed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

MKL_SETTING = "MKL_CBWR"


def prepare_environment() -> None:
    """Set what must be set before torch computes anything. The user's own choice stands."""
    os.environ.setdefault(MKL_SETTING, "AUTO")


@contextmanager
def repeatable(threads: int) -> Iterator[None]:
    """Within this block torch repeats its bits, on ``threads`` threads. Then all is as before."""
    import torch

    threads_before = torch.get_num_threads()
    strict_before = torch.get_deterministic_debug_mode()
    torch.set_num_threads(threads)
    # The same switch as use_deterministic_algorithms(True), which imports the whole of
    # torch's compiler first: two seconds.
    torch.set_deterministic_debug_mode("error")
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)
        torch.set_deterministic_debug_mode(strict_before)


def made_with(processes: int) -> dict[str, str]:
    """What the last bits of a result depend on, besides the settings of a run."""
    import torch

    import gradstep

    return {
        "gradstep": gradstep.__version__,
        "torch": torch.__version__,
        "vector units": torch.backends.cpu.get_cpu_capability(),
        MKL_SETTING: os.environ.get(MKL_SETTING, ""),
        "processes": str(processes),
    }
