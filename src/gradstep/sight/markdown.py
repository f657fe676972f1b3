"""Pages as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from gradstep.sight.page import Page, Row


def pages_markdown(pages: Sequence[Page], notes: Sequence[str]) -> str:
    """A heading and a table for each page, then the notes."""
    return "\n\n".join([*map(_page, pages), *map(_plain, notes)]) + "\n"


def _page(page: Page) -> str:
    parts = [f"### {_plain(page.title)}"]
    if page.given:
        rows = [(each.what, _code(each.name), _code(each.number)) for each in page.given]
        parts.append(_table(("before the step", "", ""), rows))
    numbers = any(row.parts for section in page.sections for row in section.rows)
    head = ("formula", "in numbers", "value", "") if numbers else ("formula",)
    for section in page.sections:
        if section.heading:
            parts.append(f"**{_plain(section.heading)}**")
        parts.append(_table(head, [_cells(row)[: len(head)] for row in section.rows]))
    if page.closing is not None:
        closing = page.closing
        agreed = _plain(closing.verdict)
        rows = [
            ("step", _code(" = ".join(closing.moved)), ""),
            ("weight", _code(closing.after), agreed if closing.agrees else f"**{agreed}**"),
        ]
        parts.append(_table(("after the step", "", ""), rows))
    return "\n\n".join(parts)


def _cells(row: Row) -> tuple[str, ...]:
    formula = _code(f"{row.name} ← {row.formula}")
    if not row.parts:
        return formula, "", "", ""
    numbers = _code(row.parts[0]) if len(row.parts) > 1 else ""
    return formula, numbers, _code(row.parts[-1]), _plain(row.because)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"


def _plain(text: str) -> str:
    """Words in which Markdown shall see nothing but words."""
    for sign in "\\`*_[]<>|#":
        text = text.replace(sign, f"\\{sign}")
    return text
