"""Walks: how a pass goes through tensors, cut into tiles, the pieces of work.

Flat: each element by itself, and a tile is a stretch of elements as they lie in memory.

In lines, where a pass reduces: a tensor is outer × middle × inner: matrices, their rows, their
columns; a line is a stretch along the inner dimension. How it is cut depends on its shape alone,
never on the number of threads, so that sums have the same bits whoever takes which tile. A tensor
whose rows and columns play no role is cut as it lies in memory, in lines of one length and a
shorter last one.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

#: Elements a line, at most: values to be summed lie in the fastest cache for a line at a time.
LINE = 2048

#: Elements a line of a tensor that is cut as it lies in memory: of four lines side by side, what is
#: read and what is summed fit the fastest cache. 58 M elements are summed in 12.9 ms, with 2048 in
#: 14.0, with 4096 in 15.4.
FLAT_LINE = 1024

#: Elements a tile, about. Column sums take a float64 a column and tile: 1/64 of the tile here.
TILE = 1 << 17

#: Walk -> a tile's numbers, in this order, for the kernel.
FIELDS = {
    "flat": (
        "tensor",  # its place in the table of tensors
        "start",  # the first element
        "count",  # how many
    ),
    "lines": (
        "tensor",
        "row",  # its row of places and of scalars
        "number",  # among the tiles of its tensor
        "outer",
        "outers",
        "middle",
        "middles",
        "inner",
        "inners",
        "last_inners",  # of the tile's last line
        "middle_size",  # of the tensor
        "inner_size",
        "inner_tile",  # among the tiles beside each other in a line's direction
        "middle_tile",  # among those across
        "lines",  # of the tensor, outer · middle
        "columns",  # outer · inner
    ),
}


def flat_tiles(sizes: Sequence[int]) -> array[int]:
    """The tiles of a flat walk through tensors of these sizes."""
    if max(sizes) <= TILE and min(sizes):
        found = array("q", bytes(3 * 8 * len(sizes)))
        found[::3], found[2::3] = array("q", range(len(sizes))), array("q", sizes)
        return found
    found = array("q")
    for tensor, size in enumerate(sizes):
        for start in range(0, size, TILE):
            found.extend((tensor, start, min(TILE, size - start)))
    return found


@dataclass(frozen=True)
class Geometry:
    """A tensor as outer × middle × inner."""

    outer: int
    middle: int
    inner: int
    flat: int | None = None

    def inner_tiles(self) -> int:
        """How many tiles lie beside each other in a line's direction."""
        return -(-self.inner // LINE)

    def middles(self) -> int:
        """How many lines a tile has, at most."""
        return max(1, TILE // max(1, min(self.inner, LINE)))

    def middle_tiles(self) -> int:
        """How many tiles lie across."""
        return -(-self.middle // self.middles())

    def outers(self) -> int:
        """How many matrices a tile has, at most: one unless each is small."""
        if self.inner_tiles() > 1 or self.middle_tiles() > 1:
            return 1
        return max(1, TILE // max(1, self.middle * self.inner))

    def count(self) -> int:
        """How many tiles it has."""
        return self._count

    # Thousands of small tensors have few shapes: what hangs on the shape alone is worked out once.
    @cached_property
    def _count(self) -> int:
        return -(-self.outer // self.outers()) * self.middle_tiles() * self.inner_tiles()

    @cached_property
    def _only(self) -> tuple[int, ...] | None:
        """The numbers of the one tile of a small tensor, without the first two."""
        return tuple(self._cut(0, 0))[2:] if self._count == 1 else None

    def tiles(self, tensor: int, row: int) -> Iterable[int]:
        """The numbers of all tiles, one after the other."""
        return self._cut(tensor, row) if self._only is None else (tensor, row, *self._only)

    def _cut(self, tensor: int, row: int) -> Iterator[int]:
        number = 0
        for outer in range(0, self.outer, self.outers()):
            outers = min(self.outers(), self.outer - outer)
            for middle_tile in range(self.middle_tiles()):
                middle = middle_tile * self.middles()
                middles = min(self.middles(), self.middle - middle)
                for inner_tile in range(self.inner_tiles()):
                    inner = inner_tile * LINE
                    inners = last = min(LINE, self.inner - inner)
                    if self.flat is not None and middle + middles == self.middle:
                        last = self.flat - (self.middle - 1) * self.inner
                    yield from (
                        tensor, row, number, outer, outers, middle, middles, inner, inners, last,
                        self.middle, self.inner, inner_tile, middle_tile,
                        self.outer * self.middle, self.outer * self.inner,
                    )  # fmt: skip
                    number += 1


@lru_cache(1024)
def flat(elements: int) -> Geometry:
    """The geometry of a tensor as it lies in memory."""
    if elements <= FLAT_LINE:
        return Geometry(1, 1, elements)
    return Geometry(1, -(-elements // FLAT_LINE), FLAT_LINE, elements)


@lru_cache(1024)
def of_matrices(matrices: int, rows: int, columns: int, domain: str) -> Geometry:
    """The geometry of a tensor's elements, or of what is kept for its rows, columns or matrices."""
    if domain == "element":
        return Geometry(matrices, rows, columns)
    if domain == "row":
        return Geometry(1, matrices, rows)
    if domain == "column":
        return Geometry(1, matrices, columns)
    return Geometry(1, 1, matrices)
