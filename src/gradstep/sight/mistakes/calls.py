"""Follow calls of torch for which torch has no hook, as long as somebody asks for it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.compiler import is_compiling

_Callback = Callable[..., None]

#: The frames of followed calls stand under this name, which has what :mod:`warnings` looks for in
#: the name of a frame that is not to be counted: so a warning with a ``stacklevel`` names the line
#: that it would name without us.
_UNCOUNTED = str(Path(__file__).parent / "importlib._bootstrap" / "calls.py")


class _Followed:
    """A function of torch with callbacks around it, in the place of the function itself."""

    def __init__(self, owner: Any, name: str) -> None:
        self.owner, self.name = owner, name
        original = getattr(owner, name)
        self.inherited = isinstance(owner, type) and name not in vars(owner)
        self.original = original
        self.before: list[_Callback] = []
        self.after: list[_Callback] = []

        @functools.wraps(original)
        def followed(*arguments: Any, **keywords: Any) -> Any:
            if is_compiling():  # torch.compile then sees the function itself
                return original(*arguments, **keywords)
            for callback in tuple(self.before):
                callback(*arguments, **keywords)
            result = None
            try:
                result = original(*arguments, **keywords)
                return result
            except BaseException as error:
                leave_out_this_frame(error)
                raise
            finally:
                for callback in tuple(self.after):
                    callback(result, *arguments, **keywords)

        code = followed.__code__  # type: ignore[attr-defined]
        followed.__code__ = code.replace(co_filename=_UNCOUNTED)  # type: ignore[attr-defined]
        setattr(owner, name, followed)

    def undo(self) -> None:
        if self.inherited:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, self.original)


def leave_out_this_frame(error: BaseException) -> None:
    """Take the caller's own frame out of a traceback; a bare ``raise`` then does not add it again.

    The first entry is that of the function in which the error is caught. (Python 3.10 keeps a
    traceback of its own, and shows the frame.)
    """
    if error.__traceback__ is not None:
        error.__traceback__ = error.__traceback__.tb_next


_all: dict[tuple[int, str], _Followed] = {}


def follow(
    owner: Any, name: str, before: _Callback | None = None, after: _Callback | None = None
) -> Callable[[], None]:
    """Call ``before(*arguments)`` and ``after(result, *arguments)`` around ``owner.name``.

    The callbacks get the arguments as they were given; ``after`` is called after an exception, too,
    with None as the result. The function returned ends it; when nobody follows any more,
    ``owner.name`` is what it was.
    """
    key = (id(owner), name)
    if key not in _all:
        _all[key] = _Followed(owner, name)
    followed = _all[key]
    if before is not None:
        followed.before.append(before)
    if after is not None:
        followed.after.append(after)

    def end() -> None:
        if before is not None:
            followed.before.remove(before)
        if after is not None:
            followed.after.remove(after)
        if not followed.before and not followed.after and _all.get(key) is followed:
            followed.undo()
            del _all[key]

    return end
