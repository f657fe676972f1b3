"""Whether weights are what nearly all weights are, found out for thousands of them at once.

Each look is one call over a whole list. It takes a tenth of the time of a look with care at each,
which has words for whatever does not fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from operator import attrgetter, ge
from typing import Any

import numpy
import torch
from torch import Tensor

_WEIGHTS = {Tensor, torch.nn.Parameter}
_DTYPES = {torch.float32, torch.float64, torch.bfloat16, torch.float16}
_NUMBERS = {torch.float32, torch.float64}

_dtype, _shape, _layout = attrgetter("dtype"), attrgetter("shape"), attrgetter("layout")
_is_cpu, _nbytes = attrgetter("is_cpu"), attrgetter("nbytes")
_held = torch.UntypedStorage.nbytes


def are_plain(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    states: Sequence[Sequence[Any]] = (),
    numbers: Sequence[Any] = (),
    dtypes: Mapping[bool, Sequence[torch.dtype | None]] | None = None,
) -> bool:
    """Whether kernels can have all of these together, as far as the tensors themselves tell.

    Dense real tensors in the memory of the CPU, each gradient of the dtype, shape and layout of its
    weight, and so each state but for a dtype of its own, none sharing memory with another. False
    also means: look with care.

    Args:
        weights: the parameters.
        gradients: one a weight.
        states: of each weight those that have its shape; none where they have just been begun.
        numbers: all states of one number.
        dtypes: where states have dtypes of their own: whether a weight has rows and columns -> the
            dtypes of its states, None for the weight's.
    """
    flat: list[Any] = [*gradients, *chain.from_iterable(states)]
    if not (_WEIGHTS.issuperset(map(type, weights)) and _only(Tensor, map(type, flat))):
        return False
    owners: list[Tensor] = [*weights]
    if states:
        owners += [p for p, own in zip(weights, states, strict=True) for _ in own]
    wanted, shapes = list(map(_dtype, owners)), list(map(_shape, owners))
    if dtypes and states:
        pairs = zip(weights, states, strict=True)
        own = [dtype for p, held in pairs if held for dtype in dtypes[p.dim() > 1]]
        n = len(weights)
        wanted[n:] = [dtype or other for dtype, other in zip(own, wanted[n:], strict=True)]
    written = [*weights, *flat[len(gradients) :]]
    everything = [*weights, *flat]
    return (
        _DTYPES.issuperset(wanted)
        and list(map(_dtype, flat)) == wanted
        and list(map(_shape, flat)) == shapes
        and _only(torch.strided, map(_layout, everything))
        and all(map(_is_cpu, everything))
        and all(map(Tensor.is_contiguous, everything))
        and not any(map(Tensor.is_neg, everything))
        and not any(map(Tensor.is_inference, written))
        and _have_memory(everything)
        and _lie_apart(everything)
        and _are_numbers(numbers)
    )


def are_apart(weights: Sequence[Tensor]) -> bool:
    """Whether weights are such that it can be told, and no two share memory."""
    return (
        _WEIGHTS.issuperset(map(type, weights))
        and _only(torch.strided, map(_layout, weights))
        and all(map(_is_cpu, weights))
        and all(map(Tensor.is_contiguous, weights))
        and _lie_apart(weights)
    )


def _only(wanted: Any, found: Any) -> bool:
    return set(found) <= {wanted}


def _have_memory(tensors: Sequence[Tensor]) -> bool:
    """Whether each storage is as large as its tensor needs: it may have been resized."""
    needed = list(map(_nbytes, tensors))
    for place, offset in enumerate(map(Tensor.storage_offset, tensors)):
        if offset:
            needed[place] += offset * tensors[place].element_size()
    return all(map(ge, map(_held, map(Tensor.untyped_storage, tensors)), needed))


def _lie_apart(tensors: Sequence[Tensor]) -> bool:
    """Whether no two share memory."""
    sizes = numpy.array(list(map(_nbytes, tensors)), numpy.int64)
    starts = numpy.array(list(map(Tensor.data_ptr, tensors)), numpy.uint64).view(numpy.int64)
    starts, sizes = starts[sizes > 0], sizes[sizes > 0]
    order = starts.argsort()
    ends = (starts + sizes)[order]
    return bool((ends[:-1] <= starts[order][1:]).all())


def _are_numbers(numbers: Sequence[Any]) -> bool:
    return (
        _only(Tensor, map(type, numbers))
        and _NUMBERS.issuperset(map(_dtype, numbers))
        and _only(1, map(Tensor.numel, numbers))
        and _only(torch.strided, map(_layout, numbers))
        and all(map(_is_cpu, numbers))
        and _have_memory(numbers)
    )
