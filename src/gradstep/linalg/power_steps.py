"""Parts of a matrix that are made orthogonal: by a step of the power method, or some of its rows.

Of Dion and Dion2.
"""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor

from gradstep.linalg.bases import rounding_as_inf
from gradstep.linalg.batches import each
from gradstep.linalg.newton_schulz import newton_schulz
from gradstep.linalg.random_numbers import generator, normal
from gradstep.rule import opaque


def whole(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the weight itself."""
    return shape


def right_shape(shape: tuple[int, ...], rank_fraction: float) -> tuple[int, int]:
    """The shape of the right factor: along the shorter side, as many columns as the rank is."""
    shorter = min(shape[0], torch.Size(shape[1:]).numel())
    return shorter, max(1, ceil(rank_fraction * shorter))


@opaque(dimensions=2, returns=("g", "buffer", "right"))
def power_step(
    g: Tensor, buffer: Tensor, right: Tensor, step: float, momentum: float, seed: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``P Q̂ᵀ`` of a buffer M, and what it leaves of it: ``M − (1 − momentum) P Rᵀ``.

    P is an orthonormal basis of M Q, R is Mᵀ P, and Q̂ is R with columns of the norm 1. Where M
    makes nothing but rounding of a column of Q, that is kept, and has no part in the step.

    Args:
        g: (batch, rows, columns): the gradient, which is added to the buffer.
        buffer: the same: M.
        right: (batch, shorter side, rank): Q, random at the first step.
        step: 1 at the first.
        momentum: how much is kept of what goes into the step.
        seed: of the random numbers.
    """
    if step == 1:
        source = generator(seed, 0)
        right = normal(tuple(right.shape[1:]), source, right).expand_as(right)
    tall = g.shape[-2] >= g.shape[-1]

    def of_one(x: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = x if tall else x.mT
        p = _orthonormal(x @ q)
        r = x.mT @ p
        sizes = rounding_as_inf(torch.linalg.vector_norm(r, dim=0).unsqueeze(0))
        shares = r / sizes
        made, rest = p @ shares.mT, x - (1 - momentum) * p @ r.mT
        turned = torch.where(sizes.isfinite(), shares, q)
        return (made if tall else made.mT), (rest if tall else rest.mT), turned

    found: tuple[Tensor, Tensor, Tensor] = each(of_one, buffer + g, right)
    return found


def _orthonormal(columns: Tensor) -> Tensor:
    """An orthonormal basis; 0 for a column that hangs on others but for rounding."""
    wide = columns.double()
    found, triangle = torch.linalg.qr(wide)
    sizes = triangle.diagonal().abs()
    there = sizes > len(columns) * torch.finfo(columns.dtype).eps * sizes.max()
    if not there.all():
        own = torch.linalg.qr(wide[:, there])[0]
        found = torch.zeros_like(found)
        found[:, there] = own
    return found.to(columns.dtype)


@opaque(dimensions=2)
def orthogonal_slices(
    x: Tensor,
    a: float,
    b: float,
    c: float,
    eps: float,
    fraction: float,
    ns_steps: float,
    *,
    coefficients: str,
    precision: str,
) -> Tensor:
    """The largest rows of a matrix, or columns where these are fewer, made orthogonal; 0 else.

    Args:
        x: (batch, rows, columns).
        a, b, c, eps, ns_steps, coefficients, precision: of the iteration.
        fraction: the share of them, by the sum of absolute values.
    """
    lies, chosen = _chosen(x, fraction)
    rows = x if lies else x.mT
    places = chosen.unsqueeze(-1).expand(*chosen.shape, rows.shape[-1])
    part = newton_schulz.function(
        rows.gather(1, places).contiguous(),
        a,
        b,
        c,
        eps,
        ns_steps,
        coefficients=coefficients,
        precision=precision,
    )
    made = torch.zeros_like(rows).scatter_(1, places, part)
    return made if lies else made.mT


@opaque(dimensions=2)
def decay_slices(x: Tensor, fraction: float, decay: float) -> Tensor:
    """The matrix with the same rows, or columns, multiplied by a number.

    Args:
        x: (batch, rows, columns).
        fraction: the share of them.
        decay: the number.
    """
    lies, chosen = _chosen(x, fraction)
    rows = x if lies else x.mT
    kept = torch.ones_like(rows[..., 0]).scatter_(1, chosen, decay).unsqueeze(-1)
    return rows * kept if lies else (rows * kept).mT


def _chosen(x: Tensor, fraction: float) -> tuple[bool, Tensor]:
    """Whether rows are the fewer, and which of the fewer are the largest: (batch, count)."""
    lies = x.shape[-2] <= x.shape[-1]
    sizes = each(lambda m: m.double().abs().sum(-1), x if lies else x.mT)
    count = max(1, ceil(fraction * sizes.shape[-1]))
    return lies, sizes.argsort(dim=-1, descending=True, stable=True)[:, :count]
