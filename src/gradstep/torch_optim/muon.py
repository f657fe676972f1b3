"""Muon with the arguments of torch.optim.Muon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from gradstep.engine.update import has_shape
from gradstep.optimizer import Optimizer, Places
from gradstep.rules.muon import muon

#: The ways in which a matrix' shape scales its step.
_ADJUSTMENTS = ("original", "match_rms_adamw", "spectral_unclamped")


class Muon(Optimizer):
    """Muon, for matrices: :func:`gradstep.muon`.

    Takes torch.optim.Muon's arguments and its checkpoints.

    Args:
        params: tensors of two dimensions, ``(name, tensor)`` pairs, or dicts of parameter groups.
            Leave biases, norms and embeddings to AdamW.
        lr: the learning rate. Default: 1e-3.
        weight_decay: shrinks the weight by ``lr · weight_decay``. Default: 0.1.
        momentum: how much of the average gradient is kept at each step. Default: 0.95.
        nesterov: mix the gradient in once more. Default: True.
        ns_coefficients: of the Newton–Schulz polynomial. Default: (3.4445, −4.775, 2.0315).
        eps: the smallest norm that a matrix is divided by. Default: 1e-7.
        ns_steps: how many Newton–Schulz iterations; below 100. Default: 5.
        adjust_lr_fn: ``"original"``, ``"match_rms_adamw"``, ``"spectral_unclamped"`` (torch's own
            takes it since 2.14), or None for the first.
        engine: ``"auto"``, ``"fused"``, ``"eager"`` or ``"compile"``.

    Raises:
        TypeError, ValueError: what torch.optim.Muon refuses; nan and numbers of the wrong type.
        RuntimeError: at a step, complex parameters and sparse gradients.
    """

    _places: ClassVar[Places] = {
        "a": ("ns_coefficients", 0),
        "b": ("ns_coefficients", 1),
        "c": ("ns_coefficients", 2),
    }

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        engine: str = "auto",
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "eps": eps,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
        }
        self._begin(params, muon, defaults, engine)

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Raise unless every option of a group is allowed."""
        super().check_group(group)
        self._check_adjustment(group)

    def check_changed(self, group: Mapping[str, Any]) -> None:
        """Raise unless a step can be made with the options that a group has by now."""
        self._check_adjustment(group)
        super().check_changed(group)

    def _check_adjustment(self, group: Mapping[str, Any]) -> None:
        if group["adjust_lr_fn"] not in (None, *_ADJUSTMENTS):
            raise ValueError(
                f"Adjust learning rate function {group['adjust_lr_fn']} is not supported; choose "
                f"one of {', '.join(map(repr, _ADJUSTMENTS))}"
            )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters.

        Raises:
            ValueError: a parameter that has not two dimensions.
        """
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            if has_shape(p) and p.dim() != 2:
                name = self.name_of(p)
                self.param_groups.pop()
                raise ValueError(
                    f"Muon only supports 2D parameters, and {name} has size {tuple(p.shape)}. "
                    "Give it to AdamW."
                )
