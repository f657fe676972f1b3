"""What is kept for a weight: the tensors of its rule's states, and those beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gradstep.backends.update import describe, is_dense, laid_out_alike
from gradstep.optimizer.state_spec import PLAIN, Options, OtherShapeError, StateSpec
from gradstep.program.format import Format, Part
from gradstep.program.formats import format_of, formats, weight_format
from gradstep.program.shards import like_shards_of, local
from gradstep.program.weight_formats import NARROW, WeightFormat, in_bytes
from gradstep.rule.definition import Rule
from gradstep.rule.state import State


@dataclass(frozen=True)
class WeightSpec(StateSpec):
    """What is kept beside a weight of 16 bits, by name, of one tensor: no state of the rule."""

    @cached_property
    def format(self) -> Format | None:
        return None

    @property
    def is_like_weight(self) -> bool:
        return False

    def format_for(self, weight: Tensor) -> Format | None:
        return None

    def names_for(self, weight: Tensor) -> tuple[str, ...]:
        return (self.name,) if self.parts(weight, {}) else ()

    def parts(self, weight: Tensor, options: Options) -> tuple[Part, ...]:
        kept = weight_format(self.rule, weight.dtype)
        found = () if kept is None else kept.parts("", tuple(weight.shape))
        return tuple([part for part in found if part.name == self.name])

    def begin(
        self, p: Tensor, options: Options, gradient: Tensor | None, entry: dict[str, Any]
    ) -> None:
        for part in self.parts(p, options):
            # Beside a weight that is what it is nothing was rounded away.
            if part.dtype == torch.float32:
                made = p.detach().to(part.dtype, memory_format=torch.preserve_format)
            elif part.shape == p.shape:
                made = torch.zeros_like(p, dtype=part.dtype, requires_grad=False)
            else:
                own = torch.zeros_like(local(p), dtype=torch.int16, requires_grad=False)
                made = like_shards_of(p, in_bytes(own), part.shape)
            entry[part.name] = made

    def lay_out_anew(self, p: Tensor, options: Options, entry: dict[str, Any]) -> None:
        kept = weight_format(self.rule, p.dtype)
        for part in self.parts(p, options):
            held = entry.get(part.name)
            if type(held) is Tensor and held.shape == part.shape and held.dtype == part.dtype:
                entry[part.name] = self._lying_like(held, p, kept)

    def _lying_like(self, tensor: Tensor, p: Tensor, kept: WeightFormat | None) -> Tensor:
        """What is kept beside a weight, laid out as it is."""
        if kept is None or type(tensor) is not Tensor or type(p) not in PLAIN or not is_dense(p):
            return tensor
        own = kept.like_weight(tensor)
        if laid_out_alike(own, p):
            return tensor
        with torch.inference_mode(False), torch.no_grad():
            made = torch.empty_like(p, dtype=own.dtype).copy_(own).detach()
        return made if tensor.shape == p.shape else in_bytes(made)

    def loaded(
        self, p: Tensor, options: Options, entry: Mapping[str, Any], name_of: Callable[[], str]
    ) -> dict[str, Tensor]:
        value, made = entry[self.name], {}
        for part in self.parts(p, options):
            fits = isinstance(value, Tensor) and tuple(value.shape) == part.shape
            if not fits or value.dtype != part.dtype:
                found = describe(value) if isinstance(value, Tensor) else repr(value)
                wanted = str(part.dtype).removeprefix("torch.")
                raise OtherShapeError(
                    f"the checkpoint's {self.name} of {name_of()} is {found}. Expected {wanted} of "
                    f"the shape {part.shape}. Is it of another model, or cut?"
                )
            made[self.name] = self._lying_like(value, p, weight_format(self.rule, p.dtype))
        return made

    def loses(self, entry: Mapping[str, Any], p: Tensor) -> str:
        return ""


def state_specs(rule: Rule) -> dict[str, StateSpec]:
    """The states of a rule that are tensors, and what is kept beside weights, by name."""
    found = {n: StateSpec(n, s, rule) for n, s in rule.states.items() if s.start != "number"}
    if rule.low_precision != "nearest":
        found.update(_beside_weights(rule))
    return found


def _beside_weights(rule: Rule) -> dict[str, StateSpec]:
    kinds = [weight_format(rule, dtype) for dtype in NARROW]
    names = dict.fromkeys(name for kind in kinds if kind is not None for name, _ in kind.extra)
    return {name: WeightSpec(name, State(), rule) for name in names}


def weight_number(rule: Rule, p: Tensor, entry: Mapping[str, Any], place: Sequence[int]) -> float:
    """A weight's number, of one that is kept in several tensors together.

    Args:
        rule: that says how weights are kept.
        p: the parameter.
        entry: its states by name; what is kept beside it may still be missing.
        place: of the number.
    """
    at = tuple(place)
    kept = weight_format(rule, p.dtype)
    beside: list[Any] = [] if kept is None else [entry.get(name) for name in kept.beside]
    if kept is None or any(tensor is None for tensor in beside):
        return float(p[at].item())
    parts = [tensor.detach()[at].unsqueeze(0) for tensor in (p, *beside)]
    return float(kept.decode(parts, torch.float32).item())


def names_in_files(rule: Rule) -> set[str]:
    """All names that the rule's states may have in a checkpoint, in whatever format."""
    kinds = [format_of(name) for name in formats()]
    found = {n for state in state_specs(rule) for kind in kinds for n in kind.names(state)}
    return {*rule.states, *found}
