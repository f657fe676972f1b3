"""``docs/architecture.md`` is about this package: its rooms, files and words are there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "gradstep"
PAGE = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")


def floors() -> list[list[str]]:
    """The rooms, the lowest floor first; two that stand in a line are on one floor."""
    (drawing,) = re.findall(r"```text\n(.*?)```", PAGE, re.S)
    rows = [re.split(r" {2,}", row) for row in drawing.splitlines()]
    return [[w for part in row[:-1] for w in part.split()] for row in reversed(rows)]


def imported(tree: ast.Module) -> Iterator[str]:
    """What a file imports as it is loaded: not in functions, nor for types alone."""
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.dump(node.test):
            waiting += [*node.body, *node.orelse]
        elif isinstance(node, ast.Try):
            waiting += node.body


def test_every_folder_is_a_room_of_the_page() -> None:
    named = [room for floor in floors() for room in floor]
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert set(named) == folders and len(named) == len(folders)


def test_imports_go_downwards() -> None:
    level = {room: number for number, floor in enumerate(floors()) for room in floor}
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0]
        if room not in level:  # the package's own list of names, which loads each when asked
            continue
        for module in imported(ast.parse(path.read_text(encoding="utf-8"))):
            parts = module.split(".")
            other = parts[1] if parts[0] == "gradstep" and len(parts) > 1 else room
            if other in level and level[other] > level[room]:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {module}")
    assert not wrong, wrong


def test_every_file_that_the_page_names_exists() -> None:
    named = re.findall(r"`((?:[a-z_]+/)+(?:[a-z_]+\.py)?)`", PAGE)
    assert len(named) > 15
    places = (PACKAGE, PACKAGE.parents[1])
    assert [name for name in named if not any((p / name).exists() for p in places)] == []


def test_the_words_are_few_and_used() -> None:
    words = re.findall(r"^\| ([a-z ]+) \| ", PAGE.split("## The words")[1], re.M)[1:]
    assert 15 <= len(words) <= 25
    text = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")).lower()
    assert [w for w in words if w not in text and w.replace(" ", "_") not in text] == []
