"""Colours on a terminal only, and letters that any output can show."""

from __future__ import annotations

import io
import tempfile

import pytest

from gradstep.sight.ink import Ink, ink_for, tell, write


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_colours_for_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert ink_for(Terminal()).coloured
    assert not ink_for(io.StringIO()).coloured
    assert not ink_for(None).coloured
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
        ("utf-8", "w ← w − lr·√β₁²/√(w) é ☂\n"),
        ("ascii", "w <- w - lr*sqrt beta1^2/sqrt(w) e ?\n"),
        ("latin-1", "w <- w - lr*sqrt beta1^2/sqrt(w) e ?\n"),
    ],
)
def test_plain_letters_where_the_output_has_no_others(encoding: str, text: str) -> None:
    binary = io.BytesIO()
    stream = io.TextIOWrapper(binary, encoding=encoding, newline="\n")
    write("w ← w − lr·√β₁²/√(w) é ☂", stream)
    stream.flush()
    assert binary.getvalue().decode(encoding) == text


def test_a_closed_output_gets_nothing() -> None:
    write("text", None)


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "No space left on device")])
def test_an_output_that_takes_nothing(
    error: OSError, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Full(io.TextIOWrapper):
        def write(self, text: str) -> int:
            raise error

    with tempfile.TemporaryFile() as file:
        monkeypatch.setattr("sys.stdout", Full(file, encoding="utf-8"))
        assert tell("gradstep update", "text") == 1
    expected = "gradstep update: cannot write the output: No space left on device\n"
    assert capfd.readouterr().err == ("" if isinstance(error, BrokenPipeError) else expected)
