"""The loop over elements, as LLVM code: what a pass does on those of a line.

Of a flat walk a line is a whole tile. Values that are to be summed are laid out: for each reduction
in a buffer. What lies in memory in codes goes through the loop as float32, a stretch at a time:
decoded before it and encoded behind it, in the fastest cache.
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
from gradstep.program.format import Codec
from gradstep.program.formats import format_of
from gradstep.program.kernel_spec import Column, KernelSpec
from gradstep.program.loops import counted, give_attribute, internal

#: Elements a stretch of codes, a multiple of every block: two states are 8 KiB of float32.
STRETCH = 1024

#: Operations an element up to which a loop does nothing but wait for memory. With narrower vectors
#: SGD takes 0.95 to 0.98 of the time there (Zen 4), momentum 0.97 to 0.99, AdamW 1.00 to 1.04.
STREAMING = 5


def real_type(spec: KernelSpec) -> Any:
    """The type that elements are worked out in."""
    return F64 if spec.working == "float64" else F32


def lies_along(spec: KernelSpec, column: Column) -> bool:
    """Whether a line's elements lie one after the other in a column, or share one."""
    domain = spec.domain
    return column.extent == domain or (domain == "element" and column.extent == "column")


def codec_of(column: Column) -> Codec | None:
    """How a column is read by stretches; None for one that is read element by element."""
    return format_of(column.format).codec()


def items_of(column: Column) -> tuple[tuple[int, int], ...]:
    """Of each tensor of a column: so many bytes, for so many elements."""
    codec = codec_of(column)
    return ((format_of(column.format).item_bytes, 1),) if codec is None else codec.items


def write_line(module: ir.Module, spec: KernelSpec) -> ir.Function:
    """The work on the elements of a line.

    The function takes the tensors of all columns, the buffers, how many elements the line has, the
    numbers, and the place of its first element in the tensor.
    """
    codecs = list(map(codec_of, spec.columns))
    elements = _write_elements(module, spec)
    if not any(codecs):
        return elements
    counts = [len(items_of(column)) for column in spec.columns]
    width = sum(counts) + len(spec.sums)
    kind = ir.FunctionType(VOID, [POINTER] * width + [I64, POINTER, I64])
    function = ir.Function(module, kind, "stretches")
    *pointers, count, row, first = function.args
    b = internal(function)
    key = b.gep(row, [ir.Constant(I64, max(0, len(spec.scalars) - 1))], source_etype=F64)
    tensors = [[pointers.pop(0) for _ in range(own)] for own in counts]
    numbers = [c and b.alloca(ir.ArrayType(F32, STRETCH), name="numbers") for c in codecs]
    read, written = ({column for _, column in pairs} for pairs in (spec.loads, spec.stores))
    real = ir.Constant(I64, 8 if spec.working == "float64" else 4)
    with counted(b, count, STRETCH) as start:
        rest, most = b.sub(count, start), ir.Constant(I64, STRETCH)
        size = b.select(b.icmp_signed("<", rest, most), rest, most)
        given, parts = [], []
        for each, own, line in zip(spec.columns, tensors, numbers, strict=True):
            begin = start if lies_along(spec, each) else ir.Constant(I64, 0)
            here = [
                address(b, pointer, begin, item)
                for pointer, item in zip(own, items_of(each), strict=True)
            ]
            parts.append(here)
            given.append(line or here[0])
        for column in sorted(read):
            codec = codecs[column]
            if codec is not None:
                name, own = f"decode_{column}", [*parts[column], numbers[column]]
                _call(b, name, own, size, lambda b, t, n, c=codec: c.decode(b, t[:-1], n, t[-1]))
        buffers = [b.gep(p, [b.mul(start, real)], source_etype=ir.IntType(8)) for p in pointers]
        b.call(elements, [*given, *buffers, size, row, first])
        for column in sorted(written):
            codec = codecs[column]
            if codec is not None:
                name, own = f"encode_{column}", [*parts[column], numbers[column]]
                counter = (b.add(first, start), b.load(key, typ=F64)) if codec.is_random else ()
                _call(b, name, own, size, _encoder(codec), counter)
    b.ret_void()
    return function


def _encoder(codec: Codec) -> Any:
    def body(b: ir.IRBuilder, tensors: list[Any], count: Any, *counter: Any) -> None:
        chances = {"counter": counter} if counter else {}
        codec.encode(b, tensors[-1], count, tensors[:-1], **chances)

    return body


def _call(
    b: ir.IRBuilder,
    name: str,
    tensors: list[Any],
    count: Any,
    body: Any,
    more: tuple[Any, ...] = (),
) -> None:
    """Write a function of its own, whose tensors are known to lie apart, and call it."""
    kinds = [POINTER] * len(tensors) + [I64, *(value.type for value in more)]
    function = ir.Function(b.module, ir.FunctionType(VOID, kinds), name)
    own, (size, *rest) = function.args[: len(tensors)], function.args[len(tensors) :]
    inside = internal(function, *own)
    body(inside, list(own), size, *rest)
    inside.ret_void()
    b.call(function, [*tensors, count, *more])


def address(b: ir.IRBuilder, start: Any, index: Any, item: tuple[int, int]) -> Any:
    """Where an element's item lies behind a pointer; of several elements the first's."""
    size, elements = item
    if elements > 1:
        index = b.lshr(index, ir.Constant(I64, elements.bit_length() - 1))
    return b.gep(start, [b.mul(index, ir.Constant(I64, size))], source_etype=ir.IntType(8))


def _write_elements(module: ir.Module, spec: KernelSpec) -> ir.Function:
    """The loop over single elements: the function takes a pointer for each column."""
    width = len(spec.columns) + len(spec.sums)
    kind = ir.FunctionType(VOID, [POINTER] * width + [I64, POINTER, I64])
    function = ir.Function(module, kind, "line")
    *pointers, count, row, _ = function.args
    builder = internal(function, *pointers)
    if spec.target.streaming_bits and len(spec.work) <= STREAMING:
        give_attribute(function, "prefer-vector-width", spec.target.streaming_bits)
    element = ElementCode(builder, real_type(spec))
    given(element, spec, row)
    columns, buffers = pointers[: len(spec.columns)], pointers[len(spec.columns) :]
    memories = [
        Memory("float32" if codec_of(c) else c.format, spec.target.converts_half)
        for c in spec.columns
    ]
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
