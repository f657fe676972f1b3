"""D-Adaptation, for Adam, SGD, AdaGrad, Adan and Lion."""

from __future__ import annotations

from gradstep.rule import (
    Decay,
    NonNegative,
    Positive,
    Result,
    Value,
    abs,
    copy_of_weight,
    full,
    global_dot,
    global_norm,
    global_sum,
    lerp,
    maximum,
    new_weight,
    nonzero,
    rule,
    shared,
    sign,
    sqrt,
    where,
)


@rule(lr=1.0, class_name="DAdaptAdam")
def dadapt_adam(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value,
    s: Value,
    d: Value = shared("d0"),
    numerator_weighted: Value = shared(0.0),
    *,
    w: Value,
    lr: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    d0: Positive = 1e-6,
    decoupled_weight_decay: bool = False,
) -> Result:
    """D-Adapt Adam: Adam that finds its own learning rate d, a bound from below of the way to go.

    Not to be confused with Prodigy, its successor, which finds d faster. Leave lr at 1, or let a
    schedule multiply it.

    States:
        exp_avg: the moving average of d · lr · gradient: a step, not a gradient.
        exp_avg_sq: the moving average of the squared gradient.
        s: the moving average of d · lr · gradient, over more steps.
        d: the learning rate that was found, which only grows.
        numerator_weighted: the moving average of how far the steps went along the gradients.

    Hyperparameters:
        beta1: how much of the average step is kept at each step.
        beta2: how much of the average squared gradient is kept at each step; of s and the
            numerator its root.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: adds weight_decay · weight to the gradient (L2), or, decoupled, shrinks the
            weight by d · lr · weight_decay.
        d0: the learning rate to begin with, small enough to do no harm.
        decoupled_weight_decay: the weight decay of AdamW.

    Paper:
        Defazio & Mishchenko 2023, "Learning-rate-free learning by D-Adaptation", arXiv:2301.07733.

    Agrees with dadaptation, which also can correct the bias and slow the growth of d. optax always
    corrects the bias.
    """
    if nonzero(weight_decay) and not decoupled_weight_decay:
        g = g + weight_decay * w
    dlr, share = d * lr, 1 - sqrt(beta2)
    along = global_sum(dlr * (g * (s / (sqrt(exp_avg_sq) + eps))))
    numerator_weighted = lerp(numerator_weighted, along, share)
    exp_avg = lerp(exp_avg, dlr * g, 1 - beta1)
    exp_avg_sq = lerp(exp_avg_sq, g * g, 1 - beta2)
    s = lerp(s, dlr * g, share)
    size = share * global_sum(abs(s))
    larger = where(size > 0, maximum(d, numerator_weighted / size), d)
    if nonzero(weight_decay) and decoupled_weight_decay:
        w = w - dlr * weight_decay * w
    w = w - exp_avg / (sqrt(exp_avg_sq) + eps)
    return new_weight(w), exp_avg, exp_avg_sq, s, larger, numerator_weighted


@rule(lr=1.0, class_name="DAdaptSGD")
def dadapt_sgd(
    g: Value,
    s: Value,
    x0: Value = copy_of_weight(),
    d: Value = shared("d0"),
    g0_norm: Value = shared(0.0),
    numerator_weighted: Value = shared(0.0),
    *,
    w: Value,
    lr: Value,
    momentum: Decay = 0.0,
    weight_decay: NonNegative = 0.0,
    d0: Positive = 1e-6,
) -> Result:
    """D-Adapt SGD: SGD that finds its own learning rate d, a bound from below of the way to go.

    Not to be confused with DoG, which measures the way that was gone. Leave lr at 1, or let a
    schedule multiply it.

    States:
        s: the sum of all steps that were made.
        x0: the weight at the start.
        d: the learning rate that was found, which only grows.
        g0_norm: the norm of the first gradient of all weights together.
        numerator_weighted: the sum of how far the steps went along the gradients.

    Hyperparameters:
        momentum: the share of the old weight that is kept when it moves to x0 − s.
        weight_decay: adds weight_decay · weight to the gradient (L2).
        d0: the learning rate to begin with, small enough to do no harm.

    Paper:
        Defazio & Mishchenko 2023, "Learning-rate-free learning by D-Adaptation", arXiv:2301.07733.

    Agrees with dadaptation, which leaves the weight decay out of the norm of the first gradient,
    by a slip, and also can slow the growth of d. pytorch_optimizer has a momentum of 0.9.
    """
    if nonzero(weight_decay):
        g = g + weight_decay * w
    g0_norm = where(g0_norm > 0, g0_norm, global_norm(g))
    dlr = where(g0_norm > 0, d * lr / g0_norm, 0)
    numerator_weighted = numerator_weighted + global_sum(dlr * (g * s))
    s = s + dlr * g
    size = sqrt(global_dot(s, s))
    larger = where(size > 0, maximum(d, 2 * numerator_weighted / size), d)
    w = lerp(w, x0 - s, 1 - momentum)
    return new_weight(w), s, x0, larger, g0_norm, numerator_weighted


@rule(lr=1.0, class_name="DAdaptAdaGrad")
def dadapt_adagrad(
    g: Value,
    s: Value,
    sum: Value = full(1e-6),
    x0: Value = copy_of_weight(),
    d: Value = shared("d0"),
    gsq_weighted: Value = shared(0.0),
    *,
    w: Value,
    lr: Value,
    momentum: Decay = 0.0,
    eps: Positive = 1e-6,
    weight_decay: NonNegative = 0.0,
    d0: Positive = 1e-6,
) -> Result:
    """D-Adapt AdaGrad: AdaGrad by dual averaging that finds its own learning rate d.

    The weight is where it began, less the sum of all gradients over AdaGrad's root: a step sets
    anew what all gradients so far have done. Leave lr at 1, or let a schedule multiply it.

    States:
        s: the sum of d · lr · gradient.
        sum: the sum of squared gradients.
        x0: the weight at the start.
        d: the learning rate that was found, which only grows.
        gsq_weighted: the sum over all steps of how long each was.

    Hyperparameters:
        momentum: the share of the old weight that is kept when it moves.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: adds weight_decay · weight to the gradient (L2).
        d0: the learning rate to begin with, small enough to do no harm.

    Paper:
        Defazio & Mishchenko 2023, "Learning-rate-free learning by D-Adaptation", arXiv:2301.07733.

    Agrees with dadaptation, which also can slow the growth of d. pytorch_optimizer lets it begin
    with sums of squares of 0.
    """
    if nonzero(weight_decay):
        g = g + weight_decay * w
    dlr = d * lr
    sum, s = sum + g * g, s + dlr * g
    root = sqrt(sum) + eps
    gsq_weighted = gsq_weighted + global_sum(dlr * dlr * (g * g / root))
    length, size = global_sum(s * s / root), global_sum(abs(s))
    larger = where(size > 0, maximum(d, (length - gsq_weighted) / size), d)
    return new_weight(lerp(w, x0 - s / root, 1 - momentum)), s, sum, x0, larger, gsq_weighted


@rule(lr=1.0, class_name="DAdaptAdan")
def dadapt_adan(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value,
    exp_avg_diff: Value,
    previous_grad: Value,
    s: Value,
    d: Value = shared("d0"),
    gsq_weighted: Value = shared(0.0),
    *,
    w: Value,
    lr: Value,
    first: Value,
    beta1: Decay = 0.98,
    beta2: Decay = 0.92,
    beta3: Decay = 0.99,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.02,
    d0: Positive = 1e-6,
    no_prox: bool = False,
) -> Result:
    """D-Adapt Adan: Adan that finds its own learning rate d, a bound from below of the way to go.

    Leave lr at 1, or let a schedule multiply it. Averages begin at 0 and stay uncorrected.

    States:
        exp_avg: the moving average of d · lr · gradient.
        exp_avg_sq: the moving average of the square of the gradient with its change added.
        exp_avg_diff: the moving average of d · lr · the gradient's change.
        previous_grad: the gradient of the step before.
        s: the moving average of d · lr · gradient that d is found with.
        d: the learning rate that was found, which only grows.
        gsq_weighted: the moving average of how long the steps were.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average change is kept at each step, and its share in the step.
        beta3: how much of the average square is kept at each step, and of s.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: shrinks the weight, after the step, to 1 / (1 + d · lr · weight_decay) of it.
        d0: the learning rate to begin with, small enough to do no harm.
        no_prox: shrink the weight by d · lr · weight_decay before the step, as AdamW does.

    Papers:
        Defazio & Mishchenko 2023, "Learning-rate-free learning by D-Adaptation", arXiv:2301.07733.
        Xie, Zhou, Li, Lin & Yan 2022, "Adan", arXiv:2208.06677.

    Agrees with dadaptation, which also can slow the growth of d.
    """
    change = where(first, 0.0, g - previous_grad)
    dlr, ahead = d * lr, g + beta2 * change
    exp_avg = lerp(exp_avg, dlr * g, 1 - beta1)
    exp_avg_diff = lerp(exp_avg_diff, dlr * change, 1 - beta2)
    exp_avg_sq = lerp(exp_avg_sq, ahead * ahead, 1 - beta3)
    s, root = lerp(s, dlr * g, 1 - beta3), sqrt(exp_avg_sq) + eps
    gsq_weighted = lerp(gsq_weighted, global_sum(dlr * dlr * (g * g / root)), 1 - beta3)
    length, size = global_sum(s * s / root) / (1 - beta3), global_sum(abs(s))
    larger = where(size > 0, maximum(d, (length - gsq_weighted) / size), d)
    shrink = dlr * weight_decay if nonzero(weight_decay) else 0.0
    w = (w * (1 - shrink) if no_prox else w) - (exp_avg + beta2 * exp_avg_diff) / root
    w = w if no_prox else w / (1 + shrink)
    return new_weight(w), exp_avg, exp_avg_sq, exp_avg_diff, g, s, larger, gsq_weighted


@rule(lr=1.0, class_name="DAdaptLion")
def dadapt_lion(
    g: Value,
    exp_avg: Value,
    s: Value,
    d: Value = shared("d0"),
    numerator_weighted: Value = shared(0.0),
    *,
    w: Value,
    lr: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.99,
    weight_decay: NonNegative = 0.0,
    d0: Positive = 1e-6,
) -> Result:
    """D-Adapt Lion: Lion that finds its own learning rate d. Its authors call it experimental.

    At lr 1 its d can grow without end, as on this package's digits: begin with a smaller one.

    States:
        exp_avg: the moving average of d · lr · gradient.
        s: the moving average of the steps, over the root of as many.
        d: the learning rate that was found, which only grows.
        numerator_weighted: the moving average of how far each step went along those before.

    Hyperparameters:
        beta1: the share of the kept average in the direction.
        beta2: how much of the kept average is kept at each step; of s and the numerator its root.
        weight_decay: shrinks the weight by d · lr · weight_decay (decoupled).
        d0: the learning rate to begin with, small enough to do no harm.

    Paper:
        Defazio & Mishchenko 2023, "Learning-rate-free learning by D-Adaptation", arXiv:2301.07733.
        Its code has this rule, its text has not.

    Agrees with dadaptation.
    """
    dlr, share = d * lr, 1 - sqrt(beta2)
    update = sign(lerp(exp_avg, g, 1 - beta1))
    exp_avg = lerp(exp_avg, dlr * g, 1 - beta2)
    along = global_sum(dlr * (update * s))
    numerator_weighted = lerp(numerator_weighted, along, share)
    s = lerp(s, dlr * update, share)
    size = share * global_sum(abs(s))
    larger = where(size > 0, maximum(d, numerator_weighted / size), d)
    direction = d * update + d * weight_decay * w if nonzero(weight_decay) else d * update
    return direction, exp_avg, s, larger, numerator_weighted
