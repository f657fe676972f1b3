"""``gradstep bench --many``: its tables, and that both sides do the same work."""

from __future__ import annotations

import re

import pytest
import torch

from gradstep.cli import main
from gradstep.lab import bench_many


def test_the_tables(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_many, "RULES", {"adam": bench_many.RULES["adam"]})
    monkeypatch.setattr(bench_many, "GROUPS", 7)
    assert main(["bench", "--many", "12", "--rounds", "1"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 140
    assert "12 weights in one group" in printed and "7 groups of one weight" in printed
    one, each, missing = (line for line in printed.splitlines() if line.startswith("adam"))
    for row in (one, each):
        assert len(re.findall(r"\d+\.\d\d  \d+\.\d\d", row)) == len(bench_many.PHASES)
    assert len(re.findall(r"\d+\.\d{3}  \d+\.\d\d", missing)) == 2


def test_each_phase_is_timed_as_often_for_both() -> None:
    found = bench_many.lives("momentum", 5, one_each=True, rounds=2)
    assert list(found) == list(bench_many.PHASES)
    assert all(ours > 0 and theirs > 0 for ours, theirs in found.values())


def test_bad_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "--many", "0"])
    assert stopped.value.code == 2
    assert "argument --many" in capsys.readouterr().err


@pytest.fixture(autouse=True)
def _threads() -> None:
    """The command takes one thread; conftest.py puts the number back."""
    assert torch.get_num_threads() == 2
