"""What a pass does on the elements of a line, as LLVM code.

:func:`write_line` is a function for consecutive elements, as a kernel without reductions has it,
which also lays out the values that are to be summed: for each reduction in a buffer.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from gradstep.engine.llvm.element import F32, F64, I64, POINTER, VOID, ElementCode, Memory, as_type
from gradstep.engine.llvm.loop import counted, internal
from gradstep.engine.outline import Column, PassOutline


def real_type(outline: PassOutline) -> Any:
    """The type that elements are worked out in."""
    return F64 if outline.working == "float64" else F32


def lies_along(outline: PassOutline, column: Column) -> bool:
    """Whether a line's elements lie one after the other in a column, or share one."""
    domain = outline.domain
    return column.extent == domain or (domain == "element" and column.extent == "column")


def write_line(module: ir.Module, outline: PassOutline) -> ir.Function:
    """The work on the elements of a line.

    The function takes all columns and buffers, how many elements the line has, and the numbers.
    """
    width = len(outline.columns) + len(outline.sums)
    kind = ir.FunctionType(VOID, [POINTER] * width + [I64, POINTER])
    function = ir.Function(module, kind, "line")
    *pointers, count, row = function.args
    builder = internal(function, *pointers)
    element = ElementCode(builder, real_type(outline))
    given(element, outline, row)
    columns, buffers = pointers[: len(outline.columns)], pointers[len(outline.columns) :]
    memories = [Memory(c.storage, outline.half_instructions) for c in outline.columns]
    along = [lies_along(outline, column) for column in outline.columns]
    values = element.values

    def load(column: int, index: Any) -> Any:
        value = memories[column].load(builder, columns[column], index)
        return as_type(builder, value, element.real)

    for node, column in outline.loads:
        if not along[column]:
            values[id(node)] = load(column, ir.Constant(I64, 0))
    with counted(builder, count) as index:
        for node, column in outline.loads:
            if along[column]:
                values[id(node)] = load(column, index)
        for node in outline.work:
            element.write(node)
        for node, column in outline.stores:
            stored = as_type(builder, values[id(node)], memories[column].real)
            memories[column].store(builder, stored, columns[column], index)
        for (node, _), buffer in zip(outline.sums, buffers, strict=True):
            address = builder.gep(buffer, [index], source_etype=element.real)
            builder.store(values[id(node.arguments[0])], address)
    builder.ret_void()
    return function


def given(element: ElementCode, outline: PassOutline, row: Any) -> None:
    """Put the host's numbers and the constants where the element's code finds them."""
    element.numbers(outline.numbers, row)
    for node in outline.work:
        for argument in node.arguments:
            if argument.operation == "constant":
                element.values[id(argument)] = element.constant(argument.constant())
