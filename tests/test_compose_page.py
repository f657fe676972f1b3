"""docs/compose.md: every example runs, and prints what the page says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "compose.md"
STAGES = Path(__file__).parent.parent / "src" / "gradstep" / "rules" / "transforms"


def test_every_example_runs_and_prints_what_the_page_says() -> None:
    blocks = re.findall(r"^```(python|text)\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert [kind for kind, _ in blocks].count("python") >= 8
    names: dict[str, Any] = {"__name__": "docs_compose"}
    printed = ""
    for kind, text in blocks:
        if kind == "text":
            assert printed == text
            printed = ""
            continue
        assert printed == ""  # all that is printed is on the page
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(text, str(PAGE), "exec"), names)
        printed = out.getvalue()
    assert printed == ""


def test_the_page_names_every_stage() -> None:
    files = "".join(path.read_text() for path in STAGES.glob("*.py"))
    stages = re.findall(r"^@rule\ndef (\w+)", files, re.M)
    assert len(stages) > 15
    page = PAGE.read_text()
    assert [name for name in stages if f"`{name}`" not in page] == []
