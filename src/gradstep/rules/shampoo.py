"""Shampoo."""

from __future__ import annotations

from torch import Tensor

from gradstep.linalg.blocks import blocked_length, in_blocks
from gradstep.linalg.kronecker import along, gram, pack, symmetric_power, unpack
from gradstep.linalg.turns import block_numbers, has_turn, turn_of
from gradstep.rule import (
    NonNegative,
    Positive,
    Result,
    Share,
    Value,
    nonzero,
    opaque,
    place,
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
    place: float,
    max_size: float,
    block_size: float,
    merge_dims: float,
) -> tuple[Tensor, ...]:
    """Add a gradient to the sums of its dimensions, and multiply it by their inverse roots.

    Args:
        g: (batch, *shape): the gradient.
        sums, roots: the matrices of its dimensions, and their roots of the power −1/(2k).
        step: 1 at the first.
        eps: is added to the eigenvalues.
        precondition_frequency: how many steps roots are kept for.
        place: whose turn it is, see :func:`gradstep.linalg.turns.has_turn`.
        max_size: larger dimensions have no matrix.
        block_size: the longest side of a block with matrices of its own; 0 for none.
        merge_dims: whether small dimensions are merged.
    """
    numbers = block_numbers()

    def of_block(x: Tensor, sums: Tensor, roots: Tensor) -> tuple[Tensor, ...]:
        before = enumerate(unpack(sums, x, max_size))
        added = [None if m is None else m + gram(x, i) for i, m in before]
        if has_turn(step - 1, precondition_frequency, place, next(numbers)):
            power = -1 / (2 * max(1, sum(m is not None for m in added)))
            made = [None if m is None else symmetric_power(m, eps, power) for m in added]
            roots = pack(made, roots)
        return along(x, unpack(roots, x, max_size)), pack(added, sums), roots

    wide = g.unsqueeze(1) if g.dim() == 1 else g  # a vector of one element
    direction, *after = in_blocks(of_block, wide, (sums, roots), max_size, block_size, merge_dims)
    return (direction.view(g.shape), *after)


@rule(lr=0.1, class_name="Shampoo")
def shampoo(
    g: Value,
    sums: Value = shaped(blocked_length, "max_size", "block_size", "merge_dims"),
    roots: Value = shaped(blocked_length, "max_size", "block_size", "merge_dims"),
    momentum_buffer: Value = zeros(when="momentum"),
    place: Value = place(when="in_turn"),
    *,
    w: Value,
    step: Value,
    momentum: Share = 0.0,
    eps: Positive = 1e-4,
    weight_decay: NonNegative = 0.0,
    precondition_frequency: Positive = 1,
    in_turn: bool = False,
    max_size: Positive = 1024,
    block_size: NonNegative = 0,
    merge_dims: bool = False,
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
        place: where the weight is among those of its group, the largest first.

    Hyperparameters:
        momentum: how much of the running sum is kept at each step; 0 for none.
        eps: is added to the eigenvalues, so that the first roots exist.
        weight_decay: adds this share of the weight to its gradient (an L2 penalty).
        precondition_frequency: how many steps the roots are kept for.
        in_turn: each weight, and each block, has its roots taken at steps of its own, so that no
            step does so for all but the first.
        max_size: a larger dimension has no matrix and is left alone; k counts the others.
        block_size: weights are cut into blocks with sides of at most this, each with matrices of
            its own, in proportion less work for large ones; 0 for weights as they are.
        merge_dims: neighbouring dimensions are one, as long as it is no longer than block_size (or
            max_size where that is 0): of a filter mostly its height, width and inputs.

    Paper:
        Gupta, Koren & Singer 2018, "Shampoo: preconditioned stochastic tensor optimization",
        arXiv:1802.09568.

    Agrees with pytorch_optimizer's Shampoo without momentum. torch_optimizer's takes roots of the
    power −1/k, and sums over a gradient that is preconditioned in part. The paper has no
    ``max_size``. Blocks and merged dimensions are those of Shi et al. 2023, arXiv:2309.06497; their
    grafting is ``graft(rmsprop(), shampoo())``, or of any other rule, for a weight and not a block.
    """
    if nonzero(weight_decay):
        g = g + weight_decay * w
    direction, sums, roots = rescale(
        g, sums, roots, step, eps, precondition_frequency, turn_of(place),
        max_size, block_size, merge_dims,
    )  # fmt: skip
    if momentum_buffer is not None:
        direction = momentum_buffer = momentum * momentum_buffer + direction
    return direction, sums, roots, momentum_buffer, place
