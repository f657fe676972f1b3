"""How long each rule's first step takes, in forks of a process that has taken none.

Imports nothing that loads a compiler: a first step has to load it by itself.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Collection
from pathlib import Path

import torch

from reference import REFERENCES, Reference


def first_steps(folder: str, names: Collection[str]) -> dict[str, list[list[float]]]:
    """Seconds of the first step of each named class's rule less those of its second.

    Those in which its thread was at work, for the machine may be busy. From nothing, and from the
    disk cache; each at most three times, and every one in a fork of this process, which has taken
    no step before and so has loaded no compiler.
    """
    torch.optim.SGD([torch.zeros(1)])  # what torch imports for any optimizer takes a second
    assert "llvmlite" not in sys.modules
    return {r.name: first_steps_of(r, f"{folder}/{r.name}") for r in REFERENCES if r.name in names}


def first_steps_of(reference: Reference, folder: str) -> list[list[float]]:
    seconds: list[list[float]] = [[], []]
    for attempt in range(3):
        os.environ["GRADSTEP_CACHE_DIR"] = f"{folder}/{attempt}"
        for kind in (0, 1):
            receiver, sender = os.pipe()
            child = os.fork()
            if child == 0:
                os.write(sender, str(first_step(reference)).encode())
                os._exit(0)
            os.waitpid(child, 0)
            seconds[kind].append(float(os.read(receiver, 100)))
            os.close(sender)
            os.close(receiver)
            assert list(Path(f"{folder}/{attempt}").iterdir()), "nothing was put into the cache"
        if seconds[0][-1] <= 1.5 and seconds[1][-1] <= 0.2:
            break
    return seconds


def first_step(reference: Reference) -> float:
    """Of a LeNet's weights, with all that the rule has."""
    shapes: list[tuple[int, ...]] = [(6, 1, 5, 5), (6,), (16, 6, 5, 5), (16,), (120, 400), (120,)]
    shapes += [(84, 120), (84,), (10, 84), (10,)]
    weights = [
        torch.nn.Parameter(torch.ones(shape))
        for shape in shapes
        if reference.dimensions in (None, len(shape))
    ]
    for w in weights:
        w.grad = torch.ones_like(w)
    full = {"amsgrad": True, "centered": True, "momentum": 0.9, "weight_decay": 0.1}
    defaults = reference.ours(weights).defaults
    optimizer = reference.ours(
        weights, engine="fused", **{n: v for n, v in full.items() if n in defaults}
    )
    times = [time.thread_time()]
    for _ in range(2):
        optimizer.step(lambda: 1.0)
        times.append(time.thread_time())
    return (times[1] - times[0]) - (times[2] - times[1])
