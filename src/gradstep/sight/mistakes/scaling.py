"""GradScaler: gradients that are still scaled when they are used or clipped."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad

from gradstep.sight.mistakes.calls import follow
from gradstep.sight.mistakes.finding import Mistake
from gradstep.sight.mistakes.gradients import Gradients
from gradstep.sight.mistakes.watched import Family, Held, Watched

GRADIENTS_STILL_SCALED = Mistake(
    "gradients-still-scaled",
    when="a step uses gradients with GradScaler's factor in them. (After a step with "
    "`fused=True` it is so by design: the step unscales on its way and leaves `.grad` as "
    "it was; torch's writes the unscaled gradient there)",
    why="the update is as many times too large",
    write="scaler.step(optimizer) and scaler.update() in place of optimizer.step()",
)
CLIPPED_BEFORE_UNSCALE = Mistake(
    "clipped-before-unscale",
    when="gradients are clipped while GradScaler's factor is in them",
    why="the limit is as many times too low for them: after unscaling next to nothing is left",
    write="scaler.unscale_(optimizer) before this line",
)


class Scaling(Family):
    """Knows which gradients came from a scaled loss, by when its backward pass began and ended."""

    order = 5

    def __init__(self, diagnosis: Any) -> None:
        super().__init__(diagnosis)
        self._scalers: list[Any] = []
        self._ends: list[Callable[[], None]] = []
        self._scaled_now: list[tuple[Watched, Held, Any]] = []
        self._inside = 0  # how many scaler.step() are running
        #: Scaled backward passes: first tick, last tick, scaler.
        self._passes: deque[list[Any]] = deque(maxlen=256)

    def take(self, scaler: Any) -> None:
        """Watch this scaler."""
        if any(scaler is known for known in self._scalers):
            return
        self._scalers.append(scaler)
        self.diagnosis.family(Gradients).follow_always()
        self.begin()

    def begin(self) -> None:
        """Follow the calls, from before a script takes its own references to them."""
        if not self._ends:
            kind = torch.amp.GradScaler
            self._ends = [
                follow(kind, "scale", after=self._scaled),
                follow(kind, "step", before=self._step_begins, after=self._step_ends),
                *(
                    follow(owner, name, before=self._clip_begins, after=self._clip_ends)
                    for owner, name in (
                        (clip_grad, "_clip_grads_with_norm_"),
                        (clip_grad, "clip_grad_value_"),
                        (torch.nn.utils, "clip_grad_value_"),
                    )
                ),
            ]

    def _step_begins(self, *_: Any, **__: Any) -> None:
        self._inside += 1

    def _step_ends(self, *_: Any, **__: Any) -> None:
        self._inside -= 1

    def _scaled(self, result: Any, scaler: Any, *_: Any, **__: Any) -> None:
        if not any(scaler is known for known in self._scalers) or not scaler.is_enabled():
            return
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, Tensor) and tensor.requires_grad and not tensor.is_leaf:
                tensor.register_hook(lambda _: self._backward_begins(scaler))

    def _backward_begins(self, scaler: Any) -> None:
        clock = self.diagnosis.family(Gradients).tick
        running = [clock(), float("inf"), scaler]
        self._passes.append(running)

        def ends() -> None:
            running[1] = clock()

        torch.autograd.Variable._execution_engine.queue_callback(ends)

    def _scaler_of(self, watched: Watched, held: Held) -> Any:
        """The scaler with whose factor a gradient still stands, or None."""
        for first, last, scaler in self._passes:
            if first < held.arrived < last:
                gradient = held.parameter.grad
                entry = scaler._per_optimizer_states.get(id(watched.optimizer))
                ready = entry is None or entry["stage"].name == "READY"
                untouched = gradient is not None and gradient._version == held.arrived_version
                if ready and untouched and scaler.get_scale() != 1:
                    return scaler
        return None

    def before_step(self, watched: Watched) -> None:
        if not self._passes or self._inside:
            return
        for held in watched.held:
            scaler = self._scaler_of(watched, held)
            if scaler is not None:
                self.diagnosis.report(
                    GRADIENTS_STILL_SCALED,
                    f"optimizer.step() used gradients of a loss that GradScaler had multiplied by "
                    f"{scaler.get_scale():g}",
                    watched=watched,
                )
                return

    def _clip_begins(self, *_: Any, **__: Any) -> None:
        self._scaled_now = []
        if self._passes:
            self.diagnosis.guarded(self._find_scaled)

    def _find_scaled(self) -> None:
        for watched in self.diagnosis.watched:
            for held in watched.held:
                scaler = self._scaler_of(watched, held)
                if scaler is not None:
                    self._scaled_now.append((watched, held, scaler))

    def _clip_ends(self, *_: Any, **__: Any) -> None:
        # Which ones were clipped is seen by their versions: the argument may be a generator.
        for watched, held, scaler in self._scaled_now:
            gradient = held.parameter.grad
            if gradient is not None and gradient._version != held.arrived_version:
                self.diagnosis.report(
                    CLIPPED_BEFORE_UNSCALE,
                    f"gradients were clipped while GradScaler's factor of {scaler.get_scale():g} "
                    "was still in them",
                    watched=watched,
                )
        self._scaled_now = []

    def close(self) -> None:
        for end in self._ends:
            end()
        self._ends.clear()
        self._passes.clear()
