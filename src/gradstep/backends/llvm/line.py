"""The loop over elements, as LLVM code: what a pass does on those of a line.

Of a flat walk a line is a whole tile. Values that are to be summed are laid out: for each reduction
in a buffer.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from gradstep.backends.llvm.element import (
    F32,
    F64,
    I64,
    POINTER,
    VOID,
    ElementCode,
    Memory,
    as_type,
)
from gradstep.backends.llvm.loop import counted, internal
from gradstep.program.kernel_spec import Column, KernelSpec


def real_type(spec: KernelSpec) -> Any:
    """The type that elements are worked out in."""
    return F64 if spec.working == "float64" else F32


def lies_along(spec: KernelSpec, column: Column) -> bool:
    """Whether a line's elements lie one after the other in a column, or share one."""
    domain = spec.domain
    return column.extent == domain or (domain == "element" and column.extent == "column")


def write_line(module: ir.Module, spec: KernelSpec) -> ir.Function:
    """The work on the elements of a line.

    The function takes all columns and buffers, how many elements the line has, and the numbers.
    """
    width = len(spec.columns) + len(spec.sums)
    kind = ir.FunctionType(VOID, [POINTER] * width + [I64, POINTER])
    function = ir.Function(module, kind, "line")
    *pointers, count, row = function.args
    builder = internal(function, *pointers)
    element = ElementCode(builder, real_type(spec))
    given(element, spec, row)
    columns, buffers = pointers[: len(spec.columns)], pointers[len(spec.columns) :]
    memories = [Memory(c.format, spec.target.converts_half) for c in spec.columns]
    along = [lies_along(spec, column) for column in spec.columns]
    values = element.values

    def load(column: int, index: Any) -> Any:
        value = memories[column].load(builder, columns[column], index)
        return as_type(builder, value, element.real)

    for node, column in spec.loads:
        if not along[column]:
            values[id(node)] = load(column, ir.Constant(I64, 0))
    with counted(builder, count) as index:
        for node, column in spec.loads:
            if along[column]:
                values[id(node)] = load(column, index)
        for node in spec.work:
            element.write(node)
        for node, column in spec.stores:
            stored = as_type(builder, values[id(node)], memories[column].real)
            memories[column].store(builder, stored, columns[column], index)
        for (node, _), buffer in zip(spec.sums, buffers, strict=True):
            address = builder.gep(buffer, [index], source_etype=element.real)
            builder.store(values[id(node.arguments[0])], address)
    builder.ret_void()
    return function


def given(element: ElementCode, spec: KernelSpec, row: Any) -> None:
    """Put the host's numbers and the constants where the element's code finds them."""
    element.scalars(spec.scalars, row)
    for node in spec.work:
        for argument in node.arguments:
            if argument.operation == "constant":
                element.values[id(argument)] = element.constant(argument.constant())
