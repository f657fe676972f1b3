"""The numbers of a step worked out by the code for devices, against those of the host."""

from __future__ import annotations

import ctypes
import math
import random
from array import array
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

import ptx_interpreter
from gradstep.backends.cpu import compiler
from gradstep.backends.cuda.code import TARGET, numbers_ptx
from gradstep.backends.llvm.grid import THREADS
from gradstep.backends.llvm.grid_numbers import NUMBERS_ARGUMENTS, write_numbers_kernel
from gradstep.program.numbers_spec import NumbersSpec, numbers_spec
from gradstep.program.targets import target_named
from grid_cases import FEW, FLAT, FLAT_NAMES, bound
from reference import REFERENCES, Reference

#: What the host asks the C library for; of these the last bits may differ.
CURVED = {"pow", "exp", "log", "cbrt", "tanh", "atan2"}
TENSORS = 300  # more than a block has threads


def in_loops(spec: NumbersSpec) -> Callable[..., None]:
    signatures = {"numbers": (len(NUMBERS_ARGUMENTS) + 1, False)}
    made = compiler.functions(spec.text(), lambda: write_numbers_kernel(spec), signatures)
    run: Callable[..., None] = made["numbers"]
    return run


def as_ptx(spec: NumbersSpec) -> Callable[..., None]:
    module = ptx_interpreter.parse(numbers_ptx(spec, "sm_80"))

    def run(*arguments: int) -> None:
        ptx_interpreter.run(module, "numbers", arguments[-1], THREADS, arguments)

    return run


def at(held: array[Any]) -> int:
    return held.buffer_info()[0]


class Case:
    """Tensors of a rule that have made different numbers of steps."""

    def __init__(self, reference: Reference, options: dict[str, Any], where: str) -> None:
        specs, program, self.kernel, like = bound(reference, options, torch.float32)
        draw = random.Random(0)
        self.states = [[draw.uniform(0.5, 1.5) for _ in like.numbers] for _ in range(TENSORS)]
        counts = [*like.numbers][-1:] == ["step"]
        for number, row in enumerate(self.states):
            if counts:
                row[-1] = float(number % 7)
        stored = [(n, str(t.dtype).removeprefix("torch.")) for n, t in like.numbers.items()]
        self.tensors = [
            [
                torch.tensor(value, dtype=t.dtype)
                for value, t in zip(row, like.numbers.values(), strict=True)
            ]
            for row in self.states
        ]
        self.firsts = [float(number % 7 == 0) for number in range(TENSORS)]
        self.numbers = [draw.choice([0.0, 1.0, draw.uniform(0.01, 0.99)]) for _ in program.names]
        target = TARGET if where == "ptx" else target_named("loops")
        (scalars,) = (spec.scalars for spec in specs)
        given = ["float64", *["float32"] * (len(program.names) - 1)]
        self.spec = numbers_spec(program, scalars, stored, given, target)
        self.run = (as_ptx if where == "ptx" else in_loops)(self.spec)

    def on_the_host(self) -> list[list[float]]:
        rows = []
        for row, first in zip(self.tensors, self.firsts, strict=True):
            own = [float(number) for number in row]
            if self.spec.counts:
                own[-1] += 1.0
            else:
                own.append(1.0)
            rows.append(list(map(float, self.kernel.row(*own, first, *self.numbers))))
        return rows

    def on_the_device(self, skip: float | None = None, moved: Tensor | None = None) -> Any:
        """The rows; ``moved``: lr, where it lies on the device."""
        width = len(self.spec.states) + 2  # two states that are no numbers stand before
        rows = [[0, 0, *[t.data_ptr() for t in row]] for row in self.tensors]
        table = array("q", [*[0] * (2 * TENSORS), *[p for row in rows for p in row]])
        numbers, firsts = array("d", self.numbers), array("d", self.firsts)
        addresses = [0 if moved is None else moved.data_ptr(), *[0] * (len(self.numbers) - 1)]
        given, more = array("q", addresses), array("d", [0.0])
        scalars = array("d", [math.nan] * (TENSORS * len(self.spec.outputs)))
        flag = ctypes.c_float(skip or 0.0)
        self.run(
            at(table), TENSORS, width, at(numbers), at(given), at(firsts), at(more), at(scalars),
            0 if skip is None else ctypes.addressof(flag), 2,
        )  # fmt: skip
        return numpy.array(scalars).reshape(TENSORS, -1)

    def check(self) -> None:
        before = [[t.clone() for t in row] for row in self.tensors]
        assert numpy.isnan(self.on_the_device(skip=1.0)).all()
        assert self.tensors == before  # nothing is written where a gradient is infinite
        right = numpy.array(self.on_the_host())
        found = self.on_the_device(skip=0.0)
        curved = any(node.operation in CURVED for node in self.spec.nodes())
        if curved:
            numpy.testing.assert_allclose(found, right, rtol=4e-15, atol=1e-300)
        else:
            numpy.testing.assert_array_equal(found, right)
        after = found[:, self.spec.behind :]
        for row, made in zip(self.tensors, after, strict=True):
            for tensor, value in zip(row, made, strict=False):
                assert torch.equal(tensor, torch.tensor(value).to(tensor.dtype)) or math.isnan(
                    value
                )


WITH_NUMBERS = [r for r in REFERENCES if r.name in ("NAdam", "ASGD")]


@pytest.mark.parametrize("where", ["loops", "ptx"])
@pytest.mark.parametrize("reference", WITH_NUMBERS, ids=lambda r: r.name)
def test_rows_are_those_of_the_host(reference: Reference, where: str) -> None:
    Case(reference, {}, where).check()


@pytest.mark.deep
@pytest.mark.parametrize("where", ["loops", "ptx"])
@pytest.mark.parametrize(("reference", "options"), FLAT, ids=FLAT_NAMES)
def test_rows_of_every_rule_with_every_flag(
    reference: Reference, options: dict[str, Any], where: str
) -> None:
    Case(reference, options, where).check()


def test_a_learning_rate_on_the_device_is_read_there() -> None:
    case = Case(*FEW[0], "ptx")
    lr = torch.tensor(0.625, dtype=torch.float64)
    found = case.on_the_device(moved=lr)
    case.numbers[0] = 0.625
    for row in case.tensors:
        row[-1] -= 1
    assert (case.on_the_device() == found).all()
    for row in case.tensors:
        row[-1] -= 1
    lr.fill_(0.25)
    assert not (case.on_the_device(moved=lr) == found).all()
