"""A pass as PTX, the text that NVIDIA's driver makes machine code of.

LLVM's own writer of PTX comes with numba, as llvmlite. It is allowed no more than on the CPU: no
fast-math and no contraction, and every division and root is rounded correctly.
"""

from __future__ import annotations

import re
from typing import Any

import llvmlite.binding as llvm

from gradstep.backends.cpu import compiler
from gradstep.backends.llvm.grid_joins import write_joins
from gradstep.backends.llvm.grid_numbers import write_numbers_kernel
from gradstep.backends.llvm.grid_walk import unwritable, write_grid_kernel
from gradstep.program.kernel_spec import KernelSpec
from gradstep.program.numbers_spec import NumbersSpec
from gradstep.program.targets import Target, target_named

#: What a spec for NVIDIA's devices takes.
TARGET: Target = target_named("nvptx64")


def refusal(spec: KernelSpec) -> str | None:
    """Why no kernel is written for a pass; None if one is."""
    return unwritable(spec)


def ptx(spec: KernelSpec, arch: str) -> str:
    """The PTX of a pass, with the entry ``run``, in the oldest version that knows the processor.

    Args:
        spec: of the pass, for :data:`TARGET`.
        arch: the processor, as ``"sm_90"``.

    Raises:
        ValueError: a pass that :func:`refusal` names, or no such processor.
    """
    return _assembly(write_grid_kernel(spec), arch)


def numbers_ptx(spec: NumbersSpec, arch: str) -> str:
    """The PTX that works out rows of scalars, with the entry ``numbers``.

    Args:
        spec: of a row, for :data:`TARGET`.
        arch: the processor, as ``"sm_90"``.

    Raises:
        ValueError: no such processor.
    """
    return _assembly(write_numbers_kernel(spec), arch)


def joins_ptx(arch: str) -> str:
    """The PTX that joins parts of sums, with the entries ``fold`` and ``totals``.

    Args:
        arch: the processor, as ``"sm_90"``.

    Raises:
        ValueError: no such processor.
    """
    return _assembly(write_joins(TARGET), arch)


def _assembly(code: str, arch: str) -> str:
    if not re.fullmatch(r"sm_\d+[af]?", arch):
        raise ValueError(f"arch is {arch!r}. Expected a processor of NVIDIA's, as 'sm_90'")
    return compiler.assembly(code, _machine(arch))


def _machine(arch: str) -> Any:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple("nvptx64-nvidia-cuda")
    return target.create_target_machine(cpu=arch, features="", opt=3)
