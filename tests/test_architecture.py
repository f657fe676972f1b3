"""``docs/architecture.md`` is about this package: its rooms, files and words are there."""

from __future__ import annotations

import ast
import copy
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import gradstep

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


def trip(work: Callable[[], Any], is_it: Callable[[Any], bool]) -> list[str]:
    """The files whose functions have a value in hand while this works: the trip of the value.

    As an argument, a local or what is returned, by itself or in lists, tuples and dicts.
    """
    found: dict[str, None] = {}

    def has(value: Any, depth: int = 2) -> bool:
        if is_it(value):
            return True
        if not depth or not isinstance(value, list | tuple | dict):
            return False
        inside = value.values() if isinstance(value, dict) else value
        return any(has(each, depth - 1) for each in inside)

    def returning(frame: FrameType, event: str, result: Any) -> None:
        path = Path(frame.f_code.co_filename)
        ours = event == "return" and path.is_relative_to(PACKAGE)
        if ours and any(map(has, (result, *frame.f_locals.values()))):
            found[str(path.relative_to(PACKAGE))] = None

    sys.setprofile(returning)
    try:
        work()
    finally:
        sys.setprofile(None)
    return sorted(found)


def test_the_trips_are_those_of_the_page() -> None:
    """At most 6 files for a learning rate and a gradient, 4 for a state that is loaded."""

    def feed() -> Callable[[Any], bool]:
        for p in params:
            p.grad = torch.randn_like(p)
        gradient = params[1].grad
        return lambda value: value is gradient

    def made() -> gradstep.Optimizer:
        return gradstep.Optimizer(params, gradstep.adam())

    params = [torch.nn.Parameter(torch.randn(8, 3)) for _ in range(3)]
    feed()
    made().step()  # compiles
    optimizer = made()
    found = {"a gradient, cold": trip(optimizer.step, feed())}
    found["a gradient, warm"] = trip(optimizer.step, feed())
    optimizer.param_groups[0]["lr"] = 0.123456789
    found["lr"] = trip(
        optimizer.step, lambda value: isinstance(value, float) and value == 0.123456789
    )
    saved = copy.deepcopy(optimizer.state_dict())
    state = saved["state"][1]["exp_avg"]
    found["a loaded state"] = trip(
        lambda: optimizer.load_state_dict(saved),
        lambda value: (
            isinstance(value, torch.Tensor)
            and value.shape == state.shape
            and torch.equal(value, state)
        ),
    )
    rows = re.findall(r"^\| (.+?) \| (`.*`) \|$", PAGE, re.M)
    told = {name: sorted(re.findall(r"`(.+?)`", files)) for name, files in rows}
    assert {name: told.get(name) for name in found} == found
    assert all(
        len(files) <= (4 if name == "a loaded state" else 6) for name, files in found.items()
    )
