"""What a diagnosis knows of the optimizers and parameters that it watches."""

from __future__ import annotations

import weakref
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor

from gradstep.backends.update import in_pairs
from gradstep.compose.offload import frees_gradients
from gradstep.compose.step_in_backward import steps_in_backward
from gradstep.sight.mistakes.place import Place

#: So many steps from the beginning are all looked at.
FIRST_STEPS = 100


class Held:
    """A parameter in one optimizer's hands. The counts of ``arrived`` are a clock of all of them.

    Attributes:
        parameter: the tensor.
        group: the mapping of its parameter group.
        arrived: when a backward pass last added to its gradient; 0 if none has since the last step.
        arrived_version: of the gradient at that time.
        order: the same, and kept over the steps; 0 if it is not known.
        last: a weak reference to the gradient to which it added last.
        dropped: how many gradients since the last step were thrown away unused, as far as hooks
            were on.
        weight_version: of the parameter when the last gradient came.
        ever: whether a backward pass has reached it at all.
        piled: whether backward passes have added onto the used gradient, and nobody else has
            written into it.
        proof: follows the gradient's values while that is to be made sure.
        used: a weak reference to the gradient that the last step used, or None.
        used_version: of that gradient, after the step.
    """

    __slots__ = (
        "__weakref__",
        "arrived",
        "arrived_version",
        "dropped",
        "ever",
        "group",
        "hook",
        "last",
        "order",
        "parameter",
        "piled",
        "proof",
        "used",
        "used_version",
        "weight_version",
    )

    def __init__(self, parameter: Tensor, group: dict[str, Any]) -> None:
        self.parameter = parameter
        self.group = group
        self.arrived = 0
        self.arrived_version = -1
        self.order = 0
        self.ever = False
        self.last: Any = lambda: None
        self.dropped = 0
        self.weight_version = -1
        self.used: weakref.ref[Tensor] | None = None
        self.used_version = -2
        self.piled = False
        self.hook: Any = None
        self.proof: Any = None

    def is_used_gradient(self, gradient: Tensor) -> bool:
        """Whether it is the one that the last step used, and nobody has written into it since."""
        return (
            self.used is not None
            and self.used() is gradient
            and gradient._version == self.used_version
        )


class Watched:
    """An optimizer that is watched.

    Attributes:
        optimizer: the optimizer.
        place: where it was made, as far as known; else where watching began.
        held: its parameters.
        steps: how many it has made since watching began.
        has_closure: whether the step that runs was given one.
        looks: whether the step that runs is one at which values are looked at.
        attended: whether it is one at which anything is looked at.
        awake: until which step all are looked at.
        kept: after which step it was last kept what it left.
        inner: whether the step that runs is made within another watched optimizer's.
        loaded: how often a checkpoint was loaded into it.
        step_place: where it last made a step at which values were looked at.
        handles: of the hooks on it.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, place: Place | None) -> None:
        self.optimizer = optimizer
        self.place = place
        self.held: list[Held] = []
        self.steps = 0
        self.has_closure = False
        self.looks = False
        self.attended = True
        self.awake = FIRST_STEPS
        self.kept = 0
        self.inner = False
        self.loaded = 0
        self.step_place: Place | None = None
        self.handles: list[Any] = []
        self.refresh()

    @property
    def in_backward(self) -> bool:
        """Whether gradients are used or leave within backward, so that ``step()`` finds none."""
        first = next((h.parameter for h in self.held if h.parameter.requires_grad), None)
        return first is not None and (steps_in_backward(first) or frees_gradients(first))

    def is_current(self) -> bool:
        """Whether its groups hold the parameters that are known, and no others."""
        groups = self.optimizer.param_groups
        params = list(chain.from_iterable(group["params"] for group in groups))
        same = map(is_, params, (held.parameter for held in self.held))
        return len(params) == len(self.held) and all(same)

    def refresh(self) -> None:
        """Take in parameters and groups that have come, and drop those that have gone."""
        known = {id(h.parameter): h for h in self.held}
        self.held = []
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                held = known.get(id(p)) or Held(p, group)
                held.group = group
                self.held.append(held)
        kept = set(map(id, self.held))
        for held in known.values():
            if id(held) not in kept:
                for hook in (held.hook, held.proof):
                    if hook is not None:
                        hook.remove()


class Family:
    """Diagnoses of one kind. Each method is called when something happens; it reads only.

    Attributes:
        order: families are asked in the order of these.
    """

    order = 100

    def __init__(self, diagnosis: Any) -> None:
        self.diagnosis = diagnosis

    def added(self, watched: Watched) -> None:
        """An optimizer, or parameters of one, have come."""

    def forgot(self, watched: Watched) -> None:
        """An optimizer is not watched any more, because the script has thrown it away."""

    def before_step(self, watched: Watched) -> None:
        """A step begins; a closure has not run yet."""

    def after_step(self, watched: Watched) -> None:
        """A step has been made; ``watched.steps`` counts it already."""

    def before_look(self, watched: Watched) -> None:
        """As before_step, at those steps alone at which values are looked at."""

    def after_look(self, watched: Watched) -> None:
        """As after_step, at those steps alone at which values are looked at."""

    def let_go(self) -> None:
        """A module is converted: torch swaps no tensor that somebody has a weak reference to."""

    def before_backward(self, losses: list[Tensor]) -> None:
        """A backward pass begins, from these losses."""

    def after_backward(self) -> None:
        """A backward pass has ended, maybe by an exception."""

    def close(self) -> None:
        """Watching ends: the time to say what never happened, and to take off what was put on."""


def values_of(tensor: Tensor, most: int = 4096) -> Tensor | None:
    """A copy of at most about ``most`` elements, evenly spread, in one dimension.

    None for tensors that cannot be read like that: sparse, on no device, given back to the system
    for the time being.
    """
    window = window_of(tensor, most)
    return None if window is None else window.clone()


def window_of(tensor: Tensor, most: int) -> Tensor | None:
    """The same elements, as a view of the tensor where its layout allows for one, else a copy."""
    tensor = tensor.detach()
    local = getattr(tensor, "to_local", None)  # a DTensor's own part, without talking to others
    if local is not None:
        tensor = local()
    if tensor.layout is not torch.strided or tensor.device.type == "meta" or not tensor.numel():
        return None
    if not tensor.untyped_storage().nbytes():  # given back for the time being, as by FSDP
        return None
    tensor = in_pairs(tensor)
    if tensor.is_contiguous():
        flat = tensor.view(-1)
    elif tensor.numel() <= 16 * most:
        flat = tensor.reshape(-1)
    else:
        flat = tensor[0].reshape(-1)
    # An odd stride does not fall into step with rows of even length.
    return flat[:: max(1, flat.numel() // most) | 1]
