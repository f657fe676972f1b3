"""Try something out on a model and its optimizer, and put everything back as it was."""

from __future__ import annotations

import copy
import random
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_NOTHING = object()


@contextmanager
def restored(
    model: nn.Module | None, optimizer: torch.optim.Optimizer, data: Any = None
) -> Iterator[None]:
    """Everything within happens, and then has not happened, bit for bit, also after an exception.

    Put back are: weights and buffers (those that were exchanged, too), whether each module is in
    training, gradients, the optimizer's states and groups, that a scheduler has not seen a step,
    and the random generators of torch, Python, NumPy and of a DataLoader. It needs room for a
    second copy of all of these.

    Within, gradients are None at first and the optimizer works on copies of its states.

    Raises:
        ValueError: a lazy module that has not seen its first batch.
    """
    modules = [] if model is None else list(model.modules())
    tensors: dict[int, Tensor] = {}
    for group in optimizer.param_groups:
        tensors.update((id(p), p) for p in group["params"])
    for module in modules:
        held = (*module._parameters.values(), *module._buffers.values())
        tensors.update((id(t), t) for t in held if t is not None)
    if any(is_lazy(t) for t in tensors.values()):
        raise ValueError("a lazy module has no weights yet; let the model see one batch first")
    contents = [(t, t.detach().clone()) for t in tensors.values()]
    gradients = [(t, t.grad) for t in tensors.values() if t.requires_grad and t.is_leaf]
    places = [(m, dict(m._parameters), dict(m._buffers), m.training) for m in modules]
    random_states = _random_states(data)
    optimizer_state, groups = optimizer.state, list(optimizer.param_groups)
    options = [dict(group) for group in groups]
    called = optimizer.__dict__.get("_opt_called", _NOTHING)

    optimizer.state = defaultdict(dict)
    try:
        for key, entry in optimizer_state.items():
            optimizer.state[key] = copy.deepcopy(entry)
        for group in groups:
            for name, value in group.items():
                if name != "params":
                    group[name] = copy.deepcopy(value)
        for tensor, _ in gradients:
            tensor.grad = None
        yield
    finally:
        optimizer.state = optimizer_state
        optimizer.param_groups[:] = groups
        for group, before in zip(groups, options, strict=True):
            group.clear()
            group.update(before)
        if called is _NOTHING:
            optimizer.__dict__.pop("_opt_called", None)
        else:
            optimizer.__dict__["_opt_called"] = called
        for module, parameters, buffers, training in places:
            _put_back(module._parameters, parameters)
            _put_back(module._buffers, buffers)
            module.training = training
        with torch.no_grad():
            for tensor, content in contents:
                tensor.copy_(content)
        for tensor, gradient in gradients:
            tensor.grad = gradient
        for put_back, state in random_states:
            put_back(state)


def _put_back(found: Any, before: dict[str, Any]) -> None:
    if list(found) != list(before) or any(found[name] is not before[name] for name in before):
        found.clear()
        found.update(before)


def _random_states(data: Any) -> list[tuple[Any, Any]]:
    """For each random generator what puts its state back, and the state."""
    states: list[tuple[Any, Any]] = [
        (torch.set_rng_state, torch.get_rng_state()),
        (random.setstate, random.getstate()),
        (numpy.random.set_state, numpy.random.get_state()),
    ]
    for kind in ("cuda", "mps", "xpu"):
        device: Any = getattr(torch, kind)
        if kind == "cuda" or kind == "xpu":
            if device.is_initialized():
                states.append((device.set_rng_state_all, device.get_rng_state_all()))
        elif "torch.mps" in sys.modules and torch.backends.mps.is_available():
            states.append((device.set_rng_state, device.get_rng_state()))
    seen: set[int] = set()
    for owner in (data, *(getattr(data, n, None) for n in ("sampler", "batch_sampler"))):
        for holder in (owner, getattr(owner, "sampler", None)):
            generator = getattr(holder, "generator", None)
            if isinstance(generator, torch.Generator) and id(generator) not in seen:
                seen.add(id(generator))
                states.append((generator.set_state, generator.get_state()))
    return states
