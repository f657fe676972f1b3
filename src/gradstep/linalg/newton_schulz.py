"""Newton–Schulz iterations: matrices with their singular values brought near 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradstep.linalg.batches import each, plus_product, product
from gradstep.linalg.gram import HALVED, gram, plus_square
from gradstep.linalg.matrices import as_matrices, in_parts, parts_of, stacked, unfit
from gradstep.rule import maximum, opaque, sqrt

#: Name -> a triple (a, b, c) an iteration: ``x ← a·x + (b·xxᵀ + c·(xxᵀ)²)·x``. Of those in
#: :data:`FIXED` exactly so many iterations are made; beyond the others the last is repeated.
COEFFICIENTS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "tuned": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    "polar_express": (
        (8.2051, -22.9019, 16.4607),
        (4.0664, -2.8612, 0.5184),
        (3.9096, -2.8234, 0.5250),
        (3.2856, -2.4153, 0.4853),
        (2.2779, -1.6198, 0.3985),
        (1.8726, -1.2307, 0.3585),
        (1.8564, -1.2132, 0.3568),
        (1.8750, -1.2500, 0.3750),
    ),
    "cans": (
        (8.4703, -25.1081, 18.6293),
        (4.1828, -3.1087, 0.5806),
        (3.9619, -2.9541, 0.5630),
        (3.2866, -2.4647, 0.5074),
        (2.2737, -1.6447, 0.4162),
    ),
    "aol": (
        (4.0098, -7.0585, 2.4635),
        (3.4585, -5.5479, 2.5959),
        (2.7573, -3.2939, 1.4254),
        (2.7215, -3.0494, 1.3169),
    ),
    "hybrid": ((3.4445, -4.7750, 2.0315),) * 8 + ((2.0, -1.5, 0.5),) * 2,
    "cubic": (
        (3.3656576, -3.3420992, 0.0),
        (2.5744352, -1.4957376, 0.0),
        (2.5368962, -1.4312570, 0.0),
        (2.4418906, -1.2764040, 0.0),
        (2.2230472, -0.9630650, 0.0),
    ),
}
#: Those whose last iterations only make sense as the last ones.
FIXED = ("aol", "hybrid", "cubic")
Triples = list[tuple[float, float, float]]
#: Wider than this, a matrix's own iterations cost more than those of its Gram matrix.
_WIDE = 2.0


def iterations(
    coefficients: str, fixed: tuple[float, float, float], ns_steps: int
) -> list[tuple[float, float, float]]:
    """The triples of all iterations.

    Args:
        coefficients: a name in :data:`COEFFICIENTS`, or ``"fixed"``.
        fixed: the triple that ``"fixed"`` takes at each.
        ns_steps: how many.

    Raises:
        ValueError: a set in :data:`FIXED` that has another number of iterations.
    """
    named = COEFFICIENTS.get(coefficients, (fixed,))
    if coefficients in FIXED and ns_steps != len(named):
        raise ValueError(
            f"the coefficients {coefficients!r} are for {len(named)} iterations, and ns_steps is "
            f"{ns_steps}. Set ns_steps={len(named)}."
        )
    return [named[min(i, len(named) - 1)] for i in range(ns_steps)]


def _operations(shape: Sequence[int], **choices: Any) -> float:
    """How many floating-point operations an iteration takes for a weight."""
    total = 0.0
    for rows, columns, count in parts_of(shape, **choices):
        short, long = sorted((rows, columns))
        total += count * (4 * short**2 * long + 2 * short**3)
    return total


def _rounds(
    shape: Sequence[int],
    flatten: bool = False,
    split: Any = None,
    precision: str = "bfloat16",
    **choices: Any,
) -> torch.dtype | None:
    """What it begins and ends with; parts have a scale in what they were given."""
    whole = split is None and not flatten
    return torch.bfloat16 if precision == "bfloat16" and whole else None


@opaque(refuses=unfit, cost=_operations, stack=stacked, rounds=_rounds)
def newton_schulz(
    x: Tensor,
    a: float,
    b: float,
    c: float,
    eps: float,
    ns_steps: float,
    *,
    coefficients: str = "fixed",
    flatten: bool = False,
    split: Any = None,
    adjust_lr_fn: str | None = None,
    precision: str = "bfloat16",
) -> Tensor:
    """Bring the singular values of matrices near 1: ``x ← a·x + (b·xxᵀ + c·(xxᵀ)²)·x``, repeated.

    Args:
        x: (batch, …, rows, columns).
        a, b, c: the coefficients of the polynomial.
        eps: the smallest norm that a matrix is divided by.
        ns_steps: how many times.
        coefficients: ``"fixed"`` takes a, b, c at each; a name in :data:`COEFFICIENTS` others.
        flatten: (batch, rows, …) is taken for one matrix, all else beside its rows.
        split: each matrix is several, one below the other: how many, or the rows of each.
        adjust_lr_fn: of what is flattened or split: the :func:`scale_of` of each part, which it is
            multiplied by.
        precision: what it is worked out in: ``"bfloat16"``, as torch.optim.Muon, or ``"float32"``.
    """
    triples = iterations(coefficients, (a, b, c), int(ns_steps))
    matrices = as_matrices(x, flatten)
    orthogonal = _in_float32 if precision == "float32" else _in_bfloat16

    def made(part: Tensor) -> Tensor:
        found = orthogonal(part, triples, eps, coefficients == "aol")
        if split is None and not flatten:
            return found
        return found * float(scale_of(adjust_lr_fn, *map(float, part.shape[-2:])))

    found: Tensor = made(matrices) if split is None else in_parts(made, matrices, split)
    return found.view(x.shape)


def scale_of(adjust_lr_fn: str | None, rows: Any, columns: Any) -> Any:
    """What the direction of a matrix is multiplied by; see :func:`gradstep.muon`."""
    if adjust_lr_fn == "match_rms_adamw":
        return 0.2 * sqrt(maximum(rows, columns))
    if adjust_lr_fn == "spectral":
        return sqrt(maximum(rows, columns))
    if adjust_lr_fn in ("spectral_unclamped", "unit_rms"):
        return sqrt(rows / columns)
    return sqrt(maximum(1, rows / columns))


def _in_bfloat16(x: Tensor, triples: Triples, eps: float, by_rows: bool) -> Tensor:
    tall = x.shape[-2] > x.shape[-1]
    work = (x.mT if tall else x).to(torch.bfloat16)
    work = work / torch.linalg.vector_norm(work, dim=(-2, -1), keepdim=True).clamp_(min=eps)
    if _multiplies_bfloat16(work):
        found = _narrow(work, triples, eps, by_rows)
    else:
        found = each(lambda one: _rounded_iterations(one, triples, eps, by_rows), work.float())
    return (found.mT if tall else found).to(x.dtype)


def _narrow(x: Tensor, triples: Triples, eps: float, by_rows: bool) -> Tensor:
    if x.is_cpu and x.shape[-2] >= HALVED:  # one by one, for their symmetric products by blocks
        made: Tensor = each(lambda one: _narrow_by_blocks(one, triples, eps, by_rows), x)
        return made
    for i, (a, b, c) in enumerate(triples):
        squares = product(x, x.mT)
        if by_rows and i == 0:
            x, squares = _by_rows(x, squares, eps)
        polynomial = plus_product(squares, squares, squares, b, c) if c else squares * b
        x = plus_product(x, polynomial, x, a, 1.0)
    return x


def _narrow_by_blocks(x: Tensor, triples: Triples, eps: float, by_rows: bool) -> Tensor:
    for i, (a, b, c) in enumerate(triples):
        squares = gram(x)
        if by_rows and i == 0:
            x, squares = _by_rows(x, squares, eps)
        polynomial = plus_square(squares, b, c) if c else squares * b
        x = torch.addmm(x, polynomial, x, beta=a)
    return x


def _by_rows(x: Tensor, gram: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x with its rows divided by what makes its largest singular value at most 1; and its Gram."""
    sums = gram.abs().sum(-1, keepdim=True).clamp(min=eps * eps).rsqrt()
    return x * sums, gram * sums * sums.mT


def _multiplies_bfloat16(x: Tensor) -> bool:
    """Whether the machine has instructions that multiply bfloat16."""
    if not x.is_cpu:
        return True
    asked = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in _INSTRUCTIONS)
    return any(ask is not None and ask() for ask in asked)


#: Of x86-64: as torch names them.
_INSTRUCTIONS = ("avx512_bf16", "amx_tile")

# Without such instructions torch's products of bfloat16 take 5 to 8 times as long as those of
# float32, and its sums of a product and a matrix 20 to 100 times (measured on AVX2, 84 to 1,024
# rows). So the numbers are kept in float32, and rounded to bfloat16 where torch rounds them.


def _rounded(x: Tensor) -> Tensor:
    return x.bfloat16().float()


def _rounded_iterations(x: Tensor, triples: Triples, eps: float, by_rows: bool) -> Tensor:
    for i, (a, b, c) in enumerate(triples):
        squares = _rounded(gram(x))
        if by_rows and i == 0:
            x, squares = map(_rounded, _by_rows(x, squares, eps))
        polynomial = plus_square(squares, b, c) if c else squares * b
        x = _rounded(torch.addmm(x, _rounded(polynomial), x, beta=a))
    return x


def _in_float32(x: Tensor, triples: Triples, eps: float, by_rows: bool) -> Tensor:
    tall = x.shape[-2] > x.shape[-1]
    work = x.mT if tall else x
    work = work / torch.linalg.vector_norm(work, dim=(-2, -1), keepdim=True).clamp_(min=eps)

    def of_one(x: Tensor) -> Tensor:
        g = gram(x)
        if by_rows:
            x, g = _by_rows(x, g, eps)
        if x.shape[-1] >= _WIDE * x.shape[-2]:
            return _by_gram(g, triples) @ x
        for i, (a, b, c) in enumerate(triples):
            g = g if i == 0 else gram(x)
            polynomial = plus_square(g, b, c) if c else g * b
            x = torch.addmm(x, polynomial, x, beta=a)
        return x

    found: Tensor = each(of_one, work)
    return found.mT if tall else found


def _by_gram(g: Tensor, triples: Triples) -> Tensor:
    """What a wide matrix is multiplied by, from its Gram matrix alone.

    All polynomials of one symmetric matrix commute, so with ``p = a + b·g + c·g²`` the Gram matrix
    of the next iteration is ``p g p``, and the outcome is the product of all ``p``.
    """
    found: Tensor | None = None
    last = len(triples) - 1
    for i, (a, b, c) in enumerate(triples):
        polynomial = torch.addmm(g, g, g, beta=b, alpha=c) if c else g * b
        polynomial.diagonal().add_(a)
        found = polynomial if found is None else polynomial @ found
        if i < last:
            g = polynomial @ g @ polynomial
    return torch.eye(len(g), dtype=g.dtype, device=g.device) if found is None else found
