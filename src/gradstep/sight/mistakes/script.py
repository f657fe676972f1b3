"""Run a script as it is, and watch every optimizer that it makes."""

from __future__ import annotations

import gc
import inspect
import io
import multiprocessing
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.machinery import SourceFileLoader
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler

from gradstep.sight.mistakes.by_hand import ByHand
from gradstep.sight.mistakes.calls import follow, leave_out_this_frame
from gradstep.sight.mistakes.diagnosis import Diagnosis
from gradstep.sight.mistakes.elsewhere import Told, collect, leave, together
from gradstep.sight.mistakes.finding import Finding
from gradstep.sight.mistakes.gradients import Gradients
from gradstep.sight.mistakes.place import Line, Place, belongs_to_user, here, line_here
from gradstep.sight.mistakes.scaling import Scaling

#: Searching for models takes about a tenth of a second; a script that makes an optimizer for each
#: parameter is not searched through for each.
_SEARCHES = 20


@dataclass(frozen=True)
class ScriptRun:
    """How a script went.

    Attributes:
        findings: what was found in it.
        exit_code: with which Python would have ended: 0, its own, or 1 after an exception.
        optimizers: how many it made.
        steps: how many steps these made together.
        by_hand: between how many backward passes a weight was seen to be moved without any.
        processes: how many processes it started of which nothing was seen; those that load data
            are not counted.
        seen_processes: in how many others it was looked as well.
    """

    findings: list[Finding]
    exit_code: int
    optimizers: int
    steps: int
    by_hand: int = 0
    processes: int = 0
    seen_processes: int = 0


class _Watch:
    """Follows what a script makes, while it runs.

    Attributes:
        running: the one that follows this process now, or the parent's, in a process just forked.
    """

    running: _Watch | None = None

    def __init__(self) -> None:
        self.diagnosis = Diagnosis("list")
        self.diagnosis.at_first_step = self._find_models
        self.diagnosis.last_zero_grad = self._last_zero_grad
        self._zero_grad: Line | None = None
        self._searches = 0
        self._processes = 0
        self._folder: Path | None = None  # in which these leave what they have found
        self._ends: list[Callable[[], None]] = []

    def begin(self) -> None:
        """Torch has hooks for steps, but none for these."""
        _Watch.running = self
        self.diagnosis.family(Scaling).begin()
        schedulers = {
            kind
            for kind in vars(lr_scheduler).values()
            if inspect.isclass(kind)
            and issubclass(kind, lr_scheduler.LRScheduler)
            and "__init__" in vars(kind)
        }
        self._ends = [
            follow(torch.optim.Optimizer, "__init__", after=self._optimizer_made),
            follow(torch.optim.Optimizer, "zero_grad", before=self._cleared),
            follow(nn.Module, "zero_grad", before=self._cleared),
            follow(torch.amp.GradScaler, "__init__", after=self._scaler_made),
            follow(BaseProcess, "start", before=self._process_starts),
            follow(subprocess.Popen, "__init__", before=self._command_starts),
            *(follow(kind, "__init__", after=self._scheduler_made) for kind in schedulers),
        ]

    def end(self) -> None:
        _Watch.running = None
        for end in self._ends:
            end()

    def take_over(self, parent: _Watch) -> None:
        """Watch what a process has from its parent, in the place of the parent's watch."""
        parent.end()
        parent.diagnosis.close(interrupted=True)
        for one in parent.diagnosis.watched:
            self.diagnosis.add_optimizer(one.optimizer, one.place)

    def outcome(self, exit_code: int) -> ScriptRun:
        """What was seen, once all is over."""
        diagnosis = self.diagnosis
        steps = diagnosis.steps_forgotten + sum(one.steps for one in diagnosis.watched)
        optimizers = diagnosis.forgotten + len(diagnosis.watched)
        by_hand = diagnosis.family(ByHand).moved
        findings = _once_a_line(diagnosis.findings)
        others = self._of_processes()
        if others:
            findings = together([Told("", findings, optimizers, steps), *others])
            optimizers += sum(told.optimizers for told in others)
            steps += sum(told.steps for told in others)
        unseen = max(0, self._processes - len(others))
        return ScriptRun(findings, exit_code, optimizers, steps, by_hand, unseen, len(others))

    def _of_processes(self) -> list[Told]:
        """What the processes have left that the script has started."""
        if self._folder is None:
            return []
        found = collect(self._folder)
        shutil.rmtree(self._folder, ignore_errors=True)
        return found

    def _optimizer_made(self, _: Any, optimizer: torch.optim.Optimizer, *__: Any, **___: Any):  # type: ignore[no-untyped-def]
        if getattr(optimizer, "param_groups", None) and not any(
            optimizer is watched.optimizer for watched in self.diagnosis.watched
        ):
            self.diagnosis.guarded(self.diagnosis.add_optimizer, optimizer, here())

    def _scheduler_made(self, _: Any, scheduler: Any, *__: Any, **___: Any) -> None:
        if hasattr(scheduler, "optimizer"):
            self.diagnosis.guarded(self.diagnosis.add_scheduler, scheduler, here())

    def _scaler_made(self, _: Any, scaler: Any, *__: Any, **___: Any) -> None:
        self.diagnosis.guarded(self.diagnosis.add_scaler, scaler)

    def _process_starts(self, process: Any, *_: Any, **__: Any) -> None:
        target = getattr(process, "_target", None)
        module = getattr(target, "__module__", None) or ""
        if module.startswith("torch.utils.data"):
            return
        self._processes += 1
        # Workers of a pool are ended without a word.
        if callable(target) and not module.startswith(("multiprocessing.", "concurrent.")):
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="gradstep-doctor-"))
            process._target = _Elsewhere(target, str(self._folder))

    def _command_starts(self, _: Any, command: Any = None, *__: Any, **___: Any) -> None:
        """A script that is run by a Python of its own."""
        words = [str(word) for word in command] if isinstance(command, list | tuple) else []
        python = bool(words) and Path(words[0]).name.startswith(("python", "torchrun"))
        self._processes += python and any(
            word.endswith(".py") and belongs_to_user(word) for word in words[1:]
        )

    def _cleared(self, *_: Any, **__: Any) -> None:
        self._zero_grad = line_here()
        gradients = self.diagnosis.family(Gradients)
        gradients.cleared = gradients.tick()

    def _last_zero_grad(self) -> Place | None:
        return None if self._zero_grad is None else self._zero_grad.place

    def _find_models(self) -> None:
        """Find the modules that the optimizers' parameters belong to, for their names."""
        held = {id(h.parameter) for w in self.diagnosis.watched for h in w.held}
        known = {id(p) for model, _ in self.diagnosis.models for p in model.parameters()}
        if held <= known or self._searches >= _SEARCHES:
            return
        self._searches += 1
        modules = [thing for thing in gc.get_objects() if issubclass(type(thing), nn.Module)]
        parts = {id(part) for module in modules for part in module.modules() if part is not module}
        roots = [
            module
            for module in modules
            if id(module) not in parts
            and any(id(p) in held and id(p) not in known for p in module.parameters())
        ]
        several = len(roots) + len(self.diagnosis.models) > 1
        for module in roots:
            self.diagnosis.add_model(module, prefix=f"{type(module).__name__}." if several else "")


class _Elsewhere:
    """What a process does that the script starts, watched there as the script is here."""

    def __init__(self, target: Callable[..., Any], folder: str) -> None:
        self.target, self.folder = target, folder

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        inherited, watch = _Watch.running, _Watch()
        if inherited is not None:  # forked
            watch.take_over(inherited)
        watch.begin()
        failed = True
        try:
            result = self.target(*arguments, **keywords)
            failed = False
            return result
        except BaseException as error:
            leave_out_this_frame(error)
            raise
        finally:
            watch.end()
            watch.diagnosis.close(interrupted=failed)
            self._leave(watch.outcome(int(failed)))

    def _leave(self, outcome: ScriptRun) -> None:
        name = multiprocessing.current_process().name
        told = Told(name, outcome.findings, outcome.optimizers, outcome.steps, outcome.exit_code)
        with suppress(OSError):  # the script has ended before
            leave(Path(self.folder), f"{os.getpid():08d}", told)


def _once_a_line(findings: Sequence[Finding]) -> list[Finding]:
    """One finding for all that are alike and at one line, such as of optimizers made in a loop."""
    by_line: dict[Any, list[Finding]] = {}
    for each in findings:
        by_line.setdefault((each.name, each.place or object()), []).append(each)
    merged = []
    for first, *others in by_line.values():
        more = f" (and {len(others)} more like this at this line)" if others else ""
        merged.append(replace(first, seen=first.seen + more))
    return merged


def run_script(path: str, arguments: Sequence[str] = ()) -> ScriptRun:
    """Run a script as ``python path arguments…`` would, and watch its training.

    ``sys.argv``, ``sys.path`` and ``__main__`` are the script's own while it runs. What it prints,
    and the traceback of an exception, go where they would go without this.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: no script that can be read.
    """
    file = Path(path)
    if file.is_dir() and not (file / "__main__.py").is_file():
        raise IsADirectoryError(f"{path} is a folder; name a script in it")
    if not file.exists():
        raise FileNotFoundError(f"there is no script {path}")
    if file.is_file():
        with file.open("rb"):
            pass  # readable
    watch = _Watch()
    argv, python_path = sys.argv, list(sys.path)
    sys.argv = [path, *arguments]
    # Python puts the script's folder first, in place of what stands there for this command.
    sys.path[0:1] = [str((file if file.is_dir() else file.parent).resolve())]
    watch.begin()
    code, failed = 0, True
    try:
        _run_as_main(path)
        failed = False
    except SystemExit as error:
        code = _code_of(error)
        failed = code != 0
    except KeyboardInterrupt as error:
        _print_as_python_would(error)
        code = 130
    except BaseException as error:
        _print_as_python_would(error)
        code = 1
    finally:
        watch.end()
        watch.diagnosis.close(interrupted=failed)
        for process in multiprocessing.active_children():
            if not process.daemon:  # as Python does when it ends
                process.join()
        sys.argv = argv
        sys.path[:] = python_path
    return watch.outcome(code)


def _run_as_main(path: str) -> None:
    """As Python runs a script: its ``__file__`` is absolute, ``sys.argv[0]`` as it was given."""
    if Path(path).is_dir():
        runpy.run_path(path, run_name="__main__")
        return
    file = os.path.abspath(path)  # noqa: PTH100 (Python follows no links here either)
    module = ModuleType("__main__")
    module.__file__ = file
    module.__loader__ = SourceFileLoader("__main__", file)
    before = sys.modules["__main__"]
    sys.modules["__main__"] = module
    try:
        with io.open_code(file) as stream:
            code = compile(stream.read(), file, "exec")
        exec(code, vars(module))
    finally:
        sys.modules["__main__"] = before


def _code_of(error: SystemExit) -> int:
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    print(error.code, file=sys.stderr)
    return 1


def _print_as_python_would(error: BaseException) -> None:
    """The traceback without the frames of this package and of runpy."""
    known: set[int] = set()
    linked: BaseException | None = error
    while linked is not None and id(linked) not in known:
        known.add(id(linked))
        _leave_out_our_frames(linked)
        linked = linked.__cause__ or linked.__context__
    sys.excepthook(type(error), error, error.__traceback__)


def _leave_out_our_frames(error: BaseException) -> None:
    own = str(Path(__file__).parents[2])
    kept: list[TracebackType] = []
    entry = error.__traceback__
    while entry is not None:
        file = entry.tb_frame.f_code.co_filename
        if not (file.startswith(own) or file == "<frozen runpy>" or file == runpy.__file__):
            kept.append(entry)
        entry = entry.tb_next
    error.__traceback__ = None
    for entry in reversed(kept):
        entry.tb_next = error.__traceback__
        error.__traceback__ = entry
