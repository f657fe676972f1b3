"""RMSprop with the arguments of torch.optim.RMSprop."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gradstep.optimizer import Optimizer
from gradstep.rules.rmsprop import rmsprop
from gradstep.torch_optim.flags import check_flags


class RMSprop(Optimizer):
    """RMSprop, centred or not, with momentum or without: :func:`gradstep.rmsprop`.

    Takes torch.optim.RMSprop's arguments and its checkpoints.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: the learning rate. Default: 1e-2.
        alpha: how much of the average squared gradient is kept at each step. Default: 0.99.
        eps: keeps the division from blowing up where gradients are tiny. Default: 1e-8.
        weight_decay: adds this share of the weight to its gradient. Default: 0.
        momentum: how much of the running sum of steps is kept; 0, the default, for none.
        centered: divide by the gradient's standard deviation. Default: False.
        maximize: climb instead of descend. Default: False.
        capturable, foreach: kept as torch keeps them; they change nothing in the result.
        differentiable: let autograd record the step. Default: False.
        engine: ``"auto"``, ``"fused"``, ``"eager"`` or ``"compile"``.

    Raises:
        TypeError, ValueError: what torch.optim.RMSprop refuses; nan and numbers of the wrong type.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        engine: str = "auto",
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "alpha": alpha,
            "eps": eps,
            "centered": centered,
            "weight_decay": weight_decay,
            "capturable": capturable,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
        }
        self._begin(params, rmsprop, defaults, engine)
        check_flags(foreach=foreach, differentiable=differentiable)
