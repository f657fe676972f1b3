"""``torchrun … -m gradstep train …``: several real processes make one run.

They add up their gradients, so that the run is the single process's up to rounding.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import forked
import gradstep.cli
from gradstep.lab.checkpoint import find_checkpoints
from gradstep.lab.errors import DataError
from gradstep.lab.followers import follow
from gradstep.lab.processes import Processes
from gradstep.lab.settings import Settings
from gradstep.lab.training import TIMES
from ranks import run_ranks

#: Four batches of 32 images and one of a single image, so that the shares of the last are empty.
SMALL = ["--optimizer", "momentum,adamw", "--train-limit", "129", "--epochs", "3", "--quiet"]
TRAIN = ["-m", "gradstep", "train"]


def torchrun(count: int, *command: str | Path) -> list[str]:
    """The command line of several processes; torchrun is this module under its other name."""
    options = ["--standalone", "--nproc-per-node", str(count)]
    launcher = [sys.executable, "-m", "torch.distributed.run", *options]
    return [*launcher, *map(str, command)]


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """The command at work; it and all that it started are gone afterwards."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def run(command: list[str], timeout: float = 300) -> subprocess.CompletedProcess[str]:
    with started(command) as process:
        output, errors = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(command, process.returncode, output, errors)


def own_lines(errors: str) -> list[str]:
    """What gradstep wrote, among what torchrun did."""
    return [line for line in errors.splitlines() if line.startswith("gradstep train: ")]


def last_checkpoint(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(find_checkpoints(directory)[0], weights_only=True)
    return content


def metrics(directory: Path) -> list[dict[str, Any]]:
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_same_run(directory: Path, reference: Path, rounding: float = 2e-4) -> None:
    """The files of one run, and the numbers of the other up to rounding.

    AdamW divides by the size of the gradient: where that is nearly 0, the last bits of a sum decide
    on a step of up to 0.002. A share of the images left out, or counted twice, moves weights by ten
    times as much.
    """
    assert {p.name for p in directory.iterdir()} == {p.name for p in reference.iterdir()}
    found, expected = last_checkpoint(directory), last_checkpoint(reference)
    assert found["epoch"] == expected["epoch"]
    for name, weights in expected["models"].items():
        assert list(found["models"][name]) == list(weights)
        for key, weight in weights.items():
            torch.testing.assert_close(
                found["models"][name][key], weight, rtol=0, atol=rounding, msg=f"{name} {key}"
            )
    for name, random in expected["random"].items():
        assert torch.equal(found["random"][name], random)
    assert found["records"] == metrics(directory)
    for line, other in zip(metrics(directory), metrics(reference), strict=True):
        for key, value in other.items():
            if key not in TIMES:
                close = isinstance(value, float)
                assert line[key] == (pytest.approx(value, abs=1e-3) if close else value), key
        assert line["images_per_second"] == pytest.approx(129 / line["seconds"])


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of it."""
    directory = tmp_path_factory.mktemp("single") / "run"
    assert forked.run(*map(str, [*TRAIN, *SMALL, "--out", directory])).returncode == 0
    return directory


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """What two processes make of it, and what they printed."""
    directory = tmp_path_factory.mktemp("two") / "run"
    result = run(torchrun(2, *TRAIN, *SMALL, "--out", directory))
    assert result.returncode == 0, result.stderr
    return directory, result.stdout, result.stderr


Two = tuple[Path, str, str]


def test_two_processes_make_the_run_of_one_and_speak_with_one_voice(single: Path, two: Two) -> None:
    directory, output, errors = two
    assert_same_run(directory, single)
    assert [line.split()[0] for line in output.splitlines()[-2:]] == ["momentum", "adamw"]
    assert len(output.splitlines()) == 4  # a table, once
    assert own_lines(errors) == []
    assert "Traceback" not in errors and "arning" not in errors.replace("OMP_NUM", "")


@pytest.mark.deep
def test_one_process_under_torchrun_gives_the_very_bits_of_the_command(
    single: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    assert run(torchrun(1, *TRAIN, *SMALL, "--out", directory)).returncode == 0
    assert_same_run(directory, single, rounding=0)


def cut_short(reference: Path, directory: Path) -> Path:
    """The run as it would be after its first epoch."""
    shutil.copytree(reference, directory)
    for checkpoint in find_checkpoints(directory)[:-1]:
        checkpoint.unlink()
    return directory


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (2, 1),
        pytest.param(1, 2, marks=pytest.mark.deep),
        pytest.param(2, 3, marks=pytest.mark.deep),
    ],
)
def test_it_goes_on_with_another_number_of_processes(
    before: int, after: int, single: Path, two: Two, tmp_path: Path
) -> None:
    directory = cut_short(single if before == 1 else two[0], tmp_path / "run")
    words = [*TRAIN, "--resume", directory, "--quiet"]
    result = run(torchrun(after, *words)) if after > 1 else forked.run(*map(str, words))
    assert result.returncode == 0, result.stderr
    assert_same_run(directory, single)
    note = f"begun with processes '{before}', now '{after}': the last bits may come out otherwise"
    assert own_lines(result.stderr) == [f"gradstep train: note: {note}"]


@pytest.mark.deep
def test_it_goes_on_with_two_to_the_very_bits_and_by_the_installed_command_too(
    two: Two, tmp_path: Path
) -> None:
    command = Path(sys.executable).with_name("gradstep")
    if not command.exists():
        pytest.skip("the command gradstep is not installed")
    directory = cut_short(two[0], tmp_path / "run")
    result = run(torchrun(2, command, "train", "--resume", directory, "--quiet"))
    assert result.returncode == 0, result.stderr
    assert_same_run(directory, two[0], rounding=0)
    assert own_lines(result.stderr) == []


LONG = [*SMALL[:4], "--epochs", "5000", "--quiet"]


def children(pid: int) -> list[int]:
    """The processes of the run, in the order of their ranks."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return sorted(
        map(int, text.split()),
        key=lambda p: b"RANK=1" in Path(f"/proc/{p}/environ").read_bytes().split(b"\0"),
    )


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("whom", "how", "message"),
    [
        pytest.param("all", signal.SIGINT, "stopped", marks=pytest.mark.deep),
        pytest.param("torchrun", signal.SIGTERM, "stopped", marks=pytest.mark.deep),
        pytest.param(
            *("a follower", signal.SIGKILL, "another process of this run has ended|stopped"),
            marks=pytest.mark.deep,
        ),
        pytest.param("the leader", signal.SIGKILL, None, marks=pytest.mark.deep),
    ],
)
def test_whatever_ends_one_ends_all(
    whom: str, how: signal.Signals, message: str | None, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    with started(torchrun(2, *TRAIN, *LONG, "--out", directory)) as process:
        while not (directory / "checkpoint-0002.pt").exists():
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        leader, follower = children(process.pid)
        if whom == "all":  # as a terminal does on Ctrl-C
            os.killpg(process.pid, how)
        else:
            os.kill({"torchrun": process.pid, "the leader": leader}.get(whom, follower), how)
        _, errors = process.communicate(timeout=300)
        assert process.returncode != 0
        for pid in (leader, follower):
            assert not Path(f"/proc/{pid}").exists()
    way_on = f"; go on with: gradstep train --resume {directory}"
    spoken = own_lines(errors)
    assert len(spoken) == (message is not None), errors
    for line in spoken:
        assert re.fullmatch(f"gradstep train: ({message}){re.escape(way_on)}", line)
    reached = last_checkpoint(directory)["epoch"]
    words = ["train", "--resume", str(directory), "--epochs", "5000", "--quiet"]
    assert reached >= 2 and gradstep.cli.build_parser().parse_args(words).resume == directory


@pytest.mark.deep
def test_a_full_disk_ends_all_and_is_told_once(tmp_path: Path) -> None:
    """The leader alone may write no file of more than 64 kB."""
    directory = tmp_path / "run"
    words = " ".join(map(str, [sys.executable, *TRAIN, *LONG, "--out", directory]))
    script = f'if [ "$RANK" = 0 ]; then ulimit -f 64; fi; exec {words}'
    launcher = torchrun(2, "--no-python", "bash", "-c", script)
    result = run(launcher)
    assert result.returncode != 0
    (line,) = own_lines(result.stderr)
    assert line.startswith(f"gradstep train: cannot write {directory}/checkpoint-0001.pt: ")
    assert line.endswith(f"go on with: gradstep train --resume {directory}")


@pytest.mark.deep
def test_more_processes_than_images_in_a_batch_are_refused(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    result = run(torchrun(2, *TRAIN, "--batch-size", "1", "--out", directory))
    assert result.returncode != 0 and result.stdout == ""
    (line,) = own_lines(result.stderr)
    assert "2 processes cannot share batches of 1" in line and "--batch-size" in line
    assert not directory.exists()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but RANK and MASTER_ADDR and MASTER_PORT are not"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "x"}, "MASTER_PORT is not set"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}, "no place"),
        ({"WORLD_SIZE": "two", "RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"}, "'two'"),
        ({"WORLD_SIZE": "0", "RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"}, "no place"),
    ],
)
def test_an_environment_that_tells_half_is_refused(
    environment: dict[str, str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert gradstep.cli.main(["train", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_shares_of_a_batch_are_all_of_it() -> None:
    for size in (0, 1, 2, 5, 32):
        for count in (1, 2, 3, 7):
            shares = [Processes(rank, count).share(size) for rank in range(count)]
            together = [i for share in shares for i in range(size)[share]]
            assert together == list(range(size))
            lengths = [len(range(size)[share]) for share in shares]
            assert max(lengths) - min(lengths) <= 1


def lead_with_other_data(rank: int) -> str:
    processes = Processes(rank, 2)
    settings = Settings(("sgd",), (0.1,), 1, 8, 1.0, 0, 0, 1, None, 16)
    if processes.leads:
        processes.told((settings.to_json(), "another fingerprint", b""))
        return ""
    with pytest.raises(DataError) as caught:
        follow(processes)
    return str(caught.value)


def test_a_follower_that_finds_other_data_says_so() -> None:
    _, error = run_ranks(lead_with_other_data, 2)
    assert "are not those of the leading process" in error
