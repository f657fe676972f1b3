"""Formulas between dollar signs as MathML, which browsers draw themselves: no script, no font."""

from __future__ import annotations

import re
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(r"^\$\$\n(.*?)\n\$\$$", re.M | re.S)
_TEXT = re.compile(r"\\text\{[^}]*\}")
#: A name of several letters, as the converter has it: letter by letter.
_LETTERS = re.compile(r'<mrow>((?:<mi mathvariant="normal">[^<]+</mi>){2,})</mrow>')


def mathml(latex: str) -> str:
    """One formula, set on lines of its own, as a line of HTML."""
    latex = latex.replace("{aligned}", "{split}")  # the same, and known to the converter
    latex = _TEXT.sub(lambda text: text[0].replace("\\_", "_"), latex)
    math = convert(latex, display="block").replace("\n", " ")
    math = _LETTERS.sub(lambda name: f"<mi>{re.sub('<[^>]*>', '', name[1])}</mi>", math)
    return f'<div class="formula">{math}</div>'


def on_page_markdown(markdown: str, **_: Any) -> str:
    return _FORMULA.sub(lambda found: mathml(found[1]), markdown)
