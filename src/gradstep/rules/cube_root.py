"""The cube root, in the language that rules are written in."""

from __future__ import annotations

from typing import Any

from gradstep.rule import maximum, sqrt


def cube_root(x: Any) -> Any:
    """The cube root of what is 0 or more, to a few roundings; 1e-12 for what is below 1e-36.

    By square roots and Halley's iteration, which are faster than ``x ** (1 / 3)``: that is worked
    out element by element.
    """
    x = maximum(x, 1e-36)  # the iteration divides by it; a choice of results would be a branch
    fourth = sqrt(sqrt(x))
    sixteenth = sqrt(sqrt(fourth))
    y = fourth * sixteenth * sqrt(sqrt(sixteenth))  # x to the power 21/64
    for _ in range(3):  # each one cubes the relative error, of 0.4 at most for 1e-30 to 1e30
        cube = y * y * y
        y = y * ((cube + 2 * x) / (2 * cube + x))
    return y
