"""What a watch measures of each parameter at a step, in one pass over weights and gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor

from gradstep.backends.eligibility import STORAGE, as_stored
from gradstep.backends.global_sums import exact_sum
from gradstep.backends.guard import make_guard
from gradstep.backends.update import in_pairs, is_dense
from gradstep.program.shards import local
from gradstep.rule import reductions
from gradstep.rule.language import where

if TYPE_CHECKING:
    from gradstep.backends.cpu.sums import Sums

#: What is measured, in the order of the columns.
#:
#: ``rms`` is the root of the mean square, ``max`` the largest absolute value. The weight is that
#: before the step; the update is weight after − weight before; ``update_ratio`` the update's rms
#: over the weight's. ``zero_gradients`` and ``unmoved`` are the shares, from 0 to 1, of zeros in
#: the gradient and in the update. ``nonfinite_…`` count elements that are nan or infinite.
FIELDS = (
    "weight_rms",
    "weight_max",
    "gradient_rms",
    "gradient_max",
    "update_rms",
    "update_max",
    "update_ratio",
    "zero_gradients",
    "unmoved",
    "nonfinite_weights",
    "nonfinite_gradients",
    "nonfinite_updates",
)

#: Those that are whole numbers.
COUNTS = FIELDS[-3:]


def totals(after: Any, gradient: Any, before: Any) -> dict[str, Any]:
    """The sums that everything here is made of. The kernel is generated from this text."""
    update = after - before
    return {
        "weight squares": reductions.sum(before * before),
        "weight max": reductions.max(abs(before)),
        "gradient squares": reductions.sum(gradient * gradient),
        "gradient max": reductions.max(abs(gradient)),
        "update squares": reductions.sum(update * update),
        "update max": reductions.max(abs(update)),
        "zero gradients": reductions.sum(where(gradient == 0.0, 1.0, 0.0)),
        "unmoved": reductions.sum(where(update == 0.0, 1.0, 0.0)),
        "nonfinite weights": reductions.sum(_nonfinite(before)),
        "nonfinite gradients": reductions.sum(_nonfinite(gradient)),
        "nonfinite updates": reductions.sum(_nonfinite(update)),
    }


def _nonfinite(x: Any) -> Any:
    return where(x - x == 0.0, 0.0, 1.0)


class Measured:
    """What was measured of several parameters.

    Attributes:
        values: float64, a row a parameter, a column for each of :data:`FIELDS`.
        gradient_norm: over all of them.
    """

    __slots__ = ("gradient_norm", "values")

    def __init__(self, sums: Any, sizes: Sequence[int]) -> None:
        count = numpy.array(sizes, dtype=numpy.float64)
        values = numpy.empty((len(sizes), len(FIELDS)))
        with numpy.errstate(all="ignore"):
            numpy.sqrt(sums[:, 0:6:2] / count[:, None], out=values[:, 0:6:2])
            values[:, 1:6:2] = sums[:, 1:6:2]
            values[:, 6] = values[:, 4] / values[:, 0]
            values[:, 7:9] = sums[:, 6:8] / count[:, None]
        values[:, 9:12] = sums[:, 8:11]
        self.values = values
        self.gradient_norm = math.sqrt(exact_sum(sums[:, 2].tolist()))

    def divide_gradients(self, scale: float) -> None:
        """Take a factor out of the gradients' sizes."""
        self.values[:, 2:4] /= scale
        self.gradient_norm /= scale


class Meter:
    """Measures parameters at steps; keeps what it found out about them from step to step."""

    def __init__(self) -> None:
        self._kernels: dict[str, Sums] = {}
        self._sorted: _Sorted | None = None

    @torch.no_grad()
    def measure(
        self, weights: Sequence[Tensor], gradients: Sequence[Tensor], before: Sequence[Tensor]
    ) -> Measured:
        """Measure. Nothing is written.

        Of complex tensors real and imaginary parts count as two elements; of a DTensor this
        process's part is measured, and no other process is asked.

        Args:
            weights: parameters after the step, each with elements.
            gradients: one a parameter.
            before: copies of the parameters before the step, from :func:`copies`.
        """
        known = self._sorted
        if known is None or not known.still_holds(weights, gradients):
            known = self._sorted = _Sorted(weights, gradients)
        sums = numpy.empty((len(weights), _TOTALS))
        for storage, places in known.by_storage.items():
            rows = [(weights[i], gradients[i], before[i]) for i in places]
            for position in known.relaid[storage]:
                weight, gradient, own = rows[position]
                rows[position] = (_in_order(weight), _in_order(gradient), _in_order(own))
            sums[places] = self._kernel(storage)(rows, known.sizes[storage])
        if known.others:
            found = [_by_torch(weights[i], gradients[i], before[i]) for i in known.others]
            for i, own in zip(known.others, found, strict=True):  # all have been begun by now
                sums[i] = own.tolist()
        return Measured(sums, [_stored(local(w)) for w in weights])

    def _kernel(self, storage: str) -> Sums:
        if storage not in self._kernels:
            from gradstep.backends.cpu.sums import Sums  # takes the compiler with it

            self._kernels[storage] = Sums(totals, storage)
        return self._kernels[storage]


@torch.no_grad()
def copies(weights: Sequence[Tensor]) -> list[Tensor]:
    """Copies of weights as they are before a step."""
    return [w.detach().clone() for w in weights]


_TOTALS = 11


class _Sorted:
    """Which parameters a kernel can measure, and which are left to torch's operations."""

    def __init__(self, weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        self.by_storage: dict[str, list[int]] = {}
        self.sizes: dict[str, list[int]] = {}
        self.relaid: dict[str, list[int]] = {}
        self.others: list[int] = []
        self._count = len(weights)
        self._guarded: list[int] = []
        for i, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
            if not _plain(weight, gradient):
                self.others.append(i)
                continue
            storage = STORAGE[weight.dtype][0]
            places = self.by_storage.setdefault(storage, [])
            relaid = self.relaid.setdefault(storage, [])
            if not is_dense(weight) or weight.is_neg() or not as_stored(gradient, weight):
                relaid.append(len(places))
            places.append(i)
            self.sizes.setdefault(storage, []).append(_stored(weight))
            self._guarded.append(i)
        self._guard = make_guard([t[i] for i in self._guarded for t in (weights, gradients)])

    def still_holds(self, weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> bool:
        """Whether it is true of these as well."""
        if self.others or len(weights) != self._count:
            return False
        return self._guard(*[t[i] for i in self._guarded for t in (weights, gradients)])


def _plain(weight: Tensor, gradient: Tensor) -> bool:
    return (
        type(weight) in (Tensor, torch.nn.Parameter)
        and type(gradient) is Tensor
        and weight.dtype in STORAGE
        and weight.dtype == gradient.dtype
        and weight.shape == gradient.shape
        and weight.layout is gradient.layout is torch.strided
        and weight.device.type == gradient.device.type == "cpu"
        and not weight.is_conj()
    )


def _stored(weight: Tensor) -> int:
    """How many real numbers it has."""
    return weight.numel() * (2 if weight.is_complex() else 1)


def _in_order(tensor: Tensor) -> Tensor:
    return tensor.detach().resolve_conj().resolve_neg().contiguous()


def _by_torch(weight: Tensor, gradient: Tensor, before: Tensor) -> Tensor:
    """The totals of a parameter that no kernel can read, as a tensor on its device."""
    given = []
    for tensor in (weight, gradient, before):
        tensor = local(tensor.detach())
        if tensor.layout is not torch.strided:
            tensor = tensor.to_dense()
        tensor = in_pairs(tensor)
        # That device has no float64.
        given.append(tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64))
    if not given[0].numel():  # this process's part of a DTensor may be nothing
        return given[0].new_zeros(_TOTALS)
    found = totals(*given).values()
    return torch.stack([total.to(given[0].dtype) for total in found])
