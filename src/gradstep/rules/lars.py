"""LARS."""

from __future__ import annotations

from gradstep.rule import Decay, NonNegative, Result, Value, new_weight, nonzero, norm, rule, where


@rule(lr=1.0, class_name="LARS")
def lars(
    g: Value,
    momentum_buffer: Value,
    *,
    w: Value,
    lr: Value,
    momentum: Decay = 0.9,
    weight_decay: NonNegative = 5e-4,
    trust_coefficient: NonNegative = 1e-3,
    lr_in_momentum: bool = True,
) -> Result:
    """LARS: momentum with a learning rate of its own for each layer, by the size of its weights.

    Not to be confused with LAMB, which scales Adam's direction, nor with LARC, which only ever
    makes the learning rate smaller.

    States:
        momentum_buffer: the velocity, a decaying sum of past directions.

    Hyperparameters:
        momentum: how much of the velocity is kept at each step.
        weight_decay: adds this share of the weight to its gradient (an L2 penalty).
        trust_coefficient: the share of its weights by which a layer moves, at lr = 1.
        lr_in_momentum: the learning rate scales what enters the velocity, as in the paper; if
            not, what leaves it. The two differ where the learning rate changes.

    Paper:
        You, Gitman & Ginsburg 2017, "Large batch training of convolutional networks",
        arXiv:1708.03888.

    Agrees with the paper, and while the learning rate is constant with timm (always_adapt=True,
    eps=0); timm, apex and pytorch_optimizer have lr_in_momentum=False. Where all weights are 0 the
    layer is not scaled; timm leaves it unscaled too where all gradients are. pytorch_optimizer
    leaves out biases and all else of one dimension, and optax takes the norm of the gradient with
    the decay in it. The paper gives no learning rate that suits all: 1 is timm's.
    """
    weight_norm = norm(w)
    whole = norm(g) + weight_decay * weight_norm
    ratio = where((weight_norm > 0) & (whole > 0), trust_coefficient * weight_norm / whole, 1)
    if nonzero(weight_decay):
        g = g + weight_decay * w
    if lr_in_momentum:
        momentum_buffer = momentum * momentum_buffer + lr * ratio * g
        return new_weight(w - momentum_buffer), momentum_buffer
    momentum_buffer = momentum * momentum_buffer + ratio * g
    return momentum_buffer, momentum_buffer
