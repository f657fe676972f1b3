"""Stages that take something out of a direction, or turn it."""

from __future__ import annotations

from typing import Annotated

from gradstep.linalg.newton_schulz import newton_schulz
from gradstep.rule import (
    Interval,
    NonNegative,
    Result,
    Value,
    dot,
    maximum,
    mean,
    norm,
    rule,
    size,
    sqrt,
    sum,
    where,
)
from gradstep.rules.units import unit_mean


@rule
def centralize(g: Value) -> Result:
    """Gradient centralization: takes out each unit's mean, that of a row or of a filter.

    Weights of one dimension or none stay as they are.

    Paper:
        Yong, Huang, Hua & Zhang 2020, "Gradient centralization: a new optimization technique for
        deep neural networks", arXiv:2004.01461.

    Agrees with optax's centralize.
    """
    return g - unit_mean(g)


@rule
def cautious(g: Value, *, gradient: Value, rescale: bool = True, by_mean: bool = False) -> Result:
    """Cautious mask: only those elements of a direction that go down the present gradient.

    Stands right behind the rule whose direction it looks at, before a decay.

    Hyperparameters:
        rescale: make what is left larger, as far as the mask took away: by the count of all
            elements over that of those left plus 1.
        by_mean: rescale by 1 over the mask's mean instead, which is taken to be at least 0.001.

    Paper:
        Liang, Chen, Liu & Liu 2024, "Cautious optimizers: improving training with one line of
        code", arXiv:2411.16085.

    Agrees with the paper and with pytorch_optimizer; with by_mean, with timm and the authors' code.
    """
    left = where(g * gradient > 0, g, 0)
    if not rescale:
        return left
    mask = where(g * gradient > 0, 1, 0)
    return left * (1 / maximum(mean(mask), 1e-3) if by_mean else size(g) / (sum(mask) + 1))


@rule
def orthogonal_gradient(
    g: Value, *, w: Value, eps: NonNegative = 1e-30, rescale: bool = True
) -> Result:
    """OrthoGrad: takes out the part of the gradient that only scales the weight.

    Stands before another rule.

    Not to be confused with orthogonalize, which makes the singular values of a matrix alike.

    Hyperparameters:
        eps: added to the squared norm of the weight, and to the norm of what is left.
        rescale: bring what is left back to the gradient's own norm.

    Paper:
        Prieto et al. 2025, "Grokking at the edge of numerical stability", arXiv:2501.04697.

    Agrees with the authors' code, which rescales; the paper's formula does not. pytorch_optimizer
    sets to 0 what is left where it is no more than rounding.
    """
    left = g - dot(w, g) / (dot(w, w) + eps) * w
    return left * (norm(g) / (norm(left) + eps)) if rescale else left


@rule
def orthogonalize(
    g: Value,
    *,
    w: Value,
    a: float = 3.4445,
    b: float = -4.7750,
    c: float = 2.0315,
    eps: float = 1e-7,
    ns_steps: Annotated[float, Interval(0, 100)] = 5,
) -> Result:
    """Newton–Schulz: brings all singular values of a matrix near 1, as Muon does.

    For weights of two dimensions. Behind trace(nesterov=True) it is Muon without its decay.

    Hyperparameters:
        a: the first coefficient of the polynomial, that of x.
        b: the second, that of x cubed.
        c: the third, that of x to the fifth.
        eps: the smallest norm that a matrix is divided by.
        ns_steps: how many iterations.

    Paper:
        Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks" (weblog).

    The result is scaled by √(rows/columns) where the matrix is taller than wide, as Jordan's is.
    """
    scale = sqrt(maximum(1, size(w, -2) / size(w, -1)))
    return newton_schulz(g, a, b, c, eps, ns_steps) * scale
