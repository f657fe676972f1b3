"""A folder that holds a run: how it begins, goes on after anything, and what it keeps.

    run.json               the settings, written first
    checkpoint-0001.pt …   the state after each epoch
    metrics.jsonl          a line for each epoch and optimizer
    curves.png, filters.png, mistakes.png

The checkpoint is the one moment at which an epoch becomes done: it also holds the lines of
``metrics.jsonl`` up to there, and a run that goes on first makes that file agree with it. So it
does not matter where a run was killed: no line is lost and none is there twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gradstep.lab.atomic import DirectoryInUse, held_alone, is_unfinished, write_atomically
from gradstep.lab.checkpoint import (
    checkpoint_path,
    find_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from gradstep.lab.dataset import Dataset
from gradstep.lab.digits import load_digits
from gradstep.lab.errors import CheckpointError, DiskError, RunError, SettingsError
from gradstep.lab.idx import load_idx
from gradstep.lab.processes import ALONE, Processes
from gradstep.lab.repeatable import made_with
from gradstep.lab.settings import Settings
from gradstep.lab.training import Record, begin_training

FORMAT = 1
SETTINGS_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"


class Run:
    """A run in its folder. Made by :func:`begin_run` or :func:`resume_run`.

    ``facts`` is what run.json holds besides the settings: the data's fingerprint, and the
    versions that the last bits depend on. ``processes`` are those that train together; the folder
    belongs to the leading one.
    """

    def __init__(
        self,
        directory: Path,
        settings: Settings,
        facts: dict[str, Any],
        processes: Processes = ALONE,
    ) -> None:
        self.directory = directory
        self.settings = settings
        self.facts = facts
        self.processes = processes
        self.training = begin_training(settings)

    @property
    def finished(self) -> bool:
        """Whether all epochs that the settings ask for are done."""
        return self.training.epoch >= self.settings.epochs

    def keep_settings(self) -> None:
        """Write run.json. Raises DiskError if the disk does not take it."""
        content = {"format": FORMAT, "settings": self.settings.to_json(), **self.facts}
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        path = self.directory / SETTINGS_FILE
        with self._disk_errors(path):
            write_atomically(path, text.encode())

    def keep_epoch(self, records: list[Record]) -> None:
        """Make the epoch just done last: its checkpoint, then its lines of metrics.

        Raises DiskError if the disk does not take them.
        """
        path = checkpoint_path(self.directory, self.training.epoch)
        with self._disk_errors(path):
            save_checkpoint(path, self.training)
        path = self.directory / METRICS_FILE
        with self._disk_errors(path), path.open("ab") as file:
            file.write(_lines(records))

    def keep_picture(self, name: str, content: bytes) -> None:
        """Write a picture. Raises DiskError if the disk does not take it."""
        path = self.directory / name
        with self._disk_errors(path):
            write_atomically(path, content)

    @contextmanager
    def _disk_errors(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DiskError(f"cannot write {path}: {error.strerror or error}") from error

    def recall(self) -> list[str]:
        """Take the newest checkpoint that is whole; return a note on each that is not.

        Raises DiskError if metrics.jsonl has to be put right and the disk does not take it.
        """
        notes = []
        for path in find_checkpoints(self.directory):
            try:
                load_checkpoint(path, self.training)
                break
            except CheckpointError as error:
                notes.append(f"{error}; going back to the one before it")
                self.training = begin_training(self.settings)
        metrics, expected = self.directory / METRICS_FILE, _lines(self.training.records)
        with self._disk_errors(metrics):
            if not metrics.exists() or metrics.read_bytes() != expected:
                write_atomically(metrics, expected)
        return notes


def load_data(settings: Settings) -> Dataset:
    """The data that the settings name. Raises DataError if they cannot be used."""
    if settings.data is None:
        data = load_digits(settings.seed)
    else:
        data = load_idx(Path(settings.data))
    return data.limited(settings.train_limit)


def make_directory(directory: Path | None) -> Path:
    """Make the folder for a new run: the one given, or else the next free of runs/001, runs/002 …

    Raises RunError if it cannot be made.
    """
    try:
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            return directory
        number = 1
        while True:
            directory = Path("runs") / f"{number:03d}"
            try:
                directory.mkdir(parents=True)
                return directory
            except FileExistsError:
                if not Path("runs").is_dir():
                    raise
                number += 1
    except (FileExistsError, NotADirectoryError):
        raise RunError(f"cannot make the folder {directory}: a file is in its place") from None
    except OSError as error:
        raise RunError(f"cannot make the folder {directory}: {error.strerror}") from None


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold the folder, so that no other ``gradstep train`` writes to it at the same time.

    Raises RunError if one does, or if there is no such folder.
    """
    if not directory.is_dir():
        raise RunError(f"there is no folder {directory}")
    try:
        with held_alone(directory):
            yield
    except DirectoryInUse:
        raise RunError(f"another gradstep train is at work in {directory}") from None


def begin_run(
    directory: Path, settings: Settings, data: Dataset, processes: Processes = ALONE
) -> Run:
    """Begin a run in an empty folder. Raises RunError if it cannot be written or holds
    something already."""
    try:
        names = {path.name for path in directory.iterdir() if not is_unfinished(path)}
        if SETTINGS_FILE in names:
            raise RunError(
                f"{directory} already holds a run: go on with it by --resume {directory}, "
                "or choose another folder for --out"
            )
        if names:
            raise RunError(f"{directory} is not empty: choose a new folder for --out")
        facts = {
            "data": {"name": data.name, "fingerprint": data.fingerprint()},
            "made_with": made_with(processes.count),
        }
        run = Run(directory, settings, facts, processes)
        run.keep_settings()
        return run
    except DiskError as error:
        raise RunError(str(error)) from None
    except OSError as error:
        raise RunError(f"cannot read {directory}: {error.strerror}") from None


def read_settings(directory: Path) -> tuple[Settings, dict[str, Any]]:
    """The settings of the run in the folder, and the other facts of its run.json.

    Raises RunError if there is no run or its run.json cannot be read.
    """
    path = directory / SETTINGS_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise RunError(f"{path} is of another version of gradstep train")
        settings = Settings.from_json(content["settings"])
        facts = {"data": dict(content["data"]), "made_with": dict(content["made_with"])}
        facts["made_with"].setdefault("processes", "1")
        return settings, facts
    except FileNotFoundError:
        raise RunError(f"{directory} holds no run yet: begin one by --out {directory}") from None
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, SettingsError) as error:
        raise RunError(f"{path} is damaged: {error}") from None


def resume_run(
    directory: Path,
    settings: Settings,
    facts: dict[str, Any],
    data: Dataset,
    processes: Processes = ALONE,
) -> tuple[Run, list[str]]:
    """Go on with the run in the folder, at the end of its last epoch; also returns notes.

    Raises RunError if the data are not those that the run began with.
    """
    if data.fingerprint() != facts["data"].get("fingerprint"):
        raise RunError(f"the data in {data.name} are not those that the run began with")
    notes = [
        f"begun with {what} {then!r}, now {now!r}: the last bits may come out otherwise"
        for what, now in made_with(processes.count).items()
        if (then := facts["made_with"].get(what)) != now
    ]
    run = Run(directory, settings, facts, processes)
    for path in directory.iterdir():
        if is_unfinished(path):
            path.unlink(missing_ok=True)
    notes += run.recall()
    return run, notes


def _lines(records: list[Record]) -> bytes:
    """The records as JSON lines. JSON knows no nan and no infinity: null stands for both."""
    plain = [
        {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in record.items()
        }
        for record in records
    ]
    return "".join(json.dumps(record, allow_nan=False) + "\n" for record in plain).encode()
