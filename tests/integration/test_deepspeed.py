"""DeepSpeed's ZeRO around an optimizer of ours, in two processes on CPUs.

No extra has DeepSpeed, whose parts for CPUs a C++ compiler makes at their first use (minutes).
To run this: ``DS_BUILD_OPS=0 pip install --no-build-isolation deepspeed``, run with 0.19.8.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))

import gradstep
from ranks import run_ranks

pytest.importorskip("deepspeed")

STEPS, SAVED = 10, 5
#: The compiler's minutes, in all processes.
PATIENCE = 1200.0
#: The largest difference of a loss from torch's, in eps of it.
BOUND = 8

MAKERS: dict[str, Any] = {
    "torch": partial(torch.optim.AdamW, lr=1e-3),
    "AdamW": partial(gradstep.AdamW, lr=1e-3),
    "Lion": partial(gradstep.Lion, lr=1e-4),
    "int8": partial(gradstep.AdamW, lr=1e-3, state_dtype="int8"),
}


def engine_of(make: Any, stage: int) -> Any:
    import deepspeed

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    settings = {
        "train_micro_batch_size_per_gpu": 32,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
    }
    optimizer = make(model.parameters())
    return deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]


def train(engine: Any, rank: int, steps: range) -> list[float]:
    losses = []
    for step in steps:
        random = torch.Generator().manual_seed(100 * step + rank)
        points = torch.randn(32, 64, generator=random)
        labels = torch.randint(10, (32,), generator=random)
        loss = nn.functional.cross_entropy(engine(points), labels)
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


def scenario(rank: int, stage: int, folder: str) -> dict[str, tuple[list[float], list[float]]]:
    """Each optimizer's losses without a pause, and with a checkpoint in the middle."""
    os.environ["LOCAL_RANK"] = str(rank)  # as torchrun does
    found = {}
    for name, make in MAKERS.items():
        whole = train(engine_of(make, stage), rank, range(STEPS))
        engine = engine_of(make, stage)
        first = train(engine, rank, range(SAVED))
        engine.save_checkpoint(folder, tag=name)
        engine = engine_of(make, stage)
        engine.load_checkpoint(folder, tag=name)
        found[name] = (whole, first + train(engine, rank, range(SAVED, STEPS)))
    return found


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_stage_of_zero_trains_as_with_torch_and_goes_on(
    stage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    answers = run_ranks(scenario, 2, stage, str(tmp_path), timeout=PATIENCE, patience=PATIENCE)
    for found in answers:
        for name, (whole, resumed) in found.items():
            assert whole == resumed, name
        ours, theirs = (torch.tensor(found[name][0]) for name in ("AdamW", "torch"))
        assert (ours - theirs).abs().max() <= BOUND * torch.finfo(torch.float32).eps * theirs.max()
        assert found["Lion"][0] != found["AdamW"][0] != found["int8"][0]
