"""States: what a rule keeps between steps, and how each starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class State:
    """How a state starts.

    Attributes:
        start: ``"zeros"``, ``"full"``, ``"weight"`` or ``"gradient"`` for a tensor of the weight's
            shape; ``"number"`` for one number a weight tensor.
        value: for ``"full"`` and ``"number"``: the constant, or the name of the hyperparameter
            (or ``"lr"``) that gives it.
        when: the hyperparameter that must be true or other than 0 for the state to exist; None
            for always.
        shape: ``"weight"``; or ``"row"`` and ``"column"``, which have one element in the last
            dimension, or in the one before it, and exist for weights of two dimensions or more; or
            ``"own"``, for opaque functions alone.
        only: ``"vector"`` for a state of weights with fewer than two dimensions, ``"matrix"`` for
            one of all others; None for any.
        shared: whether it is one number for all parameters of the optimizer together.
        counted: whether the number is the parameter's place in its group.
        own_shape: gives the shape of an ``"own"`` one, from the weight's and from the values of
            the hyperparameters that are named in ``of``.
        format: what it is stored as, the name of a :class:`gradstep.program.formats.Format`; None
            for what the weight is stored as.
    """

    start: str = "zeros"
    value: float | str = 0.0
    when: str | None = None
    shape: str = "weight"
    only: str | None = None
    shared: bool = False
    counted: bool = False
    own_shape: Callable[..., tuple[int, ...]] | None = None
    of: tuple[str, ...] = ()
    format: str | None = None

    def exists(self, values: Mapping[str, Any], matrix: bool = True) -> bool:
        """Whether the state exists with these hyperparameters, for a weight of two dimensions."""
        along = self.shape in ("row", "column") or self.only == "matrix"
        if matrix if self.only == "vector" else not matrix and along:
            return False
        return self.when is None or bool(values[self.when] != 0)

    def extent(self) -> str:
        """What it has a value for, as :class:`gradstep.rule.graph.Node` has it."""
        if self.start == "number":
            return "number"
        return "element" if self.shape == "weight" else self.shape

    def shape_for(self, weight: tuple[int, ...], values: Mapping[str, Any]) -> tuple[int, ...]:
        """The shape of the state of a weight, with these hyperparameters."""
        if self.own_shape is not None:
            return tuple(map(int, self.own_shape(weight, *(values[name] for name in self.of))))
        if self.shape == "row":
            return (*weight[:-1], 1)
        if self.shape == "column":
            return (*weight[:-2], 1, weight[-1])
        return tuple(weight)

    def words(self) -> str:
        """How it starts, in words."""
        start = {
            "zeros": "0",
            "full": str(self.value),
            "weight": "a copy of the weight",
            "gradient": "a copy of the first gradient",
            "number": f"{self.value}, one number a parameter",
        }[self.start]
        if self.counted:
            start = "the parameter's place in its group, the largest first"
        if self.shared:
            start = f"{self.value}, one number for all parameters"
        if self.shape == "own":
            start += ", in a shape of its own"
        elif self.shape != "weight":
            start += f", one number a {self.shape}"
        if self.format is not None:
            start += f", stored as {self.format}"
        if self.only is not None:
            start += f"; only for weights with{'out' * (self.only == 'vector')} rows and columns"
        return start if self.when is None else f"{start}; kept only with {self.when}"


def zeros(when: str | None = None, only: str | None = None) -> Any:
    """A state that starts as zeros: the default, named to give a condition.

    Args:
        when: the hyperparameter that must be true or other than 0 for the state to exist.
        only: ``"vector"`` for a state of weights with fewer than two dimensions, ``"matrix"`` for
            one of all others.

    Raises:
        ValueError: another ``only``.
    """
    if only not in (None, "vector", "matrix"):
        raise ValueError(f"zeros(only={only!r}): it can be 'vector' or 'matrix', or left out")
    return State("zeros", 0.0, when, only=only)


def shaped(
    shape: Callable[..., tuple[int, ...]],
    *of: str,
    when: str | None = None,
    only: str | None = None,
) -> Any:
    """A state of zeros in a shape of its own, which opaque functions alone read and make.

    In float32, or float64 where the weight is that, whatever else the weight is stored as.

    ::

        @gradstep.rule
        def whitened(g, factor=gradstep.shaped(lambda shape: (shape[0], shape[0]))):
            factor = covariance(g, factor)       # each of these with @gradstep.opaque above it
            return whiten(g, factor), factor

    Args:
        shape: gives the shape from the weight's shape, and from the values of the hyperparameters
            ``of``, which may not change once the state is there.
        of: names of hyperparameters.
        when: the hyperparameter that must be true or other than 0 for the state to exist.
        only: ``"vector"`` for a state of weights with fewer than two dimensions, ``"matrix"`` for
            one of all others.

    Raises:
        ValueError: another ``only``.
    """
    if only not in (None, "vector", "matrix"):
        raise ValueError(f"shaped(only={only!r}): it can be 'vector' or 'matrix', or left out")
    return State("zeros", 0.0, when, "own", only, own_shape=shape, of=of)


def per_row(when: str | None = None) -> Any:
    """A state of zeros, one a row: of the weight's shape with 1 as the last dimension.

    Weights with fewer than two dimensions have none: the rule gets None for it.
    """
    return State("zeros", 0.0, when, "row")


def per_column(when: str | None = None) -> Any:
    """A state of zeros, one a column: of the weight's shape with 1 as the dimension before last.

    Weights with fewer than two dimensions have none: the rule gets None for it.
    """
    return State("zeros", 0.0, when, "column")


def full(value: float | str, when: str | None = None) -> Any:
    """A state that starts with a constant, or with the value of the hyperparameter of that name."""
    return State("full", value, when)


def number(value: float | str, when: str | None = None) -> Any:
    """A state that is one number for the whole parameter, worked out on the host in float64.

    Starts with a constant, or with the value of the hyperparameter of that name, or of ``"lr"``.
    """
    return State("number", value, when)


def place(when: str | None = None) -> Any:
    """A state that is one number: the parameter's place in its group, counted from 0.

    The largest comes first, and of those of one shape the first in the group. So that what is
    costly and done every few steps is done for each parameter at steps of its own, and not for all
    at one::

        @gradstep.opaque(returns=("Q",), due=lambda step, every, place: (step + place) % every == 0)
        def refreshed(Q, step, every, place): …

    It is kept as any state, so that after a checkpoint, whatever it is loaded into, all goes on.

    Args:
        when: the hyperparameter that must be true or other than 0 for the state to exist.
    """
    return State("number", 0.0, when, counted=True)


def shared(value: float | str, when: str | None = None) -> Any:
    """A state that is one number for all parameters of the optimizer, kept as float64.

    Starts with a constant, or with the value of the hyperparameter of that name. Its new value is
    made of sums over all parameters, of other shared states, and of hyperparameters that all groups
    have alike; what each parameter has for itself (its step count, a sum of its own) goes into a
    sum over all first. A parameter whose first gradient comes late takes up the present value.
    """
    return State("number", value, when, shared=True)


def copy_of_weight(when: str | None = None) -> Any:
    """A state that starts as a copy of the weight."""
    return State("weight", 0.0, when)


def copy_of_gradient(when: str | None = None) -> Any:
    """A state that starts as a copy of the first gradient."""
    return State("gradient", 0.0, when)
