"""``gradstep compare``: a race of the rules, over seeds and learning rates, as one page."""

from __future__ import annotations

import argparse
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradstep.cli import arguments
from gradstep.lab.errors import BadInput, DiskError, ProcessLost, SettingsError

if TYPE_CHECKING:
    from gradstep.lab.race import Course, Entry

OPTIMIZERS = "sgd,momentum,adam,lion"
SEEDS = 5
EPOCHS = 10
BATCH_SIZE = 32
LR_DECAY = 0.95
SHIFT = 3
SHIFT_OF_A_FOLDER = 1

_DESCRIPTION = """\
Race the rules: train the same network with each, from several seeds and at several learning rates,
in as many processes as there are cores. A seed is other first weights, another order of the images
and another choice of the digits for the test; all rules get the same. The results are a table with
confidence intervals, and one HTML page that holds everything and needs no network: curves with
bands, what each learning rate comes to, the time of a step, and the paths over loss surfaces.
"""

_EXAMPLES = """\
examples:
  gradstep compare --optimizer sgd,adam,lion             each at the rate that suits it, 5 seeds
  gradstep compare --optimizer sgd,adam --sweep lr       seven rates each, around its own
  gradstep compare --sweep lr=1e-4:1:9 --seeds 3         nine rates from 0.0001 to 1 for all
  gradstep compare --model my_nets:small --steps 500     a network of your own
  gradstep compare --data FOLDER --epochs 2              MNIST, Fashion-MNIST or the like
  gradstep compare --text --steps 400 --cosine           a small transformer over Python's help

After Ctrl-C or a crash the same command goes on: a run that is done is not made again. So one can
also add rules, rates and seeds later.

what it writes to the folder:
  index.html         the page
  results.json       all numbers
  results/…          a file for each run
  race.json          what all runs have in common
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the tree."""
    parser = subparsers.add_parser(
        "compare",
        help="race the rules, over seeds and learning rates, and see it on a page",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=arguments.Help,
    )
    what = parser.add_argument_group("what to race")
    what.add_argument(
        "--optimizer",
        default=OPTIMIZERS,
        metavar="NAME[,NAME…]",
        help="the rules, as 'gradstep train' takes them: sgd, momentum, nesterov, adam, adamw, "
        "rmsprop, adagrad, lion, adafactor, nadam, radam, lamb, lbfgs and so on, or all of them "
        f"(default: {OPTIMIZERS})",
    )
    what.add_argument(
        "--sweep",
        metavar="lr[=…]",
        help="try several learning rates: lr takes seven around each rule's own, half a decade "
        "apart, lr:5 five; lr=LOWEST:HIGHEST:HOW_MANY these for all; lr=A,B,C these",
    )
    what.add_argument(
        "--seeds",
        type=arguments.whole(1, 1000),
        default=SEEDS,
        metavar="N",
        help=f"from how many seeds (default: {SEEDS}; one gives no intervals)",
    )
    on = parser.add_argument_group("on what")
    on.add_argument(
        "--model",
        metavar="MODULE:FUNCTION",
        help="a function without arguments, in my_nets.py for my_nets:function, that returns an "
        "nn.Module: images (n, 1, 32, 32) in, ten scores each out (default: LeNet; "
        "gradstep.lab.resnet:ResNet is there, too)",
    )
    over = on.add_mutually_exclusive_group()
    over.add_argument(
        "--data",
        type=arguments.path,
        metavar="DIR",
        help="a folder with the four files of MNIST's format, gzipped or not "
        "(default: scikit-learn's digits)",
    )
    over.add_argument(
        "--text",
        nargs="?",
        const="python",
        metavar="FILE",
        help="in place of images a text in UTF-8, of which a small transformer foretells each next "
        "character (without FILE: the topics of Python's help(), which Python ships)",
    )
    on.add_argument(
        "--train-limit",
        type=arguments.count,
        metavar="N",
        help="learn from the first N training images, or stretches of text, only (default: all)",
    )
    on.add_argument(
        "--test-limit",
        type=arguments.count,
        metavar="N",
        help="be tested on the first N test images, or stretches of text, only (default: all)",
    )
    how = parser.add_argument_group("how to train")
    length = how.add_mutually_exclusive_group()
    length.add_argument(
        "--epochs",
        type=arguments.whole(1, 10**6),
        metavar="N",
        help=f"how often to go through all images (default: {EPOCHS})",
    )
    length.add_argument(
        "--steps", type=arguments.count, metavar="N", help="how many steps, in place of epochs"
    )
    how.add_argument(
        "--batch-size",
        type=arguments.count,
        default=BATCH_SIZE,
        metavar="N",
        help=f"how many images a step learns from (default: {BATCH_SIZE})",
    )
    how.add_argument(
        "--lr-decay",
        type=arguments.share,
        default=LR_DECAY,
        metavar="X",
        help="after each epoch the learning rate is multiplied by this "
        f"(default: {LR_DECAY}, as 'gradstep train' has it)",
    )
    how.add_argument(
        "--cosine",
        action="store_true",
        help="let the learning rate rise over the first twentieth of the steps and then fall along "
        "half a cosine to 0, in place of --lr-decay",
    )
    how.add_argument(
        "--shift",
        type=arguments.whole(0, 16),
        metavar="N",
        help="move each training image by up to N pixels at random, 0 to 16 "
        f"(default: {SHIFT}, with --data {SHIFT_OF_A_FOLDER})",
    )
    how.add_argument(
        "--workers",
        type=arguments.whole(1, 1024),
        metavar="N",
        help="how many runs at a time, each in a process on one thread (default: one a core)",
    )
    where = parser.add_argument_group("where the results go")
    where.add_argument(
        "--out",
        type=arguments.path,
        metavar="DIR",
        help="a new folder, or that of a race to go on with (default: a folder in runs/ that is "
        "the same for the same settings)",
    )
    where.add_argument(
        "--same-loss-as",
        metavar="NAME",
        help="also say after how many steps and seconds each rule tests as well as this one of "
        "them does at its end",
    )
    where.add_argument(
        "--quiet", action="store_true", help="print nothing but the table at the end"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    if args.data is None and args.text is None and find_spec("sklearn") is None:
        return _fail("needs scikit-learn: pip install 'gradstep[lab]'")

    from gradstep.lab.repeatable import prepare_environment

    prepare_environment()

    from gradstep.lab.atomic import DirectoryInUse, held_alone
    from gradstep.lab.race import RaceFolder, usual_folder
    from gradstep.lab.race_session import (
        check_course,
        finish_race,
        make_folder,
        usable_processors,
    )

    directory: Path | None = None
    try:
        course, wanted = _race(args)
        checked = check_course(course)
        directory = args.out if args.out is not None else usual_folder(course)
        make_folder(directory)
        with held_alone(directory):
            workers = args.workers or usable_processors()
            race = RaceFolder(directory)
            finish_race(race, course, wanted, workers, checked, args.quiet, args.same_loss_as)
        return 0
    except DirectoryInUse:
        return _fail(f"another gradstep compare is at work in {directory}")
    except KeyboardInterrupt:
        print(f"gradstep compare: stopped{_way_on(directory)}", file=sys.stderr)
        return 130
    except BadInput as error:
        return _fail(str(error))
    except (ProcessLost, DiskError) as error:
        return _fail(f"{error}{_way_on(directory)}", code=1)


def _race(args: argparse.Namespace) -> tuple[Course, list[Entry]]:
    """What was asked for: what the runs have in common, and which they are."""
    from gradstep.lab.optimizers import TRAINABLE, check_name, choice
    from gradstep.lab.race import Course, entries, read_sweep

    if args.optimizer.strip() == "all":
        names = list(TRAINABLE)
    else:
        names = [check_name(name.strip()) for name in args.optimizer.split(",")]
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(f"argument --optimizer: {name} is named twice")
    rates: dict[str, tuple[float, ...]] = {name: (choice(name).lr,) for name in names}
    if args.sweep is not None:
        sweep = read_sweep(args.sweep)
        rates = {name: sweep.around(choice(name).lr) for name in names}
    if args.same_loss_as is not None and args.same_loss_as not in names:
        raise SettingsError(
            f"argument --same-loss-as: {args.same_loss_as!r} is not in the race, which is of "
            f"{', '.join(names)}"
        )
    folder, text = args.data is not None, args.text
    if text not in (None, "python"):
        text = str(Path(text).resolve())
    shift = args.shift
    if shift is None:
        shift = SHIFT_OF_A_FOLDER if folder else SHIFT
    course = Course(
        model=args.model,
        data=str(args.data.resolve()) if folder else None,
        epochs=None if args.steps is not None else args.epochs or EPOCHS,
        steps=args.steps,
        batch_size=args.batch_size,
        lr_decay=args.lr_decay,
        shift=0 if text is not None else shift,
        train_limit=args.train_limit,
        text=text,
        test_limit=args.test_limit,
        cosine=args.cosine or None,
    )
    return course, entries(rates, args.seeds)


def _way_on(directory: Path | None) -> str:
    """How to go on, once there is a folder."""
    if directory is None or not (directory / "race.json").exists():
        return "; nothing has been written"
    place = shlex.quote(str(directory))
    return f"; the runs that are done are in {place}, and the same command goes on from there"


def _fail(message: str, code: int = 2) -> int:
    print(f"gradstep compare: {message}", file=sys.stderr)
    return code
