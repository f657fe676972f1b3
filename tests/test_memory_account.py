"""What optimizers take of memory: predicted, measured, and seen from outside the process."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

import gradstep
from gradstep import rules
from gradstep.cli import main
from gradstep.cli.train_settings import LOW_PRECISIONS, STATE_DTYPES
from gradstep.program.formats import formats
from gradstep.program.weight_formats import WEIGHT_FORMATS
from gradstep.sight.memory import SETTINGS, bytes_a_weight, spoken_bytes


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(96, 64), nn.LayerNorm(64), nn.Linear(64, 3)).to(dtype)


def step(net: nn.Module, optimizer: Any) -> None:
    dtype = next(net.parameters()).dtype
    net(torch.randn(4, 96).to(dtype)).float().square().mean().backward()
    optimizer.step(lambda: 1.0)


STORAGE: list[dict[str, Any]] = [
    {},
    {"state_dtype": "bfloat16"},
    {"state_dtype": "int8"},
    {"state_dtype": "int4"},
    {"low_precision": "remainder"},
    {"low_precision": "kahan", "state_dtype": "int8"},
    {"low_precision": "master"},
    {"low_precision": "stochastic"},
]


OTHERS = [gradstep.SGD, gradstep.Adafactor, gradstep.Prodigy, gradstep.LAMB]


@pytest.mark.parametrize("storage", STORAGE, ids=str)
@pytest.mark.parametrize(
    "make", [gradstep.AdamW, *(pytest.param(make, marks=pytest.mark.deep) for make in OTHERS)]
)
def test_what_is_predicted_is_there_after_a_step(make: Any, storage: dict[str, Any]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        net = model(dtype)
        optimizer = make(net.parameters(), **storage)
        before = gradstep.memory(optimizer)
        assert before.bytes("states") == before.bytes("gradients") == 0
        step(net, optimizer)
        after = gradstep.memory(optimizer)
        assert before.predicted() == after.predicted() == after.bytes()
        held = {id(t): t for e in optimizer.state.values() for t in e.values()}
        assert after.bytes("states") == sum(t.nbytes for t in held.values())
        assert after.bytes("weights") == after.bytes("gradients")
        assert after.weights == sum(p.numel() for p in net.parameters())


def test_of_partitions_wrappers_and_optimizers_of_torch() -> None:
    net = model()
    parts = {"matrices": gradstep.sgd(momentum=0.9), "rest": gradstep.adam()}
    made = [
        gradstep.partition(parts, net),
        gradstep.EMA(gradstep.AdamW(net.parameters())),
        gradstep.EMA(gradstep.partition(parts, net)),
    ]
    for optimizer in made:
        step(net, optimizer)
        found = gradstep.memory(optimizer)
        assert found.predicted() == found.bytes()
    theirs = torch.optim.AdamW(net.parameters())
    step(net, theirs)
    found = gradstep.memory(theirs)
    assert [row.predicted for row in found.rows if row.kind == "states"] == [None] * 3
    assert "exp_avg" in str(found) and "?" in str(found)
    assert found.bytes("states") == sum(t.nbytes for e in theirs.state.values() for t in e.values())
    with pytest.raises(TypeError, match=r"takes an optimizer; got a Sequential. Call it as"):
        gradstep.memory(net)  # type: ignore[arg-type]


def test_bytes_are_spoken_as_people_do() -> None:
    said = {0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 5 << 20: "5 MiB", 3 << 30: "3 GiB"}
    assert {count: spoken_bytes(count) for count in said} == said


def test_the_command_has_each_rule(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "--memory"]) == 0
    said = capsys.readouterr().out
    for name in rules.load():
        assert f"\n{name} " in said
    row = next(line for line in said.splitlines() if line.startswith("adam "))
    assert row.split()[1:] == ["12.00", "8.00", "6.06", "5.06", "6.00", "12.00", "6.06"]
    assert len(SETTINGS) == 7
    adam = rules.load()["adam"]
    assert bytes_a_weight(adam, "+ remainder, int8") <= 7


def test_train_knows_every_format() -> None:
    assert formats() == STATE_DTYPES
    assert ("nearest", *WEIGHT_FORMATS) == LOW_PRECISIONS


_SEEN_FROM_OUTSIDE = """
import torch, gradstep, gc

def resident():
    gc.collect()
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Rss:"))

count = 24
weights = [torch.nn.Parameter(torch.ones(1024, 1024, dtype=torch.bfloat16)) for _ in range(count)]
small = torch.nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
small.grad = torch.ones_like(small)
options = dict(lr=1e-3, low_precision="remainder", state_dtype="int8")
gradstep.AdamW([small], **options).step()  # what compiling takes is no state
for w in weights:
    w.grad = torch.full_like(w, 0.01)
before = resident()
optimizer = gradstep.AdamW(weights, **options)
for _ in range(3):
    optimizer.step()
print((resident() - before) / (count * 1024 * 1024))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_resident_memory_of_bfloat16_weights_with_remainder_and_int8_states() -> None:
    """At most 7 bytes a weight beyond the gradient: 2 of the weight itself, and 5 here."""
    done = subprocess.run(
        [sys.executable, "-c", _SEEN_FROM_OUTSIDE],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert 3.9 < float(done.stdout) <= 5.0
