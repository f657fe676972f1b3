"""What the settings of a rule say about it: decay where none is wanted, eps and beta2 too large."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import nn

from gradstep.sight.mistakes.finding import Mistake
from gradstep.sight.mistakes.scheduling import Scheduling
from gradstep.sight.mistakes.watched import Family, Held, Watched, values_of

DECAY_ON_BIASES = Mistake(
    "decay-on-biases",
    when="a `weight_decay` that you chose also shrinks biases and norms",
    why="shrinking them does not make the network simpler, and norms lose their scale",
    write="two groups, the second with weight_decay=0 for the parameters of p.ndim < 2",
    severity="advice",
)
BETA2_TOO_NEAR_1 = Mistake(
    "beta2-too-near-1",
    when="beta2 averages over more than twice the steps that OneCycleLR was made for",
    why="the size of the first, largest gradients decides all the steps to the end",
    write="a smaller beta2, which averages over a tenth of the steps",
    severity="advice",
)
EPS_TOO_LARGE = Mistake(
    "eps-too-large",
    when="eps is larger than the root of the second moment for most weights",
    why="the rule then divides by eps alone: it is SGD with momentum, and its steps are as "
    "small as the gradients",
    write="a smaller eps, or a loss that is not scaled down",
    severity="advice",
)

_LOOKS = 5
_NORMS = ("BatchNorm", "LayerNorm", "GroupNorm", "InstanceNorm", "RMSNorm")


class RuleSigns(Family):
    """Advice that only settings and states of the rule tell."""

    order = 10

    def __init__(self, diagnosis: Any) -> None:
        super().__init__(diagnosis)
        self._swallowed: dict[int, int] = {}
        self._told: set[int] = set()

    def before_look(self, watched: Watched) -> None:
        if id(watched) not in self._told:
            self._told.add(id(watched))
            self._decay(watched)
            self._horizon(watched)

    def _decay(self, watched: Watched) -> None:
        # Only where somebody chose a decay: AdamW's own, 0.01, is in use everywhere.
        usual = _default(watched.optimizer, "weight_decay")
        found = []
        for held in watched.held:
            decay = held.group.get("weight_decay", 0)
            if isinstance(decay, (int, float)) and decay > 0 and decay != usual:
                name, module = self.diagnosis.module_of(held.parameter)
                if _is_bias_or_norm(held, name, module):
                    found.append((name, decay))
        if found:
            name, decay = found[0]
            more = f" and {len(found) - 1} others" if len(found) > 1 else ""
            self.diagnosis.report(
                DECAY_ON_BIASES,
                f"weight_decay={decay:g} also shrinks {name}{more}: biases and norms",
                parameter=name,
                watched=watched,
                place=watched.place,
            )

    def _horizon(self, watched: Watched) -> None:
        total = self._total_steps(watched)
        usual = (_default(watched.optimizer, "betas") or (None, None))[1]
        for group in watched.optimizer.param_groups:
            betas = group.get("betas")
            beta2 = float(betas[1]) if betas else group.get("beta2")
            if not isinstance(beta2, float) or beta2 == usual or not total or beta2 >= 1:
                continue
            horizon = 1 / (1 - beta2)
            if horizon > 2 * total:
                self.diagnosis.report(
                    BETA2_TOO_NEAR_1,
                    f"beta2={beta2:g} averages the squared gradients over about {horizon:,.0f} "
                    f"steps, and the schedule ends after {total:,}",
                    write=f"betas=({0.9 if betas is None else float(betas[0]):g}, "
                    f"{max(0.9, 1 - 10 / total):.3g})",
                    watched=watched,
                    place=watched.place,
                )

    def _total_steps(self, watched: Watched) -> int | None:
        """How many steps the optimizer's scheduler is made for, where it counts single steps."""
        for scheduler in self.diagnosis.family(Scheduling).all():
            if scheduler.optimizer is watched.optimizer:
                total = getattr(scheduler, "total_steps", None)  # of OneCycleLR
                if isinstance(total, int) and total > 0:
                    return total
        return None

    def after_look(self, watched: Watched) -> None:
        for held in watched.held:
            entry = watched.optimizer.state.get(held.parameter)
            second = entry.get("exp_avg_sq") if isinstance(entry, dict) else None
            eps = held.group.get("eps")
            if not isinstance(second, torch.Tensor) or not isinstance(eps, float) or eps <= 0:
                continue
            if held.parameter.grad is None:
                continue
            # Codes, which a format may have in its place, are no squares.
            values = values_of(second) if second.is_floating_point() else None
            if values is None:
                continue
            betas = held.group.get("betas")
            step = float(entry.get("step", 0)) if isinstance(entry, dict) else 0.0
            share = 1 - float(betas[1]) ** step if betas and step else 1.0
            roots = (values.float() / share).sqrt()
            alive = roots > 0
            count = int(alive.sum())
            small = count > 0 and int((alive & (roots < eps)).sum()) > 0.5 * count
            looks = self._swallowed[id(held)] = self._swallowed.get(id(held), 0) + 1 if small else 0
            if looks >= _LOOKS:
                typical = float(roots[alive].median())
                name = self.diagnosis.name_of(held.parameter)
                self.diagnosis.report(
                    EPS_TOO_LARGE,
                    f"eps={eps:g} is more than sqrt(exp_avg_sq), about {typical:.0e}, for most "
                    f"weights of {name} ({looks} looks)",
                    write=f"eps={10 ** math.floor(math.log10(max(typical, 1e-38)) - 2):.0e}, or a "
                    "loss that is not scaled down",
                    parameter=name,
                    watched=watched,
                )


def _default(optimizer: torch.optim.Optimizer, name: str) -> Any:
    parameter = inspect.signature(type(optimizer).__init__).parameters.get(name)
    found = None if parameter is None else parameter.default
    return None if found is inspect.Parameter.empty else found


def _is_bias_or_norm(held: Held, name: str, module: nn.Module | None) -> bool:
    if module is not None:
        kind = type(module).__name__
        return name.endswith("bias") or any(norm in kind for norm in _NORMS)
    return False
