"""Backward passes: how many, where, from which losses, and which leaves they reach."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gradstep.sight.mistakes.calls import follow
from gradstep.sight.mistakes.place import Place, here
from gradstep.sight.mistakes.watched import Family

#: In so many passes from the beginning the whole graph is gone through.
_FIRST = 3
_EACH = 50
#: The other families are told of all passes in the beginning, then of three in a row of so many.
_ALL, _SOME = 25, 25


class Backward(Family):
    """Tells the other families of backward passes; it says nothing itself.

    Attributes:
        count: how many backward passes there were.
        place: where the last of the first ones, or of those that are looked at, was called.
        of_leaf: whether all its losses were leaves, so that it could reach nothing else.
        looks: whether the pass that runs is one that is looked at.
        loss: what the last pass began from, if that was one number and a step may look at it.
        leaves: weak references to the leaves in no optimizer that it reaches, by their id.
        for_others: whether any that was looked at reached a tensor that is no parameter, such as an
            input that is to deceive the network.
    """

    order = 0

    def __init__(self, diagnosis: Any) -> None:
        super().__init__(diagnosis)
        self.count = 0
        self.place: Place | None = None
        self.of_leaf = False
        self.looks = False
        self.loss: Tensor | None = None
        self.leaves: dict[int, weakref.ref[Tensor]] = {}
        self.for_others = False
        self._depth = 0
        self._attended = True
        self._end = follow(torch.autograd, "backward", before=self._begins, after=self._ended)

    def _begins(self, tensors: Any = None, *_: Any, **__: Any) -> None:
        self._depth += 1
        if self._depth > 1:  # of checkpointing, within another
            return
        count = self.count = self.count + 1
        self.looks = count <= 2 * _FIRST or count % _EACH == 0
        self._attended = count <= _ALL or count % _SOME < 3
        # Of most passes nobody hears, and each line from here on is cold in the caches.
        diagnosis, self.loss = self.diagnosis, None
        if self._attended or self.looks or diagnosis.hears_each_backward or diagnosis.may_look():
            self._tell(tensors)

    def _tell(self, tensors: Any) -> None:
        if isinstance(tensors, Tensor):
            losses = [tensors]
            self.loss = tensors.detach() if tensors.numel() == 1 else None
        else:
            losses = list(tensors or ())
        if self.looks:
            self.diagnosis.guarded(self._look, losses)
        self.diagnosis.backward_begins(losses, self._attended)

    def _look(self, losses: list[Tensor]) -> None:
        self.place = here()
        self.of_leaf = all(loss.grad_fn is None for loss in losses)
        held = {id(h.parameter) for w in self.diagnosis.watched for h in w.held}
        found = [leaf for leaf in leaves_of(losses) if id(leaf) not in held]
        self.leaves = {id(leaf): weakref.ref(leaf) for leaf in found}
        self.for_others |= any(not isinstance(leaf, nn.Parameter) for leaf in found)

    def _ended(self, *_: Any, **__: Any) -> None:
        self._depth -= 1
        if not self._depth and (self._attended or self.diagnosis.hears_each_backward):
            self.diagnosis.backward_ended(self._attended)

    def unheld(self) -> Iterator[Tensor]:
        """The leaves in no optimizer that are still there."""
        for reference in self.leaves.values():
            leaf = reference()
            if leaf is not None:
                yield leaf

    def let_go(self) -> None:
        self.leaves.clear()

    def close(self) -> None:
        self._end()
        self.leaves.clear()
        self.loss = None


def leaves_of(losses: list[Tensor]) -> Iterator[Tensor]:
    """All leaves to which a backward pass from these losses adds a gradient."""
    waiting = [loss.grad_fn for loss in losses if loss.grad_fn is not None]
    known = set(waiting)
    while waiting:
        node = waiting.pop()
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            yield variable
        for following, _ in node.next_functions:
            if following is not None and following not in known:
                known.add(following)
                waiting.append(following)
