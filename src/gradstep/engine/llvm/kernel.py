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

from typing import Any

from llvmlite import ir

from gradstep.engine.llvm.element import F64, I64, POINTER, VOID, ElementCode, Memory
from gradstep.engine.llvm.loop import counted, internal
from gradstep.engine.outline import ITEM_BYTES, KernelOutline


def write_kernel(outline: KernelOutline) -> str:
    """The code of a kernel: a module with the function ``update``."""
    module = ir.Module(name="gradstep")
    chunk = _write_chunk_loop(module, outline)
    _write_update(module, chunk, len(outline.inputs()), ITEM_BYTES[outline.storage])
    return str(module)


def _write_chunk_loop(module: ir.Module, outline: KernelOutline) -> ir.Function:
    graph, inputs = outline.graph, outline.inputs()
    memory = Memory(outline.storage, outline.half_instructions)
    kind = ir.FunctionType(VOID, [POINTER] * len(inputs) + [I64, POINTER])
    function = ir.Function(module, kind, "update_chunk")
    *pointers, count, row = function.args
    builder = internal(function, *pointers)
    element = ElementCode(builder, memory.real)
    element.numbers(outline.numbers, row)
    for node in graph.order:
        if node.operation == "constant":
            element.values[id(node)] = element.constant(node.constant())
    used = {id(node) for node in graph.order}
    with counted(builder, count) as index:
        for node, pointer in zip(inputs, pointers, strict=True):
            if id(node) in used:
                element.values[id(node)] = memory.load(builder, pointer, index)
        for node in graph.order:
            if node.per_element and node.operation != "input":
                element.write(node)
        outputs = zip(graph.outputs(), [pointers[0], *pointers[2:]], strict=True)
        for node, pointer in outputs:
            memory.store(builder, element.values[id(node)], pointer, index)
    builder.ret_void()
    return function


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
