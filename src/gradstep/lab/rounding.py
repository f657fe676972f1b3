"""Two ways to round the same update, compared in every weight of a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy
import torch
from torch import Tensor, nn

import gradstep


@dataclass(frozen=True)
class Rounding:
    """A weight that two roundings and one make different, with all its digits.

    ``product`` is gradient · lr, and ``exact`` the new weight, both without any rounding. ``gap``
    is the distance from one float32 number to the next, there where the weight is.
    """

    place: str
    weight: float
    gradient: float
    lr: float
    product: Fraction
    rounded_product: float
    exact: Fraction
    twice: float
    once: float
    gap: float


@dataclass(frozen=True)
class Comparison:
    """Two ways to update the same weights.

    ``apart`` counts the weights by how many float32 numbers lie between the two results: at 0 those
    that agree in every bit. ``torch_agrees`` counts those where torch.optim.SGD has the optimizer's
    bits; None where it has another rule.
    """

    apart: dict[int, int]
    total: int
    example: Rounding | None
    torch_agrees: int | None


def compare(
    make: Callable[..., gradstep.Optimizer],
    plain_lr: float | None,
    again: Callable[[], nn.Module],
    hand_model: nn.Module,
    model: nn.Module,
    loss: float,
) -> Comparison:
    """Compare every weight of ``model``, which the optimizer has updated.

    With the update by hand if the rule is that one; else with torch's operations, one after the
    other (the eager engine).

    Args:
        make: makes the optimizer.
        plain_lr: the learning rate, if the rule is ``weight − lr · gradient``; else None.
        again: makes a network like ``model`` before the step, with the same gradients.
        hand_model: the same, updated by hand.
        loss: that of the step.
    """
    torch_agrees = None
    other = hand_model
    if plain_lr is not None:
        torch_model = again()
        torch.optim.SGD(torch_model.parameters(), lr=plain_lr).step()
        torch_agrees = int((steps_apart(all_weights(torch_model), all_weights(model)) == 0).sum())
    else:
        other = again()
        make(other.named_parameters(), engine="eager").step(lambda: loss)
    apart = steps_apart(all_weights(other), all_weights(model))
    counts = torch.unique(apart, return_counts=True)
    example = None
    if plain_lr is not None and bool(apart.any()):
        example = _rounding(plain_lr, again(), hand_model, model)
    return Comparison(
        apart={int(n): int(count) for n, count in zip(*counts, strict=True)},
        total=apart.numel(),
        example=example,
        torch_agrees=torch_agrees,
    )


def gradient_of(p: Tensor) -> Tensor:
    """A copy of the gradient, which must be there."""
    assert p.grad is not None
    return p.grad.clone()


def all_weights(model: nn.Module) -> Tensor:
    """All weights of a network in a row."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def steps_apart(a: Tensor, b: Tensor) -> Tensor:
    """How many float32 numbers one has to go from each element of ``a`` to that of ``b``.

    Takes float32 tensors of one shape, returns int64 of that shape; 0 where both are nan.
    """

    def place(x: Tensor) -> Tensor:
        bits = x.contiguous().view(torch.int32).long()
        return torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)

    return torch.where(a.isnan() & b.isnan(), 0, (place(a) - place(b)).abs())


def _rounding(
    lr: float, start: nn.Module, hand_model: nn.Module, model: nn.Module
) -> Rounding | None:
    """A weight where the difference is one step and clear; if there is one, without minus signs."""
    rate = float(numpy.float32(lr))
    best: tuple[tuple[bool, float], Rounding] | None = None
    for name, p in start.named_parameters():
        hand, once = hand_model.get_parameter(name).detach(), model.get_parameter(name).detach()
        for place in (steps_apart(hand, once) == 1).nonzero()[:20]:
            at = tuple(place.tolist())
            weight, gradient = float(p[at].item()), float(gradient_of(p)[at].item())
            if not (math.isfinite(weight) and math.isfinite(gradient) and math.isfinite(rate)):
                continue
            product = Fraction(gradient) * Fraction(rate)
            found = Rounding(
                place=place_name(name, at),
                weight=weight,
                gradient=gradient,
                lr=rate,
                product=product,
                rounded_product=float(numpy.float32(gradient) * numpy.float32(rate)),
                exact=Fraction(weight) - product,
                twice=float(hand[at].item()),
                once=float(once[at].item()),
                gap=float(abs(numpy.spacing(numpy.float32(once[at].item())))),
            )
            gain = abs(Fraction(found.twice) - found.exact) - abs(
                Fraction(found.once) - found.exact
            )
            positive = weight > 0 and gradient > 0 and found.exact > 0
            score = positive, float(gain / Fraction(found.gap))
            if best is None or score > best[0]:
                best = score, found
    return None if best is None else best[1]


def place_name(parameter: str, index: Sequence[int]) -> str:
    """``conv1.weight[0, 0, 2, 4]``."""
    return f"{parameter}[{', '.join(map(str, index))}]"
