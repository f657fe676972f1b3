"""Nothing is said of training loops in which nothing is wrong, and no bit of them is changed."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from gradstep.sight.mistakes.script import run_script
from healthy_scripts import HEALTHY


@pytest.mark.parametrize("name", HEALTHY)
def test_silence_and_the_same_bits(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "train.py"
    path.write_text(HEALTHY[name], encoding="utf-8")
    outcome = run_script(str(path))
    watched = capsys.readouterr().out
    assert outcome.exit_code == 0
    assert outcome.findings == [], "\n".join(map(str, outcome.findings))
    assert outcome.steps > 0 or name == "compiled-step"
    runpy.run_path(str(path), run_name="__main__")
    assert watched == capsys.readouterr().out
    assert watched.count("[[") >= 1
