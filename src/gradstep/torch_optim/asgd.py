"""ASGD with the arguments of torch.optim.ASGD."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gradstep.optimizer import Optimizer
from gradstep.rules.asgd import asgd
from gradstep.torch_optim.flags import check_flags


class ASGD(Optimizer):
    """Averaged stochastic gradient descent: :func:`gradstep.asgd`.

    Takes torch.optim.ASGD's arguments and its checkpoints.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: the learning rate at the start. Default: 1e-2.
        lambd: how fast it falls. Default: 1e-4.
        alpha: the power by which it falls. Default: 0.75.
        t0: the step at which averaging begins. Default: 1e6.
        weight_decay: adds this share of the weight to its gradient. Default: 0.
        maximize: climb instead of descend. Default: False.
        foreach, capturable: kept as torch keeps them; they change nothing in the result.
        differentiable: let autograd record the step. Default: False.
        engine: ``"auto"``, ``"fused"``, ``"eager"`` or ``"compile"``.

    Raises:
        TypeError, ValueError: what torch.optim.ASGD refuses; nan and numbers of the wrong type.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        lambd: float = 1e-4,
        alpha: float = 0.75,
        t0: float = 1e6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        *,
        engine: str = "auto",
    ) -> None:
        defaults = {
            "lr": lr,
            "lambd": lambd,
            "alpha": alpha,
            "t0": t0,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "capturable": capturable,
        }
        self._begin(params, asgd, defaults, engine)
        check_flags(foreach=foreach, differentiable=differentiable)
