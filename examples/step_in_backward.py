"""The most memory of a process that trains 28 layers, with ordinary steps or within backward.

    MALLOC_MMAP_THRESHOLD_=1000000 python examples/step_in_backward.py AdamW
    MALLOC_MMAP_THRESHOLD_=1000000 python examples/step_in_backward.py AdamW within

The variable lets what is freed go back to the system at once. Linux.
"""

from __future__ import annotations

import resource
import sys

import torch
from torch import nn

import gradstep

LAYERS, WIDTH, BATCH, STEPS = 28, 1448, 8, 3


def most_memory(rule: str, within: bool) -> int:
    """The largest resident memory of this process, in bytes, after some steps."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)])
    optimizer: torch.optim.Optimizer = getattr(gradstep, rule)(model.parameters(), lr=1e-4)
    if within:
        optimizer = gradstep.StepInBackward(optimizer)
    for _ in range(STEPS):
        model(torch.randn(BATCH, WIDTH)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # which Linux counts in KiB


if __name__ == "__main__":
    print(f"{most_memory(sys.argv[1], sys.argv[2:] == ['within']) / 1e6:,.0f} MB")
