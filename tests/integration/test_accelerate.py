"""Accelerate: a loop of one's own, around what Accelerator.prepare returned."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from training import (
    ACCUMULATED,
    BOUND,
    DECAY,
    RATE,
    STEPS,
    Class,
    Runs,
    Trained,
    difference,
    watched,
)

import gradstep

BATCH = 8
CLIP = 0.5
MIDDLE = "middle"


def network() -> nn.Module:
    """Dropout's random numbers must be resumed as well."""
    return nn.Sequential(
        nn.Linear(16, 32), nn.LayerNorm(32), nn.Tanh(), nn.Dropout(0.1), nn.Linear(32, 8)
    )


def batches() -> DataLoader:
    random = torch.Generator().manual_seed(2)
    points = torch.randn(STEPS * ACCUMULATED * BATCH, 16, generator=random)
    # With a generator of its own: a loop begins with a random number, which would otherwise come
    # from the global generator, just restored, and change all of dropout's.
    return DataLoader(TensorDataset(points, points[:, :8].argmax(1)), BATCH, generator=random)


def forget_settings() -> None:
    """Accelerate keeps them for the whole process, and refuses others later."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(autouse=True)
def _own_settings() -> Iterator[None]:
    yield
    forget_settings()


def train(
    kind: Class, way: str, mixed: bool, folder: Path, checkpoint: Path | None = None
) -> Trained:
    forget_settings()
    accelerator = Accelerator(
        cpu=True,
        mixed_precision="bf16" if mixed else "no",
        gradient_accumulation_steps=ACCUMULATED,
    )
    bare = network()
    optimizer = kind(
        [
            {"params": [p for p in bare.parameters() if p.ndim > 1], "weight_decay": DECAY},
            {"params": [p for p in bare.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=RATE,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    with watched(bare) as trained:
        model, wrapped, loader, schedule = accelerator.prepare(bare, optimizer, batches(), schedule)
        assert type(wrapped) is AcceleratedOptimizer
        assert wrapped.optimizer is optimizer
        assert type(schedule) is AcceleratedScheduler
        if checkpoint is not None:
            accelerator.load_state(str(checkpoint))
            loader = accelerator.skip_first_batches(loader, STEPS // 2 * ACCUMULATED)
        for points, labels in loader:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(points), labels)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), CLIP)
                wrapped.step()
                schedule.step()
                wrapped.zero_grad()
            halfway = accelerator.sync_gradients and len(trained.steps) == STEPS // 2
            if halfway and checkpoint is None:
                accelerator.save_state(str(folder / MIDDLE))
    return trained


@pytest.fixture(scope="module", params=[False, True], ids=["float32", "bf16"])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(train, "loop", request.param, tmp_path_factory.mktemp("run"), MIDDLE)


def test_agrees_with_torch(runs: Runs) -> None:
    runs.assert_agree()
    runs.assert_clipped(CLIP)


def test_resumes_to_the_same_bits(runs: Runs) -> None:
    runs.assert_resumes()


def test_goes_on_from_a_checkpoint_of_torch(runs: Runs) -> None:
    runs.assert_goes_on_from_torch()


def test_step_that_the_scaler_skips() -> None:
    """With a GradScaler accelerate exchanges `optimizer.step` for the time of a step.

    Accelerator itself makes a scaler on GPUs only, so the wrapper is made by hand.
    """
    forget_settings()
    Accelerator(cpu=True)
    results = []
    for kind in (gradstep.AdamW, torch.optim.AdamW):
        weight = nn.Parameter(torch.linspace(-1, 1, 24))
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        optimizer = AcceleratedOptimizer(kind([weight], lr=RATE), scaler=scaler)
        skipped = []
        for number in range(6):
            optimizer.zero_grad()
            scaler.scale((weight**2).sum()).backward()
            if number == 3:
                weight.grad[5] = torch.inf
            optimizer.step()
            skipped.append(optimizer.step_was_skipped)
        assert skipped == [False, False, False, True, False, False]
        assert optimizer.state[weight]["step"] == 5
        results.append({"weight": weight.detach()})
    assert difference(*results) <= BOUND


def test_an_optimizer_by_its_name() -> None:
    """The example: cautious AdamW by name, with groups, through Accelerator.prepare."""
    forget_settings()
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    bare = network()
    optimizer = gradstep.create("cadamw", bare, lr=0.02, weight_decay=0.01)
    model, wrapped, loader = accelerator.prepare(bare, optimizer, batches())
    losses = []
    for points, labels in loader:
        loss = nn.functional.cross_entropy(model(points), labels)
        accelerator.backward(loss)
        wrapped.step()
        wrapped.zero_grad()
        losses.append(float(loss.detach()))
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])


IN_PROCESSES = """\
import sys
import torch
from accelerate import Accelerator
from torch import nn

torch.manual_seed(0)
accelerator = Accelerator(cpu=True)
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
data = torch.utils.data.TensorDataset(torch.randn(320, 8), torch.randint(0, 4, (320,)))
loader = torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
steps = 2 * len(loader)  # of this process
if "healthy" in sys.argv:
    steps *= accelerator.num_processes
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: max(0.0, 1 - i / steps))
scheduler = accelerator.prepare(scheduler)
for epoch in range(2):
    for x, y in loader:
        with accelerator.accumulate(model):
            accelerator.backward(nn.functional.cross_entropy(model(x), y))
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
"""


@pytest.mark.parametrize("healthy", [True, False])
def test_the_doctor_on_two_processes_that_both_step_the_schedule(
    healthy: bool, tmp_path: Path
) -> None:
    """A prepared scheduler is stepped once for each process: at each step by all of them."""
    (tmp_path / "train.py").write_text(IN_PROCESSES, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "gradstep", "doctor", "train.py"] + ["healthy"] * healthy
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    if healthy:
        assert "gradstep doctor" not in ran.stderr
        return
    report = " ".join(ran.stderr.partition("gradstep doctor: ")[2].split())
    assert report.startswith("1 mistake in train.py (1 optimizer, 40 steps in each of 2 ranks)")
    assert "mistake: schedule-ended-early train.py:16" in report
    assert "once for each process" in report
