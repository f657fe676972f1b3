"""The code that is written for devices of blocks and threads, run on the CPU: the CPU's bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from gradstep.backends import register
from gradstep.backends.cuda.code import TARGET
from grid_backend import GridBackend, interpreted
from grid_cases import FEW, FLAT, FLAT_NAMES, LARGE, SMALL, differing, trained
from reference import Reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
QUICK = [(*FEW[0], dtype) for dtype in DTYPES] + [(*rule, torch.float32) for rule in FEW[1:]]


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The backends ``"grid"``, loops over blocks and threads, and ``"ptx"``."""
    from gradstep.backends import dispatch

    monkeypatch.setattr(dispatch, "_engines", dict(dispatch._engines))
    backends = [GridBackend(), GridBackend("ptx", TARGET, interpreted)]
    for backend in backends:
        register(backend)
    yield
    assert any(backend.passes for backend in backends)


@pytest.mark.parametrize(("reference", "options", "dtype"), QUICK)
def test_blocks_and_threads_in_loops_have_the_cpus_bits(
    reference: Reference, options: dict[str, Any], dtype: torch.dtype
) -> None:
    right = trained("fused", reference, options, dtype, LARGE)
    assert differing(trained("grid", reference, options, dtype, LARGE), right) == []


@pytest.mark.deep
@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize(("reference", "options"), FLAT, ids=FLAT_NAMES)
def test_every_rule_with_every_flag(
    reference: Reference, options: dict[str, Any], dtype: torch.dtype
) -> None:
    right = trained("fused", reference, options, dtype, LARGE)
    assert differing(trained("grid", reference, options, dtype, LARGE), right) == []


@pytest.mark.parametrize(("reference", "options", "dtype"), QUICK)
def test_ptx_executed_by_numpy_has_the_cpus_bits(
    reference: Reference, options: dict[str, Any], dtype: torch.dtype
) -> None:
    right = trained("fused", reference, options, dtype, SMALL)
    assert differing(trained("ptx", reference, options, dtype, SMALL), right) == []


@pytest.mark.deep
@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize(("reference", "options"), FLAT, ids=FLAT_NAMES)
def test_ptx_of_every_rule_with_every_flag(
    reference: Reference, options: dict[str, Any], dtype: torch.dtype
) -> None:
    right = trained("fused", reference, options, dtype, SMALL)
    assert differing(trained("ptx", reference, options, dtype, SMALL), right) == []
