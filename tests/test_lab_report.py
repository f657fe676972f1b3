"""What is printed: lines, the table, the warning; and the bar on a real terminal."""

import math
import re
from pathlib import Path
from typing import Any

import torch

import forked
from gradstep.lab.lenet import LeNet
from gradstep.lab.optimizers import make_optimizer
from gradstep.lab.report import diverged, epoch_header, epoch_line, final_table, number, percent
from gradstep.lab.training import Learner


def record(epoch: int, optimizer: str, **changes: Any) -> dict[str, Any]:
    values = {
        "epoch": epoch,
        "optimizer": optimizer,
        "lr": 0.1,
        "train_loss": 0.25,
        "train_accuracy": 0.5,
        "test_loss": 0.3,
        "test_accuracy": 0.875,
        "steps": 100,
        "seconds": 2.0,
        "step_seconds": 0.01,
        "images_per_second": 1600.0,
        "step_share": 0.005,
    }
    return values | changes


def test_one_optimizer_has_all_in_one_line() -> None:
    assert epoch_header(["adam"]) == []
    assert epoch_line([record(3, "adam")], 40) == (
        "epoch  3/40   train loss 0.2500   train accuracy 50.0 %   test accuracy 87.5 %   "
        "1,600 images/s   step 0.5 %"
    )


def test_several_have_columns_under_their_names() -> None:
    names = ["adam", "sgd"]
    lines = [
        *epoch_header(names),
        epoch_line([record(9, "adam"), record(9, "sgd", train_loss=math.nan)], 10),
    ]
    assert lines == [
        "epoch                 adam              sgd",
        "              loss    test     loss    test",
        " 9/10       0.2500  87.5 %      nan  87.5 %",
    ]


def test_the_table_adds_up_the_times_and_takes_the_last_accuracy() -> None:
    records = [record(1, "sgd"), record(1, "adam"), record(2, "sgd"), record(2, "adam")]
    records[2] |= {"test_accuracy": 0.9, "seconds": 6.0, "step_seconds": 0.03}
    lines = final_table(records, {"sgd": 0.1, "adam": 0.002})
    assert [line.split() for line in lines[2:]] == [
        ["sgd", "0.1", "0.2500", "90.00", "%", "8.0", "s", "200", "µs", "0.5", "%"],
        ["adam", "0.002", "0.2500", "87.50", "%", "4.0", "s", "100", "µs", "0.5", "%"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_numbers_of_any_size_stay_short() -> None:
    assert [number(x) for x in (0.12345, 1234.5, 1e30, math.inf, math.nan)] == [
        "0.1235",
        "1234.5000",
        "1e+30",
        "inf",
        "nan",
    ]
    assert percent(0.98611, 2) == "98.61 %"


def test_a_loss_that_is_no_number_is_answered_with_advice() -> None:
    model = LeNet()
    learner = Learner("adam", 50.0, model, make_optimizer("adam", model.parameters()))
    assert diverged(learner, [record(1, "adam"), record(1, "sgd", train_loss=math.nan)]) is None
    warning = diverged(learner, [record(1, "adam", train_loss=math.nan)])
    assert warning is not None
    assert "adam" in warning and "50" in warning and "try --lr 0.002" in warning
    learner.lr = 0.0001
    warning = diverged(learner, [record(1, "adam", train_loss=math.inf)])
    assert warning is not None and "smaller" in warning


def test_on_a_terminal_there_is_a_bar_with_loss_accuracy_speed_and_share(tmp_path: Path) -> None:
    output = forked.on_terminal(
        *("-m", "gradstep", "train", "--optimizer", "sgd,lion"),
        *("--epochs", "2", "--batch-size", "4", "--train-limit", "400"),
        *("--out", str(tmp_path / "run")),
        TERM="xterm-256color",
        COLUMNS="120",
    )
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)
    bar = r"epoch 1/2  sgd  .*━.*loss \d\.\d{4}  \d+\.\d % right  [\d,]+ images/s  step \d+\.\d %"
    assert re.search(bar, text)
    assert re.search(bar.replace("1/2  sgd ", "2/2  lion"), text)
    assert re.search(r"\r2/2 +\d\.\d{4} +\d+\.\d % +\d\.\d{4} +\d+\.\d %", text)


def test_learner_tally_divides_by_what_it_counted() -> None:
    model = LeNet()
    learner = Learner("sgd", 0.1, model, torch.optim.SGD(model.parameters(), lr=0.1))
    tally = learner.tally
    tally.images, tally.own, tally.right, tally.loss_sum = 10, 10, 4, 25.0
    tally.seconds, tally.step_seconds = 2.0, 0.5
    assert (tally.loss, tally.accuracy) == (2.5, 0.4)
    assert (tally.images_per_second, tally.step_share) == (5.0, 0.25)
