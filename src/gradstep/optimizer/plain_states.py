"""A checkpoint's states taken all at once, where they are as nearly always.

There may be thousands of parameters: calls over whole lists take a tenth of the time of a look with
care at each, which :mod:`gradstep.optimizer.checkpoint` has, with words for what does not fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import repeat
from operator import attrgetter, eq, is_
from typing import Any

import torch
from torch import Tensor

from gradstep.backends.update import is_matrix
from gradstep.optimizer.state_spec import PLAIN, StateSpec
from gradstep.rule.definition import Rule

_NUMBERS = {torch.float32, torch.float64}
_dtype, _shape, _device = attrgetter("dtype"), attrgetter("shape"), attrgetter("device")
_layout, _requires_grad = attrgetter("layout"), attrgetter("requires_grad")


def plain_states(
    rule: Rule,
    specs: Mapping[str, StateSpec],
    wanted: Mapping[bool, Sequence[str]],
    params: Sequence[Tensor],
    saved: Sequence[Any],
    ready: Sequence[Any],
) -> list[dict[str, Tensor]] | None:
    """The states of a group's parameters; None to look at each with care.

    Each has all of its states and nothing else: dense tensors like their weight, and numbers.

    Args:
        rule: the rule.
        specs: its states that are tensors.
        wanted: with rows and columns, and without: the names of a parameter's states.
        params: the parameters.
        saved: what the checkpoint has for each.
        ready: what torch has made of that.
    """
    if any(s.shared for s in rule.states.values()) or not _all_like_weight(specs):
        return None
    if not ({dict}.issuperset(map(type, saved)) and set(PLAIN).issuperset(map(type, params))):
        return None
    expected = {kind: {*own, *["step"] * rule.counts_steps} for kind, own in wanted.items()}
    kinds = set(zip(map(tuple, saved), map(is_matrix, params), strict=True))
    if any(set(names) != expected[kind] for names, kind in kinds):
        return None
    names = [name for entry in saved for name in entry]
    weights = [p for p, entry in zip(params, saved, strict=True) for _ in entry]
    given = [tensor for entry in saved for tensor in entry.values()]
    made = [tensor for entry in ready for tensor in entry.values()]
    if not ({Tensor}.issuperset(map(type, given)) and {Tensor}.issuperset(map(type, made))):
        return None
    if any(map(_requires_grad, given)) or not _only(torch.strided, map(_layout, made)):
        return None
    is_number = [name not in specs for name in names]
    if any(is_number):
        # torch converts all but "step" to the weight's dtype: they are taken as they were saved.
        numbers = [t for t, number in zip(given, is_number, strict=True) if number]
        if not (
            _NUMBERS.issuperset(map(_dtype, numbers))
            and _only(1, map(Tensor.numel, numbers))
            and _only(torch.strided, map(_layout, numbers))
            and all(map(eq, map(_device, given), map(_device, made)))
        ):
            return None
    like = [not number for number in is_number]
    chosen = [t for t, own in zip(made, like, strict=True) if own]
    owners = [p for p, own in zip(weights, like, strict=True) if own]
    before = [t for t, own in zip(given, like, strict=True) if own]
    if not (
        all(map(Tensor.is_floating_point, before))
        and all(map(is_, map(_dtype, chosen), map(_dtype, owners)))
        and all(map(eq, map(_shape, chosen), map(_shape, owners)))
        and all(map(eq, map(_device, chosen), map(_device, owners)))
        and _only(torch.strided, map(_layout, owners))
        and all(map(Tensor.is_contiguous, chosen))
        and all(map(Tensor.is_contiguous, owners))
    ):
        return None
    # What needs no change torch takes as it is: the optimizer that the checkpoint comes from would
    # train it as well.
    own = iter(
        [
            saved_as.clone() if number or saved_as is made_of else made_of
            for saved_as, made_of, number in zip(given, made, is_number, strict=True)
        ]
    )
    return [dict(zip(entry, own, strict=False)) for entry in saved]


def _all_like_weight(specs: Mapping[str, StateSpec]) -> bool:
    return all(spec.is_like_weight for spec in specs.values())


def _only(wanted: Any, found: Any) -> bool:
    return all(map(is_ if wanted is torch.strided else eq, found, repeat(wanted)))
