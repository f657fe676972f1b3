"""Weights that a script moves by hand, without an optimizer, and gradients that pile up there."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from gradstep.sight.mistakes import gradients
from gradstep.sight.mistakes.backward import Backward
from gradstep.sight.mistakes.place import here
from gradstep.sight.mistakes.watched import Family, values_of

#: So many backward passes in a row onto a gradient that the weight was moved with before.
_IN_A_ROW = 2
#: All of the first passes are looked at, and later two in a row of so many, of those of which
#: backward.py tells.
_FIRST, _EACH = 20, 25


class ByHand(Family):
    """Follows the largest leaf that gets gradients and is in no optimizer.

    Attributes:
        moved: between how many passes it was moved, of those that were looked at.
    """

    order = 20

    def __init__(self, diagnosis: Any) -> None:
        super().__init__(diagnosis)
        self.moved = 0
        self._piled = 0
        self._leaf: weakref.ref[Tensor] | None = None
        self._weight: Tensor | None = None
        self._gradient: Tensor | None = None
        self._object: weakref.ref[Tensor] | None = None
        self._version = -1

    def after_backward(self) -> None:
        self._leaf = None
        backward = self.diagnosis.family(Backward)
        if not backward.leaves or not (backward.count <= _FIRST or backward.count % _EACH < 2):
            return
        with torch.no_grad():
            candidates = [leaf for leaf in backward.unheld() if leaf.grad is not None]
            leaf = max(candidates, key=lambda leaf: leaf.numel(), default=None)
            if leaf is not None and leaf.grad is not None:
                self._leaf, self._object = weakref.ref(leaf), weakref.ref(leaf.grad)
                self._weight, self._gradient = values_of(leaf, 64), values_of(leaf.grad, 64)
                self._version = leaf.grad._version

    def before_backward(self, _: list[Tensor]) -> None:
        leaf = self._leaf() if self._leaf is not None else None
        if leaf is None or self._weight is None or self._gradient is None:
            return
        with torch.no_grad():
            now = values_of(leaf, 64)
            if now is None or now.shape != self._weight.shape or torch.equal(now, self._weight):
                self._piled = 0  # such as more than one pass for an update
                return
            self.moved += 1
            self._piled = self._piled + 1 if self._is_kept(leaf) else 0
            if self._piled == _IN_A_ROW:
                self._say(leaf)

    def _is_kept(self, leaf: Tensor) -> bool:
        """Whether the gradient is still there as the last pass left it, and is not 0."""
        gradient = leaf.grad
        assert self._object is not None and self._gradient is not None
        if gradient is None or self._object() is not gradient:
            return False
        values = values_of(gradient, 64)
        return (
            gradient._version == self._version
            and values is not None
            and torch.equal(values, self._gradient)
            and bool(values.any())
        )

    def _say(self, leaf: Tensor) -> None:
        if any(h.parameter is leaf for w in self.diagnosis.watched for h in w.held):
            return
        self.diagnosis.report(
            gradients.FORGOTTEN_ZERO_GRAD,
            f"a weight of shape {tuple(leaf.shape)} is moved by hand, and backward() adds onto the "
            "gradient that it was moved with before",
            write="model.zero_grad(), or p.grad = None for each weight, before this line",
            place=here(),
            key="by hand",
        )

    def let_go(self) -> None:
        self._leaf = self._object = None

    def close(self) -> None:
        self.let_go()
        self._weight = self._gradient = None
