"""Formats of weights in 16 bits: what is kept so that small steps are not rounded away.

A step of less than half of a weight's last digit changes nothing when it is rounded to the nearest,
and with bfloat16's two to three digits most steps are such. Each format here is a column as any
other: the kernel reads a weight of float32 out of it, and writes one.

``"stochastic"`` rounds up or down by chance, as likely as the number lies near: nothing is kept,
and on average nothing lost. ``"kahan"`` keeps what was rounded away, in 16 bits more (Kahan 1965;
Zamirai et al. 2020, arXiv:2010.06192). ``"remainder"`` keeps the lower half of a float32 weight
beside the bfloat16 one: together they are the float32 weight, to the bit. ``"master"`` keeps a
float32 weight, of which the model's is the rounding (Micikevicius et al. 2017, arXiv:1710.03740).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gradstep.program.format import Codec, Format, Part

if TYPE_CHECKING:
    from gradstep.program.weight_codecs import WeightCodec

#: The dtypes of weights that lose digits.
NARROW = (torch.bfloat16, torch.float16)

_MASK = 0xFFFFFFFF


class WeightFormat(Format):
    """What a weight of a dtype is stored as.

    Attributes:
        mode: as ``low_precision=`` takes it.
        dtype: the weight's.
        extra: name and dtype of the tensors that the optimizer keeps beside the weight.
        is_random: whether it rounds by chance.
        is_wide: whether it holds as many digits as float32 has; states are then float32 by itself.
    """

    mode: str
    extra: tuple[tuple[str, torch.dtype], ...] = ()
    is_random = False
    is_wide = False

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.name = f"{self.mode} {str(dtype).removeprefix('torch.')}"

    @property
    def suffixes(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("", *self.beside)

    @property
    def beside(self) -> tuple[str, ...]:
        """The names of the tensors that are kept beside the weight."""
        return tuple([name for name, _ in self.extra])

    def names(self, state: str) -> tuple[str, ...]:
        return (state, *self.beside)

    def parts(self, state: str, shape: tuple[int, ...]) -> tuple[Part, ...]:
        extra = [Part(name, shape, dtype) for name, dtype in self.extra]
        return (Part(state, shape, self.dtype), *extra)

    def takes(self, weight: Tensor) -> bool:
        return weight.dtype == self.dtype

    def like_weight(self, part: Tensor) -> Tensor:
        """What is kept beside a weight, as a tensor of its shape."""
        return part

    def encode_at(self, value: Tensor, places: Tensor, key: int) -> tuple[Tensor, ...]:
        """:meth:`encode` by chance.

        Args:
            value: the numbers.
            places: of each in the weight, from 0 on, in the order of rows.
            key: of the step: other keys are other chances.
        """
        return self.encode(value)

    def codec(self) -> Codec | None:
        made: Codec = self._codec
        return made

    @cached_property
    def _codec(self) -> WeightCodec:
        # Only who writes a kernel needs the compiler.
        from gradstep.program.weight_codecs import codec_of

        return codec_of(self)


def in_bytes(halves: Tensor) -> Tensor:
    """Numbers of 16 bits as pairs of bytes, in a last dimension of their own: a view."""
    return halves.unsqueeze(-1).view(torch.uint8)


def of_bytes(pairs: Tensor) -> Tensor:
    """The numbers of :func:`in_bytes` again."""
    lie = pairs.dim() and pairs.stride(-1) == 1 and not pairs.storage_offset() % 2
    return (pairs if lie else pairs.contiguous().clone()).view(torch.int16).squeeze(-1)


class Remainder(WeightFormat):
    """The nearest bfloat16, and by how many units of float32's last digit it is off.

    That is a number of 16 bits with a sign, kept as two bytes: neither gloo nor NCCL sends int16.
    """

    mode = "remainder"
    extra = (("weight_remainder", torch.uint8),)
    is_wide = True

    def parts(self, state: str, shape: tuple[int, ...]) -> tuple[Part, ...]:
        weight, beside = super().parts(state, shape)
        return weight, Part(beside.name, (*shape, 2), beside.dtype)

    def like_weight(self, part: Tensor) -> Tensor:
        return of_bytes(part)

    def decode(self, parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        upper, lower = parts
        bits = (upper.view(torch.int16).to(torch.int32) << 16) + of_bytes(lower).to(torch.int32)
        return bits.view(torch.float32).to(dtype)

    def encode(self, value: Tensor) -> tuple[Tensor, ...]:
        bits = value.float().view(torch.int32)
        upper = (bits + 0x8000) >> 16
        lower = (bits - (upper << 16)).to(torch.int16)
        return upper.to(torch.int16).view(torch.bfloat16), in_bytes(lower)


class Kahan(WeightFormat):
    """The nearest, and what is left over in the same dtype."""

    mode = "kahan"

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        self.extra = (("weight_compensation", dtype),)

    def decode(self, parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        upper, lower = parts
        return (upper.float() + lower.float()).to(dtype)

    def encode(self, value: Tensor) -> tuple[Tensor, ...]:
        value = value.float()
        upper = value.to(self.dtype)
        rest = value - upper.float()
        return upper, torch.where(rest.isfinite(), rest, 0.0).to(self.dtype)


class Master(WeightFormat):
    """A float32 weight, of which the model's is the rounding.

    Where it is not, somebody has written the model's weight since: then that counts.
    """

    mode = "master"
    extra = (("master_weight", torch.float32),)
    is_wide = True

    def decode(self, parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        weight, master = parts
        same = weight.view(torch.int16) == master.to(self.dtype).view(torch.int16)
        return torch.where(same, master, weight.float()).to(dtype)

    def encode(self, value: Tensor) -> tuple[Tensor, ...]:
        value = value.float()
        return value.to(self.dtype), value


class Stochastic(WeightFormat):
    """Up or down by chance, as likely as the number lies near.

    The chances are a function of the key and the weight's place alone: no generator has a state, no
    bit depends on threads, and a training that goes on from a checkpoint goes on alike. Of float16
    a distance counts in 2^-13 of a digit.
    """

    mode = "stochastic"
    is_random = True

    def decode(self, parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        return parts[0].to(dtype)

    def encode(self, value: Tensor) -> tuple[Tensor, ...]:
        return (value.to(self.dtype),)

    def encode_at(self, value: Tensor, places: Tensor, key: int) -> tuple[Tensor, ...]:
        value = value.float().contiguous()
        chance = chances(places.to(value.device), key)
        bits = value.view(torch.int32)
        if self.dtype == torch.bfloat16:
            upper = ((bits + chance.to(torch.int32)) >> 16).to(torch.int16).view(torch.bfloat16)
            return (torch.where(value.isnan(), torch.nan, upper),)
        finite = value.isfinite()
        power = (bits & 0x7F800000).view(torch.float32)
        unit = (power * 2.0**-10).clamp(min=2.0**-24)
        units = value.abs() / unit + (chance >> 3).float() * 2.0**-13
        moved = torch.where(finite, units, 0.0).to(torch.int32).float() * unit
        made = torch.where(finite, moved.copysign(value), value)
        return (made.to(torch.float16),)


def mixed(key: int) -> tuple[int, int]:
    """Two numbers of 32 bits from a key: SplitMix64 (Steele et al. 2014)."""
    z = (key + 0x9E3779B97F4A7C15) & (2**64 - 1)
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    z ^= z >> 31
    return z & _MASK, z >> 32


def chances(places: Tensor, key: int) -> Tensor:
    """16 bits for each place: int64 tensors.

    Multiples of the golden ratio from where the key says, and one round of a hash. Over all keys
    each number is as likely as any other, at every place.
    """
    first, second = mixed(key)
    x = (places * 0x9E3779B1 + first) & _MASK
    x = ((x ^ (x >> 15)) * 0x85EBCA6B + second) & _MASK
    return x >> 16


#: Mode -> its formats, one for each dtype that it is for.
WEIGHT_FORMATS: dict[str, tuple[WeightFormat, ...]] = {
    kind.mode: tuple(kind(dtype) for dtype in dtypes)
    for kind, dtypes in (
        (Stochastic, NARROW),
        (Kahan, NARROW),
        (Remainder, (torch.bfloat16,)),
        (Master, NARROW),
    )
}
