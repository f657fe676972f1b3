"""Sums and maxima of a line's values, as LLVM code.

They are taken in float64, in lanes that are added up in a fixed order, so that no bit depends on
the vector width.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from gradstep.engine.llvm.element import F32, F64, I64, POINTER, VOID
from gradstep.engine.llvm.loop import counted, internal
from gradstep.rule.graph import Node

#: One addition waits four cycles for the one before it, so several vectors are summed in turn.
LANES = 32

I32 = ir.IntType(32)


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

    @staticmethod
    def neutral(node: Node) -> float:
        """What changes nothing."""
        return float("-inf") if node.operation == "max" else 0.0

    @staticmethod
    def combined(b: ir.IRBuilder, node: Node, a: Any, x: Any) -> Any:
        """Their sum; or the larger, nan where either is."""
        if node.operation != "max":
            return b.fadd(a, x)
        larger = b.or_(b.fcmp_ordered(">", x, a), b.fcmp_unordered("uno", x, x))
        return b.select(larger, x, a)

    def _function(self, name: str, node: Node, kind: Any) -> tuple[ir.Function, bool]:
        name = f"{name}_{'max' if node.operation == 'max' else 'sum'}"
        known = self._module.globals.get(name)
        return known or ir.Function(self._module, kind, name), known is not None

    def gather(self, node: Node) -> ir.Function:
        """Of a line and its length the sum.

        In lanes, lane k taking in the elements k, k + LANES, k + 2 · LANES, … In the end the lanes
        of the second half are added to those of the first, until eight are left, and those in
        pairs: so a short line is summed as it is read.
        """
        kind = ir.FunctionType(F64, [POINTER, I64])
        function, known = self._function("gather", node, kind)
        if known:
            return function
        line, count = function.args
        b = internal(function)
        vector, lanes = ir.VectorType(self._real, LANES), ir.VectorType(F64, LANES)
        neutral = self.neutral(node)
        # The buffer has room for a vector behind its last element.
        filler = ir.Constant(vector, [ir.Constant(self._real, neutral)] * LANES)
        b.store(filler, b.gep(line, [count], source_etype=self._real), align=self._align)
        begin = ir.Constant(lanes, [ir.Constant(F64, neutral)] * LANES)
        before = b.block
        with counted(b, count, LANES) as index:
            total = b.phi(lanes)
            total.add_incoming(begin, before)
            address = b.gep(line, [index], source_etype=self._real)
            values = b.load(address, align=self._align, typ=vector)
            wide = values if self._real is F64 else b.fpext(values, lanes)
            new_total = self.combined(b, node, total, wide)
            total.add_incoming(new_total, b.block)
            body = b.block
        part = b.phi(lanes)
        part.add_incoming(begin, before)
        part.add_incoming(new_total, body)
        width = LANES
        while width > 8:
            width //= 2
            halves = [
                b.shuffle_vector(part, part, ir.Constant(ir.VectorType(I32, width), list(places)))
                for places in (range(width), range(width, 2 * width))
            ]
            part = self.combined(b, node, *halves)
        parts = [b.extract_element(part, ir.Constant(I32, k)) for k in range(width)]
        while len(parts) > 1:
            pairs = zip(parts[::2], parts[1::2], strict=True)
            parts = [self.combined(b, node, left, right) for left, right in pairs]
        b.ret(parts[0])
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
            value = b.load(address, typ=self._real)
            wide = value if self._real is F64 else b.fpext(value, F64)
            place = b.gep(into, [index], source_etype=F64)
            start = ir.Constant(F64, self.neutral(node))
            before = b.select(is_first, start, b.load(place, typ=F64))
            b.store(self.combined(b, node, before, wide), place)
        b.ret_void()
        return function
