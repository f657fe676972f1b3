"""Checkpoints of bitsandbytes and torchao, whose states are in the same codes as ours.

Their codes and scales are taken as they are: with ``state_dtype="dynamic8"`` (``"int4"``,
``"float8"`` for torchao's) a training goes on from them without a rounding, and back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gradstep.optimizer.checkpoint import QUANT_STATE
from gradstep.optimizer.optimizer import Optimizer, planner_of
from gradstep.program.block_formats import BlockFormat, Mapped
from gradstep.program.formats import format_of, format_of_state
from gradstep.rule.definition import Rule


def from_bitsandbytes(state_dict: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """A ``state_dict()`` of bitsandbytes as one that an optimizer of this package loads.

    ::

        optimizer = gradstep.AdamW(model.parameters(), state_dtype="dynamic8")
        optimizer.load_state_dict(gradstep.from_bitsandbytes(saved, optimizer))

    Args:
        state_dict: of one of its optimizers, with 8 bits or 32, paged or not.
        optimizer: the one that is to load it: it names the states, in their order.

    Raises:
        ValueError: blocks of another size than 256, or more states than the rule has.
    """
    rule = planner_of(optimizer).rule
    names = _states(rule)
    made: dict[Any, dict[str, Any]] = {}
    for key, held in state_dict["state"].items():
        entry = {**held, **held.get(QUANT_STATE, {})}
        found: dict[str, Any] = {}
        if "step" in entry and rule.counts_steps:
            found["step"] = torch.tensor(float(entry["step"]), device="cpu")
        states = sorted(n for n in entry if n.startswith("state") and n[5:].isdecimal())
        if len(states) > len(names):
            raise ValueError(
                f"parameter {key} of the checkpoint has {len(states)} states, and {rule.name} has "
                f"{', '.join(names) or 'none'}. Load it into the class of the same name."
            )
        for name, source in zip(names, states, strict=False):
            number, tensor = source[5:], entry[source]
            if f"absmax{number}" not in entry:
                found[name] = tensor
                continue
            scales = entry[f"absmax{number}"]
            found.update(_parts("dynamic8", name, tensor, scales, f"parameter {key}"))
        made[key] = found
    return {"state": made, "param_groups": _groups(state_dict, optimizer)}


def to_bitsandbytes(optimizer: Optimizer) -> dict[str, Any]:
    """The ``state_dict()`` of an optimizer with ``"dynamic8"`` states as bitsandbytes loads it.

    Small tensors, which stay as they are here and there, are float32.

    Raises:
        ValueError: a state in another format.
    """
    saved, rule = optimizer.state_dict(), planner_of(optimizer).rule
    made: dict[Any, dict[str, Any]] = {}
    for key, entry in saved["state"].items():
        found: dict[str, Any] = {"step": int(entry.get("step", 0))}
        for number, name in enumerate((n for n in _states(rule) if n in entry), 1):
            value = entry[name]
            if f"{name}_scale" not in entry:
                found[f"state{number}"] = value.float()
                continue
            if value.dtype != torch.uint8 or rule.formats.get(name) != "dynamic8":
                raise ValueError(
                    f"{name} is stored as {rule.formats.get(name)}, and bitsandbytes has dynamic8 "
                    'alone. Load it into an optimizer with state_dtype="dynamic8" first.'
                )
            format = format_of_state(rule, name)
            assert isinstance(format, Mapped)
            found[f"state{number}"] = value
            found[f"absmax{number}"] = entry[f"{name}_scale"].flatten()
            found[f"qmap{number}"] = torch.tensor(format.map.entries)
        made[key] = found
    return {**saved, "state": made}


def from_torchao(state_dict: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """A ``state_dict()`` of torchao's optimizers as one that an optimizer of this package loads.

    Args:
        state_dict: of ``AdamW8bit``, ``AdamW4bit``, ``AdamWFp8`` or the like.
        optimizer: the one that is to load it.

    Raises:
        ValueError: blocks of another size than 256, or 128 for 4 bits.
    """
    made: dict[Any, dict[str, Any]] = {}
    for key, entry in state_dict["state"].items():
        found: dict[str, Any] = {}
        for name, value in entry.items():
            codes, scales = getattr(value, "codes", None), getattr(value, "scale", None)
            if codes is None or scales is None:
                found[name] = value
                continue
            kind = "float8" if codes.dtype == torch.float8_e4m3fn else "dynamic8"
            if codes.numel() < value.numel():
                kind = "int4"
            whole = codes if kind != "int4" else codes.new_empty(value.shape)
            found.update(_parts(kind, name, whole, scales, f"parameter {key}", codes))
        made[key] = found
    return {"state": made, "param_groups": _groups(state_dict, optimizer)}


def _states(rule: Rule) -> list[str]:
    """The states of a rule that are tensors, as bitsandbytes numbers them."""
    return [name for name, state in rule.states.items() if state.start != "number"]


def _parts(
    kind: str, name: str, like: Tensor, scales: Tensor, owner: str, codes: Tensor | None = None
) -> dict[str, Tensor]:
    """Codes and scales as this package shapes them.

    Args:
        kind: the format.
        name: of the state.
        like: of the parameter's shape.
        scales: in one dimension.
        owner: for messages.
        codes: where they have not the parameter's shape.
    """
    format = format_of(kind)
    assert isinstance(format, BlockFormat)
    parts = format.parts(name, tuple(like.shape))
    codes = like if codes is None else codes
    wanted = [math.prod(part.shape) for part in parts]
    if [codes.numel(), scales.numel()] != wanted:
        raise ValueError(
            f"{name} of {owner} has {scales.numel()} scales for {like.numel()} elements; {kind} "
            f"has one for {format.block}, which are {wanted[1]}. Blocks of another size cannot be "
            "taken."
        )
    tensors = (codes.reshape(parts[0].shape), scales.float().reshape(parts[1].shape))
    return dict(zip((part.name for part in parts), tensors, strict=True))


def _groups(state_dict: Mapping[str, Any], optimizer: Optimizer) -> list[dict[str, Any]]:
    """The groups with the options that the optimizer knows, and its own for what they lack."""
    known = {*optimizer.defaults, "params", "param_names", "initial_lr"}
    found = []
    for group in state_dict["param_groups"]:
        own = {**optimizer.defaults, **{n: v for n, v in group.items() if n in known}}
        for n in own:
            if n == "betas":  # bitsandbytes has three for some
                own[n] = tuple(own[n])[: len(optimizer.defaults["betas"])]
            elif isinstance(own[n], Tensor):
                own[n] = float(own[n])
        found.append(own)
    return found
