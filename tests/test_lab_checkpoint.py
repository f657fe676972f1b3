"""Checkpoints: what is in them, what comes back, what is refused."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from gradstep.lab.checkpoint import (
    checkpoint_path,
    find_checkpoints,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from gradstep.lab.dataset import Dataset
from gradstep.lab.digits import load_digits
from gradstep.lab.errors import CheckpointError
from gradstep.lab.lenet import LeNet
from gradstep.lab.optimizers import CHOICES
from gradstep.lab.settings import Settings
from gradstep.lab.training import Training, begin_training, train_epoch


def settings(names: Iterable[str]) -> Settings:
    names = tuple(names)
    return Settings(
        optimizers=names,
        lrs=tuple(CHOICES[name].lr for name in names),
        epochs=2,
        batch_size=16,
        lr_decay=0.9,
        shift=3,
        seed=0,
        threads=1,
        data=None,
        train_limit=None,
    )


#: With no state, with one, with several, with numbers for all parameters.
FEW = settings(("sgd", "momentum", "adam", "dadapt_adam"))
ALL = settings(CHOICES)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_digits(seed=0).limited(64)


def trained(data: Dataset, course: Settings = FEW) -> Training:
    training = begin_training(course)
    train_epoch(training, data, course, lambda learners: None)
    return training


@pytest.mark.parametrize(
    "course", [pytest.param(FEW, id="few"), pytest.param(ALL, id="all", marks=pytest.mark.deep)]
)
def test_every_optimizer_goes_on_with_the_same_bits(
    course: Settings, data: Dataset, tmp_path: Path
) -> None:
    training = trained(data, course)
    path = checkpoint_path(tmp_path, 1)
    save_checkpoint(path, training)
    train_epoch(training, data, course, lambda learners: None)

    resumed = begin_training(course)
    load_checkpoint(path, resumed)
    assert resumed.epoch == 1
    train_epoch(resumed, data, course, lambda learners: None)
    assert torch.equal(resumed.random.get_state(), training.random.get_state())
    for ours, theirs in zip(resumed.learners, training.learners, strict=True):
        for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
            assert torch.equal(a, b), ours.name
        a_state, b_state = (x.optimizer.state_dict()["state"] for x in (ours, theirs))
        assert a_state.keys() == b_state.keys()
        for index in a_state:
            for key, value in a_state[index].items():
                if isinstance(value, torch.Tensor):
                    assert torch.equal(value, b_state[index][key]), (ours.name, key)
                else:
                    assert value == b_state[index][key], (ours.name, key)


def test_torch_alone_can_read_one(data: Dataset, tmp_path: Path) -> None:
    training = trained(data)
    path = checkpoint_path(tmp_path, 1)
    save_checkpoint(path, training)
    content = torch.load(path, weights_only=True)
    assert content["epoch"] == 1
    assert content["records"] == training.records
    model = LeNet()
    model.load_state_dict(content["models"]["adam"])
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.load_state_dict(content["optimizers"]["adam"])
    assert optimizer.param_groups[0]["lr"] == CHOICES["adam"].lr
    assert len(optimizer.state) == 10


def test_the_newest_comes_first_also_past_9999(tmp_path: Path) -> None:
    for epoch in (2, 10000, 1, 9999):
        checkpoint_path(tmp_path, epoch).touch()
    (tmp_path / "checkpoint-0003.pt.old").touch()
    (tmp_path / "other.pt").touch()
    assert [path.name for path in find_checkpoints(tmp_path)] == [
        "checkpoint-10000.pt",
        "checkpoint-9999.pt",
        "checkpoint-0002.pt",
        "checkpoint-0001.pt",
    ]


def test_what_is_no_checkpoint_of_the_run_is_refused(data: Dataset, tmp_path: Path) -> None:
    path = checkpoint_path(tmp_path, 1)
    save_checkpoint(path, trained(data))
    whole = path.read_bytes()
    for content in (b"", b"nonsense", whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"checkpoint-0001\.pt is damaged: .") as caught:
            read_checkpoint(path)
        assert "\n" not in str(caught.value)
    torch.save({"some": "dict"}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of gradstep train"):
        read_checkpoint(path)


def test_one_of_other_optimizers_or_of_another_network_is_refused(
    data: Dataset, tmp_path: Path
) -> None:
    training = trained(data)
    path = checkpoint_path(tmp_path, 1)
    training.learners = training.learners[:1]
    save_checkpoint(path, training)
    with pytest.raises(CheckpointError, match="is of sgd, the run of sgd, momentum"):
        load_checkpoint(path, begin_training(FEW))
    training.learners[0].model.fc3 = torch.nn.Linear(84, 11)
    save_checkpoint(path, training)
    fresh = begin_training(FEW)
    fresh.learners = fresh.learners[:1]
    with pytest.raises(CheckpointError, match="does not fit"):
        load_checkpoint(path, fresh)
