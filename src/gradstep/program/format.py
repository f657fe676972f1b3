"""What a format is: which tensors a state is, and how torch and kernels read and write them.

A new one is one file, with a class and a :func:`gradstep.program.formats.register`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """One of the tensors that a state is.

    Attributes:
        name: under which it stands in ``optimizer.state``.
        shape: the tensor's.
        dtype: the tensor's.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def bytes(self) -> int:
        """Of its elements."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


#: Reads or writes one element, given llvmlite's builder: from the bits of an element to the
#: float32 that they stand for, or back. What reads takes vectors as well.
Code = Callable[[Any, Any], Any]


class Codec(ABC):
    """How a kernel reads and writes a stretch of elements that are not coded one by one.

    It works between the tensors of a column and a line of float32 in the fastest cache.

    Attributes:
        items: of each tensor: so many bytes, for so many elements.
        is_random: whether :meth:`encode` takes a ``counter``: the place of the first element in its
            tensor, and the key of the step.
    """

    items: tuple[tuple[int, int], ...]
    is_random: bool = False

    @abstractmethod
    def decode(self, b: Any, parts: Sequence[Any], count: Any, numbers: Any) -> None:
        """Write the code that reads.

        Args:
            b: llvmlite's builder.
            parts: pointers to where the stretch begins in each tensor, at the start of a block.
            count: how many elements it has; only the last stretch of a tensor may end in a block.
            numbers: a pointer to float32, one an element.
        """

    @abstractmethod
    def encode(self, b: Any, numbers: Any, count: Any, parts: Sequence[Any]) -> None:
        """Write the code that writes; the arguments are those of :meth:`decode`."""


class Format(ABC):
    """How numbers lie in memory.

    Attributes:
        name: as :func:`gradstep.stored_as` takes it, and as kernels and explanations call it.
        suffixes: of the names of a state's tensors, behind the state's own.
        block: how many elements are coded together, in the order of rows; 1 for each by itself.
    """

    name: str
    suffixes: tuple[str, ...] = ("",)
    block: int = 1

    @property
    def unsigned(self) -> Format:
        """The format for states that are never negative: itself, unless it has one for them."""
        return self

    def takes(self, weight: Tensor) -> bool:
        """Whether states of such a weight are stored so; else they are stored as the weight."""
        return True

    def refusal(self, weight: Tensor) -> str | None:
        """Why no state of such a weight is stored so, to be said behind "stored as"; or None."""
        return "of real numbers" if weight.is_complex() else None

    def names(self, state: str) -> tuple[str, ...]:
        """Of the tensors of a state."""
        return tuple([state + suffix for suffix in self.suffixes])

    @abstractmethod
    def parts(self, state: str, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """The tensors of a state of such a shape, in the order of :attr:`suffixes`."""

    @abstractmethod
    def decode(self, parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """The numbers that the tensors of a state stand for, in the type that a step works in."""

    @abstractmethod
    def encode(self, value: Tensor) -> tuple[Tensor, ...]:
        """Tensors for numbers of the type that a step works in, each rounded to the nearest.

        With torch's operations alone, which torch.compile can follow and autograd.
        """

    def numbers(self, parts: Sequence[Tensor], dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
        """:meth:`decode`, for who knows the shape of the state."""
        return self.decode(parts, dtype)

    def rounded(self, value: float, dtype: torch.dtype) -> float:
        """A number as it comes back when it was stored for a weight of a dtype.

        Of a format of blocks as the largest of its block does.
        """
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        number = torch.tensor([value], dtype=wide, device="cpu")
        return float(self.numbers(self.encode(number), wide, (1,)).item())

    @property
    def item_bytes(self) -> int:
        """Of a format that kernels read by elements: how many bytes each has."""
        raise NotImplementedError

    def code(self, converts_half: bool) -> tuple[Code, Code] | None:
        """Of a format of one tensor: how a kernel reads and writes its elements.

        None where they are worked in as they are stored.

        Args:
            converts_half: whether the processor has instructions for float16.

        Raises:
            NotImplementedError: kernels know nothing of it, and :meth:`in_kernels` is False.
        """
        raise NotImplementedError

    def codec(self) -> Codec | None:
        """Of a format that kernels read by stretches: how. None for all others."""
        return None

    def in_kernels(self) -> bool:
        """Whether kernels read and write it; else rules are run as they are written."""
        return type(self).code is not Format.code or type(self).codec is not Format.codec


class DType(Format):
    """The numbers in another type of torch's: rounded to the nearest, ties to even.

    What is worked out in float64 is rounded to float32 first, as torch does it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.dtype: torch.dtype = getattr(torch, name)

    def parts(self, state: str, shape: tuple[int, ...]) -> tuple[Part, ...]:
        return (Part(state, shape, self.dtype),)

    def decode(self, parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        return parts[0].to(dtype)

    def encode(self, value: Tensor) -> tuple[Tensor, ...]:
        return (value.to(self.dtype),)

    @property
    def item_bytes(self) -> int:
        return self.dtype.itemsize

    def code(self, converts_half: bool) -> tuple[Code, Code] | None:
        if self.name in ("float32", "float64"):
            return None
        # Only who writes a kernel needs the compiler.
        from gradstep.program.low_precision import conversions

        return conversions(self.name, converts_half)
