"""Adamax with the arguments of torch.optim.Adamax."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from gradstep.optimizer import Optimizer, Places
from gradstep.rules.adamax import adamax
from gradstep.torch_optim.flags import check_flags


class Adamax(Optimizer):
    """Adam with the largest recent gradient: :func:`gradstep.adamax`.

    Takes torch.optim.Adamax's arguments and its checkpoints.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: the learning rate. Default: 2e-3.
        betas: how much of the average gradient, and of the largest size, is kept at
            each step. Default: (0.9, 0.999).
        eps: is added to each gradient's size. Default: 1e-8.
        weight_decay: adds this share of the weight to its gradient. Default: 0.
        maximize: climb instead of descend. Default: False.
        foreach, capturable: kept as torch keeps them; they change nothing in the result.
        differentiable: let autograd record the step. Default: False.
        engine: ``"auto"``, ``"fused"``, ``"eager"`` or ``"compile"``.

    Raises:
        TypeError, ValueError: what torch.optim.Adamax refuses; nan and numbers of the wrong type.
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
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        engine: str = "auto",
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "capturable": capturable,
        }
        self._begin(params, adamax, defaults, engine)
        check_flags(foreach=foreach, differentiable=differentiable)
