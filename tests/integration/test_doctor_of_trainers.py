"""``gradstep doctor`` over loops of Lightning's and Hugging Face's own: silent, or at the line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LIGHTNING = """
import sys
import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(0)
wrong = sys.argv[1]

class Net(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 3))
        self.head = nn.Linear(3, 3) if wrong == "parameter-in-no-group" else nn.Identity()

    def training_step(self, batch, _):
        out = self.head(self.net(batch[0]))
        if wrong == "softmax-before-cross-entropy":
            out = torch.softmax(out, 1)
        return nn.functional.cross_entropy(out, batch[1])  # softmax-before-cross-entropy

    def validation_step(self, batch, _):
        self.log("val", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        lr, held = 0.0 if wrong == "learning-rate-zero" else 0.01, self.net.parameters()
        return torch.optim.Adam(held, lr=lr)  # learning-rate-zero parameter-in-no-group

x = torch.randn(512, 10)
pairs = TensorDataset(x, x[:, :3].argmax(1))
trainer = lightning.Trainer(
    max_epochs=4, accelerator="cpu", logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False,
)
trainer.fit(Net(), DataLoader(pairs, 32, shuffle=True), DataLoader(pairs, 32))
"""

HUGGING_FACE = """
import sys
import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
torch.manual_seed(0)
wrong = sys.argv[1]
model = BertForSequenceClassification(BertConfig(
    vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=64, max_position_embeddings=16, num_labels=2,
))
words = torch.randint(0, 50, (256, 12))
data = [{"input_ids": w, "labels": int(w[0] > 25)} for w in words]
arguments = TrainingArguments(
    "out", num_train_epochs=6, per_device_train_batch_size=16, report_to=[], use_cpu=True,
    learning_rate=0.0 if wrong == "learning-rate-zero" else 1e-3,
    save_strategy="no", eval_strategy="epoch", disable_tqdm=True,
)
trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data[:64])
trainer.train()  # learning-rate-zero
"""


def diagnosed(script: str, wrong: str, folder: Path) -> list[dict[str, Any]]:
    """What doctor finds in a script that is to make this mistake."""
    (folder / "train.py").write_text(script, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "gradstep",
        "doctor",
        "--json",
        "found.json",
        "train.py",
        wrong,
    ]
    subprocess.run(command, cwd=folder, check=False, timeout=300, capture_output=True)
    found = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    findings: list[dict[str, Any]] = found["findings"]
    return findings


@pytest.mark.parametrize(
    ("script", "wrong"),
    [
        pytest.param(LIGHTNING, "", id="Lightning, nothing"),
        pytest.param(LIGHTNING, "learning-rate-zero", id="Lightning, a rate of 0"),
        pytest.param(LIGHTNING, "parameter-in-no-group", id="Lightning, a head left out"),
        pytest.param(LIGHTNING, "softmax-before-cross-entropy", id="Lightning, a softmax"),
        pytest.param(HUGGING_FACE, "", id="Trainer, nothing"),
        pytest.param(HUGGING_FACE, "learning-rate-zero", id="Trainer, a rate of 0"),
    ],
)
def test_a_mistake_is_found_at_its_line_and_nothing_else(
    script: str, wrong: str, tmp_path: Path
) -> None:
    findings = diagnosed(script, wrong, tmp_path)
    assert [each["name"] for each in findings] == ([wrong] if wrong else [])
    for each in findings:
        line = script.splitlines()[each["line"] - 1]
        assert each["file"].endswith("train.py")
        assert wrong in line.partition("# ")[2].split()
