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


class Pool:
    """Up to ``workers`` processes, each on one thread, for the runs of one race.

    A context: its end, whatever brings it about, Ctrl-C included, is the end of the processes. The
    runs that are done by then are on the disk.
    """

    def __init__(self, folder: RaceFolder, course: Course, workers: int) -> None:
        self.folder = folder
        self.course = course
        self.workers = workers
        self._processes: list[_Process] = []
        self._messages: queue.Queue[tuple[_Process, str]] = queue.Queue()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        for process in self._processes:
            if kind is None:
                _send(process, "end")
            else:
                process.popen.kill()
        for process in self._processes:
            _end(process)

    def make(self, jobs: Sequence[Job], progress: Callable[[int, dict[str, int]], None]) -> None:
        """Make runs.

        ``progress(done, under_way)`` is called with the number of runs done, and with the steps of
        each run that is under way. Raises RunError if a run fails, ProcessLost if a process dies.
        """
        waiting = list(reversed(jobs))
        while len(self._processes) < min(self.workers, len(jobs)):
            self._processes.append(_start(self.folder, self.course, self._messages))
        for process in self._processes:
            _hand_out(process, waiting)
        done = 0
        while done < len(jobs):
            process, line = self._messages.get()
            message = _message(process, line)
            if "steps" in message:
                process.steps = message["steps"]
            else:
                done += 1
                _hand_out(process, waiting)
            under_way = {p.job.entry.name: p.steps for p in self._processes if p.job is not None}
            progress(done, under_way)


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
    _send(process, {"directory": str(folder.directory), "course": course.to_json()})

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
