"""The code that is written for devices of blocks and threads, run on the CPU: the CPU's bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from gradstep.backends import register
from gradstep.backends.cuda.code import TARGET
from grid_backend import GridBackend, interpreted
from grid_cases import (
    FEW,
    FLAT,
    FLAT_NAMES,
    FORMAT_NAMES,
    FORMATS,
    IN_BLOCKS,
    IN_CHUNKS,
    LARGE,
    MATRICES,
    SMALL,
    TILES,
    WHOLE,
    WHOLE_NAMES,
    differing,
    trained,
    whole_shapes,
)
from reference import REFERENCES, Reference

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


@pytest.mark.parametrize("engine", ["grid", "ptx"])
def test_sums_have_the_cpus_bits(engine: str) -> None:
    """Of rows, columns and whole tensors, with what is kept of them between passes."""
    (adafactor,) = (r for r in REFERENCES if r.name == "Adafactor")
    shapes = (*(TILES[1:3] if engine == "grid" else ()), *MATRICES, *SMALL)
    right = trained("fused", adafactor, {}, torch.float32, shapes, 2)
    assert differing(trained(engine, adafactor, {}, torch.float32, shapes, 2), right) == []


@pytest.mark.deep
@pytest.mark.parametrize("engine", ["grid", "ptx"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("reference", "options"), WHOLE, ids=WHOLE_NAMES)
def test_sums_of_every_rule_with_every_flag(
    reference: Reference, options: dict[str, Any], dtype: torch.dtype, engine: str
) -> None:
    shapes = whole_shapes(reference, TILES if engine == "grid" else MATRICES)
    right = trained("fused", reference, options, dtype, shapes)
    assert differing(trained(engine, reference, options, dtype, shapes), right) == []


def check_format(engine: str, name: str, dtype: torch.dtype, options: dict[str, Any]) -> None:
    (reference,) = (r for r in REFERENCES if r.name == name)
    shapes = IN_CHUNKS if engine == "grid" else IN_BLOCKS
    right = trained("fused", reference, options, dtype, shapes)
    assert differing(trained(engine, reference, options, dtype, shapes), right) == []


@pytest.mark.parametrize("engine", ["grid", "ptx"])
@pytest.mark.parametrize("name", ["int8", "int4", "remainder"])
def test_codes_have_the_cpus_bits(name: str, engine: str) -> None:
    """Blocks with a scale, two codes in a byte, and weights of two halves."""
    found = zip(FORMATS, FORMAT_NAMES, strict=True)
    ((dtype, options), *_) = (f for f, spelled in found if spelled.endswith(name))
    check_format(engine, "Lion", dtype, options)


@pytest.mark.deep
@pytest.mark.parametrize("engine", ["grid", "ptx"])
@pytest.mark.parametrize("name", ["AdamW", "Lion", "Adan"])
@pytest.mark.parametrize(("dtype", "stored"), FORMATS, ids=FORMAT_NAMES)
def test_every_format(name: str, dtype: torch.dtype, stored: dict[str, Any], engine: str) -> None:
    check_format(engine, name, dtype, stored)


@pytest.mark.deep
@pytest.mark.parametrize("engine", ["grid", "ptx"])
@pytest.mark.parametrize("way", ["remainder", "kahan", "stochastic", "master"])
def test_weights_of_two_halves_in_sums(way: str, engine: str) -> None:
    for name in ("LAMB", "Adafactor"):
        (reference,) = (r for r in REFERENCES if r.name == name)
        shapes = (*(TILES[1:3] if engine == "grid" else ()), *MATRICES, *SMALL)
        given = (reference, {"low_precision": way}, torch.bfloat16, shapes)
        assert differing(trained(engine, *given), trained("fused", *given)) == []
