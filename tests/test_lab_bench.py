"""The bench measures what it says: real optimizers, interleaved, with honest arithmetic."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from gradstep.lab import bench, bench_report
from gradstep.lab.bench_models import Size, sizes

SMALL = Size("small", "two tensors", [(40, 30), (30,)], 3)


def test_sizes_are_the_ones_named():
    known = sizes()
    assert (len(known["lenet"].shapes), known["lenet"].elements()) == (10, 61706)
    transformer, large = known["transformer"], known["large"]
    assert len(transformer.shapes) == 148 and 5.3e6 < transformer.elements() < 5.5e6
    assert len(large.shapes) == 76 and 57e6 < large.elements() < 59e6


@pytest.mark.parametrize("name", list(bench.CASES))
def test_contenders_make_the_same_steps(name):
    case = bench.CASES[name]
    optimizers = bench.contenders(case, SMALL, torch.float64, "auto")
    modes = {"torch loop", "torch foreach", "torch fused"} if case.torch_fuses else None
    if case.torchs is not None:
        assert set(optimizers) - {"gradstep"} == (modes or {"torch loop", "torch foreach"})
    for optimizer in optimizers.values():
        optimizer.step()
        optimizer.step()
    ours, *others = (o.param_groups[0]["params"] for o in optimizers.values())
    start = SMALL.weights(torch.float64)
    assert all(not torch.equal(a, b) for a, b in zip(ours, start, strict=True))
    for other in others:
        for a, b in zip(ours, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_row_counts_bytes_and_ratios():
    row = bench.measure(bench.CASES["adamw"], SMALL, 3)
    # AdamW reads weight, gradient and two states, and writes weight and two states.
    assert row.bytes_moved == 7 * 4 * SMALL.elements()
    assert row.streaming[1] == 2 * 4 * SMALL.elements()
    best = min(t for name, t in row.seconds.items() if name.startswith("torch "))
    assert row.ratio() == best / row.seconds["gradstep"]
    assert 0 < row.kernel < row.seconds["gradstep"]
    expected = row.bytes_moved / row.seconds["gradstep"] * row.streaming[0] / row.streaming[1]
    assert row.share_of_bandwidth() == pytest.approx(expected)
    assert bench.measure(bench.CASES["lion"], SMALL, 1).ratio() is None


def test_host_work_is_small_and_positive():
    fixed, a_tensor = bench.host_work(rounds=100)
    assert 0 < a_tensor < 20e-6
    assert fixed < 200e-6


def test_report(tmp_path):
    row = bench.Row(
        "sgd",
        "lenet",
        {"gradstep": 2e-5, "torch loop": 9e-5, "torch fused": 5e-5},
        1e-5,
        12,
        (1, 8),
    )
    text = bench_report.table([row]).splitlines()
    assert text[0].split()[:3] == ["rule", "size", "gradstep"]
    assert "20.0 µs" in text[1] and "fused" in text[1] and "2.50" in text[1]
    written = bench_report.write(tmp_path, [row], (1e-5, 1e-6))
    assert [path.name for path in written] == ["bench.json", "bench.png"]
    record = json.loads(written[0].read_text())
    assert record["rows"][0]["ratio_to_best_of_torch"] == 2.5
    assert written[1].stat().st_size > 5000


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gradstep", "bench", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_command(tmp_path):
    done = run("--rules", "sgd,lion", "--sizes", "lenet", "--rounds", "5", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "around the kernel:" in done.stdout
    assert {p.name for p in tmp_path.iterdir()} == {"bench.json", "bench.png"}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--rules", "sdg"), "'sdg' is not known"),
        (("--sizes", "huge"), "'huge' is not known"),
        (("--rounds", "0"), "at least 1"),
        (("--threads", "-1"), "at least 1"),
        (("--dtype", "int8"), "--dtype"),
        (("--engine", "gpu"), "--engine"),
        (("--out", "/dev/null/x"), "--out"),
    ],
)
def test_bad_arguments(arguments, word):
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and word in done.stderr
    assert done.stdout == ""
