"""Ask for memory before it is read, in LLVM code."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from gradstep.program.loops import counted, internal
from gradstep.program.targets import Target

I8, I32, I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
POINTER, VOID = ir.PointerType(), ir.VoidType()


def prefetch(b: ir.IRBuilder, place: Any) -> None:
    """Ask for a cache line. Past the end of memory that does nothing."""
    name = "llvm.prefetch.p0"
    hint = ir.FunctionType(VOID, [POINTER, I32, I32, I32])
    function = b.module.globals.get(name) or ir.Function(b.module, hint, name)
    b.call(function, [place, *(ir.Constant(I32, h) for h in (0, 3, 1))])


def prefetch_lines(b: ir.IRBuilder, place: Any, target: Target) -> None:
    """Ask for as many cache lines from a place on as suits a target.

    By a loop of its own, since so many lines of text each take time to write.
    """
    name = "ahead"
    known = b.module.globals.get(name)
    if known is None:
        known = ir.Function(b.module, ir.FunctionType(VOID, [POINTER]), name)
        own = internal(known, inline=True)
        with counted(own, ir.Constant(I64, target.lines_ahead)) as index:
            offset = own.mul(index, ir.Constant(I64, target.cache_line))
            prefetch(own, own.gep(known.args[0], [offset], source_etype=I8))
        own.ret_void()
    b.call(known, [place])
