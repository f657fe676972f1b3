"""Optimistic gradient descent."""

from __future__ import annotations

from gradstep.rule import NonNegative, Result, Value, rule, where


@rule(lr=0.01, class_name="OptimisticSGD")
def optimistic_sgd(
    g: Value,
    last_grad: Value,
    *,
    first: Value,
    alpha: NonNegative = 1.0,
    beta: NonNegative = 1.0,
) -> Result:
    """Optimistic gradient descent: along the gradient and how it has changed, for games.

    States:
        last_grad: the gradient of the step before.

    Hyperparameters:
        alpha: the weight of the gradient.
        beta: the weight of its change since the last step.

    Papers:
        Popov 1980, "A modification of the Arrow–Hurwicz method for search of saddle points".
        Mokhtari, Ozdaglar & Pattathil 2019, "A unified analysis of extra-gradient and optimistic
        gradient methods for saddle point problems", arXiv:1901.08511.

    Agrees with optax's optimistic_gradient_descent, but at the first step, where nothing has
    changed: there the gradient before it is taken to be 0.
    """
    change = where(first, 0, g - last_grad)
    return alpha * g + beta * change, g
