"""Parameters that stand still, by their names."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from gradstep.compose.wrapper import Wrapper


class Freeze(Wrapper):
    """Leaves out parameters by name: their weights, states and step counts stand still.

    Unlike ``requires_grad_(False)`` it needs no look at the model, and gradients are still there,
    to be looked at. ``optimizer.patterns`` may change between steps: ``[]`` thaws all. ::

        optimizer = gradstep.Freeze(gradstep.AdamW(model.named_parameters()), "encoder.*")

    Args:
        optimizer: any but LBFGS, made of named parameters.
        patterns: of names, with ``*`` and ``?``.

    Raises:
        TypeError: no optimizer, or LBFGS.
        ValueError: an optimizer without names, or a pattern that fits none of them.
    """

    _needs_all_gradients = None

    def __init__(self, optimizer: torch.optim.Optimizer, *patterns: str) -> None:
        super().__init__(optimizer)
        if not all(group.get("param_names") for group in self.param_groups):
            raise ValueError(
                "the optimizer does not know the names of its parameters: give it "
                "model.named_parameters() in place of model.parameters()"
            )
        self.patterns = list(patterns)
        names = [name for group in self.param_groups for name in group["param_names"]]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(
                    f"the pattern {pattern!r} fits no parameter; the first is {names[0]!r}"
                )

    def frozen(self) -> list[str]:
        """The names of the parameters that stand still."""
        return [name for name, _ in self._frozen()]

    def _frozen(self) -> list[tuple[str, Tensor]]:
        return [
            (name, p)
            for group in self.param_groups
            for name, p in zip(self._names.in_group(group) or (), group["params"], strict=False)
            if name is not None and any(fnmatchcase(name, pattern) for pattern in self.patterns)
        ]

    def _takes_now(self, p: Tensor) -> bool:
        name = self.name_of(p)
        return not any(fnmatchcase(name, pattern) for pattern in self.patterns)

    def _step(self, closure: Callable[[], Any] | None) -> Any:
        loss = self._loss_of(closure)
        hidden = [(p, p.grad) for _, p in self._frozen() if p.grad is not None]
        for p, _ in hidden:
            p.grad = None
        try:
            self._inner_step(loss)
        finally:
            for p, gradient in hidden:
                p.grad = gradient
        return loss
