"""How a kernel reads and writes codes in blocks: the arithmetic of block_formats.py, in LLVM code.

Block by block, in loops that LLVM turns into vectors. The largest number of a block is found by
comparing bits as integers, which vectors do in any order to the same end.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llvmlite import ir

from gradstep.program.block_formats import (
    LEAST_LARGEST,
    TINIEST,
    BlockFormat,
    Companded,
    Float8,
    Mapped,
    Packed,
)
from gradstep.program.code_maps import CodeMap, entries_below
from gradstep.program.format import Codec
from gradstep.program.loops import counted

I8, I32, I64, F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()


def _i(value: int) -> Any:
    return ir.Constant(I32, value)


def _f(value: float) -> Any:
    return ir.Constant(F32, struct.unpack("f", struct.pack("f", value))[0])


def _at(b: ir.IRBuilder, pointer: Any, index: Any, kind: Any) -> Any:
    return b.gep(pointer, [index], source_etype=kind)


def _load(b: ir.IRBuilder, pointer: Any, index: Any, kind: Any, align: int) -> Any:
    return b.load(_at(b, pointer, index, kind), align=align, typ=kind)


def _bits(b: ir.IRBuilder, number: Any) -> Any:
    return b.bitcast(number, I32)


def _number(b: ir.IRBuilder, bits: Any) -> Any:
    return b.bitcast(bits, F32)


def _least(b: ir.IRBuilder, code: Any, limit: int) -> Any:
    return b.select(b.icmp_unsigned("<", code, _i(limit)), code, _i(limit))


class BlockCodec(Codec):
    """Blocks: a scale each, and between the scales what :meth:`read` and :meth:`write` do."""

    def __init__(self, format: BlockFormat) -> None:
        self.format = format
        self.items = ((1, format.per_byte), (4, format.block))

    def decode(self, b: Any, parts: Sequence[Any], count: Any, numbers: Any) -> None:
        codes, scales = parts
        for number, start, size in self._blocks(b, count):
            scale = _load(b, scales, number, F32, 4)
            self.read(b, codes, start, size, scale, _at(b, numbers, start, F32))

    def encode(self, b: Any, numbers: Any, count: Any, parts: Sequence[Any]) -> None:
        codes, scales = parts
        for number, start, size in self._blocks(b, count):
            own = _at(b, numbers, start, F32)
            largest = _number(b, self._largest(b, own, size))
            scale, given = self.scale(b, largest)
            b.store(scale, _at(b, scales, number, F32), align=4)
            self.write(b, own, size, given, codes, start)

    def _blocks(self, b: ir.IRBuilder, count: Any) -> Iterator[tuple[Any, Any, Any]]:
        """Write what follows twice: in a loop over whole blocks, and for what is left.

        Loops of a known length are a tenth quicker. Gives the number of a block, where it starts,
        and how many elements it has.
        """
        block = self.format.block
        bits = ir.Constant(I64, block.bit_length() - 1)
        whole = b.shl(b.lshr(count, bits), bits)
        with counted(b, whole, block) as start:
            yield b.lshr(start, bits), start, ir.Constant(I64, block)
        rest = b.sub(count, whole)
        with b.if_then(b.icmp_signed(">", rest, ir.Constant(I64, 0))):
            yield b.lshr(whole, bits), whole, rest

    def _largest(self, b: ir.IRBuilder, numbers: Any, size: Any) -> Any:
        before = b.block
        with counted(b, size) as index:
            largest = b.phi(I32)
            largest.add_incoming(_i(0), before)
            bits = b.and_(_load(b, numbers, index, I32, 4), _i(0x7FFFFFFF))
            more = b.select(b.icmp_unsigned(">", bits, largest), bits, largest)
            largest.add_incoming(more, b.block)
            inside = b.block
        end = b.phi(I32)
        end.add_incoming(_i(0), before)
        end.add_incoming(more, inside)
        return end

    def scale(self, b: ir.IRBuilder, largest: Any) -> tuple[Any, Any]:
        """Of a block's largest number the scale that is kept, and what :meth:`write` is given."""
        raise NotImplementedError

    def read(
        self, b: ir.IRBuilder, codes: Any, start: Any, size: Any, scale: Any, numbers: Any
    ) -> None:
        """Write the loop over a block that reads; by default element by element."""
        own = _at(b, codes, start, I8)
        with counted(b, size) as index:
            code = _load(b, own, index, I8, 1)
            b.store(self.number(b, code, scale), _at(b, numbers, index, F32), align=4)

    def write(
        self, b: ir.IRBuilder, numbers: Any, size: Any, given: Any, codes: Any, start: Any
    ) -> None:
        """Write the loop over a block that writes; by default element by element."""
        own = _at(b, codes, start, I8)
        with counted(b, size) as index:
            code = self.code(b, _load(b, numbers, index, F32, 4), given)
            b.store(b.trunc(code, I8), _at(b, own, index, I8), align=1)

    def number(self, b: ir.IRBuilder, code: Any, scale: Any) -> Any:
        """What a byte of codes stands for."""
        raise NotImplementedError

    def code(self, b: ir.IRBuilder, number: Any, given: Any) -> Any:
        """The code of a number, in 32 bits."""
        raise NotImplementedError


class _Companded(BlockCodec):
    format: Companded

    def scale(self, b: ir.IRBuilder, largest: Any) -> tuple[Any, Any]:
        tiny = b.fcmp_ordered("<", largest, _f(TINIEST))
        reach = _f(self.format.reach)
        scale = b.select(tiny, _f(0.0), b.fdiv(largest, reach))
        units = b.select(tiny, _f(0.0), b.fdiv(reach, largest))
        return scale, (units, b.select(tiny, _i(0), _i(1)))

    def number(self, b: ir.IRBuilder, code: Any, scale: Any) -> Any:
        of = self.format
        wide = b.sext(code, I32)
        if of.signed:
            code = b.select(b.icmp_signed("<", wide, _i(0)), b.neg(wide), wide)
        else:
            code = b.add(wide, _i(128))
        bits = b.add(b.shl(code, _i(23 - of.digits)), _i(127 << 23))
        made = b.fmul(b.fsub(_number(b, bits), _f(1.0)), scale)
        if not of.signed:
            return made
        sign = b.and_(wide, _i(0x80000000))
        return _number(b, b.xor(_bits(b, made), sign))

    def code(self, b: ir.IRBuilder, number: Any, given: Any) -> Any:
        of = self.format
        units, least = given
        if of.signed:
            size = _number(b, b.and_(_bits(b, number), _i(0x7FFFFFFF)))
        else:
            size = b.select(b.fcmp_ordered(">", number, _f(0.0)), number, _f(0.0))
        shift = 23 - of.digits
        bits = _bits(b, b.fadd(b.fmul(size, units), _f(1.0)))
        upper = b.lshr(b.add(bits, _i(1 << (shift - 1))), _i(shift))
        code = _least(b, b.sub(upper, _i(127 << of.digits)), of.top)
        if of.signed:
            return b.select(b.fcmp_ordered("<", number, _f(0.0)), b.neg(code), code)
        some = b.and_(b.sext(b.fcmp_ordered(">", number, _f(0.0)), I32), least)
        return b.sub(b.select(b.icmp_unsigned(">", code, some), code, some), _i(128))


class _Float8(BlockCodec):
    format: Float8

    def scale(self, b: ir.IRBuilder, largest: Any) -> tuple[Any, Any]:
        scale = b.fdiv(_at_least(b, largest), _f(self.format.reach))
        return scale, scale

    def number(self, b: ir.IRBuilder, code: Any, scale: Any) -> Any:
        wide = b.zext(code, I32)
        size = b.and_(wide, _i(0x7F))
        normal = _number(b, b.add(b.shl(size, _i(20)), _i((127 - 7) << 23)))
        small = b.fmul(b.uitofp(size, F32), _f(2.0**-9))
        made = b.select(b.icmp_unsigned("<", size, _i(8)), small, normal)
        made = b.select(b.icmp_unsigned("==", size, _i(0x7F)), _f(math.nan), made)
        sign = b.shl(b.and_(wide, _i(0x80)), _i(24))
        return b.fmul(_number(b, b.or_(_bits(b, made), sign)), scale)

    def code(self, b: ir.IRBuilder, number: Any, given: Any) -> Any:
        bits = _bits(b, b.fdiv(number, given))
        size = b.and_(bits, _i(0x7FFFFFFF))
        sign = b.and_(b.lshr(bits, _i(24)), _i(0x80))
        odd = b.and_(b.lshr(size, _i(20)), _i(1))
        normal = b.add(b.add(size, odd), _i(0x7FFFF - ((127 - 7) << 23)))
        normal = _least(b, b.lshr(normal, _i(20)), 0x7F)
        # The sum's unit in the last place is the smallest code's number.
        lowest = _i(struct.unpack("i", struct.pack("f", 2.0**14))[0])
        small = b.sub(_bits(b, b.fadd(_number(b, size), _f(2.0**14))), lowest)
        code = b.select(b.icmp_unsigned("<", size, _i((127 - 6) << 23)), small, normal)
        if self.format.signed:
            return b.or_(code, sign)
        some = b.and_(b.sext(b.fcmp_ordered(">", number, _f(0.0)), I32), _i(1))
        return b.or_(b.select(b.icmp_unsigned(">", code, some), code, some), sign)


def _at_least(b: ir.IRBuilder, largest: Any) -> Any:
    """The largest number, or what is taken for it; nan stays."""
    small = b.fcmp_ordered("<", largest, _f(LEAST_LARGEST))
    return b.select(small, _f(LEAST_LARGEST), largest)


def _no_nan(b: ir.IRBuilder, share: Any) -> Any:
    """With the last code for nan, whose scale is nan or infinite."""
    return b.select(b.fcmp_unordered("uno", share, share), _f(1.0), share)


def _table(b: ir.IRBuilder, kind: Any, values: Sequence[Any], name: str) -> Any:
    """A table of the module's."""
    module = b.module
    known = module.globals.get(name)
    if known is not None:
        return known
    array = ir.ArrayType(kind, len(values))
    table = ir.GlobalVariable(module, array, name)
    table.linkage, table.global_constant = "internal", True
    table.initializer = ir.Constant(array, [ir.Constant(kind, value) for value in values])
    return table


class _Mapped(BlockCodec):
    format: Mapped

    def _entries(self, b: ir.IRBuilder) -> Any:
        name = f"entries of {self.format.name}"
        return _table(b, F32, self.format.map.entries, name)

    def scale(self, b: ir.IRBuilder, largest: Any) -> tuple[Any, Any]:
        scale = _at_least(b, largest)
        return scale, scale

    def number(self, b: ir.IRBuilder, code: Any, scale: Any) -> Any:
        entry = _load(b, self._entries(b), b.zext(code, I64), F32, 4)
        return b.fmul(entry, scale)

    def code(self, b: ir.IRBuilder, number: Any, given: Any) -> Any:
        """By a table over the upper bits of a number: of no two bounds these are the same."""
        search = _Search(self.format.map)
        name = self.format.name
        starts = _table(b, I8, search.starts, f"starts of {name}")
        bounds = _table(b, F32, (*self.format.map.bounds, math.inf), f"bounds of {name}")
        share = _no_nan(b, b.fdiv(number, given))
        place = search.place(b, _bits(b, share))
        start = b.zext(_load(b, starts, place, I8, 1), I64)
        bound = _load(b, bounds, start, F32, 4)
        more = b.zext(b.fcmp_ordered(">=", share, bound), I32)
        return b.add(b.trunc(start, I32), more)


class _Search:
    """Where to begin in a map, by the upper bits of a number.

    Attributes:
        starts: for each place the code of its smallest number.
    """

    def __init__(self, map: CodeMap) -> None:
        sizes = sorted({abs(bound) for bound in map.bounds})
        for digits in range(1, 12):
            self.digits = digits
            uppers = [self._upper(size) for size in sizes]
            if len(set(uppers)) == len(sizes):
                break
        self.lowest, self.highest = min(uppers), self._upper(1.0)
        self.signed = map.bounds[0] < 0
        span = self.highest - self.lowest + 1
        shift = 23 - digits
        self.starts: list[int] = []
        for negative in (False, True) if self.signed else (False,):
            for k in range(span):
                bits = (self.lowest + k) << shift
                if negative:  # the smallest number is that of the largest size
                    bits = ((self.lowest + k + 1) << shift) - 1
                size = struct.unpack("f", struct.pack("I", bits))[0]
                if k == 0 and not negative:
                    size = 0.0  # all that is smaller comes here as well
                self.starts.append(entries_below(map.bounds, -size if negative else size))
        self.span = span

    def _upper(self, size: float) -> int:
        bits: int = struct.unpack("I", struct.pack("f", size))[0]
        return bits >> (23 - self.digits)

    def place(self, b: ir.IRBuilder, bits: Any) -> Any:
        """The place of a number in the table, of its bits."""
        size = b.lshr(b.and_(bits, _i(0x7FFFFFFF)), _i(23 - self.digits))
        upper = b.select(b.icmp_unsigned(">", size, _i(self.lowest)), size, _i(self.lowest))
        place = b.sub(_least(b, upper, self.highest), _i(self.lowest))
        if self.signed:
            negative = b.icmp_signed("<", bits, _i(0))
            place = b.add(place, b.select(negative, _i(self.span), _i(0)))
        return b.zext(place, I64)


class _Packed(_Mapped):
    format: Packed

    def read(
        self, b: ir.IRBuilder, codes: Any, start: Any, size: Any, scale: Any, numbers: Any
    ) -> None:
        entries = self._entries(b)
        own = _at(b, codes, b.lshr(start, ir.Constant(I64, 1)), I8)
        with counted(b, size) as index:
            byte = _load(b, own, b.lshr(index, ir.Constant(I64, 1)), I8, 1)
            is_second = b.trunc(index, ir.IntType(1))
            half = b.select(is_second, b.and_(byte, _byte(15)), b.lshr(byte, _byte(4)))
            entry = _load(b, entries, b.zext(half, I64), F32, 4)
            b.store(b.fmul(entry, scale), _at(b, numbers, index, F32), align=4)

    def write(
        self, b: ir.IRBuilder, numbers: Any, size: Any, given: Any, codes: Any, start: Any
    ) -> None:
        # In two loops over a line of bytes, since what one writes no other may.
        halves = self._line(b)
        with counted(b, size) as index:
            code = self.code(b, _load(b, numbers, index, F32, 4), given)
            b.store(b.trunc(code, I8), _at(b, halves, index, I8), align=1)
        # Beside the last of an odd number stands 0.
        zero = _byte(entries_below(self.format.map.bounds, 0.0))
        b.store(zero, _at(b, halves, size, I8), align=1)
        own = _at(b, codes, b.lshr(start, ir.Constant(I64, 1)), I8)
        one = ir.Constant(I64, 1)
        with counted(b, b.lshr(b.add(size, one), one)) as index:
            first = b.shl(index, one)
            upper = _load(b, halves, first, I8, 1)
            lower = _load(b, halves, b.add(first, one), I8, 1)
            both = b.or_(b.shl(upper, _byte(4)), lower)
            b.store(both, _at(b, own, index, I8), align=1)

    def _line(self, b: ir.IRBuilder) -> Any:
        with b.goto_entry_block():
            return b.alloca(I8, size=ir.Constant(I64, self.format.block + 1))

    def code(self, b: ir.IRBuilder, number: Any, given: Any) -> Any:
        """So few bounds are compared one after the other, in vectors."""
        share = _no_nan(b, b.fdiv(number, given))
        code = _i(0)
        for bound in self.format.map.bounds:
            code = b.add(code, b.zext(b.fcmp_ordered(">=", share, _f(bound)), I32))
        return code


def _byte(value: int) -> Any:
    return ir.Constant(I8, value)


_CODECS: dict[type[BlockFormat], Callable[[Any], BlockCodec]] = {
    Companded: _Companded,
    Float8: _Float8,
    Mapped: _Mapped,
    Packed: _Packed,
}


def codec_of(format: BlockFormat) -> BlockCodec:
    """How kernels read and write one of the formats of block_formats.py."""
    return _CODECS[type(format)](format)
