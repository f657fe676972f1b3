"""Files that are either whole or not there, whatever happens while they are written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_UNFINISHED = ".unfinished"


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, which then holds all of it or what it held before.

    The bytes go to a file beside it, to the disk, and only then is that file given the name: an
    interruption at any moment, a full disk or a power cut leaves no half of a file under it.
    Raises OSError if the disk is full or not writable; the unfinished file is then removed.
    """
    unfinished = path.with_name(f".{path.name}{_UNFINISHED}")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Send the directory itself to the disk: without that, a power cut may forget a new name."""
    if os.name == "nt":  # Windows has no such call, and does it by itself
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_unfinished(path: Path) -> bool:
    """Whether ``path`` is what a killed process left of a file that it was writing."""
    return path.name.startswith(".") and path.name.endswith(_UNFINISHED)


class DirectoryInUse(Exception):
    """Another process holds the directory."""


@contextmanager
def held_alone(directory: Path) -> Iterator[None]:
    """Hold ``directory`` for this process alone; the hold ends with the process, however it ends.

    Raises :class:`DirectoryInUse` if another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DirectoryInUse(str(directory)) from None
        except OSError:
            pass  # a file system without locks, as some network ones: go on without
        yield
    finally:
        os.close(descriptor)
