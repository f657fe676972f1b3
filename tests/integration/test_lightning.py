"""Lightning's Trainer, with automatic and with manual optimization."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from training import ACCUMULATED, DECAY, RATE, STEPS, Class, Runs, Trained, watched

import gradstep

pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),  # it has: a new trainer's folder
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),  # Lightning's own
]

BATCH = 8
EPOCHS = 4
CLIP = 0.5


class Network(lightning.LightningModule):
    """Sorts random points; OneCycleLR changes learning rate and betas at each step."""

    def __init__(self, kind: Class, automatic: bool) -> None:
        super().__init__()
        self.kind = kind
        self.automatic_optimization = automatic
        self.layers = nn.Sequential(
            nn.Linear(16, 32), nn.LayerNorm(32), nn.Tanh(), nn.Linear(32, 8)
        )

    def configure_optimizers(self) -> Any:
        named = list(self.named_parameters())
        optimizer = self.kind(
            [
                {"params": [p for _, p in named if p.ndim > 1], "weight_decay": DECAY},
                {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=RATE,
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4 * RATE, total_steps=STEPS)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        points, labels = batch
        loss = nn.functional.cross_entropy(self.layers(points), labels)
        if not self.automatic_optimization:
            self._update(loss / ACCUMULATED, last=index % ACCUMULATED == ACCUMULATED - 1)
        return loss

    def _update(self, loss: Tensor, last: bool) -> None:
        optimizer = self.optimizers()
        self.manual_backward(loss)
        if last:
            self.clip_gradients(optimizer, CLIP, "norm")
            optimizer.step()
            optimizer.zero_grad()
            self.lr_schedulers().step()


def batches() -> DataLoader:
    random = torch.Generator().manual_seed(2)
    points = torch.randn(STEPS // EPOCHS * ACCUMULATED * BATCH, 16, generator=random)
    labels = points[:, :8].argmax(1)
    return DataLoader(TensorDataset(points, labels), BATCH)


def train(
    kind: Class, way: str, mixed: bool, folder: Path, checkpoint: Path | None = None
) -> Trained:
    automatic = way == "automatic"
    network = Network(kind, automatic)
    # In manual optimization Lightning refuses these, and the module sees to them.
    by_trainer = {"gradient_clip_val": CLIP, "accumulate_grad_batches": ACCUMULATED}
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        precision="bf16-mixed" if mixed else "32-true",
        callbacks=[ModelCheckpoint(folder, "{epoch}", save_top_k=-1, every_n_epochs=EPOCHS // 2)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **(by_trainer if automatic else {}),
    )
    with watched(network) as trained:
        trainer.fit(network, batches(), ckpt_path=checkpoint)
    assert trainer.global_step == STEPS
    return trained


@pytest.fixture(
    scope="module",
    params=[(w, m) for w in ("automatic", "manual") for m in (False, True)],
    ids=lambda p: f"{p[0]}-{'bf16' if p[1] else 'float32'}",
)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    way, mixed = request.param
    return Runs(train, way, mixed, tmp_path_factory.mktemp("run"), f"epoch={EPOCHS // 2 - 1}.ckpt")


def test_agrees_with_torch(runs: Runs) -> None:
    runs.assert_agree()
    runs.assert_clipped(CLIP)
    betas = {o["betas"] for step in runs.ours.steps for o in step.options.values()}
    assert len(betas) > STEPS // 2


def test_resumes_to_the_same_bits(runs: Runs) -> None:
    runs.assert_resumes()


def test_goes_on_from_a_checkpoint_of_torch(runs: Runs) -> None:
    runs.assert_goes_on_from_torch()


class ByName(Network):
    """The example: Muon by its name, which shares the model with AdamW."""

    def configure_optimizers(self) -> Any:
        return gradstep.create("muon", self, lr=0.01, weight_decay=0.01)


def test_an_optimizer_by_its_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = ByName(gradstep.AdamW, True)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=8,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(network, batches())
    points, labels = batches().dataset.tensors
    with torch.no_grad():
        right = (network.layers(points).argmax(1) == labels).float().mean()
    assert float(right) > 0.5
    assert isinstance(trainer.optimizers[0], gradstep.Partition)
