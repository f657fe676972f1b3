"""bfloat16 and float16 in registers: to and from float32.

Written out in 32-bit integer arithmetic, which vectorises on every CPU. Where the CPU has
instructions for float16 (F16C) they are used: the same bits, and on 20 M weights Adam took a third
of the time. Rounding is to nearest, ties to even, as torch rounds; a nan becomes the standard one.
All take vectors as well.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir

I16, I32, F32 = ir.IntType(16), ir.IntType(32), ir.FloatType()


def _as_many(kind: Any, value: Any) -> Any:
    """A type; where the value is a vector, a vector of it."""
    of = value.type
    return ir.VectorType(kind, of.count) if isinstance(of, ir.VectorType) else kind


def _alike(kind: Any, number: float, value: Any) -> Any:
    """A number; where the value is a vector, in all its lanes."""
    of = value.type
    if not isinstance(of, ir.VectorType):
        return ir.Constant(kind, number)
    return ir.Constant(ir.VectorType(kind, of.count), [number] * of.count)


def from_bfloat16(builder: ir.IRBuilder, bits: Any) -> Any:
    """A bfloat16 is the upper half of a float32."""
    wide = builder.zext(bits, _as_many(I32, bits))
    return builder.bitcast(builder.shl(wide, _alike(I32, 16, bits)), _as_many(F32, bits))


def to_bfloat16(builder: ir.IRBuilder, value: Any) -> Any:
    """Add half a unit, less one where the kept part is even, and cut."""
    # Chosen before the rounding, which leaves it: on 16-bit lanes the choice took twice as long.
    is_nan = builder.fcmp_unordered("uno", value, value)
    kept = builder.select(is_nan, _alike(F32, math.nan, value), value)
    bits = builder.bitcast(kept, _as_many(I32, value))

    def c(value: int) -> Any:
        return _alike(I32, value, bits)

    odd = builder.and_(builder.lshr(bits, c(16)), c(1))
    rounded = builder.lshr(builder.add(bits, builder.add(odd, c(0x7FFF))), c(16))
    return builder.trunc(rounded, _as_many(I16, value))


def from_float16(builder: ir.IRBuilder, bits: Any) -> Any:
    """Move exponent and fraction into place; tiny and infinite numbers need their own exponent."""

    def c(value: int) -> Any:
        return _alike(I32, value, bits)

    integers, reals = _as_many(I32, bits), _as_many(F32, bits)
    wide = builder.zext(bits, integers)
    sign = builder.shl(builder.and_(wide, c(0x8000)), c(16))
    magnitude = builder.and_(wide, c(0x7FFF))
    shifted = builder.shl(magnitude, c(13))
    normal = builder.add(shifted, c((127 - 15) << 23))
    special = builder.add(shifted, c((255 - 31) << 23))
    # A subnormal is a whole number of 2^-24: read as an integer, exact in float32.
    tiny = builder.fmul(builder.sitofp(magnitude, reals), _alike(F32, 2.0**-24, bits))
    is_special = builder.icmp_unsigned(">=", magnitude, c(0x7C00))
    is_tiny = builder.icmp_unsigned("<", magnitude, c(0x0400))
    result = builder.select(is_special, special, normal)
    result = builder.select(is_tiny, builder.bitcast(tiny, integers), result)
    return builder.bitcast(builder.or_(result, sign), reals)


def to_float16(builder: ir.IRBuilder, value: Any) -> Any:
    """Round in the integer for normal numbers, by a float32 addition for tiny ones."""
    integers, reals = _as_many(I32, value), _as_many(F32, value)

    def c(number: int) -> Any:
        return _alike(I32, number, value)

    bits = builder.bitcast(value, integers)
    sign = builder.lshr(builder.and_(bits, c(0x80000000)), c(16))
    magnitude = builder.and_(bits, c(0x7FFFFFFF))
    odd = builder.and_(builder.lshr(magnitude, c(13)), c(1))
    rounding = builder.add(odd, c(0xFFF - ((127 - 15) << 23)))
    normal = builder.lshr(builder.add(magnitude, rounding), c(13))
    # 0.5 has the unit 2^-24 in its last place: the sum's last bits are the rounded subnormal.
    half = _alike(F32, 0.5, value)
    lifted = builder.bitcast(builder.fadd(builder.bitcast(magnitude, reals), half), integers)
    tiny = builder.sub(lifted, c(0x3F000000))
    is_tiny = builder.icmp_unsigned("<", magnitude, c((127 - 14) << 23))
    is_large = builder.icmp_unsigned(">=", magnitude, c((127 + 16) << 23))
    result = builder.select(is_large, c(0x7C00), builder.select(is_tiny, tiny, normal))
    is_nan = builder.icmp_unsigned(">", magnitude, c(0x7F800000))
    result = builder.select(is_nan, c(0x7E00), result)
    return builder.trunc(builder.or_(result, sign), _as_many(I16, value))


def from_float16_by_instruction(builder: ir.IRBuilder, bits: Any) -> Any:
    """The CPU's own conversion."""
    halves = builder.bitcast(bits, _as_many(ir.HalfType(), bits))
    return builder.fpext(halves, _as_many(F32, bits))


def to_float16_by_instruction(builder: ir.IRBuilder, value: Any) -> Any:
    """The CPU's own conversion, with the standard nan."""
    # Of a nan it keeps the sign and the upper bits: the choice is made on 32-bit lanes.
    integers, reals = _as_many(I32, value), _as_many(F32, value)

    def c(number: int) -> Any:
        return _alike(I32, number, value)

    is_nan = builder.fcmp_unordered("uno", value, value)
    sign = builder.and_(builder.bitcast(value, integers), c(0x80000000))
    nan = builder.bitcast(builder.or_(sign, c(0x7FC00000)), reals)
    half = builder.fptrunc(builder.select(is_nan, nan, value), _as_many(ir.HalfType(), value))
    return builder.bitcast(half, _as_many(I16, value))


def conversions(storage: str, half_instructions: bool) -> tuple[Any, Any] | None:
    """How to read and to write a storage type; None where it is worked in as it is stored."""
    if storage == "bfloat16":
        return from_bfloat16, to_bfloat16
    if storage == "float16" and half_instructions:
        return from_float16_by_instruction, to_float16_by_instruction
    return (from_float16, to_float16) if storage == "float16" else None
