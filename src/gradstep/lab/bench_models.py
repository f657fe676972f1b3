"""The three sizes of network that ``gradstep bench`` steps: the shapes of their parameters."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

Shapes = list[tuple[int, ...]]


@dataclass(frozen=True)
class Size:
    """A network by the shapes of its parameters.

    Attributes:
        name: on the command line.
        what: in words.
        shapes: one tuple a parameter.
        rounds: how many timed rounds make a steady median.
    """

    name: str
    what: str
    shapes: Shapes
    rounds: int

    def matrices(self) -> Size:
        """The same network's matrices alone."""
        return replace(self, shapes=[s for s in self.shapes if len(s) == 2])

    def elements(self) -> int:
        """How many weights it has."""
        return sum(torch.Size(shape).numel() for shape in self.shapes)

    def gradients(self, dtype: torch.dtype) -> list[Tensor]:
        """Seeded gradients of the size that training shows."""
        generator = torch.Generator().manual_seed(1)
        return [(torch.randn(s, generator=generator) * 0.01).to(dtype) for s in self.shapes]

    def weights(self, dtype: torch.dtype) -> list[Tensor]:
        """Seeded weights; the same at every call."""
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(s, generator=generator).to(dtype) for s in self.shapes]


def transformer_shapes(layers: int, width: int, vocabulary: int, context: int) -> Shapes:
    """A GPT: two embeddings, twelve tensors a layer, a last norm."""
    shapes: Shapes = [(vocabulary, width), (context, width)]
    for _ in range(layers):
        shapes += [(width,), (width,)]
        shapes += [(3 * width, width), (3 * width,), (width, width), (width,)]
        shapes += [(width,), (width,)]
        shapes += [(4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    return [*shapes, (width,), (width,)]


def lenet_shapes() -> Shapes:
    """LeNet's ten tensors."""
    from gradstep.lab.lenet import LeNet

    return [tuple(p.shape) for p in LeNet().parameters()]


def sizes() -> dict[str, Size]:
    """The sizes by name, small to large."""
    known = [
        Size("lenet", "LeNet: 10 tensors, 61,706 weights", lenet_shapes(), 300),
        Size(
            "transformer",
            "12-layer transformer of width 192: 148 tensors, 5.4 M weights",
            transformer_shapes(12, 192, 65, 256),
            60,
        ),
        Size(
            "large",
            "6-layer transformer of width 768: 76 tensors, 58 M weights",
            transformer_shapes(6, 768, 19200, 1024),
            12,
        ),
    ]
    return {size.name: size for size in known}
