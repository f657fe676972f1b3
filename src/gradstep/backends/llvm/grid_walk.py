"""Write the kernel of a pass for a device of blocks and threads, as LLVM code."""

from __future__ import annotations

from llvmlite import ir

from gradstep.backends.llvm.grid_coded import CodedGrid, is_known
from gradstep.backends.llvm.grid_flat import FlatGrid, chunks, lanes_of
from gradstep.backends.llvm.grid_lines import LineGrid
from gradstep.backends.llvm.grid_pieces import ARGUMENTS, GridWalk
from gradstep.backends.llvm.line import codec_of
from gradstep.program.block_codecs import BlockCodec
from gradstep.program.kernel_spec import KernelSpec

__all__ = ["ARGUMENTS", "chunks", "lanes_of", "unwritable", "write_grid_kernel"]


def unwritable(spec: KernelSpec) -> str | None:
    """Why no such kernel is written for a pass; None if one is."""
    for column in spec.columns:
        codec = codec_of(column)
        if isinstance(codec, BlockCodec) and spec.walk != "flat":
            return f"it is stored as {column.format}, and its rule looks at more than one element"
        if codec is not None and not is_known(codec):
            return f"it is stored as {column.format}, which has no code for a device"
    return None


def write_grid_kernel(spec: KernelSpec) -> str:
    """The code of a pass: a module with the function ``run``.

    Raises:
        ValueError: a pass that :func:`unwritable` names.
    """
    reason = unwritable(spec)
    if reason is not None:
        raise ValueError(f"no kernel is written for a grid: {reason}")
    module = ir.Module(name="gradstep")
    walk: type[GridWalk] = LineGrid
    if spec.walk == "flat":
        walk = CodedGrid if any(map(codec_of, spec.columns)) else FlatGrid
    walk(module, spec).write()
    return str(module)
