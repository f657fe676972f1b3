"""KL-Shampoo and KL-SOAP."""

from __future__ import annotations

from gradstep.linalg.eigenbases import begin, turn
from gradstep.linalg.kl_factors import fit, fit_in_bases, whiten
from gradstep.linalg.kronecker import packed_length
from gradstep.linalg.turns import turn_of
from gradstep.rule import (
    Decay,
    NonNegative,
    Positive,
    Result,
    Value,
    lerp,
    new_weight,
    place,
    rule,
    shaped,
    where,
)
from gradstep.rules.soap import adam_in_bases, corrections


@rule(lr=3e-3, class_name="KLShampoo")
def kl_shampoo(
    g: Value,
    exp_avg: Value,
    factors: Value = shaped(packed_length, "max_size"),
    roots: Value = shaped(packed_length, "max_size"),
    place: Value = place(when="in_turn"),
    *,
    w: Value,
    step: Value,
    lr: Value,
    momentum: Decay = 0.9,
    shampoo_beta: Decay = 0.95,
    eps: Positive = 1e-8,
    weight_decay: NonNegative = 0.01,
    precondition_frequency: Positive = 2,
    in_turn: bool = False,
    max_size: Positive = 2048,
) -> Result:
    """KL-Shampoo: Shampoo whose matrices together are the covariance of the gradient.

    For a matrix ``S_L ← β S_L + (1 − β) G S_R⁻¹ Gᵀ / columns``, S_R likewise, each with the inverse
    of the other: the two for which ``S_L ⊗ S_R`` is nearest to the covariance by the
    Kullback–Leibler divergence. The direction is the average gradient M, corrected for its start
    at 0, as ``S_L^(−1/2) M S_R^(−1/2)``: as long as one of Adam, so that no grafting is needed. A
    weight of other than two dimensions has a matrix for each.

    States:
        exp_avg: the moving average of the gradient.
        factors: the matrices S, one after the other.
        roots: their inverse square roots.
        place: where the weight is among those of its group, the largest first.

    Hyperparameters:
        momentum: how much of the average gradient is kept at each step.
        shampoo_beta: how much of the matrices is kept at each step.
        eps: is added to their eigenvalues.
        weight_decay: shrinks the weight itself by lr · weight_decay, before its step.
        precondition_frequency: how many steps the roots are kept for.
        in_turn: each weight's roots are taken at steps of its own, and not all at one.
        max_size: a larger dimension has no matrix and is left alone.

    Paper:
        Lin, Lowe, Dangel, Eschenhagen, Xu & Grosse 2025, "Understanding and improving Shampoo and
        SOAP via Kullback–Leibler minimization", arXiv:2509.03378.

    Agrees with heavyball's KLShampoo in how matrices are averaged and multiplied by. That takes
    eigenvalues in bases which it turns by QR, and begins with a tenth of the identity; here the
    matrices begin as multiples of it with the mean square of the first gradient, and roots are
    those of whole matrices, which hang on no choice of a basis.
    """
    exp_avg = lerp(exp_avg, g, 1 - momentum)
    factors, roots = fit(
        g, factors, roots, step, shampoo_beta, eps, precondition_frequency, turn_of(place), max_size
    )
    direction = whiten(exp_avg / (1 - momentum**step), roots, max_size)
    w = w * (1 - lr * weight_decay)
    return new_weight(w - lr * direction), exp_avg, factors, roots, place


@rule(lr=3e-3, class_name="KLSOAP")
def kl_soap(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value,
    GG: Value = shaped(packed_length, "max_size", only="matrix"),
    Q: Value = shaped(packed_length, "max_size", only="matrix"),
    place: Value = place(when="in_turn"),
    *,
    w: Value,
    step: Value,
    lr: Value,
    beta1: Decay = 0.95,
    beta2: Decay = 0.95,
    shampoo_beta: Decay = 0.95,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.01,
    precondition_frequency: Positive = 10,
    in_turn: bool = False,
    max_size: Positive = 10000,
) -> Result:
    """KL-SOAP: Adam in the basis of KL-Shampoo's eigenvectors.

    SOAP, but each matrix is the average of ``G S⁻¹ Gᵀ / columns`` with the inverse of the other
    dimension's, of which it takes the eigenvalues in the bases. As in SOAP the first step only
    finds the bases, a vector has none, and nothing is made of rounding.

    States:
        exp_avg: the moving average of the gradient.
        exp_avg_sq: the moving average of the square of the gradient in the rotated basis.
        GG: for each dimension the matrix S, one after the other.
        Q: for each dimension the basis, as columns.
        place: where the weight is among those of its group, the largest first.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average squared gradient is kept at each step.
        shampoo_beta: how much of the matrices ``GG`` is kept at each step.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: shrinks the weight itself by lr · weight_decay, after the step.
        precondition_frequency: how many steps a basis is kept for.
        in_turn: each weight turns its bases at steps of its own, and not all at one.
        max_size: a larger dimension has no basis and is left as it is.

    Paper:
        Lin, Lowe, Dangel, Eschenhagen, Xu & Grosse 2025, "Understanding and improving Shampoo and
        SOAP via Kullback–Leibler minimization", arXiv:2509.03378.

    Agrees with heavyball's KLSOAP and Emerging-Optimizers' SOAP(use_kl_shampoo=True) in how the
    matrices are averaged. heavyball begins with G Gᵀ and Emerging-Optimizers with the inverse of
    eps; here they begin as multiples of the identity, with the mean square of the first gradient.
    """
    direction, exp_avg, exp_avg_sq = adam_in_bases(
        g, exp_avg, exp_avg_sq, Q, step, beta1, beta2, eps, max_size
    )
    if Q is not None:
        Q = begin(g, Q, step, max_size, 0)
        GG = fit_in_bases(g, GG, Q, shampoo_beta, max_size)
        exp_avg_sq, Q = turn(
            exp_avg_sq, GG, Q, step, precondition_frequency, turn_of(place), max_size, 0
        )
    moved = w - lr * corrections(step, beta1, beta2) * direction
    after = where(step > 1, moved * (1 - lr * weight_decay), w)
    return new_weight(after), exp_avg, exp_avg_sq, GG, Q, place
