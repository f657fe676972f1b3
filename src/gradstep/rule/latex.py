"""Expressions of a rule as LaTeX, in the part of it that MathJax and matplotlib understand too."""

from __future__ import annotations

import re
from collections.abc import Callable

from gradstep.rule.graph import REDUCTIONS, Node
from gradstep.rule.notation import called, input_name, number_text
from gradstep.rule.operations import OPERATIONS
from gradstep.rule.summaries import summary

#: How tightly a text binds, beside the numbers of :data:`gradstep.rule.operations.OPERATIONS`.
_CHOICE, _OR, _AND, _NOT, _ATOM = -3, -2, -1, 0, 9
#: A fraction needs no parentheses within a product or behind a sign, but does below a power.
_FRACTION = 4.5

_INFIX: dict[str, tuple[str, float]] = {
    "add": ("{} + {}", 2),
    "sub": ("{} - {}", 2),
    "mul": (r"{} \cdot {}", 3),
    "lt": ("{} < {}", 1),
    "le": (r"{} \leq {}", 1),
    "gt": ("{} > {}", 1),
    "ge": (r"{} \geq {}", 1),
    "eq": ("{} = {}", 1),
    "ne": (r"{} \neq {}", 1),
    "and": (r"{} \wedge {}", _AND),
    "or": (r"{} \vee {}", _OR),
}
_GREEK = {
    name: f"\\{name}"
    for name in ("alpha", "beta", "gamma", "delta", "eta", "kappa", "lambda", "mu", "nu", "rho")
} | {
    "eps": r"\varepsilon", "epsilon": r"\varepsilon", "lam": r"\lambda", "lambd": r"\lambda",
    "sigma": r"\sigma", "tau": r"\tau", "phi": r"\varphi", "psi": r"\psi", "omega": r"\omega",
}  # fmt: skip
#: For words, where signs of mathematics have no place.
_PLAIN = {
    "\\": "/", "~": "-", "^": "**", "−": "-", "·": "*", "√": "sqrt ", "²": "**2", "′": "'",
    "≤": "<=", "≥": ">=", "≠": "!=",
}  # fmt: skip
_NUMBER = re.compile(r"(−?[\d.]+)e(-?\d+)")
_CALL = re.compile(r"(\w+)\((\w+)(?:, (−?\d))?\)")


def latex_name(name: str) -> str:
    """A variable's name: ``beta1`` as a β with a 1 below it, words upright, one letter slanted."""
    called = _CALL.fullmatch(name)
    if called:  # a fact such as size(w, −1)
        function, argument, along = called.groups()
        inside = latex_name(argument) + (f", {latex_number(along)}" if along else "")
        return f"{_function(function)}({inside})"
    name = name.replace("'", "′")
    bare = name.rstrip("′")
    primes = "'" * (len(name) - len(bare))
    stem = bare.rstrip("0123456789")
    number = bare[len(stem) :]
    if not re.fullmatch(r"\w+", bare) or not stem:
        return text(name)
    letter = _GREEK.get(stem) or (stem if len(stem) == 1 and stem.isascii() else None)
    if letter is None:
        return rf"\mathrm{{{escaped(bare)}}}{primes}"
    return letter + (f"_{{{number}}}" if number else "") + primes


def latex_number(text: str) -> str:
    """A number as :func:`gradstep.sight.digits.digits_text` prints it: ``1.2e-5`` with its ten."""
    power = _NUMBER.fullmatch(text)
    if power:
        mantissa, exponent = power.groups()
        ten = f"10^{{{exponent}}}"
        return ten if mantissa == "1" else f"{mantissa.replace('−', '-')} \\cdot {ten}"
    words = {"inf": r"\infty", "−inf": r"-\infty", "nan": r"\mathrm{nan}"}
    return words.get(text) or text.replace("−", "-")


def text(prose: str) -> str:
    """Words within a formula."""
    return rf"\text{{{escaped(prose)}}}"


def escaped(prose: str) -> str:
    """Words with the signs that LaTeX would take for something else turned into plain ones."""
    for sign, plain in _PLAIN.items():
        prose = prose.replace(sign, plain)
    return re.sub(r"([_#$%&{}])", r"\\\1", prose)


def write_latex(node: Node, name_of: Callable[[Node], str | None]) -> str:
    """An expression as LaTeX, for math mode.

    Args:
        node: the root.
        name_of: the LaTeX to write for a node in place of its operation, a name or a number; None
            for the operation. Inputs and constants are asked for too.
    """
    return _Writer(name_of).write(node)[0]


class _Writer:
    def __init__(self, name_of: Callable[[Node], str | None]) -> None:
        self.name_of = name_of

    def write(self, node: Node) -> tuple[str, float]:
        """The text and how tightly it binds."""
        name = self.name_of(node)
        if name is None and node.operation == "input":
            name = latex_name(input_name(node))
        if name is None and node.operation == "constant":
            name = latex_number(number_text(node.constant()))
        if name is not None:
            return name, _binds(name)
        if node.operation in REDUCTIONS:
            return self._called(node.operation, node.arguments[0], node), _ATOM
        if node.operation in ("opaque", "part"):
            call, which = called(node)
            inside = ", ".join(self.write(a)[0] for a in call.arguments)
            text = f"{_function(call.value.name)}\\left({inside}\\right)"
            return text + (which and f"_{{{latex_name(which)}}}"), _ATOM
        found = summary(node, lambda n: self.name_of(n) is not None)
        if found is not None:
            return self._called(*found), _ATOM
        return self._operation(node)

    def _called(self, name: str, argument: Node, total: Node) -> str:
        along = {"c": ", -1", "r": ", -2", "u": r", \mathrm{unit}"}.get(total.value, "")
        return f"{_function(name)}\\left({self.write(argument)[0]}{along}\\right)"

    def _operation(self, node: Node) -> tuple[str, float]:
        operation, arguments = node.operation, node.arguments
        if operation == "stored":  # a rounding, which a formula does not show
            return self.write(arguments[0])
        if operation == "mul" and arguments[0] is arguments[1]:
            return f"{self._within(arguments[0], above=5)}^{{2}}", 5
        if operation == "pow":
            return f"{self._within(arguments[0], above=5)}^{{{self.write(arguments[1])[0]}}}", 5
        if operation in _INFIX:
            template, binds = _INFIX[operation]
            left = self._within(arguments[0], above=binds - 0.5)
            right = self._within(arguments[1], above=binds)
            # A sign never stands right behind another.
            right = f"\\left({right}\\right)" if right.startswith("-") else right
            return template.format(left, right), binds
        inside = [self.write(a)[0] for a in arguments]
        if operation == "div":
            return f"\\frac{{{inside[0]}}}{{{inside[1]}}}", _FRACTION
        if operation == "sqrt":
            return f"\\sqrt{{{inside[0]}}}", _ATOM
        if operation == "rsqrt":
            return f"\\frac{{1}}{{\\sqrt{{{inside[0]}}}}}", _FRACTION
        if operation == "abs":
            return f"\\left|{inside[0]}\\right|", _ATOM
        if operation == "neg":
            return f"-{self._within(arguments[0], above=4)}", 4
        if operation == "not":
            return f"\\neg {self._within(arguments[0], above=_NOT)}", _NOT
        if operation == "where":
            condition, a, b = (self._within(each, above=_CHOICE) for each in arguments)
            return rf"{a} \;\text{{if}}\; {condition} \;\text{{else}}\; {b}", _CHOICE
        if "{}" in OPERATIONS[operation].latex:
            return OPERATIONS[operation].latex.format(*inside), _ATOM
        return f"{_function(operation)}\\left({', '.join(inside)}\\right)", _ATOM

    def _within(self, node: Node, above: float) -> str:
        inside, binds = self.write(node)
        return inside if binds > above else f"\\left({inside}\\right)"


def _function(name: str) -> str:
    row = OPERATIONS.get(name)
    return (row.latex if row else "") or rf"\operatorname{{{escaped(name)}}}"


def _binds(name: str) -> float:
    if name.startswith("-"):
        return OPERATIONS["neg"].precedence
    return 3 if r"\cdot" in name else 5 if name.startswith("10^") else _ATOM
