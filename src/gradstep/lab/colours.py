"""One colour for each rule, in every picture."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from gradstep.lab.optimizers import GIVEN_BY_HAND

#: Okabe and Ito's colours, which people who do not see red and green apart can tell.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6BB1"]


#: Where the numbers of all that are not given by hand begin: it stays, and so do their colours.
_OTHERS = 22


def number_of(name: str) -> int:
    """A rule's own number: its colour is that of the number's rest by eight, its line the whole.

    It is of the name alone, so that a new rule leaves all other rules their colours.
    """
    if name in GIVEN_BY_HAND:
        return GIVEN_BY_HAND.index(name)
    return _OTHERS + zlib.crc32(name.encode()) % (1 << 20)


def colour_of(name: str) -> str:
    """A rule's colour, by the name that it has on the command line."""
    return COLOURS[number_of(name) % len(COLOURS)]


def looks_of(names: Iterable[str], lines: int) -> dict[str, int]:
    """Numbers of rules that stand in one picture: their own, or another one of the same colour
    where a rule before has that colour and line.

    Args:
        names: of the rules.
        lines: how many kinds of lines there are.
    """
    found: dict[str, int] = {}
    for name in names:
        number = number_of(name)
        for _ in range(lines):
            if number % (lines * len(COLOURS)) not in {
                n % (lines * len(COLOURS)) for n in found.values()
            }:
                break
            number += len(COLOURS)
        found[name] = number
    return found
