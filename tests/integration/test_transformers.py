"""Hugging Face's Trainer, with a small Llama that is built here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from training import ACCUMULATED, DECAY, RATE, STEPS, Class, Runs, Trained, watched
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
    get_cosine_schedule_with_warmup,
)

import gradstep

VOCABULARY = 48
WARM_UP = 4
CLIP = 0.5


def model() -> LlamaForCausalLM:
    """Tied weights, and dropout: its random numbers must be resumed as well."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=16,
            tie_word_embeddings=True,
            attention_dropout=0.1,
        )
    )


def sentences() -> list[dict[str, torch.Tensor]]:
    """Each counts upwards, in a stride of its own."""
    counted = [(i + (1 + i % 5) * torch.arange(12)) % VOCABULARY for i in range(256)]
    return [{"input_ids": s, "labels": s} for s in counted]


def parameter_groups(network: torch.nn.Module) -> list[dict[str, Any]]:
    named = list(network.named_parameters())
    return [
        {"params": [(n, p) for n, p in named if p.ndim > 1], "weight_decay": DECAY},
        {"params": [(n, p) for n, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]


def trainer_with(
    kind: Class, way: str, network: LlamaForCausalLM, common: dict[str, Any]
) -> Trainer:
    """A Trainer that is given the optimizer in one of its ways."""

    class WithMethod(Trainer):
        @staticmethod
        def get_optimizer_cls_and_kwargs(
            args: TrainingArguments, model: Any = None
        ) -> tuple[Any, Any]:
            theirs, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
            assert theirs is torch.optim.AdamW
            return kind, options

    if way == "optimizers":
        optimizer = kind(parameter_groups(network), lr=RATE)
        schedule = get_cosine_schedule_with_warmup(optimizer, WARM_UP, STEPS)
        return Trainer(**common, optimizers=(optimizer, schedule))
    if way == "class":
        return Trainer(**common, optimizer_cls_and_kwargs=(kind, {"lr": RATE}))
    return WithMethod(**common)


def train(
    kind: Class, way: str, mixed: bool, folder: Path, checkpoint: Path | None = None
) -> Trained:
    # Transformers 4 leaves its bf16=True there, for every later run of the process.
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    network = model()
    arguments = TrainingArguments(
        str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=ACCUMULATED,
        learning_rate=RATE,
        weight_decay=DECAY,
        max_grad_norm=CLIP,
        lr_scheduler_type="cosine",
        warmup_steps=WARM_UP,
        save_steps=STEPS // 2,
        bf16=mixed,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    common = {"model": network, "args": arguments, "train_dataset": sentences()}
    trainer = trainer_with(kind, way, network, common)
    with watched(network) as trained:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    assert trainer.state.global_step == STEPS
    return trained


@pytest.fixture(
    scope="module",
    params=[(w, m) for w in ("optimizers", "class", "method") for m in (False, True)],
    ids=lambda p: f"{p[0]}-{'bf16' if p[1] else 'float32'}",
)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    way, mixed = request.param
    return Runs(train, way, mixed, tmp_path_factory.mktemp("run"), f"checkpoint-{STEPS // 2}")


def test_agrees_with_torch(runs: Runs) -> None:
    runs.assert_agree()
    runs.assert_clipped(CLIP)


def test_resumes_to_the_same_bits(runs: Runs) -> None:
    runs.assert_resumes()


def test_goes_on_from_a_checkpoint_of_torch(runs: Runs) -> None:
    runs.assert_goes_on_from_torch()


def test_named_optimizer_of_the_arguments_is_replaced(tmp_path: Path) -> None:
    """`fused=True`, which Trainer hands to torch's class by default, is understood."""
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, optim="adamw_torch_fused")
    network = model()
    trainer = trainer_with(gradstep.AdamW, "method", network, {"model": network, "args": arguments})
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is gradstep.AdamW
    assert optimizer.defaults["fused"] is True
