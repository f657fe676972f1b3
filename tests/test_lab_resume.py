"""A run goes on after anything: SIGKILL, Ctrl-C, a full disk, a damaged file.

Everything here happens to real processes. Most are forked from a server that has the imports
done, so that one costs a second and not four; some are started from scratch.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import forked
import gradstep.cli
from gradstep.lab.checkpoint import find_checkpoints
from gradstep.lab.training import TIMES
from ranks import FORKS

#: Two optimizers, sixteen batches of eight images; an epoch takes about 50 ms.
SMALL = ["--optimizer", "adam,momentum", "--train-limit", "128", "--batch-size", "8", "--quiet"]
EPOCHS = 8


def train_from_scratch(*arguments: str | Path) -> list[str]:
    """The command line of a process that shares nothing with this one."""
    return [sys.executable, "-m", "gradstep", "train", *map(str, arguments)]


def train(
    *arguments: str | Path, file_limit: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end in a forked process; no file may grow past ``file_limit``."""
    words = ("-m", "gradstep", "train", *map(str, arguments))
    return forked.run(*words, file_limit=file_limit, timeout=120)


def same(first: Any, second: Any) -> bool:
    """Equal to the last bit, in every tensor; times aside."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(
            same(first[key], second[key]) for key in first if key not in TIMES
        )
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return type(first) is type(second) and first == second


def last_checkpoint(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(find_checkpoints(directory)[0], weights_only=True)
    return content


def metrics(directory: Path) -> list[dict[str, Any]]:
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_same_run(directory: Path, reference: Path) -> None:
    names = {path.name for path in reference.iterdir()}
    assert {path.name for path in directory.iterdir()} == names
    assert same(last_checkpoint(directory), last_checkpoint(reference))
    assert same(metrics(directory), metrics(reference))
    assert metrics(directory) == last_checkpoint(directory)["records"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody interrupted."""
    directory = tmp_path_factory.mktemp("reference") / "run"
    assert train(*SMALL, "--epochs", str(EPOCHS), "--out", directory).returncode == 0
    return directory


def test_what_the_reference_run_has_written(reference: Path) -> None:
    assert [(line["epoch"], line["optimizer"]) for line in metrics(reference)] == [
        (epoch, name) for epoch in range(1, EPOCHS + 1) for name in ("adam", "momentum")
    ]
    assert {path.name for path in reference.iterdir()} == {
        "run.json",
        "metrics.jsonl",
        "curves.png",
        "filters.png",
        "mistakes.png",
        *(f"checkpoint-{epoch:04d}.pt" for epoch in range(1, EPOCHS + 1)),
    }
    content = last_checkpoint(reference)
    assert content["epoch"] == EPOCHS
    assert list(content["models"]) == list(content["optimizers"]) == ["adam", "momentum"]


def start_or_resume(directory: Path) -> list[str]:
    """The arguments with which a person would go on, whatever is in the folder."""
    if (directory / "run.json").exists():
        return ["train", "--resume", str(directory), "--quiet"]
    return ["train", *SMALL, "--epochs", str(EPOCHS), "--out", str(directory)]


@pytest.mark.parametrize("times", [4, pytest.param(24, marks=[pytest.mark.slow, pytest.mark.deep])])
def test_killed_at_random_moments_it_ends_with_the_same_bits(
    reference: Path, tmp_path: Path, times: int
) -> None:
    moments = random.Random(0)
    kills = finished = 0
    while kills < times:
        finished += 1
        directory = tmp_path / f"run{finished}"
        while True:
            process = FORKS.Process(target=gradstep.cli.main, args=(start_or_resume(directory),))
            before = len(list(directory.glob("checkpoint-*"))) if directory.exists() else 0
            process.start()
            # Let it come as far as a new checkpoint now and then, so that there is progress.
            if moments.random() < 0.5:
                while process.is_alive() and len(list(directory.glob("checkpoint-*"))) == before:
                    time.sleep(0.001)
                process.join(moments.uniform(0, 0.2))
            else:
                process.join(moments.uniform(0, 1.5))
            process.kill()
            process.join()
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL
            kills += 1
        assert_same_run(directory, reference)


def main_killed_at(event: int, directory: str, arguments: list[str]) -> None:
    """Run the command and die by SIGKILL at the n-th thing it does to a file of the folder."""
    count = 0

    def watch(name: str, details: tuple[Any, ...]) -> None:
        nonlocal count
        if name in ("open", "os.mkdir", "os.rename", "os.remove") and any(
            str(detail).startswith(directory) for detail in details
        ):
            count += 1
            if count == event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    sys.exit(gradstep.cli.main(arguments))


@pytest.mark.slow
@pytest.mark.deep
def test_killed_at_every_single_file_operation_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    small = ["--optimizer", "adam", "--train-limit", "16", "--epochs", "2", "--quiet"]
    reference = tmp_path / "reference"
    assert train(*small, "--out", reference).returncode == 0
    event = 0
    while True:
        event += 1
        directory = tmp_path / f"run{event}"
        begin = ["train", *small, "--out", str(directory)]
        process = FORKS.Process(target=main_killed_at, args=(event, str(directory), begin))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        go_on = ["train", "--resume", str(directory), "--quiet"]
        if not (directory / "run.json").exists():
            go_on = begin
        process = FORKS.Process(target=main_killed_at, args=(0, str(directory), go_on))
        process.start()
        process.join()
        assert process.exitcode == 0, f"after a kill at operation {event}"
        assert_same_run(directory, reference)
    assert event > 20  # the settings, two epochs and three pictures have that many


@pytest.mark.slow
@pytest.mark.deep
def test_killed_while_python_starts_it_ends_with_the_same_bits(
    reference: Path, tmp_path: Path
) -> None:
    moments = random.Random(1)
    directory = tmp_path / "run"
    for _ in range(3):
        arguments = [sys.executable, "-m", "gradstep", *start_or_resume(directory)]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(moments.uniform(0, 5))
        process.kill()
        process.communicate()
    arguments = [sys.executable, "-m", "gradstep", *start_or_resume(directory)]
    assert subprocess.run(arguments, capture_output=True).returncode == 0
    assert_same_run(directory, reference)


def test_after_ctrl_c_it_says_how_to_go_on_and_does(reference: Path, tmp_path: Path) -> None:
    directory = tmp_path / "a run"
    process = subprocess.Popen(
        train_from_scratch(*SMALL, "--epochs", str(EPOCHS), "--out", directory),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (directory / "checkpoint-0002.pt").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert process.returncode == 130
    assert output == ""
    assert errors == f"gradstep train: stopped; go on with: gradstep train --resume '{directory}'\n"
    assert len(find_checkpoints(directory)) < EPOCHS
    assert train("--resume", directory, "--quiet").returncode == 0
    assert_same_run(directory, reference)


def test_a_finished_run_says_so(reference: Path) -> None:
    before = last_checkpoint(reference)
    run = train("--resume", reference)
    assert run.returncode == 0
    assert f"{reference} is finished: {EPOCHS} of {EPOCHS} epochs done" in run.stdout
    assert "momentum" in run.stdout.splitlines()[-3]
    assert same(last_checkpoint(reference), before)


@pytest.mark.deep
def test_more_epochs_make_it_as_long_as_if_begun_so(reference: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    assert train(*SMALL, "--epochs", "3", "--out", directory).returncode == 0
    assert train("--resume", directory, "--epochs", str(EPOCHS), "--quiet").returncode == 0
    assert_same_run(directory, reference)
    assert f"{EPOCHS} of {EPOCHS}" in train("--resume", directory).stdout


@pytest.mark.deep
def test_two_threads_resume_to_the_same_bits(tmp_path: Path) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    settings = [*SMALL, "--threads", "2"]
    assert train(*settings, "--epochs", "4", "--out", whole).returncode == 0
    assert train(*settings, "--epochs", "1", "--out", parted).returncode == 0
    assert train("--resume", parted, "--epochs", "4", "--quiet").returncode == 0
    assert_same_run(parted, whole)


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["--optimizer", "adam"], "--optimizer"),
        (["--optimizer", "momentum,adam"], "--optimizer"),
        (["--lr", "0.5"], "--lr"),
        (["--seed", "1"], "--seed"),
        (["--threads", "2"], "--threads"),
        (["--batch-size", "9"], "--batch-size"),
        (["--train-limit", "127"], "--train-limit"),
        (["--shift", "0"], "--shift"),
        (["--lr-decay", "1"], "--lr-decay"),
        (["--data", "somewhere"], "--data"),
        (["--epochs", "7"], "--epochs"),
    ],
)
def test_other_settings_than_the_runs_own_are_refused(
    reference: Path, arguments: list[str], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in reference.iterdir()}
    assert gradstep.cli.main(["train", "--resume", str(reference), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gradstep train: ") and error.count("\n") == 1
    assert option in error
    assert {path: path.stat().st_mtime_ns for path in reference.iterdir()} == before


def test_its_own_settings_may_be_said_again(reference: Path) -> None:
    run = train("--resume", reference, *SMALL, "--epochs", str(EPOCHS), "--seed", "0")
    assert run.returncode == 0, run.stderr


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_taken(
    reference: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    shutil.copytree(reference, directory)
    for path, size in zip(find_checkpoints(directory)[:2], (1000, 0), strict=True):
        os.truncate(path, size)
    run = train("--resume", directory, "--quiet")
    assert run.returncode == 0
    assert run.stderr.count("\n") == 2
    assert f"checkpoint-{EPOCHS:04d}.pt is damaged" in run.stderr
    assert f"checkpoint-{EPOCHS - 1:04d}.pt is damaged" in run.stderr
    assert_same_run(directory, reference)


def test_without_any_whole_checkpoint_it_begins_again(reference: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(reference, directory)
    for path in find_checkpoints(directory):
        path.unlink()
    assert train("--resume", directory, "--quiet").returncode == 0
    assert_same_run(directory, reference)


def test_lines_of_metrics_lost_doubled_or_torn_are_put_right(
    reference: Path, tmp_path: Path
) -> None:
    for number, spoil in enumerate(
        (
            lambda lines: lines[:-1],
            lambda lines: lines + lines[-2:],
            lambda lines: [*lines[:-1], lines[-1][:20]],
        )
    ):
        directory = tmp_path / str(number)
        shutil.copytree(reference, directory)
        path = directory / "metrics.jsonl"
        path.write_text("".join(spoil(path.read_text().splitlines(keepends=True))))
        assert train("--resume", directory, "--quiet").returncode == 0
        assert_same_run(directory, reference)


def test_a_full_disk_leaves_the_checkpoint_before_it(reference: Path, tmp_path: Path) -> None:
    """The kernel itself refuses to make a file larger than the limit, in the middle of a write."""
    directory = tmp_path / "run"
    assert train(*SMALL, "--epochs", "3", "--out", directory).returncode == 0
    three = {path.name: path.read_bytes() for path in directory.glob("checkpoint-*")}
    limit = len(three["checkpoint-0003.pt"]) // 2
    run = train(*("--resume", directory, "--epochs", str(EPOCHS), "--quiet"), file_limit=limit)
    assert run.returncode == 1
    assert run.stderr.startswith(f"gradstep train: cannot write {directory}/checkpoint-0004.pt: ")
    assert f"go on with: gradstep train --resume {directory}" in run.stderr
    assert run.stderr.count("\n") == 1
    assert {path.name: path.read_bytes() for path in directory.glob("checkpoint-*")} == three
    assert not list(directory.glob(".*"))
    assert train("--resume", directory, "--quiet").returncode == 0
    assert_same_run(directory, reference)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB; needs to be root."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(directory)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


@pytest.mark.deep
def test_a_file_system_that_fills_up(reference: Path, small_disk: Path, tmp_path: Path) -> None:
    directory = small_disk / "run"
    run = train(*SMALL, "--epochs", str(EPOCHS), "--out", directory)
    assert run.returncode == 1
    kept = find_checkpoints(directory)
    assert 1 < len(kept) < EPOCHS
    missing = directory / f"checkpoint-{len(kept) + 1:04d}.pt"
    assert run.stderr == (
        f"gradstep train: cannot write {missing}: No space left on device; "
        f"go on with: gradstep train --resume {directory}\n"
    )
    for path in kept[1:]:  # make room
        path.unlink()
    moved = tmp_path / "run"
    shutil.copytree(directory, moved)
    assert train("--resume", moved, "--quiet").returncode == 0
    assert same(last_checkpoint(moved), last_checkpoint(reference))
    assert same(metrics(moved), metrics(reference))


def test_two_processes_do_not_write_to_one_run(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    process = subprocess.Popen(
        train_from_scratch(*SMALL, "--epochs", "100000", "--out", directory),
        stdout=subprocess.DEVNULL,
    )
    try:
        while not (directory / "checkpoint-0001.pt").exists():
            assert process.poll() is None
            time.sleep(0.01)
        second = train("--resume", directory)
    finally:
        process.kill()
        process.wait()
    assert second.returncode == 2
    assert second.stderr == f"gradstep train: another gradstep train is at work in {directory}\n"


def test_other_data_than_the_run_began_with_are_refused(tmp_path: Path) -> None:
    import struct

    def write(images: int, brightness: int) -> None:
        for part in ("train", "t10k"):
            pixels = struct.pack(">HBBIII", 0, 8, 3, images, 28, 28)
            (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(
                pixels + bytes([brightness, 7] * (images * 28 * 14))
            )
            labels = struct.pack(">HBBI", 0, 8, 1, images) + bytes(images)
            (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(labels)

    write(20, 200)
    out = tmp_path / "run"
    assert train("--data", tmp_path, "--epochs", "1", "--out", out).returncode == 0
    assert train("--data", tmp_path, "--resume", out, "--epochs", "2").returncode == 0
    write(20, 100)
    run = train("--resume", out, "--epochs", "3")
    assert run.returncode == 2
    assert "are not those that the run began with" in run.stderr
    assert run.stderr.count("\n") == 1


def test_what_the_last_bits_depend_on_is_told_when_it_changed(
    reference: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    shutil.copytree(reference, directory)
    path = directory / "run.json"
    content = json.loads(path.read_text())
    content["made_with"]["torch"] = "1.0"
    path.write_text(json.dumps(content))
    run = train("--resume", directory, "--quiet")
    assert run.returncode == 0
    assert run.stderr.startswith("gradstep train: note: begun with torch '1.0', now ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is damaged"),
        ("[]", "is damaged"),
        ("{}", "is damaged"),
        ('{"format": 99}', "another version"),
        ('{"format": 1, "settings": {}, "data": {}, "made_with": {}}', "is damaged"),
    ],
)
def test_a_damaged_run_json_is_told(
    tmp_path: Path, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_text(content)
    assert gradstep.cli.main(["train", "--resume", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
