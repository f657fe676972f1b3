"""Blocks of threads that go through a table of tensors, in LLVM code.

One text for all: where a processor numbers blocks and threads itself, what is written is what each
of them does; on a target of loops it stands in two loops, over blocks and over threads, and does
the same on a CPU. What stands outside :meth:`Grid.threads` is the same for all threads of a block,
and nothing but shared memory goes from one such part to the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

from gradstep.program.loops import counted, give_attribute, strided
from gradstep.program.targets import Target

I1, I32, I64, F32 = ir.IntType(1), ir.IntType(32), ir.IntType(64), ir.FloatType()
VOID = ir.VoidType()

#: Threads a block.
THREADS = 256

_BLOCK = {"nvvm": "llvm.nvvm.read.ptx.sreg.ctaid.x", "amdgcn": "llvm.amdgcn.workgroup.id.x"}
_THREAD = {"nvvm": "llvm.nvvm.read.ptx.sreg.tid.x", "amdgcn": "llvm.amdgcn.workitem.id.x"}
_BARRIER = {"nvvm": "llvm.nvvm.barrier0", "amdgcn": "llvm.amdgcn.s.barrier"}
_CONVENTION = {"nvvm": "ptx_kernel", "amdgcn": "amdgpu_kernel"}


class Grid:
    """A kernel, as the function that its threads run.

    Behind the arguments that are asked for it has one more: how many blocks there are.

    Args:
        module: what it is written into.
        target: whom for.
        name: of the function.
        arguments: the names of its arguments: those in ``pointers`` point at the memory of tensors,
            all others are 64-bit integers.
        pointers: see there.

    Attributes:
        b: the builder.
        given: name -> the argument.
        pointer: the type of pointers to the memory of tensors.
    """

    def __init__(
        self,
        module: ir.Module,
        target: Target,
        name: str,
        arguments: Sequence[str],
        pointers: Sequence[str],
    ) -> None:
        self.module, self.target = module, target
        self.pointer = ir.PointerType(addrspace=target.global_space)
        kinds = [self.pointer if each in pointers else I64 for each in (*arguments, "blocks")]
        self.function = ir.Function(module, ir.FunctionType(VOID, kinds), name)
        if target.grid in _CONVENTION:
            self.function.calling_convention = _CONVENTION[target.grid]
        if target.grid == "nvvm":
            # The assembler may give a thread as many registers as one block leaves it; by itself it
            # would have four blocks fit, and spill for that.
            for key, value in (("maxntidx", THREADS), ("minctasm", 1)):
                limit = [self.function, ir.MetaDataString(module, key), I32(value)]
                module.add_named_metadata("nvvm.annotations", limit)
        if target.grid == "amdgcn":
            # Else registers would be counted for four times as many threads.
            size = f"{THREADS},{THREADS}"
            give_attribute(self.function, "amdgpu-flat-work-group-size", size)
        self.given = dict(zip((*arguments, "blocks"), self.function.args, strict=True))
        self.b = ir.IRBuilder(self.function.append_basic_block("entry"))

    def stop_where(self, flag: str) -> None:
        """Write nothing where an argument points at a float32 that is not 0; it may be 0 itself."""
        b = self.b
        look, go_on, stop = map(self.function.append_basic_block, ("look", "go_on", "stop"))
        given = self.given[flag]
        b.cbranch(b.icmp_unsigned("!=", given, I64(0)), look, go_on)
        b.position_at_end(look)
        found = b.load(b.inttoptr(given, self.pointer), typ=F32, align=4)
        b.cbranch(b.fcmp_unordered("!=", found, ir.Constant(F32, 0.0)), stop, go_on)
        b.position_at_end(stop)
        b.ret_void()
        b.position_at_end(go_on)

    @contextmanager
    def pieces(self, count: Any) -> Iterator[Any]:
        """Write what is inside ``with`` for each of so many pieces of work; gives its number.

        A block takes every so manieth as there are blocks.
        """
        blocks = self.given["blocks"]
        if self.target.grid == "loops":
            with counted(self.b, blocks) as block, strided(self.b, block, count, blocks) as piece:
                yield piece
        else:
            with strided(self.b, self._register(_BLOCK), count, blocks) as piece:
                yield piece

    @contextmanager
    def threads(self, wait: bool = False) -> Iterator[Any]:
        """Write what is inside ``with`` for each thread of the block; gives its number.

        With ``wait`` none goes on before all are through, and what they have written is seen by
        all. Then all threads of a block have to come by.
        """
        if self.target.grid == "loops":
            with counted(self.b, I64(THREADS)) as thread:
                yield thread
        else:
            yield self._register(_THREAD)
            if wait:
                self._wait()

    def _wait(self) -> None:
        kind = ir.FunctionType(VOID, [])
        name = _BARRIER[self.target.grid]
        function = self.module.globals.get(name) or ir.Function(self.module, kind, name)
        if self.target.grid == "amdgcn":
            self.b.fence("release", "workgroup")
        self.b.call(function, [])
        if self.target.grid == "amdgcn":
            self.b.fence("acquire", "workgroup")

    def shared(self, name: str, kind: Any, count: int) -> Any:
        """So many values in memory that the threads of a block have together.

        To be asked for before anything else is written.
        """
        array = ir.ArrayType(kind, count)
        if self.target.grid == "loops":
            room = self.b.alloca(array, name=name)
            room.align = 16
            return self._first_of(room)
        made = ir.GlobalVariable(self.module, array, name, addrspace=self.target.shared_space)
        made.linkage, made.align = "internal", 16
        made.initializer = ir.Constant(array, ir.Undefined)
        return self._first_of(made)

    def _first_of(self, array: Any) -> Any:
        place = self.b.gep(array, [I64(0)], source_etype=I64)
        place.type = ir.PointerType(addrspace=self.target.shared_space)  # of whatever type
        return place

    def _register(self, names: dict[str, str]) -> Any:
        name = names[self.target.grid]
        function = self.module.globals.get(name)
        if function is None:
            function = ir.Function(self.module, ir.FunctionType(I32, []), name)
        return self.b.zext(self.b.call(function, []), I64)

    def integer(self, base: Any, index: Any) -> Any:
        """A 64-bit integer of a table."""
        return self.b.load(self.b.gep(base, [index], source_etype=I64), typ=I64, align=8)
