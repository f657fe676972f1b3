"""A backend that runs the kernels of grids on CPU tensors, in the place of the CPU's own.

It is the CPU's in all but the code of a pass: that is the text for a device of blocks and threads,
in loops over both, or whatever else can run it. So a step with it is held against the same step of
the CPU's, to the last bit.
"""

from __future__ import annotations

import ctypes
import threading
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import ptx_interpreter
from gradstep.backends.base import Binding
from gradstep.backends.cpu import Cpu, compiler
from gradstep.backends.cpu.binding import Tensors
from gradstep.backends.cpu.kernel import Kernel
from gradstep.backends.cuda.code import ptx
from gradstep.backends.eligibility import STORAGE
from gradstep.backends.llvm.grid import THREADS
from gradstep.backends.llvm.grid_walk import ARGUMENTS, chunks, unwritable, write_grid_kernel
from gradstep.backends.llvm.walk import FIXED
from gradstep.backends.update import Update
from gradstep.program.kernel_spec import KernelSpec
from gradstep.program.program import Program
from gradstep.program.targets import Target, target_named
from gradstep.program.walks import FIELDS

#: Runs a pass, given the arguments of its kernel.
Runner = Callable[..., None]
#: Blocks a grid: fewer than chunks, so that a block takes several.
BLOCKS = 3


def in_loops(spec: KernelSpec) -> Runner:
    """The code of a pass compiled for this machine, with loops over blocks and threads."""
    kinds = {"run": (len(ARGUMENTS) + 1, False)}
    run: Runner = compiler.functions(spec.text(), lambda: write_grid_kernel(spec), kinds)["run"]
    return run


def interpreted(spec: KernelSpec) -> Runner:
    """The PTX of a pass, executed by NumPy."""
    module = ptx_interpreter.parse(ptx(spec, "sm_80"))

    def run(*arguments: int) -> None:
        ptx_interpreter.run(module, "run", arguments[-1], THREADS, arguments)

    return run


class GridBackend(Cpu):
    """The CPU's backend with other code.

    Args:
        name: as ``engine=`` takes it.
        target: whom the code is for.
        runner: makes of a spec what runs the pass.

    Attributes:
        passes: how many passes it has run.
        bound: each program that was bound, its kernel, and one of the weights.
    """

    def __init__(
        self,
        name: str = "grid",
        target: Target | None = None,
        runner: Callable[[KernelSpec], Runner] = in_loops,
    ) -> None:
        self.name = name
        self.target = target or target_named("loops")
        self.runner = runner
        self.passes = 0
        self.bound: list[tuple[Program, Kernel, Update]] = []
        self._one = threading.Lock()

    def takes_plain(self, program: Program) -> bool:
        return False

    def bind(self, program: Program, updates: Sequence[Update]) -> Binding:
        like = updates[0]
        key = (self, STORAGE[like.weight.dtype][0], like.weight_format, like.seed)
        key = (*key, *like.formats.items())
        if key not in program.kept:
            program.kept[key] = Kernel(
                program, key[1], like.formats, like.weight_format, like.seed, self.target,
                self._compiled,
            )  # fmt: skip
        self.bound.append((program, program.kept[key], like))
        return Tensors(program.kept[key], updates, [u.weight for u in updates])

    def _compiled(self, spec: KernelSpec) -> Callable[..., None]:
        """A pass as a function of what the CPU's takes."""
        assert unwritable(spec) is None
        run, flat = self.runner(spec), spec.walk == "flat"

        def as_on_the_cpu(
            table: int, scalars: int, distance: int, counter: int, fixed_at: int
        ) -> None:
            with self._one:  # of the threads that come to help
                taken = ctypes.c_int64.from_address(counter)
                taken.value += 1
                if taken.value > 1:
                    return
            fixed = dict(zip(FIXED, _integers(fixed_at, len(FIXED)), strict=True))
            tiles, count = fixed["tiles"], fixed["tile_count"]
            if flat:
                width = len(FIELDS["flat"])
                found = _integers(tiles, width * count)
                sizes = [0] * fixed["tensors"]
                for tensor, start, size in zip(*[iter(found)] * width, strict=True):
                    sizes[tensor] = max(sizes[tensor], start + size)
                own = chunks(sizes)
                tiles, count = own.buffer_info()[0], len(own) // width
            self.passes += 1
            run(
                table, scalars, distance, fixed["tensors"], fixed["row_width"], fixed["arena"],
                fixed["places"], fixed["places_width"], tiles, count, 0, BLOCKS,
            )  # fmt: skip

        return as_on_the_cpu


def _integers(at: int, count: int) -> list[int]:
    held: Any = (ctypes.c_int64 * count).from_address(at)
    return list(array("q", held))
