"""What a watch costs: LeNet's training loop with and without, side by side.

    python -m gradstep.lab.watch_cost

All contenders make the same step on the same batch, in an order that is drawn anew for each, and
the processor's time is taken, which other programs disturb less than the clock. A contender's time
a step is the median over its recorded steps and that over its others, in their proportion. At the
end the weights of all are compared, bit by bit.
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

#: Steps that are not counted: the first compiles.
WARM_UP = 20

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
    make: Callable[..., torch.optim.Optimizer], steps: int, folder: Path
) -> dict[str, float]:
    """Seconds a step of the loop, by contender.

    Args:
        make: an optimizer of parameters.
        steps: how many each contender makes.
        folder: for the files of JSON lines.
    """
    data = load_digits(0)
    learners = {}
    for name in AIMS:
        model = initial_model(0)
        learner = Learner(name, 1e-3, model, make(model.parameters()))
        learners[name] = learner
        if not name.startswith("without"):
            to = folder / f"{name}.jsonl" if "jsonl" in name else None
            gradstep.watch(
                model,
                learner.optimizer,
                every=_every(name),
                to=to,
                histograms="histograms" in name,
            )
    generator, order = torch.Generator().manual_seed(0), random.Random(0)
    recorded: dict[str, list[float]] = {name: [] for name in AIMS}
    others: dict[str, list[float]] = {name: [] for name in AIMS}
    waiting: list[tuple[torch.Tensor, torch.Tensor]] = []
    for number in range(1, steps + 1):
        if not waiting:
            waiting = list(batches(data, BATCH_SIZE, 3, generator))
        images, labels = waiting.pop()
        for name in order.sample(list(learners), len(learners)):
            start = process_time()
            learn(learners[name], images, labels)
            seconds = process_time() - start
            if number > WARM_UP:
                (others if number % _every(name) else recorded)[name].append(seconds)
    first, *rest = (list(learner.model.parameters()) for learner in learners.values())
    for other in rest:
        if not all(map(torch.equal, first, other)):
            raise AssertionError("a watched training came out with other weights")
    return {name: _mean(recorded[name], others[name], _every(name)) for name in AIMS}


def _every(name: str) -> int:
    return 100 if "=100" in name else 1


def _mean(recorded: list[float], others: list[float], every: int) -> float:
    if every == 1:
        return statistics.median(recorded)
    return (statistics.median(recorded) + (every - 1) * statistics.median(others)) / every


def main() -> int:
    """Measure and print; exit code 1 if an aim is missed."""
    parser = argparse.ArgumentParser(prog="python -m gradstep.lab.watch_cost")
    parser.add_argument("--steps", type=int, default=1000, metavar="N", help="at least 200")
    steps = max(200, parser.parse_args().steps)
    torch.set_num_threads(1)
    missed = 0
    for title, make in (
        ("gradstep.AdamW", gradstep.AdamW),
        ("torch.optim.AdamW", torch.optim.AdamW),
    ):
        with tempfile.TemporaryDirectory() as folder:
            times = measure(make, steps, Path(folder))
        print(
            f"{title}, LeNet, batches of {BATCH_SIZE}: {1e3 * times['without']:.2f} ms a step of "
            f"the loop, {steps} steps"
        )
        for name, aim in AIMS.items():
            share = times[name] / times["without"] - 1
            said = "" if aim is None else f"   aim {aim:.0%}: {'met' if share <= aim else 'missed'}"
            missed += aim is not None and share > aim
            print(f"  {name:<20} {share:+8.2%}{said}")
    print("the weights of all contenders are the same, bit for bit")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
