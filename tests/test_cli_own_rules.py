"""A rule of one's own, and names in any case, in every command that takes a name."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradstep.cli import main

RULES = """\
import gradstep
@gradstep.rule
def heavy(g, velocity, *, momentum=0.9):
    velocity = momentum * velocity + g
    return velocity, velocity
@gradstep.rule
def broken(g):
    return g if g > 0 else -g
def plain(g):
    return g
number = 3
raises = None
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_rules.py").write_text(RULES, encoding="utf-8")
    (tmp_path / "own_raises.py").write_text("1 / 0\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], line: str) -> tuple[int, str, str]:
    try:
        code = main(line.split())
    except SystemExit as ended:
        code = int(str(ended.code))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    "line, shown",
    [
        ("explain own_rules:heavy", "velocity ← momentum·velocity + g"),
        ("explain AdamW", "amsgrad"),
        ("rules own_rules.py:heavy Momentum", "own_rules.py:heavy"),
        ("update --optimizer own_rules.py:heavy", "own_rules.heavy"),
        pytest.param(
            "train --optimizer own_rules:heavy,AdamW --epochs 1 --train-limit 32",
            "own_rules:heavy",
            marks=pytest.mark.deep,
        ),
        pytest.param(
            "compare --optimizer own_rules.py:heavy,AdamW --steps 2 --train-limit 32 --seeds 1",
            "own_rules.py:heavy",
            marks=pytest.mark.deep,
        ),
        pytest.param(
            "bench --rules own_rules.py:heavy,AdamW --sizes lenet --rounds 3",
            "own_rules.py:heavy",
            marks=pytest.mark.deep,
        ),
        ("audit torch.optim.SGD --rule Momentum --set momentum=0.9", "gradstep.SGD agree"),
    ],
)
def test_each_command_takes_it(
    line: str, shown: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, error = said(capsys, line)
    assert code == 0, error
    assert shown in out


@pytest.mark.parametrize("command", ["explain", "rules", "update --optimizer", "train --optimizer",
                                     "compare --optimizer", "bench --rules",
                                     "audit torch.optim.SGD --rule"])  # fmt: skip
def test_each_command_refuses_in_one_line(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("own_rules:nope", "own_rules:plain", "own_rules:number", "own_raises.py:x", "adamm",
             "own_rules:", ":", "no/such.py:x", "own_rules:raises", "own_rules:broken")  # fmt: skip
    for name in names:
        code, out, error = said(capsys, f"{command} {name}")
        assert (code, out) == (2, ""), name
        assert error.startswith(f"gradstep {command.split()[0]}: ") and error.count("\n") == 1
