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
    when="a decoupled `weight_decay` (AdamW's, not SGD's) that you chose also shrinks biases and "
    "norms",
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
    when="eps is larger than the root of the second moment for most of the network's weights, and "
    "no larger than the rule's default",
    why="the rule then divides by eps alone: it is SGD with momentum, and its steps are as "
    "small as the gradients",
    write="a loss that is not scaled down; or else a smaller eps",
    severity="advice",
)

_LOOKS = 5
#: Where nothing is as small as eps, one look in so many is enough.
_CALM = 4
_MOST = 0.5
_EPS = 1e-8
_COUPLED = {
    "SGD", "Adam", "Adagrad", "Adadelta", "RMSprop", "ASGD", "Rprop", "Adamax", "NAdam", "RAdam",
}  # fmt: skip
_NORMS = ("BatchNorm", "LayerNorm", "GroupNorm", "InstanceNorm", "RMSNorm")


class RuleSigns(Family):
    """Advice that only settings and states of the rule tell."""

    order = 10

    def __init__(self, diagnosis: Any) -> None:
        super().__init__(diagnosis)
        self._looks: dict[int, int] = {}
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
            chosen = isinstance(decay, (int, float)) and decay > 0 and decay != usual
            if chosen and _is_decoupled(watched, held.group):
                name, module = self.diagnosis.module_of(held.parameter)
                if _is_bias_or_norm(held, name, module):
                    found.append((name, decay))
        if found:
            name, decay = found[0]
            others = len(found) - 1
            more = f" and {others} other{'s' * (others > 1)}" if others else ""
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
        looks = self._looks[id(watched)] = self._looks.get(id(watched), 0) + 1
        if looks > _LOOKS and looks % _CALM and not self._swallowed.get(id(watched)):
            return
        # Where the true gradient is 0, as that of a bias before a batch norm, rounding alone is
        # left, and a smaller eps would make it large: so it is asked of the network as a whole.
        usual = _default(watched.optimizer, "eps") or _EPS
        small = alive = 0.0
        typical = []
        for held in watched.held:
            eps = held.group.get("eps")
            if not isinstance(eps, float) or not 0 < eps <= usual or held.parameter.grad is None:
                continue  # a larger one was chosen
            roots = _roots(watched, held)
            if roots is None or not len(roots):
                continue
            alive += held.parameter.numel()
            small += held.parameter.numel() * float((roots < eps).float().mean())
            typical.append((held.parameter.numel(), float(roots.median()), held, eps))
        below = alive > 0 and small > _MOST * alive
        looks = self._swallowed[id(watched)] = (
            self._swallowed.get(id(watched), 0) + 1 if below else 0
        )
        if looks >= _LOOKS:
            _, root, held, eps = max(typical, key=lambda each: each[0])
            self.diagnosis.report(
                EPS_TOO_LARGE,
                f"eps={eps:g} is more than sqrt(exp_avg_sq) for {small / alive:.0%} of the "
                f"network's weights ({looks} looks): about {root:.0e} in "
                f"{self.diagnosis.name_of(held.parameter)}",
                write="a loss that is not scaled down; or else "
                f"eps={10 ** math.floor(math.log10(max(root, 1e-38)) - 2):.0e}",
                parameter=self.diagnosis.name_of(held.parameter),
                watched=watched,
            )


def _roots(watched: Watched, held: Held) -> torch.Tensor | None:
    """The roots of the second moment that are not 0, as far as one is kept as it is."""
    entry = watched.optimizer.state.get(held.parameter)
    second = entry.get("exp_avg_sq") if isinstance(entry, dict) else None
    # Codes, which a format may have in its place, are no squares.
    if not isinstance(second, torch.Tensor) or not second.is_floating_point():
        return None
    values = values_of(second)
    if values is None:
        return None
    betas = held.group.get("betas")
    step = float(entry.get("step", 0)) if isinstance(entry, dict) else 0.0
    share = 1 - float(betas[1]) ** step if betas and step else 1.0
    roots = (values.float() / share).sqrt()
    return roots[roots > 0]


def _is_decoupled(watched: Watched, group: dict[str, Any]) -> bool:
    """Whether the decay shrinks the weights themselves, and not by way of the gradient."""
    if group.get("decoupled_weight_decay"):
        return True
    names = [kind.__name__ for kind in type(watched.optimizer).__mro__]
    return next((name for name in names if name in (*_COUPLED, "AdamW")), "") not in _COUPLED


def _default(optimizer: torch.optim.Optimizer, name: str) -> Any:
    parameter = inspect.signature(type(optimizer).__init__).parameters.get(name)
    found = None if parameter is None else parameter.default
    return None if found is inspect.Parameter.empty else found


def _is_bias_or_norm(held: Held, name: str, module: nn.Module | None) -> bool:
    if module is not None:
        kind = type(module).__name__
        return name.endswith("bias") or any(norm in kind for norm in _NORMS)
    return False
