"""Recognise ``mean``, ``norm`` and ``rms`` in a graph, which has only their sums."""

from __future__ import annotations

from collections.abc import Callable

from gradstep.rule.graph import Node

#: The dimensions that a sum takes away, and the facts whose quotient counts its elements.
_COUNTS = {
    ("c", "size(w, -1)"),
    ("r", "size(w, -2)"),
    ("u", "size(w, unit)"),
    ("bcr", "size(w)"),
    ("br", "size(w)", "size(w, -1)"),
    ("br", "size(w)", "size(w, unit)"),
    ("bc", "size(w)", "size(w, -2)"),
    ("b", "size(w)", "size(w, -1)", "size(w, -2)"),
}


def summary(node: Node, named: Callable[[Node], bool]) -> tuple[str, Node, Node] | None:
    """The word for a node, of what it is taken, and the sum in it; None for another operation.

    Args:
        node: any.
        named: whether a node has a name of its own, so that it may not vanish in another.
    """
    inner = node.arguments[0] if node.arguments else node
    if node.operation == "div" and inner.operation == "sum" and not named(inner):
        counted = (inner.value, *_quotient(node.arguments[1])) in _COUNTS
        return ("mean", inner.arguments[0], inner) if counted else None
    if node.operation != "sqrt" or named(inner):
        return None
    if inner.operation in ("sum", "global_sum"):
        word = "norm" if inner.operation == "sum" else "global_norm"
        total = inner
    else:
        mean = summary(inner, named)
        if mean is None or mean[0] != "mean":
            return None
        word, total = "rms", mean[2]
    square = total.arguments[0]
    if square.operation != "mul" or named(square) or square.arguments[0] is not square.arguments[1]:
        return None
    return word, square.arguments[0], total


def _quotient(node: Node) -> tuple[str, ...]:
    """The inputs of ``a / b / c``, in order."""
    if node.operation == "div":
        return (*_quotient(node.arguments[0]), str(node.arguments[1].value))
    return (str(node.value),)
