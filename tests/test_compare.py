"""``gradstep compare`` as a person meets it: races, what they leave, going on, errors."""

from __future__ import annotations

import io
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch.nn.functional import cross_entropy

import gradstep.cli
from gradstep.lab import surface
from gradstep.lab.digits import load_digits
from gradstep.lab.intervals import t_interval, t_quantile
from gradstep.lab.lenet import LeNet
from gradstep.lab.optimizers import TRAINABLE
from gradstep.lab.race import Course, Entry, RaceFolder, entries, read_sweep, usual_folder
from gradstep.lab.race_report import best_of, final_standings, final_table, standings
from gradstep.lab.race_session import check_course
from gradstep.lab.race_worker import Worker, point_steps, race_data, race_run
from gradstep.lab.training import batches
from test_lab_idx import write_folder

SMALL = Course(None, None, None, 8, 16, 0.95, 3, 64)
RACE = [
    *("compare", "--optimizer", "sgd,adam", "--sweep", "lr=0.002,0.1", "--seeds", "2"),
    *("--steps", "8", "--batch-size", "16", "--train-limit", "64", "--workers", "1"),
]


def quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coarse surfaces, which another file looks at."""
    monkeypatch.setattr(surface, "PLANE_GRID", 4)
    monkeypatch.setattr(surface, "RATES", (0.001, 0.01))


@pytest.fixture(scope="module")
def raced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a race that is done. The tests below look at it, and go on with copies."""
    directory = tmp_path_factory.mktemp("race") / "race"
    with pytest.MonkeyPatch.context() as patch:
        quick_pictures(patch)
        assert gradstep.cli.main([*RACE, "--quiet", "--out", str(directory)]) == 0
    return directory


# Statistics.


def test_the_quantiles_of_t_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy comes with scikit-learn")
    for degrees in (*range(1, 21), 99, 100, 999):
        for probability in (0.5, 0.6, 0.9, 0.95, 0.975, 0.995, 0.9995):
            expected = stats.t.ppf(probability, degrees)
            assert t_quantile(probability, degrees) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_interval_is_that_of_scipy_and_one_value_has_none() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy comes with scikit-learn")
    values = [0.91, 0.95, 0.93, 0.9, 0.97]
    error = statistics.stdev(values) / math.sqrt(5)
    low, high = stats.t.interval(0.95, 4, loc=statistics.mean(values), scale=error)
    found = t_interval(values)
    assert found.half is not None and found.count == 5
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))
    assert t_interval([0.5]).half is t_interval([0.5, 0.6]).half is None
    for bad in ([], [1.0, math.nan]):
        with pytest.raises(ValueError, match="finite"):
            t_interval(bad)


# What is raced.


def test_sweeps() -> None:
    assert read_sweep("lr=1e-4:1e-1:4").around(5) == pytest.approx((1e-4, 1e-3, 1e-2, 1e-1))
    assert read_sweep("lr=0.3,0.1").around(5) == (0.1, 0.3)
    around = read_sweep("lr").around(0.02)
    assert len(around) == 7 and around[3] == 0.02
    assert around[1] == pytest.approx(0.002) and around[5] == pytest.approx(0.2)


def test_a_stopped_race_has_compared_all_rules_on_its_first_seeds() -> None:
    order = entries({"sgd": (0.1, 0.2), "adam": (0.001,)}, seeds=2)
    assert order[:3] == [Entry("sgd", 0.1, 0), Entry("sgd", 0.2, 0), Entry("adam", 0.001, 0)]
    assert {entry.seed for entry in order[3:]} == {1} and len(order) == 6
    assert len({entry.name for entry in order}) == 6


def test_points_are_evenly_spaced_and_end_at_the_last_step() -> None:
    assert point_steps(3) == [1, 2, 3]
    steps = point_steps(450)
    assert steps[-1] == 450 and len(steps) == 30 and set(numpy.diff(steps)) == {15}


@pytest.mark.parametrize(("name", "make"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam)])
def test_a_run_is_the_plain_loop_with_torchs_optimizer(name: str, make: Any) -> None:
    """Loss for loss, test for test, the learning rate's decay included."""
    entry = Entry(name, TRAINABLE[name].lr, seed=3)
    data = race_data(SMALL, 3)
    kept: list[torch.Tensor] = []
    told: list[int] = []
    result = race_run(SMALL, entry, data, told.append, kept)

    data = load_digits(3).limited(64)
    torch.manual_seed(3)
    model = LeNet()
    optimizer = make(model.parameters(), lr=entry.lr)
    random = torch.Generator().manual_seed(3)
    losses, tests = [], []
    for epoch in range(2):  # of four batches
        for images, labels in batches(data, 16, 3, random):
            optimizer.param_groups[0]["lr"] = entry.lr * 0.95**epoch
            optimizer.zero_grad()
            loss = cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            with torch.no_grad():
                scores = model(data.test_images)
            tests.append((scores.argmax(1) == data.test_labels).double().mean().item())
    assert told == result["steps"][1:] == list(range(1, 9))
    assert result["train_loss"][0] is None
    assert result["train_loss"][1:] == pytest.approx(losses, rel=1e-4)
    assert result["test_accuracy"][1:] == pytest.approx(tests, abs=1 / 360 + 1e-9)
    assert result["final"]["train_loss"] == pytest.approx(statistics.mean(losses[4:]), rel=1e-4)
    assert result["diverged"] is None and result["steps_an_epoch"] == 4
    assert len(kept) == 9
    with torch.no_grad():
        own = torch.cat([p.flatten() for p in model.parameters()])
    torch.testing.assert_close(kept[-1], own, rtol=0, atol=1e-4)


def test_a_run_that_diverges_ends_there_and_counts_last() -> None:
    data = race_data(SMALL, 0)
    good = race_run(SMALL, Entry("sgd", 0.1, 0), data, lambda done: None)
    lost = race_run(SMALL, Entry("sgd", 1e20, 0), data, lambda done: None)
    assert lost["diverged"] == lost["steps"][-1] == 2
    assert lost["final"]["train_loss"] is None and 0 <= lost["final"]["test_accuracy"] <= 1
    json.dumps(lost, allow_nan=False)
    results = {Entry("sgd", 0.1, 0): good, Entry("sgd", 1e20, 0): lost}
    rates = standings(results)["sgd"]
    assert [s.diverged for s in rates] == [0, 1]
    assert best_of(rates).lr == 0.1
    (alone,) = final_standings({Entry("sgd", 1e20, 0): lost})
    text = "\n".join(final_table([alone]))
    assert "diverged" in text and "One seed: no intervals" in text


def test_data_in_mnists_format_are_raced_the_same_from_every_seed(tmp_path: Path) -> None:
    course = Course(None, str(write_folder(tmp_path)), 2, None, 5, 0.95, 1, None)
    data, _, facts = check_course(course)
    assert race_data(course, 7).fingerprint() == data.fingerprint() == facts["data"]["fingerprint"]
    result = race_run(course, Entry("adam", 0.002, 7), data, lambda done: None)
    assert result["steps"] == list(range(7)) and result["steps_an_epoch"] == 3
    limited = race_data(Course(**{**vars(course), "train_limit": 10}), 0)
    assert len(limited.train_labels) == 10 and len(limited.test_labels) == 5


# A race.


def test_a_race_leaves_all_it_promises_and_the_means_hold(raced: Path) -> None:
    names = {path.relative_to(raced).as_posix() for path in raced.rglob("*.*")}
    runs = {
        f"results/{rule}-lr{lr}-seed{seed}.json"
        for rule in ("sgd", "adam")
        for lr in (0.002, 0.1)
        for seed in (0, 1)
    }
    assert {"race.json", "results.json", "index.html", *runs} <= names
    content = json.loads((raced / "results.json").read_text())
    assert content["course"]["steps"] == 8 and len(content["runs"]) == 8
    table = content["table"]
    assert {row["optimizer"] for row in table} == {"sgd", "adam"}

    def finals(row: dict[str, Any], measure: str) -> Any:
        own = [
            run["final"][measure]
            for run in content["runs"]
            if (run["entry"]["optimizer"], run["entry"]["lr"]) == (row["optimizer"], row["lr"])
        ]
        assert len(own) == 2
        return numpy.array(own)

    for row in table:
        for measure, interval in row["final"].items():
            values = finals(row, measure)
            assert interval["mean"] == pytest.approx(values.mean())
            assert interval["half"] is None  # two seeds say nothing of that
        losses = {
            s["lr"]: s["final"]["train_loss"]["mean"]
            for s in content["standings"]
            if s["optimizer"] == row["optimizer"]
        }
        assert row["lr"] == min(losses, key=lambda lr: losses[lr])
    gaps = finals(table[0], "test_accuracy") - finals(table[1], "test_accuracy")
    assert table[0]["behind"] is None and gaps.mean() >= 0
    assert table[1]["behind"]["mean"] == pytest.approx(gaps.mean())
    assert table[1]["behind"]["half"] is None


def times(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (directory / "results").glob("*.json")}


def numbers(path: Path) -> dict[str, Any]:
    """A run without what the clock says."""
    result = json.loads(path.read_text())
    return {key: v for key, v in result.items() if key not in ("step_microseconds", "seconds")}


@pytest.mark.deep
def test_the_same_race_again_makes_what_is_missing_to_the_same_numbers(
    raced: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick_pictures(monkeypatch)
    before = times(raced)
    gone, spoilt = (raced / "results" / f"adam-lr0.1-seed{seed}.json" for seed in (0, 1))
    expected = [numbers(gone), numbers(spoilt)]
    gone.unlink()
    spoilt.write_text(spoilt.read_text()[:100])
    (raced / "index.html").unlink()
    assert gradstep.cli.main([*RACE[:-1], "2", "--out", str(raced)]) == 0
    captured = capsys.readouterr()
    assert "8 runs of 8 steps, 6 of them done before; 2 at a time" in captured.out
    assert captured.err == "" and "\x1b" not in captured.out
    assert [numbers(gone), numbers(spoilt)] == expected
    after = times(raced)
    assert {name for name in before if before[name] != after[name]} == {gone.name, spoilt.name}
    assert (raced / "index.html").exists()

    lines = captured.out.splitlines()
    start = next(i for i, text in enumerate(lines) if text.startswith("rule"))
    rows = [line.split()[0] for line in lines[start + 2 : start + 4]]
    assert sorted(rows) == ["adam", "sgd"]
    assert "Mean over 2 seeds ± half of the 95 % confidence interval" in captured.out

    monkeypatch.setattr("subprocess.Popen", None)  # all is done: no process is needed
    assert gradstep.cli.main([*RACE, "--out", str(raced), "--quiet"]) == 0
    assert "8 of them" not in capsys.readouterr().out
    assert times(raced) == after


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lr-decay", "1"], "has --lr-decay 0.95, not --lr-decay 1.0: choose another folder"),
        (["--shift", "0"], "has --shift 3, not --shift 0"),
        (["--model", "own_net:make"], "has no --model, not --model own_net:make"),
    ],
)
def test_a_race_with_other_settings_is_refused(
    raced: Path,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "own_net.py").write_text(OWN_NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = times(raced)
    assert gradstep.cli.main([*RACE, *arguments, "--out", str(raced)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert times(raced) == before


def test_without_a_folder_the_same_settings_have_the_same_one() -> None:
    assert usual_folder(SMALL) == usual_folder(Course(**vars(SMALL)))
    assert usual_folder(SMALL) != usual_folder(Course(**{**vars(SMALL), "steps": 9}))


@pytest.mark.deep
def test_ctrl_c_ends_all_processes_and_the_race_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "race"
    command = [sys.executable, "-m", "gradstep", "compare", "--optimizer", "sgd", "--steps", "40"]
    race = subprocess.Popen(
        [*command, "--train-limit", "64", "--seeds", "500", "--workers", "1", "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while not list((out / "results").glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    children = _children(race.pid)
    assert len(children) == 1
    race.send_signal(signal.SIGINT)
    _, error = race.communicate(timeout=300)
    assert race.returncode == 130
    assert error == (
        f"gradstep compare: stopped; the runs that are done are in {out}, "
        "and the same command goes on from there\n"
    )
    assert not _alive(children[0])
    assert not (out / "index.html").exists()
    found = RaceFolder(out).results(entries({"sgd": (0.1,)}, 500))
    assert 1 <= len(found) < 500
    assert len(found) == len(list((out / "results").glob("*.json")))  # each one whole


def test_a_worker_ends_with_the_race_that_started_it(tmp_path: Path) -> None:
    """Also one that was killed: its input is then cut off, in the middle of a run."""
    (tmp_path / "results").mkdir()
    endless = Course(**{**vars(SMALL), "steps": 10**8})
    worker = subprocess.Popen(
        [sys.executable, "-m", "gradstep.lab.race_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.write(json.dumps({"directory": str(tmp_path), "course": vars(endless)}) + "\n")
    job = {"entry": vars(Entry("sgd", 0.1, 0)), "keep": False}
    worker.stdin.write(json.dumps(job) + "\n")
    worker.stdin.flush()
    assert json.loads(worker.stdout.readline())["steps"] > 0  # it is at work
    worker.stdin.close()
    assert worker.wait(timeout=300) == 1
    worker.stdout.close()
    assert not list((tmp_path / "results").iterdir())


@pytest.mark.skipif(os.name == "nt", reason="a shell script stands for the process")
def test_a_process_that_dies_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dying = tmp_path / "dying"
    dying.write_text("#!/bin/sh\nread line\nexit 3\n")
    dying.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dying))
    out = tmp_path / "race"
    assert gradstep.cli.main([*RACE, "--quiet", "--out", str(out)]) == 1
    assert capsys.readouterr().err == (
        "gradstep compare: a process of the race has ended with exit code 3; the runs that are "
        f"done are in {out}, and the same command goes on from there\n"
    )


def _children(process: int) -> list[int]:
    lines = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout
    pairs = [tuple(map(int, line.split())) for line in lines.splitlines()]
    return [own for own, parent in pairs if parent == process]


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


# A network of the user's own.

OWN_NET = """\
import torch
from torch import nn

def make():
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Dropout(0.1), nn.Linear(64, 10))

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(1024, 10))

class Flaky(Net):
    calls = 0
    def forward(self, images):
        Flaky.calls += self.training
        if Flaky.calls > 5:
            raise RuntimeError("enough\\nof this")
        return super().forward(images)

def raises(): raise ValueError("no data")
def number(): return 7
def empty(): return nn.Flatten()
def frozen(): return Net().requires_grad_(False)
def wide(): return nn.Sequential(nn.Flatten(), nn.Linear(1024, 100))
def narrow(): return nn.Linear(8, 10)
def pair():
    net = Net()
    net.forward = lambda images: (images, images)
    return net
def cut():
    net = Net()
    net.register_forward_hook(lambda module, inputs, scores: scores.detach())
    return net
seven = 7
"""


@pytest.fixture()
def own_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_net.py").write_text(OWN_NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_net", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def worker_says(directory: Path, model: str, *jobs: Entry) -> list[dict[str, Any]]:
    """What a worker answers, which here is in this process."""
    (directory / "results").mkdir(exist_ok=True)
    course = Course(**{**vars(SMALL), "model": model})
    out = io.StringIO()
    worker = Worker(RaceFolder(directory), course, out)
    for job in jobs:
        worker.make({"entry": vars(job), "keep": True})
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_network_of_ones_own_is_raced_with_the_same_dropout_each_time(own_net: Path) -> None:
    entry = Entry("adam", 0.01, 1)
    path = own_net / "results" / f"{entry.name}.json"
    assert worker_says(own_net, "own_net:make", entry)[-1] == {"done": entry.name}
    first = numbers(path)
    assert first["final"]["train_loss"] < first["test_loss"][0]
    assert numpy.load(path.with_suffix(".npy")).shape == (9, 650)
    assert worker_says(own_net, "own_net.py:make", entry)[-1] == {"done": entry.name}
    assert numbers(path) == first


def test_a_run_that_raises_says_so_and_leaves_no_result(own_net: Path) -> None:
    (failed,) = worker_says(own_net, "own_net:Flaky", Entry("sgd", 0.1, 0))
    assert failed == {"failed": "the run sgd-lr0.1-seed0 failed: RuntimeError: enough of this"}
    assert not list((own_net / "results").iterdir())


# Errors.

BAD_ARGUMENTS = {
    "--optimizer adm": "unknown optimizer 'adm': did you mean adam",
    "--optimizer sgd,sgd": "sgd is named twice",
    "--optimizer muon": "muon updates matrices only",
    "--sweep momentum": "'momentum' is not lr, lr:HOW_MANY, lr=LOWEST:HIGHEST:HOW_MANY or lr=A,B,C",
    "--sweep lr=": "is not lr",
    "--sweep lr=1:2": "not LOWEST:HIGHEST:HOW_MANY",
    "--sweep lr=1:x:3": "in numbers",
    "--sweep lr=1:0.1:3": "needs 0 < LOWEST < HIGHEST",
    "--sweep lr=0.1:1:1": "2 to 100 rates",
    "--sweep lr=0.1,-1": "-1 is not above 0",
    "--sweep lr=nan": "nan is not above 0",
    "--seeds 0": "not from 1",
    "--seeds two": "'two' is not a whole number",
    "--steps 5 --epochs 5": "not allowed with",
    "--workers 0": "not from 1",
    "--lr-decay 2": "at most 1",
    "--out ": "empty name",
    "--out own_net.py": "cannot make the folder own_net.py: a file is in its place",
    "--out .": "is not empty and holds no race",
    "--data nowhere": "there is no folder",
    "--model nets": "'nets' is not module:function",
    "--model nets:": "is not module:function",
    "--model nowhere:make": "cannot import nowhere: No module named 'nowhere'",
    "--model nowhere.py:make": "there is no file nowhere.py",
    "--model own_net:mak": "own_net has no 'mak'; it has make, Net, Flaky, raises, number",
    "--model own_net:seven": "own_net:seven is of type int; a function that returns an nn.Module",
    "--model own_net:raises": "own_net:raises() raised ValueError: no data",
    "--model own_net:number": "own_net:number() returned of type int; an nn.Module was expected",
    "--model own_net:empty": "has no weights to train",
    "--model own_net:frozen": "has no weights to train",
    "--model own_net:wide": "gave shape (2, 100) for two images; ten scores",
    "--model own_net:pair": "gave of type tuple for two images",
    "--model own_net:narrow": "does not take float32 images of shape (2, 1, 32, 32): RuntimeError",
    "--model own_net:cut": "carry no gradient",
}


@pytest.mark.parametrize("line", BAD_ARGUMENTS)
def test_a_bad_argument_gets_one_clear_line_and_changes_nothing(
    line: str, own_net: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path for path in own_net.rglob("*") if "__pycache__" not in path.parts)
    try:
        code = gradstep.cli.main(["compare", *line.split(" ")])
    except SystemExit as stop:
        code = int(str(stop.code))
    captured = capsys.readouterr()
    assert code == 2 and captured.out == ""
    assert captured.err.startswith("gradstep compare: ") and captured.err.count("\n") == 1
    assert BAD_ARGUMENTS[line] in captured.err
    assert before == sorted(p for p in own_net.rglob("*") if "__pycache__" not in p.parts)


def test_a_network_that_has_changed_is_noticed(
    own_net: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_pictures(monkeypatch)
    monkeypatch.setattr("gradstep.lab.race_pool.Pool.make", _no_runs)
    command = ["compare", "--model", "own_net:Net", "--out", "race"]
    assert gradstep.cli.main(command) == 2
    assert "has gone from race" in capsys.readouterr().err
    (own_net / "own_net.py").write_text(OWN_NET.replace("1024, 10)", "1024, 10, bias=False)"))
    monkeypatch.delitem(sys.modules, "own_net")
    assert gradstep.cli.main(command) == 2
    assert "the model of the race in race has changed since it began" in capsys.readouterr().err


def _no_runs(*args: object) -> None:
    """In place of the processes, which these tests do not need."""


def test_the_help_names_rules_that_there_are_and_every_file(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        gradstep.cli.main(["compare", "--help"])
    text = capsys.readouterr().out
    named = re.search(r"takes them:\s+([\w\s,]+?) and\s+so", text)
    assert named is not None
    names = re.split(r",?\s+", named.group(1))
    assert len(names) > 10 and set(names) <= set(TRAINABLE)
    for word in ("--sweep", "--seeds", "--model", "--workers", "index.html", "results.json"):
        assert word in text


def test_a_second_race_in_the_same_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from gradstep.lab.atomic import held_alone

    with held_alone(tmp_path):
        assert gradstep.cli.main([*RACE, "--out", str(tmp_path)]) == 2
    assert f"another gradstep compare is at work in {tmp_path}" in capsys.readouterr().err
