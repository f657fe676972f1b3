"""Equations with numbers put in, printed with so many digits that each holds as it stands.

    0.05132 − 0.1 · 0.005134 = 0.05081

Four digits are enough nearly always. Where they are not, the operands get more, until a reader who
works out the left side from the printed digits gets the printed right side. Where a number was
rounded by the machine so that no digits can hide it, both are shown: the one on paper and the one
that was kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from typing import Any

import numpy

from gradstep.rule.graph import Node
from gradstep.rule.latex import latex_number, write_latex
from gradstep.rule.notation import write
from gradstep.rule.operations import OPERATIONS

#: Digits to begin with, and to end with: what tells any two float32, or float64, apart.
FEWEST = 4
_MOST = {numpy.float32: 9, numpy.float64: 17}

#: Paper: far more digits than any number has, and no errors: IEEE's inf and nan.
_PAPER = Context(prec=60, traps=[])


@dataclass(frozen=True)
class Equation:
    """One worked-out line.

    Attributes:
        numbers: the formula with the numbers put in.
        paper: what the numbers give, exactly worked out and rounded to the digits shown.
        kept: the machine's own result, where no digits can hide that it was rounded; None where
            ``paper`` shows it as well.
        latex: ``numbers`` as LaTeX.
    """

    numbers: str
    paper: str
    kept: str | None = None
    latex: str = field(default="", compare=False, repr=False)


def decimal(value: Any) -> Decimal:
    """A float, NumPy number or fraction as a decimal; fractions to 60 digits."""
    if isinstance(value, Fraction):
        return _PAPER.divide(Decimal(value.numerator), Decimal(value.denominator))
    return Decimal(float(value))


def digits_text(value: Any, digits: int) -> str:
    """A number with at most so many significant digits; fewer where they say it all.

    Takes floats, NumPy's numbers, fractions and decimals. A float's shortest text counts as all it
    has to say: 0.1, not 0.1000; unless so many digits are wanted that they tell the two apart.
    """
    exact = value if isinstance(value, Decimal) else decimal(value)
    if exact.is_nan() or exact.is_infinite():
        return "nan" if exact.is_nan() else "inf" if exact > 0 else "−inf"
    if not isinstance(value, Decimal | Fraction):
        own = 6 if isinstance(value, numpy.float32) else 15
        shortest = Decimal(str(value)).normalize(_PAPER)
        if digits <= own and len(shortest.as_tuple().digits) <= digits:
            return _written(shortest)
    rounded = Context(prec=digits, traps=[]).plus(exact)
    if rounded == exact:
        return _written(rounded.normalize(_PAPER))
    if rounded != 0:
        # Trailing zeros are digits too: 0.5000 is not quite 0.5, nor is 1579e1 quite 15790.
        place = Decimal(1).scaleb(rounded.adjusted() - digits + 1)
        rounded = rounded.quantize(place, context=_PAPER)
    return _written(rounded, fixed=rounded.adjusted() < digits)


def shortest_text(value: Any) -> str:
    """A number with as few digits as tell it from every other of its NumPy type."""
    number = float(value)
    if number != number or number in (float("inf"), -float("inf")):
        return digits_text(number, FEWEST)
    return _written(Decimal(str(value)).normalize(_PAPER))


def _written(value: Decimal, fixed: bool = True) -> str:
    sign = "−" if value < 0 else ""
    if value == 0:
        return "0"
    digits = value.as_tuple().digits
    power = value.adjusted()
    if fixed and -4 <= power < 7:
        return sign + f"{abs(value):f}"
    mantissa = "".join(map(str, digits))
    mantissa = mantissa[0] + ("." + mantissa[1:] if len(mantissa) > 1 else "")
    return f"{sign}{mantissa}e{power}"


def read_back(text: str) -> Decimal:
    """The number that a printed one says."""
    return Decimal(text.replace("−", "-"))


def equation(
    node: Node,
    is_leaf: Callable[[Node], bool],
    values: Mapping[int, Any],
    unlike: Any = None,
    real: Any = numpy.float32,
) -> Equation:
    """Put numbers into an expression, with as many digits as it takes.

    Args:
        node: the expression; :func:`chosen` has removed its choices.
        is_leaf: the nodes below that stand for a number. Inputs and constants always do.
        values: id -> value, for the leaves and for ``node``.
        unlike: a value that the result must not look like, if it is another: the weight before.
        real: the type that the value was worked out in.
    """
    leaves = _leaves(node, is_leaf)
    value = values[id(node)]
    most = 17 if isinstance(value, Fraction) else _MOST[real]
    known: dict[int, tuple[str, Decimal]] = {}
    printed: dict[int, dict[int, str]] = {}

    def put_in(digits: int) -> tuple[str, Decimal]:
        if digits not in known:
            texts = printed[digits] = {k: digits_text(values[k], digits) for k in leaves}
            text = write(node, lambda n: texts.get(id(n)), product=" · ")
            with localcontext(_PAPER):
                paper = _work_out(node, {k: read_back(t) for k, t in texts.items()})
            known[digits] = text, paper
        return known[digits]

    def made(digits: int, paper: str, kept: str | None = None) -> Equation:
        texts = {key: latex_number(text) for key, text in printed[digits].items()}
        latex = write_latex(node, lambda n: texts.get(id(n)))
        return Equation(known[digits][0], paper, kept, latex)

    def tells_apart(digits: int) -> bool:
        same = unlike is None or float(unlike) == float(value)
        return same or _differ(digits_text(value, digits), digits_text(unlike, digits))

    fewest = next((d for d in range(FEWEST, most + 1) if tells_apart(d)), most)
    for shown in [*range(fewest, most + 1), *range(FEWEST - 1, 0, -1)]:
        if shown < FEWEST and not tells_apart(shown):
            continue
        for digits in range(max(FEWEST, shown), most + 1):
            if _agree(put_in(digits)[1], decimal(value), shown):
                return made(digits, digits_text(value, shown))
    paper = put_in(most)[1]
    for shown in range(fewest, most + 4):
        on_paper, kept = digits_text(paper, shown), digits_text(value, shown)
        if _differ(on_paper, kept):
            return made(most, on_paper, kept)
    return made(most, digits_text(paper, most), digits_text(value, most))


def _differ(a: str, b: str) -> bool:
    return read_back(a) != read_back(b)


def _agree(paper: Decimal, value: Decimal, digits: int) -> bool:
    """Whether both are the same number, rounded where the value has that many digits."""
    if not (paper.is_finite() and value.is_finite()) or value == 0:
        return paper == value or (paper.is_nan() and value.is_nan())
    place = Decimal(1).scaleb(value.adjusted() - digits + 1)
    return paper.quantize(place, context=_PAPER) == value.quantize(place, context=_PAPER)


def _leaves(node: Node, is_leaf: Callable[[Node], bool]) -> set[int]:
    found: set[int] = set()
    pending = [node]
    while pending:
        current = pending.pop()
        ends = not current.arguments or (current is not node and is_leaf(current))
        if ends:
            found.add(id(current))
        else:
            pending.extend(current.arguments)
    return found


def _work_out(node: Node, known: Mapping[int, Decimal]) -> Decimal:
    if id(node) in known:
        return known[id(node)]
    arguments = [_work_out(a, known) for a in node.arguments]
    row = OPERATIONS[node.operation]
    return (row.paper or row.number)(*arguments)
