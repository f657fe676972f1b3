"""NAdam with the arguments of torch.optim.NAdam."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from gradstep.optimizer import Optimizer, Places
from gradstep.rules.nadam import nadam
from gradstep.torch_optim.flags import check_flags


class NAdam(Optimizer):
    """Adam with Nesterov's momentum: :func:`gradstep.nadam`.

    Takes torch.optim.NAdam's arguments and its checkpoints.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: the learning rate. Default: 2e-3.
        betas: how much of the average gradient, and of the average squared gradient, is kept at
            each step. Default: (0.9, 0.999).
        eps: keeps the division from blowing up where gradients are tiny. Default: 1e-8.
        weight_decay: adds this share of the weight to its gradient, or, decoupled, shrinks the
            weight by ``lr · weight_decay``. Default: 0.
        momentum_decay: how soon the full momentum is reached. Default: 4e-3.
        decoupled_weight_decay: AdamW's weight decay. Default: False.
        maximize: climb instead of descend. Default: False.
        foreach, capturable: kept as torch keeps them; they change nothing in the result.
        differentiable: let autograd record the step. Default: False.
        engine: ``"auto"``, ``"fused"``, ``"eager"`` or ``"compile"``.

    Raises:
        TypeError, ValueError: what torch.optim.NAdam refuses; nan and numbers of the wrong type.
    """

    _places: ClassVar[Places] = {
        "beta1": ("betas", 0),
        "beta2": ("betas", 1),
    }

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        engine: str = "auto",
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum_decay": momentum_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
        }
        self._begin(params, nadam, defaults, engine)
        check_flags(foreach=foreach, differentiable=differentiable)
