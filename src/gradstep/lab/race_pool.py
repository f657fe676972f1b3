"""The processes that make the runs of a race, and who hands them out."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from gradstep.lab.errors import ProcessLost, RunError
from gradstep.lab.race import Course, Entry, RaceFolder

#: Seconds that a process has to end by itself.
_PATIENCE = 5.0


@dataclass(frozen=True)
class Job:
    """A run to make; with ``keep`` the weights on its way are kept, too."""

    entry: Entry
    keep: bool = False


@dataclass
class _Process:
    popen: subprocess.Popen[str]
    job: Job | None = None
    steps: int = 0


def make_runs(
    folder: RaceFolder,
    course: Course,
    jobs: Sequence[Job],
    workers: int,
    progress: Callable[[int, dict[str, int]], None],
) -> None:
    """Make all runs in up to ``workers`` processes, each on one thread.

    ``progress(done, under_way)`` is called with the number of runs done, and with the steps of
    each run that is under way. Whatever ends the call, Ctrl-C included, ends the processes; the
    runs that are done are on the disk.

    Raises RunError if a run fails, ProcessLost if a process dies.
    """
    waiting = list(reversed(jobs))
    messages: queue.Queue[tuple[_Process, str]] = queue.Queue()
    processes: list[_Process] = []
    done = 0
    try:
        for _ in range(min(workers, len(jobs))):
            process = _start(folder, course, messages)
            processes.append(process)
            _hand_out(process, waiting)
        while done < len(jobs):
            process, line = messages.get()
            message = _message(process, line)
            if "steps" in message:
                process.steps = message["steps"]
            else:
                done += 1
                _hand_out(process, waiting)
            progress(done, {p.job.entry.name: p.steps for p in processes if p.job is not None})
        for process in processes:
            _send(process, "end")
    except BaseException:
        for process in processes:
            process.popen.kill()
        raise
    finally:
        for process in processes:
            _end(process)


def _start(
    folder: RaceFolder, course: Course, messages: queue.Queue[tuple[_Process, str]]
) -> _Process:
    process = _Process(
        subprocess.Popen(
            [sys.executable, "-m", "gradstep.lab.race_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C in the terminal reaches the race alone
        )
    )
    _send(process, {"directory": str(folder.directory), "course": asdict(course)})

    def listen() -> None:
        assert process.popen.stdout is not None
        for line in process.popen.stdout:
            messages.put((process, line))
        messages.put((process, ""))

    threading.Thread(target=listen, daemon=True).start()
    return process


def _hand_out(process: _Process, waiting: list[Job]) -> None:
    process.job, process.steps = (waiting.pop() if waiting else None), 0
    if process.job is not None:
        _send(process, asdict(process.job))


def _message(process: _Process, line: str) -> dict[str, Any]:
    if not line:
        code = process.popen.wait()
        raise ProcessLost(f"a process of the race has ended with exit code {code}")
    message = json.loads(line)
    if "failed" in message:
        raise RunError(message["failed"])
    return message


def _send(process: _Process, content: Any) -> None:
    assert process.popen.stdin is not None
    try:
        process.popen.stdin.write(json.dumps(content) + "\n")
        process.popen.stdin.flush()
    except OSError:  # it is gone: its output ends, which is told
        pass


def _end(process: _Process) -> None:
    try:
        process.popen.wait(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        process.popen.kill()
        process.popen.wait()
    for pipe in (process.popen.stdin, process.popen.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
