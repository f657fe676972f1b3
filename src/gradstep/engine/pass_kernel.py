"""Write one pass of a graph that reduces, as LLVM code.

The code has a function ``line`` for consecutive elements, as a kernel without reductions has it,
which also lays out the values that are to be summed; and ``run``, which takes tiles off a shared
counter, calls ``line`` for each of their lines (a pass that only reads takes several at once, by a
``line4``), and sums. Sums are taken in float64, in
lanes that are added up in a fixed order, so that no bit depends on the vector width or on which
thread takes which tile.

``run`` takes these arguments, all 64 bits wide:

1. pointers, 2. n, 3. row width: the table of tensors, as :mod:`gradstep.engine.kernel` has it.
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

from gradstep.engine.kernel import F64, I64, ITEM_BYTES, POINTER, VOID, ElementCode, Memory
from gradstep.engine.passes import Pass
from gradstep.engine.tiles import FIELDS, LINE
from gradstep.rule.graph import REDUCTIONS, Graph, Node

#: One addition waits four cycles for the one before it, so several vectors are summed in turn.
LANES = 32

#: Cache lines of 64 bytes that are asked for ahead of a line of elements.
PREFETCH = 32

#: Lines that a pass reads side by side where it writes nothing: a core has more requests for memory
#: on their way where they go to several pages. 58 M elements: 15.0 ms one by one, 12.9 ms by fours.
TOGETHER = 4

I32 = ir.IntType(32)


@dataclass(frozen=True)
class Column:
    """One thing in memory that a pass reads, writes, or both.

    Attributes:
        storage: how its elements are stored.
        extent: what it has elements for.
        table: its place in the table of tensors: ``"w"``, ``"g"`` or a state's name; or None.
        place: its place in a row of the arena's offsets, where it is not in the table.
    """

    storage: str
    extent: str
    table: str | None
    place: int = -1


class Places:
    """Numbers the things that lie in the arena: a row's length and what each place holds."""

    def __init__(self) -> None:
        self.owners: list[Node] = []

    def of(self, node: Node) -> int:
        """The place of a kept value, or of a reduction's partial outcomes."""
        for position, owner in enumerate(self.owners):
            if owner is node:
                return position
        self.owners.append(node)
        return len(self.owners) - 1


@dataclass(frozen=True)
class PassText:
    """A pass before compilation: its code, and the host's numbers that it reads, in order."""

    code: str
    numbers: tuple[Node, ...]


def kept_storage(node: Node, working: str) -> str:
    """How what lies in the arena is stored."""
    if node.operation in REDUCTIONS:
        return "float64"
    if node.operation == "opaque" and node.value.dtype is not None:
        return str(node.value.dtype).removeprefix("torch.")
    return working


def write_pass(
    each: Pass,
    graph: Graph,
    storage: str,
    places: Places,
    half_instructions: bool,
    working: str | None = None,
) -> PassText:
    """The code of one pass.

    Args:
        each: the pass.
        graph: the settled graph that it is of.
        storage: how weights, gradients and states are stored.
        places: the arena's places; new ones are added.
        half_instructions: whether the CPU converts float16 itself.
        working: what elements are worked out in, ``"float32"`` or ``"float64"``; None for what a
            step takes.
    """
    writer = _Writer(each, graph, storage, places, half_instructions, working)
    return PassText(writer.write(), tuple(each.numbers))


class _Writer:
    def __init__(
        self,
        each: Pass,
        graph: Graph,
        storage: str,
        places: Places,
        half_instructions: bool,
        working: str | None,
    ) -> None:
        self.each = each
        self.graph = graph
        self.storage = storage
        self.working = working or ("float64" if storage == "float64" else "float32")
        self.places = places
        self.half_instructions = half_instructions
        self.module = ir.Module(name="gradstep_pass")
        self.columns: list[Column] = []
        self.names = {id(graph.weight): "w", id(graph.gradient): "g"}
        self.names.update({id(before): name for name, before, _ in graph.states})
        self.real = F64 if self.working == "float64" else ir.FloatType()

    def column(self, column: Column) -> int:
        """The number of a column; the same one is there once."""
        if column not in self.columns:
            self.columns.append(column)
        return self.columns.index(column)

    def memory(self, column: Column) -> Memory:
        return Memory(column.storage, self.half_instructions)

    def along(self, column: Column) -> bool:
        """Whether a line's elements lie one after the other in it, or share one."""
        domain = self.each.domain
        return column.extent == domain or (domain == "element" and column.extent == "column")

    def write(self) -> str:
        each = self.each
        loads = []
        for node in each.loads:
            if node.operation == "input":
                source = Column(self.storage, node.extent, self.names[id(node)])
            else:
                stored = kept_storage(node, self.working)
                source = Column(stored, node.extent, None, self.places.of(node))
            loads.append((node, self.column(source)))
        stores = []
        for name, node in each.writes:
            stores.append((node, self.column(Column(self.storage, node.extent, name))))
        for node, owner in each.keeps:
            target = Column(
                kept_storage(owner, self.working), node.extent, None, self.places.of(owner)
            )
            stores.append((node, self.column(target)))
        reads = [number for _, number in loads if self.along(self.columns[number])]
        whole = bool(each.sums) and all(node.extent == "tensor" for node in each.sums)
        together = TOGETHER if whole and not stores and len(reads) <= 2 else 1
        self._write_run({n: self._write_line(loads, stores, n) for n in sorted({1, together})})
        return str(self.module)

    def _write_line(
        self, loads: list[tuple[Node, int]], stores: list[tuple[Node, int]], lines: int
    ) -> ir.Function:
        """The work on the elements of so many lines, side by side.

        It takes all columns and buffers of the first line, then those of the next.
        """
        each, width = self.each, len(self.columns) + len(self.each.sums)
        kind = ir.FunctionType(VOID, [POINTER] * (width * lines) + [I64, POINTER])
        function = ir.Function(self.module, kind, "line" if lines == 1 else f"line{lines}")
        function.linkage = "internal"
        function.attributes.add("noinline")
        for argument in function.args[: width * lines]:
            argument.add_attribute("noalias")
        *pointers, count, row = function.args
        entry, loop, done = (function.append_basic_block(n) for n in ("entry", "loop", "done"))
        builder = ir.IRBuilder(entry)
        zero = ir.Constant(I64, 0)
        elements = [ElementCode(builder, self.real) for _ in range(lines)]
        parts = [pointers[k * width : (k + 1) * width] for k in range(lines)]
        for position, node in enumerate(each.numbers):
            address = builder.gep(row, [ir.Constant(I64, position)], source_etype=F64)
            number = builder.load(address, typ=F64)
            for element in elements:
                element.number(node, number)
        for element, own in zip(elements, parts, strict=True):
            for node in each.work:
                for argument in node.arguments:
                    if argument.operation == "constant":
                        element.values[id(argument)] = element.constant(argument.constant())
            for node, number in loads:
                if not self.along(self.columns[number]):
                    element.values[id(node)] = self._load(builder, own, number, zero)
        empty = builder.icmp_signed("==", count, zero)
        builder.cbranch(empty, done, loop)

        builder.position_at_end(loop)
        index = builder.phi(I64, "i")
        index.add_incoming(zero, entry)
        for element, own in zip(elements, parts, strict=True):
            for node, number in loads:
                if self.along(self.columns[number]):
                    element.values[id(node)] = self._load(builder, own, number, index)
            for node in each.work:
                element.write(node)
            for node, number in stores:
                memory = self.memory(self.columns[number])
                value = self._as_stored(builder, element.values[id(node)], memory)
                memory.store(builder, value, own[number], index)
            for node, buffer in zip(each.sums, own[len(self.columns) :], strict=True):
                value = element.values[id(node.arguments[0])]
                builder.store(value, builder.gep(buffer, [index], source_etype=self.real))
        following = builder.add(index, ir.Constant(I64, 1), flags=["nuw", "nsw"])
        index.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", following, count), loop, done)
        builder.position_at_end(done)
        builder.ret_void()
        return function

    def _load(self, builder: Any, pointers: list[Any], number: int, index: Any) -> Any:
        memory = self.memory(self.columns[number])
        value = memory.load(builder, pointers[number], index)
        if memory.real is self.real:
            return value
        if self.real is F64:
            return builder.fpext(value, F64)
        return builder.fptrunc(value, self.real)

    def _as_stored(self, builder: Any, value: Any, memory: Memory) -> Any:
        if memory.real is self.real:
            return value
        if self.real is F64:
            return builder.fptrunc(value, memory.real)
        return builder.fpext(value, memory.real)

    # The tiles.

    def _write_run(self, line: dict[int, ir.Function]) -> None:
        """``run``; ``line`` has the function for one line, and for how many side by side."""
        each, together = self.each, max(line)
        kind = ir.FunctionType(
            VOID,
            [POINTER, I64, I64, POINTER, POINTER, I64, POINTER, I64, POINTER, I64, POINTER],
        )
        function = ir.Function(self.module, kind, "run")
        (table, n, row_width, arena, places, places_width, tiles, tile_count, numbers, distance,
         counter) = function.args  # fmt: skip
        blocks = ("entry", "take", "tile", "outer", "line", "several", "one", "next_outer",
                  "tile_end", "done")  # fmt: skip
        entry, take, tile, outer, lines, several, single, next_outer, tile_end, done = (
            function.append_basic_block(name) for name in blocks
        )
        b = ir.IRBuilder(entry)
        one = ir.Constant(I64, 1)
        room = ir.ArrayType(self.real, LINE + LANES)
        buffers = [b.alloca(room, name="buffer") for _ in range(together) for _ in each.sums]
        totals = [b.alloca(F64, name="total") for _ in each.sums]
        b.branch(take)

        b.position_at_end(take)
        taken = b.atomic_rmw("add", counter, one, "monotonic")
        b.cbranch(b.icmp_signed("<", taken, tile_count), tile, done)

        b.position_at_end(tile)

        def integer(base: Any, index: Any) -> Any:
            return b.load(b.gep(base, [index], source_etype=I64), typ=I64)

        at = b.mul(taken, ir.Constant(I64, len(FIELDS)))
        f = {name: integer(tiles, b.add(at, ir.Constant(I64, i))) for i, name in enumerate(FIELDS)}
        tensor, place_row = f["tensor"], b.mul(f["row"], places_width)
        row = b.gep(numbers, [b.mul(f["row"], distance)], source_etype=F64)
        # Where each column of the tensor begins.
        starts = []
        for column in self.columns:
            if column.table is None:
                offset = integer(places, b.add(place_row, ir.Constant(I64, column.place)))
                starts.append(b.ptrtoint(b.gep(arena, [offset], source_etype=ir.IntType(8)), I64))
                continue
            if column.table == "w":
                place = tensor
            elif column.table == "g":
                place = b.add(n, tensor)
            else:
                k = [name for name, _, _ in self.graph.states].index(column.table)
                place = b.add(b.add(n, n), b.add(b.mul(tensor, row_width), ir.Constant(I64, k)))
            starts.append(integer(table, place))
        partials = []
        for node in each.sums:
            place = ir.Constant(I64, self.places.of(node))
            offset = integer(places, b.add(place_row, place))
            partials.append(b.gep(arena, [offset], source_etype=ir.IntType(8)))
        for node, total in zip(each.sums, totals, strict=True):
            b.store(ir.Constant(F64, self._neutral(node)), total)
        outer_end = b.add(f["outer"], f["outers"])
        middle_end = b.add(f["middle"], f["middles"])
        b.branch(outer)

        b.position_at_end(outer)
        o = b.phi(I64, "o")
        o.add_incoming(f["outer"], tile)
        b.branch(lines)

        b.position_at_end(lines)
        m = b.phi(I64, "m")
        m.add_incoming(f["middle"], outer)
        # The last line may be shorter, and is never one of several.
        after_several = b.add(m, ir.Constant(I64, together))
        enough = b.icmp_signed("<", after_several, middle_end)
        b.cbranch(enough, several, single) if together > 1 else b.branch(single)

        def work(count: Any, side_by_side: int) -> None:
            """On as many lines: what is to be summed into the buffers, and the sums of it."""
            arguments: list[Any] = []
            indices = []
            for k in range(side_by_side):
                line_number = b.add(b.mul(o, f["middle_size"]), b.add(m, ir.Constant(I64, k)))
                element = b.add(b.mul(line_number, f["inner_size"]), f["inner"])
                column_index = b.add(b.mul(o, f["inner_size"]), f["inner"])
                index_of = {"element": element, "row": line_number, "column": column_index,
                            "matrix": o}  # fmt: skip
                if each.domain in ("row", "column"):
                    index_of = {each.domain: element, "matrix": b.add(m, ir.Constant(I64, k))}
                elif each.domain == "matrix":
                    index_of = {"matrix": element}
                indices.append((line_number, column_index))
                for column, start in zip(self.columns, starts, strict=True):
                    size = ir.Constant(I64, ITEM_BYTES[column.storage])
                    address = b.add(start, b.mul(index_of[column.extent], size))
                    arguments.append(b.inttoptr(address, POINTER))
                arguments += buffers[k * len(each.sums) : (k + 1) * len(each.sums)]
            b.call(line[side_by_side], [*arguments, count, row])
            if each.sums:
                self._prefetch(b, arguments, count, side_by_side)
            for k, (line_number, column_index) in enumerate(indices):
                middle = b.add(m, ir.Constant(I64, k))
                is_first = b.icmp_signed("==", middle, f["middle"])
                own = buffers[k * len(each.sums) : (k + 1) * len(each.sums)]
                for node, buffer, total, partial in zip(
                    each.sums, own, totals, partials, strict=True
                ):
                    if self._over_lines(node):
                        # One sum for each place in the line, over the lines.
                        whole = b.mul(f["columns"], f["middle_tile"])
                        into = b.gep(partial, [b.add(whole, column_index)], source_etype=F64)
                        b.call(self._add_line(node), [into, buffer, count, is_first])
                        continue
                    value = b.call(self._gather(node), [buffer, count])
                    if node.extent == "tensor":
                        b.store(self._combined(b, node, b.load(total, typ=F64), value), total)
                    else:
                        # One sum for each line.
                        target = line_number if each.domain == "element" else middle
                        place = b.add(b.mul(f["lines"], f["inner_tile"]), target)
                        b.store(value, b.gep(partial, [place], source_etype=F64))

        b.position_at_end(several)
        work(f["inners"], together)
        m.add_incoming(after_several, b.block)
        b.branch(lines)

        b.position_at_end(single)
        following_m = b.add(m, one)
        is_last = b.icmp_signed("==", following_m, middle_end)
        work(b.select(is_last, f["last_inners"], f["inners"]), 1)
        m.add_incoming(following_m, b.block)
        b.cbranch(is_last, next_outer, lines)

        b.position_at_end(next_outer)
        following_o = b.add(o, one)
        o.add_incoming(following_o, next_outer)
        b.cbranch(b.icmp_signed("<", following_o, outer_end), outer, tile_end)

        b.position_at_end(tile_end)
        for node, total, partial in zip(each.sums, totals, partials, strict=True):
            if node.extent == "tensor":
                place = b.gep(partial, [f["number"]], source_etype=F64)
                b.store(b.load(total, typ=F64), place)
        b.branch(take)

        b.position_at_end(done)
        b.ret_void()

    def _prefetch(self, b: ir.IRBuilder, addresses: list[Any], count: Any, lines: int) -> None:
        """Ask for the start of the next lines while these ones' values are summed."""
        ahead = self._ahead(PREFETCH // lines)
        width = len(addresses) // lines
        for k in range(lines):
            own = addresses[k * width : (k + 1) * width]
            for column, address in zip(self.columns, own, strict=False):
                if self.along(column):
                    size = ir.Constant(I64, lines * ITEM_BYTES[column.storage])
                    behind = b.gep(address, [b.mul(count, size)], source_etype=ir.IntType(8))
                    b.call(ahead, [behind])

    def _ahead(self, pieces: int) -> ir.Function:
        """Asks for so many cache lines. A loop, since 32 lines of text each take time to write."""
        name = f"ahead{pieces}"
        known = self.module.globals.get(name)
        if known is not None:
            return known
        hint = ir.FunctionType(VOID, [POINTER, I32, I32, I32])
        prefetch = self.module.globals.get("llvm.prefetch.p0") or ir.Function(
            self.module, hint, "llvm.prefetch.p0"
        )
        function = ir.Function(self.module, ir.FunctionType(VOID, [POINTER]), name)
        function.linkage = "internal"
        entry, loop, done = (function.append_basic_block(n) for n in ("entry", "loop", "done"))
        b = ir.IRBuilder(entry)
        b.branch(loop)
        b.position_at_end(loop)
        index = b.phi(I64)
        index.add_incoming(ir.Constant(I64, 0), entry)
        place = b.gep(
            function.args[0], [b.mul(index, ir.Constant(I64, 64))], source_etype=ir.IntType(8)
        )
        b.call(prefetch, [place, *(ir.Constant(I32, h) for h in (0, 3, 1))])
        following = b.add(index, ir.Constant(I64, 1))
        index.add_incoming(following, loop)
        b.cbranch(b.icmp_signed("<", following, ir.Constant(I64, pieces)), loop, done)
        b.position_at_end(done)
        b.ret_void()
        return function

    def _over_lines(self, node: Node) -> bool:
        """Whether the reduction goes across lines: the sum of each column of a matrix."""
        return self.each.domain == "element" and node.extent == "column"

    def _neutral(self, node: Node) -> float:
        return float("-inf") if node.operation == "max" else 0.0

    def _combined(self, b: ir.IRBuilder, node: Node, a: Any, x: Any) -> Any:
        """Their sum; or the larger, nan where either is."""
        if node.operation != "max":
            return b.fadd(a, x)
        larger = b.or_(b.fcmp_ordered(">", x, a), b.fcmp_unordered("uno", x, x))
        return b.select(larger, x, a)

    def _function(self, name: str, node: Node, kind: Any) -> tuple[ir.Function, bool]:
        name = f"{name}_{'max' if node.operation == 'max' else 'sum'}"
        known = self.module.globals.get(name)
        if known is not None:
            return known, True
        function = ir.Function(self.module, kind, name)
        function.linkage = "internal"
        function.attributes.add("noinline")
        return function, False

    def _gather(self, node: Node) -> ir.Function:
        """A line's sum in lanes, lane k taking in the elements k, k + LANES, k + 2 · LANES, …

        In the end the lanes of the second half are added to those of the first, until eight are
        left, and those in pairs: so a short line is summed as it is read.
        """
        function, known = self._function("gather", node, ir.FunctionType(F64, [POINTER, I64]))
        if known:
            return function
        line, count = function.args
        entry, pad, start, loop, done = (
            function.append_basic_block(name) for name in ("entry", "pad", "start", "loop", "done")
        )
        b = ir.IRBuilder(entry)
        zero = ir.Constant(I64, 0)
        vector, lanes = ir.VectorType(self.real, LANES), ir.VectorType(F64, LANES)
        neutral = self._neutral(node)
        b.branch(pad)
        b.position_at_end(pad)  # the buffer has room for a vector behind its last element
        filler = ir.Constant(vector, [ir.Constant(self.real, neutral)] * LANES)
        behind = b.gep(line, [count], source_etype=self.real)
        b.store(filler, behind, align=self.real_align())
        b.branch(start)
        b.position_at_end(start)
        b.cbranch(b.icmp_signed("<", zero, count), loop, done)
        b.position_at_end(loop)
        index = b.phi(I64)
        total = b.phi(lanes)
        begin = ir.Constant(lanes, [ir.Constant(F64, neutral)] * LANES)
        index.add_incoming(zero, start)
        total.add_incoming(begin, start)
        address = b.gep(line, [index], source_etype=self.real)
        values = b.load(address, align=self.real_align(), typ=vector)
        wide = values if self.real is F64 else b.fpext(values, lanes)
        new_total = self._combined(b, node, total, wide)
        following = b.add(index, ir.Constant(I64, LANES))
        index.add_incoming(following, loop)
        total.add_incoming(new_total, loop)
        b.cbranch(b.icmp_signed("<", following, count), loop, done)
        b.position_at_end(done)
        final = b.phi(lanes)
        final.add_incoming(begin, start)
        final.add_incoming(new_total, loop)
        part, width = final, LANES
        while width > 8:
            width //= 2
            halves = [
                b.shuffle_vector(part, part, ir.Constant(ir.VectorType(I32, width), list(places)))
                for places in (range(width), range(width, 2 * width))
            ]
            part = self._combined(b, node, *halves)
        parts = [b.extract_element(part, ir.Constant(I32, k)) for k in range(width)]
        while len(parts) > 1:
            pairs = zip(parts[::2], parts[1::2], strict=True)
            parts = [self._combined(b, node, left, right) for left, right in pairs]
        b.ret(parts[0])
        return function

    def real_align(self) -> int:
        """Buffers and pieces of them are aligned to their elements only."""
        return ITEM_BYTES[self.working]

    def _add_line(self, node: Node) -> ir.Function:
        """Add a line to running sums, or begin them with it."""
        kind = ir.FunctionType(VOID, [POINTER, POINTER, I64, ir.IntType(1)])
        function, known = self._function("add_line", node, kind)
        if known:
            return function
        into, line, count, is_first = function.args
        into.add_attribute("noalias")
        line.add_attribute("noalias")
        entry, loop, done = (function.append_basic_block(n) for n in ("entry", "loop", "done"))
        b = ir.IRBuilder(entry)
        zero = ir.Constant(I64, 0)
        b.cbranch(b.icmp_signed("<", zero, count), loop, done)
        b.position_at_end(loop)
        index = b.phi(I64)
        index.add_incoming(zero, entry)
        value = b.load(b.gep(line, [index], source_etype=self.real), typ=self.real)
        wide = value if self.real is F64 else b.fpext(value, F64)
        place = b.gep(into, [index], source_etype=F64)
        before = b.select(is_first, ir.Constant(F64, self._neutral(node)), b.load(place, typ=F64))
        b.store(self._combined(b, node, before, wide), place)
        following = b.add(index, ir.Constant(I64, 1), flags=["nuw", "nsw"])
        index.add_incoming(following, loop)
        b.cbranch(b.icmp_signed("<", following, count), loop, done)
        b.position_at_end(done)
        b.ret_void()
        return function
