"""The interpreter of PTX, where NumPy has no such instruction: against exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy
import pytest

import ptx_interpreter


def test_a_fused_multiply_add_of_float32_rounds_once() -> None:
    draw = numpy.random.default_rng(0)
    a, b = draw.standard_normal((2, 3000)).astype(numpy.float32)
    c = -(a * b) * draw.choice([1, 1 + 2**-23, 2**-24, 2**12, 0], 3000).astype(numpy.float32)
    a[:40] *= numpy.float32(1e-38)
    with numpy.errstate(all="ignore"):
        found = ptx_interpreter._fma(a, b, c)
    assert not (found == a * b + c).all()  # two roundings are something else
    for x, y, z, made in zip(a, b, c, found, strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        around = [made, *(numpy.nextafter(made, numpy.float32(s)) for s in ("inf", "-inf"))]
        away = [abs(Fraction(float(v)) - exact) for v in around]
        assert away[0] == min(away)
        if away.count(away[0]) > 1:
            assert made.view(numpy.uint32) % 2 == 0


def test_a_fused_multiply_add_of_float64_rounds_once() -> None:
    draw = numpy.random.default_rng(0)
    a, b = draw.standard_normal((2, 3000))
    c = -(a * b) * draw.choice([1, 1 + 2**-52, 2**-53, 2**12, 0], 3000)
    a[:40] *= 1e-300
    b[20:40] *= 1e-15
    b[40:60] *= 1e300
    with numpy.errstate(all="ignore"):
        found = ptx_interpreter._fma(a, b, c)
    assert not (found == a * b + c).all()
    for x, y, z, made in zip(a, b, c, found, strict=True):
        assert float(Fraction(x) * Fraction(y) + Fraction(z)) == made


BODY = """.visible .entry run(
\t.param .u64 run_param_0
)
{
\t.reg .pred \t%p<2>;
\t.reg .b32 \t%r<4>;
\t.reg .b64 \t%rd<4>;
\tld.param.b64 \t%rd1, [run_param_0];
\tmov.u32 \t%r1, %tid.x;
\tsetp.lt.s32 \t%p1, %r1, 2;
\t@%p1 bra \t$L__1;
"""


def test_what_it_does_not_know_is_an_error() -> None:
    text = BODY + "\tfma.rz.f32 %r1, %r1, %r1, %r1;\n$L__1:\n\tret;\n}\n"
    with pytest.raises(AssertionError, match=r"fma\.rz"):
        ptx_interpreter.parse(text)
    with pytest.raises(NotImplementedError, match=r"sin\.approx"):
        ptx_interpreter.parse(text.replace("fma.rz.f32 %r1, %r1, %r1, %r1", "sin.approx.f32 %r1"))


def test_unaligned_accesses_and_lone_barriers_are_errors() -> None:
    held = numpy.zeros(4, numpy.int64)
    store = "\tst.global.v2.b64 [%rd1+8], {%rd1, %rd1};\n$L__1:\n\tret;\n}\n"
    module = ptx_interpreter.parse(BODY + store)
    with pytest.raises(AssertionError, match="unaligned"):
        ptx_interpreter.run(module, "run", 1, 4, [held.ctypes.data & ~15])
    module = ptx_interpreter.parse(BODY + "\tbar.sync 0;\n$L__1:\n\tret;\n}\n")
    ptx_interpreter.run(module, "run", 1, 2, [0])  # nobody comes
    with pytest.raises(AssertionError, match="a barrier"):
        ptx_interpreter.run(module, "run", 1, 4, [0])
