"""Random numbers for functions with ``@opaque`` above them.

They depend on the seed and on a count alone: they are the same for every device, on every CPU and
in a training that was resumed, and torch's own generator is left as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Seeds lie this far apart, so that the next seed does not give the next step's numbers.
_APART = 1_000_003


def generator(seed: float, count: float) -> torch.Generator:
    """A generator of its own for each seed, and each step or period."""
    made = torch.Generator()
    made.manual_seed((int(seed) * _APART + int(count)) % 2**32)
    return made


def normal(shape: tuple[int, ...], source: torch.Generator, like: Tensor) -> Tensor:
    """Numbers of the normal distribution, of the dtype and on the device of ``like``."""
    # torch draws float32 numbers in another way on CPUs with AVX2: their last bits differ.
    numbers = torch.randn(shape, generator=source, dtype=torch.float64, device="cpu")
    return numbers.to(like)
