"""Fromage."""

from __future__ import annotations

from gradstep.rule import Result, Value, new_weight, norm, rule, sqrt, where


@rule(lr=0.01, class_name="Fromage")
def fromage(g: Value, *, w: Value, lr: Value) -> Result:
    """Fromage: every step turns a layer's weights by the same angle, whatever its gradient's size.

    The gradient is scaled to the norm of the layer's weights, which are then shrunk by the factor
    that keeps their norm where the two stand at right angles.

    Paper:
        Bernstein et al. 2020, "On the distance between two neural networks and the stability of
        learning", arXiv:2002.03432.

    Agrees with the authors' code and pytorch_optimizer: where all weights or all gradients of a
    layer are 0, the gradient is left as it is, and the weights shrink all the same. optax adds 1e-6
    to the norms instead.
    """
    weight_norm, gradient_norm = norm(w), norm(g)
    scaled = (weight_norm > 0) & (gradient_norm > 0)
    ratio = where(scaled, weight_norm / gradient_norm, 1)
    return new_weight((w - lr * ratio * g) / sqrt(1 + lr * lr))
