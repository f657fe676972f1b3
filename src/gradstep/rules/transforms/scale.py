"""Stages that change the length of a direction, or keep nothing but its sign."""

from __future__ import annotations

from gradstep.rule import NonNegative, Result, Value, global_norm, maximum, norm, rule, sign, where


@rule
def scale(g: Value, *, factor: float = 1.0) -> Result:
    """Multiplies the direction by a number, which may be a schedule.

    Hyperparameters:
        factor: what the direction is multiplied by.

    Paper:
        Robbins & Monro 1951, "A stochastic approximation method".

    Agrees with optax's scale, and with its scale_by_schedule where factor is a schedule.
    """
    return g * factor


@rule
def scale_by_sign(g: Value) -> Result:
    """Keeps only the sign of each element of the direction: −1, 0 or 1.

    Alone it is signSGD; behind trace, Signum.

    Paper:
        Bernstein et al. 2018, "signSGD: compressed optimisation for non-convex problems",
        arXiv:1802.04434.

    Agrees with optax's scale_by_sign.
    """
    return sign(g)


@rule
def scale_by_trust_ratio(
    g: Value,
    *,
    w: Value,
    min_norm: NonNegative = 0.0,
    trust_coefficient: NonNegative = 1.0,
    eps: NonNegative = 0.0,
) -> Result:
    """Trust ratio: scales each weight's direction to the norm of the weight.

    Before a momentum it makes LARS; behind Adam with its decay, LAMB.

    Hyperparameters:
        min_norm: the smallest norm that a weight or a direction is taken to have.
        trust_coefficient: the direction's norm as a share of the weight's.
        eps: added to the norm of the direction.

    Papers:
        You, Gitman & Ginsburg 2017, "Large batch training of convolutional networks",
        arXiv:1708.03888.
        You et al. 2019, "Large batch optimization for deep learning: training BERT in 76 minutes",
        arXiv:1904.00962.

    Agrees with optax's scale_by_trust_ratio: where either norm is 0 the direction stays as it is.
    The papers' upper bound on a weight's norm is left out.
    """
    of_weight, of_direction = maximum(norm(w), min_norm), maximum(norm(g), min_norm)
    known = where(of_weight * of_direction > 0, 1, 0)
    ratio = trust_coefficient * of_weight / where(known > 0, of_direction + eps, 1)
    return g * where(known > 0, ratio, 1)


@rule
def graft_to_gradient(g: Value, *, gradient: Value) -> Result:
    """Grafting: gives each weight's direction the norm of the gradient that entered the chain.

    So the rules before it say where to, and plain gradient descent how far. A direction of 0 stays.

    Paper:
        Agarwal, Anil, Hazan, Koren & Zhang 2020, "Disentangling adaptive gradient methods from
        learning rates", arXiv:2002.11803.

    Agrees with the paper for the size of SGD, each weight on its own; graft(size, direction) takes
    any rule's size.
    """
    length = norm(g)
    return g * where(length > 0, norm(gradient) / length, 0)


@rule
def normalize(g: Value) -> Result:
    """Scales each weight's direction to a norm of 1, each on its own; 0 stays 0.

    Paper:
        Hazan, Levy & Shalev-Shwartz 2015, "Beyond convexity: stochastic quasi-convex
        optimization", arXiv:1507.02030.

    Not to be confused with optax's normalize_by_update_norm, which takes the norm over all weights
    together: that is normalize_by_update_norm here, too.
    """
    length = norm(g)
    return g * where(length > 0, 1 / length, 0)


@rule
def normalize_by_update_norm(
    g: Value, *, scale_factor: NonNegative = 1.0, eps: NonNegative = 1e-6
) -> Result:
    """Scales the directions of all weights together to a norm of scale_factor.

    Hyperparameters:
        scale_factor: the Euclidean norm that all directions have together.
        eps: added to their norm before the division.

    Paper:
        Hazan, Levy & Shalev-Shwartz 2015, "Beyond convexity: stochastic quasi-convex
        optimization", arXiv:1507.02030.

    Agrees with optax's normalize_by_update_norm.
    """
    return g * (scale_factor / (global_norm(g) + eps))
