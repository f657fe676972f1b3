"""Muon."""

from __future__ import annotations

from typing import Annotated

from gradstep.linalg.newton_schulz import newton_schulz
from gradstep.rule import (
    Interval,
    NonNegative,
    Result,
    Value,
    lerp,
    maximum,
    new_weight,
    rule,
    size,
    sqrt,
)


@rule
def muon(
    g: Value,
    momentum_buffer: Value,
    *,
    w: Value,
    lr: Value,
    momentum: NonNegative = 0.95,
    nesterov: bool = True,
    weight_decay: NonNegative = 0.1,
    a: float = 3.4445,
    b: float = -4.7750,
    c: float = 2.0315,
    eps: float = 1e-7,
    ns_steps: Annotated[float, Interval(0, 100)] = 5,
    adjust_lr_fn: str | None = None,
) -> Result:
    """Muon: the average gradient of a matrix, with all its singular values brought near 1.

    For weights of two dimensions; others, and embeddings, are better left to AdamW.

    States:
        momentum_buffer: the moving average of the gradient.

    Hyperparameters:
        momentum: how much of the average gradient is kept at each step.
        nesterov: look ahead: mix the gradient in once more.
        weight_decay: shrinks the weight itself by lr · weight_decay.
        a: the first coefficient of the Newton–Schulz polynomial, that of x.
        b: the second, that of x cubed.
        c: the third, that of x to the fifth.
        eps: the smallest norm that a matrix is divided by.
        ns_steps: how many Newton–Schulz iterations.
        adjust_lr_fn: "original" (or None) scales the step of a matrix that is taller than wide by
            √(rows/columns); "match_rms_adamw" scales it by 0.2·√max(rows, columns), which makes
            it as large as AdamW's; "spectral_unclamped" scales it by √(rows/columns), which makes
            it smaller where a matrix is wider than tall.

    Papers:
        Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks" (weblog).
        Liu et al. 2025, "Muon is scalable for LLM training", arXiv:2502.16982.
        Bernstein 2025, "Deriving Muon" (weblog; the unclamped scale).

    Agrees with torch.optim.Muon ("spectral_unclamped" with that of torch 2.14 and later): the
    average is an exponential one (Jordan's is a sum), the iteration runs in bfloat16, and the
    weight decay is decoupled.
    """
    momentum_buffer = lerp(momentum_buffer, g, 1 - momentum)
    average = lerp(g, momentum_buffer, momentum) if nesterov else momentum_buffer
    direction = newton_schulz(average, a, b, c, eps, ns_steps)
    rows, columns = size(w, -2), size(w, -1)
    if adjust_lr_fn == "match_rms_adamw":
        scale = 0.2 * sqrt(maximum(rows, columns))
    elif adjust_lr_fn == "spectral_unclamped":
        scale = sqrt(rows / columns)
    else:
        scale = sqrt(maximum(1, rows / columns))
    w = w * (1 - lr * weight_decay)
    return new_weight(w - lr * scale * direction), momentum_buffer
