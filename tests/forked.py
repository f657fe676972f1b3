"""Python in a real process of its own, forked from a server that has done the imports.

A process that begins with Python itself imports torch first: two seconds, a hundred times over.
What is about that beginning (flags of Python, what is imported when, the environment that torch
reads as it is loaded) starts a whole Python in place of this.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import io
import os
import pty
import resource
import runpy
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from pathlib import Path

from ranks import FORKS


def run(
    *arguments: str,
    cwd: Path | None = None,
    stdout: str | None = None,
    file_limit: int | None = None,
    timeout: float = 300.0,
) -> subprocess.CompletedProcess[str]:
    """What ``python *arguments`` does and prints, in UTF-8.

    Args:
        arguments: ``-m`` and a module, ``-c`` and code, or a script; then what it is given.
        cwd: the folder to be in.
        stdout: a file or device to print to, if what is printed is not wanted.
        file_limit: bytes past which no file may grow.
        timeout: seconds.

    Raises:
        subprocess.TimeoutExpired: it was not done by then, and was killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, "out"), Path(folder, "err")]
        here = str(cwd or Path.cwd())
        paths = [stdout or str(streams[0]), str(streams[1])]
        what = (arguments, here, dict(os.environ), paths, file_limit)
        process = FORKS.Process(target=_be_python, args=what)
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(arguments, timeout, *map(_text, streams))
        out, err = map(_text, streams)
        return subprocess.CompletedProcess(arguments, process.exitcode, out, err)


def on_terminal(*arguments: str, **environment: str) -> str:
    """What ``python *arguments`` writes to a terminal, colours and all, once it has ended well.

    Args:
        arguments: as for :func:`run`.
        environment: what is to be other than here: the terminal's kind and size.
    """
    ours, theirs = pty.openpty()
    pieces: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # Linux's end of a terminal: the other end is closed
            while piece := os.read(ours, 65536):
                pieces.append(piece)

    reader = threading.Thread(target=read)
    reader.start()
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        done = run(*arguments, stdout=os.ttyname(theirs))
    finally:
        os.environ.clear()
        os.environ.update(before)
        os.close(theirs)
        reader.join()
        os.close(ours)
    assert done.returncode == 0, done.stderr
    return b"".join(pieces).decode()


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _be_python(
    arguments: tuple[str, ...],
    folder: str,
    environment: dict[str, str],
    streams: list[str],
    file_limit: int | None,
) -> None:
    for number, path in enumerate([os.devnull, *streams]):
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(file, number)
        os.close(file)
    sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False))
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(
            io.BufferedWriter(io.FileIO(n, "w", closefd=False)),
            encoding="utf-8",
            line_buffering=n == 2,
        )
        for n in (1, 2)
    )
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    try:
        _do(arguments)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException as error:
        shown = error.__traceback__
        while shown is not None and shown.tb_frame.f_code.co_filename == __file__:
            shown = shown.tb_next
        traceback.print_exception(type(error), error, shown)
        code = 1
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except OSError as error:  # as Python itself says at its end
        print(f"Exception ignored: {error}", file=sys.stderr)
        code = 120
    os._exit(code)


def _do(arguments: tuple[str, ...]) -> None:
    first, *rest = arguments
    if first == "-m":
        sys.path[0] = ""
        sys.argv = ["-m", *rest[1:]]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.path[0] = ""
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        script = Path(first).absolute()  # as Python has it in __file__, and not in sys.argv
        sys.path[0] = str(script.resolve().parent)
        sys.argv = [first, *rest]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        main.__dict__.update(__file__=str(script), __builtins__=builtins)
        exec(compile(script.read_bytes(), str(script), "exec"), main.__dict__)
