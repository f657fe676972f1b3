"""AdaGO."""

from __future__ import annotations

from typing import Annotated

from gradstep.rule import (
    Decay,
    Interval,
    NonNegative,
    Positive,
    Result,
    Value,
    lerp,
    maximum,
    minimum,
    new_weight,
    norm,
    number,
    rule,
    sqrt,
)
from gradstep.rules.orthogonal import Coefficients, Precision, orthogonal


@rule(lr=0.05, class_name="AdaGO")
def adago(
    g: Value,
    momentum_buffer: Value,
    v: Value = number("v0"),
    *,
    w: Value,
    lr: Value,
    momentum: Decay = 0.95,
    nesterov: bool = False,
    weight_decay: NonNegative = 0.0,
    gamma: Positive = 10.0,
    eps: NonNegative = 5e-4,
    v0: Positive = 1e-6,
    ns_steps: Annotated[float, Interval(0, 100)] = 5,
    coefficients: Coefficients = "fixed",
    precision: Precision = "bfloat16",
) -> Result:
    """AdaGO: Muon's direction, as long as AdaGrad's step would be for the weight as a whole.

    The length is lr · min(‖g‖, γ) over the root of the sum of its squares so far, at least eps:
    it falls where gradients go on being large. For weights of two dimensions; of more it takes one
    length for the whole stack of matrices.

    States:
        momentum_buffer: the moving average of the gradient.
        v: the root of the sum of all squared norms so far, none above γ².

    Hyperparameters:
        momentum: how much of the average gradient is kept at each step.
        nesterov: look ahead: mix the gradient in once more.
        weight_decay: shrinks the weight itself by lr · weight_decay, before its step.
        gamma: the largest norm that counts.
        eps: the shortest step, not multiplied by lr.
        v0: what v begins with.
        ns_steps: how many Newton–Schulz iterations.
        coefficients: as in muon.
        precision: of the iteration, "bfloat16" or "float32".

    Paper:
        Zhang, Liu & Schaeffer 2025, "AdaGrad meets Muon: adaptive stepsizes for orthogonal
        updates", arXiv:2509.02981.

    Has the paper's formula. pytorch_optimizer (read, not run beside it) divides by the sum of the
    squares, without the root.
    """
    momentum_buffer = lerp(momentum_buffer, g, 1 - momentum)
    average = lerp(g, momentum_buffer, momentum) if nesterov else momentum_buffer
    length = minimum(norm(g), gamma)
    v = sqrt(v * v + length * length)
    direction = orthogonal(average, ns_steps, coefficients, precision)
    w = w * (1 - lr * weight_decay)
    return new_weight(w - maximum(eps, lr * length / v) * direction), momentum_buffer, v
