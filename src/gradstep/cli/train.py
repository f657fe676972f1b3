"""``gradstep train``: teach a LeNet to read digits, and watch it learn."""

from __future__ import annotations

import argparse
import dataclasses
import math
import shlex
import sys
from importlib.util import find_spec
from os import cpu_count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradstep.lab.errors import BadInput, DiskError, ProcessLost, SettingsError

if TYPE_CHECKING:
    from gradstep.lab.dataset import Dataset
    from gradstep.lab.processes import Processes
    from gradstep.lab.settings import Settings
    from gradstep.lab.watching import Watching

EPOCHS = 40
EPOCHS_OF_A_FOLDER = 10
BATCH_SIZE = 32
LR_DECAY = 0.95
SHIFT = 3
THREADS = 1
SHIFT_OF_A_FOLDER = 1

_EXAMPLES = """\
examples:
  gradstep train                              a few seconds; the results are in runs/001
  gradstep train --optimizer sgd,adam,lion    three side by side, from the same weights
  gradstep train --optimizer sgd --lr 0.01    smaller steps
  gradstep train --data FOLDER                MNIST, Fashion-MNIST or the like
  gradstep train --watch                      see what each step does to each layer
  gradstep train --resume runs/001            go on after Ctrl-C or a crash
  torchrun --nproc-per-node 2 -m gradstep train
                                              two processes share each batch

what it writes to the folder of the run:
  metrics.jsonl          loss, accuracy and times; a line for each epoch and optimizer
  curves.png             how loss and accuracy went
  filters.png            what the first layer looks for, before and after
  mistakes.png           the test images that are still read wrong
  checkpoint-0001.pt …   the weights and the optimizer's state after each epoch
  run.json               the settings
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the tree."""
    parser = subparsers.add_parser(
        "train",
        help="teach a LeNet to read digits, and watch it learn",
        description=(
            "Teach a LeNet, a network of 61,706 weights, to read handwritten digits. "
            "Without any option it takes the 1,797 digits that come with scikit-learn."
        ),
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to train")
    what.add_argument(
        "--optimizer",
        metavar="NAME[,NAME…]",
        help="one or several, side by side: sgd, momentum, nesterov, adam, adamw, rmsprop, "
        "adagrad, lion, adafactor, nadam, radam, adamax, adadelta, asgd, rprop, muon+adamw, "
        "lbfgs, or another rule that 'gradstep rules' lists (default: adamw)",
    )
    what.add_argument(
        "--data",
        type=_path,
        metavar="DIR",
        help="a folder with the four files of MNIST's format, gzipped or not "
        "(default: scikit-learn's digits)",
    )
    what.add_argument(
        "--epochs",
        type=_positive_int,
        metavar="N",
        help="how often to go through all images "
        f"(default: {EPOCHS}, with --data {EPOCHS_OF_A_FOLDER})",
    )
    how = parser.add_argument_group("how to train")
    how.add_argument(
        "--lr",
        type=_rates,
        metavar="X[,X…]",
        help="learning rate: how far each step goes; one for all optimizers or one for each "
        "(default: what suits each)",
    )
    how.add_argument(
        "--lr-decay",
        type=_share,
        metavar="X",
        help=f"after each epoch the learning rate is multiplied by this (default: {LR_DECAY})",
    )
    how.add_argument(
        "--batch-size",
        type=_positive_int,
        metavar="N",
        help=f"how many images a step learns from (default: {BATCH_SIZE})",
    )
    how.add_argument(
        "--shift",
        type=_shift,
        metavar="N",
        help="move each training image by up to N pixels at random, 0 to 16 "
        f"(default: {SHIFT}, with --data {SHIFT_OF_A_FOLDER})",
    )
    how.add_argument(
        "--train-limit",
        type=_positive_int,
        metavar="N",
        help="learn from the first N training images only, for a quick try (default: all)",
    )
    how.add_argument(
        "--seed",
        type=_seed,
        metavar="N",
        help="another number gives other first weights, another order and another choice of "
        "test digits; the same number gives the same result (default: 0)",
    )
    how.add_argument(
        "--threads",
        type=_threads,
        metavar="N",
        help="how many processor cores to use at once; for so small a network more than one gains "
        f"little, and loses much while another program is busy (default: {THREADS})",
    )
    where = parser.add_argument_group("where the results go")
    place = where.add_mutually_exclusive_group()
    place.add_argument(
        "--out",
        type=_path,
        metavar="DIR",
        help="a new folder (default: runs/001, or the next number that is free)",
    )
    place.add_argument(
        "--resume",
        type=_path,
        metavar="DIR",
        help="go on with the run in this folder; it ends with the very same weights as if it had "
        "never stopped. A larger --epochs makes it longer",
    )
    where.add_argument(
        "--watch",
        action="store_true",
        help="show what steps do to each parameter while it learns, and draw it: watch.png",
    )
    where.add_argument(
        "--watch-to",
        type=_place,
        metavar="FILE",
        help="also keep that: a name that ends in .jsonl is for lines of JSON, a folder for "
        "TensorBoard",
    )
    where.add_argument(
        "--watch-every",
        type=_positive_int,
        metavar="N",
        help="watch the first step and each whose number N divides (default: 10)",
    )
    where.add_argument(
        "--quiet", action="store_true", help="print nothing but the table at the end"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from gradstep.lab.processes import ALONE, together

    directory: Path | None = args.resume
    processes = ALONE
    try:
        missing = _missing_packages(args)
        if missing:
            return _fail(f"needs {' and '.join(missing)}: pip install 'gradstep[lab]'")

        from gradstep.lab.repeatable import prepare_environment, repeatable

        prepare_environment()

        from gradstep.lab.run import held, make_directory, read_settings

        with together() as processes:
            if not processes.leads:  # what goes wrong for all, the leading process says
                from gradstep.lab.followers import follow

                follow(processes)
                return 0
            if directory is None:
                settings = _new_settings(args)
                processes.check(settings.batch_size)
                with repeatable(settings.threads):
                    data = _load(settings)
                    directory = make_directory(args.out)
                    with held(directory):
                        return _begin(directory, settings, data, processes, args)
            with held(directory):
                settings, facts = read_settings(directory)
                processes.check(settings.batch_size)
                with repeatable(settings.threads):
                    return _resume(directory, settings, facts, processes, args)
    except KeyboardInterrupt:
        if processes.leads:
            print(f"gradstep train: stopped{_way_on(directory)}", file=sys.stderr)
        return 130
    except BadInput as error:
        return _fail(str(error) if processes.leads else f"process {processes.rank}: {error}")
    except ProcessLost as error:
        return _fail(f"{error}{_way_on(directory)}", code=1) if processes.leads else 1
    except DiskError as error:
        return _fail(f"{error}{_way_on(directory)}", code=1)


def _begin(
    directory: Path,
    settings: Settings,
    data: Dataset,
    processes: Processes,
    args: argparse.Namespace,
) -> int:
    from gradstep.lab.followers import hand_out
    from gradstep.lab.run import begin_run
    from gradstep.lab.session import finish

    run = begin_run(directory, settings, data, processes)
    hand_out(run, data)
    finish(run, data, args.quiet, _watching(args))
    return 0


def _resume(
    directory: Path,
    settings: Settings,
    facts: dict[str, Any],
    processes: Processes,
    args: argparse.Namespace,
) -> int:
    from gradstep.lab.followers import hand_out
    from gradstep.lab.progress import write
    from gradstep.lab.run import resume_run
    from gradstep.lab.session import finish

    wanted = _compared(settings, args)
    data = _load(settings)
    run, notes = resume_run(directory, wanted, facts, data, processes)
    for note in notes:
        print(f"gradstep train: note: {note}", file=sys.stderr)
    if wanted != settings:
        run.keep_settings()
    hand_out(run, data)
    done = f"{run.training.epoch} of {wanted.epochs} epochs done"
    if run.finished:
        write(f"{directory} is finished: {done}; a larger --epochs would make it longer")
    elif not args.quiet:
        write(f"Going on with {directory}: {done}.")
    finish(run, data, args.quiet, _watching(args))
    return 0


def _watching(args: argparse.Namespace) -> Watching | None:
    """What to watch; None if nothing of it was asked for."""
    if not (args.watch or args.watch_to or args.watch_every):
        return None
    from gradstep.lab.watching import EVERY, Watching

    return Watching(args.watch_every or EVERY, args.watch_to)


def _load(settings: Settings) -> Dataset:
    from gradstep.lab.run import load_data

    return load_data(settings)


def _new_settings(args: argparse.Namespace) -> Settings:
    """The settings of a new run: what was given, and the defaults for the rest."""
    from gradstep.lab.optimizers import DEFAULT, TRAINABLE
    from gradstep.lab.settings import Settings

    optimizers = _names(DEFAULT if args.optimizer is None else args.optimizer)
    folder = args.data is not None
    return Settings(
        optimizers=optimizers,
        lrs=_rate_for_each(args.lr, optimizers) or tuple(TRAINABLE[n].lr for n in optimizers),
        epochs=args.epochs or (EPOCHS_OF_A_FOLDER if folder else EPOCHS),
        batch_size=args.batch_size or BATCH_SIZE,
        lr_decay=LR_DECAY if args.lr_decay is None else args.lr_decay,
        shift=(SHIFT_OF_A_FOLDER if folder else SHIFT) if args.shift is None else args.shift,
        seed=args.seed or 0,
        threads=args.threads or THREADS,
        data=str(args.data.resolve()) if folder else None,
        train_limit=args.train_limit,
    )


def _compared(settings: Settings, args: argparse.Namespace) -> Settings:
    """The settings to go on with: the run's own, with more epochs if more were asked for.

    Raises SettingsError if an argument asks for anything else than the run began with.
    """
    wanted = {
        "optimizers": None if args.optimizer is None else _names(args.optimizer),
        "lrs": _rate_for_each(args.lr, settings.optimizers),
        "batch_size": args.batch_size,
        "lr_decay": args.lr_decay,
        "shift": args.shift,
        "seed": args.seed,
        "threads": args.threads,
        "data": None if args.data is None else str(args.data.resolve()),
        "train_limit": args.train_limit,
    }
    for name, value in wanted.items():
        own = getattr(settings, name)
        if value is None or value == own:
            continue
        option = "--" + {"optimizers": "optimizer", "lrs": "lr"}.get(name, name.replace("_", "-"))
        has = f"has no {option}" if own is None else f"has {option} {_written(own)}"
        raise SettingsError(
            f"the run in {args.resume} {has} and cannot go on with {_written(value)}; "
            f"leave {option} out"
        )
    epochs = args.epochs or settings.epochs
    if epochs < settings.epochs:
        raise SettingsError(
            f"the run in {args.resume} has {settings.epochs} epochs; --epochs can only raise that"
        )
    return dataclasses.replace(settings, epochs=epochs)


def _written(value: object) -> str:
    """A setting as it is written on the command line."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _names(text: str) -> tuple[str, ...]:
    """The optimizers in ``a,b,c``, each checked."""
    from gradstep.lab.optimizers import check_name

    names = tuple(check_name(name.strip()) for name in text.split(","))
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(f"argument --optimizer: {name} is named twice")
    return names


def _rate_for_each(
    rates: tuple[float, ...] | None, optimizers: tuple[str, ...]
) -> tuple[float, ...] | None:
    """One learning rate for each optimizer; None if none was given."""
    if rates is None:
        return None
    if len(rates) == 1:
        return rates * len(optimizers)
    if len(rates) != len(optimizers):
        raise SettingsError(
            f"argument --lr: {len(rates)} learning rates for {len(optimizers)} optimizers; "
            "give one for all or one for each"
        )
    return rates


def _missing_packages(args: argparse.Namespace) -> list[str]:
    """The optional packages that the command needs and that are not installed."""
    needed = {"matplotlib": "matplotlib"}
    if args.data is None:
        needed["sklearn"] = "scikit-learn"
    return [name for module, name in needed.items() if find_spec(module) is None]


def _way_on(directory: Path | None) -> str:
    """How to go on with the run in the folder, if one has begun there."""
    if directory is None or not (directory / "run.json").exists():
        return "; nothing has been written"
    return f"; go on with: gradstep train --resume {shlex.quote(str(directory))}"


def _fail(message: str, code: int = 2) -> int:
    print(f"gradstep train: {message}", file=sys.stderr)
    return code


# What an argument may be. argparse makes one line of each error.


def _positive_int(text: str) -> int:
    return _whole_number(text, 1, 10**9)


def _shift(text: str) -> int:
    return _whole_number(text, 0, 16)


def _threads(text: str) -> int:
    return _whole_number(text, 1, max(64, cpu_count() or 1))


def _seed(text: str) -> int:
    return _whole_number(text, 0, 2**32 - 1)


def _whole_number(text: str, lowest: int, highest: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if not lowest <= value <= highest:
        raise argparse.ArgumentTypeError(f"{text} is not from {lowest} to {highest}")
    return value


def _share(text: str) -> float:
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return value


def _rates(text: str) -> tuple[float, ...]:
    rates = tuple(_number(part) for part in text.split(","))
    for rate in rates:
        if not 0 < rate < math.inf:
            raise argparse.ArgumentTypeError(f"{text}: a learning rate must be above 0 and finite")
    return rates


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("an empty name is no folder")
    return Path(text)


def _place(text: str) -> Path:
    path = _path(text)
    if path.suffix not in ("", ".jsonl") and not path.is_dir():
        raise argparse.ArgumentTypeError(
            f"{text}: cannot tell what to write there; a name that ends in .jsonl is for lines of "
            "JSON, a folder, without an ending, for TensorBoard"
        )
    return path
