"""Check a checkpoint's states against an optimizer, before anything is replaced."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradstep.engine.update import describe, is_dense, layout

if TYPE_CHECKING:
    from gradstep.optimizer import Optimizer

#: Keys of a group that belong to nobody's rule.
_BOOKKEEPING = {
    "params", "param_names", "initial_lr", "foreach", "fused", "capturable", "differentiable",
    "maximize", "lr",
}  # fmt: skip


def checked_state(optimizer: Optimizer, loaded: Mapping[str, Any]) -> dict[Any, Any]:
    """The loaded states, each complete, of its parameter's shape, and laid out like it.

    Args:
        optimizer: the optimizer that loads.
        loaded: ``"state"`` (parameter -> states) and ``"param_groups"``. Options that an older
            checkpoint lacks are added to its groups with this optimizer's defaults.

    Raises:
        TypeError, ValueError: a checkpoint of another model or rule, or an incomplete one.
    """
    kind, rule = type(optimizer).__name__, optimizer.rule
    state: defaultdict[Any, Any] = defaultdict(dict, loaded["state"])
    for number, group in enumerate(loaded["param_groups"]):
        foreign = [k for k in group if k not in optimizer.defaults and k not in _BOOKKEEPING]
        missing = [k for k in optimizer._group_keys if k not in group and k not in _BOOKKEEPING]
        if missing and foreign:
            raise ValueError(
                f"the checkpoint is of another rule: its group {number} has {', '.join(foreign)}, "
                f"and {kind} expects {', '.join(missing)}. Load it into the optimizer that it was "
                "saved from."
            )
        for key, default in optimizer.defaults.items():
            group.setdefault(key, default)
        optimizer._check_numbers(group)
        values = {n: optimizer._look_up(group, n) for n in rule.hyperparameters}
        wanted = [n for n, s in rule.states.items() if s.exists(values)]
        for p in group["params"]:
            entry = {n: v for n, v in state.get(p, {}).items() if v is not None}
            if not entry:
                state.pop(p, None)
                continue
            state[p] = _checked_entry(optimizer, p, entry, wanted)
    return state


def _checked_entry(
    optimizer: Optimizer, p: Tensor, entry: dict[str, Any], wanted: list[str]
) -> dict[str, Any]:
    kind, name = type(optimizer).__name__, optimizer._name_of(p)
    counts = "step" in optimizer.rule.inputs
    found = set(entry) - {"step"}
    if found != set(wanted) or (counts and "step" not in entry):
        expected = ", ".join(["step"] * counts + wanted) or "no states"
        raise ValueError(
            f"the checkpoint does not fit {kind}: for {name} it holds {', '.join(entry)}; expected "
            f"{expected}. Is it of another rule, or cut short?"
        )
    checked: dict[str, Any] = {}
    for key, value in entry.items():
        if key == "step":
            checked[key] = _step(value, name)
            continue
        if not isinstance(value, Tensor):
            raise TypeError(
                f"the checkpoint's {key} of {name} is a {type(value).__name__}, not a tensor"
            )
        if value.shape != p.shape:
            raise ValueError(
                f"the checkpoint is of another model: its {key} of {name} is {describe(value)}; "
                f"the parameter is {describe(p)}"
            )
        plain = type(p) in (Tensor, torch.nn.Parameter) and type(value) is Tensor
        if plain and is_dense(p) and layout(value) != layout(p):
            value = torch.empty_like(p, dtype=value.dtype).copy_(value).detach()
        checked[key] = value
    return checked


def _step(value: Any, name: str) -> Tensor:
    """A step count as a tensor: older checkpoints hold it as an int or float."""
    if isinstance(value, Tensor) and value.numel() == 1:
        known = value.dtype in (torch.float32, torch.float64)
        return value if known else value.to(torch.float32)
    if isinstance(value, int | float):
        dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
        return torch.tensor(float(value), dtype=dtype)
    raise ValueError(f"the checkpoint's step of {name} is {value!r}, not a number")
