"""Write a settled graph as LLVM code: one function that updates a table of tensors in one pass.

The code has two functions. ``update_chunk`` is the loop over consecutive elements of one tensor;
its pointers are declared not to alias, so that LLVM may vectorise it. ``update`` takes chunks off a
shared counter until none is left; any number of threads may run it over the same table at once,
and which thread takes which chunk changes no bit of the result.

``update`` takes these arguments, all 64 bits wide:

1. pointers: for each of n tensors its weight; then for each its gradient; then for each a row of
   its states and, where steps are counted, its count.
2. n, the number of tensors.
3. the length of such a row.
4. chunks: for each chunk a tensor, a first element and a number of elements.
5. the number of chunks.
6. numbers: float64, a row a tensor, or one row for all.
7. the distance of two rows of numbers: 0 where there is one row for all.
8. counter: the next chunk that nobody has taken.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from gradstep.engine.host import row_numbers
from gradstep.engine.low_precision import conversions
from gradstep.rule.graph import Graph, Node

I1, I64 = ir.IntType(1), ir.IntType(64)
POINTER = ir.PointerType()
F32, F64 = ir.FloatType(), ir.DoubleType()
VOID = ir.VoidType()

#: Storage type -> bytes an element.
ITEM_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class KernelText:
    """A kernel before compilation.

    Attributes:
        code: LLVM's intermediate language.
        numbers: the graph's number nodes that the kernel reads from a row, in order.
    """

    code: str
    numbers: tuple[Node, ...]


class Memory:
    """Reads and writes elements as they are stored."""

    def __init__(self, storage: str, half_instructions: bool) -> None:
        self.real = F64 if storage == "float64" else F32
        self._conversions = conversions(storage, half_instructions)
        self._stored = self.real if self._conversions is None else ir.IntType(16)

    def load(self, builder: ir.IRBuilder, pointer: Any, index: Any) -> Any:
        """The element at an index, in the type that the kernel works in."""
        address = builder.gep(pointer, [index], source_etype=self._stored)
        value = builder.load(address, typ=self._stored)
        return value if self._conversions is None else self._conversions[0](builder, value)

    def store(self, builder: ir.IRBuilder, value: Any, pointer: Any, index: Any) -> None:
        """Put an element at an index, rounded to its storage type."""
        if self._conversions is not None:
            value = self._conversions[1](builder, value)
        builder.store(value, builder.gep(pointer, [index], source_etype=self._stored))


def write_kernel(graph: Graph, storage: str, half_instructions: bool = False) -> KernelText:
    """The code of a settled graph's kernel.

    Args:
        graph: from :func:`gradstep.rule.settle.settle`.
        storage: how weights, gradients and states are stored: ``"float32"``, ``"float64"``,
            ``"bfloat16"`` or ``"float16"``. The last two are worked out in float32.
        half_instructions: whether the CPU converts float16 itself.
    """
    module = ir.Module(name="gradstep")
    numbers = row_numbers(graph)
    columns = 2 + len(graph.states)
    memory = Memory(storage, half_instructions)
    chunk = _write_chunk_loop(module, graph, memory, numbers)
    _write_update(module, chunk, columns, ITEM_BYTES[storage])
    return KernelText(str(module), numbers)


def _write_chunk_loop(
    module: ir.Module, graph: Graph, memory: Memory, numbers: tuple[Node, ...]
) -> ir.Function:
    columns = 2 + len(graph.states)
    kind = ir.FunctionType(VOID, [POINTER] * columns + [I64, POINTER])
    function = ir.Function(module, kind, "update_chunk")
    function.linkage = "internal"
    function.attributes.add("noinline")
    for argument in function.args[:columns]:
        argument.add_attribute("noalias")
    *pointers, count, row = function.args

    entry = function.append_basic_block("entry")
    loop = function.append_basic_block("loop")
    done = function.append_basic_block("done")
    builder = ir.IRBuilder(entry)
    element = ElementCode(builder, memory.real)
    for position, node in enumerate(numbers):
        address = builder.gep(row, [ir.Constant(I64, position)], source_etype=F64)
        element.number(node, builder.load(address, typ=F64))
    for node in graph.order:
        if node.operation == "constant":
            element.values[id(node)] = element.constant(node.constant())
    empty = builder.icmp_signed("==", count, ir.Constant(I64, 0))
    builder.cbranch(empty, done, loop)

    builder.position_at_end(loop)
    index = builder.phi(I64, "i")
    index.add_incoming(ir.Constant(I64, 0), entry)
    inputs = [graph.weight, graph.gradient, *(before for _, before, _ in graph.states)]
    used = {id(node) for node in graph.order}
    for node, pointer in zip(inputs, pointers, strict=True):
        if id(node) in used:
            element.values[id(node)] = memory.load(builder, pointer, index)
    for node in graph.order:
        if node.per_element and node.operation != "input":
            element.write(node)
    new_weight, *new_states = graph.outputs()
    for node, pointer in zip([new_weight, *new_states], [pointers[0], *pointers[2:]], strict=True):
        memory.store(builder, element.values[id(node)], pointer, index)
    following = builder.add(index, ir.Constant(I64, 1), flags=["nuw", "nsw"])
    index.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, count), loop, done)

    builder.position_at_end(done)
    builder.ret_void()
    return function


class ElementCode:
    """Writes the operations on one element, each as one IEEE operation."""

    def __init__(self, builder: ir.IRBuilder, real: Any) -> None:
        self.builder = builder
        self.real = real
        self.values: dict[int, Any] = {}
        self._lerp_weights: dict[int, tuple[Any, Any]] = {}

    def constant(self, value: float) -> Any:
        """A number of the text, rounded to the type that the kernel works in."""
        if self.real is F32:
            try:
                value = struct.unpack("f", struct.pack("f", value))[0]
            except OverflowError:
                value = float("inf") if value > 0 else float("-inf")
        return ir.Constant(self.real, value)

    def number(self, node: Node, value: Any) -> None:
        """Take a float64 number of the row, rounded to the type that the kernel works in."""
        if node.boolean:
            self.values[id(node)] = self.builder.fcmp_unordered("!=", value, ir.Constant(F64, 0.0))
            return
        self.values[id(node)] = value if self.real is F64 else self.builder.fptrunc(value, F32)

    def write(self, node: Node) -> None:
        """Write one operation; its arguments have been written."""
        arguments = [self._argument(node, i) for i in range(len(node.arguments))]
        self.values[id(node)] = getattr(self, f"_{node.operation}")(*arguments)

    def _argument(self, node: Node, position: int) -> Any:
        argument = node.arguments[position]
        value = self.values[id(argument)]
        if node.operation == "where" and position == 0 and value.type != I1:
            # A number for a truth value, such as `first`.
            return self.builder.fcmp_unordered("!=", value, self.constant(0.0))
        return value

    def _intrinsic(self, name: str, *arguments: Any) -> Any:
        suffix = "f32" if self.real is F32 else "f64"
        kind = ir.FunctionType(self.real, [self.real] * len(arguments))
        full_name = f"llvm.{name}.{suffix}"
        module = self.builder.module
        function = module.globals.get(full_name) or ir.Function(module, kind, full_name)
        return self.builder.call(function, arguments)

    def _stored(self, a: Any) -> Any:
        return a

    def _add(self, a: Any, b: Any) -> Any:
        return self.builder.fadd(a, b)

    def _sub(self, a: Any, b: Any) -> Any:
        return self.builder.fsub(a, b)

    def _mul(self, a: Any, b: Any) -> Any:
        return self.builder.fmul(a, b)

    def _div(self, a: Any, b: Any) -> Any:
        return self.builder.fdiv(a, b)

    def _neg(self, a: Any) -> Any:
        return self.builder.fneg(a)

    def _fma(self, a: Any, b: Any, c: Any) -> Any:
        return self._intrinsic("fma", a, b, c)

    def _sqrt(self, a: Any) -> Any:
        return self._intrinsic("sqrt", a)

    def _rsqrt(self, a: Any) -> Any:
        return self.builder.fdiv(self.constant(1.0), self._sqrt(a))

    def _abs(self, a: Any) -> Any:
        return self._intrinsic("fabs", a)

    def _exp(self, a: Any) -> Any:
        return self._intrinsic("exp", a)

    def _log(self, a: Any) -> Any:
        return self._intrinsic("log", a)

    def _pow(self, a: Any, b: Any) -> Any:
        return self._intrinsic("pow", a, b)

    def _sign(self, a: Any) -> Any:
        zero, one = self.constant(0.0), self.constant(1.0)
        below = self.builder.select(
            self.builder.fcmp_ordered("<", a, zero), self.constant(-1.0), zero
        )
        return self.builder.select(self.builder.fcmp_ordered(">", a, zero), one, below)

    def _maximum(self, a: Any, b: Any) -> Any:
        return self._extreme(">", a, b)

    def _minimum(self, a: Any, b: Any) -> Any:
        return self._extreme("<", a, b)

    def _extreme(self, better: str, a: Any, b: Any) -> Any:
        # nan in b fails the ordered comparison and is chosen; nan in a is put back.
        chosen = self.builder.select(self.builder.fcmp_ordered(better, a, b), a, b)
        return self.builder.select(self.builder.fcmp_unordered("uno", a, a), a, chosen)

    def _lerp(self, start: Any, end: Any, weight: Any) -> Any:
        # As torch does it: from the nearer end, so that weight 1 gives end itself.
        builder = self.builder
        near = builder.fcmp_ordered("<", self._abs(weight), self.constant(0.5))
        shifted = builder.select(near, weight, builder.fsub(weight, self.constant(1.0)))
        return self._fma(shifted, builder.fsub(end, start), builder.select(near, start, end))

    def _where(self, condition: Any, a: Any, b: Any) -> Any:
        return self.builder.select(condition, a, b)

    def _compare(self, operator: str, a: Any, b: Any) -> Any:
        return self.builder.fcmp_ordered(operator, a, b)

    def _lt(self, a: Any, b: Any) -> Any:
        return self._compare("<", a, b)

    def _le(self, a: Any, b: Any) -> Any:
        return self._compare("<=", a, b)

    def _gt(self, a: Any, b: Any) -> Any:
        return self._compare(">", a, b)

    def _ge(self, a: Any, b: Any) -> Any:
        return self._compare(">=", a, b)

    def _eq(self, a: Any, b: Any) -> Any:
        return self._compare("==", a, b)

    def _ne(self, a: Any, b: Any) -> Any:
        return self.builder.fcmp_unordered("!=", a, b)

    def _and(self, a: Any, b: Any) -> Any:
        return self.builder.and_(a, b)

    def _or(self, a: Any, b: Any) -> Any:
        return self.builder.or_(a, b)

    def _not(self, a: Any) -> Any:
        return self.builder.not_(a)


def _write_update(module: ir.Module, chunk: ir.Function, columns: int, item_bytes: int) -> None:
    function = ir.Function(
        module,
        ir.FunctionType(VOID, [POINTER, I64, I64, POINTER, I64, POINTER, I64, POINTER]),
        "update",
    )
    pointers, tensors, row_width, chunks, chunk_count, numbers, row_distance, counter = (
        function.args
    )
    entry = function.append_basic_block("entry")
    take = function.append_basic_block("take")
    work = function.append_basic_block("work")
    done = function.append_basic_block("done")
    builder = ir.IRBuilder(entry)
    builder.branch(take)

    builder.position_at_end(take)
    taken = builder.atomic_rmw("add", counter, ir.Constant(I64, 1), "monotonic")
    builder.cbranch(builder.icmp_signed("<", taken, chunk_count), work, done)

    builder.position_at_end(work)

    def integer(base: Any, index: Any) -> Any:
        return builder.load(builder.gep(base, [index], source_etype=I64), typ=I64)

    def plus(a: Any, b: Any) -> Any:
        return builder.add(a, b)

    first = builder.mul(taken, ir.Constant(I64, 3))
    tensor = integer(chunks, first)
    start = integer(chunks, plus(first, ir.Constant(I64, 1)))
    count = integer(chunks, plus(first, ir.Constant(I64, 2)))
    offset = builder.mul(start, ir.Constant(I64, item_bytes))
    state_row = plus(
        builder.mul(tensors, ir.Constant(I64, 2)),
        builder.mul(tensor, row_width),
    )
    places = [tensor, plus(tensors, tensor)]
    places += [plus(state_row, ir.Constant(I64, k)) for k in range(columns - 2)]
    addresses = [
        builder.inttoptr(plus(integer(pointers, place), offset), POINTER) for place in places
    ]
    row = builder.gep(numbers, [builder.mul(tensor, row_distance)], source_etype=F64)
    builder.call(chunk, [*addresses, count, row])
    builder.branch(take)

    builder.position_at_end(done)
    builder.ret_void()
