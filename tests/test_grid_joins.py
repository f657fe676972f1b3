"""What joins parts of sums on a device: the exact sum, and sums of rows and columns."""

from __future__ import annotations

import functools
import math
from array import array
from typing import Any

import numpy
import pytest

import ptx_interpreter
from gradstep.backends.cpu import compiler
from gradstep.backends.cuda.code import joins_ptx
from gradstep.backends.global_sums import exact_sum
from gradstep.backends.llvm.grid import THREADS
from gradstep.backends.llvm.grid_joins import FOLD_ARGUMENTS, TOTALS_ARGUMENTS, write_joins
from gradstep.program.targets import target_named

SIGNATURES = {
    "fold": (len(FOLD_ARGUMENTS) + 1, False),
    "totals": (len(TOTALS_ARGUMENTS) + 1, False),
}


@functools.cache
def functions(where: str) -> Any:
    if where == "loops":
        target = target_named("loops")
        return compiler.functions(f"joins {target}", lambda: write_joins(target), SIGNATURES)
    module = ptx_interpreter.parse(joins_ptx("sm_80"))

    def entry(name: str) -> Any:
        return lambda *given: ptx_interpreter.run(module, name, given[-1], THREADS, given)

    return {name: entry(name) for name in SIGNATURES}


def totals(parts: list[Any], where: str, largest: bool = False) -> list[float]:
    """Of each list of numbers the total."""
    arena = numpy.concatenate([*map(numpy.asarray, parts), numpy.zeros(1)])
    start, rows = 0, []
    for number, own in enumerate(parts):
        # Into its place, and once more so many places behind.
        rows += [int(largest), 8 * start, len(own), number, 2, len(parts)]
        start += len(own)
    table, more = array("q", rows), numpy.full(2 * len(parts), 7.0)
    functions(where)["totals"](
        arena.ctypes.data, table.buffer_info()[0], len(parts), more.ctypes.data, 0, 2
    )
    assert more[: len(parts)].tobytes() == more[len(parts) :].tobytes()
    return list(more[: len(parts)])


def hard(draw: Any) -> list[list[float]]:
    """Sums that are easily rounded twice: ties, what cancels, subnormal and huge numbers."""
    tiny = 5e-324
    found: list[list[float]] = [
        [], [0.0], [1.0, 2.0**-53], [1.0, 2.0**-53, tiny], [1.0, -(2.0**-54), -tiny],
        [1.0 + 2.0**-52, 2.0**-53], [tiny] * 3, [tiny, -tiny], [2.0**1023, -(2.0**1023), tiny],
        [2.0**-1022, -tiny], [1e308, 1e308], [-1e308, -1e308], [1.7e308, 1e291, -1e308],
        [math.inf, 1.0], [math.inf, -math.inf], [math.nan, 1.0], [-math.inf, 3.0],
        [1e16, 1.0, -1e16], [-1.0, 2.0**-60, 1.0], [-(2.0**-1074)] * 5,
    ]  # fmt: skip
    for scale in (1, 30, 300, 1000):
        for count in (1, 2, 7, 100):
            exponents = draw.integers(-scale, scale, count)
            numbers = numpy.ldexp(draw.standard_normal(count), exponents.clip(-1074, 1000))
            found.append([*numbers, *(-numbers[: count // 2])])
    return found


@pytest.mark.parametrize("where", ["loops", "ptx"])
def test_totals_are_the_exact_sums_rounded_once(where: str) -> None:
    cases = hard(numpy.random.default_rng(0))
    cases += [list(c) for c in numpy.random.default_rng(1).random((40, 3))]
    for own, found in zip(cases, totals(cases, where), strict=True):
        right = exact_sum([float(n) for n in own])
        assert found == right or (math.isnan(found) and math.isnan(right)), own


@pytest.mark.parametrize("where", ["loops", "ptx"])
def test_the_largest_is_nan_where_one_is(where: str) -> None:
    found = totals([[1.0, 3.0, 2.0], [1.0, math.nan, 2.0], [-math.inf], []], where, largest=True)
    assert found[0] == 3 and found[2] == -math.inf and numpy.isnan([found[1], found[3]]).all()


@pytest.mark.parametrize("where", ["loops", "ptx"])
def test_parts_are_added_one_after_the_other(where: str) -> None:
    draw = numpy.random.default_rng(0)
    shapes = [(1, 5), (2, 1), (300, 1), (40, 2), (7, 300), (33, 17)]
    parts = [draw.standard_normal(shape) * 10.0 ** draw.integers(-9, 9, shape) for shape in shapes]
    parts[3][5, 1] = math.nan
    arena = numpy.concatenate([own.ravel() for own in parts])
    table, start = array("q"), 0
    for number, own in enumerate(parts):
        table.extend((number % 2, 8 * start, *own.shape))
        start += own.size
    made = arena.copy()
    functions(where)["fold"](made.ctypes.data, table.buffer_info()[0], len(parts), 0, 4)
    start = 0
    for number, own in enumerate(parts):
        right = own.max(axis=0) if number % 2 else functools.reduce(numpy.add, own)
        numpy.testing.assert_array_equal(made[start : start + own.shape[1]], right)
        behind = slice(start + own.shape[1], start + own.size)
        numpy.testing.assert_array_equal(made[behind], arena[behind])
        start += own.size
