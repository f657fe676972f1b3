"""What the runs of a race come to: means over seeds with their intervals, a table, results.json."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gradstep.lab.intervals import Interval, t_interval
from gradstep.lab.race import FORMAT, Course, Entry, Result
from gradstep.lab.report import number, table

#: What is measured at the end of a run.
MEASURES = ("train_loss", "test_loss", "test_accuracy")


@dataclass(frozen=True)
class Standing:
    """A rule at a learning rate, over all seeds.

    ``final`` has an interval for each of :data:`MEASURES`, None where a loss was not finite.
    ``behind`` is by how much the test accuracy is below that of the best standing of the table,
    seed by seed (None for that one itself). Times are the median over the runs, the shortest and
    the longest: of a step in microseconds, of a run in seconds. ``diverged`` counts runs.
    """

    optimizer: str
    lr: float
    seeds: int
    final: dict[str, Interval | None]
    step_microseconds: tuple[float, float, float]
    seconds: tuple[float, float, float]
    diverged: int
    behind: Interval | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def standing(optimizer: str, lr: float, results: Sequence[Result]) -> Standing:
    """Put the runs of one rule at one learning rate together."""
    return Standing(
        optimizer,
        lr,
        len(results),
        {measure: _interval([r["final"][measure] for r in results]) for measure in MEASURES},
        _spread([r["step_microseconds"] for r in results]),
        _spread([r["seconds"] for r in results]),
        sum(r["diverged"] is not None for r in results),
    )


def standings(results: Mapping[Entry, Result]) -> dict[str, list[Standing]]:
    """For each rule, in the order of the entries, its learning rates from small to large."""
    groups: dict[str, dict[float, list[Result]]] = {}
    for entry, result in results.items():
        groups.setdefault(entry.optimizer, {}).setdefault(entry.lr, []).append(result)
    return {
        optimizer: [standing(optimizer, lr, rates[lr]) for lr in sorted(rates)]
        for optimizer, rates in groups.items()
    }


def best_of(rates: Sequence[Standing]) -> Standing:
    """The learning rate with the lowest training loss.

    The loss of the training, not of the test: who chooses by the test has no test any more. Where
    runs diverged, the one with the fewest such runs, and then the smallest.
    """

    def order(s: Standing) -> tuple[float, ...]:
        loss = s.final["train_loss"]
        return (s.diverged, loss.mean if loss is not None else math.inf, s.lr)

    return min(rates, key=order)


def at_the_edge(results: Mapping[Entry, Result]) -> list[str]:
    """The rules whose best learning rate is the smallest or the largest of several that they ran
    at: a still smaller or larger one may be better."""
    return [
        optimizer
        for optimizer, rates in standings(results).items()
        if len(rates) > 1 and best_of(rates).lr in (rates[0].lr, rates[-1].lr)
    ]


def final_standings(results: Mapping[Entry, Result]) -> list[Standing]:
    """Each rule at its best learning rate; the highest test accuracy first."""
    chosen = [best_of(rates) for rates in standings(results).values()]

    def accuracy(s: Standing) -> dict[int, float]:
        return {
            entry.seed: result["final"]["test_accuracy"]
            for entry, result in results.items()
            if (entry.optimizer, entry.lr) == (s.optimizer, s.lr)
        }

    means = {s.optimizer: math.fsum(accuracy(s).values()) / s.seeds for s in chosen}
    chosen.sort(key=lambda s: -means[s.optimizer])
    first, *others = chosen
    best = accuracy(first)
    return [
        first,
        *(
            Standing(
                **{**vars(s), "behind": _interval([best[k] - v for k, v in accuracy(s).items()])}
            )
            for s in others
        ),
    ]


@dataclass(frozen=True)
class Arrival:
    """When a rule, at its best learning rate, first tests as well as another does at its end.

    ``steps`` and ``seconds`` of training are over the seeds that came there; ``of`` are all.
    """

    optimizer: str
    steps: Interval | None
    seconds: Interval | None
    came: int
    of: int


def arrivals(
    results: Mapping[Entry, Result], rows: Sequence[Standing], whose: str
) -> tuple[float, list[Arrival]]:
    """The test loss with which rule ``whose`` ends (the mean over its seeds), and when each comes
    there: the soonest first.

    Between two tests of a run the loss is taken for a straight line. Seconds are those of all
    training so far, gradients included, without the tests; the processes beside them were at work.

    Raises ValueError if that rule is not in the race, or diverged.
    """
    goal = next((row.final["test_loss"] for row in rows if row.optimizer == whose), None)
    if goal is None:
        raise ValueError(f"{whose} has no loss to come to: it is not in the race, or diverged")
    found = []
    for row in rows:
        runs = [
            result
            for entry, result in results.items()
            if (entry.optimizer, entry.lr) == (row.optimizer, row.lr)
        ]
        shares = [(_arrival(run, goal.mean), run) for run in runs]
        steps = [step for step, _ in shares if step is not None]
        seconds = [step * r["seconds"] / r["steps"][-1] for step, r in shares if step is not None]
        found.append(
            Arrival(
                row.optimizer,
                t_interval(steps) if steps else None,
                t_interval(seconds) if seconds else None,
                len(steps),
                len(runs),
            )
        )
    found.sort(key=lambda a: (-a.came, a.steps.mean if a.steps is not None else math.inf))
    return goal.mean, found


def _arrival(run: Result, goal: float) -> float | None:
    """The step at which the test loss first is no higher than ``goal``; None if it never is."""
    before: tuple[int, float] | None = None
    for step, loss in zip(run["steps"], run["test_loss"], strict=True):
        if loss is None:
            return None
        if loss <= goal:
            if before is None:
                return float(step)
            earlier, higher = before
            return earlier + (step - earlier) * (higher - goal) / (higher - loss)
        before = (step, loss)
    return None


def arrivals_table(whose: str, goal: float, found: Sequence[Arrival]) -> list[str]:
    """When each rule came to the same loss, for a terminal."""
    lines = [
        [
            arrival.optimizer,
            "never" if arrival.steps is None else _plus_minus(arrival.steps, 1, ".0f"),
            "never" if arrival.seconds is None else _plus_minus(arrival.seconds, 1, ".1f"),
            f"{arrival.came} of {arrival.of}",
        ]
        for arrival in found
    ]
    return [
        *table(("rule", "steps", "seconds", "seeds that came there"), lines),
        f"Until the test loss is {number(goal)}, with which {whose} ends.",
    ]


def final_table(rows: Sequence[Standing]) -> list[str]:
    """The table for a terminal, and below it what its numbers are."""
    return [*table(HEADER, [cells(row) for row in rows]), *notes(rows)]


HEADER = ("rule", "lr", "train loss", "test loss", "test accuracy", "behind the first", "a step")


def cells(row: Standing) -> list[str]:
    """The cells of a row, as text."""
    accuracy = row.final["test_accuracy"]
    assert accuracy is not None  # a share of images is always a number
    return [
        row.optimizer,
        f"{row.lr:g}",
        _loss(row.final["train_loss"], row),
        _loss(row.final["test_loss"], row),
        f"{_plus_minus(accuracy, 100, '.2f')} %",
        "–" if row.behind is None else f"{_plus_minus(row.behind, 100, '.2f')} %",
        _duration(row.step_microseconds[0]),
    ]


def notes(rows: Sequence[Standing]) -> list[str]:
    """What the numbers of the table are, line by line."""
    seeds = max(row.seeds for row in rows)
    if seeds == 1:
        return ["One seed: no intervals; take --seeds 5"]
    of = f"Mean over {seeds} seeds"
    lines = [
        f"{of} ± half of the 95 % confidence interval (Student's t)."
        if seeds > 2
        else f"{of}: too few for an interval; take --seeds 5",
        "'Behind the first' is of the differences in test accuracy, seed by seed.",
    ]
    lost = {row.optimizer: row.diverged for row in rows if row.diverged}
    if lost:
        said = ", ".join(f"{name} in {count} of {seeds} runs" for name, count in lost.items())
        lines.append(f"Diverged (the loss was no finite number any more): {said}")
    return lines


def results_json(
    course: Course,
    facts: Mapping[str, Any],
    results: Mapping[Entry, Result],
    rows: Sequence[Standing],
) -> bytes:
    """All runs and what they come to, as JSON."""
    content = {
        "format": FORMAT,
        "course": course.to_json(),
        **facts,
        "table": [row.to_json() for row in rows],
        "standings": [s.to_json() for rates in standings(results).values() for s in rates],
        "runs": list(results.values()),
    }
    return (json.dumps(content, allow_nan=False, ensure_ascii=False) + "\n").encode()


def _interval(values: Sequence[float | None]) -> Interval | None:
    finite = [value for value in values if value is not None]
    return t_interval(finite) if len(finite) == len(values) else None


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def _loss(interval: Interval | None, row: Standing) -> str:
    if interval is None:
        return "diverged"
    half = "" if interval.half is None else f" ± {number(interval.half)}"
    return number(interval.mean) + half


def _duration(microseconds: float) -> str:
    if microseconds < 10_000:
        return f"{microseconds:.0f} µs"
    return f"{microseconds / 1e3:.0f} ms"


def _plus_minus(interval: Interval, times: float, digits: str) -> str:
    half = "" if interval.half is None else f" ± {interval.half * times:{digits}}"
    return f"{interval.mean * times:{digits}}{half}"
