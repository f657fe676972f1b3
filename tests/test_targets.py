"""What of a kernel's code hangs on the processor: the table, and code for another processor."""

from __future__ import annotations

import re
from typing import Any

import llvmlite.binding as llvm
import pytest

import gradstep
from gradstep.backends.cpu import compiler
from gradstep.backends.llvm.walk import write_kernel
from gradstep.program.kernel_spec import Places, kernel_spec
from gradstep.program.program import Program
from gradstep.program.targets import PLAIN, target_for
from gradstep.rule.trace import trace


def test_a_target_is_known_by_its_triple() -> None:
    assert target_for("x86_64-unknown-linux-gnu", ["+avx2"]).name == "x86_64"
    assert not target_for("x86_64-unknown-linux-gnu", ["+avx2", "-f16c"]).converts_half
    assert target_for("x86_64-unknown-linux-gnu", ["+avx2", "+f16c"]).converts_half
    assert target_for("aarch64-unknown-linux-gnu", []).converts_half  # all of them do
    assert target_for("riscv64-unknown-linux-gnu", ["+f16c"]) == PLAIN


def test_what_a_target_says_is_part_of_the_name_on_disk() -> None:
    known = {str(PLAIN), *(str(target_for(t, ["+f16c"])) for t in ("x86_64-a", "aarch64-a"))}
    assert len(known) == 3


@pytest.fixture
def aarch64() -> Any:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    try:
        target = llvm.Target.from_triple("aarch64-unknown-linux-gnu")
    except RuntimeError:
        pytest.skip("this build of LLVM has no AArch64")
    return target.create_target_machine(cpu="generic", opt=3, reloc="pic", codemodel="default")


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["sgd", "adam", "lion", "lamb"])
def test_kernels_compile_for_aarch64(name: str, storage: str, aarch64: Any) -> None:
    """In vectors, with sums and products rounded together, and without a call."""
    rule = getattr(gradstep, name)
    program, places = Program(rule, trace(rule, dict(rule.hyperparameters)), ()), Places()
    target = target_for(aarch64.triple, [])
    for each in program.passes:
        spec = kernel_spec(each, program.inputs, storage, places, target)
        found = compiler.assembly(write_kernel(spec), aarch64)
        line = re.search(r"^line:(.*?)^\.Lfunc_end", found, re.M | re.S)
        assert line is not None
        assert re.search(r"\bfml[as]\s+v\d+\.4s|\bfmul\s+v\d+\.4s", line[1])
        assert not re.search(r"^\s+blr?\s", line[1], re.M)
