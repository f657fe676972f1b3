"""Steps within backward: each weight is updated as its gradient comes, which is then freed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradstep.backends.update import has_shape
from gradstep.compose.gradient_hooks import give_up, owner_of, take
from gradstep.compose.weight_by_weight import check_memory, check_optimizer, check_processes
from gradstep.compose.wrapper import Wrapper, _inside, rules_inside
from gradstep.optimizer.observer import StepObserver
from gradstep.optimizer.optimizer import planner_of
from gradstep.optimizer.planning import Planner
from gradstep.optimizer.step import Step


class StepInBackward(Wrapper):
    """Updates each weight within ``backward()``, as soon as its gradient is there, and frees it.

    So there are never more gradients than those of one layer, and they need no memory of their
    own. The loop stays as it is; weights, states and counts get the bits that they have without::

        optimizer = gradstep.StepInBackward(gradstep.AdamW(model.parameters()))

        loss.backward()         # the weights move here
        optimizer.step()        # ends the step: hooks, schedules, counts
        optimizer.zero_grad()

    ``step()`` also updates what has a gradient and was not updated in ``backward()``: such as a
    weight that got it otherwise. See docs/step-in-backward.md.

    Args:
        optimizer: of gradstep, a partition, or ``EMA``, ``AveragedWeights``, ``Accumulate`` or
            ``Freeze`` around one.

    Raises:
        TypeError: no optimizer, LBFGS, or one of torch's.
        ValueError: what needs all gradients at once, by name: a rule that sums over all weights or
            asks for the loss, or a wrapper such as ``SAM``; an optimizer that is differentiable or
            overrides ``step()``; weights that share memory; a model within
            ``DistributedDataParallel`` or ``FullyShardedDataParallel``, the older of the two.
        RuntimeError: from ``backward()``, whatever a step refuses, named; or a second gradient
            before ``step()``. From ``step()`` and GradScaler, where weights have moved already.
    """

    _outermost = True
    _hands_closure_on = True

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer)
        check_optimizer(optimizer)
        check_memory([(self.name_of(p), p) for p in self._weights()])
        check_processes(self._weights())
        self._begin()
        self._take_over()

    def _begin(self) -> None:
        self._lock = threading.RLock()  # weights on two devices have two threads of autograd
        self._paused = 0
        self._running: _Running | None = None
        self._places: dict[int, tuple[Planner, int, int]] = {}
        self._seen = False  # whether the processes were looked at when the first gradient came
        #: Those between this one and the optimizer.
        self._wrappers = [each for each in _inside(self.optimizer) if isinstance(each, Wrapper)]

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Asked by torch.amp.GradScaler before it makes a step.

        Raises:
            RuntimeError: says that it comes too late.
        """
        raise RuntimeError(
            "GradScaler cannot be used with StepInBackward: it looks for inf and nan in all "
            "gradients before a step, and these have moved their weights in backward(), with its "
            "scale in them. Train in bfloat16, which needs no scale, or leave StepInBackward out; "
            "and load the weights as they were"
        )

    # Hooks.

    def _take_over(self) -> None:
        """Let the gradients of all weights come here, and to no other optimizer any more."""
        for p in self._weights():
            if owner_of(p) is not self:
                give_up(p)
        self._follow()

    def _follow(self) -> None:
        """Know the place of each weight, and have all that take gradients hooked, as it is now.

        Raises:
            RuntimeError: another optimizer has taken a weight over.
        """
        self._places = {}
        for part in rules_inside(self.optimizer):
            planner = planner_of(part)
            for number, group in enumerate(part.param_groups):
                for place, p in enumerate(group["params"]):
                    self._places[id(p)] = planner, number, place
                    if not (p.requires_grad and p.is_leaf and has_shape(p)):
                        continue  # it has its hook from the step on in which it gets one
                    owner = owner_of(p)
                    if owner is not None and owner is not self:
                        raise RuntimeError(
                            f"the gradients of {self.name_of(p)} go to another "
                            f"{type(owner).__name__}, which was made later. Keep that one alone"
                        )
                    take(p, self)

    def close(self) -> None:
        """Take the hooks off. The optimizer inside then makes ordinary steps, and this one too."""
        for p in self._weights():
            if owner_of(p) is self:
                give_up(p)
        self._running = None
        self._closed = True

    _closed = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No weight moves in ``backward()`` while this lasts: gradients stay and are added up.

        For batches whose gradients are to be one step's together with the next, and for gradients
        that are none of a step, such as those that :meth:`HessianOptimizer.update_hessian` takes;
        clear these before the next ``backward()``.
        """
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    # A step.

    def _arrived(self, p: Tensor) -> None:
        """The gradient of a weight is complete."""
        gradient = p.grad
        if self._paused or gradient is None:
            return
        if gradient.requires_grad:
            raise RuntimeError(
                f"the gradient of {self.name_of(p)} has a graph of its own, as "
                "backward(create_graph=True) makes it, and the weights in that graph would move. "
                "Call backward() without it, or within optimizer.paused()"
            )
        if torch.is_grad_enabled():
            with torch.no_grad():
                return self._arrived(p)
        with self._lock:
            if not all(each._takes_now(p) for each in self._wrappers):
                return
            running = self._running or self._begin_step()
            if id(p) not in self._places:  # it has left the optimizer
                return
            if id(p) in running.done:
                raise RuntimeError(
                    f"a second gradient of {self.name_of(p)} has come before step(), and the first "
                    "has moved it already. Call step() behind each backward(); add the losses of "
                    "several up before one backward(), or call all backward() but the last within "
                    "optimizer.paused(). (A weight that a reentrant checkpoint uses twice gets two "
                    "in one backward(): give checkpoint use_reentrant=False)"
                )
            for each in self._wrappers:
                each._take_gradient(p)
            try:
                running.step.make_weight(*self._places[id(p)])
            except BaseException as error:
                self._cut_short(running, p, error)
                raise
            running.done.add(id(p))
            p.grad = None

    def _begin_step(self) -> _Running:
        """The first gradient of a step has come: look at all that needs no other one."""
        if not self._seen:
            check_processes(self._weights())
            self._seen = True
        for wrapper in self._wrappers:
            wrapper._begin_weights()
        *_, core = _inside(self.optimizer)
        rules = rules_inside(self.optimizer)
        planners = [planner_of(each) for each in rules]
        observers = [o for planner in planners for o in planner.observers]
        stepped: Any
        for stepped in dict.fromkeys((core, *rules)):
            observers += stepped._observers
        step = Step(planners, observers)
        for observer in observers:
            observer.begun(step)
        for planner in planners:
            planner.read_all()
        self._follow()
        step.observers = [o for o in observers if type(o).planned is not StepObserver.planned]
        running = self._running = _Running(step, observers)

        def ended() -> None:
            running.whole = True

        torch.autograd.Variable._execution_engine.queue_callback(ended)
        return running

    def _cut_short(self, running: _Running, p: Tensor, error: BaseException) -> None:
        """The step of a weight has raised: the step is over, and what has moved is said.

        Raises:
            RuntimeError: other weights have moved already. The error is its cause.
        """
        self._running = None
        running.step.error = error
        for observer in running.observers:
            observer.closed(running.step)
        running.step.error = None
        if not running.done or not isinstance(error, Exception):
            return
        weights = [w for w in self._weights() if w.requires_grad]
        done = [w for w in weights if id(w) in running.done]
        names = ", ".join(map(self.name_of, done[:5])) + ", …" * (len(done) > 5)
        raise RuntimeError(
            f"the step of {self.name_of(p)} was cut short by {type(error).__name__}: {error}. "
            f"{len(done)} of {len(weights)} weights had made theirs by then: {names}. The others, "
            "and their states, are as they were. Load the last checkpoint, or go on from here: "
            "each weight's states belong to it."
        ) from error

    def _step(self, closure: Callable[[], Any] | None) -> Any:
        loss = self._loss_of(closure)
        running = self._running
        if running is not None:
            for p in self._weights():
                if p.grad is not None and id(p) in running.done:
                    raise RuntimeError(
                        f"{self.name_of(p)} has moved in backward(), and has a gradient again that "
                        "would move it twice. Call zero_grad() behind what has made it, such as a "
                        "backward() within optimizer.paused()"
                    )
        self._inner_step(loss)
        self._running = None
        if not self._closed:
            self._follow()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients that are left, and a step whose ``backward()`` was cut short."""
        if self._running is not None and not self._running.whole:
            self._running = None
        super().zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters to the optimizer inside; see there."""
        super().add_param_group(param_group)
        self._take_over()

    # Checkpoints.

    def _save(self) -> dict[str, Any]:
        if self._running is not None and self._running.done:
            raise RuntimeError(
                "state_dict() between backward(), in which weights have moved, and step(), which "
                "counts it. Save behind step()"
            )
        return super()._save()

    def _load(self, state_dict: dict[str, Any], strict: bool) -> None:
        super()._load(state_dict, strict)
        self._running = None

    def __getstate__(self) -> dict[str, Any]:
        own = ("_lock", "_running", "_places", "_seen", "_paused", "_wrappers")
        return {n: v for n, v in super().__getstate__().items() if n not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "optimizer" in state and not self._closed:
            self._begin()
            self._take_over()


@dataclass
class _Running:
    """A step whose weights move one by one.

    Attributes:
        step: the step.
        observers: who is told of it; its own are those that look at what it reads.
        done: the ids of the weights that have moved.
        whole: whether the backward pass has come to its end.
    """

    step: Step
    observers: list[StepObserver]
    done: set[int] = field(default_factory=set)
    whole: bool = False


def steps_in_backward(p: Tensor) -> bool:
    """Whether a weight makes its steps within backward, so that its gradient is gone after it."""
    return isinstance(owner_of(p), StepInBackward)
