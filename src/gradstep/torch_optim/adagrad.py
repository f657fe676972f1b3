"""Adagrad with the arguments of torch.optim.Adagrad."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gradstep.optimizer import Optimizer
from gradstep.rules.adagrad import adagrad
from gradstep.torch_optim.flags import check_flags


class Adagrad(Optimizer):
    """Adagrad: :func:`gradstep.adagrad`.

    Takes torch.optim.Adagrad's arguments and its checkpoints; as there, the states exist from
    construction on. A sparse gradient updates only the rows that it names.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: the learning rate. Default: 1e-2.
        lr_decay: lr is divided by ``1 + (step − 1) · lr_decay``. Default: 0.
        weight_decay: adds this share of the weight to its gradient. Default: 0.
        initial_accumulator_value: what the sum of squared gradients starts with. Default: 0.
        eps: keeps the division from blowing up where gradients are tiny. Default: 1e-10.
        maximize: climb instead of descend. Default: False.
        foreach, fused: kept as torch keeps them; they change nothing in the result. With
            ``fused``, a step under GradScaler unscales in its own pass, and only reads ``.grad``:
            that stays scaled, where torch's fused step writes the unscaled gradient into it.
        differentiable: let autograd record the step. Default: False.
        engine: ``"auto"``, ``"fused"``, ``"eager"`` or ``"compile"``.

    Raises:
        TypeError, ValueError, RuntimeError: what torch.optim.Adagrad refuses; nan and numbers of
            the wrong type.
    """

    _states_at_construction = True

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        engine: str = "auto",
    ) -> None:
        defaults = {
            "lr": lr,
            "lr_decay": lr_decay,
            "eps": eps,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "fused": fused,
        }
        self._begin(params, adagrad, defaults, engine)
        check_flags(foreach=foreach, fused=fused, differentiable=differentiable)

    def share_memory(self) -> None:
        """Put the sums into memory that other processes can share."""
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["sum"].share_memory_()
