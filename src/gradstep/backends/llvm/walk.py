"""Write the kernel of a pass, as LLVM code: one function that takes tiles until none is left.

The function ``run`` takes tiles off a shared counter; any number of threads may run it over the
same table at once, and no bit depends on which of them takes which tile. For each line of a tile it
calls the loop over elements, :mod:`gradstep.backends.llvm.line`; of a flat walk the whole tile is
one. What is to be summed is summed line by line, :mod:`gradstep.backends.llvm.sums`, or several
lines at once, :mod:`gradstep.backends.llvm.side_by_side`, to the same bits.

``run`` takes these arguments, all 64 bits wide:

1. table, a pointer: for each of n tensors its weight; then for each its gradient; then for each a
   row of its states, and behind them of those that are one number.
2. scalars, a pointer: float64, a row a tensor, or one for all.
3. the distance of two such rows: 0 where there is one for all.
4. counter, a pointer: the next tile that nobody has taken.
5. a pointer to what is the same in every step, :data:`FIXED`: each argument costs a call as much
   as ten elements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from gradstep.backends.llvm.element import F64, I64, POINTER, VOID
from gradstep.backends.llvm.line import address, items_of, lies_along, real_type, write_line
from gradstep.backends.llvm.prefetch import prefetch_lines
from gradstep.backends.llvm.side_by_side import lines_at_once, write_side_by_side
from gradstep.backends.llvm.sums import LANES, SumCode, combined, neutral
from gradstep.program.kernel_spec import KernelSpec
from gradstep.program.walks import FIELDS, LINE

I8 = ir.IntType(8)

#: The types of the arguments of ``run``.
ARGUMENTS = (POINTER, POINTER, I64, POINTER, POINTER)

#: What the last of them points at: 64-bit integers, in this order.
FIXED = (
    "tensors",  # n
    "row_width",  # the length of a row of states
    "arena",  # a pointer: where kept values and partial sums lie
    "places",  # a pointer: for each tensor a row of offsets into the arena, in bytes
    "places_width",  # the length of such a row
    "tiles",  # a pointer: :data:`gradstep.program.walks.FIELDS` numbers each
    "tile_count",
)


def write_kernel(spec: KernelSpec) -> str:
    """The code of a pass: a module with the function ``run``."""
    module = ir.Module(name="gradstep")
    walk = _FlatWalk if spec.walk == "flat" else _LineWalk
    walk(module, spec).write()
    return str(module)


@dataclass
class _Tile:
    """What is known of the tile in hand.

    Attributes:
        fields: its numbers, by name.
        row: where its tensor's scalars lie.
        starts: where each tensor of each column begins.
        partials: where the partial outcomes of each reduction lie.
    """

    fields: dict[str, Any]
    row: Any
    starts: list[list[Any]]
    partials: list[Any]


class _Walk:
    """Writes ``run``, and the functions that it calls for a line."""

    def __init__(self, module: ir.Module, spec: KernelSpec) -> None:
        self.spec = spec
        self.line = write_line(module, spec)
        self.function = ir.Function(module, ir.FunctionType(VOID, ARGUMENTS), "run")
        self.b = ir.IRBuilder(self.function.append_basic_block("entry"))
        fixed = self.function.args[4]
        self.fixed = {
            name: self._integer(fixed, ir.Constant(I64, i)) for i, name in enumerate(FIXED)
        }
        for name in ("arena", "places", "tiles"):
            self.fixed[name] = self.b.inttoptr(self.fixed[name], POINTER)

    def write(self) -> None:
        """Take tiles, and walk over each."""
        take, begin, done = map(self.function.append_basic_block, ("take", "tile", "done"))
        b = self.b
        b.branch(take)
        b.position_at_end(take)
        taken = b.atomic_rmw("add", self.function.args[3], ir.Constant(I64, 1), "monotonic")
        b.cbranch(b.icmp_signed("<", taken, self.fixed["tile_count"]), begin, done)
        b.position_at_end(begin)
        self.walk(self._tile(taken))
        b.branch(take)
        b.position_at_end(done)
        b.ret_void()

    def walk(self, tile: _Tile) -> None:
        """The work on one tile."""
        raise NotImplementedError

    def _integer(self, base: Any, index: Any) -> Any:
        return self.b.load(self.b.gep(base, [index], source_etype=I64), typ=I64)

    def _tile(self, taken: Any) -> _Tile:
        """Read a tile's numbers, and where what it needs lies."""
        b = self.b
        table, scalars, distance, _, _ = self.function.args
        n, row_width, arena, places, places_width, tiles, _ = self.fixed.values()
        fields = FIELDS[self.spec.walk]
        at = b.mul(taken, ir.Constant(I64, len(fields)))
        f = {
            name: self._integer(tiles, b.add(at, ir.Constant(I64, i)))
            for i, name in enumerate(fields)
        }
        number = f.get("row", f["tensor"])
        row = b.gep(scalars, [b.mul(number, distance)], source_etype=F64)

        def in_arena(place: int) -> Any:
            own = b.add(b.mul(number, places_width), ir.Constant(I64, place))
            return b.gep(arena, [self._integer(places, own)], source_etype=I8)

        def in_table(place: int) -> Any:
            if place == 0:
                index = f["tensor"]
            elif place == 1:
                index = b.add(n, f["tensor"])
            else:
                own = b.add(b.mul(f["tensor"], row_width), ir.Constant(I64, place - 2))
                index = b.add(b.add(n, n), own)
            return b.inttoptr(self._integer(table, index), POINTER)

        starts = [
            [in_table(place) for place in column.table] or [in_arena(column.place)]
            for column in self.spec.columns
        ]
        return _Tile(f, row, starts, [in_arena(place) for _, place in self.spec.sums])

    def _addresses(self, tile: _Tile, index_of: dict[str, Any]) -> list[Any]:
        """Where each tensor's share of a line begins, given the first index of each extent."""
        return [
            address(self.b, start, index_of[column.extent], item)
            for column, own in zip(self.spec.columns, tile.starts, strict=True)
            for start, item in zip(own, items_of(column), strict=True)
        ]


class _FlatWalk(_Walk):
    """Over elements as they lie in memory."""

    def walk(self, tile: _Tile) -> None:
        addresses = self._addresses(tile, {"element": tile.fields["start"]})
        fields = tile.fields
        self.b.call(self.line, [*addresses, fields["count"], tile.row, fields["start"]])


class _LineWalk(_Walk):
    """Over matrices, and over the lines of those."""

    def __init__(self, module: ir.Module, spec: KernelSpec) -> None:
        super().__init__(module, spec)
        self.at_once = lines_at_once(spec)
        if self.at_once:
            self.several = write_side_by_side(module, spec, self.at_once)
        self.sums = [node for node, _ in spec.sums]
        self.sum_code = SumCode(module, real_type(spec))
        room = ir.ArrayType(real_type(spec), LINE + LANES)
        self.buffers = [self.b.alloca(room, name="buffer") for _ in self.sums]
        self.totals = [self.b.alloca(F64, name="total") for _ in self.sums]
        self.line_sums = self.b.alloca(ir.ArrayType(F64, self.at_once * len(self.sums)))

    def walk(self, tile: _Tile) -> None:
        blocks = ("outer", "line", "one", "next_outer", "tile_end")
        outer, lines, single, next_outer, tile_end = map(self.function.append_basic_block, blocks)
        b, f, one = self.b, tile.fields, ir.Constant(I64, 1)
        for node, total in zip(self.sums, self.totals, strict=True):
            b.store(ir.Constant(F64, neutral(node)), total)
        outer_end = b.add(f["outer"], f["outers"])
        middle_end = b.add(f["middle"], f["middles"])
        begin = b.block
        b.branch(outer)

        b.position_at_end(outer)
        o = b.phi(I64, "o")
        o.add_incoming(f["outer"], begin)
        b.branch(lines)

        b.position_at_end(lines)
        m = b.phi(I64, "m")
        m.add_incoming(f["middle"], outer)
        if self.at_once:
            # The last line may be shorter, and is never one of several.
            several = self.function.append_basic_block("several")
            after_several = b.add(m, ir.Constant(I64, self.at_once))
            rest = b.and_(f["inners"], ir.Constant(I64, LANES - 1))
            whole = b.icmp_signed("==", rest, ir.Constant(I64, 0))
            enough = b.icmp_signed("<", after_several, middle_end)
            b.cbranch(b.and_(whole, enough), several, single)
            b.position_at_end(several)
            self._several_lines(tile, o, m)
            m.add_incoming(after_several, b.block)
            b.branch(lines)
        else:
            b.branch(single)

        b.position_at_end(single)
        following_m = b.add(m, one)
        is_last = b.icmp_signed("==", following_m, middle_end)
        self._line(tile, o, m, b.select(is_last, f["last_inners"], f["inners"]))
        m.add_incoming(following_m, b.block)
        b.cbranch(is_last, next_outer, lines)

        b.position_at_end(next_outer)
        following_o = b.add(o, one)
        o.add_incoming(following_o, next_outer)
        b.cbranch(b.icmp_signed("<", following_o, outer_end), outer, tile_end)

        b.position_at_end(tile_end)
        for node, total, partial in zip(self.sums, self.totals, tile.partials, strict=True):
            if node.extent == "tensor":
                place = b.gep(partial, [f["number"]], source_etype=F64)
                b.store(b.load(total, typ=F64), place)

    def _line(self, tile: _Tile, o: Any, m: Any, count: Any) -> None:
        """Work on a line of a matrix: what is to be summed into the buffers, and its sums."""
        b, f = self.b, tile.fields
        column_index = b.add(b.mul(o, f["inner_size"]), f["inner"])
        line_number = b.add(b.mul(o, f["middle_size"]), m)
        addresses = self._line_addresses(tile, o, m)
        first = b.add(b.mul(line_number, f["inner_size"]), f["inner"])
        b.call(self.line, [*addresses, *self.buffers, count, tile.row, first])
        if self.sums:
            self._ask_ahead(addresses, count)
        is_first = b.icmp_signed("==", m, f["middle"])
        for k, node in enumerate(self.sums):
            partial = tile.partials[k]
            if self.spec.domain == "element" and node.extent == "column":
                # Across lines: one sum for each place in the line.
                whole = b.mul(f["columns"], f["middle_tile"])
                into = b.gep(partial, [b.add(whole, column_index)], source_etype=F64)
                b.call(self.sum_code.add_line(node), [into, self.buffers[k], count, is_first])
                continue
            value = b.call(self.sum_code.gather(node), [self.buffers[k], count])
            if node.extent == "tensor":
                self._add_to_total(k, value)
            else:
                # One sum for each line.
                target = line_number if self.spec.domain == "element" else m
                place = b.add(b.mul(f["lines"], f["inner_tile"]), target)
                b.store(value, b.gep(partial, [place], source_etype=F64))

    def _add_to_total(self, k: int, value: Any) -> None:
        total = self.b.load(self.totals[k], typ=F64)
        self.b.store(combined(self.b, self.sums[k], total, value), self.totals[k])

    def _several_lines(self, tile: _Tile, o: Any, m: Any) -> None:
        """Sum several lines from ``m`` on, and add their sums up one by one."""
        b = self.b
        arguments: list[Any] = []
        for k in range(self.at_once):
            arguments += self._line_addresses(tile, o, b.add(m, ir.Constant(I64, k)))
        b.call(self.several, [*arguments, tile.fields["inners"], tile.row, self.line_sums])
        for position in range(self.at_once * len(self.sums)):
            place = b.gep(self.line_sums, [ir.Constant(I64, position)], source_etype=F64)
            self._add_to_total(position % len(self.sums), b.load(place, typ=F64))

    def _line_addresses(self, tile: _Tile, o: Any, m: Any) -> list[Any]:
        """Where each column's share of line m of matrix o begins."""
        b, f, domain = self.b, tile.fields, self.spec.domain
        line_number = b.add(b.mul(o, f["middle_size"]), m)
        element = b.add(b.mul(line_number, f["inner_size"]), f["inner"])
        if domain == "element":
            column_index = b.add(b.mul(o, f["inner_size"]), f["inner"])
            return self._addresses(
                tile,
                {"element": element, "row": line_number, "column": column_index, "matrix": o},
            )
        # Of what is kept for rows or columns, a line goes along those of one stretch of matrices.
        return self._addresses(tile, {"matrix": m, domain: element})

    def _ask_ahead(self, addresses: list[Any], count: Any) -> None:
        """Ask for the start of the next line while this one's values are summed."""
        items = [(c, item) for c in self.spec.columns for item in items_of(c)]
        for (column, item), start in zip(items, addresses, strict=True):
            if lies_along(self.spec, column):
                behind = address(self.b, start, count, item)
                prefetch_lines(self.b, behind, self.spec.target)
