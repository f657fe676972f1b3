"""LBFGS, which is torch's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gradstep.checkpoint import check_class, check_outline


class LBFGS(torch.optim.LBFGS):
    """The quasi-Newton method of torch.optim, as it is there.

    Its work is matrix products and a line search that calls the closure again and again; there is
    no pass over memory to save. So this is torch's class under this package's name, and a
    ``step(closure)`` is torch's to the bit. Beyond torch's, it takes parameters of any layout, can
    be copied and pickled in training, and refuses the checkpoints of other classes.

    Args: those of torch.optim.LBFGS.

    Paper:
        Liu & Nocedal 1989, "On the limited memory BFGS method for large scale optimization".
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of this class or of torch.optim.LBFGS.

        Raises:
            ValueError: a checkpoint of another class; the optimizer is as it was.
        """
        if not isinstance(state_dict, Mapping):
            check_outline(state_dict)
        # Behind the user's own hooks, which may change the checkpoint.
        handle = self.register_load_state_dict_pre_hook(_check)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()

    def _gather_flat_grad(self) -> Tensor:
        # torch's own stops at gradients of another layout than rows: channels-last, transposed.
        parts = []
        for p in self._params:
            g = torch.zeros_like(p) if p.grad is None else p.grad
            g = g.to_dense() if g.is_sparse else g
            parts.append((torch.view_as_real(g) if g.is_complex() else g).reshape(-1))
        return torch.cat(parts)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # torch leaves these out of a copy, which then cannot make a step.
        self._params = self.param_groups[0]["params"]
        self._numel_cache = None


def _check(optimizer: Any, state_dict: Mapping[str, Any]) -> None:
    check_outline(state_dict)
    for number, group in enumerate(state_dict["param_groups"]):
        check_class(optimizer, group, number)
