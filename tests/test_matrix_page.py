"""docs/matrix-rules.md: every example runs, and prints what the page says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "matrix-rules.md"


def test_every_example_runs_and_prints_what_the_page_says() -> None:
    blocks = re.findall(r"^```(python|text)\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert [kind for kind, _ in blocks].count("python") >= 3
    names: dict[str, Any] = {"__name__": "docs_matrix_rules"}
    printed = ""
    for kind, text in blocks:
        if kind == "text":
            assert printed == text
            continue
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(text, str(PAGE), "exec"), names)
        printed = out.getvalue()
    assert names["after"] < 0.1 * names["before"]


def test_the_page_has_every_set_of_coefficients() -> None:
    from gradstep.linalg.newton_schulz import COEFFICIENTS

    page = PAGE.read_text()
    assert all(f"\n{name} " in page for name in COEFFICIENTS)
