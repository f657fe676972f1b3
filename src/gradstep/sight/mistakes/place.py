"""Where in the user's own code something happens."""

from __future__ import annotations

import linecache
import sys
import sysconfig
import threading
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType

import torch

#: Code that is not the user's: torch, this package, Python's library.
_OTHERS = tuple(
    {
        f"{Path(path).resolve()}/".replace("//", "/")
        for path in (
            Path(torch.__file__).parent,
            Path(__file__).parents[2],
            sysconfig.get_path("stdlib"),
        )
    }
)
_MODULE = torch.nn.modules.module.__file__
_INSTALLED = ("/site-packages/", "/dist-packages/")


@dataclass(frozen=True)
class Place:
    """A line of code.

    Attributes:
        file: its path as Python knows it.
        line: counted from 1.
        function: in which it stands, or ``"<module>"``.
    """

    file: str
    line: int
    function: str

    @property
    def text(self) -> str:
        """The line itself, without the space around it; empty if the file cannot be read."""
        return linecache.getline(self.file, self.line).strip()

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


_is_users: dict[str, bool] = {}


def belongs_to_user(file: str) -> bool:
    """Whether a file is the user's own, and no library's."""
    known = _is_users.get(file)
    if known is None:
        path = file.replace("\\", "/")
        whose = path if path.startswith("<") else str(Path(path).resolve()).replace("\\", "/")
        known = not (
            path.startswith(("<frozen", "<eval_with_key", "<__array"))
            or any(part in whose for part in _INSTALLED)
            or whose.startswith(_OTHERS)
        )
        _is_users[file] = known
    return known


def _first_of_users(frame: FrameType | None) -> Place | None:
    line = _line_of(frame)
    return None if line is None else line.place


@dataclass(frozen=True, slots=True)
class Line:
    """A place that has not been worked out yet: quicker to take where that is done at each step."""

    code: CodeType
    number: int

    @property
    def place(self) -> Place:
        """Its file, line and function."""
        return Place(self.code.co_filename, self.number, self.code.co_name)


def _line_of(frame: FrameType | None) -> Line | None:
    while frame is not None:
        file = frame.f_code.co_filename
        known = _is_users.get(file)
        if belongs_to_user(file) if known is None else known:
            return Line(frame.f_code, frame.f_lineno)
        frame = frame.f_back
    return None


def line_here() -> Line | None:
    """The innermost line of the user's code that is running; None if there is none."""
    return _line_of(sys._getframe(1))


def place_of(frame: FrameType | None) -> Place | None:
    """The innermost line of the user's code at or above a frame; None if there is none."""
    return _first_of_users(frame)


def here() -> Place | None:
    """The innermost line of the user's code that is running; None if there is none.

    A backward pass on a GPU calls its hooks in a thread of its own, where no line of the user's
    stands above: then it is the line at which the main thread waits for it.
    """
    found = _first_of_users(sys._getframe(1))
    if found is None and threading.current_thread() is not threading.main_thread():
        found = _first_of_users(sys._current_frames().get(threading.main_thread().ident or 0))
    return found


def outside_modules() -> Place | None:
    """The user's line that called the outermost module whose forward pass is running."""
    frame: FrameType | None = sys._getframe(1)
    found = None
    while frame is not None:
        if frame.f_code.co_name == "_call_impl" and frame.f_code.co_filename == _MODULE:
            found = frame
        frame = frame.f_back
    return _first_of_users(found) if found is not None else here()
