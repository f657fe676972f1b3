"""Pages as LaTeX for math mode, with the package amsmath; MathJax shows it too."""

from __future__ import annotations

from collections.abc import Sequence

from gradstep.rule.latex import latex_name, latex_number, text
from gradstep.sight.page import Page, Row


def pages_latex(pages: Sequence[Page], notes: Sequence[str]) -> str:
    """An ``aligned`` environment for each page, then the notes as text."""
    return "\n\n".join([*map(_page, pages), *map(text, notes)]) + "\n"


def _page(page: Page) -> str:
    lines = [f"&{text(page.title)}"]
    for given in page.given:
        number = latex_number(given.number)
        lines.append(rf"{latex_name(given.name)} &= {number} \qquad {text(given.what)}")
    for section in page.sections:
        if section.heading:
            lines.append(f"&{text(section.heading + ':')}")
        for row in section.rows:
            lines += _row(row)
    if page.closing is not None:
        closing = page.closing
        *moved, difference = closing.latex_moved
        step = " = ".join([*moved, difference])
        lines.append(rf"&\text{{step: }} {step}")
        after = latex_number(closing.after)
        lines.append(rf"&\text{{weight after: }} {after} \qquad {text(f'({closing.verdict})')}")
    return "\\begin{aligned}\n" + " \\\\\n".join(lines) + "\n\\end{aligned}"


def _row(row: Row) -> list[str]:
    lines = [rf"{row.latex_name} &\leftarrow {row.latex_formula}"]
    if row.latex_parts:
        aside = rf" \qquad {text(f'({row.because})')}" if row.because else ""
        lines.append("&= " + " = ".join(row.latex_parts) + aside)
    return lines
