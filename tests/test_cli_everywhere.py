"""Every command in terminals of few letters and of 80 columns; all without docstrings."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gradstep import cli
from gradstep.cli import main
from gradstep.sight.ink import writable

#: Runs every command's help and its main ways; prints the exit codes, and tracebacks.
COMMANDS = """
import sys, traceback
import gradstep.cli as cli

out, ways = sys.argv[1:]
open(out + "/script.py", "w").write('''
import torch, gradstep
model = torch.nn.Linear(3, 2)
optimizer = gradstep.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    model(torch.ones(4, 3)).pow(2).mean().backward()
    optimizer.step()
''')
small = ["--train-limit", "64", "--out"]
lines = [[], ["--help"], ["--version"], *([name, "--help"] for name in cli.COMMANDS)]
lines += [["rules"], ["rules", "--markdown"], ["explain", "adam"], ["explain", "--greek", "soap"]]
lines += [["audit", "torch.optim.Adam", "--rule", "adam", "--steps", "1"]]
lines += [["doctor", out + "/script.py"]]
if ways == "all":
    lines += [["update"], ["train", "--optimizer", "sgd", "--epochs", "1", *small, out + "/run"]]
    lines += [["bench", "--rules", "sgd", "--sizes", "lenet", "--rounds", "1"]]
bad = [["trian"], ["train", "--lr", "x"], ["explain", "nothing"], ["doctor", "no such file"]]
for line in [*lines, *bad]:
    print("$ gradstep", *line, flush=True)
    try:
        code = cli.main(line)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = "raised"
    if code != (2 if line in bad else 0):
        print(f"exit code {code!r} of gradstep {line}", file=sys.stderr, flush=True)
"""

C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
TERMINALS = {
    "ascii": ({"PYTHONIOENCODING": "ascii"}, "ascii"),
    "cp1252": ({"PYTHONIOENCODING": "cp1252"}, "cp1252"),
    "C": (C_LOCALE, "ascii"),
}
WAYS = pytest.mark.parametrize("ways", ["some", pytest.param("all", marks=pytest.mark.deep)])


def ran(folder: Path, ways: str, *flags: str, **environment: str) -> tuple[bytes, bytes]:
    """What all commands print, and on the standard error."""
    done = subprocess.run(
        [sys.executable, *flags, "-c", COMMANDS, str(folder), ways],
        capture_output=True,
        env={**os.environ, "COLUMNS": "100", **environment},
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout, done.stderr


@WAYS
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.deep] * (n != "C")) for n in TERMINALS]
)
def test_every_command_in_a_terminal_of_few_letters(name: str, ways: str, tmp_path: Path) -> None:
    environment, encoding = TERMINALS[name]
    out, errors = (text.decode(encoding) for text in ran(tmp_path, ways, **environment))
    assert "exit code" not in errors, errors
    assert "UnicodeEncodeError" not in errors
    helps = out.partition("$ gradstep rules\n")[0]
    assert "?" not in helps  # each sign has a plain one
    assert "write beta1 as beta1, eps as eps and so on" in " ".join(helps.split())
    assert ("…" if name == "cp1252" else "...") in helps
    assert "zero_grad" in errors  # the doctor's finding


@WAYS
def test_every_command_without_docstrings(ways: str, tmp_path: Path) -> None:
    out, errors = (text.decode() for text in ran(tmp_path, ways, "-OO", PYTHONUTF8="1"))
    assert "exit code" not in errors, errors
    assert "Traceback" not in errors
    assert "exp_avg" in out and "SOAP" in out


CLASSES = """
import torch, gradstep
from gradstep import rules, torch_optim
from gradstep.classes import rule_classes

for name, cls in sorted(rule_classes.load().items()):
    assert getattr(gradstep, name) is cls
for name in [*rule_classes.load(), *torch_optim.__all__]:
    w = torch.nn.Parameter(torch.ones(3, 4))
    optimizer = getattr(gradstep, name)([w], lr=0.01)
    gradient = torch.ones(3, 4)
    w.grad = gradient.to_sparse() if name == "SparseAdam" else gradient
    optimizer.step(lambda: torch.tensor(1.0))
    other = gradstep.Adadelta if name != "Adadelta" else gradstep.Lion
    try:
        other([w]).load_state_dict(optimizer.state_dict())
    except ValueError as error:
        print(name, error)
    else:
        raise SystemExit(f"{name} was loaded into another class")
for name in rules.load():
    gradstep.formula(getattr(gradstep, name))
"""


@pytest.mark.deep
def test_classes_and_their_messages_are_the_same_without_docstrings() -> None:
    printed = []
    for flags in ([], ["-OO"]):
        done = subprocess.run(
            [sys.executable, *flags, "-c", CLASSES], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    assert printed[0] == printed[1]
    assert len(printed[0].splitlines()) > 60


def test_letters_that_a_stream_has_not_are_written_in_plain_ones() -> None:
    class Stream:
        encoding = "ascii"

    found = writable("5 ± 1 µs ≤ √(x²) · ‖β₁‖ … ü 漢", Stream())  # type: ignore[arg-type]
    assert found == "5 +- 1 us <= sqrt(x^2) * |beta1| ... u ?"


@pytest.mark.parametrize("command", ["", *cli.COMMANDS])
def test_help_fits_into_80_columns(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        main([*([command] if command else []), "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith("usage: gradstep") and f"gradstep {command}" in text


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals here")
@pytest.mark.parametrize("arguments", [["doctor", "--list"], ["explain", "adam"]])
def test_pages_are_as_wide_as_the_terminal(arguments: list[str]) -> None:
    person, terminal = os.openpty()
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "gradstep", *arguments]
    shown = subprocess.Popen(command, stdout=terminal, env=environment)
    os.close(terminal)
    told = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while piece := os.read(person, 10_000):
            told += piece
    os.close(person)
    assert shown.wait(300) == 0
    lines = told.decode().replace("\r", "").splitlines()
    assert len(lines) > 10 and max(map(len, lines)) <= 80


@pytest.mark.parametrize("flag", ["--rules", "--sizes", "--peers"])
def test_an_empty_name_is_no_choice_of_all(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", flag, ""]) == 2
    assert capsys.readouterr().err == f"gradstep bench: argument {flag}: no name given\n"
