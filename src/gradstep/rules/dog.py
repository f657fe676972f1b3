"""DoG, LDoG and DoWG."""

from __future__ import annotations

from gradstep.rule import (
    NonNegative,
    Result,
    Value,
    copy_of_weight,
    dot,
    global_dot,
    global_norm,
    maximum,
    nonzero,
    norm,
    number,
    rule,
    shared,
    sqrt,
    where,
)


@rule(lr=1.0, class_name="DoG")
def dog(
    g: Value,
    init_buffer: Value = copy_of_weight(),
    rbar: Value = shared(0.0),
    G: Value = shared(0.0),
    *,
    w: Value,
    reps_rel: NonNegative = 1e-6,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """DoG: SGD whose step is the largest distance from the start over the size of all gradients.

    Not to be confused with DoWG, which weighs each gradient with the distance at its time. Both
    need no learning rate: leave lr at 1, and average the weights of the steps for the best result.

    States:
        init_buffer: the weight at the start.
        rbar: the largest distance of all weights together from their start.
        G: the sum of the squared norms of all gradients.

    Hyperparameters:
        reps_rel: the first distance, as a share of 1 + the norm of all weights; 1e-4 with
            batch normalization.
        eps: added to the sum of squares.
        weight_decay: adds weight_decay · weight to the gradient (L2).

    Paper:
        Ivgi, Hinder & Carmon 2023, "DoG is SGD's best friend: a parameter-free dynamic step size
        schedule", arXiv:2302.12022.

    Agrees with optax, and with dog-optimizer where all weights are in one group: that package has
    a distance and a sum for each group, and here, as in the paper, all weights are one vector.
    """
    if nonzero(weight_decay):
        g = g + weight_decay * w
    distance = global_norm(w - init_buffer)
    rbar = where(rbar > 0, maximum(rbar, distance), reps_rel * (1 + global_norm(w)))
    G = G + global_dot(g, g)
    return rbar / sqrt(G + eps) * g, init_buffer, rbar, G


@rule(lr=1.0, class_name="LDoG")
def ldog(
    g: Value,
    init_buffer: Value = copy_of_weight(),
    rbar: Value = number(0.0),
    G: Value = number(0.0),
    *,
    w: Value,
    reps_rel: NonNegative = 1e-6,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """LDoG: DoG for each layer by itself, with a distance and a sum of gradients of its own.

    Not to be confused with DoG, for which all weights are one vector. Leave lr at 1, and average
    the weights of the steps for the best result.

    States:
        init_buffer: the weight at the start.
        rbar: the largest distance of the layer's weights from their start.
        G: the sum of the squared norms of the layer's gradients.

    Hyperparameters:
        reps_rel: the first distance, as a share of 1 + the norm of the layer's weights; 1e-4 with
            batch normalization.
        eps: added to the sum of squares.
        weight_decay: adds weight_decay · weight to the gradient (L2).

    Paper:
        Ivgi, Hinder & Carmon 2023, "DoG is SGD's best friend: a parameter-free dynamic step size
        schedule", arXiv:2302.12022.

    Agrees with the authors' dog-optimizer. A layer is a parameter: its weight or its bias.
    """
    if nonzero(weight_decay):
        g = g + weight_decay * w
    distance = norm(w - init_buffer)
    rbar = where(rbar > 0, maximum(rbar, distance), reps_rel * (1 + norm(w)))
    G = G + dot(g, g)
    return rbar / sqrt(G + eps) * g, init_buffer, rbar, G


@rule(lr=1.0, class_name="DoWG")
def dowg(
    g: Value,
    x0: Value = copy_of_weight(),
    rt2: Value = shared("eps"),
    vt: Value = shared(0.0),
    *,
    w: Value,
    eps: NonNegative = 1e-4,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """DoWG: DoG with each gradient weighed with the squared distance from the start at its time.

    Not to be confused with DoG, whose sum of squared gradients has no weights. Leave lr at 1.

    States:
        x0: the weight at the start.
        rt2: the largest squared distance of all weights together from their start.
        vt: the weighted sum of the squared norms of all gradients.

    Hyperparameters:
        eps: the first squared distance; also added to the root of the sum.
        weight_decay: adds weight_decay · weight to the gradient (L2).

    Paper:
        Khaled, Mishchenko & Jin 2023, "DoWG unleashed: an efficient universal parameter-free
        gradient descent method", arXiv:2305.16284.

    Agrees with optax and the authors' code, which have one eps for both uses; the paper has a first
    distance alone.
    """
    if nonzero(weight_decay):
        g = g + weight_decay * w
    rt2 = maximum(rt2, global_dot(w - x0, w - x0))
    vt = vt + rt2 * global_dot(g, g)
    return rt2 / (sqrt(vt) + eps) * g, x0, rt2, vt
