"""One thing to show, in four forms: text, Markdown, HTML and LaTeX."""

from __future__ import annotations

import sys

from gradstep.sight.html import pages_html
from gradstep.sight.ink import Ink, ink_for, writable
from gradstep.sight.latex import pages_latex
from gradstep.sight.markdown import pages_markdown
from gradstep.sight.page import Page
from gradstep.sight.text import page_text


class Shown:
    """What has pages, and notes of one line: explanations of steps, and rules' formulas."""

    def _pages(self) -> list[Page]:
        raise NotImplementedError

    def _notes(self) -> list[str]:
        return []

    def text(self, ink: Ink | None = None) -> str:
        """Text of at most about 100 columns.

        Args:
            ink: colours. Default: none.
        """
        return "\n\n".join([*(page_text(p, ink or Ink()) for p in self._pages()), *self._notes()])

    def markdown(self) -> str:
        """Markdown: a heading and a table for each."""
        return pages_markdown(self._pages(), self._notes())

    def html(self) -> str:
        """A piece of HTML that needs nothing from elsewhere: no script, no style sheet, no font."""
        return pages_html(self._pages(), self._notes())

    def latex(self) -> str:
        """LaTeX for math mode: one ``aligned`` environment for each (package amsmath)."""
        return pages_latex(self._pages(), self._notes())

    def __str__(self) -> str:
        """The text as the standard output shows it: in colours if it is a terminal."""
        return writable(self.text(ink_for(sys.stdout)), sys.stdout)

    def _repr_html_(self) -> str:
        return self.html()
