"""`tests/peak_memory.py` sees what a command and its children hold at once."""

from __future__ import annotations

import sys

import pytest

from peak_memory import PROC, peak

#: Holds this many MiB, written, in itself and in a child, until the parent has looked at them.
HOLDS = """
import subprocess, sys, time
size, again = int(sys.argv[1]) * 2**20, sys.argv[2] == "with a child"
held = b"x" * size
if again:
    subprocess.run([sys.executable, "-c", sys.argv[3], sys.argv[1], "alone", ""])
else:
    time.sleep(1)
sys.exit(3)
"""


@pytest.mark.skipif(not (PROC / "self" / "smaps_rollup").exists(), reason="reads Linux's /proc")
def test_children_count_too_and_the_exit_code_is_the_commands() -> None:
    size = 64
    code, held, _ = peak([sys.executable, "-c", HOLDS, str(size), "alone", ""])
    assert code == 3
    _, held_by_both, _ = peak([sys.executable, "-c", HOLDS, str(size), "with a child", HOLDS])
    alone, both = sum(held.values()), sum(held_by_both.values())
    assert size * 2**20 <= alone < both
    assert both - alone >= 0.9 * size * 2**20
