"""What it costs to be watched: LeNet's training alone, with ``gradstep.diagnose``, and with
``gradstep doctor``.

Each contender is a process of its own, since watching is done around functions of torch, which all
of a process have together. They make their steps by turns, a few at a time, when they are told to.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import runpy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gradstep
from gradstep.lab.lenet import LeNet
from gradstep.sight.mistakes import Diagnosis
from gradstep.sight.mistakes.gradients import Gradients
from gradstep.sight.mistakes.script import run_script

#: Every so many steps values are looked at.
EVERY = 50
#: Steps in a row before it is the next one's turn. The first of them fills the caches with this
#: one's code and weights, and is not counted.
TURN = 2
#: Processes for each contender: two equal ones differ by where their memory happens to lie.
PROCESSES = 3

#: glibc then gives no memory back between steps: whether it does depends on where the last small
#: tensor happens to lie, and getting it again costs more than all that is measured here.
_KEEP = {"MALLOC_TRIM_THRESHOLD_": str(2**32), "MALLOC_MMAP_THRESHOLD_": str(2**32)}

#: The loop, as somebody would write it.
_SCRIPT = """\
from torch.nn.functional import cross_entropy

from gradstep.lab.bench_diagnose import Training

training = Training.here
model, images, labels = training.model, training.images, training.labels
optimizer = training.make(model.parameters(), lr=1e-3)
with training.watch(model, optimizer):
    for _ in training.turns():
        optimizer.zero_grad()
        loss = cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
"""


def _alone(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    return nullcontext()


def _zero_grad(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    diagnosis = Diagnosis("list", EVERY, families=(Gradients,))
    diagnosis.add_optimizer(optimizer)
    return diagnosis


def _everything(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    return gradstep.diagnose(model, optimizer, on_mistake="list", every=EVERY)


#: Name -> how the training is watched. The second tells how far apart two equal ones are.
CONTENDERS: dict[str, Callable[..., Any]] = {
    "alone": _alone,
    "alone again": _alone,
    "forgotten zero_grad()": _zero_grad,
    "all diagnoses": _everything,
    "gradstep doctor": _alone,
}


class Training:
    """One contender, in its process; the script finds it as ``Training.here``."""

    here: Training

    def __init__(
        self,
        connection: Connection,
        name: str,
        make: Callable[..., torch.optim.Optimizer],
        batch: int,
        seed: int,
    ) -> None:
        torch.manual_seed(seed)
        self.make, self.watch = make, CONTENDERS[name]
        self.model = LeNet()
        self.images, self.labels = torch.randn(batch, 1, 32, 32), torch.randint(0, 10, (batch,))
        self._connection = connection

    def turns(self) -> Iterator[None]:
        """So many steps as the parent asks for, again and again; sends it the seconds of each."""
        while count := self._connection.recv():
            spent = []
            for _ in range(count):
                begin = time.process_time()
                yield
                spent.append(time.process_time() - begin)
            self._connection.send(spent)

    def weights(self) -> list[Tensor]:
        """What the training came to."""
        return [p.detach() for p in self.model.parameters()]


def _run(
    connection: Connection, name: str, make: Callable[..., Any], batch: int, seed: int
) -> None:
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):  # all on one core: another may be busier
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    Training.here = Training(connection, name, make, batch, seed)
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "train.py"
        script.write_text(_SCRIPT, encoding="utf-8")
        if name == "gradstep doctor":
            run_script(str(script))
        else:
            runpy.run_path(str(script), run_name="__main__")
    connection.send([weight.numpy() for weight in Training.here.weights()])


@dataclass
class Cost:
    """CPU seconds of training steps: forward and backward pass, ``zero_grad()``, ``step()``.

    Watching has its part in each of them. Their own time varies by more than it takes, so that the
    medians of hundreds of steps are compared, made by turns.

    Attributes:
        optimizer: its name.
        batch: images a training step.
        usual, looks: times by contender and process; looks are those at which values are looked at.
    """

    optimizer: str
    batch: int
    usual: dict[str, list[list[float]]] = field(default_factory=dict)
    looks: dict[str, list[list[float]]] = field(default_factory=dict)

    def step(self, name: str) -> float:
        """The time of a training step: medians, and looks as often as they are."""
        both = zip(self.usual[name], self.looks[name], strict=True)
        medians = [(statistics.median(usual), statistics.median(looks)) for usual, looks in both]
        return statistics.median(usual + (looks - usual) / EVERY for usual, looks in medians)

    def share(self, name: str) -> float:
        """By which share a training step takes longer than alone."""
        return self.step(name) / self.step("alone") - 1


def measure_cost(
    make: Callable[..., torch.optim.Optimizer],
    batch: int,
    rounds: int,
    seed: int = 0,
    each: int = PROCESSES,
    names: Sequence[str] = tuple(CONTENDERS),
) -> Cost:
    """Train LeNets on random images, in short turns, in random order.

    Timed is the CPU time of the process, which another process on the same cores changes little;
    with one thread it is the time of the training itself, as far as nothing disturbs it.

    Args:
        make: makes the optimizer from the parameters and ``lr``; a class that pickles.
        batch: images a step.
        rounds: each is :data:`EVERY` steps of each contender. The first hundred steps, with their
            many looks, come before and are not counted.
        seed: of the weights, the images and the order.
        each: how many processes a contender has.
        names: the contenders, of :data:`CONTENDERS`.

    Raises:
        AssertionError: a watched training came to other weights than the one alone.
    """
    kind = f"{make.__module__.split('.')[0]}.{getattr(make, '__name__', '')}"
    cost = Cost(kind, batch)
    context = multiprocessing.get_context("spawn")
    processes, parents = [], {}
    before = {name: os.environ.get(name) for name in _KEEP}
    os.environ.update(_KEEP)
    for name in names:
        cost.usual[name] = [[] for _ in range(each)]
        cost.looks[name] = [[] for _ in range(each)]
        for number in range(each):
            parents[name, number], child = context.Pipe()
            given = child, name, make, batch, seed
            process = context.Process(target=_run, args=given, daemon=True)
            process.start()
            child.close()
            processes.append(process)
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
    order, keys = random.Random(seed), list(parents)
    for begun in range(0, 2 * EVERY + rounds * EVERY, TURN):
        order.shuffle(keys)
        for name, number in keys:
            parents[name, number].send(TURN)
            for turn, spent in enumerate(parents[name, number].recv()):
                made = begun + turn + 1
                if made > 2 * EVERY and made % EVERY == 0:
                    cost.looks[name][number].append(spent)
                elif turn and made > 2 * EVERY:
                    cost.usual[name][number].append(spent)
    for parent in parents.values():
        parent.send(0)
    weights = [parent.recv() for parent in parents.values()]
    for process in processes:
        process.join()
    for others in weights[1:]:
        if any((one != other).any() for one, other in zip(weights[0], others, strict=True)):
            raise AssertionError("a watched training came out with other weights")
    return cost


def lines(cost: Cost) -> list[str]:
    """The costs as lines of text."""
    rows = [f"{cost.optimizer}, LeNet, {cost.batch} images, CPU time of a training step"]
    for name in cost.usual:
        share = "" if name == "alone" else f"  {cost.share(name):+7.2%}"
        rows.append(f"  {name:<22} {cost.step(name) * 1e6:9.1f} µs{share}")
    return rows
