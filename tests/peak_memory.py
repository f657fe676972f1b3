"""``python tests/peak_memory.py make test``: a command, and the most memory that it took at once.

Adds up the proportional share (PSS) of every process that descends from the command: pages that
several of them have together count once. Reads Linux's ``/proc`` ten times a second, from outside.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

PROC = Path("/proc")
#: Seconds between two looks.
PAUSE = 0.1


def family(root: int) -> list[int]:
    """A process and all that descend from it, as they are now."""
    children: dict[int, list[int]] = {}
    for folder in PROC.iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):  # it has ended
                # The name, in brackets, may hold anything; the parent is the second field after it.
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(folder.name))
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found


def share(process: int) -> int:
    """The bytes that a process has, a part of those that it has together with others."""
    with contextlib.suppress(OSError):
        for line in (PROC / str(process) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def peak(command: list[str]) -> tuple[int, int]:
    """Run a command; its exit code, and the most bytes that it and its children had at once."""
    with subprocess.Popen(command) as process:
        most = 0
        while process.poll() is None:
            most = max(most, sum(map(share, family(process.pid))))
            time.sleep(PAUSE)
    return process.returncode, most


if __name__ == "__main__":
    code, most = peak(sys.argv[1:])
    print(f"at most {most / 2**30:.2f} GiB at once")
    sys.exit(code)
