"""Pages as text for a terminal: at most about 100 columns, in colours where these are shown."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from gradstep.sight.ink import Ink
from gradstep.sight.language import say
from gradstep.sight.page import Closing, Given, Page, Row, Section

#: Columns that a line should not exceed.
_WIDTH = 92

#: Where a line that is too long may be broken, the best place first: before these, outside of
#: parentheses.
_BREAKS = ((" + ", " − "), (" if ", " else "), (" · ", " / "))


def page_text(page: Page, ink: Ink) -> str:
    """A whole page."""
    title = textwrap.wrap(page.title, _WIDTH, break_long_words=False, break_on_hyphens=False)
    rows = [*map(ink.heading, title), ""]
    if page.given:
        rows += [*(f"  {row}" for row in _given(page.given, ink)), ""]
    rows += [f"  {row}" for each in page.sections for row in section_rows(each, ink)]
    if page.closing is not None:
        rows += ["", *(f"  {row}" for row in _closing(page.closing, ink))]
    return "\n".join(rows)


def section_rows(section: Section, ink: Ink) -> list[str]:
    """The lines of a section; under a heading, if there is one, and then further to the right."""
    rows = [text for row in section.rows for text in _row(row, ink)]
    if not section.heading:
        return rows
    return [ink.heading(f"{section.heading}:"), *(f"  {row}" for row in rows)]


def _row(row: Row, ink: Ink) -> list[str]:
    start = f"{row.name} ← "
    edge = " " * (len(start) - 2)
    rows = broken(start + row.formula, " " * len(start))
    if not row.parts:
        return rows
    parts = list(row.parts)
    whole = edge + " ".join(f"= {part}" for part in parts)
    if row.name == "w":
        parts[-1] = ink.result(parts[-1])
    if len(whole) <= _WIDTH:
        made = [edge + " ".join(f"= {part}" for part in parts)]
    else:
        made = [text for part in parts for text in broken(f"{edge}= {part}", f"{edge}  ")]
    if row.because:
        aside = say("aside", text=row.because)
        if len(made) == 1 and len(whole) + 3 + len(aside) <= _WIDTH:
            made[0] += ink.aside(f"   {aside}")
        else:
            pieces = textwrap.wrap(aside, max(40, _WIDTH - len(edge)), break_long_words=False)
            made += [edge + ink.aside(piece) for piece in pieces]
    return rows + made


def _given(given: Sequence[Given], ink: Ink) -> list[str]:
    wide = max(len(each.what) for each in given)
    rows, before = [], ""
    for each in given:
        what = each.what if each.what != before else ""
        before = each.what
        rows.append(f"{what:<{wide}}   {each.name} = {ink.code(each.number)}")
    return rows


def _closing(closing: Closing, ink: Ink) -> list[str]:
    mark, note = (ink.result, ink.aside) if closing.agrees else (ink.warning, ink.warning)
    return [
        f"step           {' = '.join(closing.moved)}",
        f"weight after   {mark(closing.after)}   {note(f'({closing.verdict})')}",
    ]


def broken(text: str, indent: str) -> list[str]:
    """A line in pieces that are short enough, where it can be broken; the later ones indented."""
    rows: list[str] = []
    rest = text
    while len(rest) > _WIDTH:
        place = _break(rest, 0 if not rows else len(indent) + 3)
        if place is None:
            break
        rows.append(rest[:place].rstrip())
        rest = indent + rest[place:].lstrip()
    return [*rows, rest]


def _break(text: str, start: int) -> int | None:
    """The last place before the edge where a line may be broken, of the best kind that there is.

    Where there is none, behind a comma within parentheses.
    """
    for signs in _BREAKS:
        found, depth = None, 0
        for place, letter in enumerate(text[: _WIDTH + 1]):
            depth += (letter == "(") - (letter == ")")
            free = depth == 0 and place > start and not text[:place].endswith((" ←", " ="))
            if free and text.startswith(signs, place):
                found = place
        if found is not None:
            return found
    comma = text.rfind(", ", start + 1, _WIDTH)  # between a function's arguments
    return None if comma < 0 else comma + 1
