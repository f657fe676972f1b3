"""The life of a gradient: made by backward, used by one step, and gone before the next backward."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradstep.sight.mistakes.membership import Membership
from gradstep.sight.mistakes.place import Place, here
from gradstep.sight.mistakes.watched import Family, Held, Watched, values_of


class _Proof:
    """Follows a gradient's values from one step to the next, in a few places.

    Old code clears gradients with ``p.grad.data.zero_()``, which leaves no trace in the version.
    So before anything is said, it is made sure that what a backward pass adds onto is what the one
    before, or the step, has left.
    """

    def __init__(self, held: Held, gradient: Tensor) -> None:
        self.unbroken = True
        self._parameter = weakref.ref(held.parameter)
        self._sample = values_of(gradient, 64)
        # Sparse gradients cannot be sampled: their versions alone have to do.
        if self._sample is not None and not bool(self._sample.any()):
            self.unbroken = False  # adding onto zeros does no harm
        self._handle = held.parameter.register_hook(self._before_adding)

    def _before_adding(self, _: Tensor) -> None:
        parameter = self._parameter()
        if parameter is None or parameter.grad is None or self._sample is None:
            return
        with torch.no_grad():
            now = values_of(parameter.grad, 64)
            if now is None or not torch.equal(now, self._sample):
                self.unbroken = False

    def added(self, gradient: Tensor) -> None:
        """The backward pass has added."""
        with torch.no_grad():
            self._sample = values_of(gradient, 64)

    def remove(self) -> None:
        self._handle.remove()


class Gradients(Family):
    """Gradients that pile up, are used twice, or are not there."""

    def __init__(self, diagnosis: Any) -> None:
        super().__init__(diagnosis)
        self.tick = itertools.count(1).__next__
        self._anything_arrived = False
        self._prove: set[int] = set()  # ids of those to be followed from their next step on
        self._suspicions: dict[int, int] = {}  # id -> steps on piled gradients that were not proved
        self._piling: dict[int, Place | None] = {}  # id of an optimizer -> the line that adds
        self._hooked: list[Held] = []

    def added(self, watched: Watched) -> None:
        for held in watched.held:
            if held.hook is None and held.parameter.requires_grad and held.parameter.is_leaf:
                hook = self._hook(watched, held)
                held.hook = held.parameter.register_post_accumulate_grad_hook(hook)
                self._hooked.append(held)
                self._prove.add(id(held))

    def _hook(self, watched: Watched, held: Held) -> Callable[[Tensor], None]:
        tick = self.tick

        def arrived(parameter: Tensor) -> None:
            gradient = parameter.grad
            if gradient is not None:
                version = gradient._version
                # One more than after the step: this backward wrote into it, and nobody else did,
                # neither zero_() nor a scaling.
                if version == held.used_version + 1 and held.used() is gradient:  # type: ignore[misc]
                    held.piled = True
                    if id(watched) not in self._piling:
                        self._piling[id(watched)] = here()
                elif held.piled and version != held.arrived_version + 1:
                    held.piled = False
                held.arrived_version = version
                if held.proof is not None:
                    self.diagnosis.guarded(held.proof.added, gradient)
            held.arrived = tick()

        return arrived

    def _find_piled(self, watched: Watched) -> None:
        """A backward pass may add onto a used gradient if that is then cleared, as in GANs."""
        place = self._piling.pop(id(watched))
        piled = []
        for held in watched.held:
            gradient = held.parameter.grad
            if not held.piled or gradient is None or held.used is None:
                continue
            if held.used() is not gradient:
                continue  # cleared, and made anew
            piled.append(held)
            if held.proof is None:
                seen = self._suspicions[id(held)] = self._suspicions.get(id(held), 0) + 1
                if seen % 100 == 1:  # those that zero_() their .data come here every time
                    self._prove.add(id(held))
        # In order of the backward pass: the first one is next to the loss.
        piled.sort(key=lambda held: held.arrived)
        for held in piled:
            gradient = held.parameter.grad
            if held.proof is None or not held.proof.unbroken or gradient is None:
                continue
            if gradient.layout is torch.strided and not bool(gradient.any()):
                continue  # cleared since
            name = self.diagnosis.name_of(held.parameter)
            self.diagnosis.report(
                "forgotten-zero-grad",
                f"backward() added onto the gradient of {name} that step {watched.steps} had "
                "already used: zero_grad() was not called in between",
                why="each step then follows the sum of all gradients so far instead of the new "
                "one, so the steps grow and point the wrong way",
                write="optimizer.zero_grad() before this line, once for each step",
                parameter=name,
                watched=watched,
                place=place,
            )
            return

    def before_step(self, watched: Watched) -> None:
        if watched.has_closure:
            return
        if id(watched) in self._piling:
            self._find_piled(watched)
        any_gradient = arrived = False
        all_used = True
        for held in watched.held:
            if held.arrived:
                arrived = True
            gradient = held.parameter.grad
            if gradient is not None:
                any_gradient = True
                if all_used and not held.is_used_gradient(gradient):
                    all_used = False
        self._anything_arrived |= arrived
        if not any_gradient:
            if self._is_about_other_parameters(watched):
                pass
            elif arrived:
                self._cleared(watched)
            elif not watched.steps and not self._anything_reached():
                self.diagnosis.report(
                    "step-before-backward",
                    "step() was called before any backward(): no parameter has a gradient",
                    why="a step without gradients changes nothing",
                    write="loss.backward() before this line",
                    watched=watched,
                )
        elif all_used:
            if self._is_about_other_parameters(watched):
                return
            self.diagnosis.report(
                "step-twice",
                f"step {watched.steps + 1} uses the very gradients that step {watched.steps} used: "
                "no backward() in between",
                why="the second step follows a slope that was measured before the first one",
                write="one optimizer.step() for each loss.backward()",
                watched=watched,
            )
        elif arrived and watched.looks and self._all_zeroed(watched):
            self._cleared(watched)

    def before_look(self, watched: Watched) -> None:
        self.added(watched)  # those that require a gradient by now

    def _is_about_other_parameters(self, watched: Watched) -> bool:
        """Whether gradients are old or missing because they go to other tensors by now."""
        return bool(self.diagnosis.family(Membership).find_replaced(watched))

    def _anything_reached(self) -> bool:
        return self._anything_arrived or any(
            held.arrived for other in self.diagnosis.watched for held in other.held
        )

    def _all_zeroed(self, watched: Watched) -> bool:
        gradients = []
        for held in watched.held:
            gradient = held.parameter.grad
            if held.arrived and gradient is not None:
                if gradient._version == held.arrived_version or gradient.is_sparse:
                    return False  # nobody has written into it
                gradients.append(gradient)
        return bool(gradients) and not any(bool(gradient.any()) for gradient in gradients)

    def _cleared(self, watched: Watched) -> None:
        self.diagnosis.report(
            "zero-grad-before-step",
            "the gradients that backward() had made were cleared before step() could use them",
            why="the step has no gradient to follow, so these weights do not learn",
            write="optimizer.zero_grad() before loss.backward() or after optimizer.step(), not "
            "between them",
            watched=watched,
            place=self.diagnosis.last_zero_grad(),
        )

    def after_step(self, watched: Watched) -> None:
        if id(watched) in self._piling:  # by a closure, or a hook
            if watched.has_closure:
                self._find_piled(watched)
            self._piling.pop(id(watched), None)
        prove = self._prove
        for held in watched.held:
            held.piled = False
            if held.proof is not None:
                held.proof.remove()
                held.proof = None
            if held.arrived:
                held.ever = True
                held.arrived = 0
            gradient = held.parameter.grad
            if gradient is None:
                held.used, held.used_version = None, -2
            else:
                held.used, held.used_version = weakref.ref(gradient), gradient._version
                if prove and id(held) in prove and held.hook is not None:
                    prove.discard(id(held))
                    held.proof = _Proof(held, gradient)

    def close(self) -> None:
        for held in self._hooked:
            if held.proof is not None:
                held.proof.remove()
                held.proof = None
            held.hook.remove()
            held.hook = None
        self._hooked.clear()
