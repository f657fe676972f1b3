"""How far the code for grids goes on AMD's processors: LLVM makes machine code of it.

Nobody has run it: this says that it is accepted, spills nothing, and how it reads memory.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import llvmlite.binding as llvm
import pytest
import torch

from gradstep.backends.cpu import compiler
from gradstep.backends.llvm.grid_joins import write_joins
from gradstep.backends.llvm.grid_walk import write_grid_kernel
from gradstep.program.targets import target_named
from grid_cases import FORMATS, specs
from reference import REFERENCES

TARGET = target_named("amdgcn")


@pytest.fixture
def machine(request: pytest.FixtureRequest) -> Any:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    try:
        target = llvm.Target.from_triple("amdgcn-amd-amdhsa")
    except RuntimeError:
        pytest.skip("this build of LLVM has no AMDGPU")
    return target.create_target_machine(cpu=request.param, features="", opt=3)


def check(code: str, machine: Any) -> str:
    """The assembly: no access by a generic address, no memory of a thread's own, no spill."""
    found = compiler.assembly(code, machine)
    assert not re.search(r"\s(flat|scratch|buffer)_(load|store)", found)
    assert set(
        re.findall(r"\.(?:private_segment_fixed_size|vgpr_spill_count):\s*(\d+)", found)
    ) == {"0"}
    module = llvm.parse_assembly(code)
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    assert machine.emit_object(module)[:4] == b"\x7fELF"
    return found


@pytest.mark.parametrize("machine", ["gfx942"], indirect=True)
def test_machine_code_is_made_of_the_same_text(machine: Any) -> None:
    rules = {r.name: r for r in REFERENCES}
    (adam,) = specs(rules["AdamW"], {}, torch.float32)
    found = check(write_grid_kernel(replace(adam, target=TARGET)), machine)
    assert len(re.findall(r"global_store_(dwordx4|b128)", found)) == 3
    for spec in specs(rules["LAMB"], {}, torch.float32):
        check(write_grid_kernel(replace(spec, target=TARGET)), machine)


@pytest.mark.deep
@pytest.mark.parametrize("machine", ["gfx90a", "gfx942", "gfx1100"], indirect=True)
def test_every_rule_and_format(machine: Any) -> None:
    for reference in REFERENCES:
        for dtype in (torch.float32, torch.bfloat16):
            for spec in specs(reference, {}, dtype):
                check(write_grid_kernel(replace(spec, target=TARGET)), machine)
    check(write_joins(TARGET), machine)
    lion = next(r for r in REFERENCES if r.name == "Lion")
    for dtype, stored in FORMATS:
        for spec in specs(lion, stored, dtype):
            check(write_grid_kernel(replace(spec, target=TARGET)), machine)
