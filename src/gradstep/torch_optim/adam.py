"""Adam and AdamW with the arguments of torch.optim's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from gradstep.optimizer import Optimizer, Places
from gradstep.rules.adam import adam
from gradstep.torch_optim.flags import check_flags


class Adam(Optimizer):
    """Adam, and AMSGrad: :func:`gradstep.adam`.

    Takes torch.optim.Adam's arguments and its checkpoints.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: the learning rate. Default: 1e-3.
        betas: how much of the average gradient, and of the average squared gradient, is kept at
            each step: two floats, or two tensors of one element. Default: (0.9, 0.999).
        eps: keeps the division from blowing up where gradients are tiny. Default: 1e-8.
        weight_decay: adds this share of the weight to its gradient, or, decoupled, shrinks the
            weight by ``lr · weight_decay``. Default: 0.
        amsgrad: divide by the largest average squared gradient so far. Default: False.
        maximize: climb instead of descend. Default: False.
        foreach, fused, capturable: kept as torch keeps them; they change nothing in the result.
            With ``fused``, a step under GradScaler unscales in its own pass and only reads
            ``.grad``: that stays scaled, where torch's fused step writes the unscaled one there.
        differentiable: let autograd record the step. Default: False.
        decoupled_weight_decay: AdamW's weight decay. Default: False.
        engine: ``"auto"``, ``"fused"``, ``"eager"`` or ``"compile"``.

    Raises:
        TypeError, ValueError, RuntimeError: what torch.optim.Adam refuses; nan and numbers of the
            wrong type.
    """

    _places: ClassVar[Places] = {"beta1": ("betas", 0), "beta2": ("betas", 1)}

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        engine: str = "auto",
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        self._begin(params, adam, defaults, engine)
        check_flags(
            foreach=foreach,
            fused=fused,
            differentiable=differentiable,
            capturable=capturable,
            numbers={"lr": lr, "betas[0]": betas[0], "betas[1]": betas[1]},
        )

    def check_group(self, group: Mapping[str, Any]) -> None:
        super().check_group(group)
        beta1, beta2 = group["betas"]
        if isinstance(beta1, Tensor) != isinstance(beta2, Tensor):
            raise ValueError("betas must be either both floats or both Tensors")


class AdamW(Adam):
    """Adam with decoupled weight decay: the weight itself shrinks by ``lr · weight_decay``.

    Takes torch.optim.AdamW's arguments and its checkpoints. The arguments are those of
    :class:`Adam`, with a weight_decay of 1e-2 as the default.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        engine: str = "auto",
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
            engine=engine,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # whatever checkpoint was loaded
            group["decoupled_weight_decay"] = True
