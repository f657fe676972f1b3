"""The words of ``TrainingArguments(optim=…)``: Trainer's own optimizer beside the one made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_transformers import model, sentences
from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from gradstep import trainers

STEPS = 12


def test_every_name_of_transformers_is_known() -> None:
    assert {name.value for name in OptimizerNames} == {*trainers.hugging_face_names()}


def trained(name: str, folder: Path, ours: bool) -> tuple[dict[str, Any], Any]:
    torch.manual_seed(0)
    network = model()
    arguments = TrainingArguments(
        str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        weight_decay=0.1,
        # With these two it would call the backward of their own package.
        optim="adamw_torch" if name in ("lomo", "adalomo") else name,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
    )
    optimizer = trainers.hugging_face(name, network, arguments) if ours else None
    trainer = Trainer(network, arguments, optimizers=(optimizer, None), train_dataset=sentences())
    trainer.train()
    return {n: p.detach() for n, p in network.named_parameters()}, trainer.state.log_history[-1]


@pytest.mark.parametrize("name", ["adamw_torch", "adafactor", "sgd", "adagrad", "rmsprop"])
def test_the_training_is_that_of_the_trainers_own(name: str, tmp_path: Path) -> None:
    ours, _ = trained(name, tmp_path / "ours", True)
    theirs, _ = trained(name, tmp_path / "theirs", False)
    for n, p in theirs.items():
        torch.testing.assert_close(ours[n], p, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["lion_8bit", "adalomo", "grokadamw", "schedule_free_radam"])
def test_names_for_which_the_trainer_needs_a_package(name: str, tmp_path: Path) -> None:
    _, log = trained(name, tmp_path, True)
    assert log["train_loss"] < 4.0
