"""The language that the lesson and the training speak: English, or Chinese where it is wanted."""

from __future__ import annotations

import locale
import os
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO

from gradstep.sight.messages import MESSAGES

LANGUAGES = ("en", "zh")

_spoken = ContextVar("language", default="en")


@contextmanager
def speaking(language: str) -> Iterator[None]:
    """Let :func:`say` speak that language, one of :data:`LANGUAGES`."""
    before = _spoken.set(language)
    try:
        yield
    finally:
        _spoken.reset(before)


def spoken() -> str:
    """The language that is spoken now."""
    return _spoken.get()


def say(key: str, **values: Any) -> str:
    """A message of the table, in the language that is spoken.

    Args:
        key: a key of :data:`gradstep.sight.messages.MESSAGES`.
        values: for its placeholders.
    """
    return MESSAGES[key][LANGUAGES.index(_spoken.get())].format(**values)


def say_lines(key: str, **values: Any) -> list[str]:
    """The same, line by line."""
    return say(key, **values).split("\n")


def preferred(environment: Mapping[str, str] = os.environ) -> str:
    """The language of the locale: Chinese where it is Chinese, else English.

    Of ``LANGUAGE``, ``LC_ALL``, ``LC_MESSAGES`` and ``LANG`` the first that is set decides; where
    none is, as on Windows, the system.
    """
    names = ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG")
    named = next((environment[name] for name in names if environment.get(name)), None)
    if named is None:
        named = locale.getlocale()[0] or ""
    return "zh" if named.lower().startswith(("zh", "chinese")) else "en"


def can_show(language: str, stream: TextIO | None) -> bool:
    """Whether the stream's encoding has the letters of the language."""
    try:
        MESSAGES["lesson heading"][LANGUAGES.index(language)].encode(
            getattr(stream, "encoding", None) or "utf-8"
        )
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def columns(text: str) -> int:
    """How many columns of a terminal the text takes: a Chinese letter takes two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def to_left(text: str, width: int) -> str:
    """The text in so many columns, spaces behind it."""
    return text + " " * (width - columns(text))


def to_right(text: str, width: int) -> str:
    """The text in so many columns, spaces before it."""
    return " " * (width - columns(text)) + text
