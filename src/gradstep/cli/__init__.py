"""The command ``gradstep``. Only the chosen command imports what it needs, torch included."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

COMMANDS = ("update", "train", "explain", "rules", "compare", "doctor", "audit", "bench")


class _Parser(argparse.ArgumentParser):
    """Answers a bad argument with one line, without the usage that argparse puts before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        with suppress(AttributeError):  # Python 3.10 writes to a stream that is closed
            super()._print_message(message, file)


def build_parser() -> argparse.ArgumentParser:
    """The parser with all commands; each module of a command adds its own."""
    import gradstep

    parser = _Parser(
        prog="gradstep",
        description="Update the weights of a network with their gradients, and see how it learns.",
        epilog="'gradstep COMMAND --help' explains a command. Begin with 'gradstep update'.",
    )
    parser.add_argument("--version", action="version", version=f"gradstep {gradstep.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name in COMMANDS:
        import_module(f"gradstep.cli.{name}").add_parser(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 if all went well, 2 for a bad argument,
    1 for a failure on the way, 130 after Ctrl-C."""
    _occupy_standard_streams()
    from gradstep.sight.ink import plain_letters

    with plain_letters():
        args = _read(arguments)
        if args is None:
            return 0
        if args.command != "doctor":
            return _run(args)
    return _run(args)  # which runs a script, whose streams are as Python has them


def _read(arguments: Sequence[str] | None) -> argparse.Namespace | None:
    """The arguments; None if there are none, and the help has been printed."""
    parser = build_parser()
    args, unknown = parser.parse_known_args(arguments)
    if unknown:
        name = f"gradstep {args.command}" if args.command else "gradstep"
        parser.exit(2, f"{name}: unknown argument {unknown[0]} (see {name} --help)\n")
    if args.command is None:
        parser.print_help()
        return None
    return args


def _run(args: argparse.Namespace) -> int:
    try:
        return int(import_module(f"gradstep.cli.{args.command}").run(args))
    except KeyboardInterrupt:
        print(f"gradstep {args.command}: stopped", file=sys.stderr)
        return 130


def _occupy_standard_streams() -> None:
    """Give a closed input, output or error stream (``>&-``) to the null device.

    Otherwise the next file to be opened, a checkpoint say, would take its place, and receive
    whatever a library prints.
    """
    while True:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor > 2:
            os.close(descriptor)
            return
