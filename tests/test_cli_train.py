"""``gradstep train`` as a person meets it: its help, its errors, its output, what it reaches."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import forked
import gradstep.cli
from gradstep import rules
from gradstep.classes import rule_classes
from gradstep.lab.errors import RunError
from gradstep.lab.lenet import LeNet
from gradstep.lab.optimizers import CHOICES, TRAINABLE
from gradstep.lab.run import make_directory

COMMAND = [sys.executable, "-m", "gradstep", "train"]
SMALL = ["--train-limit", "64", "--epochs", "2"]
FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
SIX = ("sgd", "adam", "adamw", "rmsprop", "adagrad", "lion")


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    words = ("-m", "gradstep", "train", *map(str, arguments))
    return forked.run(*words, cwd=cwd, timeout=3600)  # of six optimizers, on a busy machine


def test_the_help_names_every_optimizer_option_and_file(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        gradstep.cli.main(["train", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    made = {cls.__name__.lower() for cls in rule_classes.load().values()}
    by_hand = [n for n in TRAINABLE if n == "lion" or n.replace("_", "") not in made]
    assert re.search(r"side by side:\s+" + r",\s+".join(map(re.escape, by_hand)), text)
    assert re.search(r"another\s+rule\s+that\s+'gradstep\s+rules'\s+lists", text)
    for word in (
        *("--optimizer", "--epochs", "--batch-size", "--lr", "--lr-decay", "--shift", "--seed"),
        *("--threads", "--data", "--train-limit", "--out", "--resume", "--quiet"),
        *("metrics.jsonl", "curves.png", "filters.png", "mistakes.png", "checkpoint-0001.pt"),
    ):
        assert word in text, word


def test_the_commands_help_imports_nothing_of_the_lab() -> None:
    script = (
        "import sys, gradstep\n"
        "before = set(sys.modules)\n"
        "import gradstep.cli\n"
        "try:\n    gradstep.cli.main(['--help'])\nexcept SystemExit: pass\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "assert not new & {'torch', 'numpy', 'sklearn', 'matplotlib', 'rich', 'llvmlite'}, new\n"
        "assert 'gradstep.lab.training' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "train" in result.stdout and "update" in result.stdout


def test_without_a_command_it_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert gradstep.cli.main([]) == 0
    assert "usage: gradstep" in capsys.readouterr().out


BAD_ARGUMENTS = {
    "--optimizer adm": "unknown optimizer 'adm': did you mean adam",
    "--optimizer sgd,,adam": "unknown optimizer ''",
    "--optimizer sgd,adam,sgd": "sgd is named twice",
    "--optimizer ": "unknown optimizer ''",
    "--optimizer sparseadam": "sparseadam takes sparse gradients only",
    "--lr -1": "-1: a learning rate must be above 0",
    "--lr 0": "above 0",
    "--lr nan": "above 0 and finite",
    "--lr inf": "finite",
    "--lr fast": "'fast' is not a number",
    "--lr 0.1,0.2": "2 learning rates for 1",
    "--lr-decay 0": "not above 0",
    "--lr-decay 1.5": "at most 1",
    "--epochs 0": "not from 1",
    "--epochs many": "'many' is not a whole number",
    "--batch-size 1.5": "not a whole number",
    "--batch-size -3": "not from 1",
    "--shift 17": "not from 0 to 16",
    "--seed -1": "not from 0",
    "--threads 0": "not from 1",
    "--threads 100000": "not from 1",
    "--train-limit 0": "not from 1",
    "--out ": "empty name",
    "--out FILE": "cannot make the folder FILE: a file is in its place",
    "--out FILE/deeper": "cannot make the folder FILE/deeper",
    "--out /proc/nowhere": "cannot make the folder /proc/nowhere",
    "--out FULL": "FULL is not empty",
    "--out RUN": "RUN already holds a run: go on with it by --resume RUN",
    "--resume nowhere": "there is no folder nowhere",
    "--resume FULL": "FULL holds no run yet: begin one by --out FULL",
    "--resume FILE": "there is no folder FILE",
    "--out a --resume b": "not allowed with",
    "--data nowhere": "there is no folder",
    "--data FULL": "no file train-images-idx3-ubyte",
    "--data FILE": "is not a folder",
    "--optimzer adam": "unknown argument --optimzer",
    "--epochs": "expected one argument",
    "extra": "unknown argument extra",
}


@pytest.mark.parametrize("line", BAD_ARGUMENTS)
def test_a_bad_argument_gets_one_clear_line_and_changes_nothing(
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "FILE").write_text("text")
    (tmp_path / "FULL").mkdir()
    (tmp_path / "FULL" / "letter.txt").write_text("dear …")
    (tmp_path / "RUN").mkdir()
    (tmp_path / "RUN" / "run.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    try:
        code = gradstep.cli.main(["train", *line.split(" ")])
    except SystemExit as stop:
        code = int(str(stop.code))
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert captured.err.startswith("gradstep train: ")
    assert captured.err.count("\n") == 1 and captured.err.endswith("\n")
    assert BAD_ARGUMENTS[line] in captured.err
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unknown_command_gets_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        gradstep.cli.main(["trian"])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "trian" in error and "train" in error and error.count("\n") == 1


def test_a_run_writes_all_it_promises(tmp_path: Path) -> None:
    result = run(*SMALL, "--optimizer", "adam, sgd", "--lr", "0.001,0.05", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    out = tmp_path / "runs" / "001"
    assert sorted(path.name for path in out.iterdir()) == [
        *("checkpoint-0001.pt", "checkpoint-0002.pt", "curves.png", "filters.png"),
        *("metrics.jsonl", "mistakes.png", "run.json"),
    ]
    for name in ("curves.png", "filters.png", "mistakes.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
        assert name in result.stdout
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["optimizer"]) for line in lines] == [
        *((1, "adam"), (1, "sgd"), (2, "adam"), (2, "sgd"))
    ]
    assert [line["lr"] for line in lines] == pytest.approx([0.001, 0.05, 0.00095, 0.0475])
    for line in lines:
        assert 0 < line["train_loss"] < 3 and 0 < line["test_loss"] < 3
        assert 0 <= line["train_accuracy"] <= 1 and 0 <= line["test_accuracy"] <= 1
        assert line["steps"] == 2
        assert 0 < line["step_seconds"] < line["seconds"]
    assert "\x1b" not in result.stdout and "\r" not in result.stdout  # no bar in a pipe
    text = result.stdout.splitlines()
    assert "61,706 weights" in text[0] and "64 images to learn from" in text[0]
    assert [line.split()[0] for line in text if line.startswith((" 1/2", "1/2", "2/2"))] == [
        "1/2",
        "2/2",
    ]
    table = text.index(next(line for line in text if line.startswith("optimizer")))
    assert text[table + 2].split()[0] == "adam" and text[table + 3].split()[0] == "sgd"

    content = torch.load(out / "checkpoint-0002.pt", weights_only=True)
    LeNet().load_state_dict(content["models"]["sgd"])

    again = run(*SMALL, "--quiet", cwd=tmp_path)
    assert again.returncode == 0
    assert (tmp_path / "runs" / "002" / "run.json").exists()
    assert len(again.stdout.splitlines()) == 3  # nothing but the table


@pytest.mark.deep
def test_the_same_seed_gives_the_same_result_and_another_another(tmp_path: Path) -> None:
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        arguments = ["train", *SMALL, "--seed", seed, "--out", str(tmp_path / name)]
        assert gradstep.cli.main(arguments) == 0
    a, b, c = (
        torch.load(tmp_path / name / "checkpoint-0002.pt", weights_only=True)["models"]["adamw"]
        for name in "abc"
    )
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)


def test_a_loss_that_is_no_number_is_told_once_and_written_as_null(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--optimizer", "sgd", "--lr", "1e20", "--out", str(tmp_path / "run")]
    assert gradstep.cli.main(["train", *SMALL, *arguments]) == 0
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "the loss of sgd is no longer a finite number" in errors
    assert "try --lr 0.1" in errors
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["train_loss"] is None
    assert "NaN" not in "".join(lines)


@pytest.mark.parametrize(
    "redirection",
    [
        "> /dev/full",
        *(
            pytest.param(shell, marks=pytest.mark.deep)
            for shell in (">&-", ">&- 2>&-", "| head -n 1")
        ),
    ],
)
def test_it_trains_on_whatever_becomes_of_its_output(tmp_path: Path, redirection: str) -> None:
    if "/dev/full" in redirection and not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    out = tmp_path / "run"
    command = [*COMMAND, *SMALL, "--optimizer", "adam,sgd", "--out", out]
    if redirection == "> /dev/full":
        result = forked.run(*map(str, command[1:]), stdout="/dev/full")
    else:
        result = subprocess.run(
            ["bash", "-o", "pipefail", "-c", f"{' '.join(map(str, command))} {redirection}"],
            capture_output=True,
            text=True,
        )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert (out / "mistakes.png").exists()
    for path in out.glob("checkpoint-*"):
        torch.load(path, weights_only=True)
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 4


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    """Else a library that prints would print into a checkpoint."""
    script = (
        "import os, sys, gradstep.cli\n"
        "gradstep.cli.main([])\n"
        "descriptor = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)\n"
        "os.write(descriptor, str(descriptor).encode())\n"
    )
    path = tmp_path / "descriptor"
    command = [sys.executable, "-c", script, str(path)]
    subprocess.run(["bash", "-c", '"$@" <&- >&- 2>&-', "bash", *command], check=True)
    assert int(path.read_text()) > 2


def test_a_folder_that_may_not_be_written_is_told(tmp_path: Path) -> None:
    """As another user, since root may write anywhere."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(RunError, match=f"cannot make the folder {folder}/run: Permission"):
            make_directory(folder / "run")
    finally:
        os.seteuid(user)


@pytest.mark.parametrize(
    ("missing", "name"), [("matplotlib", "matplotlib"), ("sklearn", "scikit-learn")]
)
def test_a_package_that_is_not_installed_is_named(
    missing: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)  # import then says that there is none
    assert gradstep.cli.main(["train"]) == 2
    assert capsys.readouterr().err == (
        f"gradstep train: needs {name}: pip install 'gradstep[lab]'\n"
    )


def accuracies(out: Path) -> dict[str, float]:
    """The test accuracy after the last epoch, in per cent."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {line["optimizer"]: 100 * line["test_accuracy"] for line in lines}


@pytest.mark.deep
def test_the_default_reads_98_of_100_digits_within_a_minute(tmp_path: Path) -> None:
    before = time.process_time()  # of all threads: other work beside it makes it no longer
    assert gradstep.cli.main(["train", "--out", str(tmp_path / "run"), "--threads", "1"]) == 0
    assert time.process_time() - before < 60
    (accuracy,) = accuracies(tmp_path / "run").values()
    assert accuracy >= 98


@pytest.mark.slow
@pytest.mark.deep
def test_each_of_the_six_reads_97_of_100_digits(tmp_path: Path) -> None:
    result = run("--optimizer", ",".join(SIX), "--out", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    reached = accuracies(tmp_path / "run")
    assert sorted(reached) == sorted(SIX)
    assert {name: value for name, value in reached.items() if value < 97} == {}


@pytest.mark.slow
@pytest.mark.deep
def test_each_other_rule_learns_the_digits_too(tmp_path: Path) -> None:
    """Rprop is made for full batches, and learns less from small ones."""
    made = {rule.name for rule in rules.load().values() if rule.class_name} - {"lion"}
    least = {name: 97.0 for name in CHOICES if name not in {*SIX, *made}}  # the others: docs/rules
    least |= {"rprop": 95.0, "adafactor": 94.0}
    result = run("--optimizer", ",".join(least), "--out", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    reached = accuracies(tmp_path / "run")
    assert {name: value for name, value in reached.items() if value < least[name]} == {}


@pytest.mark.slow
@pytest.mark.deep
def test_lbfgs_learns_the_digits_in_few_epochs(tmp_path: Path) -> None:
    """Each of its steps looks at the batch eight times or more, so that its epochs are long."""
    result = run("--optimizer", "lbfgs", "--epochs", "5", "--out", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert accuracies(tmp_path / "run")["lbfgs"] > 85


def test_lbfgs_goes_on_to_the_very_same_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--optimizer", "lbfgs", "--train-limit", "64", "--quiet"]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert gradstep.cli.main([*arguments, "--epochs", "2", "--out", str(whole)]) == 0
    assert gradstep.cli.main([*arguments, "--epochs", "1", "--out", str(halves)]) == 0
    assert gradstep.cli.main(["train", "--resume", str(halves), "--epochs", "2", "--quiet"]) == 0
    a, b = (
        torch.load(out / "checkpoint-0002.pt", weights_only=True)["models"]["lbfgs"]
        for out in (whole, halves)
    )
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert accuracies(whole)["lbfgs"] > 30  # four steps


@pytest.mark.slow
@pytest.mark.deep
@pytest.mark.skipif(not FASHION.is_dir(), reason="the package dataset-fashion-mnist is not here")
def test_it_learns_from_a_folder_in_mnists_format(tmp_path: Path) -> None:
    """A tenth of Fashion-MNIST, two epochs; all of it and ten epochs reach 90 %."""
    out = tmp_path / "run"
    result = run("--data", FASHION, "--train-limit", "6000", "--epochs", "2", "--out", out)
    assert result.returncode == 0, result.stderr
    assert "6,000 images to learn from, 10,000 to be tested on" in result.stdout
    assert accuracies(out)["adamw"] > 75
