"""What a row of the reference data holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray

import gradstep

Array = NDArray[Any]


@dataclass(frozen=True)
class Reference:
    """What a rule is held against.

    Attributes:
        ours: the class of gradstep.
        rule: the rule behind it.
        formula: the paper's formula in NumPy, see above; its keywords are those of ``ours``.
        theirs: torch.optim's class, if there is one.
        extra: configurations beyond those that torch's own tests list.
        exact: configurations in which the weights are those of torch bit for bit.
        dimensions: how many dimensions its weights must have; None for any number.
        takes_complex: whether its weights may be complex.
        elementwise: whether an element's step depends on that element alone. Then the fused engine
            runs for every dense weight, no bit depends on the layout, and a step needs no memory.
        by_rows: whether it works along rows. Then weights whose rows do not lie one after the other
            in memory are updated by the eager engine.
        shrinks: whether weights shrink at every step, also where all gradients are 0.
        coupled: whether a weight's step depends on the other weights too, by sums over all. Its
            formula is given all of them as one vector.
        longest: the longest side of the weights that are compared with the formula. Of bases in
            many dimensions float64 has fewer digits than the bound asks for.
        ill_conditioned: its states that follow the roundings of sums, since they are large where a
            gradient has nothing. Weights do not: they are multiplied there by nothing.
        bound: how far two ways of making its steps may differ, in eps of the largest weight.
        steps_in: the type of 16 bits that a step is worked out in, whatever the weight's is, if
            there is such: its eps of the largest change may then lie between two ways. (torch's
            own products of bfloat16 differ from one CPU capability to another.)
        oracle: another library's optimizer for the same parameters and arguments, as
            ``(parameters, options) -> optimizer``, which imports its library by itself; for a rule
            that torch.optim has not. ``integration/test_oracles.py`` runs it.
        oracle_shapes: the weights that it is compared in, where not all can be.
    """

    ours: Callable[..., gradstep.Optimizer]
    rule: gradstep.Rule
    formula: Callable[..., Iterator[Array]]
    theirs: type[torch.optim.Optimizer] | None = None
    extra: Sequence[dict[str, Any]] = ()
    exact: Sequence[dict[str, Any]] = ()
    dimensions: int | None = None
    by_rows: bool = False
    takes_complex: bool = True
    elementwise: bool = True
    shrinks: bool = False
    coupled: bool = False
    longest: float = math.inf
    ill_conditioned: Sequence[str] = ()
    bound: float = 8.0
    steps_in: torch.dtype | None = None
    oracle: Callable[[Any, dict[str, Any]], torch.optim.Optimizer] | None = None
    oracle_shapes: Sequence[tuple[int, ...]] = ()

    @property
    def name(self) -> str:
        return str(getattr(self.ours, "__name__", self.rule.name))

    def takes_shape(self, shape: Sequence[int]) -> bool:
        """Whether a weight of this shape may be compared with the formula."""
        if self.dimensions not in (None, len(shape)):
            return False
        return len(shape) < 2 or max(shape) <= self.longest

    def default_group(self) -> dict[str, Any]:
        """The options of a group that was given none."""
        weight = torch.zeros((1,) * (1 if self.dimensions is None else self.dimensions))
        return self.ours([weight]).defaults


def loss_at(step: int) -> float:
    """The loss that the closures of tests return at a step, for rules that ask for it."""
    return 2.0 + 0.5 ** (step % 7)


def f64(value: float) -> torch.Tensor:
    """A number as a 0-dim tensor; float64, since torch works out step sizes in its type."""
    return torch.tensor(value, dtype=torch.float64)
