"""SparseAdam with the arguments of torch.optim.SparseAdam."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from gradstep.optimizer import Optimizer, Places
from gradstep.rules.sparse_adam import sparse_adam


class SparseAdam(Optimizer):
    """Adam for sparse gradients: :func:`gradstep.sparse_adam`.

    Takes torch.optim.SparseAdam's arguments and its checkpoints. Only the rows that a gradient
    names are touched.

    Args:
        params: dense real tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: the learning rate, above 0. Default: 1e-3.
        betas: how much of the average gradient, and of the average squared gradient, is kept at
            each step. Default: (0.9, 0.999).
        eps: keeps the division from blowing up, above 0. Default: 1e-8.
        maximize: climb instead of descend. Default: False.

    Raises:
        TypeError, ValueError: what torch.optim.SparseAdam refuses; nan and numbers of the wrong
            type.
        RuntimeError: at a step, a dense gradient.
    """

    _places: ClassVar[Places] = {"beta1": ("betas", 0), "beta2": ("betas", 1)}

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        maximize: bool = False,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "maximize": maximize}
        self._begin(params, sparse_adam, defaults, "eager")
        if not lr > 0:  # here alone: a scheduler may come down to 0
            raise ValueError(f"Invalid learning rate: {lr}; SparseAdam needs more than 0")

    def state_dict(self) -> dict[str, Any]:
        """The state dict of torch.optim.SparseAdam, whose step counts are plain ints.

        With a tensor there, torch's class would work out its step sizes in float32.
        """
        saved = super().state_dict()
        state = {
            key: {**entry, "step": int(entry["step"])}
            if isinstance(entry, Mapping) and "step" in entry
            else entry
            for key, entry in saved["state"].items()
        }
        return {**saved, "state": state}

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Raise unless every option of a group is allowed."""
        super().check_group(group)
        if not group["eps"] > 0:
            raise ValueError(f"Invalid epsilon value: {group['eps']}; SparseAdam needs more than 0")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters.

        Raises:
            ValueError: sparse or complex parameters.
        """
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            if p.is_sparse or p.is_complex():
                name = self.name_of(p)
                self.param_groups.pop()
                if p.is_sparse:
                    raise ValueError(f"SparseAdam requires dense parameter tensors; {name} is not")
                raise ValueError(f"SparseAdam does not support complex parameters; {name} is one")
