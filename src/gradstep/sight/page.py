"""What is to be shown of a rule or of one weight's step, before it is text, HTML or LaTeX."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """One line of a formula, with its numbers if it has any.

    Attributes:
        name, formula: what stands left and right of the arrow.
        latex_name, latex_formula: the same as LaTeX.
        parts: the formula with the numbers put in, and the result; or the result alone.
        latex_parts: the same as LaTeX.
        because: what is to be said of it: why this side of a choice, a sum over what.
    """

    name: str
    formula: str
    latex_name: str
    latex_formula: str
    parts: tuple[str, ...] = ()
    latex_parts: tuple[str, ...] = ()
    because: str = ""


@dataclass(frozen=True)
class Section:
    """Rows under a heading: those of one rule of a chain. The heading may be empty."""

    heading: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Given:
    """A number that the step starts from.

    Attributes:
        what: ``"weight"``, ``"gradient"`` or ``"state"``.
        name: as the formula has it.
        number: its value.
    """

    what: str
    name: str
    number: str


@dataclass(frozen=True)
class Closing:
    """What came of it.

    Attributes:
        moved: the weight after minus the weight before, in numbers, and what that gives.
        latex_moved: the same as LaTeX.
        after: the weight after the step.
        verdict: whether the step wrote that number.
        agrees: whether it did.
    """

    moved: tuple[str, ...]
    latex_moved: tuple[str, ...]
    after: str
    verdict: str
    agrees: bool


@dataclass(frozen=True)
class Page:
    """A rule, or one weight's step.

    Attributes:
        title: of what.
        given: what the step starts from; empty for a rule alone.
        sections: the formula.
        closing: what came of it; None for a rule alone.
    """

    title: str
    sections: tuple[Section, ...]
    given: tuple[Given, ...] = field(default=())
    closing: Closing | None = None


def sections(rows: Iterable[tuple[str, Row]]) -> tuple[Section, ...]:
    """Rows in sections, by the heading that comes with each; neighbours of one heading together."""
    found: list[tuple[str, list[Row]]] = []
    for heading, row in rows:
        if not found or found[-1][0] != heading:
            found.append((heading, []))
        found[-1][1].append(row)
    return tuple(Section(heading, tuple(own)) for heading, own in found)
