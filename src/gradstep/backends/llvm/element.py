"""One element in LLVM code, or several side by side: how it is read and written, and worked out.

Every operation is one IEEE operation, or an expansion made of such.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from gradstep.program.formats import format_of
from gradstep.rule.graph import Node
from gradstep.rule.operations import expanded

I1, I32, I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
POINTER = ir.PointerType()
F32, F64 = ir.FloatType(), ir.DoubleType()
VOID = ir.VoidType()


class Memory:
    """Reads and writes the elements of a column as its format has them."""

    def __init__(self, name: str, converts_half: bool) -> None:
        format = format_of(name)
        self.real = F64 if name == "float64" else F32
        self._conversions = format.code(converts_half)
        self._item_bytes = format.item_bytes
        bits = ir.IntType(8 * self._item_bytes)
        self._stored = self.real if self._conversions is None else bits

    def load(
        self, builder: ir.IRBuilder, pointer: Any, index: Any, lanes: int = 0, align: int = 0
    ) -> Any:
        """The element at an index, in the type that the kernel works in; or a vector from there.

        A vector whose address is known to be a multiple of so many bytes is read at once.
        """
        address = builder.gep(pointer, [index], source_etype=self._stored)
        kind = ir.VectorType(self._stored, lanes) if lanes else self._stored
        value = builder.load(address, align=align or self._item_bytes, typ=kind)
        return value if self._conversions is None else self._conversions[0](builder, value)

    def store(
        self, builder: ir.IRBuilder, value: Any, pointer: Any, index: Any, align: int = 0
    ) -> None:
        """Put an element at an index, encoded; or a vector."""
        if self._conversions is not None:
            value = self._conversions[1](builder, value)
        address = builder.gep(pointer, [index], source_etype=self._stored)
        builder.store(value, address, align=align or self._item_bytes)


class ElementCode:
    """Writes the operations on one element, each as one IEEE operation or an expansion of such.

    Args:
        builder: where to.
        real: what it is worked out in.
        lanes: how many elements side by side, as vectors; 0 for one by itself.
    """

    def __init__(self, builder: ir.IRBuilder, real: Any, lanes: int = 0) -> None:
        self.builder = builder
        self.real = real
        self.lanes = lanes
        self.is_double = real is F64
        self.values: dict[int, Any] = {}

    def _in_all_lanes(self, value: Any) -> Any:
        if not self.lanes:
            return value
        kind = ir.VectorType(value.type, self.lanes)
        first = ir.Constant(I32, 0)
        one = self.builder.insert_element(ir.Constant(kind, ir.Undefined), value, first)
        places = ir.Constant(ir.VectorType(I32, self.lanes), None)
        return self.builder.shuffle_vector(one, one, places)

    def constant(self, value: float) -> Any:
        """A number of the text, rounded to the type that the kernel works in."""
        if self.real is F32:
            try:
                value = struct.unpack("f", struct.pack("f", value))[0]
            except OverflowError:
                value = float("inf") if value > 0 else float("-inf")
        return self._in_all_lanes(ir.Constant(self.real, value))

    def scalar(self, node: Node, value: Any) -> None:
        """Take a float64 number of the row, rounded to the type that the kernel works in."""
        if node.boolean:
            value = self.builder.fcmp_unordered("!=", value, ir.Constant(F64, 0.0))
        elif self.real is F32:
            value = self.builder.fptrunc(value, F32)
        self.values[id(node)] = self._in_all_lanes(value)

    def scalars(self, nodes: Sequence[Node], row: Any) -> None:
        """Read the host's numbers for a tensor from its row."""
        for position, node in enumerate(nodes):
            address = self.builder.gep(row, [ir.Constant(I64, position)], source_etype=F64)
            self.scalar(node, self.builder.load(address, typ=F64))

    def write(self, node: Node) -> None:
        """Write one operation; its arguments have been written."""
        arguments = [self._argument(node, i) for i in range(len(node.arguments))]
        self.values[id(node)] = self.operate(node.operation, *arguments)

    def operate(self, name: str, *values: Any) -> Any:
        """Write an operation on values that have been written."""
        value = expanded(name, self, *values)
        return getattr(self, f"_{name}")(*values) if value is None else value

    def _argument(self, node: Node, position: int) -> Any:
        argument = node.arguments[position]
        value = self.values[id(argument)]
        truth = node.operation in ("and", "or", "not") or (
            node.operation == "where" and position == 0
        )
        if truth and not _is_truth(value.type):
            # A number for a truth value, such as `first`, or one that was kept for a row.
            return self.builder.fcmp_unordered("!=", value, self.constant(0.0))
        return value

    def _intrinsic(self, name: str, *arguments: Any) -> Any:
        suffix = "f32" if self.real is F32 else "f64"
        real = self.real
        if self.lanes:
            real, suffix = ir.VectorType(real, self.lanes), f"v{self.lanes}{suffix}"
        kind = ir.FunctionType(real, [real] * len(arguments))
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

    def _abs(self, a: Any) -> Any:
        return self._intrinsic("fabs", a)

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

    # The bits of a number: expansions know that their arguments are normal.

    def _bits(self, a: Any) -> Any:
        integer = I64 if self.is_double else I32
        return self.builder.bitcast(
            a, ir.VectorType(integer, self.lanes) if self.lanes else integer
        )

    def _real(self, bits: Any) -> Any:
        real = ir.VectorType(self.real, self.lanes) if self.lanes else self.real
        return self.builder.bitcast(bits, real)

    def _integer(self, value: int) -> Any:
        return self._in_all_lanes(ir.Constant(I64 if self.is_double else I32, value))

    def _exponent(self, a: Any) -> Any:
        # Put behind a one at 2^52 or 2^23, the exponent's bits are a number: no conversion, which
        # AVX2 lacks for 64 bits.
        digits, bias = (52, 1023) if self.is_double else (23, 127)
        shifted = self.builder.lshr(self._bits(a), self._integer(digits))
        behind_one = self.builder.or_(shifted, self._bits(self.constant(2.0**digits)))
        return self.builder.fsub(self._real(behind_one), self.constant(2.0**digits + bias))

    def _significand(self, a: Any) -> Any:
        digits = 52 if self.is_double else 23
        fraction = self.builder.and_(self._bits(a), self._integer((1 << digits) - 1))
        return self._real(self.builder.or_(fraction, self._bits(self.constant(1.0))))

    def _power_of_two(self, n: Any) -> Any:
        digits = 52 if self.is_double else 23
        whole = self._bits(self.builder.fadd(n, self.constant(1.5 * 2.0**digits)))
        shifted = self.builder.shl(whole, self._integer(digits))
        return self._real(self.builder.add(shifted, self._bits(self.constant(1.0))))

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


def _is_truth(kind: Any) -> bool:
    return bool(kind == I1 or (isinstance(kind, ir.VectorType) and kind.element == I1))


def as_type(builder: Any, value: Any, kind: Any) -> Any:
    """A float32 or float64 as the other, or as it is, a truth value as 1 or 0; vectors likewise."""
    if value.type == kind:
        return value
    if _is_truth(value.type):
        return builder.uitofp(value, kind)
    to_double = kind == F64 or getattr(kind, "element", None) == F64
    return builder.fpext(value, kind) if to_double else builder.fptrunc(value, kind)
