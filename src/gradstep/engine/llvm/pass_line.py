"""What a pass does on the elements of a line, as LLVM code.

A function for consecutive elements, as a kernel without reductions has it, which also lays out the
values that are to be summed: of each line in a buffer of its own.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from gradstep.engine.llvm.element import F32, F64, I64, POINTER, VOID, ElementCode, Memory
from gradstep.engine.llvm.loop import counted, internal
from gradstep.engine.outline import Column, PassOutline


def real_type(outline: PassOutline) -> Any:
    """The type that elements are worked out in."""
    return F64 if outline.working == "float64" else F32


def lies_along(outline: PassOutline, column: Column) -> bool:
    """Whether a line's elements lie one after the other in a column, or share one."""
    domain = outline.domain
    return column.extent == domain or (domain == "element" and column.extent == "column")


def write_line(module: ir.Module, outline: PassOutline, lines: int) -> ir.Function:
    """The work on the elements of so many lines, side by side.

    The function takes all columns and buffers of the first line, then those of the next; how many
    elements a line has; and the numbers.
    """
    width = len(outline.columns) + len(outline.sums)
    kind = ir.FunctionType(VOID, [POINTER] * (width * lines) + [I64, POINTER])
    function = ir.Function(module, kind, "line" if lines == 1 else f"line{lines}")
    *pointers, count, row = function.args
    builder = internal(function, *pointers)
    real = real_type(outline)
    parts = [
        _Line(outline, ElementCode(builder, real), pointers[k * width : (k + 1) * width])
        for k in range(lines)
    ]
    for position, node in enumerate(outline.numbers):
        address = builder.gep(row, [ir.Constant(I64, position)], source_etype=F64)
        number = builder.load(address, typ=F64)
        for part in parts:
            part.element.number(node, number)
    for part in parts:
        part.begin(builder)
    with counted(builder, count) as index:
        for part in parts:
            part.work(builder, index)
    builder.ret_void()
    return function


class _Line:
    def __init__(self, outline: PassOutline, element: ElementCode, pointers: list[Any]) -> None:
        self.outline = outline
        self.element = element
        self.real = element.real
        self.pointers = pointers[: len(outline.columns)]
        self.buffers = pointers[len(outline.columns) :]
        self.memories = [Memory(c.storage, outline.half_instructions) for c in outline.columns]
        self.along = [lies_along(outline, column) for column in outline.columns]

    def begin(self, builder: Any) -> None:
        """What is the same for all elements of the line."""
        for node in self.outline.work:
            for argument in node.arguments:
                if argument.operation == "constant":
                    constant = self.element.constant(argument.constant())
                    self.element.values[id(argument)] = constant
        for node, column in self.outline.loads:
            if not self.along[column]:
                value = self._load(builder, column, ir.Constant(I64, 0))
                self.element.values[id(node)] = value

    def work(self, builder: Any, index: Any) -> None:
        """On one element."""
        values = self.element.values
        for node, column in self.outline.loads:
            if self.along[column]:
                values[id(node)] = self._load(builder, column, index)
        for node in self.outline.work:
            self.element.write(node)
        for node, column in self.outline.stores:
            memory = self.memories[column]
            stored = _as_type(builder, values[id(node)], memory.real)
            memory.store(builder, stored, self.pointers[column], index)
        for (node, _), buffer in zip(self.outline.sums, self.buffers, strict=True):
            address = builder.gep(buffer, [index], source_etype=self.real)
            builder.store(values[id(node.arguments[0])], address)

    def _load(self, builder: Any, column: int, index: Any) -> Any:
        value = self.memories[column].load(builder, self.pointers[column], index)
        return _as_type(builder, value, self.real)


def _as_type(builder: Any, value: Any, kind: Any) -> Any:
    if value.type is kind:
        return value
    return builder.fpext(value, F64) if kind is F64 else builder.fptrunc(value, kind)
