"""One run of a race, and the process that makes runs: ``python -m gradstep.lab.race_worker``.

The process reads jobs from its standard input, a line of JSON each, and answers on its standard
output: how far it is, that a run is done, or why one failed. It ends after the line ``"end"``, and
at once when the input is cut off, so that nothing is left behind by a race that was killed.
"""

from __future__ import annotations

import io
import json
import math
import os
import queue
import signal
import statistics
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any, TextIO, cast

import numpy
import torch
from torch import Tensor, nn

from gradstep.lab.atomic import write_atomically
from gradstep.lab.dataset import Dataset
from gradstep.lab.digits import load_digits
from gradstep.lab.errors import BadInput
from gradstep.lab.idx import load_idx
from gradstep.lab.lenet import LeNet
from gradstep.lab.model import seeded_model
from gradstep.lab.optimizers import make_optimizer
from gradstep.lab.race import FORMAT, Course, Entry, RaceFolder, Result
from gradstep.lab.repeatable import repeatable
from gradstep.lab.text import CharacterTransformer, load_text
from gradstep.lab.training import Learner, Tally, batch_count, batches, evaluate_learner, learn

#: A run is measured at so many places, at equal distances, and before its first step.
POINTS = 30

#: Seconds between two messages about how far a run is.
_INTERVAL = 0.2


def race_data(course: Course, seed: int) -> Dataset:
    """The data of a run; of scikit-learn's digits, ``seed`` chooses those of the test."""
    if course.text is not None:
        data = load_text(course.text)
    else:
        data = load_digits(seed) if course.data is None else load_idx(Path(course.data))
    return data.limited(course.train_limit, course.test_limit)


def race_model(course: Course, seed: int) -> nn.Module:
    """The network of a run, with the first weights of its seed."""
    return seeded_model(course.model, seed, LeNet if course.text is None else CharacterTransformer)


def point_steps(total: int) -> list[int]:
    """The steps after which a run of ``total`` steps is measured; the last is the end."""
    count = min(POINTS, total)
    return sorted({round(total * (i + 1) / count) for i in range(count)})


def race_run(
    course: Course,
    entry: Entry,
    data: Dataset,
    after_step: Callable[[int], None],
    keep: list[Tensor] | None = None,
) -> Result:
    """Make one run and say how it went.

    Args:
        course: what it has in common with the others.
        entry: which one it is.
        data: what :func:`race_data` gives for its seed.
        after_step: called after each step with the number of steps done.
        keep: takes all weights, as one tensor, at the start and at each point.

    Returns what its JSON file holds. ``steps``, and with it ``train_loss`` (the mean over the
    batches since the point before; none at the start), ``test_loss`` and ``test_accuracy``, have
    an item a point. ``final`` has the loss over the last epoch's batches (over all, if there were
    fewer) and the test at the end. ``step_microseconds`` is the median time of one call of
    ``optimizer.step()``, ``seconds`` the time of all training, without the tests. A run whose loss
    is no longer finite ends there: ``diverged`` is that step, else None. A number that is not
    finite is None.
    """
    per_epoch = batch_count(data, course.batch_size)
    total = course.total_steps(per_epoch)
    model = race_model(course, entry.seed)
    # `learn` asks of a model that it is called; that it is LeNet matters to train's pictures alone.
    network = cast(LeNet, model)
    optimizer = make_optimizer(entry.optimizer, model, entry.lr)
    learner = Learner(entry.optimizer, entry.lr, network, optimizer)
    random = torch.Generator().manual_seed(entry.seed)
    torch.manual_seed(entry.seed)  # for dropout, in a model of the user's own

    points = point_steps(total)
    steps, train_loss = [0], [math.nan]
    tests = [evaluate_learner(learner, data)]
    losses: list[float] = []
    step_seconds: list[float] = []
    seconds, since, diverged = 0.0, 0, None
    _keep(keep, model)
    for done, (images, labels) in enumerate(_batches(data, course, random, total), start=1):
        lr = entry.lr * course.lr_share(done - 1, per_epoch)
        for group in optimizer.param_groups:
            group["lr"] = lr
        learner.tally = Tally()
        learn(learner, images, labels)
        losses.append(learner.tally.loss)
        step_seconds.append(learner.tally.step_seconds)
        seconds += learner.tally.seconds
        if not math.isfinite(losses[-1]):
            diverged = done
        if diverged or done == points[len(steps) - 1]:
            steps.append(done)
            train_loss.append(math.fsum(losses[since:]) / (done - since))
            tests.append(evaluate_learner(learner, data))
            since = done
            _keep(keep, model)
        after_step(done)
        if diverged:
            break
    last = losses[-per_epoch:]
    return {
        "format": FORMAT,
        "entry": asdict(entry),
        "steps": steps,
        "train_loss": [_finite(loss) for loss in train_loss],
        "test_loss": [_finite(loss) for loss, _ in tests],
        "test_accuracy": [accuracy for _, accuracy in tests],
        "final": {
            "train_loss": _finite(math.fsum(last) / len(last)),
            "test_loss": _finite(tests[-1][0]),
            "test_accuracy": tests[-1][1],
        },
        "diverged": diverged,
        "step_microseconds": statistics.median(step_seconds) * 1e6,
        "seconds": seconds,
        "steps_an_epoch": per_epoch,
    }


def _batches(
    data: Dataset, course: Course, random: torch.Generator, total: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Epoch after epoch, up to so many batches."""
    made = 0
    while True:
        for batch in batches(data, course.batch_size, course.shift, random):
            if made == total:
                return
            made += 1
            yield batch


def _keep(kept: list[Tensor] | None, model: nn.Module) -> None:
    if kept is not None:
        with torch.no_grad():
            kept.append(torch.cat([p.float().flatten() for p in model.parameters()]))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class Worker:
    """Makes the runs that it is told to, in one folder. ``out`` takes the answers."""

    def __init__(self, folder: RaceFolder, course: Course, out: TextIO) -> None:
        self.folder = folder
        self.course = course
        self.out = out
        self._data: dict[int, Dataset] = {}
        self._warm: set[str] = set()

    def make(self, job: dict[str, Any]) -> None:
        """Make one run and write its file, or say why that failed."""
        entry = Entry(**job["entry"])
        try:
            data = self._data_of(entry.seed)
            self._warm_up(entry, data)
            kept: list[Tensor] | None = [] if job["keep"] else None
            with repeatable(threads=1):
                result = race_run(self.course, entry, data, self._telling(), kept)
            if kept is not None:
                buffer = io.BytesIO()
                numpy.save(buffer, torch.stack(kept).numpy())
                write_atomically(weights_path(self.folder, entry), buffer.getvalue())
            if not self.folder.results([entry]):  # one that is there keeps the times it was made in
                content = json.dumps(result, allow_nan=False).encode()
                write_atomically(self.folder.result_path(entry), content)
        except BadInput as error:
            self.tell(failed=str(error))
        except OSError as error:
            self.tell(failed=f"cannot write to {self.folder.directory}: {error}")
        except Exception as error:  # a model of the user's own may raise anything
            said = " ".join(f"{type(error).__name__}: {error}".split())
            self.tell(failed=f"the run {entry.name} failed: {said}")
        else:
            self.tell(done=entry.name)

    def tell(self, **message: Any) -> None:
        """Send a message to the race."""
        print(json.dumps(message), file=self.out, flush=True)

    def _data_of(self, seed: int) -> Dataset:
        key = seed if self.course.data is None and self.course.text is None else 0
        if key not in self._data:
            self._data = {key: race_data(self.course, seed)}  # the runs come seed by seed
        return self._data[key]

    def _warm_up(self, entry: Entry, data: Dataset) -> None:
        """Two steps on a network that is thrown away: the first compiles the rule's kernel."""
        if entry.optimizer in self._warm:
            return
        self._warm.add(entry.optimizer)
        model = race_model(self.course, entry.seed)
        optimizer = make_optimizer(entry.optimizer, model, entry.lr)
        learner = Learner(entry.optimizer, entry.lr, cast(LeNet, model), optimizer)
        for _ in range(2):
            learn(learner, data.train_images[:2], data.train_labels[:2])

    def _telling(self) -> Callable[[int], None]:
        due = perf_counter() + _INTERVAL

        def after_step(done: int) -> None:
            nonlocal due
            if perf_counter() >= due:
                due = perf_counter() + _INTERVAL
                self.tell(steps=done)

        return after_step


def weights_path(folder: RaceFolder, entry: Entry) -> Path:
    """Where the weights on the way of a run lie: float32, a row a point."""
    return folder.result_path(entry).with_suffix(".npy")


def main() -> None:
    """Serve one race until it has no more jobs."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the race's business
    lines: queue.Queue[str] = queue.Queue()
    first = json.loads(sys.stdin.readline())

    def listen() -> None:
        for line in sys.stdin:
            lines.put(line)
            if line.strip() == '"end"':
                return
        os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    # What a model of the user's own prints must not come between the messages.
    out, sys.stdout = sys.stdout, sys.stderr
    worker = Worker(RaceFolder(Path(first["directory"])), Course(**first["course"]), out)
    while (line := lines.get().strip()) != '"end"':
        worker.make(json.loads(line))


if __name__ == "__main__":
    main()
