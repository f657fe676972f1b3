"""The stand-in for a tensor or a number while a rule is traced.

A symbol records what is done to it. What cannot be recorded raises a :class:`RuleError` that
quotes the line of the rule and says what to write instead.
"""

from __future__ import annotations

import linecache
import re
import sys
from types import CodeType, FrameType
from typing import Any, NoReturn, Protocol

from gradstep.rule.graph import Node
from gradstep.rule.operations import functions


class RuleError(TypeError):
    """A rule that cannot be traced, or that returns something other than it declares."""


def calling_frame() -> FrameType | None:
    """The innermost frame outside of this package: the line of the rule being traced."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith("gradstep.rule."):
        frame = frame.f_back
    return frame


def refuse(problem: str, remedy: str) -> NoReturn:
    """Raise a RuleError with the offending line, the problem and the way out."""
    frame = calling_frame()
    place = "" if frame is None else quoted(frame.f_code, frame.f_lineno)
    raise RuleError(f"{place}{problem} {remedy}")


def quoted(code: CodeType, line: int) -> str:
    """Where in a rule something stands, with the line itself, to begin a message with."""
    text = linecache.getline(code.co_filename, line).strip()
    return f"rule {code.co_name}, line {line}" + (f":\n    {text}\n" if text else ": ")


def _joins(frame: FrameType | None) -> bool:
    """Whether the line has ``and``, ``or``, ``not``, or a comparison of three, and is no ``if``."""
    if frame is None:
        return False
    text = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    if re.match(r"\s*(if|elif|while|assert)\b", text):
        return False
    return bool(re.search(r"\b(and|or|not)\b|[<>]=?[^<>=(),]+[<>]=?", text))


class Recorder(Protocol):
    """What a symbol needs of the trace that it belongs to.

    ``stage`` counts the rules of a chain: the one that is being run. ``rows`` says what rows are,
    once anything was reduced along a dimension: -1 or ``"unit"``.
    """

    stage: int
    rows: int | str | None

    def record(self, operation: str, *arguments: Any) -> Any:
        """The node of an operation on nodes and plain numbers."""

    def reduce(self, operation: str, x: Symbol, dim: int | str | None) -> Any:
        """The node of a reduction along a dimension, or of all."""

    def fact(self, name: str) -> Any:
        """The node of a number that a tensor's shape or dtype gives."""

    def call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        """The node of a function that is not looked into."""

    def ask(self, symbol: Symbol) -> bool:
        """Answer ``nonzero(hyperparameter)``, and remember the question."""


class Symbol(Node):
    """A node that answers to Python's operators by adding nodes to its recorder."""

    recorder: Recorder

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"<{self.kind()} {self.name or self.value or self.operation}>"

    def kind(self) -> str:
        """What it stands for, in words."""
        return "tensor" if self.per_element else "number"

    def _record(self, operation: str, *arguments: Any) -> Any:
        return self.recorder.record(operation, *arguments)

    def __add__(self, other: Any) -> Any:
        return self._record("add", self, other)

    def __radd__(self, other: Any) -> Any:
        return self._record("add", other, self)

    def __sub__(self, other: Any) -> Any:
        return self._record("sub", self, other)

    def __rsub__(self, other: Any) -> Any:
        return self._record("sub", other, self)

    def __mul__(self, other: Any) -> Any:
        return self._record("mul", self, other)

    def __rmul__(self, other: Any) -> Any:
        return self._record("mul", other, self)

    def __truediv__(self, other: Any) -> Any:
        return self._record("div", self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return self._record("div", other, self)

    def __pow__(self, other: Any) -> Any:
        return self._record("pow", self, other)

    def __rpow__(self, other: Any) -> Any:
        return self._record("pow", other, self)

    def __neg__(self) -> Any:
        return self._record("neg", self)

    def __pos__(self) -> Any:
        return self

    def __abs__(self) -> Any:
        return self._record("abs", self)

    def __lt__(self, other: Any) -> Any:
        return self._record("lt", self, other)

    def __le__(self, other: Any) -> Any:
        return self._record("le", self, other)

    def __gt__(self, other: Any) -> Any:
        return self._record("gt", self, other)

    def __ge__(self, other: Any) -> Any:
        return self._record("ge", self, other)

    def __eq__(self, other: Any) -> Any:
        return self._record("eq", self, other)

    def __ne__(self, other: Any) -> Any:
        return self._record("ne", self, other)

    def __and__(self, other: Any) -> Any:
        return self._record("and", self, other)

    def __or__(self, other: Any) -> Any:
        return self._record("or", self, other)

    def __invert__(self) -> Any:
        return self._record("not", self)

    # What would change a tensor in place.

    def _in_place(self, other: Any) -> NoReturn:
        refuse(
            "changes a tensor or number in place, and a rule changes nothing in place.",
            "Write x = x + y in place of x += y.",
        )

    __iadd__ = __isub__ = __imul__ = __itruediv__ = __ipow__ = __iand__ = __ior__ = _in_place

    def __setitem__(self, key: Any, value: Any) -> NoReturn:
        refuse(
            "writes into a tensor, and a rule changes nothing in place.",
            "Write where(condition, a, b) for a choice per element.",
        )

    # What would need the value while the rule is traced.

    def __bool__(self) -> bool:
        if self.boolean and _joins(calling_frame()):
            refuse(
                "asks whether a comparison is true, which and, or, not and a < x < b do.",
                "Write (a > 0) & (a < 1), with | for or and ~ for not, each comparison in "
                "brackets; where(condition, a, b) then chooses for each element.",
            )
        if self.per_element:
            refuse(
                "branches on a tensor, whose elements differ.",
                "Write where(condition, a, b), which chooses for each element.",
            )
        what = f"the number {self.value!r}" if self.operation == "input" else "a number"
        refuse(
            f"branches on {what}, which may change at every step.",
            "Write where(condition, a, b); or, to leave a term out while a hyperparameter is 0, "
            "if nonzero(hyperparameter):",
        )

    def _value_wanted(self, *_: Any, **__: Any) -> NoReturn:
        refuse(
            f"asks for the value of a {self.kind()}, which is not known while the rule is traced.",
            "Use gradstep's own functions (sqrt, exp, log, abs, pow, maximum, …) in place of those "
            "of math, numpy or int() and float().",
        )

    __float__ = __int__ = __index__ = __complex__ = __round__ = __array__ = _value_wanted
    __len__ = __iter__ = __getitem__ = __contains__ = _value_wanted

    def __mod__(self, other: Any) -> NoReturn:
        refuse(
            "uses % or //, which the language does not have.",
            "Write it with the operators + − * / ** and the functions of gradstep.",
        )

    __floordiv__ = __rmod__ = __rfloordiv__ = __mod__

    def __matmul__(self, other: Any) -> NoReturn:
        refuse(
            "multiplies matrices, which the language does not have.",
            "Write * for the product of elements, or put the matrix work into a function of "
            "its own, with @gradstep.opaque above it.",
        )

    __rmatmul__ = __matmul__

    def __getattr__(self, attribute: str) -> NoReturn:
        if attribute.startswith("__"):  # Python itself asks, for instance copy and inspect
            raise AttributeError(attribute)
        if attribute in functions():
            remedy = f"Write {attribute}(…) from gradstep."
        else:
            remedy = "Its functions are: " + ", ".join(functions()) + "."
        refuse(f"uses .{attribute} of a {self.kind()}, which the language does not have.", remedy)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        if name in functions():
            remedy = f"Write {name}(…) from gradstep, which is the same and can be traced."
        else:
            remedy = "The language has: " + ", ".join(functions()) + "."
        refuse(f"calls torch's {name}, which cannot be traced.", remedy)
