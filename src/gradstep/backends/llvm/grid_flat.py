"""Work on single elements for blocks of threads: by chunks of a tensor as it lies in memory."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import chain
from typing import Any

from gradstep.backends.llvm.element import I64, ElementCode
from gradstep.backends.llvm.grid import THREADS
from gradstep.backends.llvm.grid_pieces import Columns, GridWalk
from gradstep.backends.llvm.line import given, real_type
from gradstep.program.formats import format_of
from gradstep.program.kernel_spec import KernelSpec
from gradstep.program.loops import strided

#: Elements a chunk of a flat walk: 64 a thread. A multiple of all vectors and blocks of codes.
CHUNK = 1 << 14


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


def lanes_of(spec: KernelSpec) -> int:
    """Elements that a thread takes at once: 16 bytes of the narrowest column."""
    narrowest = min(format_of(column.format).item_bytes for column in spec.columns)
    return spec.target.vector_bytes // narrowest


class FlatGrid(GridWalk):
    """Over elements as they lie in memory."""

    def walk(self, f: dict[str, Any], row: Any, starts: Columns) -> None:
        pairs = zip(starts, self.spec.columns, strict=True)
        columns = [self.behind(start, column, f["start"]) for start, column in pairs]
        b, lanes, count = self.b, lanes_of(self.spec), f["count"]
        bits = b.ptrtoint(columns[0][0], I64)
        for (column,) in columns[1:]:
            bits = b.or_(bits, b.ptrtoint(column, I64))
        apart = b.and_(bits, I64(self.spec.target.vector_bytes - 1))
        aligned = b.icmp_unsigned("==", apart, I64(0))
        whole = b.select(aligned, b.and_(count, I64(-lanes)), I64(0))
        with self.grid.threads() as thread:  # whole vectors, and one by one what is left
            self._loop(columns, b.mul(thread, I64(lanes)), whole, row, lanes)
            self._loop(columns, b.add(whole, thread), count, row, 0)

    def _loop(self, columns: Columns, first: Any, count: Any, row: Any, lanes: int) -> None:
        element = ElementCode(self.b, real_type(self.spec), lanes)
        given(element, self.spec, row)
        with strided(self.b, first, count, I64(THREADS * max(1, lanes))) as index:
            for pair in self.spec.loads:
                self.load(element, columns, pair, index)
            for node in self.spec.work:
                element.write(node)
            for pair in self.spec.stores:
                self.store(element, columns, pair, index)
