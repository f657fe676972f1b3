"""Loops in LLVM code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

I64 = ir.IntType(64)


@contextmanager
def counted(builder: ir.IRBuilder, count: Any, step: int = 1) -> Iterator[Any]:
    """Write what is inside ``with`` as a loop's body; gives the index.

    The index goes from 0 in steps while it is below ``count``: never, where that is 0. The builder
    stands behind the loop in the end.
    """
    with strided(builder, ir.Constant(I64, 0), count, ir.Constant(I64, step)) as index:
        yield index


@contextmanager
def strided(builder: ir.IRBuilder, first: Any, count: Any, step: Any) -> Iterator[Any]:
    """The same from ``first`` on, in steps that the code may have worked out."""
    before = builder.block
    loop, done = (builder.function.append_basic_block(name) for name in ("loop", "done"))
    builder.cbranch(builder.icmp_signed("<", first, count), loop, done)
    builder.position_at_end(loop)
    index = builder.phi(I64, "i")
    index.add_incoming(first, before)
    yield index
    following = builder.add(index, step, flags=["nuw", "nsw"])
    index.add_incoming(following, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, count), loop, done)
    builder.position_at_end(done)


def give_attribute(function: ir.Function, name: str, value: object) -> None:
    """Give a function an attribute of processors, of which llvmlite's own method knows none."""
    set.add(function.attributes, f'"{name}"="{value}"')


def internal(function: ir.Function, *noalias: Any, inline: bool = False) -> ir.IRBuilder:
    """Begin a function that only its module calls; these pointers are to different memory."""
    function.linkage = "internal"
    if not inline:
        function.attributes.add("noinline")
    for argument in noalias:
        argument.add_attribute("noalias")
    return ir.IRBuilder(function.append_basic_block("entry"))
