"""The training loop.

For each batch of images, each network says what it sees, is told how wrong it was, and has its
weights moved a little against the gradient. :func:`learn` below is that, line by line; the rest
of the file repeats it and keeps count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gradstep
from gradstep.lab.dataset import Dataset, shifted
from gradstep.lab.lenet import LeNet
from gradstep.lab.optimizers import asks_for_hessian, asks_for_loss, make_optimizer, needs_closure
from gradstep.lab.processes import ALONE, Processes
from gradstep.lab.settings import Settings

#: What is known of one optimizer after one epoch, as it stands in ``metrics.jsonl``.
Record = dict[str, Any]


@dataclass
class Tally:
    """What one learner did in an epoch so far. Times are in seconds.

    With several processes ``images`` counts those of all, ``own`` those of this one, which alone
    are in ``right`` and ``loss_sum`` until the end of the epoch.
    """

    images: int = 0
    own: int = 0
    right: int = 0
    loss_sum: float = 0.0
    steps: int = 0
    seconds: float = 0.0
    step_seconds: float = 0.0

    @property
    def loss(self) -> float:
        """The mean loss of the images so far."""
        return self.loss_sum / self.own if self.own else math.nan

    @property
    def accuracy(self) -> float:
        """The share of images so far whose highest score was the right one."""
        return self.right / self.own if self.own else math.nan

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds

    @property
    def step_share(self) -> float:
        """The share of the time that ``optimizer.step()`` took."""
        return self.step_seconds / self.seconds


@dataclass
class Learner:
    """A network and the optimizer that teaches it.

    ``network`` is the model as a step calls it: with several processes, wrapped into what adds up
    their gradients.
    """

    name: str
    lr: float
    model: LeNet
    optimizer: torch.optim.Optimizer
    tally: Tally = field(default_factory=Tally)
    network: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        self.network = self.model


@dataclass
class Training:
    """All that changes while a run goes on, and so all that a checkpoint must hold."""

    learners: list[Learner]
    random: torch.Generator
    epoch: int = 0
    records: list[Record] = field(default_factory=list)


def learn(learner: Learner, images: Tensor, labels: Tensor, processes: Processes = ALONE) -> None:
    """Learn from one batch: the whole of deep learning in five lines.

    Each process learns from its share of the batch. Its loss is a part of the batch's loss, which
    is the sum of all parts; of their gradients, though, they take the mean.
    """
    share = processes.share(len(labels))
    batch = labels.numel()  # of a text each image has several labels
    images, labels = images[share], labels[share]

    start = perf_counter()
    if asks_for_hessian(learner.optimizer) and learner.tally.steps % 10 == 0:
        look_at_curvature(learner, images, batch, processes)
    scores = learner.network(images)  # what does the network see?
    loss = cross_entropy(scores, labels, reduction="sum") / batch  # how wrong is that?
    learner.optimizer.zero_grad()  # forget the gradient of the batch before
    (loss * processes.count).backward()  # how does the loss change with each weight?
    before_step = perf_counter()
    if needs_closure(learner.optimizer):  # one that tries several places, with a gradient at each
        learner.optimizer.step(lambda: loss_anew(learner, images, labels))
    elif asks_for_loss(learner.optimizer):  # one that goes as far as the loss is high
        learner.optimizer.step(lambda: processes.totals([loss.item()])[0])
    else:
        learner.optimizer.step()  # weight -= lr * gradient, or what the optimizer has in its place
    end = perf_counter()

    tally = learner.tally
    tally.images += batch
    tally.own += labels.numel()
    tally.right += count_right(scores, labels)
    tally.loss_sum += loss.item() * batch
    tally.steps += 1
    tally.seconds += end - start
    tally.step_seconds += end - before_step


def loss_anew(learner: Learner, images: Tensor, labels: Tensor) -> float:
    """The loss of a batch with the weights as they now are, and its gradients."""
    learner.optimizer.zero_grad()
    loss = cross_entropy(learner.model(images), labels)
    loss.backward()
    return loss.item()


def look_at_curvature(learner: Learner, images: Tensor, batch: int, processes: Processes) -> None:
    """Give the optimizer an estimate of the Hessian, by answers that the network might have given.

    They are drawn anew in each process, and again alike in a run that is resumed.
    """
    random = torch.Generator().manual_seed(learner.tally.steps * processes.count + processes.rank)
    scores = learner.network(images).movedim(1, -1).flatten(0, -2)
    part = len(scores) / batch  # 0 where a process has no share in the last batch
    # Nobody can draw answers of a network that has run away, and its estimate is left out.
    drawn = part > 0 and bool(torch.isfinite(scores).all())
    loss = gradstep.sampled_loss(scores, random) * part if drawn else scores.sum()
    learner.optimizer.zero_grad()
    (loss * processes.count).backward()
    gradients = [p.grad for p in learner.model.parameters() if p.grad is not None]
    if all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
        cast(gradstep.HessianOptimizer, learner.optimizer).update_hessian(batch_size=batch)


def count_right(scores: Tensor, labels: Tensor) -> int:
    """How many of the scores ``(n, classes, …)`` are highest at the label ``(n, …)``."""
    return int((scores.argmax(1) == labels).sum())


def batches(
    data: Dataset, batch_size: int, shift: int, random: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """All training images once, in random order, each moved at random, a batch at a time."""
    order = torch.randperm(len(data.train_labels), generator=random)
    for chosen in order.split(batch_size):
        images = shifted(data.train_images[chosen], shift, data.background, random)
        yield images, data.train_labels[chosen]


def batch_count(data: Dataset, batch_size: int) -> int:
    """How many batches an epoch has; the last may be smaller than the others."""
    return -(-len(data.train_labels) // batch_size)


def train_epoch(
    training: Training,
    data: Dataset,
    settings: Settings,
    after_batch: Callable[[list[Learner]], None],
    processes: Processes = ALONE,
) -> list[Record]:
    """Teach every learner the same batches, side by side; return a record for each.

    Of several processes only the leading one tests the learners; the others return no records.
    """
    epoch = training.epoch + 1
    for learner in training.learners:
        learner.tally = Tally()
        for group in learner.optimizer.param_groups:
            group["lr"] = learner.lr * settings.lr_decay ** (epoch - 1)

    start = perf_counter()
    for images, labels in batches(data, settings.batch_size, settings.shift, training.random):
        making = perf_counter() - start
        for learner in training.learners:
            learn(learner, images, labels, processes)
            learner.tally.seconds += making  # alone, each would have to make the batch itself
        after_batch(training.learners)
        start = perf_counter()

    for learner in training.learners:
        tally = learner.tally
        right, tally.loss_sum = processes.totals([tally.right, tally.loss_sum])
        tally.right, tally.own = int(right), tally.images
    tested = training.learners if processes.leads else []
    records = [epoch_record(epoch, learner, data) for learner in tested]
    training.records += records
    training.epoch = epoch
    return records


def epoch_record(epoch: int, learner: Learner, data: Dataset) -> Record:
    """Test the learner, and put that together with what it did in the epoch.

    ``train_loss`` and ``train_accuracy`` are means over the epoch's batches as they passed, while
    the weights were still moving; ``test_loss`` and ``test_accuracy`` are of the weights at its
    end. Accuracies and ``step_share`` are from 0 to 1.
    """
    tally = learner.tally
    test_loss, test_accuracy = evaluate_learner(learner, data)
    return {
        "epoch": epoch,
        "optimizer": learner.name,
        "lr": learner.optimizer.param_groups[0]["lr"],
        "train_loss": tally.loss,
        "train_accuracy": tally.accuracy,
        "test_loss": test_loss,
        "test_accuracy": test_accuracy,
        "steps": tally.steps,
        "seconds": tally.seconds,
        "step_seconds": tally.step_seconds,
        "images_per_second": tally.images_per_second,
        "step_share": tally.step_share,
    }


#: The fields of a record that a second run of the same settings does not repeat.
TIMES = frozenset({"seconds", "step_seconds", "images_per_second", "step_share"})


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """The scores ``(n, classes, …)`` for the images, computed in pieces that fit the cache."""
    model.eval()
    scores = torch.cat([model(piece) for piece in images.split(500)])
    model.train()
    return scores


def evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean loss and share of right answers."""
    scores = predict(model, images)
    return cross_entropy(scores, labels).item(), count_right(scores, labels) / labels.numel()


@torch.no_grad()
def evaluate_learner(learner: Learner, data: Dataset) -> tuple[float, float]:
    """Mean test loss and share of right answers, of the weights that the optimizer would have used.

    Schedule-free rules train at one place and answer from another. The training goes on from the
    very bits that it had.
    """
    optimizer: Any = learner.optimizer
    answers_elsewhere = hasattr(optimizer, "eval")
    if not answers_elsewhere:
        return evaluate(learner.model, data.test_images, data.test_labels)
    trained = [parameter.clone() for parameter in learner.model.parameters()]
    optimizer.eval()
    try:
        return evaluate(learner.model, data.test_images, data.test_labels)
    finally:
        optimizer.train()
        for parameter, kept in zip(learner.model.parameters(), trained, strict=True):
            parameter.copy_(kept)


def initial_model(seed: int) -> LeNet:
    """The LeNet that every learner of a run with this seed begins with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LeNet()


def _narrow(model: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Images as the weights are stored."""
    return tuple([tensor.to(torch.bfloat16) for tensor in given])


def _wide(model: nn.Module, given: tuple[Tensor, ...], scores: Tensor) -> Tensor:
    """Scores of which a loss is taken in float32."""
    return scores.float()


def _learner(name: str, lr: float, settings: Settings, seed: int) -> Learner:
    model = initial_model(seed)
    if settings.low_precision is not None:
        model = model.to(torch.bfloat16)
        model.register_forward_pre_hook(_narrow)
        model.register_forward_hook(_wide)
    return Learner(name, lr, model, make_optimizer(name, model, lr, **settings.storage()))


def begin_training(settings: Settings) -> Training:
    """Every learner at its start: the same weights, no batch seen."""
    learners = []
    for name, lr in zip(settings.optimizers, settings.lrs, strict=True):
        learners.append(_learner(name, lr, settings, settings.seed))
    torch.manual_seed(settings.seed)
    return Training(learners, torch.Generator().manual_seed(settings.seed))


def warm_up(settings: Settings) -> None:
    """Take one step on a network that is then thrown away.

    The first step of an optimizer compiles its kernel or fetches it from the disk; that second
    shall not count as the time of a step.
    """
    for name, lr in zip(settings.optimizers, settings.lrs, strict=True):
        learner = _learner(name, lr, settings, 0)
        learn(learner, torch.zeros(2, 1, 32, 32), torch.zeros(2, dtype=torch.int64))
