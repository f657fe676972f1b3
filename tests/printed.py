"""Work out what gradstep printed, from the print alone: a reader of its formulas for the tests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Context, Decimal, localcontext
from typing import Any

#: Signs that Python has in other letters. " = " is a comparison within a formula.
_SIGNS = {"−": "-", "·": "*", "²": "**2", "^": "**", "′": "_prime", "≤": "<=", "≥": ">=", "≠": "!="}
_PAPER = Context(prec=70, traps=[])


def as_python(text: str) -> str:
    """A formula as Python would have it."""
    text = re.sub(r"√([\w.′]+)", r"sqrt(\1)", text).replace("√(", "sqrt(")
    text = re.sub(r"\|([^|]+)\|", r"abs(\1)", text)
    for sign, python in _SIGNS.items():
        text = text.replace(sign, python)
    return text.replace(" = ", " == ")


def functions(sqrt: Any, exp: Any, log: Any, one: Any) -> dict[str, Any]:
    """What the formulas call, on numbers of one kind."""
    return {
        "sqrt": sqrt,
        "exp": exp,
        "log": log,
        "cbrt": lambda a: one * (int(a > 0) - int(a < 0)) * abs(a) ** (one / 3),
        "atan2": lambda y, x: angle(y, x, sqrt, one),
        "abs": abs,
        "max": max,
        "min": min,
        "sign": lambda a: one * (int(a > 0) - int(a < 0)),
        "lerp": lambda a, b, x: a + x * (b - a),
        "true": True,
        "false": False,
    }


def angle(y: Any, x: Any, sqrt: Any, one: Any) -> Any:
    """The angle of a point, by halving it until a few terms of the series are enough."""

    def arctangent(t: Any, halvings: int = 12) -> Any:
        for _ in range(halvings):
            t = t / (1 + sqrt(1 + t * t))
        return 2**halvings * sum(
            one * (-1) ** k * t ** (2 * k + 1) / (2 * k + 1) for k in range(12)
        )

    size = sqrt(x * x + y * y)
    return one * 0 if size == 0 else 2 * arctangent(y / (size + x))


def evaluate(text: str, names: Mapping[str, Any]) -> Any:
    """The value of a formula whose names have these values."""
    spelled = {name.replace("′", "_prime"): value for name, value in names.items()}
    return eval(as_python(text), {"__builtins__": {}}, spelled)


def evaluate_numbers(text: str) -> Decimal:
    """The value of a formula that has nothing but numbers in it, to 70 digits."""
    python = re.sub(
        r"(?<![\w.])(\d+\.?\d*(?:e-?\d+)?|inf|nan)(?![\w.])", r"D('\1')", as_python(text)
    )
    python = python.replace("**D('2')", "**2")
    names = functions(lambda a: a.sqrt(), lambda a: a.exp(), lambda a: a.ln(), Decimal(1))
    with localcontext(_PAPER):
        return +Decimal(eval(python, {"__builtins__": {}}, {**names, "D": Decimal}))


def unbroken(text: str) -> str:
    """A print with its broken lines whole again: pieces start with a sign, or behind a comma."""
    return re.sub(r"\n +(?=(?:[+−·/]|if|else) )|(?<=,)\n +", " ", text)


def number(text: str) -> Decimal:
    """A printed number."""
    return Decimal(text.replace("−", "-"))


def holds(numbers: str, result: str) -> bool:
    """Whether the left side, worked out, gives the right side to the digits that this shows."""
    found, shown = evaluate_numbers(numbers), number(result)
    if not (found.is_finite() and shown.is_finite()):
        return str(found) == str(shown) or (found.is_nan() and shown.is_nan())
    unit = Decimal(1).scaleb(int(shown.as_tuple().exponent))
    return abs(found - shown) <= unit / 2


def latex_as_text(latex: str) -> str:
    """Numbers in LaTeX as :func:`holds` reads them."""
    text = latex
    for command, sign in (
        (r"\left(", "("), (r"\right)", ")"), (r"\left|", "|"), (r"\right|", "|"),
        (r"\cdot", "*"), (r"\max", "max"), (r"\min", "min"), (r"\exp", "exp"), (r"\log", "log"),
        (r"\infty", "inf"), (r"\mathrm{nan}", "nan"),
    ):  # fmt: skip
        text = text.replace(command, sign)
    text = re.sub(r"\\operatorname\{(\w+)\}", r"\1", text)
    text = text.replace(r"\frac", "FRAC").replace(r"\sqrt[3]", "cbrt").replace(r"\sqrt", "sqrt")
    assert "\\" not in text, latex
    templates = {"FRAC": "(({})/({}))", "cbrt": "cbrt({})", "sqrt": "sqrt({})", "^": "**({})"}
    for function, template in templates.items():
        while function + "{" in text:
            start = text.index(function + "{")
            end, parts = start + len(function), []
            for _ in range(template.count("{}")):
                part, end = _braced(text, end)
                parts.append(part)
            text = text[:start] + template.format(*parts) + text[end:]
    return text.replace("-", "−")


def _braced(text: str, start: int) -> tuple[str, int]:
    """What stands in the braces that begin at ``start``, and where they have ended."""
    assert text[start] == "{", text[start:]
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[start + 1 : place], place + 1
    raise AssertionError(f"not balanced: {text}")
