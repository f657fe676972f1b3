"""Pages as a piece of HTML, for notebooks: no script, no style sheet, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from gradstep.sight.page import Page, Row

#: Grey lines and no colours of its own but for the result, so that it reads in light and dark.
_CELL = "padding:2px 12px 2px 0;text-align:left;vertical-align:top;border:0"
_LINE = "border-top:1px solid rgba(128,128,128,.35)"
_GREY = "opacity:.65"
_RIGHT, _WRONG = "color:#1a7f37;font-weight:bold", "color:#cf222e;font-weight:bold"
_WHOLE = "white-space:nowrap"
_CODE = "font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre-wrap"


def pages_html(pages: Sequence[Page], notes: Sequence[str]) -> str:
    """A ``div`` with a table for each page, then the notes."""
    inside = [*map(_page, pages), *(f"<p>{escape(note)}</p>" for note in notes)]
    return "\n".join(['<div class="gradstep">', *inside, "</div>"])


def _page(page: Page) -> str:
    rows = [_wide(f"<strong>{escape(page.title)}</strong>", "")]
    before = ""
    for each in page.given:
        what = each.what if each.what != before else ""
        before = each.what
        rows.append(_row([escape(what), f"{_code(each.name)} = {_code(each.number)}", "", ""], ""))
    for section in page.sections:
        line = _LINE
        if section.heading:
            rows.append(_wide(f"<em>{escape(section.heading)}</em>", line))
            line = ""
        for row in section.rows:
            rows.append(_formula(row, line))
            line = ""
    if page.closing is not None:
        closing = page.closing
        moved = " = ".join(map(_code, closing.moved))
        mark = _RIGHT if closing.agrees else _WRONG
        said = f'<span style="{_GREY if closing.agrees else mark}">{escape(closing.verdict)}</span>'
        rows.append(_row(["step", moved, "", ""], _LINE))
        rows.append(_row(["weight after", f"{_code(closing.after, mark)} {said}", "", ""], ""))
    return "\n".join(
        ['<table style="border-collapse:collapse;border:0;margin:0 0 1em">', *rows, "</table>"]
    )


def _formula(row: Row, line: str) -> str:
    numbers = _code(row.parts[0]) if len(row.parts) > 1 else ""
    mark = f"{_WHOLE};{_RIGHT}" if row.name == "w" else _WHOLE
    value = _code(row.parts[-1], mark) if row.parts else ""
    aside = f'<span style="{_GREY}">{escape(row.because)}</span>' if row.because else ""
    return _row([_code(f"{row.name} ← {row.formula}"), numbers, value, aside], line)


def _row(cells: Sequence[str], line: str) -> str:
    style = f"{_CELL};{line}" if line else _CELL
    cell = f'<td style="{style}">'
    if not any(cells[2:]):  # the second may be as wide as it likes
        wide = f'<td style="{style}" colspan="3">'
        return f"<tr>{cell}{cells[0]}</td>{wide}{cells[1]}</td></tr>"
    return "<tr>" + "".join(f"{cell}{each}</td>" for each in cells) + "</tr>"


def _wide(inside: str, line: str) -> str:
    style = f"{_CELL};{line}" if line else _CELL
    return f'<tr><td style="{style}" colspan="4">{inside}</td></tr>'


def _code(text: str, mark: str = "") -> str:
    style = f"{_CODE};{mark}" if mark else _CODE
    return f'<code style="{style}">{escape(text)}</code>'
