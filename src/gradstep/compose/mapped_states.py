"""States in memory-mapped files: the system reads and writes them, and memory holds a few."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import tempfile
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradstep.backends.update import is_dense

#: After how many bytes of states that have left it memory is given back.
_TRIM_EACH = 32 << 20


class MappedStates:
    """Puts states into files of a folder.

    A file has no name from the moment on in which it is mapped, so that it goes with its last user,
    a process that is killed included, and nobody takes what a crash has left for a checkpoint. Its
    place on the disk is reserved before the state is begun: a full disk is found out then, and not
    when the system writes a page, which would kill the process.

    Args:
        folder: made if it is not there.
        smallest: states of fewer elements stay in memory.

    Raises:
        OSError: a folder that cannot be made or written.
    """

    def __init__(self, folder: str | os.PathLike[str], smallest: int) -> None:
        self.folder = Path(folder)
        self.smallest = smallest
        #: By address. The tensors hold them.
        self._maps: weakref.WeakValueDictionary[int, mmap.mmap] = weakref.WeakValueDictionary()
        self._moved_bytes = 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise OSError(
                error.errno,
                f"states_in={str(folder)!r} is no folder that can be written: {error.strerror}",
            ) from None

    def stored(self, entry: dict[str, Any], name: str) -> dict[str, Any]:
        """The states of a weight, the large ones in files; what is in one stays there.

        Args:
            entry: the states by name. They stay as they are.
            name: of the weight, for messages.

        Raises:
            OSError: no place is left. Nothing has been changed.
        """
        moved = {n: self._moved(s, f"{n} of {name}") for n, s in entry.items()}
        return moved if any(moved[n] is not s for n, s in entry.items()) else entry

    def _moved(self, state: Any, name: str) -> Any:
        if type(state) is not Tensor or not state.is_cpu or state.layout is not torch.strided:
            return state
        if state.numel() < self.smallest or state.data_ptr() in self._maps:
            return state
        moved = self._mapped(state, name)
        moved.copy_(state)
        self._moved_bytes += state.nbytes
        if self._moved_bytes > _TRIM_EACH:
            self._moved_bytes = 0
            _give_back()
        return moved

    def _mapped(self, like: Tensor, name: str) -> Tensor:
        """A tensor of the shape, dtype and strides of another, in a file of its own."""
        size = like.numel() * like.element_size()
        try:
            with tempfile.TemporaryFile(dir=self.folder) as file:
                _reserve(file.fileno(), size)
                mapped = mmap.mmap(file.fileno(), size)
            if hasattr(mmap, "MADV_SEQUENTIAL"):  # a third faster where memory is short
                mapped.madvise(mmap.MADV_SEQUENTIAL)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                said = "the disk is full"
            else:
                said = error.strerror or str(error)
            raise OSError(
                error.errno,
                f"no place for state {name} in states_in={str(self.folder)!r}: it takes {size:,} "
                f"bytes, and {said}. Weights and states are as they were. Make room, or load the "
                "last checkpoint with another folder",
            ) from None
        stride = like.stride() if is_dense(like) else None
        flat = torch.frombuffer(mapped, dtype=torch.uint8).view(like.dtype)
        self._maps[flat.data_ptr()] = mapped
        return flat.view(like.shape) if stride is None else flat.as_strided(like.shape, stride)


def _give_back() -> None:
    """Have malloc give what is free back to the system.

    States begin in memory, and glibc before 2.38 does not use again what such large and aligned
    tensors leave free: all of them together would come to lie in memory.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def _reserve(file: int, size: int) -> None:
    """Have the disk keep place for a file."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
        return
    zeros = bytes(1 << 20)
    for start in range(0, size, len(zeros)):
        os.write(file, zeros[: size - start])
