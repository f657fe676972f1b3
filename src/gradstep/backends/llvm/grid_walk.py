"""Write the kernel of a pass for a device of blocks and threads, as LLVM code.

A piece of work, a chunk or a tile, is a block's; its threads take elements side by side. No order
among them has a part in any bit: an element's work is that of :mod:`gradstep.backends.llvm.element`
for every processor.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import chain
from typing import Any

from llvmlite import ir

from gradstep.backends.llvm.element import F64, I64, ElementCode, Memory, as_type
from gradstep.backends.llvm.grid import THREADS, Grid
from gradstep.backends.llvm.line import codec_of, given, real_type
from gradstep.program.formats import format_of
from gradstep.program.kernel_spec import KernelSpec
from gradstep.program.loops import strided
from gradstep.program.walks import FIELDS

#: Elements a chunk of a flat walk: 64 a thread. A multiple of all vectors and blocks of codes.
CHUNK = 1 << 14

#: The arguments of ``run``: addresses and integers, 64 bits each.
ARGUMENTS = (
    "table",  # for each of n tensors its weight; for each its gradient; for each its row of states
    "scalars",  # float64, a row a tensor, or one for all
    "distance",  # of two such rows: 0 where there is one for all
    "tensors",  # n
    "row_width",  # the length of a row of states
    "arena",  # where kept values and partial sums lie
    "places",  # for each tensor a row of offsets into the arena, in bytes
    "places_width",  # the length of such a row
    "tiles",  # FIELDS numbers each
    "tile_count",
    "skip",  # 0, or where a float32 lies: nothing is written where that is not 0
)
POINTERS = ("table", "scalars", "arena", "places", "tiles")


def chunks(sizes: Sequence[int]) -> array[int]:
    """The chunks of a flat walk through tensors of these sizes: FIELDS numbers each."""
    return array(
        "q",
        chain.from_iterable(
            (tensor, start, min(CHUNK, size - start))
            for tensor, size in enumerate(sizes)
            for start in range(0, size, CHUNK)
        ),
    )


def unwritable(spec: KernelSpec) -> str | None:
    """Why no such kernel is written for a pass; None if one is."""
    if spec.walk != "flat":
        return "its rule looks at more than one element"
    coded = [column.format for column in spec.columns if codec_of(column) is not None]
    return f"it is stored as {coded[0]}" if coded else None


def lanes_of(spec: KernelSpec) -> int:
    """Elements that a thread takes at once: 16 bytes of the narrowest column."""
    narrowest = min(format_of(column.format).item_bytes for column in spec.columns)
    return spec.target.vector_bytes // narrowest


def write_grid_kernel(spec: KernelSpec) -> str:
    """The code of a pass: a module with the function ``run``.

    Raises:
        ValueError: a pass that :func:`unwritable` names.
    """
    reason = unwritable(spec)
    if reason is not None:
        raise ValueError(f"no kernel is written for a grid: {reason}")
    module = ir.Module(name="gradstep")
    _FlatGrid(module, spec).write()
    return str(module)


class _FlatGrid:
    """Over elements as they lie in memory."""

    def __init__(self, module: ir.Module, spec: KernelSpec) -> None:
        self.spec = spec
        self.grid = Grid(module, spec.target, "run", ARGUMENTS, POINTERS)
        self.b = self.grid.b
        converts = spec.target.converts_half
        self.memories = [Memory(column.format, converts) for column in spec.columns]

    def write(self) -> None:
        """Take chunks, and work on the elements of each."""
        b, grid = self.b, self.grid
        grid.stop_where("skip")
        with grid.pieces(grid.given["tile_count"]) as piece:
            at = b.mul(piece, I64(len(FIELDS["flat"])))
            tensor, start, count = (
                grid.integer(grid.given["tiles"], b.add(at, I64(i))) for i in range(3)
            )
            row = b.gep(
                grid.given["scalars"], [b.mul(tensor, grid.given["distance"])], source_etype=F64
            )
            columns = [
                b.gep(
                    self._tensor(column.table[0], tensor),
                    [b.mul(start, I64(format_of(column.format).item_bytes))],
                    source_etype=ir.IntType(8),
                )
                for column in self.spec.columns
            ]
            self._elements(columns, count, row)
        b.ret_void()

    def _tensor(self, place: int, tensor: Any) -> Any:
        """Where a tensor of the table begins."""
        b, given = self.b, self.grid.given
        n = given["tensors"]
        if place == 0:
            index = tensor
        elif place == 1:
            index = b.add(n, tensor)
        else:
            own = b.add(b.mul(tensor, given["row_width"]), I64(place - 2))
            index = b.add(b.add(n, n), own)
        return b.inttoptr(self.grid.integer(given["table"], index), self.grid.pointer)

    def _elements(self, columns: list[Any], count: Any, row: Any) -> None:
        """The elements of a chunk: whole vectors, and one by one what is left."""
        b, lanes = self.b, lanes_of(self.spec)
        bits = b.ptrtoint(columns[0], I64)
        for column in columns[1:]:
            bits = b.or_(bits, b.ptrtoint(column, I64))
        apart = b.and_(bits, I64(self.spec.target.vector_bytes - 1))
        whole = b.select(b.icmp_unsigned("==", apart, I64(0)), b.and_(count, I64(-lanes)), I64(0))
        with self.grid.threads() as thread:
            self._loop(columns, b.mul(thread, I64(lanes)), whole, row, lanes)
            self._loop(columns, b.add(whole, thread), count, row, 0)

    def _loop(self, columns: list[Any], first: Any, count: Any, row: Any, lanes: int) -> None:
        b, spec = self.b, self.spec
        element = ElementCode(b, real_type(spec), lanes)
        given(element, spec, row)
        align = spec.target.vector_bytes if lanes else 0
        with strided(b, first, count, I64(THREADS * max(1, lanes))) as index:
            for node, number in spec.loads:
                value = self.memories[number].load(b, columns[number], index, lanes, align)
                element.values[id(node)] = as_type(b, value, _in_lanes(element.real, lanes))
            for node in spec.work:
                element.write(node)
            for node, number in spec.stores:
                memory = self.memories[number]
                stored = as_type(b, element.values[id(node)], _in_lanes(memory.real, lanes))
                memory.store(b, stored, columns[number], index, align)


def _in_lanes(kind: Any, lanes: int) -> Any:
    return ir.VectorType(kind, lanes) if lanes else kind
