"""SinkGD."""

from __future__ import annotations

from typing import Annotated

from gradstep.linalg.sinkhorn import sinkhorn
from gradstep.rule import Interval, NonNegative, Result, Value, new_weight, nonzero, rule, sign


@rule(lr=1e-3, class_name="SinkGD")
def sinkgd(
    g: Value,
    *,
    w: Value,
    lr: Value,
    is_matrix: bool,
    weight_decay: NonNegative = 0.0,
    iterations: Annotated[float, Interval(1, 1000)] = 5,
) -> Result:
    """SinkGD: the gradient with all its rows of one norm, and all its columns; nothing is kept.

    Rows are scaled to the norm √columns, then columns to √rows, and so on: in the end the root mean
    square of every row and every column is near 1. A weight of more than two dimensions is a stack
    of matrices, its last two; of a vector what is left is the sign.

    Hyperparameters:
        weight_decay: shrinks the weight itself by lr · weight_decay, before its step.
        iterations: how many times rows and columns are scaled.

    Paper:
        Scetbon, Ma, Gong & Meeds 2025, "Gradient multi-normalization for stateless and scalable LLM
        training", arXiv:2502.06742.

    Agrees with adv_optm's SinkSGD_adv for wide matrices and gradients of a size near 1: of tall
    ones it scales the columns first, and no norm is less than 1/√columns to it, so that small
    gradients stay small. The paper leaves vectors to Adam, and gives matrices 0.05 times its
    learning rate; here a matrix has the rate that it is given.
    """
    direction = sinkhorn(g, iterations) if is_matrix else sign(g)
    w = w * (1 - lr * weight_decay) if nonzero(weight_decay) else w
    return new_weight(w - lr * direction)
