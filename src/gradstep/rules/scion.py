"""Scion."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from gradstep.rule import (
    Decay,
    Interval,
    NonNegative,
    Result,
    Value,
    lerp,
    new_weight,
    norm,
    rms,
    rule,
    sign,
    size,
    sqrt,
    where,
)
from gradstep.rules.orthogonal import Coefficients, Precision, adjusted, orthogonal


@rule(lr=1e-3, class_name="Scion")
def scion(
    g: Value,
    momentum_buffer: Value,
    *,
    w: Value,
    lr: Value,
    is_matrix: bool,
    momentum: Decay = 0.9,
    radius: NonNegative = 1.0,
    layer_norm: Literal["spectral", "sign", "row", "column"] = "spectral",
    constrained: bool = False,
    ns_steps: Annotated[float, Interval(0, 100)] = 5,
    coefficients: Coefficients = "fixed",
    flatten: bool = False,
    split: Any = None,
    precision: Precision = "bfloat16",
) -> Result:
    """Scion: each layer goes as far down as a ball of its own norm reaches.

    ``w ← w − lr · radius · D``, or within that ball ``(1 − lr) w − lr · radius · D``. Of the
    average gradient M, D is ``√(rows / columns) · O`` with the orthogonal O of M ("spectral", for
    matrices inside), ``sign(M) / columns`` ("sign") or M's rows of the norm 1 / √columns ("row",
    for the last layer), or M's columns of the norm √rows ("column", for the first). A vector is
    divided by its root mean square. So rates hold for networks of any width.

    States:
        momentum_buffer: the moving average M of the gradient.

    Hyperparameters:
        momentum: how much of the average gradient is kept at each step: 1 minus the paper's α.
        radius: of the ball; the paper has 50 inside and 3000 for the last layer.
        layer_norm: which norm, see above.
        constrained: stay within the ball, which shrinks weights by lr at each step.
        ns_steps: how many Newton–Schulz iterations.
        coefficients: as in muon.
        flatten: as in muon: all dimensions behind the first are columns, as of filters.
        split: as in muon: parts that are made orthogonal each by itself.
        precision: of the iteration, "bfloat16" or "float32".

    Paper:
        Pethick et al. 2025, "Training deep learning models with norm-constrained LMOs",
        arXiv:2502.07529.

    Follows the paper; where constrained and "spectral" it has the formula of Scion of NVIDIA's
    Emerging-Optimizers (read, not run beside it), whose polynomial is that of
    coefficients="tuned". It changes no weight before the training; pytorch_optimizer's can.
    """
    momentum_buffer = lerp(momentum_buffer, g, 1 - momentum)
    if not is_matrix:
        direction = momentum_buffer * _inverse(rms(momentum_buffer))
    elif layer_norm == "spectral":
        direction = orthogonal(
            momentum_buffer, ns_steps, coefficients, precision, split, "unit_rms", flatten
        )
        direction = adjusted(direction, w, "unit_rms", split, flatten)
    else:
        direction = _in_norm(momentum_buffer, layer_norm)
    w = (1 - lr) * w if constrained else w
    return new_weight(w - lr * radius * direction), momentum_buffer


def _in_norm(x: Any, layer_norm: str) -> Any:
    """The direction in one of the norms that are no spectral one."""
    if layer_norm == "sign":
        return sign(x) / size(x, -1)
    if layer_norm == "row":
        return x * _inverse(norm(x, -1)) / sqrt(size(x, -1))
    return x * _inverse(norm(x, -2)) * sqrt(size(x, -2))


def _inverse(length: Any) -> Any:
    """1 over a norm, and 0 for one of 0."""
    return where(length > 0, 1 / length, 0)
