"""Stages: small rules that stand before or behind another in a chain."""

from __future__ import annotations

from typing import Any

from gradstep.rule import NonNegative, clamp, global_norm, minimum, rule


@rule
def decay_weights(g: Any, *, w: Any, weight_decay: NonNegative = 0.01) -> Any:
    """Adds a share of the weight to the direction.

    Before another rule it is an L2 penalty; behind it, the decoupled decay of AdamW.

    Hyperparameters:
        weight_decay: the share of the weight that is added.

    Paper:
        Loshchilov & Hutter 2017, "Decoupled weight decay regularization", arXiv:1711.05101.
    """
    return g + weight_decay * w


@rule
def clip_by_value(g: Any, *, limit: NonNegative = 1.0) -> Any:
    """Keeps every element of the direction between −limit and limit.

    Hyperparameters:
        limit: the largest size that an element may have.

    Agrees with torch.nn.utils.clip_grad_value_, but leaves the gradient itself as it is.
    """
    return clamp(g, -limit, limit)


@rule
def clip_by_global_norm(g: Any, *, max_norm: NonNegative = 1.0) -> Any:
    """Scales the directions of all parameters down together, to a norm of at most max_norm.

    Hyperparameters:
        max_norm: the largest Euclidean norm that all directions may have together.

    Paper:
        Pascanu et al. 2012, "On the difficulty of training recurrent neural networks",
        arXiv:1211.5063.

    Agrees with torch.nn.utils.clip_grad_norm_, which also adds 1e-6 to the norm, but leaves the
    gradients themselves as they are.
    """
    return g * minimum(1, max_norm / (global_norm(g) + 1e-6))
