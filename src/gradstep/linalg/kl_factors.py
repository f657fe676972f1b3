"""Kronecker factors that fit the covariance of gradients by the Kullback–Leibler divergence.

For each dimension i of a weight a matrix S_i, so that ``S₁ ⊗ S₂ ⊗ …`` is near to the covariance of
the gradient: the moving average of ``G_i (⊗ S_j⁻¹) G_iᵀ · d_i / d``, the inverses of all other
dimensions j, d_i rows and d elements. They begin as multiples of the identity, whose product is the
mean square of the first gradient that is not 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradstep.linalg.bases import rounding_as_inf
from gradstep.linalg.batches import each
from gradstep.linalg.kronecker import along, gram, pack, symmetric_power, unpack
from gradstep.linalg.turns import has_turn
from gradstep.rule import opaque


@opaque(returns=("factors", "roots"))
def fit(
    g: Tensor,
    factors: Tensor,
    roots: Tensor,
    step: float,
    shampoo_beta: float,
    eps: float,
    precondition_frequency: float,
    place: float,
    max_size: float,
) -> tuple[Tensor, Tensor]:
    """The factors with a gradient more, and every few steps their inverse square roots.

    Args:
        g: (batch, *shape): the gradient.
        factors, roots: the S of its dimensions, and ``(S + eps)^(−1/2)``.
        step: 1 at the first.
        shampoo_beta: how much of the factors is kept.
        eps: is added to the eigenvalues.
        precondition_frequency: how many steps roots are kept for.
        place: whose turn it is, see :func:`gradstep.linalg.turns.has_turn`.
        max_size: larger dimensions have no factor.
    """
    g = g.unsqueeze(1) if g.dim() == 1 else g  # a vector of one element
    new = ~factors.any(dim=1)
    begun, old = _begun(g, factors, new, max_size), unpack(roots, g, max_size)
    whitening = [
        None if S is None or root is None else torch.where(new.view(-1, 1, 1), _root(S, eps), root)
        for S, root in zip(begun, old, strict=True)
    ]
    made = _averaged(g, begun, whitening, shampoo_beta)
    if has_turn(step - 1, precondition_frequency, place):
        whitening = [None if S is None else symmetric_power(S, eps, -0.5) for S in made]
    return pack(made, factors), pack(whitening, roots)


@opaque
def whiten(x: Tensor, roots: Tensor, max_size: float) -> Tensor:
    """x with each of its dimensions multiplied by its root: ``S₁^(−1/2) X S₂^(−1/2)``."""
    wide = x.unsqueeze(1) if x.dim() == 1 else x
    return along(wide, unpack(roots, wide, max_size)).view(x.shape)


@opaque(returns=("GG",))
def fit_in_bases(g: Tensor, GG: Tensor, Q: Tensor, shampoo_beta: float, max_size: float) -> Tensor:
    """The factors with a gradient more, where inverses are of their eigenvalues in the bases."""
    begun = _begun(g, GG, ~GG.any(dim=1), max_size)
    bases = unpack(Q, g, max_size)
    whitening = [
        None if S is None or basis is None else each(_scaled_basis, S, basis)
        for S, basis in zip(begun, bases, strict=True)
    ]
    return pack(_averaged(g, begun, whitening, shampoo_beta), GG)


def _averaged(
    g: Tensor, factors: list[Tensor | None], whitening: Sequence[Tensor | None], kept: float
) -> list[Tensor | None]:
    """The factors, moved towards the gradient that is white but for their own dimension."""
    made: list[Tensor | None] = []
    for i, S in enumerate(factors):
        if S is not None:
            others = [None if i == j else root for j, root in enumerate(whitening)]
            share = S.shape[-1] / g[0].numel()
            S = S.lerp(gram(along(g, others), i) * share, 1 - kept)
        made.append(S)
    return made


def _begun(g: Tensor, factors: Tensor, new: Tensor, max_size: float) -> list[Tensor | None]:
    """The factors; those of the weights that are ``new`` as they begin."""
    held = unpack(factors, g, max_size)
    count = max(1, sum(S is not None for S in held))
    square = each(lambda x: x.double().square().mean(), g)
    size = (square ** (1 / count)).to(g.dtype).view(-1, 1, 1)

    def begun(S: Tensor) -> Tensor:
        return torch.where(
            new.view(-1, 1, 1), size * torch.eye(S.shape[-1], dtype=S.dtype, device=S.device), S
        )

    return [None if S is None else begun(S) for S in held]


def _root(S: Tensor, eps: float) -> Tensor:
    """The inverse square roots of multiples of the identity."""
    return torch.diag_embed((S.diagonal(dim1=-2, dim2=-1) + eps).rsqrt())


def _scaled_basis(S: Tensor, basis: Tensor) -> Tensor:
    """A basis as rows, each divided by the root of the eigenvalue that S has there."""
    wide = basis.double()
    values = (wide * (S.double() @ wide)).sum(dim=0)
    values = rounding_as_inf(values.clamp(min=0).to(S.dtype).unsqueeze(0))
    return (basis * values.rsqrt()).mT.contiguous()
