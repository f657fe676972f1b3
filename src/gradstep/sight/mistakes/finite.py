"""Gradients that are inf or nan, and where in the forward or backward pass they began."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gradstep.sight.mistakes.finding import Mistake
from gradstep.sight.mistakes.forward import Forward
from gradstep.sight.mistakes.watched import FIRST_STEPS, Family, Held, Watched

NON_FINITE_GRADIENT = Mistake(
    "non-finite-gradient",
    when="inf or nan, with the first module of the forward pass that returned them though its "
    "input and weights were finite, or that was given them; else with the first one of "
    "the backward pass",
    why="a step with them makes weights nan, and nothing repairs them",
    write="a smaller lr, or operations with a finite derivative: "
    "torch.autograd.set_detect_anomaly(True) shows which makes them",
)

#: At each of the first steps, where a training that diverges does so, then at each of these; after
#: the hundredth at each at which anything is looked at.
_FIRST, _EACH = 20, 10


class Finite(Family):
    """Non-finite gradients. A nan stays in the weights, so a look now and then does not miss it."""

    order = 6

    def __init__(self, diagnosis: Any) -> None:
        super().__init__(diagnosis)
        self._explained: set[int] = set()  # ids of those for which the beginning is known

    def before_step(self, watched: Watched) -> None:
        if id(watched) in self._explained:
            return
        often = watched.steps < _FIRST or watched.steps >= FIRST_STEPS or not watched.steps % _EACH
        if not often and not watched.looks:
            return
        if watched.has_closure or getattr(watched.optimizer, "found_inf", None) is not None:
            return  # GradScaler has looked itself
        held = [h for h in watched.held if _readable(h.parameter.grad)]
        with torch.no_grad():
            # Their sum is finite exactly if all of them are, unless it overflows: then look again.
            norms = torch._foreach_norm([_dense(h.parameter.grad) for h in held]) if held else []
            if not held or math.isfinite(sum(norm.item() for norm in norms)):
                return
            bad = [h for h in held if not bool(_dense(h.parameter.grad).isfinite().all())]
            if bad:
                self._say(watched, held, bad)

    def _say(self, watched: Watched, held: list[Held], bad: list[Held]) -> None:
        spoilt = [h for h in watched.held if not bool(h.parameter.isfinite().all())]
        name_of = self.diagnosis.name_of
        in_order = sorted(held, key=lambda h: h.order)
        first = min(bad, key=lambda h: h.order)
        sound = [h for h in in_order if h.order < first.order and h not in bad]
        gradient = _dense(first.parameter.grad)
        kind = "nan" if bool(gradient.isnan().any()) else "inf"
        name = name_of(first.parameter)
        module = name.rpartition(".")[0] or name
        hint = "torch.autograd.set_detect_anomaly(True) to see which operation makes them"
        forward = self.diagnosis.family(Forward)
        told = forward is not None and forward.looked
        key = None
        if not spoilt and told and forward.spoilt and (not sound or forward.reached_the_end()):
            seen, write = _of_forward_pass(forward)
            key = ("forward", id(watched))  # also if the gradients were named before
            self._explained.add(id(watched))
        elif spoilt:
            name = name_of(spoilt[0].parameter)
            seen = f"gradients are {kind}, and so are weights already, {name} among them"
            write = f"a smaller lr; {hint}"
        elif sound:
            near = name_of(sound[-1].parameter)
            seen = (
                f"the gradient of {name} is {kind}, while that of {near}, nearer to the loss, is "
                f"finite: {module} or what follows it made it so"
            )
            write = (
                f"an operation with a finite derivative there, such as a sqrt, log or division "
                f"with a small number added; {hint}"
            )
        else:
            seen = (
                f"gradients are {kind} from the loss on: {module} is the first module that gets "
                "them" + ", and what the modules returned in the forward pass was finite" * told
            )
            write = (
                "print(loss): if it is not finite, look for log(0), a division by 0 or inputs "
                f"that are not finite; {hint}"
            )
        if forward is not None and not spoilt and key is None:
            forward.arm()  # in case the step is left out, as a loop may do, and the weights last
        self.diagnosis.report(
            NON_FINITE_GRADIENT,
            seen,
            write=write,
            parameter=name,
            watched=watched,
            key=key,
        )


def _of_forward_pass(forward: Forward) -> tuple[str, str]:
    """What was seen in the forward pass, and what to write."""
    spoilt = forward.spoilt
    assert spoilt is not None
    name = forward.name_of(spoilt.module())
    if spoilt.weights is not None:
        seen = f"weights of {name} are {spoilt.weights}, and so is what it returned"
        return seen, "look at what wrote these weights: an initialisation, a checkpoint"
    if spoilt.given is not None:
        return (
            f"what {name} was given in the forward pass is {spoilt.given} already, and no module "
            "before it returned such values",
            "look at the batch, and at operations before this module that stand in no module of "
            "their own: a log(0), a division by 0, an exp that overflows",
        )
    return (
        f"{name} returned {spoilt.kind} in the forward pass, though its input and its weights were "
        "finite; it is the first module that did",
        "look in this module for a log(0), a division by 0, an exp that overflows, or a range that "
        "its dtype does not have; a small number added, or clamp(), keeps values finite",
    )


def _readable(gradient: Tensor | None) -> bool:
    return (
        gradient is not None
        and (gradient.is_floating_point() or gradient.is_complex())
        and gradient.device.type != "meta"
        and not hasattr(gradient, "to_local")
    )


def _dense(gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    return gradient._values() if gradient.is_sparse else gradient
