"""A run from where it stands to its end: epoch after epoch, then the table and the pictures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from time import perf_counter

from gradstep.lab import plots, report
from gradstep.lab.dataset import Dataset
from gradstep.lab.progress import Progress, choose_progress, write
from gradstep.lab.run import Run
from gradstep.lab.training import batch_count, initial_model, predict, train_epoch, warm_up
from gradstep.lab.watching import Watching, WatchView, said
from gradstep.lab.watching import draw as draw_watches
from gradstep.sight.language import say
from gradstep.sight.messages import MESSAGES


def finish(run: Run, data: Dataset, quiet: bool, watching: Watching | None = None) -> None:
    """Train until all epochs are done, keeping each, then draw the pictures and print the table.

    ``quiet`` prints the table alone. Raises DiskError if the disk does not take a file, and
    SettingsError if records of the watch cannot go where they should.
    """
    seconds = 0.0
    seen: Sequence[str] = ()
    watch_pictures: list[str] = []
    if not run.finished:
        if not quiet:
            write(introduction(run, data))
            for line in report.epoch_header(run.settings.optimizers):
                write(line)
        start = perf_counter()
        if watching is None:
            train_to_the_end(run, data, choose_progress(quiet), quiet)
        else:
            with watching.of(run, data) as watches:
                progress = choose_progress(quiet, lambda: WatchView(watches))
                train_to_the_end(run, data, progress, quiet)
            seen, watch_pictures = said(watches), draw_watches(run, watches)
        seconds = perf_counter() - start

    pictures = draw(run, data) + watch_pictures
    lrs = dict(zip(run.settings.optimizers, run.settings.lrs, strict=True))
    if not quiet:
        write()
    for line in report.final_table(run.training.records, lrs):
        write(line)
    if not quiet:
        write()
        for line in seen:
            write(line)
        if seen:
            write()
        took = say("trained", seconds=seconds) if seconds else ""
        names = say("between pictures").join(pictures)
        write(took + say("left", folder=run.directory, pictures=names))


def train_to_the_end(run: Run, data: Dataset, progress: Progress, quiet: bool) -> None:
    """Train epoch after epoch, keep each on the disk and print its line.

    Of several processes only the leading one keeps and prints.
    """
    settings, training, processes = run.settings, run.training, run.processes
    batches = batch_count(data, settings.batch_size)
    warned: set[str] = set()
    warm_up(settings)
    for learner in training.learners:
        learner.network = processes.joined(learner.model)
    while not run.finished:
        progress.begin_epoch(training.epoch + 1, settings.epochs, batches, settings.optimizers)
        try:
            records = train_epoch(training, data, settings, progress.after_batch, processes)
        finally:
            progress.end_epoch()
        if not processes.leads:
            continue
        run.keep_epoch(records)
        if not quiet:
            write(report.epoch_line(records, settings.epochs))
        for learner in training.learners:
            if learner.name not in warned and (warning := report.diverged(learner, records)):
                warned.add(learner.name)
                print(f"gradstep train: {warning}", file=sys.stderr)


def introduction(run: Run, data: Dataset) -> str:
    """What is trained on what, in a line."""
    weights = sum(weight.numel() for weight in run.training.learners[0].model.parameters())
    return say(
        "train introduction",
        weights=weights,
        data=say(data.name) if data.name in MESSAGES else data.name,
        learn=len(data.train_labels),
        test=len(data.test_labels),
    )


def draw(run: Run, data: Dataset) -> list[str]:
    """Write the pictures to the folder of the run; return their names."""
    learners = run.training.learners
    before = initial_model(run.settings.seed).conv1.weight.detach()
    after = {learner.name: learner.model.conv1.weight.detach().float() for learner in learners}
    scores = {learner.name: predict(learner.model, data.test_images) for learner in learners}
    pictures = {
        "curves.png": plots.draw_curves(run.training.records),
        "filters.png": plots.draw_filters(before, after),
        "mistakes.png": plots.draw_mistakes(data.test_images, data.test_labels, scores),
    }
    for name, figure in pictures.items():
        run.keep_picture(name, plots.png(figure))
    return list(pictures)
