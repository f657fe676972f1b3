"""One weight's step: what the optimizer hands to an engine, and the checks that come before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import torch
from torch import Tensor

from gradstep.program.format import Format
from gradstep.program.shards import like_shards_of, local
from gradstep.program.weight_formats import WeightFormat

#: The types whose memory is where they say.
_PLAIN = (Tensor, torch.nn.Parameter)


@dataclass(slots=True)
class Update:
    """All that one weight's step reads and writes.

    Attributes:
        weight: the parameter, which is written.
        gradient: read only.
        states: name -> tensor, which are written; a state whose format asks for it is several.
        shapes: name -> shape, for the tensors of states that have not the weight's.
        dtypes: name -> dtype, for the tensors of states that have not the weight's.
        formats: state -> its format, for those that are not stored as the weight.
        numbers: name -> tensor of one element, float32 or float64, which are written: states that
            are one number, and ``"step"``, which counts the weight's steps, if the rule counts.
        first: whether the states are new.
        name: gives the parameter's name, for messages.
        begun: whether all its states have just been made, like it.
        entry: the states' own mapping, into which a differentiable step puts new ones.
        weight_format: how the weight is kept, where that is not as any other; what is kept beside
            it is among the states.
        seed: of the chances by which it is rounded, if it is.
    """

    weight: Tensor
    gradient: Tensor
    states: Mapping[str, Tensor]
    numbers: Mapping[str, Tensor]
    first: bool
    name: Callable[[], str]
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    formats: Mapping[str, Format] = field(default_factory=dict)
    begun: bool = False
    entry: dict[str, Any] = field(default_factory=dict)
    weight_format: WeightFormat | None = None
    seed: int = 0


@dataclass(eq=False)
class AlikeUpdates(Sequence[Update]):
    """Updates that differ in their tensors alone; each is made when it is asked for.

    There may be thousands, and as many objects would cost more than the step.

    Attributes:
        weights: plain ones, of one dtype.
        gradients: one a weight, of its dtype, shape and layout.
        entries: one mapping a weight, that holds its states.
        states: the names of those of the weight's shape, dtype and layout.
        numbers: the names of those that are one number, stored alike for all weights.
        firsts: whether it is the weight's first step.
        begun: whether its states have just been made.
        names: what gives each weight's name.
    """

    weights: Sequence[Tensor]
    gradients: Sequence[Tensor]
    entries: Sequence[dict[str, Any]]
    states: Sequence[str]
    numbers: Sequence[str]
    firsts: Sequence[bool]
    begun: Sequence[bool]
    names: Sequence[Callable[[], str]]

    @property
    def kinds(self) -> set[bool]:
        """Whether weights have rows and columns: one answer, or both."""
        return {dimensions > 1 for dimensions in set(map(Tensor.dim, self.weights))}

    def __len__(self) -> int:
        return len(self.weights)

    @overload
    def __getitem__(self, place: int) -> Update: ...
    @overload
    def __getitem__(self, place: slice) -> list[Update]: ...
    def __getitem__(self, place: int | slice) -> Update | list[Update]:
        if isinstance(place, slice):
            return [self[i] for i in range(len(self))[place]]
        entry = self.entries[place]
        return Update(
            self.weights[place],
            self.gradients[place],
            {name: entry[name] for name in self.states},
            {name: entry[name] for name in self.numbers},
            self.firsts[place],
            self.names[place],
            begun=self.begun[place],
            entry=entry,
        )


def weights_of(updates: Sequence[Update]) -> Sequence[Tensor]:
    """The weights of updates."""
    if isinstance(updates, AlikeUpdates):
        return updates.weights
    return [update.weight for update in updates]


def working_dtype(weight: Tensor) -> torch.dtype:
    """What a step is worked out in: float32 for weights of 16 bits, as kernels do."""
    narrow = weight.dtype in (torch.bfloat16, torch.float16)
    return torch.float32 if narrow else weight.dtype


def decoded(
    stored: Mapping[str, Tensor],
    formats: Mapping[str, Format],
    dtype: torch.dtype,
    shape: Sequence[int],
) -> dict[str, Tensor]:
    """State -> its numbers, as a step works with them.

    Args:
        stored: the tensors of all states, by their names.
        formats: state -> its format, for those that are not stored as their weight.
        dtype: what the step works in.
        shape: the weight's, which states in formats have.
    """
    if not formats:
        return {n: t.float() if dtype == torch.float32 else t for n, t in stored.items()}
    found: dict[str, Tensor] = {}
    gone: set[str] = set()
    for state, format in formats.items():
        names = format.names(state)
        found[state] = format.numbers([stored[n] for n in names], dtype, shape)
        gone.update(names)
    rest = {n: t for n, t in stored.items() if n not in gone}
    return found | decoded(rest, {}, dtype, shape)


def unaliased(new: Mapping[str, Any], held: Mapping[str, Tensor]) -> dict[str, Any]:
    """New states, none of which is the tensor of another that will have been written by then.

    A rule may hand one state on to another, as it was before the step.

    Args:
        new: the new states by name.
        held: the states that they are written into.
    """
    return {
        name: value.clone() if any(value is held[n] for n in held if n != name) else value
        for name, value in new.items()
    }


def encoded(
    new: Mapping[str, Tensor], stored: Mapping[str, Tensor], formats: Mapping[str, Format]
) -> dict[str, Tensor]:
    """The tensors of new states, by their names.

    Args:
        new: state -> its numbers, as the step has made them.
        stored: the tensors of the old ones, which the new are like.
        formats: state -> its format, for those that are not stored as their weight.
    """
    found: dict[str, Tensor] = {}
    for state, format in formats.items():
        names = format.names(state)
        found.update(zip(names, format.encode(new[state]), strict=True))
    rest = {n: t for n, t in stored.items() if n not in found and n in new}
    found.update({n: new[n].to(t.dtype) for n, t in rest.items()})
    return found


def chance_key(seed: int, step: float) -> int:
    """Of a seed and the count of a step what other steps and seeds have not."""
    return (seed << 32) + int(step)


def wide_weight(update: Update) -> Tensor:
    """The weight as a step works with it."""
    weight, kept = update.weight, update.weight_format
    if kept is None:
        return weight.to(working_dtype(weight))
    parts = [weight, *(update.states[name] for name in kept.beside)]
    made = kept.decode(list(map(local, parts)), torch.float32)
    return like_shards_of(weight, made, tuple(weight.shape))


def kept_weight(
    update: Update, value: Tensor, step: float, rows: Any = ...
) -> tuple[Tensor, dict[str, Tensor]]:
    """What a new weight is kept as: the weight, and the tensors beside it by name.

    Args:
        update: whose weight it is.
        value: as it was worked out; of complex ones as pairs.
        step: the count of this step.
        rows: of the weight, that the value is of.
    """
    weight, kept = update.weight, update.weight_format
    if kept is None:
        return value.to(in_pairs(weight).dtype), {}
    own = local(value)
    if kept.is_random:
        whole = local(weight)
        places = torch.arange(whole.numel(), device=own.device).view(whole.shape)[rows]
        made = kept.encode_at(own, places, chance_key(update.seed, step))
    else:
        made = kept.encode(own)
    parts = kept.parts("", tuple(weight.shape))
    whole = [like_shards_of(weight, t, part.shape) for t, part in zip(made, parts, strict=True)]
    return whole[0], dict(zip(kept.beside, whole[1:], strict=True))


def number_eps(update: Update) -> float:
    """The distance from 1 to the next number that the weight can be."""
    wide = update.weight_format is not None and update.weight_format.is_wide
    return torch.finfo(torch.float32 if wide else update.weight.dtype).eps


def is_matrix(tensor: Tensor) -> bool:
    """Whether a weight has rows and columns: its last two dimensions."""
    return tensor.dim() > 1


def has_shape(parameter: Tensor) -> bool:
    """Whether its shape is known: not that of a lazy layer before its first forward pass."""
    return not torch.nn.parameter.is_lazy(parameter)


def layout(tensor: Tensor) -> tuple[tuple[int, int], ...]:
    """Sizes and strides of the dimensions that have more than one element: the order in memory."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return tuple([pair for pair in pairs if pair[0] != 1])


def laid_out_alike(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same :func:`layout`."""
    return (a.shape == b.shape and a.stride() == b.stride()) or layout(a) == layout(b)


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill a stretch of memory, each place once, in whatever order."""
    if tensor.numel() < 2 or tensor.is_contiguous():
        return True
    expected = 1
    for size, stride in sorted(layout(tensor), key=lambda pair: pair[1]):
        if stride != expected:
            return False
        expected *= size
    return True


def in_pairs(tensor: Tensor) -> Tensor:
    """Complex numbers as pairs of reals: a view, unless they are a lazy conjugate. Others as is."""
    # autograd hands out gradients that are lazy conjugates; what is written is never one.
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def describe(tensor: Tensor) -> str:
    """Dtype, shape, device, and the layout if it is no common one, in words."""
    if not has_shape(tensor):
        return f"{str(tensor.dtype).removeprefix('torch.')} without a shape yet"
    shape = "×".join(map(str, tensor.shape)) or "0-dim"
    kind = "" if tensor.layout is torch.strided else f"{tensor.layout} ".removeprefix("torch.")
    return f"{kind}{str(tensor.dtype).removeprefix('torch.')} {shape} on {tensor.device}"


def check(update: Update) -> None:
    """Raise unless weight, gradient and states belong together. Changes nothing.

    Raises:
        TypeError: a state that is no tensor, or a dtype that cannot be updated.
        ValueError: a gradient or state of another shape, dtype, device or layout than the weight.
    """
    weight, writable = update.weight, not torch.is_inference_mode_enabled()
    if not (weight.is_floating_point() or weight.is_complex()):
        raise TypeError(
            f"{update.name()} holds {describe(weight)}; only floating-point and complex weights "
            "can follow a gradient. Leave it out of the optimizer."
        )
    plain = type(weight) in _PLAIN
    _check_writable(update, "", weight, writable)
    _check_memory(update, "", weight)
    _compare(update, "gradient", update.gradient)
    _check_memory(update, "gradient of ", update.gradient)
    if update.begun and plain:
        return
    for state_name, state in update.states.items():
        if not isinstance(state, Tensor):
            raise TypeError(
                f"state {state_name!r} of {update.name()} is a {type(state).__name__}, not a "
                f"tensor. Expected {describe(weight)}. Load a checkpoint, or delete the "
                "parameter's entry in optimizer.state to start it anew."
            )
        shape, dtype = update.shapes.get(state_name), update.dtypes.get(state_name)
        _compare(update, state_name, state, shape, dtype)
        if state.layout is not weight.layout:
            raise ValueError(
                f"state {state_name!r} of {update.name()} is {state.layout}; its weight is "
                f"{weight.layout}. Lay it out alike: torch.empty_like(weight).copy_(state)."
            )
        if (
            type(state) is Tensor
            and state_name not in update.shapes
            and not laid_out_alike(state, weight)
            and is_dense(weight)
            and weight.numel() > 1
        ):
            raise ValueError(
                f"state {state_name!r} of {update.name()} has strides {tuple(state.stride())}; its "
                f"weight has {tuple(weight.stride())}. Lay it out alike: "
                "torch.empty_like(weight).copy_(state)."
            )
        _check_writable(update, f"state {state_name!r} of ", state, writable)
        _check_memory(update, f"state {state_name!r} of ", state)
    for number_name, number in update.numbers.items():
        if not (
            isinstance(number, Tensor)
            and number.layout is torch.strided
            and number.numel() == 1
            and number.dtype in (torch.float32, torch.float64)
            and (number.is_cpu or number.device.type == weight.device.type)
        ):
            found = describe(number) if isinstance(number, Tensor) else f"a {type(number).__name__}"
            raise TypeError(
                f"state {number_name!r} of {update.name()} is {found}. Expected a tensor of one "
                f"float32 number: torch.tensor(float({number_name}))."
            )
        _check_memory(update, f"state {number_name!r} of ", number)


def _check_writable(update: Update, what: str, tensor: Tensor, writable: bool) -> None:
    """Raise for a tensor that torch would refuse to write, which is too late within a step."""
    if (
        tensor.layout is torch.strided
        and not tensor.is_contiguous()
        and any(
            size > 1 and stride == 0
            for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        )
    ):
        raise ValueError(
            f"{what}{update.name()} is an expanded tensor, {describe(tensor)} with strides "
            f"{tuple(tensor.stride())}: several elements share one place in memory, and a step "
            "would write it more than once. Give each its own: clone() it."
        )
    if tensor.is_conj():
        raise ValueError(
            f"{what}{update.name()} is the lazy conjugate of another tensor and cannot be written "
            "as reals. Make it a tensor of its own: resolve_conj()."
        )
    if writable and tensor.is_inference():
        raise ValueError(
            f"{what}{update.name()} was made in inference mode, and torch lets nobody write it "
            "outside. clone() it."
        )


def _check_memory(update: Update, what: str, tensor: Tensor) -> None:
    """Raise for a tensor whose storage was made smaller than it: torch itself would crash."""
    if type(tensor) not in _PLAIN or not (tensor.is_cpu or tensor.is_cuda):
        return
    if tensor.layout is not torch.strided or not tensor.numel():
        return
    last = tensor.numel() - 1
    if not tensor.is_contiguous():
        last = sum([(n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)])
    needed = (tensor.storage_offset() + last + 1) * tensor.element_size()
    held = tensor.untyped_storage().nbytes()
    if held < needed:
        raise ValueError(
            f"{what}{update.name()} is {describe(tensor)} and needs {needed} bytes of storage, "
            f"which has {held}: it was resized. Bring it back before the step."
        )


def _spoken(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _compare(
    update: Update,
    name: str,
    tensor: Any,
    shape: tuple[int, ...] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    weight = update.weight
    wanted = weight.shape if shape is None else shape
    same_dtype = tensor.dtype == (weight.dtype if dtype is None else dtype)
    same_device = (tensor.is_cpu and weight.is_cpu) or tensor.device == weight.device
    if tensor is update.gradient and not same_dtype:
        # torch lets a parameter have gradients of another dtype: this one, or any for None.
        same_dtype = getattr(weight, "grad_dtype", weight.dtype) in (None, tensor.dtype)
    if tensor.shape == wanted and same_dtype and same_device:
        return
    what = name if tensor is update.gradient else f"state {name!r}"
    if tensor is update.gradient:
        remedy = (
            "Was the parameter's data replaced after the backward pass? Call zero_grad() and "
            "backward() again, or set the parameter's .grad to None."
        )
    elif tensor.shape != wanted:
        remedy = (
            "Was the parameter's data replaced? Build the optimizer after the model has its final "
            "shape, or delete the parameter's entry in optimizer.state to start it anew."
        )
    elif not same_dtype:
        remedy = "Was the model converted after the last step? Convert the optimizer's state too."
    else:
        remedy = "Was the model moved after the last step? Move the optimizer's state too."
    raise ValueError(
        f"{what} of {update.name()} is {describe(tensor)}; its weight is {describe(weight)}. "
        + ("" if shape is None else f"Expected the shape {tuple(shape)}. ")
        + ("" if same_dtype or dtype is None else f"Expected {_spoken(dtype)}. ")
        + remedy
    )
