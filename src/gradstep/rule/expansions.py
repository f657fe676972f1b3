"""exp, log, pow, cbrt, tanh and atan2 as IEEE operations alone, in float32 and float64.

No C library is asked, so a result is the same on every machine, and LLVM may work out as many
elements side by side as its vectors hold. Each is less than one unit in the last place off the
true value, with the special cases of the C standard (Annex F).

The methods are the usual ones: the argument is brought into a small range, exactly or with the
part that was rounded off kept beside it; a polynomial does the rest. The polynomials interpolate
at Chebyshev's nodes; ``tests/test_expansions.py`` works them out anew, with 60 digits.

An *algebra* says what the operations are done on: LLVM values, or NumPy's numbers. It has a method
``operate(name, *values)`` and ``constant(number)``, and says whether it works in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Algebra(Protocol):
    """What the operations are done on.

    Beside the arithmetic of the language (``add``, ``fma``, ``where``, ``lt`` …) it has three of
    the bits of a number: ``exponent`` and ``significand`` of a positive normal number, ``x =
    significand · 2^exponent`` with the significand from 1 to 2, and ``power_of_two`` of a whole
    number for which that is a normal number.
    """

    is_double: bool

    def constant(self, value: float) -> Any:
        """A number of the text."""

    def operate(self, name: str, *values: Any) -> Any:
        """The outcome of an operation."""


@dataclass(frozen=True)
class Precision:
    """What differs between float32 and float64.

    Attributes:
        round_shift: added and taken away again, it leaves a whole number.
        whole_from: numbers from here on are whole.
        smallest_normal: the smallest normal number.
        lift, lifted: a power of two that makes subnormal numbers normal, and its exponent.
        highest, lowest: from here on exp is infinite, or 0.
        ln2, third, pi: what is rounded, and what was rounded off.
        exp: ``(e^r − 1 − r − r²/2) / r³`` for \\|r\\| up to ``ln2 / 2``.
        log: ``(atanh(s) / s − 1) / s²``, and
        log_tail: ``((atanh(s) / s − 1) / s² − 1/3) / s²``, in powers of ``s²``, s up to ``3 − √8``.
        tanh: ``(tanh(x) / x − 1) / x²`` in powers of ``x²``, for x up to 0.35.
        atan: ``(atan(x) / x − 1) / x²`` in powers of ``x²``, for x up to ``√2 − 1``.
        halley: so many steps of Halley's make a cube root from one of 7 bits.
    """

    round_shift: float
    whole_from: float
    smallest_normal: float
    lift: float
    lifted: float
    highest: float
    lowest: float
    ln2: tuple[float, float]
    third: tuple[float, float]
    pi: tuple[float, float]
    exp: tuple[float, ...]
    log: tuple[float, ...]
    log_tail: tuple[float, ...]
    tanh: tuple[float, ...]
    atan: tuple[float, ...]
    halley: int


SINGLE = Precision(
    round_shift=1.5 * 2.0**23,
    whole_from=2.0**23,
    smallest_normal=2.0**-126,
    lift=2.0**32,
    lifted=32.0,
    highest=89.0,
    lowest=-104.0,
    ln2=(0.6931471824645996, -1.9046542121259336e-09),
    third=(0.3333333432674408, -9.934107758624577e-09),
    pi=(3.1415927410125732, -8.742277657347586e-08),
    exp=(0.16666667, 0.041666556, 0.008333321, 0.0013926184, 0.00019882698),
    log=(0.33333334, 0.20000061, 0.14275408, 0.11665291),
    log_tail=(0.2, 0.14285766, 0.11102381, 0.095602274),
    tanh=(-0.3333333, 0.13332963, -0.053815942, 0.019837985),
    atan=(-0.33333334, 0.19999978, -0.1428415, 0.110713445, -0.0862452, 0.050477363),
    halley=1,
)
DOUBLE = Precision(
    round_shift=1.5 * 2.0**52,
    whole_from=2.0**52,
    smallest_normal=2.0**-1022,
    lift=2.0**64,
    lifted=64.0,
    highest=710.0,
    lowest=-746.0,
    ln2=(0.6931471805599453, 2.3190468138462996e-17),
    third=(0.3333333333333333, 1.850371707708594e-17),
    pi=(3.141592653589793, 1.2246467991473532e-16),
    exp=(
        0.16666666666666669,
        0.041666666666666664,
        0.008333333333330062,
        0.0013888888888886552,
        0.00019841269863053618,
        2.4801587317144498e-05,
        2.7557268459997064e-06,
        2.755728296954995e-07,
        2.510038549551032e-08,
        2.0911236630261545e-09,
    ),
    log=(
        0.3333333333333335,
        0.19999999999949722,
        0.14285714313001635,
        0.11111105565129939,
        0.09091444727837474,
        0.07665855309105386,
        0.07308292712444311,
    ),
    log_tail=(
        0.2,
        0.14285714285714682,
        0.11111111110827943,
        0.09090909167696401,
        0.07692297481259215,
        0.06667402346923655,
        0.05853118169745603,
        0.05861589311938259,
    ),
    tanh=(
        -0.3333333333333333,
        0.13333333333332845,
        -0.053968253967190176,
        0.02186948844673358,
        -0.00886323175761739,
        0.003592038401479678,
        -0.0014545775399280403,
        0.0005796641245845887,
        -0.00019202753283131075,
    ),
    atan=(
        -0.3333333333333333,
        0.19999999999999804,
        -0.14285714285659729,
        0.11111111105145725,
        -0.09090908753017178,
        0.07692296361048218,
        -0.06666424634599337,
        0.05878926110528101,
        -0.052304330074828924,
        0.0455149623749493,
        -0.034568068014968874,
        0.016282993238924487,
    ),
    halley=2,
)
#: The cube root from 1/2 to 4, to 7 bits.
CUBE_ROOT = (0.51899785, 0.6542973, -0.2158002, 0.04437846, -0.003660165)
#: Its derivative there, to 5 bits.
CUBE_ROOT_SLOPE = (0.8289891, -0.80955327, 0.4067505, -0.095446944, 0.008375724)


class Term:
    """A value of an algebra that answers to Python's operators."""

    __slots__ = ("algebra", "value")

    def __init__(self, algebra: Algebra, value: Any) -> None:
        self.algebra = algebra
        self.value = value

    @property
    def precision(self) -> Precision:
        """The numbers that its type asks for."""
        return DOUBLE if self.algebra.is_double else SINGLE

    def operate(self, name: str, *others: Term | float) -> Term:
        """An operation on this value and others, which may be numbers of the text."""
        algebra = self.algebra
        values = [o.value if isinstance(o, Term) else algebra.constant(o) for o in others]
        return Term(algebra, algebra.operate(name, self.value, *values))

    def __add__(self, other: Term | float) -> Term:
        return self.operate("add", other)

    __radd__ = __add__

    def __sub__(self, other: Term | float) -> Term:
        return self.operate("sub", other)

    def __rsub__(self, other: float) -> Term:
        return _number(self, other) - self

    def __mul__(self, other: Term | float) -> Term:
        return self.operate("mul", other)

    __rmul__ = __mul__

    def __truediv__(self, other: Term | float) -> Term:
        return self.operate("div", other)

    def __rtruediv__(self, other: float) -> Term:
        return _number(self, other) / self

    def __neg__(self) -> Term:
        return self.operate("neg")

    def __abs__(self) -> Term:
        return self.operate("abs")

    def __lt__(self, other: Term | float) -> Term:
        return self.operate("lt", other)

    def __gt__(self, other: Term | float) -> Term:
        return self.operate("gt", other)

    def __ge__(self, other: Term | float) -> Term:
        return self.operate("ge", other)

    def equals(self, other: Term | float) -> Term:
        """Whether the two are equal; not so for nan."""
        return self.operate("eq", other)

    def is_nan(self) -> Term:
        """Whether it is no number."""
        return self.operate("ne", self)

    def __and__(self, other: Term) -> Term:
        return self.operate("and", other)

    def __or__(self, other: Term) -> Term:
        return self.operate("or", other)

    def __invert__(self) -> Term:
        return self.operate("not")

    def where(self, a: Term | float, b: Term | float) -> Term:
        """``a`` where this truth value holds, else ``b``."""
        return self.operate("where", a, b)


def _number(x: Term, value: float) -> Term:
    """A number of the text, on what x is on."""
    return Term(x.algebra, x.algebra.constant(value))


def _fma(a: Term, b: Term | float, c: Term | float) -> Term:
    return a.operate("fma", b, c)


def _polynomial(coefficients: Sequence[float], x: Term) -> Term:
    found = _fma(x, coefficients[-1], coefficients[-2])
    for coefficient in reversed(coefficients[:-2]):
        found = _fma(found, x, coefficient)
    return found


def _rounded(x: Term, p: Precision) -> Term:
    """The nearest whole number, of a number whose size is below ``whole_from / 2``."""
    return (x + p.round_shift) - p.round_shift


@dataclass(frozen=True)
class _Pair:
    """A sum of two, of which the second is what the first one's rounding has left."""

    high: Term
    low: Term


def _product(a: Term, b: Term | float) -> _Pair:
    high = a * b
    return _Pair(high, _fma(a, b, -high))


def _sum(a: Term, b: Term) -> _Pair:
    """The sum of two of any sizes (Knuth)."""
    high = a + b
    of_b = high - a
    return _Pair(high, (a - (high - of_b)) + (b - of_b))


def _quick_sum(a: Term | float, b: Term) -> _Pair:
    """The sum of two of which the first is the larger, or 0 (Dekker)."""
    high = b + a
    return _Pair(high, (a - high) + b)


def _quotient(a: _Pair, b: _Pair) -> _Pair:
    high = a.high / b.high
    rest = _fma(-high, b.high, a.high) + (a.low - high * b.low)
    return _Pair(high, rest / b.high)


def _times_power(x: Term, exponent: Term, p: Precision) -> Term:
    """``x · 2^exponent``, rounded once: in two steps, of which neither overflows before its end."""
    half = _rounded(exponent * 0.5, p)
    return x * half.operate("power_of_two") * (exponent - half).operate("power_of_two")


def _parts(x: Term, p: Precision) -> tuple[Term, Term]:
    """Exponent and significand, from 1 to 2, of what is above 0, also of subnormal numbers."""
    small = x < p.smallest_normal
    lifted = small.where(x * p.lift, x)
    exponent = lifted.operate("exponent") - small.where(p.lifted, 0.0)
    return exponent, lifted.operate("significand")


def _around_one(x: Term, p: Precision) -> tuple[Term, Term]:
    """The same with the significand from √½ to √2."""
    exponent, significand = _parts(x, p)
    large = significand > 2.0**0.5
    return large.where(exponent + 1.0, exponent), large.where(significand * 0.5, significand)


def _exp_reduced(x: _Pair, p: Precision) -> tuple[_Pair, Term]:
    """e to the power of a sum, as ``pair · 2^exponent``; within ``lowest`` and ``highest``."""
    exponent = _rounded(x.high * (1 / p.ln2[0]), p)
    # The first product and sum are exact: the rest is a multiple of ulp(ln2), and below 1/2.
    rest = _quick_sum(_fma(exponent, -p.ln2[0], x.high), _fma(exponent, -p.ln2[1], x.low))
    r = rest.high
    square = _product(r, r)
    below = 0.5 * square.low + (rest.low + rest.low * r)
    below = _fma(square.high * r, _polynomial(p.exp, r), below)
    tail = _fma(square.high, 0.5, below)
    one = _quick_sum(1.0, r)
    return _quick_sum(one.high, one.low + tail), exponent


def _exp(x: _Pair, p: Precision) -> Term:
    inside = (x.high < p.lowest).where(p.lowest, x.high)
    inside = (inside > p.highest).where(p.highest, inside)
    # What is clamped has no rest; nor has nan, which stays one.
    rest = inside.equals(x.high).where(x.low, 0.0)
    found, exponent = _exp_reduced(_Pair(inside, rest), p)
    return _times_power(found.high, exponent, p)


def exp(x: Term) -> Term:
    """e to the power x."""
    return _exp(_Pair(x, _number(x, 0.0)), x.precision)


def log(x: Term) -> Term:
    """The natural logarithm, by ``log(1 + f) = f − f²/2 + s·(f²/2 + R)``, ``s = f / (2 + f)``."""
    p = x.precision
    exponent, significand = _around_one(x, p)
    f = significand - 1.0
    s = f / (f + 2.0)
    z = s * s
    half_square = 0.5 * f * f
    series = 2.0 * (z * _polynomial(p.log, z))
    below = _fma(s, half_square + series, exponent * p.ln2[1])
    found = _fma(exponent, p.ln2[0], f - (half_square - below))
    found = x.equals(float("inf")).where(x, found)
    found = x.equals(0.0).where(-float("inf"), found)
    return (x < 0.0).where(float("nan"), x.is_nan().where(x, found))


def _log_pair(x: Term, p: Precision) -> _Pair:
    """The natural logarithm of what is above 0, to half as many bits again and more."""
    exponent, significand = _around_one(x, p)
    f = significand - 1.0
    s = _quotient(_Pair(f, _number(x, 0.0)), _quick_sum(2.0, f))
    z = _product(s.high, s.high)
    z = _Pair(z.high, z.low + 2.0 * s.high * s.low)
    factor = _quick_sum(p.third[0], z.high * _polynomial(p.log_tail, z.high))
    # The polynomial has not seen z's low part, of which it takes a fifth.
    factor = _Pair(factor.high, factor.low + _fma(z.low, 0.2, p.third[1]))
    u = _product(z.high, factor.high)
    u = _Pair(u.high, u.low + (z.high * factor.low + z.low * factor.high))
    v = _product(s.high, u.high)
    v = _Pair(v.high, v.low + (s.high * u.low + s.low * u.high))
    atanh = _quick_sum(s.high, v.high)
    powers = _product(exponent, p.ln2[0])
    found = _sum(powers.high, 2.0 * atanh.high)
    low = 2.0 * (atanh.low + (v.low + s.low)) + _fma(exponent, p.ln2[1], powers.low)
    return _quick_sum(found.high, found.low + low)


def pow(x: Term, y: Term) -> Term:
    """``x`` to the power ``y``, by ``exp(y · log|x|)``, with the sign that an odd power has."""
    p = x.precision
    size = abs(x)
    logarithm = _log_pair(size, p)
    power = _product(y, logarithm.high)
    low = power.low + y * logarithm.low
    # Beyond all numbers, or of nan, there is no rest.
    low = (abs(power.high) < 2.0 * p.highest).where(low, 0.0)
    found = _exp(_Pair(power.high, low), p)

    infinity = float("inf")
    below_one = size < 1.0
    # 0 and infinity, whose logarithms are none: and a y of infinity, times a logarithm of 0.
    grows = (y > 0.0).where(infinity, 0.0)
    shrinks = (y > 0.0).where(0.0, infinity)
    found = size.equals(infinity).where(grows, found)
    found = size.equals(0.0).where(shrinks, found)
    infinite = below_one.where(shrinks, grows)
    infinite = size.equals(1.0).where(1.0, infinite)
    found = abs(y).equals(infinity).where(infinite, found)
    found = (x.is_nan() | y.is_nan()).where(x + y, found)
    is_whole = _is_whole(abs(y), p)
    is_odd = is_whole & ~_is_whole(abs(y) * 0.5, p)
    negative = x < 0.0
    minus_zero = x.equals(0.0) & (1.0 / x < 0.0)
    found = ((negative | minus_zero) & is_odd).where(-found, found)
    unreal = negative & ~is_whole & ~size.equals(infinity)
    found = unreal.where(float("nan"), found)
    return (y.equals(0.0) | x.equals(1.0)).where(1.0, found)


def _is_whole(size: Term, p: Precision) -> Term:
    """Whether a number of 0 or more has no fraction; infinity has none."""
    rounded = (size + p.whole_from) - p.whole_from
    return (size >= p.whole_from) | rounded.equals(size)


def cbrt(x: Term) -> Term:
    """The cube root, by Halley's iteration and one correction with the exact rest."""
    p = x.precision
    size = abs(x)
    exponent, significand = _parts(size, p)
    third = _rounded(exponent * (1 / 3), p)
    a = significand * (exponent - 3.0 * third).operate("power_of_two")
    y = _polynomial(CUBE_ROOT, a)
    for _ in range(p.halley):
        cube = y * y * y
        y = y * ((cube + 2.0 * a) / (2.0 * cube + a))
    square = _product(y, y)
    rest = _fma(square.low, y, _fma(square.high, y, -a))
    # So small a rest that its factor's first bits will do, which saves a division.
    slope = _polynomial(CUBE_ROOT_SLOPE, a)
    found = _fma(-rest, slope, y) * third.operate("power_of_two")
    found = (x < 0.0).where(-found, found)
    # 0, with its sign, infinity and nan stay what they are.
    return (x.equals(x + x) | x.is_nan()).where(x, found)


def tanh(x: Term) -> Term:
    """The hyperbolic tangent: near 0 a polynomial, else ``1 − 2 / (e^2|x| + 1)``."""
    p = x.precision
    size = abs(x)
    square = x * x
    near = _fma(x * square, _polynomial(p.tanh, square), x)
    # Beyond, 1 is nearer than any other number.
    limit = p.highest / 8.0
    inside = (size > limit).where(limit, size)
    power, exponent = _exp_reduced(_Pair(2.0 * inside, _number(x, 0.0)), p)
    scale = exponent.operate("power_of_two")
    above = _sum(power.high * scale, _number(x, 1.0))
    below = _Pair(above.high, above.low + power.low * scale)
    share = _quotient(_Pair(_number(x, 2.0), _number(x, 0.0)), below)
    far = _quick_sum(1.0, -share.high)
    far_value = far.high + (far.low - share.low)
    far_value = (x < 0.0).where(-far_value, far_value)
    # 0 keeps its sign, and nan stays one.
    same = x.equals(0.0) | x.is_nan()
    return same.where(x, (size < 0.35).where(near, far_value))


def atan2(y: Term, x: Term) -> Term:
    """The angle of the point (x, y), from −π to π."""
    p = x.precision
    tall, wide = abs(y), abs(x)
    steep = tall > wide
    longer, shorter = steep.where(tall, wide), steep.where(wide, tall)
    # Both infinite are as both 1; and both 0 as 0 and 1.
    both = shorter.equals(float("inf"))
    shorter, longer = both.where(1.0, shorter), both.where(1.0, longer)
    infinite = longer.equals(float("inf"))
    none = longer.equals(0.0)
    shorter = infinite.where(0.0, shorter)
    longer = (infinite | none).where(1.0, longer)
    exponent, longer = _parts(longer, p)
    shorter = _times_power(shorter, -exponent, p)
    # Above π/8, the angle to the diagonal: (shorter − longer) / (shorter + longer).
    is_far = shorter > (2.0**0.5 - 1.0) * longer
    difference, total = _sum(shorter, -longer), _sum(shorter, longer)
    zero = _number(x, 0.0)
    upper = _Pair(is_far.where(difference.high, shorter), is_far.where(difference.low, zero))
    lower = _Pair(is_far.where(total.high, longer), is_far.where(total.low, zero))
    t = _quotient(upper, lower)
    square = t.high * t.high
    tail = _fma(t.high * square, _polynomial(p.atan, square), t.low)
    # The turns that the point is from the axis: added to a multiple of π/4, of either sign.
    backwards = x < 0.0
    backwards = backwards | (x.equals(0.0) & (1.0 / x < 0.0))
    flip = steep.where(-1.0, 1.0)
    turn = backwards.where(-1.0, 1.0)
    base = is_far.where(0.25, 0.0)
    # steep: π/2 − angle; backwards: π − that.
    base = steep.where(0.5 - base, base)
    base = backwards.where(1.0 - base, base)
    sign = flip * turn
    start = _product(base, p.pi[0])
    angle = _sum(start.high, sign * t.high)
    found = angle.high + (angle.low + (start.low + _fma(base, p.pi[1], sign * tail)))
    # So small an angle that the quotient's own rounding is all: right also where it is subnormal.
    found = (base.equals(0.0) & (t.high < p.smallest_normal)).where(abs(y / x), found)
    found = none.where(backwards.where(p.pi[0], 0.0), found)
    below = (y < 0.0) | (y.equals(0.0) & (1.0 / y < 0.0))
    found = below.where(-found, found)
    return (x.is_nan() | y.is_nan()).where(x + y, found)
