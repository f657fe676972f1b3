"""A weight that is set aside while its average stands in its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class SetAside:
    """A training weight, and what stands in its place meanwhile.

    Attributes:
        parameter: in which the average stands.
        weight: the training weight.
        source: the state that the average is made of.
        share: the average is ``lerp(weight, source, share)``; None: it is the source itself.
        loaded: whether the weight came with a checkpoint, so that the parameter may still hold
            whatever was there before.
        version: how often torch had seen the parameter written when the average was put there.
    """

    parameter: Tensor
    weight: Tensor
    source: Tensor
    share: float | None
    loaded: bool = False
    version: int | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.version = _version(self.parameter)  # a copy counts anew

    @torch.no_grad()
    def put_average(self) -> None:
        """Put the average into the parameter."""
        self.parameter.copy_(self._average())
        self.version = _version(self.parameter)

    @torch.no_grad()
    def put_back(self) -> None:
        """Put the training weight into the parameter, unless somebody else has put one there."""
        if not self.is_replaced():
            self.parameter.copy_(self.weight)

    def is_replaced(self) -> bool:
        """Whether the parameter has another weight by now, as from a checkpoint of the model."""
        if self.loaded:
            return False
        now = _version(self.parameter)
        if now is not None and self.version is not None and now >= self.version:
            return now > self.version
        # Another tensor in the same object, as where module.to() swaps them: is it the average?
        average = self._average().to(self.parameter.device, self.parameter.dtype)
        return not torch.equal(_bits(self.parameter), _bits(average))

    def _average(self) -> Tensor:
        if self.share is None:
            return self.source
        # The two may be stored otherwise: the average is as exact as the better one.
        wide = torch.promote_types(self.weight.dtype, self.source.dtype)
        source = self.source.to(self.weight.device, wide)
        return self.weight.to(wide).lerp(source, self.share)


def _version(p: Tensor) -> int | None:
    """How often torch has seen it written; None where torch does not count."""
    return None if p.is_inference() else p._version


def _bits(value: Any) -> Tensor:
    """Of this process's part: to compare, nan included."""
    local: Tensor = getattr(value, "to_local", lambda: value)().detach()
    return (
        local.contiguous().view(torch.uint8) if local.dim() else local.reshape(1).view(torch.uint8)
    )
