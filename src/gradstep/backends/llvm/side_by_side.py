"""Sum lines as they are read, as LLVM code, where a pass sums over whole tensors.

What is read goes straight into the sums, in vectors; and several lines are read side by side where
nothing is written: a core has more requests for memory on their way where they go to several pages.
The norm of 57 M elements on two cores: 12.3 ms by fours with a buffer between reading and summing,
8.8 ms so. LAMB's sums over four columns: a tenth off the step.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from gradstep.backends.llvm.element import F64, I64, POINTER, VOID, ElementCode, Memory, as_type
from gradstep.backends.llvm.line import codec_of, given, lies_along, real_type
from gradstep.backends.llvm.prefetch import prefetch
from gradstep.backends.llvm.sums import LANES, LaneSum
from gradstep.program.formats import format_of
from gradstep.program.kernel_spec import KernelSpec
from gradstep.program.loops import counted, internal
from gradstep.program.targets import Target


def lines_at_once(spec: KernelSpec) -> int:
    """How many lines are summed at once: 0 where sums go along rows or columns."""
    along = all(lies_along(spec, column) for column in spec.columns)
    whole = bool(spec.sums) and all(node.extent == "tensor" for node, _ in spec.sums)
    written = [spec.columns[column] for _, column in spec.stores]
    coded = any(codec_of(column) for column in spec.columns)
    if not along or not whole or coded:
        return 0
    if any(format_of(c.format).code(spec.target.converts_half) for c in written):
        return 0
    # More columns are as many pages already.
    few = len(spec.columns) <= 2 and len(spec.sums) <= 2
    return spec.target.side_by_side if few and not written else 1


def write_side_by_side(module: ir.Module, spec: KernelSpec, together: int) -> ir.Function:
    """The sums of so many lines, each as :class:`LaneSum` has it.

    The function takes all columns of the first line, then those of the next; how many elements a
    line has, a multiple of :data:`LANES`; the numbers; and where the sums go, those of the first
    line first.
    """
    width = len(spec.columns)
    kind = ir.FunctionType(VOID, [POINTER] * (width * together) + [I64, POINTER, POINTER])
    function = ir.Function(module, kind, "side_by_side")
    *pointers, count, row, out = function.args
    builder = internal(function, *pointers)
    lines = [pointers[k * width : (k + 1) * width] for k in range(together)]
    vector = ir.VectorType(real_type(spec), LANES)
    elements = [ElementCode(builder, vector.element, LANES) for _ in lines]
    for element in elements:
        given(element, spec, row)
    memories = [Memory(column.format, spec.target.converts_half) for column in spec.columns]
    before = builder.block
    with counted(builder, count, LANES) as index:
        totals = [[LaneSum(builder, node, before) for node, _ in spec.sums] for _ in lines]
        for element, columns, own in zip(elements, lines, totals, strict=True):
            for column, pointer in zip(spec.columns, columns, strict=True):
                item_bytes = format_of(column.format).item_bytes
                _ask_ahead(builder, pointer, index, item_bytes, spec.target)
            for node, number in spec.loads:
                loaded = memories[number].load(builder, columns[number], index, LANES)
                element.values[id(node)] = as_type(builder, loaded, vector)
            for node in spec.work:
                element.write(node)
            for node, number in spec.stores:
                memory = memories[number]
                stored = ir.VectorType(memory.real, LANES)
                value = as_type(builder, element.values[id(node)], stored)
                memory.store(builder, value, columns[number], index)
            for (node, _), total in zip(spec.sums, own, strict=True):
                total.add(element.values[id(node.arguments[0])])
                total.close()
    every = [total for own in totals for total in own]
    for total in every:
        total.end()
    for position, total in enumerate(every):
        place = builder.gep(out, [ir.Constant(I64, position)], source_etype=F64)
        builder.store(total.joined(), place)
    builder.ret_void()
    return function


def _ask_ahead(
    builder: ir.IRBuilder, pointer: Any, index: Any, item_bytes: int, target: Target
) -> None:
    for start in range(0, LANES * item_bytes, target.cache_line):
        ahead = ir.Constant(I64, target.bytes_ahead + start)
        offset = builder.add(builder.mul(index, ir.Constant(I64, item_bytes)), ahead)
        prefetch(builder, builder.gep(pointer, [offset], source_etype=ir.IntType(8)))
