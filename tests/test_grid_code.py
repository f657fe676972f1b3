"""The code that is written for devices of blocks and threads, run on the CPU: the CPU's bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from gradstep.backends import register
from grid_backend import GridBackend
from grid_cases import FEW, FLAT, FLAT_NAMES, LARGE, differing, trained
from reference import Reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture
def grid(monkeypatch: pytest.MonkeyPatch) -> Iterator[GridBackend]:
    """The backend ``"grid"``: the code in loops over blocks and threads."""
    from gradstep.backends import dispatch

    monkeypatch.setattr(dispatch, "_engines", dict(dispatch._engines))
    backend = GridBackend()
    register(backend)
    yield backend
    assert backend.passes


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("reference", "options"), FEW)
def test_blocks_and_threads_in_loops_have_the_cpus_bits(
    reference: Reference, options: dict[str, Any], dtype: torch.dtype, grid: GridBackend
) -> None:
    right = trained("fused", reference, options, dtype, LARGE)
    assert differing(trained("grid", reference, options, dtype, LARGE), right) == []


@pytest.mark.deep
@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize(("reference", "options"), FLAT, ids=FLAT_NAMES)
def test_every_rule_with_every_flag(
    reference: Reference, options: dict[str, Any], dtype: torch.dtype, grid: GridBackend
) -> None:
    right = trained("fused", reference, options, dtype, LARGE)
    assert differing(trained("grid", reference, options, dtype, LARGE), right) == []
