"""What tensors a state of a weight is: which there are, how they begin, and whether they fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gradstep.backends.owners import holder_of
from gradstep.backends.update import describe, is_dense, laid_out_alike, layout, working_dtype
from gradstep.program.block_formats import BlockFormat
from gradstep.program.format import DType, Format, Part
from gradstep.program.formats import (
    coded_formats,
    format_of,
    format_of_state,
    formats,
    weight_format,
)
from gradstep.program.shards import full, held_by, is_sharded, local
from gradstep.rule.definition import Rule
from gradstep.rule.reductions import joined
from gradstep.rule.signs import never_negative
from gradstep.rule.state import State

#: The types whose states torch's own functions make as they should be.
PLAIN = (Tensor, torch.nn.Parameter)

#: Hyperparameters by name, with ``"lr"``.
Options = Mapping[str, Any]


class OtherShapeError(ValueError):
    """A checkpoint's state is of another shape than its parameter."""


def own_dtype(weight: torch.dtype) -> torch.dtype:
    """What states of a shape of their own are stored as: opaque functions need the precision."""
    return torch.float64 if weight == torch.float64 else torch.float32


@dataclass(frozen=True)
class StateSpec:
    """A state of a rule, as the tensors that it is for a weight.

    :meth:`parts` alone says which those are; all else goes by it.

    Attributes:
        name: of the state.
        state: how it is declared; one that is no number.
        rule: whose state it is.
    """

    name: str
    state: State
    rule: Rule

    @cached_property
    def format(self) -> Format | None:
        """What it is stored as, of weights that the format takes; None for what the weight is."""
        return format_of_state(self.rule, self.name)

    @property
    def never_negative(self) -> bool:
        """Whether its numbers are 0 or more."""
        return self.name in never_negative(self.rule)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of its tensors, of whatever weight."""
        return (self.name,) if self.format is None else self.format.names(self.name)

    def format_for(self, weight: Tensor) -> Format | None:
        """What it is stored as for a weight; None for what the weight is."""
        if self.format is not None and self.format.takes(weight):
            return self.format
        if self.state.shape == "own":
            return None
        # Beside weights that have float32's digits states have them, too.
        kept = weight_format(self.rule, weight.dtype)
        return format_of("float32") if kept is not None and kept.is_wide else None

    def is_in_rows(self, weight: Tensor) -> bool:
        """Whether its tensors lie in the order of rows, however the weight does."""
        format = self.format_for(weight)
        return format is not None and format.block > 1

    def names_for(self, weight: Tensor) -> tuple[str, ...]:
        """Of its tensors for a weight."""
        format = self.format_for(weight)
        return (self.name,) if format is None else format.names(self.name)

    def _held_as(self, entry: Mapping[str, Any]) -> Format | None:
        """What it is stored as in a parameter's states; None for plain numbers."""
        held = all(entry.get(name) is not None for name in self.names)
        return self.format if held else None

    @property
    def is_like_weight(self) -> bool:
        """Whether it is one tensor of its weight's shape and dtype, for every weight."""
        plain = self.rule.low_precision == "nearest" and self.format is None
        return plain and self.state.shape == "weight"

    def parts(self, weight: Tensor, options: Options) -> tuple[Part, ...]:
        """The tensors that it is: names, shapes and dtypes. (How they start: :meth:`begin`.)

        Args:
            weight: whose state it is.
            options: every hyperparameter, of which shapes may depend.
        """
        shape = self.state.shape_for(tuple(weight.shape), options)
        format = self.format_for(weight)
        if format is not None:
            return format.parts(self.name, shape)
        own = self.state.shape == "own"
        return (Part(self.name, shape, own_dtype(weight.dtype) if own else weight.dtype),)

    def bytes(self, weight: Tensor, options: Options) -> int:
        """What it takes of memory."""
        return sum(part.bytes() for part in self.parts(weight, options))

    # Beginning.

    def begin(
        self, p: Tensor, options: Options, gradient: Tensor | None, entry: dict[str, Any]
    ) -> None:
        """Put its tensors, as they start, among a parameter's states.

        Args:
            p: the parameter.
            options: every hyperparameter, by name.
            gradient: the first one; None before there is one.
            entry: the parameter's states by name; added to.
        """
        format = self.format_for(p)
        if format is None or isinstance(format, DType):
            dtype = None if format is None else format.dtype
            entry[self.name] = self._start(p, options, gradient, dtype)
            return
        if self.state.start == "zeros" and isinstance(format, BlockFormat):
            tensors = format.zeros(p)
        else:
            tensors = format.encode(self._start(p, options, gradient, working_dtype(p)))
        entry.update(zip(format.names(self.name), tensors, strict=True))

    def _start(
        self, p: Tensor, options: Options, gradient: Tensor | None, dtype: torch.dtype | None
    ) -> Tensor:
        """One tensor as the state starts; ``dtype`` in the place of the weight's, if it has one."""
        state, plain = self.state, type(p) in PLAIN
        if state.shape == "own":
            shape, dtype = state.shape_for(tuple(p.shape), options), own_dtype(p.dtype)
            if is_sharded(p):
                held: Tensor = held_by(p, holder_of(p), torch.zeros(0, dtype=dtype), shape)
                return held
            return torch.zeros(shape, dtype=dtype, device=p.device)
        if state.shape != "weight":
            return _zeros_along(p, -1 if state.shape == "row" else -2, dtype)
        if state.start == "zeros" and plain:
            return torch.zeros_like(p) if dtype is None else torch.zeros_like(p, dtype=dtype)
        if state.start == "weight":
            if dtype is None or dtype == p.dtype:
                return p.detach().clone(memory_format=torch.preserve_format)
            return p.detach().to(dtype, memory_format=torch.preserve_format)
        if state.start == "gradient" and gradient is not None:
            if dtype is None and plain and type(gradient) is Tensor and _is_like(gradient, p):
                return gradient.clone()
            return torch.empty_like(p, dtype=dtype).copy_(gradient).detach()
        value = options[state.value] if isinstance(state.value, str) else state.value
        value = float(value)
        start = complex(value, value) if p.is_complex() else value
        return torch.full_like(
            p, start, dtype=dtype, requires_grad=False, memory_format=torch.preserve_format
        )

    # What is there already.

    def read(self, entry: Mapping[str, Any], dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
        """Its numbers in a dtype, from a parameter's states; ``shape`` is the state's."""
        format = self._held_as(entry)
        if format is None:
            held: Tensor = entry[self.name]
            return held.to(dtype)
        return format.numbers([entry[name] for name in self.names], dtype, shape)

    def numbers(self, entry: Mapping[str, Any], weight: Tensor) -> Tensor:
        """The tensor of its numbers: the state itself, unless that holds codes.

        Args:
            entry: a parameter's states by name.
            weight: the parameter.
        """
        if self._is_plain(entry):
            held: Tensor = entry[self.name]
            return held
        return self.read(entry, working_dtype(weight), weight.shape)

    def _is_plain(self, entry: Mapping[str, Any]) -> bool:
        """Whether it is one tensor of its numbers."""
        format = self._held_as(entry)
        return format is None or isinstance(format, DType)

    def at(self, place: Sequence[int], entry: Mapping[str, Any], shape: Sequence[int]) -> float:
        """Its number at a weight's place; of one a row or column, the one that goes with it.

        Args:
            place: in the weight.
            entry: the parameter's states by name.
            shape: the weight's.
        """
        plain = self._is_plain(entry)
        held: Tensor = entry[self.name] if plain else self.read(entry, torch.float64, shape)
        own = tuple(min(i, n - 1) for i, n in zip(place, held.shape, strict=True))
        return float(held[own].item())

    def encoded(self, value: Tensor, p: Tensor) -> dict[str, Tensor]:
        """Its tensors for these numbers."""
        format = self.format_for(p)
        if format is None:
            return {self.name: value.to(p.dtype)}
        return dict(zip(format.names(self.name), format.encode(value), strict=True))

    def rounded(self, value: float, weight: Tensor) -> float:
        """A number as it comes back when it was stored for a weight.

        Args:
            value: the number.
            weight: the parameter, or one of its shape and dtype without memory.
        """
        format = self.format_for(weight)
        if format is None:
            number = torch.tensor([value], dtype=working_dtype(weight), device="cpu")
            return float(number.to(weight.dtype).item())
        return format.rounded(value, weight.dtype)

    def lay_out_anew(self, p: Tensor, options: Options, entry: dict[str, Any]) -> None:
        """Lay its tensors out as their weight is by now, in entry, those that are of its shape."""
        if self.state.shape != "weight" or self.is_in_rows(p):
            return
        now = layout(p)
        for part in self.parts(p, options):
            held = entry.get(part.name)
            if (
                type(held) is Tensor
                and held.shape == p.shape == part.shape
                and held.dtype == part.dtype
                and held.device == p.device
                and layout(held) != now
            ):
                with torch.inference_mode(False), torch.no_grad():
                    entry[part.name] = torch.empty_like(p, dtype=held.dtype).copy_(held).detach()

    # What a checkpoint holds.

    def loaded(
        self, p: Tensor, options: Options, entry: Mapping[str, Any], name_of: Callable[[], str]
    ) -> dict[str, Tensor]:
        """Its tensors for a parameter, made of a checkpoint's, in whatever format those are.

        Args:
            p: the parameter.
            options: every hyperparameter, by name.
            entry: what the checkpoint has for the parameter, by name.
            name_of: gives the parameter's name, for messages.

        Raises:
            TypeError: what is no tensor.
            ValueError: of another shape, incomplete, or of numbers that the format cannot hold.
        """
        shape = self.state.shape_for(tuple(p.shape), options)
        coded = coded_as(self.name, shape, entry)
        if coded is not None and self.never_negative:
            coded = coded.unsigned
        if coded is not None and coded is self.format_for(p):
            found = {name: entry[name].contiguous() for name in self.names}
        elif coded is not None:
            parts = [entry[n] for n in coded.names(self.name)]
            found = self._stored(coded.numbers(parts, working_dtype(p), shape), p, name_of)
        else:
            numbers = self._checked(entry[self.name], shape, p, name_of)
            format = self.format_for(p)
            as_given = format is None and self.state.shape != "own"  # torch has cast it
            found = {self.name: numbers} if as_given else self._stored(numbers, p, name_of)
        return {name: self._laid_out(tensor, p) for name, tensor in found.items()}

    def loses(self, entry: Mapping[str, Any], p: Tensor) -> str:
        """What a checkpoint's state of a parameter has that is lost as it is loaded, in words.

        Empty for nothing.
        """
        value, format = entry.get(self.name), self.format_for(p)
        if format is None or not isinstance(value, Tensor):
            return ""
        if coded_as(self.name, tuple(p.shape), entry) is not None:
            return ""
        if isinstance(format, DType):
            wider = torch.promote_types(value.dtype, format.dtype)
            if wider == format.dtype:
                return ""
        return f"{self.name} from {str(value.dtype).removeprefix('torch.')} to {format.name}"

    def _checked(
        self, value: Any, shape: tuple[int, ...], p: Tensor, name_of: Callable[[], str]
    ) -> Tensor:
        if not isinstance(value, Tensor):
            raise TypeError(
                f"the checkpoint's {self.name} of {name_of()} is a {type(value).__name__}, "
                "not a tensor"
            )
        if tuple(value.shape) != shape:
            raise OtherShapeError(
                f"the checkpoint is of another model: its {self.name} of {name_of()} is "
                f"{describe(value)}; the parameter is {describe(p)}"
            )
        if not (value.is_floating_point() or value.is_complex()):
            raise ValueError(
                f"the checkpoint's {self.name} of {name_of()} is {describe(value)}, which is no "
                f"number and no format that is known ({', '.join(formats())}). Was the checkpoint "
                "cut, or saved with a format of your own that is not registered here?"
            )
        return value

    def _stored(self, numbers: Tensor, p: Tensor, name_of: Callable[[], str]) -> dict[str, Tensor]:
        if self.state.shape == "own":
            whole = full(numbers).to(own_dtype(p.dtype))
            if is_sharded(p):
                whole = held_by(p, holder_of(p), whole, tuple(whole.shape))
            return {self.name: whole}
        format = self.format_for(p)
        if format is None:
            return {self.name: numbers.to(p.dtype)}
        if isinstance(format, DType) and numbers.dtype == format.dtype:
            return {self.name: numbers}
        numbers = numbers.to(working_dtype(p))
        encoded = format.encode(numbers)
        back = local(format.numbers(encoded, numbers.dtype, numbers.shape))
        if not bool((torch.isfinite(back) | ~torch.isfinite(local(numbers))).all()):
            largest = float(local(numbers).abs().max())
            raise ValueError(
                f"the checkpoint's {self.name} of {name_of()} has numbers up to {largest:g}, which "
                f"{format.name} cannot hold. Load it into an optimizer with another "
                f"state_dtype for {self.name}, such as bfloat16."
            )
        return dict(zip(format.names(self.name), encoded, strict=True))

    def _laid_out(self, tensor: Tensor, p: Tensor) -> Tensor:
        if self.state.shape != "weight" or self.is_in_rows(p):
            return tensor if is_sharded(tensor) else tensor.contiguous()
        plain = type(p) in PLAIN and type(tensor) is Tensor
        alike = not plain or tensor.shape != p.shape or laid_out_alike(tensor, p)
        if alike or not is_dense(p):
            return tensor
        return torch.empty_like(p, dtype=tensor.dtype).copy_(tensor).detach()


def coded_as(name: str, shape: tuple[int, ...], entry: Mapping[str, Any]) -> Format | None:
    """The format in which a state was saved; None where it is one tensor of plain numbers."""
    for kind in coded_formats():
        if not all(part in entry for part in kind.names(name)):  # in a tenth of the time
            continue
        parts = kind.parts(name, shape)
        held = [entry.get(part.name) for part in parts]
        if all(
            isinstance(tensor, Tensor)
            and tensor.dtype == part.dtype
            and tuple(tensor.shape) == part.shape
            for part, tensor in zip(parts, held, strict=True)
        ):
            return kind
    return None


def _is_like(gradient: Tensor, p: Tensor) -> bool:
    """Whether a clone has dtype, device and layout of the weight."""
    return (
        gradient.dtype == p.dtype
        and gradient.device == p.device
        and gradient.layout is torch.strided
        and gradient.is_contiguous()
        and p.is_contiguous()
        and not (gradient.is_conj() or gradient.is_neg())
    )


def _zeros_along(p: Tensor, gone: int, dtype: torch.dtype | None) -> Tensor:
    """Zeros of a parameter's shape, but for one dimension of one element."""
    with torch.inference_mode(False), torch.no_grad():
        if type(p) in PLAIN:
            shape = list(p.shape)
            shape[gone] = 1
            return torch.zeros(shape, dtype=dtype or p.dtype, device=p.device)
        # A subclass knows best: a DTensor's is split as far as it itself is split along the rest.
        return joined(torch.zeros_like(p, dtype=dtype).sum(dim=gone, keepdim=True)).detach()
