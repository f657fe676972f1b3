"""Newton–Schulz with Muon's own polynomial, as Muon's family takes it."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from gradstep.linalg.newton_schulz import newton_schulz, scale_of
from gradstep.rule import size

#: As in :func:`gradstep.muon`.
Coefficients: TypeAlias = Literal[
    "fixed", "tuned", "polar_express", "cans", "aol", "hybrid", "cubic"
]
Precision: TypeAlias = Literal["bfloat16", "float32"]
Adjustment: TypeAlias = Literal[
    "original", "match_rms_adamw", "spectral_unclamped", "unit_rms", "spectral"
]
#: The coefficients of the polynomial, and the smallest norm that a matrix is divided by.
MUON = (3.4445, -4.7750, 2.0315, 1e-7)


def orthogonal(
    x: Any,
    ns_steps: Any,
    coefficients: str,
    precision: str,
    split: Any = None,
    adjust_lr_fn: str | None = None,
    flatten: bool = False,
) -> Any:
    """x with all its singular values near 1.

    Where it is ``split`` or made flat, each part by itself, and scaled.
    """
    return newton_schulz(
        x,
        *MUON,
        ns_steps,
        coefficients=coefficients,
        flatten=flatten,
        split=split,
        adjust_lr_fn=adjust_lr_fn,
        precision=precision,
    )


def adjusted(
    direction: Any, w: Any, adjust_lr_fn: str | None, split: Any = None, flatten: bool = False
) -> Any:
    """A direction as long as the rate is meant for; of parts, :func:`orthogonal` has seen to it."""
    if split is not None or flatten:
        return direction
    return scale_of(adjust_lr_fn, size(w, -2), size(w, -1)) * direction
