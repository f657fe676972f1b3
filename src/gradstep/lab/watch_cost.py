"""What a watch costs: LeNet's training loop with and without, side by side.

    python -m gradstep.lab.watch_cost

All contenders make the same steps on the same batches, a block of a hundred at a time, in an order
that is drawn anew for each round. The share is the median over the rounds of a contender's time
over that of the loop without a watch in the same round; time is the processor's, which other
programs disturb less. At the end the weights of all are compared,
bit by bit.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import process_time

import torch

import gradstep
from gradstep.lab.digits import load_digits
from gradstep.lab.training import Learner, batches, initial_model, learn

BATCH_SIZE = 64
BLOCK = 100

#: Contender -> the most that it may add to the loop's time, None for no aim.
AIMS: dict[str, float | None] = {
    "without": None,
    "without, again": None,
    "every=100": 0.01,
    "every=100, .jsonl": 0.01,
    "every=1": 0.15,
    "every=1, .jsonl": 0.15,
    "every=1, histograms": None,
}


def measure(
    make: Callable[..., torch.optim.Optimizer], rounds: int, folder: Path
) -> dict[str, list[float]]:
    """Seconds of each block, by contender.

    Args:
        make: an optimizer of parameters.
        rounds: how many blocks each contender trains.
        folder: for the files of JSON lines.
    """
    data = load_digits(0)
    learners = {}
    for name in AIMS:
        model = initial_model(0)
        learner = Learner(name, 1e-3, model, make(model.parameters()))
        learners[name] = learner
        if not name.startswith("without"):
            every = 100 if "=100" in name else 1
            to = folder / f"{name}.jsonl" if "jsonl" in name else None
            gradstep.watch(
                model, learner.optimizer, every=every, to=to, histograms="histograms" in name
            )
    generator, order = torch.Generator().manual_seed(0), random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in AIMS}
    waiting: list[tuple[torch.Tensor, torch.Tensor]] = []
    for number in range(rounds + 1):
        while len(waiting) < BLOCK:
            waiting += batches(data, BATCH_SIZE, 3, generator)
        block, waiting = waiting[:BLOCK], waiting[BLOCK:]
        for name in order.sample(list(learners), len(learners)):
            start = process_time()
            for images, labels in block:
                learn(learners[name], images, labels)
            if number:  # the first one compiles
                times[name].append(process_time() - start)
    first, *others = (list(learner.model.parameters()) for learner in learners.values())
    for other in others:
        if not all(map(torch.equal, first, other)):
            raise AssertionError("a watched training came out with other weights")
    return times


def main() -> int:
    """Measure and print; exit code 1 if an aim is missed."""
    parser = argparse.ArgumentParser(prog="python -m gradstep.lab.watch_cost")
    parser.add_argument("--rounds", type=int, default=10, metavar="N")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    missed = 0
    for title, make in (
        ("gradstep.AdamW", gradstep.AdamW),
        ("torch.optim.AdamW", torch.optim.AdamW),
    ):
        with tempfile.TemporaryDirectory() as folder:
            times = measure(make, rounds, Path(folder))
        plain = times["without"]
        milliseconds = 1e3 * statistics.median(plain) / BLOCK
        print(
            f"{title}, LeNet, batches of {BATCH_SIZE}: {milliseconds:.2f} ms a step of the loop, "
            f"{rounds} rounds of {BLOCK} steps"
        )
        for name, aim in AIMS.items():
            share = statistics.median(a / b for a, b in zip(times[name], plain, strict=True)) - 1
            said = "" if aim is None else f"   aim {aim:.0%}: {'met' if share <= aim else 'missed'}"
            missed += aim is not None and share > aim
            print(f"  {name:<20} {share:+8.2%}{said}")
    print("the weights of all contenders are the same, bit for bit")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
