"""Write the kernel of a pass for a device of blocks and threads, as LLVM code."""

from __future__ import annotations

from llvmlite import ir

from gradstep.backends.llvm.grid_flat import FlatGrid, chunks, lanes_of
from gradstep.backends.llvm.grid_lines import LineGrid
from gradstep.backends.llvm.grid_pieces import ARGUMENTS
from gradstep.backends.llvm.line import codec_of
from gradstep.program.kernel_spec import KernelSpec

__all__ = ["ARGUMENTS", "chunks", "lanes_of", "unwritable", "write_grid_kernel"]


def unwritable(spec: KernelSpec) -> str | None:
    """Why no such kernel is written for a pass; None if one is."""
    coded = [column.format for column in spec.columns if codec_of(column) is not None]
    return f"it is stored as {coded[0]}" if coded else None


def write_grid_kernel(spec: KernelSpec) -> str:
    """The code of a pass: a module with the function ``run``.

    Raises:
        ValueError: a pass that :func:`unwritable` names.
    """
    reason = unwritable(spec)
    if reason is not None:
        raise ValueError(f"no kernel is written for a grid: {reason}")
    module = ir.Module(name="gradstep")
    walk = FlatGrid if spec.walk == "flat" else LineGrid
    walk(module, spec).write()
    return str(module)
