"""Sums over a table of tensors in one pass that writes nothing.

For whoever looks at weights and gradients. What is summed is a plain function in the language of
rules; its pass is generated like those of a step. Elements are worked out in float64 whatever they
are stored as, so that the square of a tiny gradient is no zero and that of a huge one no infinity.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

import numpy
from torch import Tensor

from gradstep.backends.cpu.compiler import target
from gradstep.backends.cpu.kernel import compiled
from gradstep.backends.cpu.run import run_pass
from gradstep.backends.global_sums import exact_sum
from gradstep.program.kernel_spec import Places, kernel_spec
from gradstep.program.passes import Pass
from gradstep.program.walks import Geometry
from gradstep.rule.symbol import Symbol
from gradstep.rule.trace import Trace

#: Elements a line. Shorter than a step's: with a dozen sums their buffers fit the fastest cache.
SHORT_LINE = 256

#: What is summed: a function of tensors, which returns whole sums and maxima by name.
Summed = Callable[..., Mapping[str, Any]]

_data_ptr = Tensor.data_ptr


class Sums:
    """The machine code of one function for one storage type.

    Args:
        function: takes tensors of one shape, and returns for each name a ``sum(…)`` or a
            ``max(…)`` over a whole tensor, from :mod:`gradstep.rule.reductions`.
        storage: how the tensors' elements are stored, a key of
            :data:`gradstep.program.kernel_spec.ITEM_BYTES`.

    Attributes:
        names: of the totals, in order.
    """

    def __init__(self, function: Summed, storage: str) -> None:
        recorder = Trace({})
        inputs = [recorder.input(name, "element") for name in signature(function).parameters]
        totals = function(*inputs)
        self.names = tuple(totals)
        self._width = len(inputs)
        nodes = list(totals.values())
        for name, node in totals.items():
            if not (isinstance(node, Symbol) and node.operation in ("sum", "max")):
                raise TypeError(f"{name} is no sum and no maximum over a tensor")
        self._largest = [node.operation == "max" for node in nodes]
        one_pass = Pass("element", sums=nodes)
        one_pass.find_needs()
        places = Places()
        for node in nodes:
            places.of(node)
        self._run = compiled(kernel_spec(one_pass, inputs, storage, places, target(), "float64"))
        self._cut: _Cut | None = None

    def __call__(self, rows: Sequence[Sequence[Tensor]], sizes: list[int]) -> Any:
        """The totals of several tensors: a float64 NumPy array, a row for each of ``rows``.

        Args:
            rows: for each the function's arguments: tensors on the CPU of this storage type, alike
                in size, whose elements lie in one stretch of memory in the same order.
            sizes: for each the number of elements; of complex tensors twice as many.

        Raises:
            ValueError: a tensor whose storage was taken away.
        """
        cut = self._cut
        if cut is None or cut.sizes != sizes:
            cut = self._cut = _Cut(sizes, len(self.names))
        pointers = [_data_ptr(row[0]) for row in rows]
        pointers += [_data_ptr(row[1]) for row in rows]
        pointers += [_data_ptr(t) for row in rows for t in row[2:]]
        if not all(pointers) and any(
            size and not all(map(_data_ptr, row)) for size, row in zip(sizes, rows, strict=True)
        ):
            raise ValueError("a tensor has no memory: its storage was resized to nothing")
        table, counter = array("q", pointers), array("q", [0])
        arena = numpy.empty(cut.length, dtype=numpy.float64)
        fixed = (
            len(rows),
            self._width - 2,
            arena.ctypes.data,
            cut.places.buffer_info()[0],
            len(self.names),
            cut.tiles.buffer_info()[0],
            cut.count,
        )
        block = array("q", fixed)
        arguments = (
            table.buffer_info()[0],
            0,
            0,
            counter.buffer_info()[0],
            block.buffer_info()[0],
        )
        run_pass(self._run, arguments, cut.elements, cut.count)
        if cut.count == len(rows):  # one tile each
            return arena.reshape(len(rows), len(self.names))
        return self._joined(arena, cut)

    def _joined(self, arena: Any, cut: _Cut) -> Any:
        found = numpy.empty((len(cut.sizes), len(self.names)))
        start = 0
        for row, count in enumerate(cut.counts):
            parts = arena[start : start + count * len(self.names)].reshape(len(self.names), count)
            start += parts.size
            for column, largest in enumerate(self._largest):
                own = parts[column]
                if largest:
                    found[row, column] = own.max() if count else -math.inf
                else:
                    found[row, column] = exact_sum(own.tolist())
        return found


class _Cut:
    """Tiles of tensors of these sizes, and where each total's parts lie in the arena."""

    def __init__(self, sizes: list[int], totals: int) -> None:
        self.sizes = sizes
        self.elements = sum(sizes)
        self.tiles, self.places, self.counts = array("q"), array("q"), list[int]()
        start = 0
        for tensor, size in enumerate(sizes):
            cut = _short_lines(size)
            count = cut.count() if size else 0
            if count:
                self.tiles.extend(cut.tiles(tensor, tensor))
            self.counts.append(count)
            self.places.extend(8 * (start + k * count) for k in range(totals))
            start += totals * count
        self.length = start
        self.count = sum(self.counts)


def _short_lines(size: int) -> Geometry:
    if size <= SHORT_LINE:
        return Geometry(1, 1, size)
    return Geometry(1, -(-size // SHORT_LINE), SHORT_LINE, size)
