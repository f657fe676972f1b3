"""Adadelta with the arguments of torch.optim.Adadelta."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gradstep.optimizer import Optimizer
from gradstep.rules.adadelta import adadelta
from gradstep.torch_optim.flags import check_flags


class Adadelta(Optimizer):
    """Adadelta: :func:`gradstep.adadelta`.

    Takes torch.optim.Adadelta's arguments and its checkpoints.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: the learning rate. Default: 1.0.
        rho: how much of both averages is kept at each step. Default: 0.9.
        eps: starts the steps off. Default: 1e-6.
        weight_decay: adds this share of the weight to its gradient. Default: 0.
        maximize: climb instead of descend. Default: False.
        foreach, capturable: kept as torch keeps them; they change nothing in the result.
        differentiable: let autograd record the step. Default: False.
        engine: ``"auto"``, ``"fused"``, ``"eager"`` or ``"compile"``.

    Raises:
        TypeError, ValueError: what torch.optim.Adadelta refuses; nan and numbers of the wrong type.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        capturable: bool = False,
        maximize: bool = False,
        differentiable: bool = False,
        engine: str = "auto",
    ) -> None:
        defaults = {
            "lr": lr,
            "rho": rho,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "capturable": capturable,
            "foreach": foreach,
            "differentiable": differentiable,
        }
        self._begin(params, adadelta, defaults, engine)
        check_flags(foreach=foreach, differentiable=differentiable)
