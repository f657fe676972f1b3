"""Yogi."""

from __future__ import annotations

from gradstep.rule import Decay, NonNegative, Result, Value, full, lerp, nonzero, rule, sign, sqrt


@rule(lr=1e-2, class_name="Yogi")
def yogi(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value = full("initial_accumulator"),
    *,
    w: Value,
    step: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    eps: NonNegative = 1e-3,
    initial_accumulator: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """Yogi: Adam whose average square grows and shrinks by the size of the new square alone.

    Where gradients become small Adam forgets the large ones soon; here it takes its time.

    States:
        exp_avg: the moving average of the gradient.
        exp_avg_sq: what stands for the average squared gradient.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: one minus the share of the new square in each change.
        eps: keeps the division from blowing up where gradients are tiny.
        initial_accumulator: what exp_avg_sq starts with.
        weight_decay: adds this share of the weight to its gradient (an L2 penalty).

    Paper:
        Zaheer, Reddi, Sachan, Kale & Kumar 2018, "Adaptive methods for nonconvex optimization",
        NeurIPS.

    Agrees with optax, pytorch_optimizer and torch-optimizer, all of which correct both averages for
    their start, as the paper's algorithm 2 does not; but they start exp_avg at 1e-6 too, which
    moves weights whose gradient is 0. The weight decay is that of torch-optimizer; that of
    pytorch_optimizer is decoupled.
    """
    if nonzero(weight_decay):
        g = g + weight_decay * w
    exp_avg = lerp(exp_avg, g, 1 - beta1)
    square = g * g
    exp_avg_sq = exp_avg_sq - (1 - beta2) * (sign(exp_avg_sq - square) * square)
    direction = exp_avg / (1 - beta1**step) / (sqrt(exp_avg_sq) / sqrt(1 - beta2**step) + eps)
    return direction, exp_avg, exp_avg_sq
