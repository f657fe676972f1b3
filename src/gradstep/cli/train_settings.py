"""The settings of ``gradstep train``, from its arguments and the defaults."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from gradstep.lab.errors import SettingsError

if TYPE_CHECKING:
    from gradstep.lab.settings import Settings

EPOCHS = 40
EPOCHS_OF_A_FOLDER = 10
BATCH_SIZE = 32
LR_DECAY = 0.95
SHIFT = 3
THREADS = 1
SHIFT_OF_A_FOLDER = 1
#: Spelled out, since --help does not wait for torch; a test holds them to what there is.
STATE_DTYPES = ("float32", "bfloat16", "float16", "int8", "dynamic8", "float8", "int4")
LOW_PRECISIONS = ("nearest", "stochastic", "kahan", "remainder", "master")


def new_settings(args: argparse.Namespace) -> Settings:
    """The settings of a new run: what was given, and the defaults for the rest."""
    from gradstep.lab.optimizers import DEFAULT, choice
    from gradstep.lab.settings import Settings

    optimizers = _names(DEFAULT if args.optimizer is None else args.optimizer)
    stored = {"--state-dtype": args.state_dtype, "--low-precision": args.low_precision}
    for option, value in stored.items():
        if value is not None and "lbfgs" in optimizers:
            raise SettingsError(f"argument {option}: lbfgs stores what it knows in no such way")
    folder = args.data is not None
    return Settings(
        optimizers=optimizers,
        lrs=_rate_for_each(args.lr, optimizers) or tuple(choice(n).lr for n in optimizers),
        epochs=args.epochs or (EPOCHS_OF_A_FOLDER if folder else EPOCHS),
        batch_size=args.batch_size or BATCH_SIZE,
        lr_decay=LR_DECAY if args.lr_decay is None else args.lr_decay,
        shift=(SHIFT_OF_A_FOLDER if folder else SHIFT) if args.shift is None else args.shift,
        seed=args.seed or 0,
        threads=args.threads or THREADS,
        data=str(args.data.resolve()) if folder else None,
        train_limit=args.train_limit,
        state_dtype=args.state_dtype,
        low_precision=args.low_precision,
    )


def compared_settings(settings: Settings, args: argparse.Namespace) -> Settings:
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
        "state_dtype": args.state_dtype,
        "low_precision": args.low_precision,
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
