"""``--language``, of the commands that speak more than one."""

from __future__ import annotations

import argparse
import sys
from typing import Any

LANGUAGES = ("en", "zh")


def add_language(parser: Any) -> None:
    """Add the option to a parser, or to a group of its options."""
    parser.add_argument(
        "--language",
        choices=LANGUAGES,
        metavar="NAME",
        help="speak English (en) or Chinese (zh) (default: that of the locale)",
    )


def language_of(args: argparse.Namespace, command: str) -> str:
    """The language to speak: the one that is asked for, else that of the locale.

    English where the output has no letters for it; who asked for the other is told so.
    """
    from gradstep.sight.language import can_show, preferred, say

    wanted: str = args.language or preferred()
    if can_show(wanted, sys.stdout):
        return wanted
    if args.language:
        encoding = getattr(sys.stdout, "encoding", None)
        print(f"{command}: {say('no letters', encoding=encoding)}", file=sys.stderr)
    return "en"
