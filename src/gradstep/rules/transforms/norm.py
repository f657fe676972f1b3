"""Stages that tie a step to the norm of its weight, or give rows and columns one norm."""

from __future__ import annotations

from typing import Any

from gradstep.rule import (
    NewWeight,
    NonNegative,
    Result,
    Share,
    Value,
    maximum,
    minimum,
    new_weight,
    norm,
    number,
    rule,
    stored,
    where,
)


@rule
def normalize_rows(g: Value, *, eps: NonNegative = 1e-8) -> Result:
    """Scales each row of a direction, along its last dimension, to a norm of 1.

    For weights of two dimensions or more.

    Hyperparameters:
        eps: the smallest norm that a row is divided by.

    Paper:
        Pethick et al. 2025, "Training deep learning models with norm-constrained LMOs",
        arXiv:2502.07529.

    Agrees with the row_norm of NVIDIA's Emerging-Optimizers.
    """
    return g / maximum(norm(g, -1), eps)


@rule
def normalize_columns(g: Value, *, eps: NonNegative = 1e-8) -> Result:
    """Scales each column of a direction, along the dimension before the last, to a norm of 1.

    For weights of two dimensions or more.

    Hyperparameters:
        eps: the smallest norm that a column is divided by.

    Paper:
        Pethick et al. 2025, "Training deep learning models with norm-constrained LMOs",
        arXiv:2502.07529.
    """
    return g / maximum(norm(g, -2), eps)


@rule
def hyperball(
    g: Value, radius: Value = number(0.0), *, w: Value, next_w: Value, lr: Value, step: Value
) -> Result:
    """Hyperball: steps on the sphere of the norm R that a weight has at first.

    ``w ← R · n(w − lr · R · n(u))`` with ``n(x) = x / |x|`` and the direction u of the rules
    before: the learning rate is how far a weight turns, and no decay is needed. Stands last, also
    behind rules that set the weight outright, such as Muon. A weight that begins at 0 has no
    sphere, and goes its way without one.

    States:
        radius: the norm R.

    Paper:
        Wen et al. 2025, "Hyperball optimization" (weblog: AdamH, MuonH).

    Agrees with heavyball's HyperBallAdamW behind Adam. The hook of NVIDIA's Emerging-Optimizers has
    the same steps for a radius that is given, but sets weights of 0 to 0.
    """
    radius = where(step == 1, stored(norm(w)), radius)
    u, sets_weight = _step(g, w, next_w)
    length = norm(u)
    turned = w - lr * radius * where(length > 0, 1 / length, 0) * u
    after = norm(turned)
    free = next_w if sets_weight else w - lr * g
    on_sphere = where(after > 0, radius / after, 1) * turned
    return new_weight(where(radius > 0, on_sphere, free)), radius


@rule
def relative_update(
    g: Value,
    *,
    w: Value,
    next_w: Value,
    lr: Value,
    share: NonNegative = 1.0,
    floor: bool = False,
) -> Result:
    """Relative update: gives a direction the norm of its weight, times a share of it.

    The learning rate is then the share of itself by which a weight moves. Where either norm is 0
    the weight stands still. Stands last, also behind rules that set the weight outright, such as
    Muon.

    Hyperparameters:
        share: the norm of the direction, as a share of that of the weight.
        floor: leave a direction alone that is longer (the floor under |u| / |w| of the speed runs
            of nanoGPT).

    Paper:
        You, Gitman & Ginsburg 2017, "Large batch training of convolutional networks",
        arXiv:1708.03888.

    Agrees with RelativeUpdateHook of NVIDIA's Emerging-Optimizers. scale_by_trust_ratio differs
    where a norm is 0: there it leaves the direction as it is.
    """
    u, sets_weight = _step(g, w, next_w)
    length = norm(u)
    wanted = share * norm(w) * (lr if sets_weight else 1)
    ratio = where(length > 0, wanted / length, 0)
    ratio = maximum(ratio, 1) if floor else ratio
    return new_weight(w - ratio * u) if sets_weight else ratio * u


def _step(g: Any, w: Any, next_w: Any) -> tuple[Any, bool]:
    """The direction of the rules before; of one that sets the weight outright, the whole step."""
    sets_weight = isinstance(g, NewWeight)
    return (w - next_w if sets_weight else g), sets_weight


@rule
def radial_brake(
    g: Value, *, w: Value, next_w: Value, outward: Share = 0.5, inward: Share = 1.0
) -> Result:
    """Radial brake: lets only a share of a step's change of the weight's norm through.

    ``|w| ← |w₀| + s · (|w₁| − |w₀|)`` for a step from w₀ to w₁, which keeps its direction. Stands
    last.

    Hyperparameters:
        outward: the share s where the norm grows.
        inward: the share where it shrinks.

    Paper:
        NVIDIA 2026, "Emerging-Optimizers" (its RadialBrakeHook; a package), and the speed runs of
        nanoGPT.

    Agrees with RadialBrakeHook but for norms that differ by less than 1e-15, which it holds.
    """
    before, after = norm(w), norm(next_w)
    change = after - before
    wanted = before + outward * maximum(change, 0) + inward * minimum(change, 0)
    return new_weight(next_w * where(after > 0, wanted / after, 1))
