"""PolarGrad."""

from __future__ import annotations

from typing import Annotated

from gradstep.rule import Decay, Interval, NonNegative, Result, Value, dot, lerp, new_weight, rule
from gradstep.rules.orthogonal import Coefficients, Precision, orthogonal


@rule(lr=3e-4, class_name="PolarGrad")
def polargrad(
    g: Value,
    momentum_buffer: Value,
    *,
    w: Value,
    lr: Value,
    momentum: Decay = 0.95,
    nesterov: bool = False,
    weight_decay: NonNegative = 0.01,
    ns_steps: Annotated[float, Interval(0, 100)] = 5,
    coefficients: Coefficients = "fixed",
    precision: Precision = "bfloat16",
) -> Result:
    """PolarGrad: Muon's direction, as long as the average gradient is in the nuclear norm.

    ``⟨O, M⟩ O`` with the orthogonal O of the average gradient M: steepest descent in the spectral
    norm, whose steps end where gradients do. For weights of two dimensions; of more it takes one
    length for the whole stack of matrices.

    States:
        momentum_buffer: the moving average M of the gradient.

    Hyperparameters:
        momentum: how much of the average gradient is kept at each step.
        nesterov: look ahead: mix the gradient in once more.
        weight_decay: shrinks the weight itself by lr · weight_decay, before its step.
        ns_steps: how many Newton–Schulz iterations.
        coefficients: as in muon.
        precision: of the iteration, "bfloat16" or "float32".

    Paper:
        Lau, Long & Su 2025, "PolarGrad: a class of matrix-gradient optimizers from a unifying
        preconditioning perspective", arXiv:2505.21799.

    Has the formula and the defaults of PolarGrad of NVIDIA's Emerging-Optimizers (read, not run
    beside it), whose polynomial is that of coefficients="tuned".
    """
    momentum_buffer = lerp(momentum_buffer, g, 1 - momentum)
    average = lerp(g, momentum_buffer, momentum) if nesterov else momentum_buffer
    direction = orthogonal(average, ns_steps, coefficients, precision)
    direction = dot(direction, average) * direction
    return new_weight(w * (1 - lr * weight_decay) - lr * direction), momentum_buffer
