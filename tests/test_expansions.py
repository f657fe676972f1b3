"""exp, log, pow, cbrt, tanh and atan2 of the kernels: nearly rounded right, the same everywhere."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable
from typing import Any

import mpmath
import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import gradstep
from gradstep.rule import expansions, language
from gradstep.rule.expansions import DOUBLE, SINGLE
from gradstep.rule.operations import OPERATIONS, Operation
from gradstep.rule.trace import trace
from gradstep.sight.arithmetic import Arithmetic

ONE = ["exp", "log", "cbrt", "tanh"]
TWO = ["pow", "atan2"]


def worked_out(name: str, x: Tensor, y: Tensor | None = None) -> Tensor:
    """What a kernel makes of each element."""
    function, takes_two = getattr(gradstep, name), y is not None

    @gradstep.rule
    def trial(g: Any, *, w: Any) -> Any:
        return gradstep.new_weight(function(w, g) if takes_two else function(w))

    weight = torch.nn.Parameter(x.clone())
    weight.grad = torch.zeros_like(x) if y is None else y.clone()
    optimizer = gradstep.Optimizer([weight], trial, engine="fused")
    optimizer.step()
    return weight.detach()


def units_off(found: Tensor, exact: Any) -> float:
    """How far the worst is from what has more digits, in units in the last place of the exact."""
    kind = numpy.float64 if found.dtype == torch.float64 else numpy.float32
    info = numpy.finfo(kind)
    got = found.numpy().astype(exact.dtype)
    rounded = exact.astype(kind)
    special = ~numpy.isfinite(rounded) | ~numpy.isfinite(found.numpy()) | (rounded == 0)
    same = (found.numpy() == rounded) | (numpy.isnan(rounded) & numpy.isnan(found.numpy()))
    assert same[special].all()
    assert (numpy.signbit(found.numpy()) == numpy.signbit(rounded))[rounded == 0].all()
    exponent = numpy.maximum(numpy.frexp(exact)[1] - 1, info.minexp)
    unit = numpy.ldexp(numpy.ones_like(exact), exponent - info.nmant)
    return float(numpy.where(special, 0, numpy.abs(got - exact) / unit).max())


IN_NUMPY: dict[str, Callable[..., Any]] = {
    "exp": numpy.exp,
    "log": numpy.log,
    "cbrt": numpy.cbrt,
    "tanh": numpy.tanh,
    "pow": numpy.power,
    "atan2": numpy.arctan2,
}


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("name", ONE)
@pytest.mark.parametrize(
    "every", [4099, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.deep])]
)
def test_float32_arguments(name: str, every: int) -> None:
    """Less than one unit off: of all 2³² arguments each so-and-so-manyth, or each."""
    for start in range(0, 2**32, 2**24 * min(every, 64)):
        bits = numpy.arange(start, start + 2**24 * min(every, 64), every, dtype=numpy.uint64)
        x = bits[bits < 2**32].astype(numpy.uint32).view(numpy.float32)
        exact = IN_NUMPY[name](x.astype(numpy.float64))
        assert units_off(worked_out(name, torch.from_numpy(x)), exact) < 0.9


def pairs(kind: Any, count: int) -> tuple[Any, Any]:
    """Numbers of all sizes, then bases and exponents whose powers are numbers, then edges."""
    generator = numpy.random.default_rng(0)
    largest = math.log(float(numpy.finfo(kind).max))
    bits = numpy.uint64 if kind is numpy.float64 else numpy.uint32
    any_size = generator.integers(0, numpy.iinfo(bits).max, (2, count), dtype=bits).view(kind)
    base = numpy.exp(generator.uniform(-largest, largest, count))
    near = generator.uniform(0.5, 2, count)
    bases = numpy.concatenate([base, near])
    powers = generator.uniform(-1.05, 1.05, 2 * count) * largest / numpy.abs(numpy.log(bases))
    info = numpy.finfo(kind)
    sizes = [0, 1, 0.5, 2, 3, 1.5, numpy.inf, numpy.nan, info.tiny, info.tiny / 4, info.max]
    sizes += [1e-3, 7, 7.5, 1 + info.eps, 1 - info.eps / 2]
    digits = info.nmant
    sizes += [2.0 ** (digits - 1) + 0.5, 2.0**digits + 1, 2.0 ** (digits + 1) - 1, 2.0**60]
    edges = numpy.array([*sizes, *(-s for s in sizes)], dtype=kind)
    x, y = numpy.meshgrid(edges, edges)
    return (
        numpy.concatenate([any_size[0], bases.astype(kind), x.ravel()]),
        numpy.concatenate([any_size[1], powers.astype(kind), y.ravel()]),
    )


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("name", TWO)
def test_float32_pairs(name: str) -> None:
    x, y = pairs(numpy.float32, 200_000)
    exact = IN_NUMPY[name](x.astype(numpy.float64), y.astype(numpy.float64))
    assert units_off(worked_out(name, torch.from_numpy(x), torch.from_numpy(y)), exact) < 0.9


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("name", TWO)
def test_float64_special_pairs_are_those_of_the_c_standard(name: str) -> None:
    """And the others within a unit of a C library, itself at most a unit off."""
    x, y = pairs(numpy.float64, 20_000)
    # NumPy 1.26 has an atan2 of its own, two units off.
    c_library = {"pow": numpy.power, "atan2": numpy.vectorize(math.atan2)}[name]
    exact = c_library(x, y).astype(numpy.float64)
    assert units_off(worked_out(name, torch.from_numpy(x), torch.from_numpy(y)), exact) < 2


IN_MPMATH: dict[str, Callable[..., Any]] = {
    "exp": mpmath.exp,
    "log": mpmath.log,
    "cbrt": lambda x: mpmath.sign(x) * mpmath.cbrt(abs(x)),
    "tanh": mpmath.tanh,
    "pow": mpmath.power,
    "atan2": mpmath.atan2,
}
_finite = st.floats(allow_nan=False, allow_infinity=False)
_near = st.floats(-2.0, 2.0) | st.floats(-700.0, 700.0)


def _check_float64(name: str, *arguments: list[float]) -> None:
    found = worked_out(name, *(torch.tensor(a, dtype=torch.float64) for a in arguments)).tolist()
    with mpmath.workdps(60):
        for place, got in enumerate(found):
            exact = IN_MPMATH[name](*(mpmath.mpf(a[place]) for a in arguments))
            if abs(exact) > mpmath.mpf(1.797e308):
                assert got == math.copysign(math.inf, exact) or abs(got) > 1.797e308
                continue
            if abs(exact) < mpmath.mpf(2) ** -1076:
                assert abs(got) <= 5e-324
                continue
            exponent = max(int(mpmath.floor(mpmath.log(abs(exact), 2))), -1022)
            unit = mpmath.mpf(2) ** (exponent - 52)
            assert abs(mpmath.mpf(got) - exact) < unit, (name, [a[place] for a in arguments])


@pytest.mark.parametrize("name", ONE)
@given(numbers=st.lists(_finite | _near, min_size=20, max_size=40))
def test_float64_arguments(name: str, numbers: list[float]) -> None:
    numbers = [abs(x) or 1.0 for x in numbers] if name == "log" else numbers
    _check_float64(name, [x for x in numbers if x or name != "log"])


@given(
    numbers=st.lists(
        st.tuples(st.floats(1e-300, 1e300) | st.floats(0.5, 2.0), st.floats(-745.0, 709.0)),
        min_size=10,
        max_size=20,
    )
)
def test_float64_powers(numbers: list[tuple[float, float]]) -> None:
    """Exponents are chosen by the size of the result: from the smallest number to the largest."""
    bases = [x for x, _ in numbers if x != 1.0]
    exponents = [size / math.log(x) for x, size in numbers if x != 1.0]
    sizes = [(x, y) for x, y in zip(bases, exponents, strict=True) if math.isfinite(y)]
    if sizes:
        _check_float64("pow", [x for x, _ in sizes], [y for _, y in sizes])


@given(numbers=st.lists(st.tuples(_finite | _near, _finite | _near), min_size=10, max_size=20))
def test_float64_angles(numbers: list[tuple[float, float]]) -> None:
    points = [(y, x) for y, x in numbers if y and x]
    if points:
        _check_float64("atan2", [y for y, _ in points], [x for _, x in points])


# The polynomials.


def _fit(function: Callable[[Any], Any], low: Any, high: Any, degree: int) -> list[Any]:
    """The coefficients of the polynomial through a function at Chebyshev's nodes."""
    middle, half = (low + high) / 2, (high - low) / 2
    turns = [(2 * k + 1) * mpmath.pi / (2 * (degree + 1)) for k in range(degree + 1)]
    nodes = [middle + half * mpmath.cos(turn) for turn in turns]
    powers = mpmath.matrix([[x**k for k in range(degree + 1)] for x in nodes])
    return list(mpmath.lu_solve(powers, mpmath.matrix([function(x) for x in nodes])))


def _of_square(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``(f(x) / x − 1) / x²`` for odd functions that begin with x, of ``x²``."""
    return lambda z: (function(mpmath.sqrt(z)) / mpmath.sqrt(z) - 1) / z


def _exp_beyond_the_square(r: Any) -> Any:
    """``(e^r − 1 − r − r²/2) / r³``, of which nothing is left to see near 0."""
    near = mpmath.mpf(1) / 6 + r / 24
    return near if abs(r) < 1e-12 else (mpmath.exp(r) - 1 - r - r * r / 2) / r**3


def test_the_polynomials_are_what_they_are_said_to_be() -> None:
    with mpmath.workdps(60):
        half_ln2 = mpmath.log(2) / 2 * mpmath.mpf("1.0001")
        third = 3 - mpmath.sqrt(8)  # (√2 − 1) / (√2 + 1)
        atanh_end = third**2 * mpmath.mpf("1.0001")
        atan_end = ((mpmath.sqrt(2) - 1) * mpmath.mpf("1.0001")) ** 2
        atanh = _of_square(mpmath.atanh)
        for precision, kind in ((SINGLE, numpy.float32), (DOUBLE, numpy.float64)):
            cases = [
                (precision.exp, _exp_beyond_the_square, -half_ln2, half_ln2),
                (precision.log, atanh, mpmath.mpf(0), atanh_end),
                (precision.log_tail, lambda z: (atanh(z) - mpmath.mpf(1) / 3) / z, 0, atanh_end),
                (precision.tanh, _of_square(mpmath.tanh), 0, mpmath.mpf("0.35") ** 2),
                (precision.atan, _of_square(mpmath.atan), 0, atan_end),
                (expansions.CUBE_ROOT, mpmath.cbrt, mpmath.mpf(1) / 2, mpmath.mpf(4)),
                (
                    expansions.CUBE_ROOT_SLOPE,
                    lambda a: 1 / (3 * mpmath.cbrt(a) ** 2),
                    mpmath.mpf(1) / 2,
                    mpmath.mpf(4),
                ),
            ]
            for coefficients, function, low, high in cases:
                exact = _fit(function, mpmath.mpf(low), mpmath.mpf(high), len(coefficients) - 1)
                single = kind is numpy.float32 or low == mpmath.mpf(1) / 2
                rounded = [float(numpy.float32(float(c)) if single else float(c)) for c in exact]
                assert list(map(numpy.float32 if single else float, coefficients)) == rounded
            for pair, value in (
                (precision.ln2, mpmath.log(2)),
                (precision.third, mpmath.mpf(1) / 3),
                (precision.pi, mpmath.pi),
            ):
                high = kind(float(value))
                assert pair == (float(high), float(kind(float(value - mpmath.mpf(float(high))))))


# The same bits everywhere.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", [*ONE, *TWO])
def test_an_explanation_has_the_bits_of_the_kernel(name: str, dtype: torch.dtype) -> None:
    kind = numpy.float64 if dtype == torch.float64 else numpy.float32
    x, y = pairs(kind, 10)
    x, y = x[:: len(x) // 150], y[:: len(y) // 150]

    function, takes_two = getattr(gradstep, name), name in TWO

    @gradstep.rule
    def trial(g: Any, *, w: Any) -> Any:
        return gradstep.new_weight(function(w, g) if takes_two else function(w))

    arithmetic = Arithmetic(trace(trial, {"lr": 0.1}), dtype)
    found = [
        arithmetic.evaluate(float(a), float(b), {}, {"lr": 0.1}).weight
        for a, b in zip(x, y, strict=True)
    ]
    arguments = [torch.from_numpy(x), torch.from_numpy(y)][: 2 if name in TWO else 1]
    kernel = worked_out(name, *arguments).tolist()
    for a, b, explained, run in zip(x, y, found, kernel, strict=True):
        same = explained == run and math.copysign(1, explained) == math.copysign(1, run)
        assert same or (math.isnan(explained) and math.isnan(run)), (a, b)


@pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="about x86-64 instructions"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_other_instructions_give_the_same_bits(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled for this CPU, and for one without long vectors or a fused multiply-add."""
    kind = numpy.float64 if dtype == torch.float64 else numpy.float32
    x, y = map(torch.from_numpy, pairs(kind, 500))

    def all_of_them() -> Tensor:
        arguments = {name: (x, y) if name in TWO else (x,) for name in [*ONE, *TWO]}
        found = torch.stack([worked_out(name, *given) for name, given in arguments.items()])
        return found.nan_to_num(nan=12345.0).view(torch.int64)

    here = all_of_them()
    monkeypatch.setenv("NUMBA_CPU_NAME", "x86-64")
    monkeypatch.setenv("NUMBA_CPU_FEATURES", "")
    assert torch.equal(here, all_of_them())


# One row.


def test_an_operation_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the language, every engine, text, LaTeX and explanations, by the table alone."""
    row = Operation(
        number=lambda x: x / (1 + abs(x)),
        tensor=lambda x: x / (1 + x.abs()),
        text="softsign({})",
        expansion=lambda x: x / (1.0 + abs(x)),
        about="x / (1 + |x|).",
    )
    monkeypatch.setitem(OPERATIONS, "softsign", row)
    assert gradstep.softsign(3.0) == 0.75 and "softsign" in dir(gradstep)
    try:

        @gradstep.rule
        def soft(g: Any, *, lr: Any) -> Any:
            direction = gradstep.softsign(g)
            return direction

        start = torch.linspace(-3, 3, 1001)
        expected = start - 0.1 * (start / (1 + start.abs()))
        for engine in ("fused", "eager"):
            weight = torch.nn.Parameter(start.clone())
            weight.grad = start.clone()
            optimizer = gradstep.Optimizer([weight], soft, lr=0.1, engine=engine)
            optimizer.step()
            assert set(optimizer.engines_used().values()) == {engine}
            torch.testing.assert_close(weight.detach(), expected, rtol=2e-7, atol=2e-7)
        assert "softsign(g)" in str(gradstep.formula(soft))
        assert r"\operatorname{softsign}\left(g\right)" in gradstep.formula(soft).latex()
        armed = gradstep.explain(optimizer, optimizer.param_groups[0]["params"][0], index=7)
        optimizer.step()
        assert "softsign" in str(armed)
    finally:
        vars(language).pop("softsign", None)
