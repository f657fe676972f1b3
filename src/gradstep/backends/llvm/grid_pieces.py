"""Pieces of work for blocks of threads, as LLVM code: where what a piece needs lies.

A piece, a chunk or a tile, is a block's; its threads take elements side by side. No order among
them has a part in any bit: an element's work is that of :mod:`gradstep.backends.llvm.element` for
every processor.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from llvmlite import ir

from gradstep.backends.llvm.element import F64, I64, ElementCode, Memory, as_type
from gradstep.backends.llvm.grid import Grid
from gradstep.backends.llvm.line import address, codec_of, items_of
from gradstep.program.kernel_spec import Column, KernelSpec
from gradstep.program.walks import FIELDS
from gradstep.program.weight_codecs import WeightCodec, load_part, store_part

I8 = ir.IntType(8)

#: For each column where each of its tensors lies.
Columns = list[list[Any]]

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


class GridWalk:
    """Writes ``run``: pieces of work, and where what they need lies."""

    def __init__(self, module: ir.Module, spec: KernelSpec) -> None:
        self.spec = spec
        self.grid = Grid(module, spec.target, "run", ARGUMENTS, POINTERS)
        self.b = self.grid.b
        converts = spec.target.converts_half
        self.codecs = [codec_of(column) for column in spec.columns]
        self.memories = [
            Memory("float32" if codec_of(column) else column.format, converts)
            for column in spec.columns
        ]

    def write(self) -> None:
        """Take chunks or tiles, and work on each."""
        b, grid, given = self.b, self.grid, self.grid.given
        fields = FIELDS[self.spec.walk]
        grid.stop_where("skip")
        with grid.pieces(given["tile_count"]) as piece:
            at = b.mul(piece, I64(len(fields)))
            f = {
                name: grid.integer(given["tiles"], b.add(at, I64(i)))
                for i, name in enumerate(fields)
            }
            number = f.get("row", f["tensor"])
            row = b.gep(given["scalars"], [b.mul(number, given["distance"])], source_etype=F64)
            starts = [
                [self.in_table(place, f["tensor"]) for place in column.table]
                or [self.in_arena(column.place, number)]
                for column in self.spec.columns
            ]
            self.walk(f, row, starts)
        b.ret_void()

    def walk(self, f: dict[str, Any], row: Any, starts: Columns) -> None:
        """The work on a piece.

        Args:
            f: its numbers, by name.
            row: where its tensor's scalars lie.
            starts: where each tensor of each column begins.
        """
        raise NotImplementedError

    def in_table(self, place: int, tensor: Any) -> Any:
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

    def in_arena(self, place: int, number: Any) -> Any:
        b, given = self.b, self.grid.given
        own = b.add(b.mul(number, given["places_width"]), I64(place))
        offset = self.grid.integer(given["places"], own)
        return b.gep(given["arena"], [offset], source_etype=I8)

    def behind(self, starts: list[Any], column: Column, index: Any) -> list[Any]:
        """Where the element at an index lies in each tensor of a column."""
        pairs = zip(starts, items_of(column), strict=True)
        return [address(self.b, start, index, item) for start, item in pairs]

    def load(self, element: ElementCode, columns: Columns, pair: Any, index: Any) -> None:
        """Read a value; where the element's code has lanes, as many from the index on."""
        (node, number), lanes = pair, element.lanes
        align = self.spec.target.vector_bytes if lanes else 0
        codec, parts = self.codecs[number], columns[number]
        if isinstance(codec, WeightCodec):
            pairs = zip(parts, codec.kinds, strict=True)
            stored = [load_part(self.b, part, index, kind) for part, kind in pairs]
            value = codec.read(self.b, stored)
        else:
            value = self.memories[number].load(self.b, parts[0], index, lanes, align)
        element.values[id(node)] = as_type(self.b, value, _in_lanes(element.real, lanes))

    def store(
        self,
        element: ElementCode,
        columns: Columns,
        pair: Any,
        index: Any,
        begun: Mapping[int, Any] = MappingProxyType({}),
    ) -> None:
        """Write a value, or as many; ``begun`` is what :meth:`begin` has given."""
        (node, number), lanes = pair, element.lanes
        memory = self.memories[number]
        align = self.spec.target.vector_bytes if lanes else 0
        value = as_type(self.b, element.values[id(node)], _in_lanes(memory.real, lanes))
        codec = self.codecs[number]
        if isinstance(codec, WeightCodec):
            made = codec.write(self.b, value, index, begun[number])
            for each, part in zip(made, columns[number], strict=True):
                store_part(self.b, each, part, index)
        else:
            memory.store(self.b, value, columns[number][0], index, align)

    def begin(self, row: Any, first: Any) -> dict[int, Any]:
        """What the codecs of weights work out before elements are written, by column.

        ``first`` is the place of the element in its tensor from which on they are counted.
        """
        found: dict[int, Any] = {}
        for number, codec in enumerate(self.codecs):
            if isinstance(codec, WeightCodec):
                counter = None
                if codec.is_random:
                    last = I64(max(0, len(self.spec.scalars) - 1))
                    at = self.b.gep(row, [last], source_etype=F64)
                    counter = (first, self.b.load(at, typ=F64, align=8))
                found[number] = codec.begin(self.b, counter)
        return found


def _in_lanes(kind: Any, lanes: int) -> Any:
    return ir.VectorType(kind, lanes) if lanes else kind
