"""Maps of codes: which number each code stands for.

The dynamic map is that of Dettmers et al. 2021 (arXiv:2110.02861), as bitsandbytes and torchao have
it: a number between 0.1 and 1 has the most digits, and each decade below it half as many. Here it
is worked out in single steps of IEEE arithmetic, so that its entries are the same on every machine.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise


def _float32(value: float) -> float:
    number: float = struct.unpack("f", struct.pack("f", value))[0]
    return number


@dataclass(frozen=True)
class CodeMap:
    """The numbers that codes stand for.

    Attributes:
        entries: in order, float32.
    """

    entries: tuple[float, ...]

    @cached_property
    def bounds(self) -> tuple[float, ...]:
        """From where on a number belongs to the next code: in the middle between two entries."""
        return tuple([_float32((a + b) / 2) for a, b in pairwise(self.entries)])


def _means(count: int) -> list[float]:
    """The middles of so many equal stretches between 0.1 and 1, their ends as torch has them."""
    first, last = _float32(0.1), 1.0
    step = _float32(_float32(last - first) / count)
    ends = [
        # Each from the nearer end, and with one rounding.
        _float32(first + step * i) if i < (count + 1) // 2 else _float32(last - step * (count - i))
        for i in range(count + 1)
    ]
    sums = [_float32(a + b) for a, b in pairwise(ends)]
    return [_float32(total / 2) for total in sums]


@lru_cache
def dynamic_map(signed: bool, bits: int = 8) -> CodeMap:
    """The dynamic map of so many bits.

    Args:
        signed: with numbers of both signs; else twice as many of one.
        bits: of a code.
    """
    found = [0.0, 1.0]
    exponents = bits - 1
    for i in range(exponents):
        power = _float32(10.0 ** (i - exponents + 1))
        for mean in _means(2**i if signed else 2 ** (i + 1)):
            number = _float32(power * mean)
            found += [number, -number] if signed else [number]
    return CodeMap(tuple(sorted(found)))


def linear_map(count: int) -> CodeMap:
    """So many numbers, each as far from the next, the last 1, and none 0."""
    return CodeMap(tuple([(i + 1) / count for i in range(count)]))


def entries_below(bounds: Sequence[float], number: float) -> int:
    """The code of a number: how many bounds it has reached."""
    return sum(bound <= number for bound in bounds)
