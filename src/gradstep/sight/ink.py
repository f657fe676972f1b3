"""Colours on a terminal, plain text elsewhere, and plain letters where the rest cannot be shown."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import re
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO

#: For an output that cannot show the sign on the left.
_PLAIN_SIGNS = {
    "←": "<-", "−": "-", "·": "*", "√(": "sqrt(", "√": "sqrt ", "²": "^2", "′": "'", "×": "x",
    "≤": "<=", "≥": ">=", "≠": "!=", "→": "->", "…": "...", "─": "-", "│": "|", "’": "'", "–": "-",
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "eps", "η": "eta", "κ": "kappa",
    "λ": "lambda", "μ": "mu", "ν": "nu", "ρ": "rho", "σ": "sigma", "τ": "tau", "φ": "phi",
    "ψ": "psi", "ω": "omega", "ᵗ": "^t", "ᵝ": "^beta", "⁻": "-", "½": "1/2", "¼": "1/4",
    "±": "+-", "µ": "u", "°": " degrees", "‖": "|", "━": "-",
    **{chr(0x2080 + i): str(i) for i in range(10)},
}  # fmt: skip

#: Letters of Chinese, and its punctuation.
_CHINESE = re.compile("([\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]+)")


def columns(most: int, stream: TextIO | None) -> int:
    """How wide text may be: as a terminal, at most ``most``, which is what a file gets."""
    if stream is None or not stream.isatty():
        return most
    found = os.environ.get("COLUMNS", "")
    if not found.isdecimal():
        try:
            found = str(os.get_terminal_size(stream.fileno()).columns)
        except (OSError, ValueError):  # it does not say
            return most
    return min(most, max(int(found), 40)) if int(found) else most


@dataclass(frozen=True)
class Ink:
    """Marks pieces of text: in colour for a terminal, otherwise not at all."""

    coloured: bool = False

    def _mark(self, text: str, code: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self.coloured and text else text

    def heading(self, text: str) -> str:
        """Bold."""
        return self._mark(text, "1")

    def code(self, text: str) -> str:
        """What one types in Python: cyan."""
        return self._mark(text, "36")

    def result(self, text: str) -> str:
        """The number that matters: bold green."""
        return self._mark(text, "1;32")

    def warning(self, text: str) -> str:
        """A number that is wrong: bold red."""
        return self._mark(text, "1;31")

    def aside(self, text: str) -> str:
        """Grey."""
        return self._mark(text, "90")


def ink_for(stream: TextIO | None) -> Ink:
    """Colours if the stream is a terminal that shows them and NO_COLOR is not set."""
    wanted = stream is not None and stream.isatty() and not os.environ.get("NO_COLOR")
    return Ink(wanted and os.environ.get("TERM") != "dumb")


def write(text: str, stream: TextIO | None) -> None:
    """Write text and a line end, in plain letters if the stream's encoding has no others.

    A stream that is None, as Python's are where the caller has closed them, gets nothing.

    Raises:
        OSError: the stream does not take it.
    """
    if stream is None:
        return
    stream.write(writable(text, stream) + "\n")
    stream.flush()


def writable(text: str, stream: TextIO | None) -> str:
    """The text itself, or in plain letters if the stream's encoding has no others."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
        return text
    except UnicodeEncodeError:
        return _plain(text, encoding)
    except LookupError:
        return _plain(text)


def _plain(text: str, encoding: str = "ascii") -> str:
    """In plain letters; and in Chinese ones, where the encoding has them."""
    for sign, plain in _PLAIN_SIGNS.items():
        text = text.replace(sign, plain)
    return "".join(
        part if _CHINESE.fullmatch(part) and _takes(encoding, part) else _plain_letters(part)
        for part in _CHINESE.split(text)
    )


def _plain_letters(text: str) -> str:
    letters = unicodedata.normalize("NFKD", text)  # ü as u and its dots
    letters = "".join(c for c in letters if not unicodedata.combining(c))
    return letters.encode("ascii", "replace").decode()


def _takes(encoding: str, text: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


@contextlib.contextmanager
def plain_letters() -> Iterator[None]:
    """Let the standard output and error take all letters: in plain ones where they have no others.

    For what is printed by others, such as argparse. Afterwards they are as they were.
    """
    codecs.register_error("gradstep.optimizer.plain", _instead)
    changed = [
        (stream, stream.errors)
        for stream in (sys.stdout, sys.stderr)
        if isinstance(stream, io.TextIOWrapper)
    ]
    for stream, _ in changed:
        stream.reconfigure(errors="gradstep.optimizer.plain")
    try:
        yield
    finally:
        for stream, errors in changed:
            with contextlib.suppress(ValueError, OSError):  # closed, or its reader has gone
                stream.reconfigure(errors=errors)


def _instead(error: UnicodeError) -> tuple[str | bytes, int]:
    """What is written in the place of the first letter that an encoding has not."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letter = error.object[error.start]
    if "\udc80" <= letter <= "\udcff":  # of a file's name, a byte that was no letter
        return bytes([ord(letter) - 0xDC00]), error.start + 1
    return _plain(letter), error.start + 1


def tell(command: str, text: str) -> int:
    """Write what a command has to say to the standard output; return the command's exit code.

    0; or 1 if the output does not take it, with a line on the standard error unless it is a pipe
    whose reader has gone, as with ``| head``.
    """
    try:
        write(text, sys.stdout)
        return 0
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            print(f"{command}: cannot write the output: {error.strerror}", file=sys.stderr)
        # What is still in the buffer would fail again when Python ends.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
        return 1
