"""How a parameter's states begin, and how they follow it when its layout changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradstep.engine.update import describe, is_dense, is_matrix, layout
from gradstep.rule.definition import Rule
from gradstep.rule.operations import is_followed


def number_states(rule: Rule, numbers: Mapping[str, Any]) -> list[str]:
    """The states that are one number a parameter, the step count last."""
    states = rule.states.items()
    own = [n for n, s in states if s.start == "number" and s.exists(numbers)]
    return own + ["step"] * ("step" in rule.inputs)


def begin_states(
    rule: Rule,
    p: Tensor,
    entry: dict[str, Any],
    group: Mapping[str, Any],
    numbers: Mapping[str, Any],
    gradient: Tensor | None,
    name_of: Callable[[], str],
    shared: Mapping[str, Tensor] | None = None,
) -> bool:
    """Add the states that are missing, and tell whether all were.

    Args:
        rule: names the states and how they start.
        p: the parameter.
        entry: its states by name; added to.
        group: its group, for torch's flags that say where a step count lives.
        numbers: lr and every hyperparameter, by name.
        gradient: the first gradient; None before there is one.
        name_of: the parameter's name, for messages.
        shared: the states that all parameters have together, from :func:`shared_states`.

    Raises:
        ValueError: some states are there, and others that began with them are not.
    """
    shared = shared or {}
    own_numbers = [n for n in number_states(rule, numbers) if n not in shared]
    together = [n for n in own_numbers if n == "step" or not rule.states[n].when]
    matrix = is_matrix(p)
    together += [
        n
        for n, s in rule.states.items()
        if s.start != "number" and s.when is None and s.exists(numbers, matrix)
    ]
    missing = [n for n in together if entry.get(n) is None]
    if missing and len(missing) < len(together):
        there = ", ".join(n for n in together if n not in missing)
        raise ValueError(
            f"state {missing[0]!r} of {name_of()} is missing, while {there} is there. Load a "
            "checkpoint, or delete the parameter's entry in optimizer.state to start it anew."
        )
    kept = [n for n, s in rule.states.items() if s.exists(numbers, matrix) and n not in shared]
    kept += ["step"] * ("step" in rule.inputs)
    fresh = bool(kept) and all(entry.get(n) is None for n in kept)
    on_device = group.get("capturable") or group.get("fused")
    double = torch.get_default_dtype() == torch.float64 and not group.get("fused")
    for name in own_numbers:
        number: Any = entry.get(name)
        if number is None:
            value = 0.0 if name == "step" else rule.states[name].value
            number = numbers[value] if isinstance(value, str) else value
        elif not (isinstance(number, int) and rule.sparse == "only"):  # as torch's SparseAdam's
            continue
        dtype = torch.float64 if double else torch.float32
        if group.get("differentiable") and is_followed(number):
            entry[name] = number.reshape(()).to(dtype, copy=True)
            continue
        with torch.inference_mode(False):  # or later steps may not write it
            device = p.device if on_device else "cpu"
            entry[name] = torch.tensor(float(number), dtype=dtype, device=device)
    for name, state in rule.states.items():
        if not state.exists(numbers, matrix) or state.start == "number":
            continue
        if entry.get(name) is not None:
            continue
        if state.shape == "own":
            shape, dtype = state.shape_for(tuple(p.shape), numbers), own_dtype(p.dtype)
            with torch.no_grad(), torch.inference_mode(False):
                entry[name] = torch.zeros(shape, dtype=dtype, device=p.device)
            continue
        if state.shape != "weight":
            entry[name] = _zeros_along(p, -1 if state.shape == "row" else -2)
            continue
        like = torch.preserve_format
        with torch.no_grad(), torch.inference_mode(False):
            if state.start == "weight":
                entry[name] = p.detach().clone(memory_format=like)
            elif state.start == "gradient" and gradient is not None:
                entry[name] = torch.empty_like(p, memory_format=like).copy_(gradient).detach()
            else:
                value = numbers[state.value] if isinstance(state.value, str) else state.value
                value = float(value)
                start = complex(value, value) if p.is_complex() else value
                entry[name] = torch.full_like(p, start, requires_grad=False, memory_format=like)
    entry.update(shared)
    return fresh


def shared_states(
    rule: Rule, entries: Iterable[Any], numbers: Mapping[str, Any], known: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The states that all parameters have together: one tensor each, which is in every entry.

    Args:
        rule: names the states and how they start.
        entries: every parameter's states by name.
        numbers: lr and every hyperparameter, by name.
        known: those that were looked up for this step already.

    Raises:
        TypeError: what an entry holds is no number.
        ValueError: two entries hold different numbers.
    """
    found: dict[str, Tensor] = {}
    for name, state in rule.states.items():
        if not state.shared or not state.exists(numbers):
            continue
        held = common_number(name, entries)
        if name in known:
            held = known[name]
        elif held is None:
            start = numbers[state.value] if isinstance(state.value, str) else state.value
            with torch.inference_mode(False):
                held = torch.tensor(float(start), dtype=torch.float64, device="cpu")
        found[name] = held
    return found


def common_number(name: str, entries: Iterable[Any]) -> Tensor | None:
    """The tensor that all entries have under a name, or the first of equal ones; None for none.

    Raises:
        TypeError: what an entry holds is no number.
        ValueError: two entries hold different numbers.
    """
    seen: dict[int, Tensor] = {}
    for entry in entries:
        held = entry.get(name) if isinstance(entry, Mapping) else None
        if held is not None:
            seen[id(held)] = held
    for held in seen.values():
        kinds = (torch.float32, torch.float64)
        if not (isinstance(held, Tensor) and held.numel() == 1 and held.dtype in kinds):
            raise TypeError(
                f"state {name!r} is {describe(held) if isinstance(held, Tensor) else repr(held)}. "
                "Expected a tensor of one float64 number, the same in every parameter's entry."
            )
    first = next(iter(seen.values()), None)
    for held in seen.values():
        if first is not None and not torch.equal(*map(_bits, (held, first))):
            raise ValueError(
                f"state {name!r} is one number for all parameters, and it is {float(first)} for "
                f"one and {float(held)} for another. Load a checkpoint, or give all the same."
            )
    return first


def own_dtype(weight: torch.dtype) -> torch.dtype:
    """What states of a shape of their own are stored as: opaque functions need the precision."""
    return torch.float64 if weight == torch.float64 else torch.float32


def unlike_weight(
    rule: Rule, p: Tensor, names: Iterable[str], numbers: Mapping[str, Any]
) -> tuple[dict[str, tuple[int, ...]], dict[str, torch.dtype]]:
    """Shapes, and dtypes, of the states whose shape or dtype is not their weight's; by name.

    Args:
        rule: names the states.
        p: the weight.
        names: the states to look at.
        numbers: every hyperparameter, by name.
    """
    states = {n: rule.states[n] for n in names if rule.states[n].shape != "weight"}
    shapes = {n: s.shape_for(tuple(p.shape), numbers) for n, s in states.items()}
    return shapes, {n: own_dtype(p.dtype) for n, s in states.items() if s.shape == "own"}


def _bits(number: Tensor) -> Tensor:
    """Of which nan is equal to itself."""
    return number.detach().double().reshape(1).cpu().view(torch.int64)


def _zeros_along(p: Tensor, gone: int) -> Tensor:
    """Zeros of a parameter's shape, but for one dimension of one element."""
    with torch.no_grad(), torch.inference_mode(False):
        if type(p) in (Tensor, torch.nn.Parameter):
            shape = list(p.shape)
            shape[gone] = 1
            return torch.zeros(shape, dtype=p.dtype, device=p.device)
        # A subclass knows best: a DTensor's is split as far as it itself is split along the rest.
        return torch.zeros_like(p).sum(dim=gone, keepdim=True).detach()


def follow_layout(rule: Rule, p: Tensor, entry: dict[str, Any], before: Any) -> None:
    """Lay states out like their weight, if it was the weight that changed.

    Args:
        rule: names the states.
        p: the parameter.
        entry: its states by name; those that were laid out anew are replaced.
        before: the weight's layout at the last step, None if that is not known.
    """
    if type(p) not in (Tensor, torch.nn.Parameter) or not is_dense(p):
        return
    now = layout(p)
    if before == now:
        return
    for name, begun in rule.states.items():
        state = entry.get(name)
        if (
            type(state) is Tensor
            and begun.shape == "weight"
            and state.shape == p.shape
            and state.dtype == p.dtype
            and state.device == p.device
            and layout(state) != now
        ):
            with torch.no_grad(), torch.inference_mode(False):
                entry[name] = torch.empty_like(p).copy_(state).detach()
