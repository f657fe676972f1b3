"""The team of threads in which torch's own operations run, lent to a kernel.

After an operation its threads spin for some milliseconds, in wait of the next: beside a pool of
ours they take half of each core, and a plain SGD step over 58 M weights, right after torch's,
took 15.7 ms in place of 13.6. So a kernel asks the OpenMP runtime that torch has loaded for the
same team, as long as it is awake. One that sleeps can take longer to wake than a step does (4 ms
on a virtual machine, where AdamW on 4 M weights took 2.4 before), and OpenMP waits for each.

A process that was forked has the runtime's book-keeping and none of its threads: it would wait for
them for ever, as torch's operations do there. It gets no team, nor does one whose torch has
another way, or whose runtime is not known here.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from llvmlite import ir

from gradstep.backends.cpu import compiler
from gradstep.backends.llvm.walk import ARGUMENTS
from gradstep.program.loops import internal

I32, I64 = ir.IntType(32), ir.IntType(64)
POINTER, VOID = ir.PointerType(), ir.VoidType()

#: The length of what a member of a team is told: where to put its id, how numbers near 0 are taken,
#: the caller's id, the function that gives ids, the kernel and its arguments.
_TOLD = 5 + len(ARGUMENTS)

#: Of Linux's flags of a process: forked, and no program begun since.
_FORKED = 0x40

#: A kernel, its arguments, how many threads.
Lend = Callable[[Any, Sequence[int], int], None]


def lent() -> Lend | None:
    """What runs a kernel in torch's team of threads; None where there is none that is awake.

    The kernel takes what :mod:`gradstep.backends.llvm.walk` lists. Each thread works in the mode
    for numbers near 0 that the caller has, ``torch.set_flush_denormal``.
    """
    return _lend() if not _is_forked and _is_awake() else None


class _Seen(threading.local):
    """Of the caller's own team: the clock of a member's time on a core; 0 for one not seen yet."""

    clock = 0


_seen = _Seen()
_is_forked = False


def _is_awake() -> bool:
    clock = _seen.clock
    if not clock:
        return True
    try:
        before = time.clock_gettime_ns(clock)
        return time.clock_gettime_ns(clock) > before
    except OSError:  # that thread has ended, and others are to begin
        return True


def _leave() -> None:
    global _is_forked
    _is_forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave)


@cache
def _lend() -> Lend | None:
    mode = _MODES.get(compiler.target().name)
    outside = _runtime()
    if mode is None or outside is None:
        return None
    signatures = {"lend": (4 + len(ARGUMENTS), True)}
    made = compiler.functions("team", lambda: _code(*mode), signatures)["lend"]

    def lend(kernel: Any, arguments: Sequence[int], threads: int) -> None:
        at = ctypes.cast(kernel, ctypes.c_void_p).value
        member = made(*outside, threads, at, *arguments)
        if member:
            # As Linux numbers the clock of a thread: man 2 clock_getres.
            _seen.clock = ~member << 3 | 6

    return lend


def _runtime() -> tuple[int, int] | None:
    """Where two functions lie: with which compilers begin a parallel part, and for a thread's id.

    The first among what all libraries see, which is what torch's own calls find.
    """
    if sys.platform != "linux" or "backend: OpenMP" not in torch.__config__.parallel_info():
        return None
    try:
        flags = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[6])
        known = ctypes.CDLL(None)
        found = [ctypes.cast(f, ctypes.c_void_p).value for f in (known.GOMP_parallel, known.gettid)]
    except (OSError, AttributeError, ValueError, IndexError):
        return None
    parallel, thread_id = found
    return None if flags & _FORKED or not parallel or not thread_id else (parallel, thread_id)


# How numbers near 0 are taken is a register's matter, which every thread has of its own.


def _read_mxcsr(b: ir.IRBuilder) -> Any:
    place = b.alloca(I32)
    b.call(_intrinsic(b, "llvm.x86.sse.stmxcsr", VOID, [POINTER]), [place])
    return b.zext(b.load(place, typ=I32), I64)


def _write_mxcsr(b: ir.IRBuilder, mode: Any) -> None:
    place = b.alloca(I32)
    b.store(b.trunc(mode, I32), place)
    b.call(_intrinsic(b, "llvm.x86.sse.ldmxcsr", VOID, [POINTER]), [place])


def _read_fpcr(b: ir.IRBuilder) -> Any:
    return b.call(_intrinsic(b, "llvm.aarch64.get.fpcr", I64, []), [])


def _write_fpcr(b: ir.IRBuilder, mode: Any) -> None:
    b.call(_intrinsic(b, "llvm.aarch64.set.fpcr", VOID, [I64]), [mode])


Read = Callable[[ir.IRBuilder], Any]
Write = Callable[[ir.IRBuilder, Any], None]

#: A target's name -> what reads that register, and what writes it.
_MODES: dict[str, tuple[Read, Write]] = {
    "x86_64": (_read_mxcsr, _write_mxcsr),
    "aarch64": (_read_fpcr, _write_fpcr),
}


def _intrinsic(b: ir.IRBuilder, name: str, returns: Any, takes: list[Any]) -> Any:
    kind = ir.FunctionType(returns, takes)
    return b.module.globals.get(name) or ir.Function(b.module, kind, name)


def _code(read: Read, write: Write) -> str:
    """A function that has a kernel run by a team, and gives a member's id, or 0 if it had none.

    It takes where two functions lie, how many threads there are to be, the kernel and what that
    takes.
    """
    module = ir.Module(name="gradstep_team")
    thread_id_type = ir.FunctionType(I32, []).as_pointer()
    kernel_type = ir.FunctionType(VOID, ARGUMENTS).as_pointer()
    parallel_type = ir.FunctionType(VOID, [POINTER, POINTER, I32, I32]).as_pointer()

    def thread(b: ir.IRBuilder, function: Any) -> Any:
        return b.zext(b.call(b.inttoptr(function, thread_id_type), []), I64)

    member = ir.Function(module, ir.FunctionType(VOID, [POINTER]), "member")
    b = internal(member)
    told = [_item(b, member.args[0], place) for place in range(_TOLD)]
    mode, caller, thread_id, kernel, *arguments = (b.load(item, typ=I64) for item in told[1:])
    own = thread(b, thread_id)
    with b.if_then(b.icmp_unsigned("!=", own, caller)):
        b.store(own, told[0])
    before = read(b)
    write(b, mode)
    given = [
        argument if kind == I64 else b.inttoptr(argument, kind)
        for argument, kind in zip(arguments, ARGUMENTS, strict=True)
    ]
    b.call(b.inttoptr(kernel, kernel_type), given)
    write(b, before)
    b.ret_void()

    lend = ir.Function(module, ir.FunctionType(I64, [I64] * (4 + len(ARGUMENTS))), "lend")
    b = ir.IRBuilder(lend.append_basic_block("entry"))
    parallel, thread_id, threads, *kernel_and_arguments = lend.args
    place = b.alloca(I64, _TOLD)
    values = [I64(0), read(b), thread(b, thread_id), thread_id, *kernel_and_arguments]
    for index, value in enumerate(values):
        b.store(value, _item(b, place, index))
    parallel = b.inttoptr(parallel, parallel_type)
    b.call(parallel, [member, place, b.trunc(threads, I32), I32(0)])
    b.ret(b.load(place, typ=I64))
    return str(module)


def _item(b: ir.IRBuilder, told: Any, index: int) -> Any:
    return b.gep(told, [I64(index)], source_etype=I64)
