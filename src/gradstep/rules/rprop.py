"""Rprop."""

from __future__ import annotations

from gradstep.rule import NonNegative, Result, Value, clamp, full, new_weight, rule, sign, where


@rule
def rprop(
    g: Value,
    prev: Value,
    step_size: Value = full("lr"),
    *,
    w: Value,
    step: Value,
    eta_minus: NonNegative = 0.5,
    eta_plus: NonNegative = 1.2,
    step_size_min: NonNegative = 1e-6,
    step_size_max: NonNegative = 50.0,
) -> Result:
    """Rprop: each weight has a step of its own, which grows while its gradient keeps its sign.

    Made for full batches: it looks at signs only, which noise turns. Where the sign turned, the
    weight stays and its step shrinks.

    States:
        prev: the previous gradient; 0 where its sign had just turned.
        step_size: the size of each weight's step; lr is only its start.

    Hyperparameters:
        eta_minus: the step is multiplied by this where the sign turned.
        eta_plus: the step is multiplied by this where the sign was kept.
        step_size_min: the smallest step.
        step_size_max: the largest step.

    Paper:
        Riedmiller & Braun 1993, "A direct adaptive method for faster backpropagation learning: the
        RPROP algorithm".

    Agrees with torch.optim.Rprop, which takes no step back where the sign turned (iRprop−, Igel &
    Hüsken 2000). ``step`` is counted because torch's checkpoints hold it.
    """
    kept = sign(g * prev)
    factor = where(kept > 0, eta_plus, where(kept < 0, eta_minus, 1.0))
    step_size = clamp(step_size * factor, step_size_min, step_size_max)
    g = where(kept < 0, 0.0, g)
    return new_weight(w - sign(g) * step_size), g, step_size
