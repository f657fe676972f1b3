"""Clipping of gradients that does nothing to the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.utils import clip_grad

from gradstep.sight.mistakes.calls import follow
from gradstep.sight.mistakes.finding import Mistake
from gradstep.sight.mistakes.watched import Family, Held

CLIPPING_WITHOUT_EFFECT = Mistake(
    "clipping-without-effect",
    when="gradients are clipped after the step that used them, before there are any, or of a "
    "generator that has nothing left",
    why="the step's own gradients are as long as ever",
    write="clip_grad_norm_(model.parameters(), 1.0) between backward() and step()",
)

#: So many calls from the beginning, and one of so many after that.
_FIRST, _EACH = 6, 50
_IN_A_ROW = 3


class Clipping(Family):
    """Looks at which gradients ``clip_grad_norm_`` or ``clip_grad_value_`` writes into."""

    order = 17

    def __init__(self, diagnosis: Any) -> None:
        super().__init__(diagnosis)
        self._calls = 0
        self._useless = 0
        self._before: list[tuple[Held, int, bool]] | None = None
        self._ends: list[Callable[[], None]] = [
            follow(owner, name, before=self._begins, after=self._ended)
            for owner, name in (
                (clip_grad, "_clip_grads_with_norm_"),
                (clip_grad, "clip_grad_value_"),
                (torch.nn.utils, "clip_grad_value_"),
            )
        ]

    def _begins(self, parameters: Any = None, *_: Any, **__: Any) -> None:
        self._calls += 1
        self._before = None
        if not any(watched.steps for watched in self.diagnosis.watched):
            return  # such as a loop by hand
        if isinstance(parameters, list | tuple):  # a generator is not to be gone through here
            held = {id(h.parameter) for w in self.diagnosis.watched for h in w.held}
            if any(p.grad is not None and id(p) not in held for p in parameters):
                return
        if self._calls <= _FIRST or self._calls % _EACH == 0:
            self._before = [
                (held, held.parameter.grad._version, held.is_used_gradient(held.parameter.grad))
                for watched in self.diagnosis.watched
                for held in watched.held
                if held.parameter.grad is not None
            ]

    def _ended(self, *_: Any, **__: Any) -> None:
        if self._before is not None:
            self.diagnosis.guarded(self._look, self._before)
            self._before = None

    def _look(self, before: list[tuple[Held, int, bool]]) -> None:
        clipped = [
            used
            for held, version, used in before
            if held.parameter.grad is not None and held.parameter.grad._version != version
        ]
        if not clipped:
            what = (
                "there are no gradients yet"
                if not before
                else "what it was given has no gradients: a generator, such as model.parameters() "
                "in a variable, is empty once it has been gone through"
            )
        elif all(clipped):
            what = "they are those that the last step has already used"
        else:
            self._useless = 0
            return
        self._useless += 1
        if self._useless == _IN_A_ROW:
            write = (
                "" if not before or clipped else "model.parameters() itself, not a variable, here"
            )
            self.diagnosis.report(
                CLIPPING_WITHOUT_EFFECT,
                f"gradients are clipped, but {what}",
                write=write,
                key="clipping",
            )

    def close(self) -> None:
        for end in self._ends:
            end()
        self._ends.clear()
