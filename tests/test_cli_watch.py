"""``gradstep train --watch`` as a person meets it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import forked
import gradstep.cli
from gradstep.sight.records import read_records

SMALL = ["--train-limit", "200", "--batch-size", "20"]  # ten steps an epoch


def train(*arguments: str | Path) -> int:
    return gradstep.cli.main(["train", *SMALL, *map(str, arguments)])


def weights(folder: Path, epoch: int) -> list[bytes]:
    def tensors(thing: Any) -> list[torch.Tensor]:
        if isinstance(thing, torch.Tensor):
            return [thing]
        if isinstance(thing, dict):
            return [t for value in thing.values() for t in tensors(value)]
        return [t for value in thing for t in tensors(value)] if isinstance(thing, list) else []

    state = torch.load(folder / f"checkpoint-{epoch:04d}.pt", weights_only=False)
    found = [tensor.numpy().tobytes() for tensor in tensors(state)]
    assert len(found) > 10
    return found


def test_a_watched_run_is_the_same_to_the_bit_and_goes_on_in_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, seen, lines = tmp_path / "plain", tmp_path / "seen", tmp_path / "lines" / "run.jsonl"
    assert train("--epochs", "3", "--out", plain) == 0
    watched = ["--watch", "--watch-to", str(lines), "--watch-every", "4"]
    assert train("--epochs", "2", "--out", seen, *watched) == 0
    assert train("--epochs", "3", "--resume", seen, *watched) == 0
    assert weights(plain, 3) == weights(seen, 3)
    records = read_records(lines)
    assert [record.step for record in records] == [1, 4, 8, 12, 16, 20, 24, 28]
    assert records[-1].names[0] == "conv1.weight" and len(records[-1].names) == 10
    out = capsys.readouterr().out
    assert "step 28, gradient norm" in out and "watch.png" in out
    ratio = records[-1]["fc1.weight"]["update_ratio"]
    assert re.search(rf"^fc1\.weight +{ratio:.1e}  ━+ ", out, flags=re.MULTILINE)
    with Image.open(seen / "watch.png") as image:
        assert min(image.size) > 400


@pytest.mark.deep
def test_several_optimizers_have_a_file_and_a_picture_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    names = "sgd,adam,lbfgs"
    to = run / "watch.jsonl"
    assert train("--epochs", "1", "--optimizer", names, "--out", run, "--watch-to", to) == 0
    for name in names.split(","):
        first, last = map(json.loads, (run / f"watch-{name}.jsonl").read_text().splitlines())
        assert (first["step"], last["step"]) == (1, 10)
        assert (run / f"watch-{name}.png").exists()
    assert "sgd: update / weight" in capsys.readouterr().out


def test_quiet_prints_the_table_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--epochs", "1", "--out", tmp_path / "run", "--watch", "--quiet") == 0
    assert "update / weight" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("to", "text"),
    [
        ("run.csv", "argument --watch-to: run.csv: cannot tell what to write there"),
        ("FILE/run.jsonl", "argument --watch-to: cannot write FILE/run.jsonl"),
        ("other.jsonl", "other.jsonl holds something other than a watch's records"),
    ],
)
def test_a_place_that_does_not_fit_gets_one_clear_line(
    to: str,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("text")
    Path("other.jsonl").write_text("name,value\n")
    try:
        code = train("--epochs", "1", "--out", "run", "--watch-to", to)
    except SystemExit as stop:
        code = int(str(stop.code))
    assert code in (1, 2)
    said = capsys.readouterr().err
    assert text in said and said.count("\n") == 1
    assert Path("other.jsonl").read_text() == "name,value\n"
    assert not list(tmp_path.rglob("checkpoint*"))


@pytest.mark.deep
def test_on_a_terminal_there_is_a_table_that_moves(tmp_path: Path) -> None:
    output = forked.on_terminal(
        *("-m", "gradstep", "train", "--epochs", "1", "--batch-size", "8"),
        *("--train-limit", "800", "--out", str(tmp_path / "run"), "--watch"),
        TERM="xterm-256color",
        COLUMNS="120",
        LINES="40",
    )
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)
    before_the_end = text.split("epoch 1/1   train loss")[0]
    steps = {int(step) for step in re.findall(r"step (\d+), gradient norm", before_the_end)}
    assert len(steps) > 1 and all(step == 1 or step % 10 == 0 for step in steps)
    row = r"conv2\.weight +\d\.\de-\d\d +━+ +\d\.\de-\d\d +\d\.\de[-+]\d\d +\d\.\de-\d\d +\d+ %"
    assert re.search(row, before_the_end)
    assert re.search(r"epoch 1/1  adamw .*loss \d\.\d{4}", before_the_end)
