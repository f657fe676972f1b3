"""A small pool of threads that drive kernels, which let go of Python's lock while they run.

numba's own layers were tried and left: `workqueue` aborts the process when two Python threads call
parallel kernels, and `omp` aborts a forked child. Here the calling thread works too and never waits
for a helper that has not begun, so a busy core costs nothing but its help.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

_SMALLEST = sys.float_info.min
_half = 0.5  # no constant, or Python would multiply once and for all

_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_lock = threading.Lock()


def _forget_pool() -> None:
    # A forked child has the pool's book-keeping but none of its threads.
    global _pool, _pool_size, _lock
    _pool, _pool_size, _lock = None, 0, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def run(work: Callable[[], object], threads: int) -> None:
    """Call ``work`` in this thread and in up to ``threads - 1`` others, and wait for all of them.

    ``work`` shares its task out by itself and returns when nothing is left, so the call is over
    when this thread's share is and no helper is in the middle of one.
    """
    if threads < 2:
        work()
        return
    helpers: list[Future[object]] = []
    flushes = flushes_denormals()
    try:
        pool = _sized_pool(threads - 1)
        for _ in range(threads - 1):
            helpers.append(pool.submit(_alike, work, flushes))
    except RuntimeError:
        pass  # the interpreter is shutting down, or no thread can be had: fewer hands, same result
    try:
        work()
    finally:
        for helper in helpers:
            if not helper.cancel():
                helper.result()


def flushes_denormals() -> bool:
    """Whether this thread takes numbers near 0 for 0: ``torch.set_flush_denormal``."""
    return _SMALLEST * _half == 0.0


def _alike(work: Callable[[], object], flushes: bool) -> None:
    # A thread keeps the mode that its maker had; what is written shall not depend on who writes it.
    if flushes_denormals() != flushes:
        torch.set_flush_denormal(flushes)
    work()


def _sized_pool(size: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    with _lock:
        if _pool is None or size > _pool_size:
            # An outgrown pool ends by itself once its work is done.
            if _pool is not None:
                _pool.shutdown(wait=False)
            _pool = ThreadPoolExecutor(size, thread_name_prefix="gradstep")
            _pool_size = size
        return _pool
