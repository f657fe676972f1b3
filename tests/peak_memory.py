"""``python tests/peak_memory.py make test``: a command, and the most memory that it took at once.

Adds up the proportional share (PSS) of every process that descends from the command: pages that
several of them have together count once. Reads Linux's ``/proc`` twice a second, from outside: ten
times a second took a fifth of a core from what it measured.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

PROC = Path("/proc")
#: Seconds between two looks.
PAUSE = 0.5


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


def called(process: int) -> str:
    """The beginning of what it was started as."""
    with contextlib.suppress(OSError):
        words = (PROC / str(process) / "cmdline").read_text().replace("\0", " ")
        return words.replace(sys.prefix, "")[:90].strip()
    return "?"


def peak(command: list[str]) -> tuple[int, dict[int, int], dict[int, str]]:
    """Run a command; its exit code, and what each process had when all together had the most.

    Returns:
        the exit code; process -> bytes; process -> what it was started as.
    """
    most: dict[int, int] = {}
    names: dict[int, str] = {}
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            held = {each: share(each) for each in family(process.pid)}
            if sum(held.values()) > sum(most.values()):
                most, names = held, {each: called(each) for each in held}
            time.sleep(PAUSE)
    return process.returncode, most, names


if __name__ == "__main__":
    code, held, names = peak(sys.argv[1:])
    for process, own in sorted(held.items(), key=lambda pair: -pair[1]):
        if own > 2**24:
            print(f"{own / 2**20:6.0f} MiB  {names[process]}")
    print(f"at most {sum(held.values()) / 2**30:.2f} GiB at once")
    sys.exit(code)
