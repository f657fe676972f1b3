"""GRADSTEP_TEST_ORDER, which shuffles the tests, and the parts of tests/deep.sh."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path
from typing import Any

import pytest

import conftest


class Named:
    """What the hook knows of a test."""

    def __init__(self, nodeid: str) -> None:
        self.nodeid = nodeid


NAMES = [f"tests/test_{file}.py::test_{test}" for file in "abcdef" for test in range(9)]


def ordered(number: str | None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    if number is None:
        monkeypatch.delenv(conftest.ORDER, raising=False)
    else:
        monkeypatch.setenv(conftest.ORDER, number)
    items: list[Any] = [Named(name) for name in NAMES]
    conftest.pytest_collection_in_another_order(items)
    return [item.nodeid for item in items]


def test_a_number_chooses_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ordered(None, monkeypatch) == NAMES and conftest.pytest_report_header() is None
    one, again, other = (ordered(number, monkeypatch) for number in ("1", "1", "2"))
    assert one == again != other and sorted(one) == sorted(other) == NAMES
    assert conftest.pytest_report_header() == "GRADSTEP_TEST_ORDER=2"


def test_each_file_is_run_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [name.split("::")[0] for name in ordered("5", monkeypatch)]
    changes = sum(a != b for a, b in itertools.pairwise(files))
    assert changes == len(set(files)) - 1


def test_the_script_knows_its_parts_and_no_others() -> None:
    script = Path(__file__).parent / "deep.sh"
    listed = subprocess.run([script, "--list"], capture_output=True, text=True, check=True)
    named = (Path(__file__).parent / "README.md").read_text()
    parts = listed.stdout.split()
    assert parts[0] == "all" and all(f"`{part}`" in named for part in parts[1:])
    wrong = subprocess.run([script, "load", "none"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and "no part none" in wrong.stderr
