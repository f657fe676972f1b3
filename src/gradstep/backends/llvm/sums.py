"""Sums and maxima of a line's values, as LLVM code.

They are taken in float64, in lanes that are added up in a fixed order, so that no bit depends on
the vector width.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from gradstep.backends.llvm.element import F32, F64, I64, POINTER, VOID, as_type
from gradstep.program.loops import counted, internal
from gradstep.rule.graph import Node

#: One addition waits four cycles for the one before it, so several vectors are summed in turn.
LANES = 32

I32 = ir.IntType(32)
F64_LANES = ir.VectorType(F64, LANES)


def neutral(node: Node) -> float:
    """What changes nothing."""
    return float("-inf") if node.operation == "max" else 0.0


def combined(b: ir.IRBuilder, node: Node, a: Any, x: Any) -> Any:
    """Their sum; or the larger, nan where either is."""
    if node.operation != "max":
        return b.fadd(a, x)
    larger = b.or_(b.fcmp_ordered(">", x, a), b.fcmp_unordered("uno", x, x))
    return b.select(larger, x, a)


class LaneSum:
    """A sum that a loop takes in lanes, lane k the elements k, k + LANES, k + 2 · LANES, …

    Args:
        b: stands at the start of the loop's body, behind nothing but other phis.
        node: the reduction.
        before: the block from which the loop is entered.
    """

    def __init__(self, b: ir.IRBuilder, node: Node, before: Any) -> None:
        self._b = b
        self._node = node
        self._before = before
        self._begin = ir.Constant(F64_LANES, [ir.Constant(F64, neutral(node))] * LANES)
        self._start = b.phi(F64_LANES)
        self._start.add_incoming(self._begin, before)
        self._total: Any = self._start

    def add(self, values: Any) -> None:
        """Take in a vector of values."""
        wide = as_type(self._b, values, F64_LANES)
        self._total = combined(self._b, self._node, self._total, wide)

    def close(self) -> None:
        """The loop's body ends here."""
        self._body = self._b.block
        self._start.add_incoming(self._total, self._body)

    def end(self) -> None:
        """The loop has ended; nothing but other phis stands behind it."""
        self._end = self._b.phi(F64_LANES)
        self._end.add_incoming(self._begin, self._before)
        self._end.add_incoming(self._total, self._body)

    def joined(self) -> Any:
        """The lanes' sum: those of the second half added to the first's, until eight are left.

        And those in pairs.
        """
        b, part, width = self._b, self._end, LANES
        while width > 8:
            width //= 2
            halves = [
                b.shuffle_vector(part, part, ir.Constant(ir.VectorType(I32, width), list(places)))
                for places in (range(width), range(width, 2 * width))
            ]
            part = combined(b, self._node, *halves)
        parts = [b.extract_element(part, ir.Constant(I32, k)) for k in range(width)]
        return _in_pairs(b, self._node, parts)


def _in_pairs(b: ir.IRBuilder, node: Node, parts: list[Any]) -> Any:
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [combined(b, node, left, right) for left, right in pairs]
    return parts[0]


def joined_lanes(b: ir.IRBuilder, node: Node, parts: list[Any]) -> Any:
    """The sum of lanes that are one value each, in the order of :meth:`LaneSum.joined`."""
    while len(parts) > 8:
        width = len(parts) // 2
        halves = zip(parts[:width], parts[width:], strict=True)
        parts = [combined(b, node, left, right) for left, right in halves]
    return _in_pairs(b, node, parts)


class SumCode:
    """Writes the functions that sum, each once.

    Args:
        module: what they are written into.
        real: the type of a line's values.
    """

    def __init__(self, module: ir.Module, real: Any) -> None:
        self._module = module
        self._real = real
        # Buffers and pieces of them are aligned to their elements only.
        self._align = 4 if real is F32 else 8

    def _function(self, name: str, node: Node, kind: Any) -> tuple[ir.Function, bool]:
        name = f"{name}_{'max' if node.operation == 'max' else 'sum'}"
        known = self._module.globals.get(name)
        return known or ir.Function(self._module, kind, name), known is not None

    def gather(self, node: Node) -> ir.Function:
        """Of a line and its length the sum.

        A short line is summed as it is read.
        """
        kind = ir.FunctionType(F64, [POINTER, I64])
        function, known = self._function("gather", node, kind)
        if known:
            return function
        line, count = function.args
        b = internal(function)
        vector = ir.VectorType(self._real, LANES)
        # The buffer has room for a vector behind its last element.
        filler = ir.Constant(vector, [ir.Constant(self._real, neutral(node))] * LANES)
        b.store(filler, b.gep(line, [count], source_etype=self._real), align=self._align)
        before = b.block
        with counted(b, count, LANES) as index:
            total = LaneSum(b, node, before)
            address = b.gep(line, [index], source_etype=self._real)
            total.add(b.load(address, align=self._align, typ=vector))
            total.close()
        total.end()
        b.ret(total.joined())
        return function

    def add_line(self, node: Node) -> ir.Function:
        """Adds a line to running sums, or begins them with it."""
        kind = ir.FunctionType(VOID, [POINTER, POINTER, I64, ir.IntType(1)])
        function, known = self._function("add_line", node, kind)
        if known:
            return function
        into, line, count, is_first = function.args
        b = internal(function, into, line)
        with counted(b, count) as index:
            address = b.gep(line, [index], source_etype=self._real)
            wide = as_type(b, b.load(address, typ=self._real), F64)
            place = b.gep(into, [index], source_etype=F64)
            start = ir.Constant(F64, neutral(node))
            before = b.select(is_first, start, b.load(place, typ=F64))
            b.store(combined(b, node, before, wide), place)
        b.ret_void()
        return function
