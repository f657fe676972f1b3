"""Rprop with the arguments of torch.optim.Rprop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from gradstep.optimizer import Optimizer, Places
from gradstep.rules.rprop import rprop
from gradstep.torch_optim.flags import check_flags


class Rprop(Optimizer):
    """Rprop: :func:`gradstep.rprop`.

    Takes torch.optim.Rprop's arguments and its checkpoints.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: the size of the first steps. Default: 1e-2.
        etas: what a step is multiplied by where the gradient's sign turned, and where it was
            kept. Default: (0.5, 1.2).
        step_sizes: the smallest and the largest step. Default: (1e-6, 50).
        maximize: climb instead of descend. Default: False.
        foreach, capturable: kept as torch keeps them; they change nothing in the result.
        differentiable: let autograd record the step. Default: False.
        engine: ``"auto"``, ``"fused"``, ``"eager"`` or ``"compile"``.

    Raises:
        TypeError, ValueError: what torch.optim.Rprop refuses; nan and numbers of the wrong type.
    """

    _places: ClassVar[Places] = {
        "eta_minus": ("etas", 0),
        "eta_plus": ("etas", 1),
        "step_size_min": ("step_sizes", 0),
        "step_size_max": ("step_sizes", 1),
    }

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50),
        *,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        engine: str = "auto",
    ) -> None:
        defaults = {
            "lr": lr,
            "etas": etas,
            "step_sizes": step_sizes,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "capturable": capturable,
        }
        self._begin(params, rprop, defaults, engine)
        check_flags(foreach=foreach, differentiable=differentiable)

    def check_group(self, group: Mapping[str, Any]) -> None:
        super().check_group(group)
        minus, plus = group["etas"]
        if not 0.0 < minus < 1.0 < plus:
            raise ValueError(
                f"Invalid eta values: {minus}, {plus}; the first must lie between 0 and 1, the "
                "second above 1"
            )
