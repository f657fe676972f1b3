"""Formats of 8 and 4 bits: codes in blocks, each block with the scale of its largest number.

A block is so many elements in the order of rows, whatever the order in memory: the codes are a
tensor of the weight's shape (packed by twos where they have 4 bits), and the scales one number a
block. Where a weight's rows are whole blocks the scales have rows as well, so that a shard of the
one goes with a shard of the other.

What is written is the same to the last bit with torch's operations here and by the kernels'
instructions in :mod:`gradstep.program.block_codecs`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradstep.program.code_maps import CodeMap, dynamic_map, linear_map
from gradstep.program.format import Codec, Format, Part
from gradstep.program.shards import is_sharded, like_shards_of, local

if TYPE_CHECKING:
    from gradstep.program.block_codecs import BlockCodec

#: States of fewer elements than this stay as they are: they take no memory worth saving, and the
#: weights that suffer most from few digits are such: biases and norms.
SMALL = 4096

#: The largest numbers of a block below which it is stored as zeros: their reciprocals overflow.
TINIEST = 2.0**-100


class BlockFormat(Format):
    """Codes in blocks.

    Attributes:
        block: how many elements share a scale.
        per_byte: how many codes lie in a byte.
        codes: the dtype of the tensor of codes.
    """

    suffixes = ("", "_scale")
    per_byte = 1
    codes = torch.uint8

    def __init__(self, name: str, block: int, unsigned: BlockFormat | None = None) -> None:
        self.name = name
        self.block = block
        self._unsigned = unsigned

    @property
    def unsigned(self) -> Format:
        return self._unsigned or self

    def takes(self, weight: Tensor) -> bool:
        return weight.numel() >= SMALL

    def refusal(self, weight: Any) -> str | None:
        if not is_sharded(weight) or not self.takes(weight):
            return super().refusal(weight)
        dims = [p.dim for p in weight.placements if p.is_shard()]
        if dims == []:
            return None
        rows, row = weight.shape[0], math.prod(weight.shape[1:])
        processes = math.prod(
            weight.device_mesh.size(i) for i, p in enumerate(weight.placements) if p.is_shard()
        )
        whole = -(-rows // processes) * row % self.block == 0
        even = rows % processes == 0 or (weight.dim() > 1 and row % self.block == 0)
        if dims == [0] and whole and even:
            return None
        return (
            f"of {self.block} elements a block, and its shards do not end where blocks do: choose "
            f"another number of processes, or leave the state out of state_dtype"
        )

    # The tensors.

    def _per(self, shape: Sequence[int], count: int) -> tuple[int, ...]:
        """The shape of what there is one of for so many elements."""
        row = math.prod(shape[1:])
        if len(shape) > 1 and row % self.block == 0:
            return (shape[0], row // count)
        return (-(-math.prod(shape) // count),)

    def parts(self, state: str, shape: tuple[int, ...]) -> tuple[Part, ...]:
        codes = tuple(shape) if self.per_byte == 1 else self._per(shape, self.per_byte)
        scales = self._per(shape, self.block)
        return Part(state, codes, self.codes), Part(state + "_scale", scales, torch.float32)

    def decode(self, parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        return self.numbers(parts, dtype, parts[0].shape)

    def numbers(self, parts: Sequence[Tensor], dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
        codes, scales = map(local, parts)
        size = math.prod(shape)
        own: Sequence[int] = shape
        if is_sharded(parts[0]):
            own = (codes.shape[0], *shape[1:]) if len(shape) > 1 else codes.shape
            size = math.prod(own)
        blocks = self._in_blocks(self._unpacked(codes))
        made = self.from_codes(blocks, scales.reshape(-1, 1))
        return like_shards_of(parts[0], made.flatten()[:size].view(own).to(dtype), tuple(shape))

    def encode(self, value: Tensor) -> tuple[Tensor, ...]:
        own = local(value)
        blocks = self._in_blocks(own.detach().float())
        # As integers: nan is above all numbers then, and no order of comparisons matters.
        sizes = blocks.view(torch.int32) & 0x7FFFFFFF
        if blocks.numel():
            largest = sizes.amax(-1, keepdim=True).view(torch.float32)
        else:
            largest = blocks.new_zeros((0, 1))
        codes, scales = self.to_codes(blocks, largest)
        shapes = [part.shape for part in self.parts("", tuple(own.shape))]
        whole = [part.shape for part in self.parts("", tuple(value.shape))]
        made = (self._packed(codes, own.numel()).view(shapes[0]), scales.view(shapes[1]))
        both = zip(made, whole, strict=True)
        return tuple([like_shards_of(value, part, shape) for part, shape in both])

    def zeros(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The tensors of a state of zeros, made without the zeros."""
        (zero, *_), _ = self.encode(torch.zeros(self.block, device="cpu"))
        of_part = self.parts("", tuple(local(weight).shape))
        made = [torch.zeros(part.shape, dtype=part.dtype, device=weight.device) for part in of_part]
        byte = int(zero.view(torch.uint8))
        if byte:
            made[0].view(torch.uint8).fill_(byte)
        both = zip(made, self.parts("", tuple(weight.shape)), strict=True)
        return tuple([like_shards_of(weight, tensor, part.shape) for tensor, part in both])

    def _in_blocks(self, tensor: Tensor) -> Tensor:
        flat = tensor.reshape(-1)
        short = -flat.numel() % self.block
        if short:
            flat = torch.cat([flat, flat.new_zeros(short)])
        return flat.view(-1, self.block)

    def _unpacked(self, codes: Tensor) -> Tensor:
        return codes

    def _packed(self, codes: Tensor, size: int) -> Tensor:
        return codes.flatten()[:size]

    # The code of one number.

    @abstractmethod
    def to_codes(self, blocks: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and scales of numbers.

        Args:
            blocks: float32, a block a row.
            largest: a column of what the largest of each block is, without its sign.
        """

    @abstractmethod
    def from_codes(self, codes: Tensor, scales: Tensor) -> Tensor:
        """The numbers of codes, with a column of scales."""

    def codec(self) -> Codec | None:
        made: Codec = self._codec
        return made

    @cached_property
    def _codec(self) -> BlockCodec:
        # Only who writes a kernel needs the compiler.
        from gradstep.program.block_codecs import codec_of

        return codec_of(self)


class Companded(BlockFormat):
    """Codes that grow with the logarithm of a number, and as the number itself near 0.

    A number x, in units of the scale, has the code of the upper bits of 1 + x as a float32: its
    exponent and four digits. That is the compression of telephone lines, G.711. With a sign it
    reaches over 2^8, without over 2^16; each step is a sixteenth to a thirty-second of 1 + x.

    Positive numbers of a format without sign never become 0: rules divide by their roots.
    """

    codes = torch.int8
    digits = 4

    def __init__(self, name: str, block: int, unsigned: BlockFormat | None = None) -> None:
        super().__init__(name, block, unsigned)
        self.signed = unsigned is not None
        #: The largest code, and the number in units of the scale that it is for.
        self.top = 127 if self.signed else 255
        exponent, rest = divmod(self.top, 1 << self.digits)
        self.reach = math.ldexp(1 + rest / (1 << self.digits), exponent) - 1

    def to_codes(self, blocks: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
        tiny = largest < TINIEST
        scales = torch.where(tiny, 0.0, largest / self.reach)
        units = torch.where(tiny, 0.0, self.reach / largest)
        sizes = blocks.abs() if self.signed else torch.where(blocks > 0, blocks, 0.0)
        bits = (sizes * units + 1.0).view(torch.int32)
        shift = 23 - self.digits
        upper = ((bits + (1 << (shift - 1))) >> shift) & ((1 << (32 - shift)) - 1)
        codes = (upper - (127 << self.digits)).clamp(max=self.top)
        if self.signed:
            return torch.where(blocks < 0, -codes, codes).to(torch.int8), scales
        codes = torch.where((sizes > 0) & ~tiny, codes.clamp(min=1), codes)
        return (codes - 128).to(torch.int8), scales

    def from_codes(self, codes: Tensor, scales: Tensor) -> Tensor:
        signs = codes.int()
        bits = signs.abs() if self.signed else signs + 128
        shifted = (bits << (23 - self.digits)) + (127 << 23)
        made = (shifted.view(torch.float32) - 1.0) * scales
        return torch.where(signs < 0, -made, made) if self.signed else made


#: What is taken for the largest number of a block of zeros, as torchao has it.
LEAST_LARGEST = 1e-12


class Float8(BlockFormat):
    """float8_e4m3fn: a sign, four bits of exponent, three of digits; the largest is 448.

    Of states without sign a positive number never becomes 0, as in :class:`Companded`.
    """

    codes = torch.float8_e4m3fn
    reach = 448.0

    def __init__(self, name: str, block: int, unsigned: BlockFormat | None = None) -> None:
        super().__init__(name, block, unsigned)
        self.signed = unsigned is not None

    def to_codes(self, blocks: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
        scales = torch.clamp(largest, min=LEAST_LARGEST) / self.reach
        codes = (blocks / scales).to(torch.float8_e4m3fn)
        if not self.signed:
            lost = (blocks > 0) & (codes.view(torch.uint8) == 0)
            codes = torch.where(lost, 1, codes.view(torch.uint8)).view(torch.float8_e4m3fn)
        return codes, scales

    def from_codes(self, codes: Tensor, scales: Tensor) -> Tensor:
        return codes.to(torch.float32) * scales


class Mapped(BlockFormat):
    """The number of the nearest entry of a map; of two as near the upper.

    Args:
        map: the entries, in order, between −1 and 1.
    """

    def __init__(
        self, name: str, block: int, map: CodeMap, unsigned: BlockFormat | None = None
    ) -> None:
        super().__init__(name, block, unsigned)
        self.map = map

    def to_codes(self, blocks: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
        scales = torch.clamp(largest, min=LEAST_LARGEST)
        bounds = torch.tensor(self.map.bounds, dtype=torch.float32, device=blocks.device)
        return torch.bucketize(blocks / scales, bounds, right=True).to(torch.uint8), scales

    def from_codes(self, codes: Tensor, scales: Tensor) -> Tensor:
        entries = torch.tensor(self.map.entries, dtype=torch.float32, device=codes.device)
        return entries[codes.int()] * scales


class Packed(Mapped):
    """Codes of 4 bits, two in a byte: the first in the upper half, as torchao has it."""

    per_byte = 2

    def _unpacked(self, codes: Tensor) -> Tensor:
        return torch.stack([codes >> 4, codes & 15], -1)

    def _packed(self, codes: Tensor, size: int) -> Tensor:
        pairs = codes.flatten()[: size + size % 2].view(-1, 2)
        return (pairs[:, 0] << 4) | pairs[:, 1]


#: What :func:`gradstep.stored_as` takes beside dtypes.
BLOCK_FORMATS: tuple[BlockFormat, ...] = (
    Companded("int8", 128, Companded("int8 unsigned", 128)),
    Mapped(
        "dynamic8", 256, dynamic_map(True), Mapped("dynamic8 unsigned", 256, dynamic_map(False))
    ),
    Float8("float8", 256, Float8("float8 unsigned", 256)),
    Packed("int4", 128, dynamic_map(True, 4), Packed("int4 unsigned", 128, linear_map(16))),
)
