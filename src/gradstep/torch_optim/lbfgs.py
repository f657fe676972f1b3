"""LBFGS, which is torch's own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS as TorchLBFGS

from gradstep.optimizer.loading import load
from gradstep.optimizer.optimizer import refuse_model
from gradstep.optimizer.step_hooks import HooksOnce, without_hooks


class LBFGS(HooksOnce, TorchLBFGS):
    """The quasi-Newton method of torch.optim, as it is there.

    Its work is matrix products and a line search that calls the closure again and again; there is
    no pass over memory to save. So this is torch's class under this package's name, and a
    ``step(closure)`` is torch's to the bit. Beyond torch's, it takes parameters of any layout, can
    be copied and pickled in training, and refuses the checkpoints of other classes.

    Args: those of torch.optim.LBFGS; ``maximize`` is one of them since torch 2.14.

    Paper:
        Liu & Nocedal 1989, "On the limited memory BFGS method for large scale optimization".
    """

    # Its signature is torch's, which has other options in each release.
    @functools.wraps(TorchLBFGS.__init__)  # type: ignore[misc]
    def __init__(self, params: Any, *arguments: Any, **options: Any) -> None:
        refuse_model(self, params)
        super().__init__(params, *arguments, **options)

    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Make a step; see torch.optim.LBFGS."""
        # Where there has been an optimizer of torch's class, that has hooks around its step. (Not
        # by the name in torch.optim: some put this class there.)
        return without_hooks(TorchLBFGS.step)(self, closure)

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> None:
        """Load a checkpoint of this class or of torch.optim.LBFGS.

        Raises:
            ValueError: a checkpoint of another class, or one that maximizes where torch's LBFGS
                cannot, before 2.14; the optimizer is as it was.
        """
        load(self, state_dict, None, strict)

    def _gather_flat_grad(self) -> Tensor:
        # torch's own stops at gradients of another layout than rows: channels-last, transposed. So
        # it is shown gradients in rows; what it makes of them, as their sign, stays its own.
        given = self._params
        self._params = [_in_rows(p) for p in given]
        try:
            return super()._gather_flat_grad()
        finally:
            self._params = given

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # torch leaves these out of a copy, which then cannot make a step.
        self._params = self.param_groups[0]["params"]
        self._numel_cache = None
        if "maximize" in self.defaults:  # the checkpoint of an older torch has none
            self.param_groups[0].setdefault("maximize", self.defaults["maximize"])


def _in_rows(p: Tensor) -> Tensor:
    """A weight whose gradient lies in rows: the weight itself if its gradient does."""
    g = p.grad
    if g is None or g.is_sparse or g.is_contiguous():
        return p
    in_rows = torch.empty_like(p, memory_format=torch.contiguous_format)
    in_rows.grad = g.contiguous()
    return in_rows
