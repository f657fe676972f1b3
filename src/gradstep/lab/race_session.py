"""A race from where it stands to its end: the runs that are missing, then table, JSON and page."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch

from gradstep.lab.dataset import Dataset
from gradstep.lab.errors import RunError
from gradstep.lab.model import check_model, model_fingerprint, weight_count
from gradstep.lab.progress import write
from gradstep.lab.race import (
    PAGE_FILE,
    RESULTS_FILE,
    Course,
    Entry,
    RaceFolder,
    Result,
)
from gradstep.lab.race_page import page
from gradstep.lab.race_pool import Job, Pool
from gradstep.lab.race_report import (
    Standing,
    arrivals,
    arrivals_table,
    at_the_edge,
    final_standings,
    final_table,
    results_json,
)
from gradstep.lab.race_worker import race_data, race_model, weights_path
from gradstep.lab.repeatable import made_with, repeatable
from gradstep.lab.surface import (
    FORMULAS,
    Surface,
    formula_surface,
    plane_surface,
    why_no_plane,
)
from gradstep.lab.text import CHARACTERS, LENGTH
from gradstep.lab.training import batch_count

#: So many rules are shown on the loss surfaces: more paths hide each other.
PICTURED = 12


def check_course(course: Course) -> tuple[Dataset, torch.nn.Module, dict[str, Any]]:
    """The data and the network of the first seed, and the facts that race.json keeps of them.

    Raises DataError or SettingsError if one cannot be used.
    """
    data = race_data(course, seed=0)
    model = race_model(course, seed=0)
    if course.text is None:
        check_model(course.model, model)
    else:
        check_model(course.model, model, data.train_images[:2], (2, CHARACTERS, LENGTH))
    facts = {
        "data": {"name": data.name, "fingerprint": data.fingerprint()},
        "model": {"fingerprint": model_fingerprint(model), "weights": weight_count(model)},
        "made_with": made_with(processes=1),
    }
    return data, model, facts


def finish_race(
    folder: RaceFolder,
    course: Course,
    wanted: Sequence[Entry],
    workers: int,
    checked: tuple[Dataset, torch.nn.Module, dict[str, Any]],
    quiet: bool,
    same_loss_as: str | None = None,
) -> None:
    """Make the runs that are missing, then print the table and write results.json and the page.

    Raises RunError if a run fails, ProcessLost if a process dies, DiskError if the disk is full.
    """
    data, model, facts = checked
    for note in folder.begin(course, facts):
        print(f"gradstep compare: note: {note}", file=sys.stderr)
    total = course.total_steps(batch_count(data, course.batch_size))
    no_plane = why_no_plane(model)
    done = folder.results(wanted)
    jobs = [
        Job(entry, keep=no_plane is None and _alone(entry, wanted))
        for entry in wanted
        if entry not in done
    ]
    if not quiet:
        write(_introduction(course, wanted, len(done), total, min(workers, len(jobs)), facts))
    with Pool(folder, course, workers) as pool:
        with _progress(quiet, len(jobs), total) as progress:
            pool.make(jobs, progress)
        results = _all(folder, wanted)
        rows = final_standings(results)
        first = rows[:PICTURED]
        if no_plane is None:
            shown = {row.optimizer: Entry(row.optimizer, row.lr, 0) for row in first}
            missing = [e for e in shown.values() if not weights_path(folder, e).exists()]
            # Made once more, to the same bits, now that it is known which ones the page shows.
            with _progress(quiet, len(missing), total) as progress:
                pool.make([Job(entry, keep=True) for entry in missing], progress)
    if not quiet:
        write("Drawing the loss surfaces …")
    surfaces = [formula_surface(formula, [row.optimizer for row in first]) for formula in FORMULAS]
    remarks = []
    if len(first) < len(rows):
        remarks.append(f"The loss surfaces show the first {len(first)} rules of the table.")
    if no_plane is None:
        surfaces.insert(0, _plane(folder, shown, results, data, model))
    else:
        remarks.append(f"No picture of the network's own loss: {no_plane}.")
    if edge := at_the_edge(results):
        remarks.append(
            f"The best learning rate of {', '.join(edge)} lies at the edge of those that were "
            "tried: one beyond may be better."
        )
    if any(row.optimizer == "lbfgs" for row in rows):
        remarks.append("A step of lbfgs works out loss and gradients several times.")
    folder.write(RESULTS_FILE, results_json(course, facts, results, rows))
    content = page(_facts(course, results, facts, data), results, rows, surfaces, remarks)
    folder.write(PAGE_FILE, content)
    if not quiet:
        write()
    for line in final_table(rows):
        write(line)
    if same_loss_as is not None:
        _write_arrivals(results, rows, same_loss_as)
    if not quiet:
        for line in remarks:
            write(line)
        write()
        write(f"In {folder.directory}: {PAGE_FILE} (open it in a browser), {RESULTS_FILE}.")


def _write_arrivals(results: Mapping[Entry, Result], rows: Sequence[Standing], whose: str) -> None:
    write()
    try:
        lines = arrivals_table(whose, *arrivals(results, rows, whose))
    except ValueError as error:
        lines = [f"{error}."]
    for line in lines:
        write(line)


def _alone(entry: Entry, wanted: Sequence[Entry]) -> bool:
    """Whether it is the first seed of a rule with one learning rate: the picture then shows it."""
    rates = {other.lr for other in wanted if other.optimizer == entry.optimizer}
    return entry.seed == 0 and len(rates) == 1


def _all(folder: RaceFolder, wanted: Sequence[Entry]) -> dict[Entry, Result]:
    results = folder.results(wanted)
    missing = [entry.name for entry in wanted if entry not in results]
    if missing:
        raise RunError(f"the result of {missing[0]} has gone from {folder.directory}")
    return results


def _plane(
    folder: RaceFolder,
    shown: Mapping[str, Entry],
    results: Mapping[Entry, Result],
    data: Dataset,
    model: torch.nn.Module,
) -> Surface:
    """The network's own loss, with the way of the run that each rule shows."""
    weights = {}
    for name, entry in shown.items():
        path = weights_path(folder, entry)
        try:
            weights[name] = torch.from_numpy(numpy.load(path, allow_pickle=False))
        except (OSError, ValueError) as error:
            raise RunError(f"cannot read {path}: {error}; remove it, and begin again") from None
    with repeatable(threads=1):
        return plane_surface(
            model,
            data,
            weights,
            {name: results[entry]["steps"] for name, entry in shown.items()},
            {name: entry.lr for name, entry in shown.items()},
        )


def _introduction(
    course: Course,
    wanted: Sequence[Entry],
    done: int,
    steps: int,
    workers: int,
    facts: Mapping[str, Any],
) -> str:
    rules = {entry.optimizer for entry in wanted}
    seeds = {entry.seed for entry in wanted}
    rates = {(entry.optimizer, entry.lr) for entry in wanted}
    text = (
        f"{_network(course)}, {facts['model']['weights']:,} weights, on "
        f"{facts['data']['name']}. {_many(len(rules), 'rule')}, "
        f"{_many(len(rates), 'learning rate')} in all, {_many(len(seeds), 'seed')}: "
        f"{_many(len(wanted), 'run')} of {_many(steps, 'step')}"
    )
    if done:
        text += f", {done} of them done before"
    return text + (f"; {workers} at a time." if workers else ".")


def _network(course: Course) -> str:
    return course.model or ("LeNet" if course.text is None else "a small transformer")


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _facts(
    course: Course, results: Mapping[Entry, Result], facts: Mapping[str, Any], data: Dataset
) -> list[tuple[str, str]]:
    """What stands at the head of the page."""
    first = next(iter(results.values()))
    steps = course.total_steps(first["steps_an_epoch"])
    length = f"{steps:,} steps"
    if course.epochs is not None:
        length = f"{_many(course.epochs, 'epoch')}, {length}"
    rate = "constant" if course.lr_decay == 1 else f"× {course.lr_decay:g} after each epoch"
    if course.cosine:
        rate = "up over the first twentieth of the steps, then along half a cosine to 0"
    made = facts["made_with"]
    kind = "images" if course.text is None else f"stretches of {LENGTH} characters"
    moved = f", moved by up to {course.shift} pixels" if course.text is None else ""
    return [
        ("network", f"{_network(course)}, {facts['model']['weights']:,} weights"),
        (
            "data",
            f"{facts['data']['name']}: {len(data.train_labels):,} {kind} to learn from, "
            f"{len(data.test_labels):,} to be tested on",
        ),
        ("length", length),
        ("batch", f"{course.batch_size} {kind}{moved}"),
        ("learning rate", rate),
        ("seeds", str(len({entry.seed for entry in results}))),
        ("runs", f"{len(results):,}"),
        ("made with", f"gradstep {made['gradstep']}, torch {made['torch']}"),
    ]


class _Quiet:
    """Shows nothing."""

    def __enter__(self) -> _Quiet:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __call__(self, done: int, under_way: dict[str, int]) -> None:
        pass


class _Bar(_Quiet):
    """A bar over all runs, in steps; needs rich and a terminal."""

    def __init__(self, runs: int, steps: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.runs, self.steps = runs, steps
        self.bars = Progress(
            TextColumn("{task.fields[state]}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
            transient=True,
        )
        self.task = self.bars.add_task("", total=runs * steps, state="starting")

    def __enter__(self) -> _Bar:
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def __call__(self, done: int, under_way: dict[str, int]) -> None:
        names = ", ".join(list(under_way)[:2])
        self.bars.update(
            self.task,
            completed=done * self.steps + sum(under_way.values()),
            state=f"run {min(done + 1, self.runs)}/{self.runs}  {names}",
        )


def _progress(quiet: bool, runs: int, steps: int) -> _Quiet:
    """A bar where one can be drawn, nothing elsewhere."""
    terminal = sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    if quiet or not runs or not terminal:
        return _Quiet()
    try:
        import rich  # noqa: F401
    except ImportError:
        return _Quiet()
    return _Bar(runs, steps)


def usable_processors() -> int:
    """How many processor cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def make_folder(directory: Path) -> None:
    """Make the folder of a race. Raises RunError if it cannot be made."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise RunError(f"cannot make the folder {directory}: a file is in its place") from None
    except OSError as error:
        raise RunError(f"cannot make the folder {directory}: {error.strerror}") from None
