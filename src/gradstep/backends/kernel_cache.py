"""Compiled kernels on disk, so that a process starts where an earlier one left off.

A file a kernel, named by a digest of all that shaped it, holding a digest of its name and content,
and the content. Written beside and moved into place, so two processes that start together each
find a whole file. A cache that cannot be read, is corrupt, or belongs to somebody else is no error:
the kernel is compiled again. The digest finds accidents; against malice stands the folder's owner.

The folder is ``$GRADSTEP_CACHE_DIR``, or ``gradstep`` in the user's cache directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
import tempfile
from pathlib import Path

_MAGIC = b"gradstep kernel 2\n"


def cache_folder() -> Path:
    """Where kernels are kept. Set ``GRADSTEP_CACHE_DIR`` to choose."""
    chosen = os.environ.get("GRADSTEP_CACHE_DIR")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "gradstep"


def digest(*parts: str) -> str:
    """A name for what these texts shape."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def read(name: str) -> bytes | None:
    """The kept content of that name; None if there is none that can be trusted."""
    try:
        path = cache_folder() / f"{name}.o"
        if not _is_ours(path.parent):
            return None
        data = path.read_bytes()
    except (OSError, RuntimeError):  # RuntimeError: no home directory
        return None
    head = len(_MAGIC)
    content = data[head + 32 :]
    if data[:head] != _MAGIC or _seal(name, content) != data[head : head + 32]:
        return None
    return content


def write(name: str, content: bytes) -> None:
    """Keep content under a name, if that is possible."""
    temporary: str | None = None
    try:
        folder = cache_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_ours(folder):
            return
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".new-")
        with os.fdopen(handle, "wb") as file:
            file.write(_MAGIC + _seal(name, content) + content)
        Path(temporary).replace(folder / f"{name}.o")
        temporary = None
    except (OSError, RuntimeError):
        pass
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()


def _seal(name: str, content: bytes) -> bytes:
    """With the name in it, a file that was renamed is no other kernel's."""
    return hashlib.sha256(name.encode() + b"\0" + content).digest()


def _is_ours(folder: Path) -> bool:
    """A kernel is code: take none from a folder that another user owns or may write to."""
    if not hasattr(os, "getuid"):
        return True
    found = folder.stat()
    return found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
