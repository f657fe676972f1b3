"""Expressions of a rule as people write them, with the parentheses that they need."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from gradstep.rule.graph import REDUCTIONS, Node
from gradstep.rule.operations import OPERATIONS
from gradstep.rule.summaries import summary

#: Text and precedence of the operations that read better in other words than the table's.
_FORMS: dict[str, tuple[str, int]] = {
    "where": ("{1} if {0} else {2}", -3),
    "or": ("{} or {}", -2),
    "and": ("{} and {}", -1),
    "not": ("not {}", 0),
    "sqrt": ("√{}", 5),
    "rsqrt": ("1 / √{}", 3),
}
_INFIX = {"add", "sub", "mul", "div", "pow", "lt", "le", "gt", "ge", "eq", "ne", "and", "or"}
_ATOM = 9
_WORD = re.compile(r"[\w.′]+")

_GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "eps": "ε", "epsilon": "ε",
    "eta": "η", "kappa": "κ", "lam": "λ", "lambda": "λ", "lambd": "λ", "mu": "μ", "nu": "ν",
    "rho": "ρ", "sigma": "σ", "tau": "τ", "phi": "φ", "psi": "ψ", "omega": "ω",
}  # fmt: skip
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def greek_name(name: str) -> str:
    """``beta1`` -> β₁; a name that is no Greek letter stays as it is."""
    stem = name.rstrip("0123456789")
    letter = _GREEK.get(stem)
    return name if letter is None else letter + name[len(stem) :].translate(_SUBSCRIPTS)


def input_name(node: Node) -> str:
    """An input's name as formulas have it: ``size(w, −1)`` has the sign that numbers have."""
    return str(node.value).replace("-", "−")


def number_text(value: float) -> str:
    """A number as people write it, none of its digits left out: 1, 0.5, 1e-8, −2."""
    whole = math.isfinite(value) and value == int(value) and abs(value) < 1e7
    text = str(int(value)) if whole else repr(float(value))
    text = text.replace("e-0", "e-").replace("e+", "e")
    return "−" + text[1:] if text.startswith("-") else text


def write(
    node: Node,
    name_of: Callable[[Node], str | None],
    *,
    product: str = "·",
    associative: bool = False,
) -> str:
    """An expression as text, with the parentheses that it needs and those that help a reader.

    Args:
        node: the root.
        name_of: what to write for a node in place of its operation; None for the operation. Inputs
            and constants are asked for too.
        product: the sign of a multiplication.
        associative: leave out the parentheses of ``a·(b·c)`` and ``a + (b + c)``.
    """
    return _Writer(name_of, product, associative).write(node)[0]


def called(node: Node) -> tuple[Node, str]:
    """The call that a node is of; and, where that returns several tensors, which this one is."""
    call, place = (node.arguments[0], node.value) if node.operation == "part" else (node, 0)
    return call, call.value.argument_names()[place] if len(call.value.returns) > 1 else ""


class _Writer:
    def __init__(
        self, name_of: Callable[[Node], str | None], product: str, associative: bool
    ) -> None:
        self.name_of = name_of
        self.product = product
        self.associative = associative

    def write(self, node: Node) -> tuple[str, int]:
        """The text and how tightly it binds."""
        name = self.name_of(node)
        if name is None and node.operation == "input":
            name = input_name(node)
        if name is None and node.operation == "constant":
            name = number_text(node.constant())
        if name is not None:
            return name, OPERATIONS["neg"].precedence if name.startswith("−") else _ATOM
        operation = node.operation
        if operation in (*REDUCTIONS, "opaque", "part"):
            return self._call(node), _ATOM
        found = summary(node, lambda n: self.name_of(n) is not None)
        if found is not None:
            return self._called(*found), _ATOM
        if operation == "stored":  # a rounding, which a formula does not show
            return self.write(node.arguments[0])
        if operation == "abs":
            inside = self.write(node.arguments[0])[0]
            return (f"abs({inside})" if "|" in inside else f"|{inside}|"), _ATOM
        if operation == "mul" and node.arguments[0] is node.arguments[1]:
            return self._base(node.arguments[0]) + "²", OPERATIONS["pow"].precedence
        template, precedence = _FORMS.get(operation) or (
            OPERATIONS[operation].text,
            OPERATIONS[operation].precedence,
        )
        if operation == "mul":
            template = "{}" + self.product + "{}"
        return template.format(*self._arguments(node, precedence)), precedence

    def _call(self, node: Node) -> str:
        if node.operation in ("opaque", "part"):
            call, which = called(node)
            inside = [self.write(a)[0] for a in call.arguments]
            return f"{call.value.name}({', '.join(inside)})" + (which and f".{which}")
        return self._called(node.operation, node.arguments[0], node)

    def _called(self, name: str, argument: Node, total: Node) -> str:
        along = {"c": ", −1", "r": ", −2", "u": ", unit"}.get(total.value, "")
        return f"{name}({self.write(argument)[0]}{along})"

    def _arguments(self, node: Node, precedence: int) -> list[str]:
        operation = node.operation
        if operation == "pow":
            return [self._base(node.arguments[0]), self._behind(node, 1, precedence)]
        if operation in _INFIX:
            return [self._before(node, precedence), self._behind(node, 1, precedence)]
        if operation in ("sqrt", "rsqrt"):
            text = self.write(node.arguments[0])[0]
            return [text if _WORD.fullmatch(text) else f"({text})"]
        if operation == "where":
            return [_in_parentheses(*self.write(a), above=-3) for a in node.arguments]
        if operation in ("neg", "not"):
            text, binds = self.write(node.arguments[0])
            return [_in_parentheses(text, binds, above=precedence)]
        return [self.write(a)[0] for a in node.arguments]

    def _base(self, node: Node) -> str:
        return _in_parentheses(*self.write(node), above=OPERATIONS["pow"].precedence)

    def _before(self, node: Node, precedence: int) -> str:
        left = node.arguments[0]
        text, binds = self.write(left)
        # a / b·c is right for a machine; a person asks whether c is below the line.
        unclear = precedence == OPERATIONS["div"].precedence and self._is_quotient(left)
        return f"({text})" if binds < precedence or unclear else text

    def _behind(self, node: Node, position: int, precedence: int) -> str:
        right = node.arguments[position]
        text, binds = self.write(right)
        flat = (
            self.associative
            and node.operation in ("add", "mul")
            and binds == precedence
            and not self._is_quotient(right)
        )
        if (binds > precedence or flat) and not text.startswith("−"):
            return text
        return f"({text})"

    def _is_quotient(self, node: Node) -> bool:
        return node.operation in ("div", "rsqrt") and self.name_of(node) is None


def _in_parentheses(text: str, binds: int, above: int) -> str:
    return text if binds > above else f"({text})"
