"""What the tests of many processes share: a row a class, and a model with exact gradients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

import gradstep


@dataclass(frozen=True)
class Case:
    """A class with options that use all of its states. A new class is a new row of CASES.

    Attributes:
        name: of the class, in gradstep and, if ``in_torch``, in torch.optim.
        options: its arguments.
        in_torch: whether torch.optim has it.
        sharded_in_torch: whether torch.optim's own takes DTensors.
        elementwise: whether a weight's step depends on nothing but that weight, so that shards
            are updated apart, without communication.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    in_torch: bool = True
    sharded_in_torch: bool = True
    elementwise: bool = True

    def ours(self, params: Any, **more: Any) -> gradstep.Optimizer:
        optimizer: gradstep.Optimizer = getattr(gradstep, self.name)(params, **self.options, **more)
        return optimizer

    def theirs(self, params: Any) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = getattr(torch.optim, self.name)(params, **self.options)
        return optimizer

    def __str__(self) -> str:
        return self.name


CASES = [
    Case("SGD", {"lr": 0.1}),
    Case("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
    Case("Adam", {"lr": 0.01, "weight_decay": 0.01}),
    Case("AdamW", {"lr": 0.01, "amsgrad": True}),
    Case("RMSprop", {"lr": 0.01, "centered": True, "momentum": 0.9}),
    Case("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.5}),
    Case("Adadelta", {"lr": 0.5}),
    Case("Adamax", {"lr": 0.01}),
    Case("NAdam", {"lr": 0.01, "momentum_decay": 0.1}),
    Case("RAdam", {"lr": 0.01, "betas": (0.5, 0.9)}),
    Case("Rprop", {"lr": 0.01}, sharded_in_torch=False),
    Case("ASGD", {"lr": 0.1, "lambd": 0.05, "t0": 2.0}),
    Case("Lion", {"lr": 0.01, "weight_decay": 0.1}, in_torch=False, sharded_in_torch=False),
]

#: Shapes of which two and three processes get shares of unequal size, among them empty ones.
SHAPES = {"matrix": (5, 4), "row": (1, 6), "vector": (7,), "single": (1,)}

#: Samples of a global batch. Means over 8 samples, and over 4 in each of two processes, are exact.
BATCH = 8


class Sums(nn.Module):
    """A model whose gradients are short binary fractions that depend on the samples alone.

    So every order of summing them gives the same bits: what many processes reach must be equal to
    what one does, not just near.
    """

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(3)
        for name, shape in SHAPES.items():
            setattr(self, name, nn.Parameter(torch.randn(shape, generator=random)))

    def forward(self, samples: Tensor) -> Tensor:
        """A score for each sample, which is given as its number."""
        scores: Any = 0.0
        for position, name in enumerate(SHAPES):
            weight = getattr(self, name)
            scores = scores + slopes(samples, weight.numel(), position) @ weight.flatten()
        return scores


def slopes(samples: Tensor, count: int, position: int) -> Tensor:
    """How each sample's score changes with each of ``count`` weights: from -1 to 1."""
    places = torch.arange(count)
    mixed = samples[:, None] * (places * 7 + 3) + places * 5 + position * 2 + samples[:, None] ** 2
    return (mixed % 17 - 8) / 8


def batch(step: int) -> Tensor:
    """The samples of a global batch."""
    return torch.arange(BATCH) + BATCH * step


def backward(model: nn.Module, samples: Tensor) -> None:
    """Leave the gradient of the mean score of these samples."""
    model(samples).mean().backward()


def train(optimizer: torch.optim.Optimizer, model: nn.Module, steps: Iterable[int]) -> None:
    """What the single process does."""
    for step in steps:
        optimizer.zero_grad()
        backward(model, batch(step))
        optimizer.step()


def give_gradients(model: nn.Module, step: int) -> None:
    """The gradients of a step's whole batch, in whatever parts the weights are, by no backward."""
    for position, weight in enumerate(model.parameters()):
        gradient = slopes(batch(step), weight.numel(), position).mean(0).reshape(weight.shape)
        if isinstance(weight, DTensor):
            gradient = distribute_tensor(gradient, weight.device_mesh, weight.placements)
        weight.grad = gradient


def whole(weights: Iterable[Tensor]) -> list[Any]:
    """Each weight, put together from its parts, as a NumPy array; of bfloat16 its bits."""
    tensors = [(w.full_tensor() if isinstance(w, DTensor) else w).detach() for w in weights]
    bits = (t.view(torch.int16) if t.dtype == torch.bfloat16 else t for t in tensors)
    return [each.numpy().copy() for each in bits]
