"""Colours on a terminal only, and letters that any output can show."""

from __future__ import annotations

import io

import pytest

from gradstep.sight.ink import Ink, ink_for, write


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_colours_for_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert ink_for(Terminal()).coloured
    assert not ink_for(io.StringIO()).coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert not ink_for(Terminal()).coloured
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not ink_for(Terminal()).coloured


def test_marks() -> None:
    plain, coloured = Ink(), Ink(True)
    for name in ("heading", "code", "result", "warning", "aside"):
        assert getattr(plain, name)("x") == "x"
        marked = getattr(coloured, name)("x")
        assert marked.startswith("\033[") and marked.endswith("\033[0m") and "x" in marked
        assert getattr(coloured, name)("") == ""


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8", "w ← w − lr·√β₁²/√(w) é\n"),
        ("ascii", "w <- w - lr*sqrt beta1^2/sqrt(w) ?\n"),
        ("latin-1", "w <- w - lr*sqrt beta1^2/sqrt(w) ?\n"),
    ],
)
def test_plain_letters_where_the_output_has_no_others(encoding: str, text: str) -> None:
    binary = io.BytesIO()
    stream = io.TextIOWrapper(binary, encoding=encoding, newline="\n")
    write("w ← w − lr·√β₁²/√(w) é", stream)
    stream.flush()
    assert binary.getvalue().decode(encoding) == text
