"""Shampoo."""

from __future__ import annotations

from torch import Tensor

from gradstep.linalg.kronecker import along, gram, pack, packed_length, symmetric_power, unpack
from gradstep.rule import (
    NonNegative,
    Positive,
    Result,
    Share,
    Value,
    nonzero,
    opaque,
    rule,
    shaped,
    zeros,
)


@opaque(returns=("g", "sums", "roots"))
def rescale(
    g: Tensor,
    sums: Tensor,
    roots: Tensor,
    step: float,
    eps: float,
    precondition_frequency: float,
    max_size: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Add a gradient to the sums of its dimensions, and multiply it by their inverse roots.

    Args:
        g: (batch, *shape): the gradient.
        sums, roots: the matrices of its dimensions, and their roots of the power −1/(2k).
        step: 1 at the first.
        eps: is added to the eigenvalues.
        precondition_frequency: how many steps roots are kept for.
        max_size: larger dimensions have no matrix.
    """
    scalar = g.dim() == 1
    g = g.unsqueeze(1) if scalar else g  # a vector of one element
    before = enumerate(unpack(sums, g, max_size))
    added = [None if m is None else m + gram(g, i) for i, m in before]
    if (step - 1) % precondition_frequency == 0:
        power = -1 / (2 * max(1, sum(m is not None for m in added)))
        roots = pack([None if m is None else symmetric_power(m, eps, power) for m in added], roots)
    direction = along(g, unpack(roots, g, max_size))
    return direction.squeeze(1) if scalar else direction, pack(added, sums), roots


@rule(lr=0.1, class_name="Shampoo")
def shampoo(
    g: Value,
    sums: Value = shaped(packed_length, "max_size"),
    roots: Value = shaped(packed_length, "max_size"),
    momentum_buffer: Value = zeros(when="momentum"),
    *,
    w: Value,
    step: Value,
    momentum: Share = 0.0,
    eps: Positive = 1e-4,
    weight_decay: NonNegative = 0.0,
    precondition_frequency: Positive = 1,
    max_size: Positive = 1024,
) -> Result:
    """Shampoo: the gradient, with each of its dimensions divided by a root of what it has seen.

    For every dimension i of a weight with k of them: ``H_i ← H_i + G_i G_iᵀ``, where ``G_i`` is the
    gradient with that dimension as its rows, and the direction is the gradient with dimension i
    multiplied by ``(H_i + eps)^(−1/2k)``; of a matrix: ``L^(−1/4) G R^(−1/4)``.

    A root is a smooth function of its matrix: it does not hang on which eigenvectors a space of
    equal eigenvalues is given, and rounding moves it no more than it moves the sums.

    States:
        sums: the sums ``H_i``, one after the other.
        roots: their inverse roots.
        momentum_buffer: the running sum of the directions.

    Hyperparameters:
        momentum: how much of the running sum is kept at each step; 0 for none.
        eps: is added to the eigenvalues, so that the first roots exist.
        weight_decay: adds this share of the weight to its gradient (an L2 penalty).
        precondition_frequency: how many steps the roots are kept for.
        max_size: a larger dimension has no matrix and is left alone; k counts the others.

    Paper:
        Gupta, Koren & Singer 2018, "Shampoo: preconditioned stochastic tensor optimization",
        arXiv:1802.09568.

    Agrees with pytorch_optimizer's Shampoo without momentum. torch_optimizer's takes roots of the
    power −1/k, and sums over a gradient that is preconditioned in part. The paper has no
    ``max_size``.
    """
    if nonzero(weight_decay):
        g = g + weight_decay * w
    direction, sums, roots = rescale(g, sums, roots, step, eps, precondition_frequency, max_size)
    if momentum_buffer is not None:
        direction = momentum_buffer = momentum * momentum_buffer + direction
    return direction, sums, roots, momentum_buffer
