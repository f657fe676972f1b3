"""``gradstep train``: teach a LeNet to read digits, and watch it learn."""

from __future__ import annotations

import argparse
import shlex
import sys
from importlib.util import find_spec
from os import cpu_count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradstep.cli import arguments
from gradstep.cli.language import add_language, language_of
from gradstep.cli.train_settings import (
    BATCH_SIZE,
    EPOCHS,
    EPOCHS_OF_A_FOLDER,
    LOW_PRECISIONS,
    LR_DECAY,
    SHIFT,
    SHIFT_OF_A_FOLDER,
    STATE_DTYPES,
    THREADS,
    compared_settings,
    new_settings,
)
from gradstep.lab.errors import BadInput, DiskError, ProcessLost

if TYPE_CHECKING:
    from gradstep.lab.dataset import Dataset
    from gradstep.lab.processes import Processes
    from gradstep.lab.settings import Settings
    from gradstep.lab.watching import Watching

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
        formatter_class=arguments.Help,
    )
    what = parser.add_argument_group("what to train")
    what.add_argument(
        "--optimizer",
        metavar="NAME[,NAME…]",
        help="one or several, side by side: sgd, momentum, nesterov, adam, adamw, rmsprop, "
        "adagrad, lion, adafactor, nadam, radam, adamax, adadelta, asgd, rprop, muon+adamw, "
        "normuon+adamw, adamuon+adamw, soap_muon+adamw, muon_filters+adamw, lbfgs, or another "
        "rule that 'gradstep rules' lists (default: adamw)",
    )
    what.add_argument(
        "--data",
        type=arguments.path,
        metavar="DIR",
        help="a folder with the four files of MNIST's format, gzipped or not "
        "(default: scikit-learn's digits)",
    )
    what.add_argument(
        "--epochs",
        type=arguments.count,
        metavar="N",
        help="how often to go through all images "
        f"(default: {EPOCHS}, with --data {EPOCHS_OF_A_FOLDER})",
    )
    how = parser.add_argument_group("how to train")
    how.add_argument(
        "--lr",
        type=arguments.rates,
        metavar="X[,X…]",
        help="learning rate: how far each step goes; one for all optimizers or one for each "
        "(default: what suits each)",
    )
    how.add_argument(
        "--lr-decay",
        type=arguments.share,
        metavar="X",
        help=f"after each epoch the learning rate is multiplied by this (default: {LR_DECAY})",
    )
    how.add_argument(
        "--batch-size",
        type=arguments.count,
        metavar="N",
        help=f"how many images a step learns from (default: {BATCH_SIZE})",
    )
    how.add_argument(
        "--shift",
        type=arguments.whole(0, 16),
        metavar="N",
        help="move each training image by up to N pixels at random, 0 to 16 "
        f"(default: {SHIFT}, with --data {SHIFT_OF_A_FOLDER})",
    )
    how.add_argument(
        "--train-limit",
        type=arguments.count,
        metavar="N",
        help="learn from the first N training images only, for a quick try (default: all)",
    )
    how.add_argument(
        "--seed",
        type=arguments.seed,
        metavar="N",
        help="another number gives other first weights, another order and another choice of "
        "test digits; the same number gives the same result (default: 0)",
    )
    how.add_argument(
        "--state-dtype",
        choices=STATE_DTYPES,
        metavar="FORMAT",
        help="what the optimizer stores its states as: " + ", ".join(STATE_DTYPES),
    )
    how.add_argument(
        "--low-precision",
        choices=LOW_PRECISIONS,
        metavar="WAY",
        help="train weights of bfloat16, and keep what rounding loses: "
        + ", ".join(LOW_PRECISIONS),
    )
    how.add_argument(
        "--threads",
        type=arguments.whole(1, max(64, cpu_count() or 1)),
        metavar="N",
        help="how many processor cores to use at once; for so small a network more than one gains "
        f"little, and loses much while another program is busy (default: {THREADS})",
    )
    where = parser.add_argument_group("where the results go")
    place = where.add_mutually_exclusive_group()
    place.add_argument(
        "--out",
        type=arguments.path,
        metavar="DIR",
        help="a new folder (default: runs/001, or the next number that is free)",
    )
    place.add_argument(
        "--resume",
        type=arguments.path,
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
        type=arguments.records,
        metavar="FILE",
        help="also keep that: a name that ends in .jsonl is for lines of JSON, a folder for "
        "TensorBoard",
    )
    where.add_argument(
        "--watch-every",
        type=arguments.count,
        metavar="N",
        help="watch the first step and each whose number N divides (default: 10)",
    )
    where.add_argument(
        "--quiet", action="store_true", help="print nothing but the table at the end"
    )
    add_language(where)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from gradstep.sight.language import speaking

    with speaking(language_of(args, "gradstep train")):
        return _train(args)


def _train(args: argparse.Namespace) -> int:
    from gradstep.lab.processes import ALONE, together
    from gradstep.sight.language import say

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
                settings = new_settings(args)
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
            print(f"gradstep train: {say('stopped')}{_way_on(directory)}", file=sys.stderr)
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
    from gradstep.sight.language import say

    wanted = compared_settings(settings, args)
    data = _load(settings)
    run, notes = resume_run(directory, wanted, facts, data, processes)
    for note in notes:
        print(f"gradstep train: note: {note}", file=sys.stderr)
    if wanted != settings:
        run.keep_settings()
    hand_out(run, data)
    counts = {"folder": directory, "done": run.training.epoch, "epochs": wanted.epochs}
    if run.finished:
        write(say("finished", **counts))
    elif not args.quiet:
        write(say("going on", **counts))
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


def _missing_packages(args: argparse.Namespace) -> list[str]:
    """The optional packages that the command needs and that are not installed."""
    needed = {"matplotlib": "matplotlib"}
    if args.data is None:
        needed["sklearn"] = "scikit-learn"
    return [name for module, name in needed.items() if find_spec(module) is None]


def _way_on(directory: Path | None) -> str:
    """How to go on with the run in the folder, if one has begun there."""
    from gradstep.sight.language import say

    if directory is None or not (directory / "run.json").exists():
        return say("nothing written")
    return say("go on with", folder=shlex.quote(str(directory)))


def _fail(message: str, code: int = 2) -> int:
    print(f"gradstep train: {message}", file=sys.stderr)
    return code
