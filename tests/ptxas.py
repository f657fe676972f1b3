"""NVIDIA's assembler, from the wheel nvidia-cuda-nvcc-cu12 or a newer one, or wherever it is."""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path


@functools.cache
def assembler() -> str | None:
    """Where it is; None where there is none."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        for name in ("cuda_nvcc/bin/ptxas", "cu13/bin/ptxas"):
            if (Path(folder) / name).exists():
                return str(Path(folder) / name)
    return shutil.which("ptxas")


def assembled(text: str, arch: str, folder: Path) -> dict[str, int]:
    """What the assembler says of a kernel: registers, bytes of the stack, and of spills."""
    tool = assembler()
    assert tool is not None
    (folder / "kernel.ptx").write_text(text)
    command = [tool, "-v", "-arch", arch, "kernel.ptx", "-o", "kernel.cubin"]
    made = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    (registers,) = re.findall(r"Used (\d+) registers", made.stderr)
    stack, stores, loads = re.findall(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", made.stderr
    )[-1]
    return {"registers": int(registers), "stack": int(stack), "spills": int(stores) + int(loads)}


def operations(text: str) -> Iterator[tuple[str, str]]:
    """Each instruction of PTX text, and what it is done on."""
    for line in text.splitlines():
        found = re.match(r"\s+(?:@!?%\w+\s+)?([a-z][\w.]*)\s+([^;]*);", line)
        if found and not found[1].startswith("."):
            yield found[1], found[2]
