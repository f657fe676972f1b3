"""Write one pass of a graph that reduces, as LLVM code.

The code has a function ``run``, which takes tiles off a shared counter. It calls a function for
each of a tile's lines, :mod:`gradstep.engine.llvm.pass_line`, and sums what that has laid out,
:mod:`gradstep.engine.llvm.pass_sums`; or one that sums several lines at once,
:mod:`gradstep.engine.llvm.pass_together`, to the same bits. No bit depends on which thread takes
which tile.

``run`` takes these arguments, all 64 bits wide:

1. pointers, 2. n, 3. row width: the table of tensors, as :mod:`gradstep.engine.llvm.kernel` has it.
4. arena: where kept values and partial sums lie.
5. places: for each tensor a row of offsets into the arena, in bytes.
6. the length of such a row.
7. tiles, 8. how many: :data:`gradstep.engine.tiles.FIELDS` numbers each.
9. numbers, 10. the distance of their rows: float64, a row a tensor.
11. counter: the next tile that nobody has taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from gradstep.engine.llvm.element import F64, I64, POINTER, VOID
from gradstep.engine.llvm.pass_line import lies_along, real_type, write_line
from gradstep.engine.llvm.pass_sums import LANES, SumCode, combined, neutral
from gradstep.engine.llvm.pass_together import side_by_side, write_together
from gradstep.engine.llvm.prefetch import prefetch_lines
from gradstep.engine.outline import ITEM_BYTES, PassOutline
from gradstep.engine.tiles import FIELDS, LINE

#: Cache lines of 64 bytes that are asked for ahead of a line of elements.
PREFETCH = 32

I8 = ir.IntType(8)


def write_pass(outline: PassOutline) -> str:
    """The code of a pass: a module with the function ``run``."""
    module = ir.Module(name="gradstep_pass")
    _Run(module, outline).write()
    return str(module)


@dataclass
class _Tile:
    """What is known of the tile in hand.

    Attributes:
        fields: its numbers, by name.
        row: where its tensor's host numbers lie.
        starts: where each column of its tensor begins.
        partials: where the partial outcomes of each reduction lie.
    """

    fields: dict[str, Any]
    row: Any
    starts: list[Any]
    partials: list[Any]


class _Run:
    """Writes ``run``, and the functions that it calls for a line, and for several if that goes."""

    def __init__(self, module: ir.Module, outline: PassOutline) -> None:
        self.outline = outline
        self.line = write_line(module, outline)
        self.together = side_by_side(outline)
        if self.together:
            self.several = write_together(module, outline, self.together)
        self.sums = [node for node, _ in outline.sums]
        self.sum_code = SumCode(module, real_type(outline))
        kind = ir.FunctionType(
            VOID,
            [POINTER, I64, I64, POINTER, POINTER, I64, POINTER, I64, POINTER, I64, POINTER],
        )
        self.function = ir.Function(module, kind, "run")

    def write(self) -> None:
        """The walk over tiles, over their matrices, and over the lines of those."""
        blocks = ("entry", "take", "tile", "outer", "line", "one", "next_outer", "tile_end", "done")
        entry, take, begin, outer, lines, single, next_outer, tile_end, done = (
            self.function.append_basic_block(name) for name in blocks
        )
        self.b = b = ir.IRBuilder(entry)
        one = ir.Constant(I64, 1)
        room = ir.ArrayType(real_type(self.outline), LINE + LANES)
        self.buffers = [b.alloca(room, name="buffer") for _ in self.sums]
        self.totals = [b.alloca(F64, name="total") for _ in self.sums]
        self.line_sums = b.alloca(ir.ArrayType(F64, self.together * len(self.sums)))
        b.branch(take)

        b.position_at_end(take)
        tile_count, counter = self.function.args[7], self.function.args[10]
        taken = b.atomic_rmw("add", counter, one, "monotonic")
        b.cbranch(b.icmp_signed("<", taken, tile_count), begin, done)

        b.position_at_end(begin)
        tile = self._tile(taken)
        f = tile.fields
        for node, total in zip(self.sums, self.totals, strict=True):
            b.store(ir.Constant(F64, neutral(node)), total)
        outer_end = b.add(f["outer"], f["outers"])
        middle_end = b.add(f["middle"], f["middles"])
        b.branch(outer)

        b.position_at_end(outer)
        o = b.phi(I64, "o")
        o.add_incoming(f["outer"], begin)
        b.branch(lines)

        b.position_at_end(lines)
        m = b.phi(I64, "m")
        m.add_incoming(f["middle"], outer)
        if self.together:
            # The last line may be shorter, and is never one of several.
            several = self.function.append_basic_block("several")
            after_several = b.add(m, ir.Constant(I64, self.together))
            rest = b.and_(f["inners"], ir.Constant(I64, LANES - 1))
            whole = b.icmp_signed("==", rest, ir.Constant(I64, 0))
            enough = b.icmp_signed("<", after_several, middle_end)
            b.cbranch(b.and_(whole, enough), several, single)
            b.position_at_end(several)
            self._lines_together(tile, o, m)
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
        b.branch(take)

        b.position_at_end(done)
        b.ret_void()

    def _integer(self, base: Any, index: Any) -> Any:
        return self.b.load(self.b.gep(base, [index], source_etype=I64), typ=I64)

    def _tile(self, taken: Any) -> _Tile:
        """Read a tile's numbers, and where what it needs lies."""
        b = self.b
        (table, n, row_width, arena, places, places_width, tiles, _, numbers, distance,
         _) = self.function.args  # fmt: skip
        at = b.mul(taken, ir.Constant(I64, len(FIELDS)))
        f = {
            name: self._integer(tiles, b.add(at, ir.Constant(I64, i)))
            for i, name in enumerate(FIELDS)
        }
        row = b.gep(numbers, [b.mul(f["row"], distance)], source_etype=F64)
        place_row = b.mul(f["row"], places_width)

        def in_arena(place: int) -> Any:
            offset = self._integer(places, b.add(place_row, ir.Constant(I64, place)))
            return b.gep(arena, [offset], source_etype=I8)

        starts = []
        for column in self.outline.columns:
            if column.table is None:
                starts.append(b.ptrtoint(in_arena(column.place), I64))
                continue
            if column.table == 0:
                place = f["tensor"]
            elif column.table == 1:
                place = b.add(n, f["tensor"])
            else:
                own = b.add(b.mul(f["tensor"], row_width), ir.Constant(I64, column.table - 2))
                place = b.add(b.add(n, n), own)
            starts.append(self._integer(table, place))
        return _Tile(f, row, starts, [in_arena(place) for _, place in self.outline.sums])

    def _line(self, tile: _Tile, o: Any, m: Any, count: Any) -> None:
        """Work on a line of a matrix: what is to be summed into the buffers, and its sums."""
        b, f = self.b, tile.fields
        column_index = b.add(b.mul(o, f["inner_size"]), f["inner"])
        line_number = b.add(b.mul(o, f["middle_size"]), m)
        addresses = self._addresses(tile, o, m, line_number, column_index)
        b.call(self.line, [*addresses, *self.buffers, count, tile.row])
        if self.sums:
            self._ask_ahead(addresses, count)
        is_first = b.icmp_signed("==", m, f["middle"])
        for k, node in enumerate(self.sums):
            partial = tile.partials[k]
            if self.outline.domain == "element" and node.extent == "column":
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
                target = line_number if self.outline.domain == "element" else m
                place = b.add(b.mul(f["lines"], f["inner_tile"]), target)
                b.store(value, b.gep(partial, [place], source_etype=F64))

    def _add_to_total(self, k: int, value: Any) -> None:
        total = self.b.load(self.totals[k], typ=F64)
        self.b.store(combined(self.b, self.sums[k], total, value), self.totals[k])

    def _lines_together(self, tile: _Tile, o: Any, m: Any) -> None:
        """Sum several lines from ``m`` on, and add their sums up one by one."""
        b, f = self.b, tile.fields
        column_index = b.add(b.mul(o, f["inner_size"]), f["inner"])
        arguments: list[Any] = []
        for k in range(self.together):
            own_m = b.add(m, ir.Constant(I64, k))
            line_number = b.add(b.mul(o, f["middle_size"]), own_m)
            arguments += self._addresses(tile, o, own_m, line_number, column_index)
        b.call(self.several, [*arguments, f["inners"], tile.row, self.line_sums])
        for position in range(self.together * len(self.sums)):
            place = b.gep(self.line_sums, [ir.Constant(I64, position)], source_etype=F64)
            self._add_to_total(position % len(self.sums), b.load(place, typ=F64))

    def _addresses(
        self, tile: _Tile, o: Any, m: Any, line_number: Any, column_index: Any
    ) -> list[Any]:
        """Where each column's share of a line begins."""
        b, domain = self.b, self.outline.domain
        inner_size, inner = tile.fields["inner_size"], tile.fields["inner"]
        element = b.add(b.mul(line_number, inner_size), inner)
        index_of = {"element": element, "row": line_number, "column": column_index, "matrix": o}
        if domain in ("row", "column"):
            index_of = {domain: element, "matrix": m}
        elif domain == "matrix":
            index_of = {"matrix": element}
        found = []
        for column, start in zip(self.outline.columns, tile.starts, strict=True):
            size = ir.Constant(I64, ITEM_BYTES[column.storage])
            address = b.add(start, b.mul(index_of[column.extent], size))
            found.append(b.inttoptr(address, POINTER))
        return found

    def _ask_ahead(self, addresses: list[Any], count: Any) -> None:
        """Ask for the start of the next line while this one's values are summed."""
        for column, address in zip(self.outline.columns, addresses, strict=True):
            if lies_along(self.outline, column):
                size = ir.Constant(I64, ITEM_BYTES[column.storage])
                behind = self.b.gep(address, [self.b.mul(count, size)], source_etype=I8)
                prefetch_lines(self.b, behind, PREFETCH)
