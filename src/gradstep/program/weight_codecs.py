"""How a kernel reads and writes weights in 16 bits: weight_formats.py, in LLVM code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from llvmlite import ir

from gradstep.program.format import Codec
from gradstep.program.loops import counted
from gradstep.program.low_precision import conversions
from gradstep.program.weight_formats import Kahan, Master, Remainder, Stochastic, WeightFormat

I16, I32, I64, F32, F64 = (
    ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.DoubleType(),
)  # fmt: skip


#: 2^32 by the golden ratio, to the nearest odd number.
_GOLDEN = 0x9E3779B1


def _i(value: int) -> Any:
    return ir.Constant(I32, value)


def _f(value: float) -> Any:
    return ir.Constant(F32, value)


def load_part(b: ir.IRBuilder, pointer: Any, index: Any, kind: Any) -> Any:
    """An element of one of a weight's tensors."""
    size = 4 if kind in (I32, F32) else 2
    return b.load(b.gep(pointer, [index], source_etype=kind), align=size, typ=kind)


def store_part(b: ir.IRBuilder, value: Any, pointer: Any, index: Any) -> None:
    """Put an element into one of a weight's tensors."""
    size = 4 if value.type in (I32, F32) else 2
    b.store(value, b.gep(pointer, [index], source_etype=value.type), align=size)


class WeightCodec(Codec):
    """Element by element, of several tensors.

    Attributes:
        kinds: what an element of each is, to LLVM.
    """

    def __init__(self, format: WeightFormat) -> None:
        self.format = format
        one = format.parts("", ())  # what there is for one element
        self.items = tuple([(part.bytes(), 1) for part in one])
        self.kinds = tuple([F32 if size == 4 else I16 for size, _ in self.items])
        self.is_random = format.is_random
        name = str(format.dtype).removeprefix("torch.")
        # In integers on every CPU: the halves of the processor's own have the same bits.
        made = conversions(name, False)
        assert made is not None
        self.widened, self.narrowed = made

    def decode(self, b: Any, parts: Sequence[Any], count: Any, numbers: Any) -> None:
        with counted(b, count) as index:
            pairs = zip(parts, self.kinds, strict=True)
            stored = [load_part(b, part, index, kind) for part, kind in pairs]
            store_part(b, self.read(b, stored), numbers, index)

    def encode(
        self, b: Any, numbers: Any, count: Any, parts: Sequence[Any], counter: Any = None
    ) -> None:
        given = self.begin(b, counter)
        with counted(b, count) as index:
            made = self.write(b, load_part(b, numbers, index, F32), index, given)
            for value, part in zip(made, parts, strict=True):
                store_part(b, value, part, index)

    def begin(self, b: ir.IRBuilder, counter: Any) -> Any:
        """What :meth:`write` is given, worked out before the loop."""
        return None

    def read(self, b: ir.IRBuilder, stored: Sequence[Any]) -> Any:
        """The number that stands in each tensor as this."""
        raise NotImplementedError

    def write(self, b: ir.IRBuilder, number: Any, index: Any, given: Any) -> Sequence[Any]:
        """What goes into each tensor for a number."""
        raise NotImplementedError


class _Remainder(WeightCodec):
    def read(self, b: ir.IRBuilder, stored: Sequence[Any]) -> Any:
        upper = b.shl(b.zext(stored[0], I32), _i(16))
        lower = b.sext(stored[1], I32)
        return b.bitcast(b.add(upper, lower), F32)

    def write(self, b: ir.IRBuilder, number: Any, index: Any, given: Any) -> Sequence[Any]:
        bits = b.bitcast(number, I32)
        upper = b.trunc(b.lshr(b.add(bits, _i(0x8000)), _i(16)), I16)
        return upper, b.trunc(bits, I16)


class _Kahan(WeightCodec):
    def read(self, b: ir.IRBuilder, stored: Sequence[Any]) -> Any:
        return b.fadd(*(self.widened(b, half) for half in stored))

    def write(self, b: ir.IRBuilder, number: Any, index: Any, given: Any) -> Sequence[Any]:
        upper = self.narrowed(b, number)
        rest = b.fsub(number, self.widened(b, upper))
        size = b.and_(b.bitcast(rest, I32), _i(0x7FFFFFFF))
        finite = b.icmp_unsigned("<", size, _i(0x7F800000))
        return upper, self.narrowed(b, b.select(finite, rest, _f(0.0)))


class _Master(WeightCodec):
    def read(self, b: ir.IRBuilder, stored: Sequence[Any]) -> Any:
        weight, master = stored
        same = b.icmp_unsigned("==", self.narrowed(b, master), weight)
        return b.select(same, master, self.widened(b, weight))

    def write(self, b: ir.IRBuilder, number: Any, index: Any, given: Any) -> Sequence[Any]:
        return self.narrowed(b, number), number


class _Stochastic(WeightCodec):
    def read(self, b: ir.IRBuilder, stored: Sequence[Any]) -> Any:
        return self.widened(b, stored[0])

    def begin(self, b: ir.IRBuilder, counter: Any) -> Any:
        first, key = counter
        z = b.add(b.fptoui(key, I64), ir.Constant(I64, 0x9E3779B97F4A7C15))
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = b.mul(b.xor(z, b.lshr(z, ir.Constant(I64, shift))), ir.Constant(I64, factor))
        z = b.xor(z, b.lshr(z, ir.Constant(I64, 31)))
        lower, upper = b.trunc(z, I32), b.trunc(b.lshr(z, ir.Constant(I64, 32)), I32)
        return b.add(b.mul(b.trunc(first, I32), _i(_GOLDEN)), lower), upper

    def write(self, b: ir.IRBuilder, number: Any, index: Any, given: Any) -> Sequence[Any]:
        start, second = given
        x = b.add(b.mul(b.trunc(index, I32), _i(_GOLDEN)), start)
        x = b.add(b.mul(b.xor(x, b.lshr(x, _i(15))), _i(0x85EBCA6B)), second)
        chance = b.lshr(x, _i(16))
        bits = b.bitcast(number, I32)
        if self.format.dtype == torch.bfloat16:
            upper = b.lshr(b.add(bits, chance), _i(16))
            is_nan = b.fcmp_unordered("uno", number, number)
            return (b.trunc(b.select(is_nan, _i(0x7FC0), upper), I16),)
        size = b.and_(bits, _i(0x7FFFFFFF))
        finite = b.icmp_unsigned("<", size, _i(0x7F800000))
        power = b.bitcast(b.and_(bits, _i(0x7F800000)), F32)
        unit = b.fmul(power, _f(2.0**-10))
        unit = b.select(b.fcmp_ordered("<", unit, _f(2.0**-24)), _f(2.0**-24), unit)
        share = b.fmul(b.uitofp(b.lshr(chance, _i(3)), F32), _f(2.0**-13))
        units = b.fadd(b.fdiv(b.bitcast(size, F32), unit), share)
        units = b.select(finite, units, _f(0.0))
        moved = b.bitcast(b.fmul(b.sitofp(b.fptosi(units, I32), F32), unit), I32)
        signed = b.or_(moved, b.and_(bits, _i(0x80000000)))
        chosen = b.bitcast(b.select(finite, signed, bits), F32)
        return (self.narrowed(b, chosen),)


def codec_of(format: WeightFormat) -> WeightCodec:
    """How kernels read and write one of the formats of weight_formats.py."""
    kinds = {Remainder: _Remainder, Kahan: _Kahan, Master: _Master, Stochastic: _Stochastic}
    made: WeightCodec = kinds[type(format)](format)
    return made
