"""Adafactor with the arguments of torch.optim.Adafactor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from gradstep.optimizer import Optimizer, Places
from gradstep.rules.adafactor import adafactor


class Adafactor(Optimizer):
    """Adafactor, with a second moment a row and a column: :func:`gradstep.adafactor`.

    Takes torch.optim.Adafactor's arguments and its checkpoints.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups. Real ones.
        lr: the learning rate, at most 1/√step of which is used. Default: 1e-2.
        beta2_decay: how fast the averages settle: they take in ``stepᵝ`` of the new. Default: −0.8.
        eps: the smallest root of a second moment (None for the dtype's machine epsilon), and the
            size that small weights are taken to have. Default: (None, 1e-3).
        d: steps whose root mean square is larger are scaled down to it. Default: 1.
        weight_decay: shrinks the weight by ``lr · weight_decay``. Default: 0.
        foreach: kept as torch keeps it; changes nothing in the result.
        maximize: climb instead of descend. Default: False.
        engine: ``"auto"``, ``"fused"``, ``"eager"`` or ``"compile"``.

    Raises:
        TypeError, ValueError: what torch.optim.Adafactor refuses; nan and numbers of the wrong
            type.
        RuntimeError: at a step, complex parameters and sparse gradients.
    """

    _places: ClassVar[Places] = {"eps1": ("eps", 0), "eps2": ("eps", 1)}

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        engine: str = "auto",
    ) -> None:
        defaults = {
            "lr": lr,
            "beta2_decay": beta2_decay,
            "eps": eps,
            "d": d,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "maximize": maximize,
        }
        self._begin(params, adafactor, defaults, engine)

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Raise unless every option of a group is allowed, in torch's words where it has some."""
        eps1 = self.hyperparameter(group, "eps1")
        if eps1 is not None and not eps1 >= 0:
            raise ValueError(f"epsilon1 should be >= 0 but is: {eps1}")
        if group["d"] < 1:
            raise ValueError(f"Clipping threshold d should be >= 1 but is: {group['d']}")
        if group["beta2_decay"] > 0:
            raise ValueError(f"beta2_decay should be <= 0 but is: {group['beta2_decay']}")
        super().check_group(group)
