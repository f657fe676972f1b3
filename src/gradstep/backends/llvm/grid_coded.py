"""Work on single elements of which some lie in memory in codes, for blocks of threads.

A stretch of a chunk at a time, four elements a thread. Codes are read in registers, where an
element is worked on. What goes back in blocks with a scale waits in shared memory until the largest
number of its block is known: the arithmetic is that of the codecs, which the CPU runs line by line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from llvmlite import ir

from gradstep.backends.llvm.element import F32, F64, I32, I64, ElementCode, as_type
from gradstep.backends.llvm.grid import THREADS
from gradstep.backends.llvm.grid_pieces import I8, Columns, GridWalk
from gradstep.backends.llvm.line import given, items_of, real_type
from gradstep.program.block_codecs import BlockCodec
from gradstep.program.code_maps import entries_below
from gradstep.program.format import Codec
from gradstep.program.kernel_spec import KernelSpec
from gradstep.program.loops import counted
from gradstep.program.weight_codecs import WeightCodec

#: Elements a thread, at once.
EACH = 4
#: Elements a stretch: a multiple of every block.
STRETCH = EACH * THREADS


def is_known(codec: Codec) -> bool:
    """Whether a codec's arithmetic is there for one element."""
    return isinstance(codec, BlockCodec | WeightCodec) and (
        not isinstance(codec, BlockCodec) or STRETCH % codec.format.block == 0
    )


class CodedGrid(GridWalk):
    """Over elements as they lie in memory, in stretches."""

    def __init__(self, module: ir.Module, spec: KernelSpec) -> None:
        super().__init__(module, spec)
        written = {column for _, column in spec.stores}
        #: Column -> numbers that wait, the largest of each thread's, and of each block.
        self.waiting: dict[int, tuple[Any, Any, Any]] = {}
        for column in sorted(written):
            codec = self.codecs[column]
            if isinstance(codec, BlockCodec):
                blocks = STRETCH // codec.format.block
                self.waiting[column] = (
                    self.grid.shared(f"numbers_{column}", F32, STRETCH),
                    self.grid.shared(f"sizes_{column}", I32, THREADS),
                    self.grid.shared(f"largest_{column}", I32, blocks),
                )

    def walk(self, f: dict[str, Any], row: Any, starts: Columns) -> None:
        b = self.b
        pairs = zip(starts, self.spec.columns, strict=True)
        parts = [self.behind(own, column, f["start"]) for own, column in pairs]
        bits = [b.ptrtoint(part, I64) for own in parts for part in own]
        apart = bits[0]
        for each in bits[1:]:
            apart = b.or_(apart, each)
        apart = b.and_(apart, I64(self.spec.target.vector_bytes - 1))
        aligned = b.icmp_unsigned("==", apart, I64(0))
        begun = self.begin(row, f["start"])
        count, most = f["count"], I64(STRETCH)
        with counted(b, count, STRETCH) as stretch:
            rest = b.sub(count, stretch)
            size = b.select(b.icmp_signed("<", rest, most), rest, most)
            with self.grid.threads(wait=bool(self.waiting)) as thread:
                own = b.mul(thread, I64(EACH))
                left = self._left(size, own)
                self._all_or_each(
                    aligned,
                    left,
                    lambda: self._work(parts, row, begun, stretch, own, EACH),
                    lambda k: self._work(parts, row, begun, stretch, b.add(own, k), 0),
                )
                for column in self.waiting:
                    self._size_of_own(column, thread, own, left)
            if self.waiting:
                self._encode(parts, aligned, stretch, size)

    def _left(self, size: Any, own: Any) -> Any:
        """How many of a thread's elements there are."""
        b = self.b
        left = b.sub(size, own)
        left = b.select(b.icmp_signed("<", left, I64(EACH)), left, I64(EACH))
        return b.select(b.icmp_signed(">", left, I64(0)), left, I64(0))

    def _all_or_each(
        self, aligned: Any, left: Any, whole: Callable[[], None], each: Callable[[Any], None]
    ) -> None:
        """Write what a thread does with its elements at once, and with those that are left."""
        b = self.b
        at_once = b.and_(aligned, b.icmp_signed("==", left, I64(EACH)))
        with b.if_else(at_once) as (then, otherwise):
            with then:
                whole()
            with otherwise, counted(b, left) as k:
                each(k)

    # A thread's elements.

    def _work(
        self,
        parts: Columns,
        row: Any,
        begun: dict[int, Any],
        stretch: Any,
        place: Any,
        lanes: int,
    ) -> None:
        b, spec = self.b, self.spec
        index = b.add(stretch, place)
        element = ElementCode(b, real_type(spec), lanes)
        given(element, spec, row)
        real = ir.VectorType(element.real, lanes) if lanes else element.real
        for node, number in spec.loads:
            value = self._read(parts, number, index, lanes)
            element.values[id(node)] = as_type(b, value, real)
        for node in spec.work:
            element.write(node)
        for node, number in spec.stores:
            stored = F64 if spec.columns[number].format == "float64" else F32
            kind = ir.VectorType(stored, lanes) if lanes else stored
            value = as_type(b, element.values[id(node)], kind)
            self._write(parts, begun, number, index, place, value, lanes)

    def _read(self, parts: Columns, number: int, index: Any, lanes: int) -> Any:
        b, codec = self.b, self.codecs[number]
        if codec is None:
            align = self._align(number) if lanes else 0
            return self.memories[number].load(b, parts[number][0], index, lanes, align)
        if isinstance(codec, WeightCodec):
            stored = [
                self._values(part, index, kind, lanes)
                for part, kind in zip(parts[number], codec.kinds, strict=True)
            ]
            made = [codec.read(b, list(pair)) for pair in zip(*stored, strict=True)]
            return self._together(made, lanes)
        assert isinstance(codec, BlockCodec)
        codes, scales = parts[number]
        block = b.lshr(index, I64(codec.format.block.bit_length() - 1))
        scale = b.load(b.gep(scales, [block], source_etype=F32), typ=F32, align=4)
        if codec.format.per_byte == 1:
            found = self._values(codes, index, I8, lanes)
        else:
            found = self._halves(codes, index, lanes)
        return self._together([codec.number(b, code, scale) for code in found], lanes)

    def _write(
        self,
        parts: Columns,
        begun: dict[int, Any],
        number: int,
        index: Any,
        place: Any,
        value: Any,
        lanes: int,
    ) -> None:
        b, codec = self.b, self.codecs[number]
        if codec is None:
            align = self._align(number) if lanes else 0
            self.memories[number].store(b, value, parts[number][0], index, align)
            return
        if isinstance(codec, WeightCodec):
            made = [
                codec.write(b, one, b.add(index, I64(k)), begun[number])
                for k, one in enumerate(self._apart(value, lanes))
            ]
            for part, values in zip(parts[number], zip(*made, strict=True), strict=True):
                self._put(part, index, list(values), lanes)
            return
        numbers, _, _ = self.waiting[number]
        align = 4 * max(1, lanes)
        b.store(value, b.gep(numbers, [place], source_etype=F32), align=align)

    def _align(self, number: int) -> int:
        """Of the address of a thread's elements in a column that is no codes."""
        ((size, _),) = items_of(self.spec.columns[number])
        return min(EACH * size, self.spec.target.vector_bytes)

    def _values(self, part: Any, index: Any, kind: Any, lanes: int) -> list[Any]:
        """A thread's elements of a tensor, or one."""
        b, size = self.b, {I8: 1, F32: 4}.get(kind, 2)
        at = b.gep(part, [index], source_etype=kind)
        if not lanes:
            return [b.load(at, typ=kind, align=size)]
        found = b.load(at, typ=ir.VectorType(kind, lanes), align=size * lanes)
        return self._apart(found, lanes)

    def _halves(self, codes: Any, index: Any, lanes: int) -> list[Any]:
        """The same of codes of 4 bits, each in a byte of its own."""
        b, low, four = self.b, I8(15), I8(4)
        first = b.lshr(index, I64(1))
        if not lanes:
            byte = b.load(b.gep(codes, [first], source_etype=I8), typ=I8, align=1)
            is_second = b.trunc(index, ir.IntType(1))
            return [b.select(is_second, b.and_(byte, low), b.lshr(byte, four))]
        found = []
        for byte in self._values(codes, first, I8, lanes // 2):
            found += [b.lshr(byte, four), b.and_(byte, low)]
        return found

    def _put(self, part: Any, index: Any, values: list[Any], lanes: int) -> None:
        b, kind = self.b, values[0].type
        at = b.gep(part, [index], source_etype=kind)
        size = {I8: 1, F32: 4}.get(kind, 2)
        if not lanes:
            b.store(values[0], at, align=size)
        else:
            b.store(self._together(values, lanes), at, align=size * lanes)

    def _apart(self, value: Any, lanes: int) -> list[Any]:
        if not lanes:
            return [value]
        return [self.b.extract_element(value, I32(k)) for k in range(lanes)]

    def _together(self, values: list[Any], lanes: int) -> Any:
        if not lanes:
            return values[0]
        made: Any = ir.Constant(ir.VectorType(values[0].type, lanes), ir.Undefined)
        for k, value in enumerate(values):
            made = self.b.insert_element(made, value, I32(k))
        return made

    # What waits.

    def _size_of_own(self, column: int, thread: Any, own: Any, left: Any) -> None:
        """The largest of a thread's numbers, by the bits of their sizes."""
        b = self.b
        numbers, sizes, _ = self.waiting[column]
        largest: Any = I32(0)
        for k in range(EACH):
            # Of those that are not there the shared memory has something, too.
            place = b.add(own, I64(k))
            bits = b.load(b.gep(numbers, [place], source_etype=I32), typ=I32, align=4)
            bits = b.and_(bits, I32(0x7FFFFFFF))
            there = b.icmp_signed("<", I64(k), left)
            more = b.and_(there, b.icmp_unsigned(">", bits, largest))
            largest = b.select(more, bits, largest)
        b.store(largest, b.gep(sizes, [thread], source_etype=I32), align=4)

    def _encode(self, parts: Columns, aligned: Any, stretch: Any, size: Any) -> None:
        b, grid = self.b, self.grid
        with grid.threads(wait=True) as thread:
            for column in self.waiting:
                self._largest_of_blocks(column, thread, parts[column][1], stretch, size)
        with grid.threads(wait=True) as thread:
            own = b.mul(thread, I64(EACH))
            left = self._left(size, own)
            for column in self.waiting:
                self._codes_of_own(column, parts[column][0], aligned, stretch, own, left)

    def _codec(self, column: int) -> BlockCodec:
        codec = self.codecs[column]
        assert isinstance(codec, BlockCodec)
        return codec

    def _largest_of_blocks(
        self, column: int, thread: Any, scales: Any, stretch: Any, size: Any
    ) -> None:
        """A thread a block: its largest number, of those of its threads, and its scale."""
        b, codec = self.b, self._codec(column)
        _, sizes, largest = self.waiting[column]
        block, each = codec.format.block, codec.format.block // EACH
        begins = b.mul(thread, I64(block))
        with b.if_then(b.icmp_signed("<", begins, size)):
            before, first = b.block, b.mul(thread, I64(each))
            with counted(b, I64(each)) as k:
                most = b.phi(I32)
                most.add_incoming(I32(0), before)
                at = b.gep(sizes, [b.add(first, k)], source_etype=I32)
                bits = b.load(at, typ=I32, align=4)
                found = b.select(b.icmp_unsigned(">", bits, most), bits, most)
                most.add_incoming(found, b.block)
                inside = b.block
            end = b.phi(I32)
            end.add_incoming(I32(0), before)
            end.add_incoming(found, inside)
            b.store(end, b.gep(largest, [thread], source_etype=I32), align=4)
            scale, _ = codec.scale(b, b.bitcast(end, F32))
            number = b.add(b.lshr(stretch, I64(block.bit_length() - 1)), thread)
            b.store(scale, b.gep(scales, [number], source_etype=F32), align=4)

    def _codes_of_own(
        self, column: int, codes: Any, aligned: Any, stretch: Any, own: Any, left: Any
    ) -> None:
        """A thread's codes."""
        b, codec = self.b, self._codec(column)
        numbers, _, largest = self.waiting[column]
        block = b.lshr(own, I64(codec.format.block.bit_length() - 1))
        with b.if_then(b.icmp_signed(">", left, I64(0))):
            bits = b.load(b.gep(largest, [block], source_etype=I32), typ=I32, align=4)
            _, scaled = codec.scale(b, b.bitcast(bits, F32))

            def code_at(place: Any) -> Any:
                number = b.load(b.gep(numbers, [place], source_etype=F32), typ=F32, align=4)
                return b.trunc(codec.code(b, number, scaled), I8)

            def byte_at(k: Any) -> Any:
                """Of two numbers; beside the last of an odd number stands 0."""
                first = b.add(own, b.shl(k, I64(1)))
                is_last = b.icmp_signed("==", b.add(b.shl(k, I64(1)), I64(1)), left)
                zero = I8(entries_below(codec.format.map.bounds, 0.0))  # type: ignore[attr-defined]
                second = b.select(is_last, zero, code_at(b.add(first, I64(1))))
                return b.or_(b.shl(code_at(first), I8(4)), second)

            index, first, ends = b.add(stretch, own), own, left
            per, make = EACH, cast(Callable[[Any], Any], code_at)
            if codec.format.per_byte == 2:
                index, first = b.lshr(index, I64(1)), I64(0)
                ends = b.lshr(b.add(left, I64(1)), I64(1))
                per, make = EACH // 2, byte_at
            at_once = b.and_(aligned, b.icmp_signed("==", ends, I64(per)))
            with b.if_else(at_once) as (then, otherwise):
                with then:
                    made = [make(b.add(first, I64(k))) for k in range(per)]
                    self._put(codes, index, made, per)
                with otherwise, counted(b, ends) as k:
                    self._put(codes, b.add(index, k), [make(b.add(first, k))], 0)
