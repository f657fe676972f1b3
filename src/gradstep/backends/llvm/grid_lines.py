"""Passes that sum, by tiles and lines, for blocks of threads: the CPU's tiles, lines and order.

A block has a tile, and a warp a line of it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from gradstep.backends.llvm.element import F64, I64, ElementCode, as_type
from gradstep.backends.llvm.grid import THREADS
from gradstep.backends.llvm.grid_pieces import Columns, GridWalk
from gradstep.backends.llvm.line import given, lies_along, real_type
from gradstep.backends.llvm.sums import LANES, combined, joined_lanes, neutral
from gradstep.program.kernel_spec import KernelSpec
from gradstep.program.loops import counted, strided
from gradstep.rule.graph import Node

#: Warps a block: as many lines are worked on at once.
WARPS = THREADS // LANES


class LineGrid(GridWalk):
    """Over matrices and their lines, a tile a block and a line a warp.

    A sum has the order of the CPU's: lane k of a warp adds up elements k, k + 32, … of its line,
    the lanes are joined, and lines added one after the other. A sum for each column is one thread's
    who goes from line to line.
    """

    def __init__(self, module: ir.Module, spec: KernelSpec) -> None:
        super().__init__(module, spec)
        is_across = [spec.domain == "element" and n.extent == "column" for n, _ in spec.sums]
        pairs = list(zip(spec.sums, is_across, strict=True))
        self.across = [pair for pair, across in pairs if across]
        self.along = [pair for pair, across in pairs if not across]
        size = max(1, len(self.along))
        if self.along:
            self.lanes = self.grid.shared("lanes", F64, THREADS * size)
            self.lines = self.grid.shared("lines", F64, WARPS * size)
            self.totals = self.grid.shared("totals", F64, size)

    def walk(self, f: dict[str, Any], row: Any, starts: Columns) -> None:
        if self.across:  # before anything is written
            with self.grid.threads(wait=True) as thread:
                self._sum_across(f, row, starts, thread)
        if self.along or self.spec.stores:
            self._lines(f, row, starts)

    def _element(self, row: Any) -> ElementCode:
        element = ElementCode(self.b, real_type(self.spec))
        given(element, self.spec, row)
        return element

    def _columns_of_line(self, f: dict[str, Any], starts: Columns, o: Any, m: Any) -> Columns:
        """Where each column's share of line m of matrix o begins."""
        b, domain = self.b, self.spec.domain
        line = b.add(b.mul(o, f["middle_size"]), m)
        first = b.add(b.mul(line, f["inner_size"]), f["inner"])
        if domain == "element":
            column = b.add(b.mul(o, f["inner_size"]), f["inner"])
            index_of = {"element": first, "row": line, "column": column, "matrix": o}
        else:  # of what is kept for rows or columns, a line goes along those of some matrices
            index_of = {"matrix": m, domain: first}
        pairs = zip(starts, self.spec.columns, strict=True)
        return [self.behind(start, column, index_of[column.extent]) for start, column in pairs]

    def _load(self, element: ElementCode, columns: Columns, index: Any, along: bool) -> None:
        for pair in self.spec.loads:
            if lies_along(self.spec, self.spec.columns[pair[1]]) == along:
                self.load(element, columns, pair, index)

    def _sum_across(self, f: dict[str, Any], row: Any, starts: Columns, thread: Any) -> None:
        b = self.b
        with strided(b, thread, f["inners"], I64(THREADS)) as place, counted(b, f["outers"]) as k:
            o = b.add(f["outer"], k)
            element, before = self._element(row), b.block
            with counted(b, f["middles"]) as line:
                totals = [_Total(b, node, before) for node, _ in self.across]
                m = b.add(f["middle"], line)
                columns = self._columns_of_line(f, starts, o, m)
                self._load(element, columns, I64(0), along=False)
                self._load(element, columns, place, along=True)
                for node in self.spec.work:
                    element.write(node)
                for total in totals:
                    total.add(element.values[id(total.node.arguments[0])])
            ends = [total.end() for total in totals]
            column = b.add(b.add(b.mul(o, f["inner_size"]), f["inner"]), place)
            at = b.add(b.mul(f["columns"], f["middle_tile"]), column)
            for (_, number), end in zip(self.across, ends, strict=True):
                partial = self.in_arena(number, f["row"])
                b.store(end, b.gep(partial, [at], source_etype=F64), align=8)

    def _lines(self, f: dict[str, Any], row: Any, starts: Columns) -> None:
        b, grid = self.b, self.grid
        count = b.mul(f["outers"], f["middles"])
        whole = [(k, node) for k, (node, _) in enumerate(self.along) if node.extent == "tensor"]
        if whole:
            with grid.threads(wait=True) as thread, self._of_one(thread, I64(0)):
                for k, node in whole:
                    b.store(ir.Constant(F64, neutral(node)), self._shared(self.totals, I64(k)))
        with counted(b, count, WARPS) as base:
            with grid.threads(wait=bool(self.along)) as thread:
                self._line(f, row, starts, b.add(base, b.lshr(thread, I64(5))), count, thread)
            if self.along:
                with grid.threads(wait=True) as thread:
                    self._join_lanes(f, base, count, thread)
            if whole:
                with grid.threads(wait=True) as thread:
                    for k, node in whole:
                        with self._of_one(thread, I64(LANES * (k % WARPS))):
                            self._add_lines(k, node, base, count)
        with grid.threads(wait=bool(whole)) as thread, self._of_one(thread, I64(0)):
            for k, _ in whole:
                partial = self.in_arena(self.along[k][1], f["row"])
                total = b.load(self._shared(self.totals, I64(k)), typ=F64, align=8)
                b.store(total, b.gep(partial, [f["number"]], source_etype=F64), align=8)

    def _of_one(self, thread: Any, number: Any) -> Any:
        return self.b.if_then(self.b.icmp_signed("==", thread, number))

    def _shared(self, array: Any, index: Any) -> Any:
        return self.b.gep(array, [index], source_etype=F64)

    def _matrix_and_line(self, f: dict[str, Any], number: Any) -> tuple[Any, Any]:
        """Of a line of the tile, by its number: its matrix, and its number there."""
        b = self.b
        matrix = b.udiv(number, f["middles"])
        line = b.sub(number, b.mul(matrix, f["middles"]))
        return b.add(f["outer"], matrix), b.add(f["middle"], line)

    def _line(
        self,
        f: dict[str, Any],
        row: Any,
        starts: Columns,
        own: Any,
        count: Any,
        thread: Any,
    ) -> None:
        """A thread's share of a line: what is written, and the sums of its lane."""
        b = self.b
        there = b.icmp_signed("<", own, count)
        o, m = self._matrix_and_line(f, b.select(there, own, b.sub(count, I64(1))))
        end = b.add(f["middle"], f["middles"])
        is_last = b.icmp_signed("==", b.add(m, I64(1)), end)
        size = b.select(is_last, f["last_inners"], f["inners"])
        size = b.select(there, size, I64(0))
        columns = self._columns_of_line(f, starts, o, m)
        element = self._element(row)
        self._load(element, columns, I64(0), along=False)
        place = b.mul(b.add(b.mul(o, f["middle_size"]), m), f["inner_size"])
        begun = self.begin(row, b.add(place, f["inner"]))
        lane, before = b.and_(thread, I64(LANES - 1)), b.block
        with strided(b, lane, size, I64(LANES)) as index:
            totals = [_Total(b, node, before) for node, _ in self.along]
            self._load(element, columns, index, along=True)
            for node in self.spec.work:
                element.write(node)
            for pair in self.spec.stores:
                self.store(element, columns, pair, index, begun)
            for total in totals:
                total.add(element.values[id(total.node.arguments[0])])
        ends = [total.end() for total in totals]
        for k, end in enumerate(ends):
            b.store(end, self._shared(self.lanes, b.add(thread, I64(THREADS * k))), align=8)

    def _join_lanes(self, f: dict[str, Any], base: Any, count: Any, thread: Any) -> None:
        """Each sum of each line, of its lanes: a warp a sum and a thread a line."""
        b = self.b
        warp, line = b.lshr(thread, I64(5)), b.and_(thread, I64(LANES - 1))
        own = b.add(base, line)
        there = b.and_(b.icmp_signed("<", line, I64(WARPS)), b.icmp_signed("<", own, count))
        for k, (node, number) in enumerate(self.along):
            mine = b.icmp_signed("==", warp, I64(k % WARPS))
            with b.if_then(b.and_(mine, there)):
                self._join(f, k, node, number, own, line)

    def _join(
        self, f: dict[str, Any], k: int, node: Node, number: int, own: Any, warp: Any
    ) -> None:
        """The sum of a line, of its lanes."""
        b = self.b
        first = b.add(b.mul(warp, I64(LANES)), I64(THREADS * k))
        lanes = [
            b.load(self._shared(self.lanes, b.add(first, I64(lane))), typ=F64, align=8)
            for lane in range(LANES)
        ]
        value = joined_lanes(b, node, lanes)
        if node.extent == "tensor":
            place = b.add(warp, I64(WARPS * k))
            b.store(value, self._shared(self.lines, place), align=8)
            return
        o, m = self._matrix_and_line(f, own)
        line = m
        if self.spec.domain == "element":
            line = b.add(b.mul(o, f["middle_size"]), m)
        place = b.add(b.mul(f["lines"], f["inner_tile"]), line)
        partial = self.in_arena(number, f["row"])
        b.store(value, b.gep(partial, [place], source_etype=F64), align=8)

    def _add_lines(self, k: int, node: Node, base: Any, count: Any) -> None:
        """Add the sums of some lines to the tile's, one after the other."""
        b = self.b
        at = self._shared(self.totals, I64(k))
        total, before = b.load(at, typ=F64, align=8), b.block
        left = b.sub(count, base)
        few = b.select(b.icmp_signed("<", left, I64(WARPS)), left, I64(WARPS))
        with counted(b, few) as line:
            running = _Total(b, node, before, total)
            place = b.add(line, I64(WARPS * k))
            running.add(b.load(self._shared(self.lines, place), typ=F64, align=8))
        b.store(running.end(), at, align=8)


class _Total:
    """A sum that a loop takes, in float64.

    Args:
        b: stands at the start of the loop's body, behind nothing but other phis.
        node: the reduction.
        before: the block from which the loop is entered.
        start: what is there already; None for what changes nothing.
    """

    def __init__(self, b: ir.IRBuilder, node: Node, before: Any, start: Any = None) -> None:
        self._b, self.node, self._before = b, node, before
        self._begin = ir.Constant(F64, neutral(node)) if start is None else start
        self._sum = b.phi(F64)
        self._sum.add_incoming(self._begin, before)

    def add(self, value: Any) -> None:
        """Take in a value, at the end of the loop's body."""
        wide = as_type(self._b, value, F64)
        self._total = combined(self._b, self.node, self._sum, wide)
        self._body = self._b.block
        self._sum.add_incoming(self._total, self._body)

    def end(self) -> Any:
        """The sum, where the loop has ended and nothing but other phis stands behind it."""
        end = self._b.phi(F64)
        end.add_incoming(self._begin, self._before)
        end.add_incoming(self._total, self._body)
        return end
