"""SRMM."""

from __future__ import annotations

from gradstep.rule import (
    NonNegative,
    Positive,
    Result,
    Value,
    copy_of_weight,
    lerp,
    new_weight,
    number,
    rule,
    where,
)


@rule(
    lr=0.01,
    class_name="SRMM",
    against_codes="its weight is made of averages of weights, and has no more digits than they",
)
def srmm(
    g: Value,
    mov_avg_grad: Value,
    mov_avg_param: Value = copy_of_weight(),
    cycle: Value = number(0.0),
    *,
    w: Value,
    lr: Value,
    beta: NonNegative = 0.5,
    memory_length: Positive = 100.0,
) -> Result:
    """SRMM: from the average of the weights so far, along the average of their gradients.

    Both averages are of the surrogates ``gradient · (x − weight) + |x − weight|² / 2lr`` of all
    steps, of which the least is taken; a step's share in them falls as ``count^−beta``.

    States:
        mov_avg_grad: the average gradient.
        mov_avg_param: the average of the weights before each step.
        cycle: the steps since the averages were last begun anew.

    Hyperparameters:
        beta: how fast a step's share falls.
        memory_length: after so many steps the count begins anew, and old steps are forgotten.

    Paper:
        Lyu 2022, "Stochastic regularized majorization-minimization with weakly convex and
        multi-convex surrogates", arXiv:2201.01652.

    Follows the paper, with the shares of the author's code, which forgets. pytorch_optimizer keeps
    the weight after the step for the average of weights, so that no average is left of it, and
    begins that average at 0, so that its first step makes all weights smaller.
    """
    cycle = where(cycle + 1 >= memory_length, 0, cycle + 1)
    share = (cycle + 1) ** -beta
    mov_avg_grad = lerp(mov_avg_grad, g, share)
    mov_avg_param = lerp(mov_avg_param, w, share)
    return new_weight(mov_avg_param - lr * mov_avg_grad), mov_avg_grad, mov_avg_param, cycle
