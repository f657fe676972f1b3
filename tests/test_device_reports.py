"""``gradstep doctor --device`` and ``gradstep bench --device``, on a device of paper."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from device_drivers import Emulating
from gradstep.backends import dispatch, register
from gradstep.backends.cuda import Cuda
from gradstep.cli import main
from gradstep.lab import bench_device
from gradstep.lab.bench_cases import CASES
from gradstep.lab.bench_models import Size
from gradstep.lab.device import gpu
from gradstep.lab.device_check import checked
from gradstep.lab.errors import DeviceError

ENGINE = "another device of paper"
CPU = torch.device("cpu")


@pytest.fixture
def driver() -> Iterator[Emulating]:
    made = Emulating()
    register(Cuda(made, ENGINE))
    yield made
    del dispatch._engines[ENGINE]


def test_the_table_says_what_is_equal_and_who_made_the_rest(driver: Emulating) -> None:
    *_, report = checked(["lion", "muon", "sparse_adam"], CPU, ENGINE, ["float32", "complex64"])
    lines = report.lines()
    assert [line.split() for line in lines[:4]] == [
        ["rule", "float32", "complex64"],
        ["lion", "equal", "equal"],
        ["muon", "eager", "-"],
        ["sparse_adam", "-", "-"],
    ]
    assert ": 2 of 6 combinations, " in lines[5] and ", 0 with other bits" in lines[5]
    reasons = [line for line in lines[6:] if line.startswith(f"not by {ENGINE}: ")]
    assert any("(muon)" in line for line in reasons)
    assert any("does not support dense gradients (sparse_adam)" in line for line in reasons)
    assert not report.differs()


def test_the_table_counts_numbers_that_differ(
    driver: Emulating, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that proved its kernel once, and computes otherwise from then on."""
    monkeypatch.setenv("GRADSTEP_CACHE_DIR", str(tmp_path))
    right = driver.run

    def spoilt(function: Any, values: list[int]) -> None:
        right(function, values)
        if len(driver.launches) > 1:  # the first is the self-check
            first_weight = ctypes.c_int64.from_address(values[0]).value
            ctypes.c_float.from_address(first_weight).value = 12345.0

    monkeypatch.setattr(driver, "run", spoilt)
    *_, report = checked(["lion"], CPU, ENGINE, ["float32"])
    assert report.differs()
    (row,) = report.cells.values()
    assert row["float32"].text(ENGINE).startswith("1/")


@pytest.mark.parametrize("name", ["lion", "momentum"])
def test_a_bench_of_a_device(name: str, driver: Emulating) -> None:
    size = Size("few", "three tensors", [(64, 8), (100,), ()], 3)
    row = bench_device.measure(
        CASES[name], size, 3, torch.float32, CPU, ENGINE, 1e9, compiles=False
    )
    assert row.engine == ENGINE and row.seconds["gradstep"] > 0 and not row.left_out
    assert set(row.seconds) == (
        {"gradstep", "torch foreach", "torch fused"} if name == "momentum" else {"gradstep"}
    )
    # Weight, gradient and one state of 613 float32: read three, written two.
    assert row.bound == pytest.approx(613 * 4 * 5 / 1e9, rel=0.01)
    assert "of copying; first step" in row.lines()[0]
    assert bench_device.copy_bandwidth(CPU, 1 << 20, 3) > 0


@pytest.mark.parametrize("command", ["doctor", "bench"])
@pytest.mark.parametrize("name", ["cuda:99", "mps", "nonsense"])
def test_a_device_that_is_not_here(
    command: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--device", name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"gradstep {command}: argument --device: ") and name in line
    with pytest.raises(DeviceError):
        gpu(name)
