"""SGD with the arguments of torch.optim.SGD."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gradstep.optimizer import Optimizer
from gradstep.rules.sgd import sgd
from gradstep.torch_optim.flags import check_flags


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum or without: :func:`gradstep.sgd`.

    Takes torch.optim.SGD's arguments and its checkpoints. Plain descent has its bits.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: the learning rate. Default: 1e-3.
        momentum: how much of the running sum of gradients is kept; 0, the default, for none.
        dampening: how much of each new gradient is left out of that sum. Default: 0.
        weight_decay: adds this share of the weight to its gradient. Default: 0.
        nesterov: step along the running sum as it will be. Default: False.
        maximize: climb instead of descend. Default: False.
        foreach, fused: kept as torch keeps them; they change nothing in the result. With
            ``fused``, a step under GradScaler unscales in its own pass, and only reads ``.grad``:
            that stays scaled, where torch's fused step writes the unscaled gradient into it.
        differentiable: let autograd record the step. Default: False.
        engine: ``"auto"``, ``"fused"``, ``"eager"`` or ``"compile"``.

    Raises:
        TypeError, ValueError: what torch.optim.SGD refuses; nan and numbers of the wrong type.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        engine: str = "auto",
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
        }
        self._begin(params, sgd, defaults, engine)
        check_flags(foreach=foreach, fused=fused, differentiable=differentiable)

    def check_group(self, group: Mapping[str, Any]) -> None:
        super().check_group(group)
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
