"""The page about these tests names tests and files that exist, and leaves no file out."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = (HERE / "README.md").read_text(encoding="utf-8")


@functools.cache
def names_in(path: Path) -> set[str]:
    """The names of a file's tests, those in classes included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef))
    return {f.name for f in functions if f.name.startswith("test_")}


def test_every_test_that_the_page_names_exists() -> None:
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", PAGE)
    assert len(named) > 60
    missing = [f"{f}::{n}" for f, n in named if n not in names_in(HERE / f)]
    assert not missing, missing


def test_every_file_has_its_row_and_every_row_its_file() -> None:
    ours = PAGE.split("## torch's own tests")[0]
    patterns = re.findall(r"^\| `([\w*]+\.py)` \|", ours, flags=re.MULTILINE)
    files = {path.name for path in HERE.glob("*.py")}
    found = {pattern: {path.name for path in HERE.glob(pattern)} for pattern in patterns}
    assert [pattern for pattern, names in found.items() if not names] == []
    assert sorted(files - set().union(*found.values())) == []


def test_each_of_torchs_tests_has_something_beside_it() -> None:
    rows = re.findall(r"^\| (`test_.*`) \| (.*) \|$", PAGE, flags=re.MULTILINE)
    theirs = [name for names, _ in rows for name in re.findall(r"`(test_\w+)`", names)]
    assert len(theirs) > 150
    assert all(ours.strip() for _, ours in rows)
    # One name stands in two of torch's files at most, for two different tests.
    assert all(theirs.count(name) == 1 for name in theirs)
