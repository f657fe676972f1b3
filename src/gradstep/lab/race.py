"""A race: the same training by several rules, at several learning rates, from several seeds.

    race.json                           what all runs have in common, written first
    results/adam-lr0.002-seed0.json …   one file a run, written when it is done
    results.json                        all of it, with means and intervals
    index.html                          the page

A run depends on nothing but its rule, learning rate and seed, and on what race.json says. So a race
that goes on makes the runs that are missing and no other, and may get more rules, rates and seeds.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from gradstep.lab.atomic import is_unfinished, write_atomically
from gradstep.lab.errors import DiskError, RunError, SettingsError

FORMAT = 1
RACE_FILE = "race.json"
RESULTS_FOLDER = "results"
RESULTS_FILE = "results.json"
PAGE_FILE = "index.html"

#: What one run left: see :func:`gradstep.lab.race_worker.race_run`.
Result = dict[str, Any]


@dataclass(frozen=True)
class Course:
    """What all runs of a race have in common.

    ``model`` is ``module:function`` or None for LeNet, and for a small transformer over text;
    ``data`` a folder in MNIST's format or None for scikit-learn's digits; ``text`` a file or
    "python", in place of images. ``epochs`` or ``steps`` is given, the other is None. ``lr_decay``
    multiplies the learning rate after each epoch; with ``cosine`` it rises over the first twentieth
    of the steps and falls along half a cosine to 0 instead. ``shift`` is in pixels. ``train_limit``
    and ``test_limit`` keep only so many images; None keeps all.
    """

    model: str | None
    data: str | None
    epochs: int | None
    steps: int | None
    batch_size: int
    lr_decay: float
    shift: int
    train_limit: int | None
    text: str | None = None
    test_limit: int | None = None
    cosine: bool | None = None

    def lr_share(self, step: int, batches: int) -> float:
        """What the learning rate is multiplied by in a step, counted from 0."""
        if not self.cosine:
            return self.lr_decay ** (step // batches)
        total = self.total_steps(batches)
        rise = max(1, total // 20)
        return min(1.0, (step + 1) / rise) * (1 + math.cos(math.pi * step / total)) / 2

    def to_json(self) -> dict[str, Any]:
        """The fields, but those that came later only where they say something."""
        content = asdict(self)
        return {
            key: value
            for key, value in content.items()
            if value is not None or key not in ("text", "test_limit", "cosine")
        }

    def total_steps(self, batches: int) -> int:
        """The steps of a run whose epochs have so many batches."""
        return self.steps if self.steps is not None else (self.epochs or 1) * batches


@dataclass(frozen=True)
class Entry:
    """One run: a rule at a learning rate, from the first weights and batches of a seed."""

    optimizer: str
    lr: float
    seed: int

    @property
    def name(self) -> str:
        """The name of its file, without the ending."""
        return f"{self.optimizer}-lr{self.lr!r}-seed{self.seed}"


@dataclass(frozen=True)
class Sweep:
    """The learning rates to try. Made by :func:`read_sweep`.

    ``rates`` are the same for every rule; None for ``count`` rates around each rule's own.
    """

    rates: tuple[float, ...] | None
    count: int = 7

    def around(self, own: float) -> tuple[float, ...]:
        """The rates for a rule whose own learning rate is ``own``, from small to large."""
        if self.rates is not None:
            return self.rates
        middle = (self.count - 1) / 2
        return tuple(rounded(own * 10 ** ((i - middle) / 2)) for i in range(self.count))


def read_sweep(text: str) -> Sweep:
    """``lr``, or ``lr:5`` for 5 rates and not 7; ``lr=1e-4:1e-1:7`` for 7 rates at equal ratios; or
    ``lr=0.01,0.1`` for these.

    Raises SettingsError if it is none of them.
    """
    name, equals, value = text.partition("=")
    name, colon, own_count = name.strip().partition(":")
    if name != "lr" or (equals and (colon or not value)):
        raise SettingsError(
            f"argument --sweep: {text!r} is not lr, lr:HOW_MANY, lr=LOWEST:HIGHEST:HOW_MANY or "
            "lr=A,B,C"
        )
    if colon and not (own_count.isdecimal() and 2 <= int(own_count) <= 100):
        raise SettingsError(f"argument --sweep: {text!r} needs 2 to 100 rates after the colon")
    if not equals:
        return Sweep(None, int(own_count)) if colon else Sweep(None)
    try:
        if ":" in value:
            low_text, high_text, count_text = value.split(":")
            low, high, count = float(low_text), float(high_text), int(count_text)
            if not (0 < low < high < math.inf and 2 <= count <= 100):
                raise SettingsError(
                    f"argument --sweep: {value} needs 0 < LOWEST < HIGHEST and 2 to 100 rates"
                )
            ratio = math.log(high / low) / (count - 1)
            rates = [low, *(rounded(low * math.exp(i * ratio)) for i in range(1, count - 1)), high]
        else:
            rates = [float(part) for part in value.split(",")]
    except ValueError:
        raise SettingsError(
            f"argument --sweep: {value!r} is not LOWEST:HIGHEST:HOW_MANY or A,B,C in numbers"
        ) from None
    for rate in rates:
        if not 0 < rate < math.inf:
            raise SettingsError(f"argument --sweep: {rate:g} is not above 0 and finite")
    return Sweep(tuple(sorted(set(rates))))


def rounded(rate: float) -> float:
    """The rate to three digits, as a person would write it."""
    return float(f"{rate:.3g}")


def entries(rates: Mapping[str, Sequence[float]], seeds: int) -> list[Entry]:
    """All runs of a race: seed by seed, so that a race which is stopped early has compared all
    rules on fewer seeds."""
    return [
        Entry(optimizer, lr, seed)
        for seed in range(seeds)
        for optimizer, own in rates.items()
        for lr in own
    ]


class RaceFolder:
    """The folder of a race.

    Raises DiskError where the disk does not take a file, RunError where the folder holds something
    else.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def begin(self, course: Course, facts: Mapping[str, Any]) -> list[str]:
        """Begin the race, or go on with the one that is there; returns notes.

        ``facts`` are the fingerprints of data and model, and ``made_with``, the versions that the
        last bits depend on. Raises RunError if the race that is there has another course, another
        model or other data.
        """
        path = self.directory / RACE_FILE
        try:
            names = {p.name for p in self.directory.iterdir() if not is_unfinished(p)}
        except OSError as error:
            raise RunError(f"cannot read {self.directory}: {error.strerror}") from None
        if RACE_FILE in names:
            return self._check(path, course, facts)
        if names:
            raise RunError(
                f"{self.directory} is not empty and holds no race: choose a new folder for --out"
            )
        try:
            (self.directory / RESULTS_FOLDER).mkdir()
        except OSError as error:
            raise RunError(f"cannot write to {self.directory}: {error.strerror}") from None
        content = {"format": FORMAT, "course": course.to_json(), **facts}
        self.write(RACE_FILE, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
        return []

    def _check(self, path: Path, course: Course, facts: Mapping[str, Any]) -> list[str]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise RunError(f"{path} is of another version of gradstep compare")
            own = Course(**content["course"])
            before = {key: content[key] for key in facts}
        except OSError as error:
            raise RunError(f"cannot read {path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path} is damaged: {type(error).__name__}: {error}") from None
        for field in fields(Course):
            then, now = getattr(own, field.name), getattr(course, field.name)
            if then != now:
                option = "--" + field.name.replace("_", "-")
                raise RunError(
                    f"the race in {self.directory} has {_option(option, then)}, not "
                    f"{_option(option, now)}: choose another folder for --out"
                )
        for what in ("data", "model"):
            if before[what] != facts[what]:
                raise RunError(
                    f"the {what} of the race in {self.directory} has changed since it began: "
                    "choose another folder for --out"
                )
        return [
            f"the race began with {what} {then!r}, now {now!r}: its runs may differ by that"
            for what, now in facts["made_with"].items()
            if (then := before["made_with"].get(what)) != now
        ]

    def result_path(self, entry: Entry) -> Path:
        """Where the result of a run lies, once it is done."""
        return self.directory / RESULTS_FOLDER / f"{entry.name}.json"

    def results(self, wanted: Sequence[Entry]) -> dict[Entry, Result]:
        """The results that are there, of those wanted. A file that is damaged counts as none."""
        found = {}
        for entry in wanted:
            try:
                result = json.loads(self.result_path(entry).read_text(encoding="utf-8"))
                if result["format"] == FORMAT and result["entry"] == asdict(entry):
                    found[entry] = result
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return found

    def write(self, name: str, content: bytes) -> None:
        """Write a file of the folder."""
        path = self.directory / name
        try:
            write_atomically(path, content)
        except OSError as error:
            raise DiskError(f"cannot write {path}: {error.strerror or error}") from error


def usual_folder(course: Course) -> Path:
    """Where a race goes without ``--out``: the same for the same course, so that it goes on."""
    digest = hashlib.sha256(json.dumps(course.to_json(), sort_keys=True).encode()).hexdigest()
    return Path("runs") / f"compare-{digest[:8]}"


def _option(option: str, value: object) -> str:
    return f"no {option}" if value is None else f"{option} {value}"
