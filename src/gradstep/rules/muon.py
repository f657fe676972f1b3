"""Muon."""

from __future__ import annotations

from typing import Annotated, Any

from gradstep.linalg.newton_schulz import newton_schulz, scale_of
from gradstep.rule import (
    Interval,
    NonNegative,
    Result,
    Value,
    lerp,
    new_weight,
    rule,
    size,
)
from gradstep.rules.orthogonal import Adjustment, Coefficients, Precision


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
    adjust_lr_fn: Adjustment | None = None,
    coefficients: Coefficients = "fixed",
    sum_momentum: bool = False,
    flatten: bool = False,
    split: Any = None,
    precision: Precision = "bfloat16",
) -> Result:
    """Muon: the average gradient of a matrix, with all its singular values brought near 1.

    For weights of two dimensions, and of more as batches of matrices […, rows, columns], such as
    experts; others, and embeddings, are better left to AdamW.

    States:
        momentum_buffer: the moving average of the gradient, or the running sum.

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
            it as large as AdamW's; "spectral_unclamped" and "unit_rms" scale it by
            √(rows/columns), also where that is below 1; "spectral" by √max(rows, columns).
        coefficients: "fixed" takes a, b, c at each iteration; the others have a triple for each:
            "tuned" (five), "polar_express" (eight, of which the first ns_steps are taken), "cans"
            (five), "aol" (four, behind a division by the Gram matrix's row sums), "hybrid" (ten)
            and "cubic" (five, without the product for c).
        sum_momentum: a running sum in the place of the average.
        flatten: all dimensions behind the first are columns: filters of convolutions.
        split: the matrix is several, one below the other, each made orthogonal by itself: how many
            of equal rows (heads), or the rows of each (queries, keys and values in one).
        precision: of the iteration, "bfloat16" or "float32".

    Papers:
        Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks" (weblog).
        Liu et al. 2025, "Muon is scalable for LLM training", arXiv:2502.16982.
        Bernstein 2025, "Deriving Muon" (weblog; the unclamped scale).
        Amsel et al. 2025, "The Polar Express", arXiv:2505.16932.
        Grishina et al. 2025, "Accelerating Newton-Schulz iteration for orthogonalization via
        Chebyshev-type polynomials" (CANS), arXiv:2506.10935.
        Boissin et al. 2025, "Turbo-Muon" (AOL), arXiv:2512.04632.
        "cubic": arXiv:2606.00371. "hybrid": DeepSeek-V4's report. "tuned": L. Cesista's weblog.

    Agrees with torch.optim.Muon ("spectral_unclamped" with that of torch 2.14 and later): the
    average is an exponential one (Jordan's is a sum), the iteration runs in bfloat16, and the
    weight decay is decoupled. The sets of coefficients are as NVIDIA's emerging_optimizers rounds
    them, which repeats "tuned" from its beginning where here its last is repeated, and takes
    "aol" without the division by row sums.
    """
    if sum_momentum:
        momentum_buffer = momentum * momentum_buffer + g
        average = g + momentum * momentum_buffer if nesterov else momentum_buffer
    else:
        momentum_buffer = lerp(momentum_buffer, g, 1 - momentum)
        average = lerp(g, momentum_buffer, momentum) if nesterov else momentum_buffer
    direction = newton_schulz(
        average, a, b, c, eps, ns_steps, coefficients=coefficients, flatten=flatten,
        split=split, adjust_lr_fn=adjust_lr_fn, precision=precision,
    )  # fmt: skip
    w = w * (1 - lr * weight_decay)
    if flatten or split is not None:  # the function has scaled each part by itself
        return new_weight(w - lr * direction), momentum_buffer
    scale = scale_of(adjust_lr_fn, size(w, -2), size(w, -1))
    return new_weight(w - lr * scale * direction), momentum_buffer
