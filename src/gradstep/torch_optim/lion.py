"""Lion, with arguments in torch.optim's style."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from gradstep.optimizer import Optimizer, Places
from gradstep.rules import lion
from gradstep.torch_optim.flags import check_flags


class Lion(Optimizer):
    """Lion: :func:`gradstep.lion`. torch.optim has none; timm's and lion-pytorch's arguments.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: the learning rate. Default: 1e-4.
        betas: the share of the kept average in the direction, and how much of it is kept at each
            step. Default: (0.9, 0.99).
        weight_decay: shrinks the weight by ``lr · weight_decay``. Default: 0.
        maximize: climb instead of descend. Default: False.
        foreach, capturable: kept as torch keeps them; they change nothing in the result.
        differentiable: let autograd record the step. Default: False.
        engine: ``"auto"``, ``"fused"``, ``"eager"`` or ``"compile"``.

    Raises:
        TypeError, ValueError: hyperparameters out of range, nan, or of the wrong type.
    """

    _places: ClassVar[Places] = {"beta1": ("betas", 0), "beta2": ("betas", 1)}

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-4,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        engine: str = "auto",
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
        }
        self._begin(params, lion, defaults, engine)
        check_flags(foreach=foreach, differentiable=differentiable)
