"""What it costs to be watched: LeNet's training with and without ``gradstep.diagnose``."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch.nn.functional import cross_entropy

import gradstep
from gradstep.lab.lenet import LeNet
from gradstep.sight.mistakes import Diagnosis
from gradstep.sight.mistakes.gradients import Gradients

#: Every so many steps values are looked at.
EVERY = 50
#: Steps in a row before it is the next one's turn. The first of them fills the caches with this
#: one's code and weights, and is not counted.
TURN = 2


@contextmanager
def _alone(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    yield


@contextmanager
def _zero_grad(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    diagnosis = Diagnosis("list", EVERY, families=(Gradients,))
    diagnosis.add_optimizer(optimizer)
    with diagnosis:
        yield


@contextmanager
def _everything(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    with gradstep.diagnose(model, optimizer, on_mistake="list", every=EVERY):
        yield


#: Name -> how the training is watched. The second tells how far apart two equal ones are.
CONTENDERS: dict[str, Callable[..., object]] = {
    "alone": _alone,
    "alone again": _alone,
    "forgotten zero_grad()": _zero_grad,
    "all diagnoses": _everything,
}


@dataclass
class Cost:
    """CPU seconds of training steps: forward and backward pass, ``zero_grad()``, ``step()``.

    Watching has its part in each of them. Their own time varies by more than it takes, so that the
    medians of hundreds of steps are compared, made by turns.

    Attributes:
        optimizer: its name.
        batch: images a training step.
        usual, looks: times by contender; looks are those at which values are looked at.
    """

    optimizer: str
    batch: int
    usual: dict[str, list[float]] = field(default_factory=dict)
    looks: dict[str, list[float]] = field(default_factory=dict)

    def step(self, name: str) -> float:
        """The time of a training step: medians, and looks as often as they are."""
        usual = statistics.median(self.usual[name])
        return usual + (statistics.median(self.looks[name]) - usual) / EVERY

    def share(self, name: str) -> float:
        """By which share a training step takes longer than alone."""
        return self.step(name) / self.step("alone") - 1


def measure_cost(
    make: Callable[..., torch.optim.Optimizer], batch: int, rounds: int, seed: int = 0
) -> Cost:
    """Train LeNets on random images, in short turns, in random order.

    Timed is the CPU time of the process, which another process on the same cores changes little;
    with one thread it is the time of the training itself, as far as nothing disturbs it.

    Args:
        make: makes the optimizer from the parameters and ``lr``.
        batch: images a step.
        rounds: each is :data:`EVERY` steps of each contender. The first hundred steps, with their
            many looks, come before and are not counted.
        seed: of the weights, the images and the order.
    """
    torch.manual_seed(seed)
    images, labels = torch.randn(batch, 1, 32, 32), torch.randint(0, 10, (batch,))
    start = LeNet().state_dict()
    runs, watches = {}, []
    for name, watch in CONTENDERS.items():
        model = LeNet()
        model.load_state_dict(start)
        optimizer = make(model.parameters(), lr=1e-3)
        watches.append(watch(model, optimizer))
        watches[-1].__enter__()  # type: ignore[attr-defined]
        runs[name] = _training(model, optimizer, images, labels)
    cost = Cost(type(optimizer).__module__.split(".")[0] + "." + type(optimizer).__name__, batch)
    cost.usual = {name: [] for name in CONTENDERS}
    cost.looks = {name: [] for name in CONTENDERS}
    order = random.Random(seed)
    names = list(CONTENDERS)
    made = dict.fromkeys(names, 0)
    try:
        for _ in range(0, 2 * EVERY + rounds * EVERY, TURN):
            order.shuffle(names)
            for name in names:
                for turn in range(TURN):
                    spent = runs[name]()
                    made[name] += 1
                    if made[name] % EVERY == 0:
                        cost.looks[name].append(spent)
                    elif turn and made[name] > 2 * EVERY:
                        cost.usual[name].append(spent)
    finally:
        for watched in watches:
            watched.__exit__(None, None, None)  # type: ignore[attr-defined]
    return cost


def _training(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    labels: torch.Tensor,
) -> Callable[[], float]:
    def train() -> float:
        begin = time.process_time()
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()
        return time.process_time() - begin

    return train


def lines(cost: Cost) -> list[str]:
    """The costs as lines of text."""
    rows = [f"{cost.optimizer}, LeNet, {cost.batch} images, CPU time of a training step"]
    for name in cost.usual:
        share = "" if name == "alone" else f"  {cost.share(name):+7.2%}"
        rows.append(f"  {name:<22} {cost.step(name) * 1e6:9.1f} µs{share}")
    return rows
