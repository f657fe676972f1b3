"""COCOB."""

from __future__ import annotations

from gradstep.rule import (
    NonNegative,
    Positive,
    Result,
    Value,
    abs,
    copy_of_weight,
    full,
    maximum,
    new_weight,
    rule,
    zeros,
)


@rule(
    lr=1.0,
    class_name="COCOB",
    against_codes={"dynamic8": "small sums become 0 in it, and it was seen not to learn"},
)
def cocob(
    g: Value,
    start: Value = copy_of_weight(),
    negative_sum: Value = zeros(),
    largest: Value = full("eps"),
    size_sum: Value = zeros(),
    reward: Value = zeros(),
    *,
    w: Value,
    lr: Value,
    alpha: NonNegative = 100.0,
    eps: Positive = 1e-8,
) -> Result:
    """COCOB: each weight bets on a coin, whose outcomes are its gradients; without a learning rate.

    The learning rate only scales how far the bets lead from the start; it is 1.

    States:
        start: the weight before the first step.
        negative_sum: the sum of the negative gradients.
        largest: the largest size of a gradient so far.
        size_sum: the sum of the sizes of the gradients.
        reward: what the bets so far have won, at least 0.

    Hyperparameters:
        alpha: how many of the largest gradients a bet is taken to have seen, at the least.
        eps: the largest size before the first gradient.

    Paper:
        Orabona & Tommasi 2017, "Training deep networks without learning rates through coin
        betting", arXiv:1705.07795.

    Agrees with optax.
    """
    largest = maximum(largest, abs(g))
    size_sum = size_sum + abs(g)
    reward = maximum(reward - g * (w - start), 0)
    negative_sum = negative_sum - g
    bet = negative_sum / (largest * maximum(size_sum + largest, alpha * largest))
    w = start + lr * (bet * (largest + reward))
    return new_weight(w), start, negative_sum, largest, size_sum, reward
