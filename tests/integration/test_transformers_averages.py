"""Hugging Face's Trainer evaluates and saves in one step, with an optimizer that averages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_transformers import model, sentences
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

import gradstep

STEPS = 8
EVERY = 2

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "EMA": lambda named: gradstep.EMA(gradstep.AdamW(named, lr=3e-3), decay=0.5),
    "AveragedWeights": lambda named: gradstep.AveragedWeights(
        gradstep.AdamWScheduleFree(named, lr=3e-3)
    ),
    "AdamWScheduleFree": lambda named: gradstep.AdamWScheduleFree(named, lr=3e-3),
    "partition": lambda named: gradstep.EMA(
        gradstep.partition({"matrices": gradstep.Muon, "rest": gradstep.AdamW}, named),
        decay=0.5,
    ),
}


class Looks(TrainerCallback):
    """Notes down the weights at each evaluation, and behind each save."""

    def __init__(self) -> None:
        self.evaluated: list[list[Tensor]] = []
        self.saved: list[list[Tensor]] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.evaluated.append(copied(more["model"]))

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.saved.append(copied(more["model"]))


def copied(network: torch.nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in network.parameters()]


def train(name: str, folder: Path, evaluates: bool, checkpoint: str | None = None) -> Any:
    torch.manual_seed(0)
    network = model()
    for module in network.modules():  # evaluations draw random numbers too
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    optimizer = OPTIMIZERS[name](network.named_parameters())
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    given = sentences()
    looks = Looks()
    arguments = TrainingArguments(
        str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=EVERY,
        save_steps=EVERY,
        max_grad_norm=0.0,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(
        network,
        arguments,
        train_dataset=given,
        eval_dataset=given[:8],
        optimizers=(optimizer, schedule),
        callbacks=[looks],
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    optimizer.train()
    return copied(network), looks, trainer


def same(name: str, left: list[Tensor], right: list[Tensor]) -> bool:
    """To the bit, but for the class that keeps no copy of the weights it moves."""
    if name == "AdamWScheduleFree":
        return all(
            torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(left, right, strict=True)
        )
    return all(map(torch.equal, left, right))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_evaluating_and_saving_in_one_step(name: str, tmp_path: Path) -> None:
    """Evaluations see the average; the training neither knows of them nor of a restart."""
    plain, _, _ = train(name, tmp_path / "plain", evaluates=False)
    reached, looks, trainer = train(name, tmp_path / "run", evaluates=True)
    assert same(name, reached, plain)
    assert len(looks.evaluated) == len(looks.saved) == STEPS // EVERY
    assert not all(map(torch.equal, looks.evaluated[-1], reached))
    history = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(history) == STEPS // EVERY and history[-1] < history[0]
    checkpoint = str(tmp_path / "run" / f"checkpoint-{STEPS // 2}")
    resumed, again, _ = train(name, tmp_path / "run", evaluates=True, checkpoint=checkpoint)
    assert same(name, resumed, reached)
    assert same(name, again.evaluated[-1], looks.evaluated[-1])
