"""Colours on a terminal, plain text elsewhere, and plain letters where the rest cannot be shown."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TextIO

#: For an output that cannot show the sign on the left.
_PLAIN_SIGNS = {
    "←": "<-", "−": "-", "·": "*", "√(": "sqrt(", "√": "sqrt ", "²": "^2", "′": "'", "×": "x", "≤": "<=",
    "≥": ">=", "≠": "!=", "→": "->", "…": "...", "─": "-", "│": "|", "’": "'", "–": "-",
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "eps", "η": "eta", "κ": "kappa",
    "λ": "lambda", "μ": "mu", "ν": "nu", "ρ": "rho", "σ": "sigma", "τ": "tau", "φ": "phi",
    "ψ": "psi", "ω": "omega", "ᵗ": "^t", "⁻": "-",
    **{chr(0x2080 + i): str(i) for i in range(10)},
}  # fmt: skip


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


def ink_for(stream: TextIO) -> Ink:
    """Colours if the stream is a terminal that shows them and NO_COLOR is not set."""
    wanted = stream.isatty() and not os.environ.get("NO_COLOR")
    return Ink(wanted and os.environ.get("TERM") != "dumb")


def write(text: str, stream: TextIO | None = None) -> None:
    """Write text and a line end, in plain letters if the stream's encoding has no others."""
    stream = sys.stdout if stream is None else stream
    encoding = stream.encoding or "utf-8"
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        for sign, plain in _PLAIN_SIGNS.items():
            text = text.replace(sign, plain)
        text = text.encode("ascii", "replace").decode()
    stream.write(text + "\n")
