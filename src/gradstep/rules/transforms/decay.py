"""Weight decay, in the ways in which the name is used."""

from __future__ import annotations

from gradstep.rule import (
    NonNegative,
    Result,
    Value,
    maximum,
    new_weight,
    nonzero,
    number,
    rule,
    where,
)


@rule
def decay_weights(g: Value, *, w: Value, weight_decay: NonNegative = 0.01) -> Result:
    """Adds a share of the weight to the direction.

    Before another rule it is an L2 penalty; behind it, the decoupled decay of AdamW, scaled by the
    learning rate.

    Hyperparameters:
        weight_decay: the share of the weight that is added.

    Paper:
        Loshchilov & Hutter 2017, "Decoupled weight decay regularization", arXiv:1711.05101.

    Agrees with optax's add_decayed_weights. The paper's decay follows the schedule of the learning
    rate but not its size; for that see independent_decay.
    """
    return g + weight_decay * w


@rule
def independent_decay(g: Value, *, w: Value, lr: Value, weight_decay: NonNegative = 1e-4) -> Result:
    """Shrinks the weight by a share of it at each step, whatever the learning rate.

    Stands behind the other rules. A step with a learning rate of 0 changes nothing.

    Hyperparameters:
        weight_decay: the share of the weight that each step takes away; it may be a schedule.

    Paper:
        Loshchilov & Hutter 2017, "Decoupled weight decay regularization", arXiv:1711.05101.

    Agrees with the paper where weight_decay follows the same schedule as the learning rate.
    AdamW, as most libraries have it, takes lr · weight_decay: that is decay_weights.
    """
    return new_weight(w * (1 - where(lr == 0, 0, weight_decay)) - lr * g)


@rule
def cautious_decay(g: Value, *, w: Value, weight_decay: NonNegative = 0.01) -> Result:
    """Cautious weight decay: only where the direction shrinks the weight as well.

    Stands behind another rule, as decoupled decay does.

    Hyperparameters:
        weight_decay: the share of the weight that is added to the direction.

    Paper:
        Chen et al. 2025, "Cautious weight decay", arXiv:2510.12402.
    """
    return g + weight_decay * where(g * w >= 0, w, 0)


@rule
def corrected_decay(
    g: Value,
    largest_lr: Value = number(0.0),
    *,
    w: Value,
    lr: Value,
    weight_decay: NonNegative = 0.01,
    max_lr: NonNegative = 0.0,
) -> Result:
    """Corrected decay (AdamC): a decay of lr² / max_lr · weight_decay, and not lr · weight_decay.

    Where the weight's size does not matter to the loss, as under a normalization, decay and
    learning rate together say how far it turns at a step; falling as the square of the rate, the
    decay no longer makes gradients grow at the end of a schedule. Stands behind another rule.

    States:
        largest_lr: the largest learning rate until now.

    Hyperparameters:
        weight_decay: the share of the weight that is added to the direction at the largest rate.
        max_lr: the largest learning rate of the schedule; 0 for the largest until now, which while
            a warm-up lasts is the ordinary decay.

    Paper:
        Defazio 2025, "Why gradients rapidly increase near the end of training", arXiv:2506.02285.

    Agrees with heavyball's AdamC, behind Adam, and with pytorch_optimizer's, but that shrinks the
    weight before its step and only in groups that it is told are normalized.
    """
    largest_lr = maximum(largest_lr, lr)
    highest = max_lr if nonzero(max_lr) else largest_lr
    share = where(highest > 0, lr / highest, 0)
    return g + weight_decay * share * w, largest_lr
