"""Which tensors a kernel can update, and how they are stored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gradstep.backends.update import Update, is_dense, laid_out_alike
from gradstep.program.shards import is_held, is_sharded, local
from gradstep.rule.graph import Graph

#: How a weight's dtype is stored, and how many stored numbers an element has.
STORAGE: dict[torch.dtype, tuple[str, int]] = {
    torch.float32: ("float32", 1),
    torch.float64: ("float64", 1),
    torch.bfloat16: ("bfloat16", 1),
    torch.float16: ("float16", 1),
    torch.complex64: ("float32", 2),
    torch.complex128: ("float64", 2),
}


def is_recorded() -> bool:
    """Whether torch records operations into a graph: make_fx, which does not see kernels."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None


def ineligible(update: Update, device_type: str = "cpu") -> str | None:
    """Why a weight cannot be updated by a kernel of a kind of device; None if it can."""
    if is_recorded():
        return "torch records the step into a graph"
    if is_sharded(update.weight):
        return _unfit_shards(update, device_type)
    weight, gradient = update.weight, update.gradient
    if weight.device.type != device_type:
        return f"it is on {weight.device}"
    if type(weight) not in (Tensor, torch.nn.Parameter):
        return f"it is a {type(weight).__name__}"
    if weight.dtype not in STORAGE:
        return f"it is {weight.dtype}"
    if weight.layout is not torch.strided or not is_dense(weight):
        return "its elements do not fill a stretch of memory"
    if weight.is_conj() or weight.is_neg():
        return "it is a lazy conjugate or negative"
    if weight.is_inference():
        return "it was made in inference mode"
    if gradient.layout is not torch.strided:
        return f"its gradient is {gradient.layout}"
    if gradient.dtype != weight.dtype:
        return f"its gradient is {gradient.dtype}"
    others = (gradient, *update.states.values(), *update.numbers.values())
    if any(type(t) is not Tensor for t in others):
        return "its gradient or state is a tensor subclass"
    if any(s.is_conj() or s.is_neg() for s in update.states.values()):
        return "its state is a lazy conjugate or negative"
    return None


def ineligible_as_whole(update: Update, graph: Graph) -> str | None:
    """Why a rule that looks beyond single elements cannot update a weight by passes; or None."""
    if is_sharded(update.weight):
        return "it is a DTensor, and the rule looks at more than this process's part"
    if graph.needs_matrix and not update.weight.is_contiguous():
        return "its rows do not lie one after the other in memory"
    shapes = update.shapes
    if any(not s.is_contiguous() for n, s in update.states.items() if n in shapes):
        return "its state does not lie in one piece"
    return None


def unreadable(update: Update, graph: Graph) -> str | None:
    """Why kernels cannot read a weight's states; None if they can."""
    weight = local(update.weight)
    for state, format in update.formats.items():
        if not format.in_kernels():
            return f"its {state} is stored as {format.name}, of which kernels know nothing"
        if format.block == 1:
            continue
        if not weight.is_contiguous():
            return f"its {state} is stored in blocks of rows, and its rows do not lie so in memory"
        if graph.needs_matrix and weight.shape[-1] % format.block:
            return f"its {state} is stored in blocks of {format.block}, which its rows cut"
        if not all(local(update.states[name]).is_contiguous() for name in format.names(state)):
            return f"the parts of its {state} do not lie in one piece"
    kept = update.weight_format
    if kept is None:
        return None
    for name in kept.beside:
        if not laid_out_alike(kept.like_weight(local(update.states[name])), weight):
            return f"its {name} lies otherwise in memory"
    return None


def local_update(update: Update) -> Update:
    """The same update of the parts in this process, for a rule that works on each element alone."""
    if not is_sharded(update.weight):
        return update
    states = {name: local(state) for name, state in update.states.items()}
    numbers = {name: local(number) for name, number in update.numbers.items()}
    return replace(
        update,
        weight=local(update.weight),
        gradient=local(update.gradient),
        states=states,
        numbers=numbers,
    )


def alike_in_parts(tensors: Sequence[Any]) -> bool:
    """Whether DTensors are split alike over the same processes, none still to be summed."""
    first = tensors[0]
    return all(
        is_sharded(t) and t.device_mesh == first.device_mesh and t.placements == first.placements
        for t in tensors
    ) and not any(placement.is_partial() for placement in first.placements)


def _unfit_shards(update: Update, device_type: str) -> str | None:
    states = [state for state in update.states.values() if not is_held(state)]
    if not alike_in_parts([update.weight, update.gradient, *states]):
        return "it is a DTensor that is split otherwise than its gradient or state"
    return ineligible(local_update(update), device_type)


def overlapping(updates: Sequence[Update]) -> set[int]:
    """Positions of the updates whose written tensors share memory with another tensor of a step."""
    spans: list[Span] = []
    for position, update in enumerate(map(local_update, updates)):
        spans += spans_of(update.weight, update.states.values(), position)
        spans += spans_of(update.gradient, (), position, written=False)
    return sharing(spans)


#: Where a tensor begins and ends in memory, whether it is written, and whose it is.
Span = tuple[int, int, bool, int]


def spans_of(
    tensor: Tensor, others: Iterable[Tensor], owner: int, *, written: bool = True
) -> list[Span]:
    """Where tensors lie in memory, those with elements."""
    spans = []
    for each in (tensor, *others):
        count = each.numel()
        if count and each.layout is torch.strided:
            if not each.is_contiguous():
                pairs = zip(each.shape, each.stride(), strict=True)
                count = sum([(n - 1) * s for n, s in pairs]) + 1
            start = each.data_ptr()
            spans.append((start, start + count * each.element_size(), written, owner))
    return spans


def sharing(spans: list[Span]) -> set[int]:
    """The owners of those that share memory with another one, where either is written."""
    found: set[int] = set()
    open_spans: list[Span] = []
    for span in sorted(spans):
        if open_spans:
            open_spans = [o for o in open_spans if o[1] > span[0]]
            for other in open_spans:
                if other[2] or span[2]:
                    found |= {other[3], span[3]}
        open_spans.append(span)
    return found


def as_stored(gradient: Tensor, weight: Tensor) -> bool:
    """Whether a gradient's elements lie in memory as its weight's do."""
    if gradient.is_conj() or gradient.is_neg():
        return False
    return weight.numel() < 2 or laid_out_alike(gradient, weight)
