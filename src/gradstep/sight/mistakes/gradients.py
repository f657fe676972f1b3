"""The life of a gradient: made by backward, used by one step, and gone before the next backward."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradstep.sight.mistakes.backward import Backward
from gradstep.sight.mistakes.calls import follow
from gradstep.sight.mistakes.finding import Mistake
from gradstep.sight.mistakes.membership import Membership
from gradstep.sight.mistakes.place import Place, here
from gradstep.sight.mistakes.watched import Family, Held, Watched, values_of

STEP_TWICE = Mistake(
    "step-twice",
    when="a step uses the very gradients of the step before",
    why="the second step follows a slope that was measured before the first one",
    write="one optimizer.step() for each loss.backward()",
)
FORGOTTEN_ZERO_GRAD = Mistake(
    "forgotten-zero-grad",
    when="a step uses a gradient that a backward pass has added onto the very gradient of the "
    "step before, and that nobody has cleared or scaled in between",
    why="each step then follows the sum of all gradients so far instead of the new one, so the"
    " steps grow and point the wrong way",
    write="optimizer.zero_grad() before this line, once for each step",
)
STEP_BEFORE_BACKWARD = Mistake(
    "step-before-backward",
    when="the first step, and no backward pass has reached the optimizer's parameters: none was "
    "made, or only on another model's loss, a deep copy's, or a loss made anew by torch.tensor(…)",
    why="a step without gradients changes nothing",
    write="loss.backward() before this line",
)
ZERO_GRAD_BEFORE_STEP = Mistake(
    "zero-grad-before-step",
    when="gradients are cleared between backward and step",
    why="the step has no gradient to follow, so these weights do not learn",
    write="optimizer.zero_grad() before loss.backward() or after optimizer.step(), not between"
    " them",
)


class _Proof:
    """Follows a gradient's values from one step to the next, in a few places.

    Old code clears gradients with ``p.grad.data.zero_()``, which leaves no trace in the version.
    So before anything is said, it is made sure that what a backward pass adds onto is what the one
    before, or the step, has left.
    """

    def __init__(self, held: Held, gradient: Tensor) -> None:
        self.unbroken = True
        # Not of the parameter: torch swaps no tensor that somebody has a weak reference to.
        self._held = weakref.ref(held)
        self._sample = values_of(gradient, 64)
        # Sparse gradients cannot be sampled: their versions alone have to do.
        if self._sample is not None and not bool(self._sample.any()):
            self.unbroken = False  # adding onto zeros does no harm
        self._handle = held.parameter.register_hook(self._before_adding)

    def _before_adding(self, _: Tensor) -> None:
        held = self._held()
        if held is None or held.parameter.grad is None or self._sample is None:
            return
        with torch.no_grad():
            now = values_of(held.parameter.grad, 64)
            if now is None or not torch.equal(now, self._sample):
                self.unbroken = False

    def added(self, gradient: Tensor) -> None:
        """The backward pass has added."""
        with torch.no_grad():
            self._sample = values_of(gradient, 64)

    def remove(self) -> None:
        self._handle.remove()


@dataclass
class _State:
    """What is known of an optimizer's gradients as a whole.

    Attributes:
        left: for how many more steps hooks follow each backward pass.
        begin: whether they are to begin with the next.
        odd: since which step things look odd, or at which one of these hooks came back last.
        piling: whether a backward pass has added onto a used gradient, and at which line.
    """

    left: int = 3
    begin: bool = False
    odd: int | None = None
    piling: bool = False
    place: Place | None = None

    def count(self, watched: Watched, odd: bool) -> None:
        """Something looked odd at this step, or did not: hooks are to begin at each 50th."""
        if not odd:
            self.odd, self.begin = None, False
        elif self.odd is None or watched.steps >= self.odd + 50:
            self.odd, self.begin = watched.steps, True
        else:
            self.begin = False


class Gradients(Family):
    """Gradients that pile up, are used twice, or are not there.

    Which gradient a step uses is seen at the step itself: that costs next to nothing. How a used
    gradient came to be written into needs hooks in the backward pass, and these are on for the
    first three steps, and for two after a step at which a used gradient came again, changed.
    Where that is usual, because ``zero_grad(set_to_none=False)`` keeps the tensors, at each 50th.
    """

    order = 1  # first: it keeps the counts that the others read

    def __init__(self, diagnosis: Any) -> None:
        super().__init__(diagnosis)
        self.tick = itertools.count(1).__next__
        #: When somebody called a zero_grad() last, as far as that is followed.
        self.cleared = 0
        self._anything_arrived = False
        self._last_step = 0  # when any optimizer has made its last one
        self._always = False
        self._states: dict[int, _State] = {}
        self._known: set[int] = set()  # ids of those that had a hook at some time
        self._converting = 0  # how many calls of a module's to() and its kind are running
        self._hooked: list[Watched] = []  # those that have their hooks again when it has ended
        self._end = follow(
            torch.nn.Module, "_apply", before=self._conversion_begins, after=self._conversion_ends
        )

    def follow_always(self) -> None:
        """Keep the hooks on, for a family that needs to know when each gradient arrived."""
        self._always = True
        for watched in self.diagnosis.watched:
            self._hooks_on(watched)

    def added(self, watched: Watched) -> None:
        state = self._states.setdefault(id(watched), _State())
        if any(h.parameter.requires_grad and id(h) not in self._known for h in watched.held):
            state.left = max(state.left, 3)
            watched.awake = max(watched.awake, watched.steps + 4)
            self._hooks_on(watched)

    def follows(self, watched: Watched) -> bool:
        """Whether hooks follow the backward passes before this step."""
        return self._states[id(watched)].left > 0

    def forgot(self, watched: Watched) -> None:
        self._hooks_off(watched)
        self._states.pop(id(watched), None)

    def _hooks_on(self, watched: Watched) -> None:
        for held in watched.held:
            if held.hook is None and held.parameter.requires_grad and held.parameter.is_leaf:
                hook = self._hook(self._states[id(watched)], held)
                held.hook = held.parameter.register_post_accumulate_grad_hook(hook)
                self._known.add(id(held))

    def _hooks_off(self, watched: Watched) -> None:
        for held in watched.held:
            _forget_proof(held)
            if held.hook is not None:
                held.hook.remove()
                held.hook = None
                _without_empty_hooks(held.parameter)

    def _conversion_begins(self, *_: Any, **__: Any) -> None:
        """Let go of all tensors: ``module.to()`` may swap them, which torch does for free ones."""
        self._converting += 1
        if self._converting > 1:  # of a module within the module
            return
        self.diagnosis.let_go()
        for watched in self.diagnosis.watched:
            if any(held.hook is not None for held in watched.held):
                self._hooked.append(watched)
            self._hooks_off(watched)
            for held in watched.held:
                held.used, held.used_version = None, -2
                held.last = lambda: None
                # A swapped tensor keeps its mappings of hooks, and calls none that comes into them.
                _without_empty_hooks(held.parameter)

    def _conversion_ends(self, *_: Any, **__: Any) -> None:
        self._converting -= 1
        if not self._converting:
            for watched in self._hooked:
                self._hooks_on(watched)
            self._hooked.clear()

    def _hook(self, state: _State, held: Held) -> Callable[[Tensor], None]:
        tick = self.tick

        def arrived(parameter: Tensor) -> None:
            gradient = parameter.grad
            if gradient is not None:
                version = gradient._version
                # One more than after the step: this backward wrote into it, and nobody else did,
                # neither zero_() nor a scaling.
                if version == held.used_version + 1 and held.used() is gradient:  # type: ignore[misc]
                    held.piled = True
                    if not state.piling:
                        state.piling, state.place = True, here()
                elif held.piled and version != held.arrived_version + 1:
                    held.piled = False
                # The last one is gone, and nobody has made a step with it or moved the weight.
                gone = held.last() is not gradient or (
                    self.cleared > held.arrived and version == held.arrived_version + 2
                )
                if (
                    gone
                    and held.arrived > self._last_step
                    and held.weight_version == parameter._version
                ):
                    held.dropped += 1
                held.last, held.weight_version = weakref.ref(gradient), parameter._version
                held.arrived_version = version
                if held.proof is not None:
                    self.diagnosis.guarded(held.proof.added, gradient)
            held.arrived = held.order = tick()

        return arrived

    def before_step(self, watched: Watched) -> None:
        if watched.has_closure:
            return
        state = self._states[id(watched)]
        if state.piling:
            self._find_piled(watched, state)
        any_gradient = arrived = changed = False
        all_used = True
        for held in watched.held:
            if held.arrived:
                arrived = True
            gradient = held.parameter.grad
            if gradient is not None:
                any_gradient = True
                used = held.used
                if used is None or used() is not gradient:
                    all_used = False
                elif gradient._version != held.used_version:
                    all_used, changed = False, True
        self._anything_arrived |= any_gradient or arrived
        if not state.left:
            odd = changed or not (any_gradient or watched.in_backward)
            state.count(watched, odd)
        if not any_gradient:
            self._without_gradient(watched, arrived)
        elif all_used and not self._is_about_other_parameters(watched):
            self.diagnosis.report(
                STEP_TWICE,
                f"step {watched.steps + 1} uses the very gradients that step {watched.steps} used: "
                "no backward() in between",
                watched=watched,
            )
        elif arrived and watched.looks and self._all_zeroed(watched):
            self._cleared(watched)

    def before_look(self, watched: Watched) -> None:
        self.added(watched)  # those that require a gradient by now

    def after_step(self, watched: Watched) -> None:
        state = self._states[id(watched)]
        if watched.has_closure:
            self._after_closure(watched, state)
        state.piling = False
        self._last_step = self.tick()
        for held in watched.held:
            held.piled = False
            gradient = held.parameter.grad
            if gradient is None:
                held.used, held.used_version = None, -2
                if held.arrived:
                    held.ever, held.arrived = True, 0
            else:
                held.used, held.used_version = weakref.ref(gradient), gradient._version
                held.ever, held.arrived = True, 0
        if state.begin or state.left:
            self._follow(watched, state)

    def _follow(self, watched: Watched, state: _State) -> None:
        if state.begin:
            state.begin, state.left = False, 2
            watched.awake = max(watched.awake, watched.steps + 3)
            self._hooks_on(watched)
        else:
            state.left -= 1
            # Of what moves in backward nothing else says that it was reached.
            if not state.left and not self._always and not watched.in_backward:
                self._hooks_off(watched)
        for held in watched.held:
            _forget_proof(held)
            gradient = held.parameter.grad
            if state.left and held.hook is not None and gradient is not None:
                held.proof = _Proof(held, gradient)

    def _after_closure(self, watched: Watched, state: _State) -> None:
        if state.piling:
            self._find_piled(watched, state)
        elif not state.left:
            changed = any(
                h.used is not None
                and h.parameter.grad is not None
                and h.used() is h.parameter.grad
                and h.parameter.grad._version != h.used_version
                for h in watched.held
            )
            state.count(watched, changed)

    def _find_piled(self, watched: Watched, state: _State) -> None:
        """Whether the gradient that the step uses has an older one in it.

        A backward pass may add onto a used gradient if that is then cleared, as happens in GANs.
        """
        piled = [h for h in watched.held if h.piled and h.proof is not None and h.proof.unbroken]
        for held in sorted(piled, key=lambda held: held.order):  # the first one is next to the loss
            gradient = held.parameter.grad
            if gradient is None or held.used is None or held.used() is not gradient:
                continue  # cleared, and made anew
            if gradient.layout is torch.strided and not bool(gradient.any()):
                continue  # cleared since
            name = self.diagnosis.name_of(held.parameter)
            self.diagnosis.report(
                FORGOTTEN_ZERO_GRAD,
                f"backward() added onto the gradient of {name} that step {watched.steps} had "
                "already used: zero_grad() was not called in between",
                parameter=name,
                watched=watched,
                place=state.place,
            )
            return

    def _without_gradient(self, watched: Watched, arrived: bool) -> None:
        if self._is_about_other_parameters(watched) or (arrived and watched.in_backward):
            return
        if arrived:
            self._cleared(watched)
        elif not watched.steps and not self._anything_reached():
            self._before_backward(watched)

    def _before_backward(self, watched: Watched) -> None:
        backward = self.diagnosis.family(Backward)
        if backward is None or not backward.count:
            seen, write = "step() was called before any backward(): no parameter has a gradient", ""
        elif backward.of_leaf:
            seen = (
                f"backward() was called ({backward.place}), but on a tensor that was made anew and "
                "does not know where its value came from: no parameter has a gradient"
            )
            write = (
                "the loss as the loss function returns it: without torch.tensor(…), .detach(), "
                ".item(), argmax() or requires_grad_() on the way"
            )
        else:
            seen = (
                f"backward() was called ({backward.place}), but its loss does not depend on this "
                "optimizer's parameters: none of them has a gradient"
            )
            write = (
                "the optimizer over the parameters of the very model that the loss comes from; a "
                "deep copy, or a model made anew, has parameters of its own"
            )
        self.diagnosis.report(STEP_BEFORE_BACKWARD, seen, write=write, watched=watched)

    def _is_about_other_parameters(self, watched: Watched) -> bool:
        """Whether gradients are old or missing because they go to other tensors by now."""
        membership = self.diagnosis.family(Membership)
        return membership is not None and bool(membership.find_replaced(watched))

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
            ZERO_GRAD_BEFORE_STEP,
            "the gradients that backward() had made were cleared before step() could use them",
            watched=watched,
            place=self.diagnosis.last_zero_grad(),
        )

    def close(self) -> None:
        self._end()
        for watched in self.diagnosis.watched:
            self._hooks_off(watched)


def _without_empty_hooks(parameter: Tensor) -> None:
    """Take away mappings that have no hook any more: torch goes to Python for each all the same.

    That is 3 µs a parameter in every backward pass.
    """
    for hooks in ("_backward_hooks", "_post_accumulate_grad_hooks"):
        known = getattr(parameter, hooks)
        if known is not None and not known:
            setattr(parameter, hooks, None)


def _forget_proof(held: Held) -> None:
    if held.proof is not None:
        held.proof.remove()
        held.proof = None
