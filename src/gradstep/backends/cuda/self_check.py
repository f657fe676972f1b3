"""Distrust until proved: a kernel on a device is held against the CPU's before it may write.

A step of a few weights of odd sizes, some thousand numbers in all, among them the ends of the range
and what is no number. The CPU's kernel makes two steps first, so that states are as in training;
then both make the third, from the same bits. A kernel that gives another bit anywhere is not used.
What has been proved is remembered on disk for the device, its driver and the driver's version.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradstep.backends import kernel_cache
from gradstep.backends.base import Values
from gradstep.backends.cpu.binding import Tensors
from gradstep.backends.cpu.kernel import kernel_for
from gradstep.backends.cuda.binding import DeviceKernel, DeviceTensors
from gradstep.backends.cuda.images import Images
from gradstep.backends.cuda.passes import DevicePasses
from gradstep.backends.update import Update, in_pairs
from gradstep.program.program import Program

#: Elements of the weights: some of one thread's, more than a block's, and more than a chunk's, none
#: a multiple of what a thread takes.
SIZES: tuple[tuple[int, ...], ...] = ((1,), (3,), (1027,), (4099,), (16_389,))

#: Of weights with rows and columns; more than a line's, and more than a tile's of the sums.
MATRICES: tuple[tuple[int, ...], ...] = ((1, 1), (3, 5), (2, 37, 129), (70, 2500))

#: Before the step that is compared.
_STEPS = 2


def difference(
    kernel: DeviceKernel, images: Images, program: Program, like: Update, by_host: bool = True
) -> str | None:
    """In which numbers a kernel differs from the CPU's, in words; None if in none.

    Args:
        kernel: of the device.
        images: of its driver.
        program: what it does.
        like: a weight's step, whose states, formats and dtypes are taken; it is only read.
        by_host: whether the host can work out a step's numbers: it then does, and every bit must be
            the CPU's. Else the device does, and powers may differ in the last place of float64.

    Raises:
        torch.OutOfMemoryError: the device's memory is full.
    """
    texts = [each.text() for each in kernel.specs]
    name = images.name(kernel.index, "proved", str(kernel.on_device), *texts)
    if kernel_cache.read(name) is not None:
        return None
    facts = images.driver.facts(kernel.index)
    compared = compare(kernel, program, like, by_host)
    off = numbers_off(kernel, program, like) if kernel.on_device else None
    if compared.different == 0 and off is None:
        kernel_cache.write(name, b"the bits of the CPU")
        return None
    return f"its kernel was tried on {facts.name}, and {compared if compared.different else off}"


def bound(kernel: DeviceKernel, updates: Sequence[Update]) -> DeviceTensors:
    """A kernel of a device bound to weights."""
    kind = DeviceTensors if kernel.is_flat else DevicePasses
    return kind(kernel, updates, [u.weight for u in updates])


@dataclass(frozen=True)
class Compared:
    """What came of a comparison.

    Attributes:
        different: how many numbers have other bits.
        total: of how many.
        first: the first of them, in words; "" for none.
    """

    different: int
    total: int
    first: str = ""

    def __str__(self) -> str:
        if not self.different:
            return f"has the CPU's bits in {self.total:,} numbers"
        return (
            f"differs from the CPU's in {self.different:,} of {self.total:,} numbers; the first is "
            f"{self.first}"
        )


def compare(kernel: DeviceKernel, program: Program, like: Update, by_host: bool = True) -> Compared:
    """Make the same step on the device and on the CPU.

    Args:
        kernel, program, like, by_host: as of :func:`difference`.

    Raises:
        torch.OutOfMemoryError: the device's memory is full.
    """
    random = torch.Generator().manual_seed(0)
    values = Values(tuple([_number(program, name) for name in program.names]), {})
    of_cpu = kernel_for(program, like)
    with torch.no_grad():
        ours = _trials(program, like, random)
        for _ in range(_STEPS):
            Tensors(of_cpu, ours, [u.weight for u in ours]).prepare(values)()
            ours = [replace(u, first=False, gradient=_gradient(u.weight, random)) for u in ours]
        for update in ours:
            _put_ends_of_range(update.gradient)
        theirs = [_moved(kernel, update, numbers=not by_host) for update in ours]
        Tensors(of_cpu, ours, [u.weight for u in ours]).prepare(values)()
        binding = bound(kernel, theirs)
        binding.numbers_there = not by_host
        binding.prepare(values)()
        kernel.driver.wait(kernel.index)
        return _compared(ours, theirs, unlike if by_host else _far)


def numbers_off(kernel: DeviceKernel, program: Program, like: Update) -> str | None:
    """In what the numbers that a device works out are off the host's, in words; None if in nothing.

    Powers and logarithms are others' work on the host, and may differ in the last place.
    """
    random = torch.Generator().manual_seed(0)
    values = Values(tuple([_number(program, name) for name in program.names]), {})
    with torch.no_grad():
        ours = _trials(program, like, random)
        for step, update in enumerate(ours):
            if "step" in update.numbers:
                update.numbers["step"].fill_(step * step)
        theirs = [_moved(kernel, update, numbers=True) for update in ours]
        binding = bound(kernel, theirs)
        binding.prepare(values)()
        kernel.driver.wait(kernel.index)
    rows = binding.rows_there
    if rows is None or not kernel.is_flat:  # states of one number are compared with the others
        return None
    found = rows[: 8 * len(ours) * kernel.width].cpu().view(torch.float64).view(len(ours), -1)
    for update, row in zip(ours, found.tolist(), strict=True):
        own = [float(number) for number in update.numbers.values()]
        if "step" in update.numbers:
            own[-1] += 1.0
        else:
            own.append(1.0)
        right = kernel.row(*own, float(update.first), *values.numbers)
        for one, other in zip(row, right, strict=True):
            both = math.isnan(one) and math.isnan(other)
            if not both and not math.isclose(one, other, rel_tol=1e-13, abs_tol=1e-300):
                return (
                    f"gives {one!r} for a number of the step that is {float(other)!r} on the host"
                )
    return None


def _number(program: Program, name: str) -> float:
    """A number that a step may well have."""
    given = {"lr": 0.01, "grad_scale": 1.0, "loss": 1.0}
    return given[name] if name in given else float(program.rule.hyperparameters[name])


def _trials(program: Program, like: Update, random: torch.Generator) -> list[Update]:
    """First steps of weights on the CPU, with states as they begin."""
    rule, kept = program.rule, like.weight_format
    numbers = {
        name: torch.tensor(_start(program, name), dtype=number.dtype)
        for name, number in like.numbers.items()
    }
    made = []
    options = {name: _number(program, name) for name in program.names}
    for size in SIZES if like.weight.dim() < 2 else MATRICES:
        weight = _gradient(like.weight.new_empty(size, device="cpu"), random)
        gradient = _gradient(weight, random)
        states: dict[str, Tensor] = {}
        if kept is not None:
            weight, *beside = kept.encode(weight.float())
            states.update(zip(kept.beside, beside, strict=True))
        for name, state in rule.states.items():
            names = like.formats[name].names(name) if name in like.formats else (name,)
            if not set(names) <= set(like.states):
                continue
            if state.start in ("weight", "gradient"):
                start = (weight if state.start == "weight" else gradient).clone()
            else:
                shape = state.shape_for(size, options)
                start = torch.full(shape, _start(program, name), dtype=weight.dtype)
            if name in like.formats:
                wide = start.double() if weight.dtype == torch.float64 else start.float()
                states.update(zip(names, like.formats[name].encode(wide), strict=True))
            else:
                states[name] = start
        states = {name: states[name] for name in like.states}
        own = {
            name: number if name != "step" and rule.states[name].shared else number.clone()
            for name, number in numbers.items()
        }
        made.append(
            replace(
                like,
                weight=weight,
                gradient=gradient,
                states=states,
                numbers=own,
                first=True,
                shapes={},
                entry={},
            )
        )
    return made


def _start(program: Program, name: str) -> float:
    """What a state starts as."""
    if name == "step":
        return 0.0
    value = program.rule.states[name].value
    return _number(program, value) if isinstance(value, str) else float(value)


def _gradient(weight: Tensor, random: torch.Generator) -> Tensor:
    """Numbers of many sizes, for a weight."""
    wide = torch.float64 if weight.dtype in (torch.float64, torch.complex128) else torch.float32
    shape = torch.view_as_real(weight).shape if weight.is_complex() else weight.shape
    size = 10.0 ** (6 * torch.rand(shape, generator=random, dtype=wide) - 4)
    made = torch.randn(shape, generator=random, dtype=wide) * size
    made = torch.view_as_complex(made) if weight.is_complex() else made
    return made.to(weight.dtype)


def _put_ends_of_range(gradient: Tensor) -> None:
    """Into a gradient: zeros, the smallest and largest numbers, infinities and nan."""
    flat = in_pairs(gradient).view(-1)
    about = torch.finfo(flat.dtype)
    ends = [0.0, -0.0, about.smallest_normal, about.tiny / 4, about.max, about.min]
    ends += [float("inf"), float("-inf"), float("nan"), 1.0, -1.0]
    for place, value in enumerate(ends[: len(flat) // 2]):
        flat[3 * place % len(flat)] = value


def _moved(kernel: DeviceKernel, update: Update, numbers: bool) -> Update:
    """A copy of a step for the device, from the same bits; also of what is one number, or not."""
    device = torch.device(kernel.driver.device_type, kernel.index)
    return replace(
        update,
        weight=update.weight.to(device, copy=True),
        gradient=update.gradient.to(device, copy=True),
        states={name: state.to(device, copy=True) for name, state in update.states.items()},
        numbers={
            name: number.to(device, copy=True) if numbers else number.clone()
            for name, number in update.numbers.items()
        },
    )


def _compared(
    ours: Sequence[Update],
    theirs: Sequence[Update],
    apart: Callable[[Tensor, Tensor], Tensor],
) -> Compared:
    different, total, first = 0, 0, ""
    for one, other in zip(ours, theirs, strict=True):
        pairs = {"the weight": (one.weight, other.weight)}
        pairs |= {name: (one.states[name], other.states[name]) for name in one.states}
        pairs |= {name: (one.numbers[name], other.numbers[name]) for name in one.numbers}
        for name, (a, b) in pairs.items():
            a, b = in_pairs(a).reshape(-1), in_pairs(b).cpu().reshape(-1)
            total += len(a)
            places = apart(a, b).nonzero().view(-1).tolist()
            different += len(places)
            if places and not first:
                i = places[0]
                first = f"{b[i].item()!r} where {name} is {a[i].item()!r} on the CPU"
    return Compared(different, total, first)


def _far(one: Tensor, other: Tensor) -> Tensor:
    """Which numbers are off by more than what comes of the last place of a power."""
    if not one.is_floating_point():
        return unlike(one, other)
    eps = 4 * torch.finfo(one.dtype).eps
    return ~torch.isclose(one.double(), other.double(), rtol=max(eps, 1e-12), equal_nan=True)


def unlike(one: Tensor, other: Tensor) -> Tensor:
    """Which numbers have other bits, and are not nan in both: of nan processors choose the rest.

    Args:
        one: real numbers, or codes.
        other: of the same dtype and shape, on the same device.
    """
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    kind = kinds[one.element_size()]
    found = one.view(kind) != other.view(kind)
    return found & ~(one.isnan() & other.isnan()) if one.is_floating_point() else found
