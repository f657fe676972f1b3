"""The PTX of the passes: what the assembler says, and which instructions there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from gradstep.backends.cuda.code import ptx
from gradstep.backends.llvm.grid_walk import lanes_of
from gradstep.program.formats import format_of
from gradstep.program.kernel_spec import KernelSpec
from grid_cases import FEW, FLAT, FLAT_NAMES, FORMAT_NAMES, FORMATS, WHOLE, WHOLE_NAMES, specs
from ptxas import assembled, assembler, operations
from reference import REFERENCES, Reference

needs_assembler = pytest.mark.skipif(
    assembler() is None, reason="no ptxas: install nvidia-cuda-nvcc-cu12"
)
ARCHITECTURES = ["sm_75", "sm_80", "sm_90", "sm_100"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

#: What of arithmetic on numbers may stand there: rounded to the nearest, or exact.
ROUNDED = re.compile(r"(fma|add|sub|mul|div|rcp|sqrt)\.rn\.(f32(\.f16|x2)?|f64)")
EXACT = re.compile(
    r"(neg|abs|copysign|selp|mov)\.f(16|32|64)|setp\.\w+\.f(16|32|64)"
    r"|cvt\.rn\.(f32\.f64|f16(x2)?\.f32|f(32|64)\.[us]\d+)|cvt\.f(64\.f32|64\.f16|32\.f16)"
    r"|cvt\.rzi\.[us]\d+\.f(32|64)"
    r"|(ld|st)\.global(\.v\d)?\.f(32|64)"  # older LLVM names loads after what they are for
)


def widths(text: str, kind: str) -> list[int]:
    """Of the accesses to the memory of tensors, how many bytes each has."""
    found = []
    for name, _ in operations(text):
        matched = re.fullmatch(rf"{kind}\.global(?:\.v(\d))?\.[busf](\d+)", name)
        if matched:
            found.append(int(matched[1] or 1) * int(matched[2]) // 8)
        assert not re.fullmatch(rf"{kind}(\.v\d)?\.[busf]\d+", name), f"{name} is generic"
    return found


def wanted(spec: KernelSpec, pairs: Any) -> int:
    """How many accesses of 16 bytes the columns of a vector are."""
    lanes = lanes_of(spec)
    return sum(
        lanes * format_of(spec.columns[c].format).item_bytes // 16 for c in {c for _, c in pairs}
    )


def check(spec: KernelSpec, arch: str, folder: Path) -> None:
    """A kernel of single elements: no spill, no other rounding, and as few accesses as can be."""
    text = ptx(spec, arch)
    found = assembled(text, arch, folder)
    assert found["spills"] == found["stack"] == 0 and found["registers"] <= 255
    for name, _ in operations(text):
        if re.search(r"\.f(16|32|64)", name):
            assert ROUNDED.fullmatch(name) or EXACT.fullmatch(name), name
    assert ".ftz" not in text and ".approx" not in text
    assert widths(text, "ld").count(16) == wanted(spec, spec.loads)
    assert widths(text, "st").count(16) == wanted(spec, spec.stores)
    assert max(widths(text, "st")) == 16


@needs_assembler
@pytest.mark.parametrize(("reference", "options"), FEW)
def test_kernels_of_single_elements(
    reference: Reference, options: dict[str, Any], tmp_path: Path
) -> None:
    for dtype, arch in zip(DTYPES, ARCHITECTURES, strict=True):
        (spec,) = specs(reference, options, dtype)
        check(spec, arch, tmp_path)


@needs_assembler
@pytest.mark.deep
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("reference", "options"), FLAT, ids=FLAT_NAMES)
def test_every_rule_with_every_flag(
    reference: Reference, options: dict[str, Any], dtype: torch.dtype, arch: str, tmp_path: Path
) -> None:
    (spec,) = specs(reference, options, dtype)
    check(spec, arch, tmp_path)


@needs_assembler
@pytest.mark.deep
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("dtype", "stored"), FORMATS, ids=FORMAT_NAMES)
def test_every_format(
    dtype: torch.dtype, stored: dict[str, Any], arch: str, tmp_path: Path
) -> None:
    """No spill, and no generic access."""
    for reference in (r for r in REFERENCES if r.name in ("AdamW", "Lion", "Adan")):
        (spec,) = specs(reference, stored, dtype)
        text = ptx(spec, arch)
        found = assembled(text, arch, tmp_path)
        assert found["spills"] == found["stack"] == 0 and found["registers"] <= 255
        for name, _ in operations(text):
            if re.search(r"\.f(16|32|64)", name):
                assert ROUNDED.fullmatch(name) or EXACT.fullmatch(name), name
        assert widths(text, "ld") and widths(text, "st")


@needs_assembler
@pytest.mark.deep
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("reference", "options"), WHOLE, ids=WHOLE_NAMES)
def test_passes_that_sum(
    reference: Reference, options: dict[str, Any], arch: str, tmp_path: Path
) -> None:
    for spec in specs(reference, options, torch.float32):
        text = ptx(spec, arch)
        assert assembled(text, arch, tmp_path)["registers"] <= 255
        for name, _ in operations(text):
            if re.search(r"\.f(16|32|64)", name):
                assert ROUNDED.fullmatch(name) or EXACT.fullmatch(name), name
        assert widths(text, "ld") and widths(text, "st")
