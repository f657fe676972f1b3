"""PSGD: Kron, and its form with Procrustes steps."""

from __future__ import annotations

import torch
from torch import Tensor

from gradstep.linalg.batches import each, product
from gradstep.linalg.kronecker import as_rows
from gradstep.linalg.random_numbers import generator, normal
from gradstep.rule import (
    Decay,
    NonNegative,
    Positive,
    Result,
    Share,
    Value,
    clamp,
    exp,
    lerp,
    maximum,
    minimum,
    new_weight,
    nonzero,
    number,
    opaque,
    rms,
    rule,
    shaped,
    sqrt,
    where,
)


def merged(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A weight's shape with all dimensions but the last in one; a number as a vector of one."""
    numel = torch.Size(shape[:-1]).numel()
    return (numel, shape[-1]) if len(shape) > 1 else (torch.Size(shape).numel(),)


def factor_shapes(shape: tuple[int, ...], max_size: float) -> list[tuple[int, ...]]:
    """The shape of the factor of each dimension: a matrix, or its diagonal alone."""
    whole = merged(shape)
    diagonal = [len(whole) == 1 or d == 1 or d > max_size for d in whole]
    return [(d,) if alone else (d, d) for d, alone in zip(whole, diagonal, strict=True)]


def packed_shape(shape: tuple[int, ...], max_size: float) -> tuple[int]:
    """The shape of the state that holds all factors, one after the other."""
    return (sum(torch.Size(factor).numel() for factor in factor_shapes(shape, max_size)),)


@opaque(returns=("factors",))
def balanced(
    g: Tensor, factors: Tensor, step: float, scale: float, balance: float, max_size: float
) -> Tensor:
    """The factors; at the first step made, and later made equally large where ``balance`` is 1.

    Args:
        g: (batch, *shape): a gradient.
        factors: (batch, length): the factors of its dimensions.
        step: 1 at the first, which makes the factors.
        scale: what all factors together multiply by at first.
        balance: whether to give all factors the same largest element; their product stays.
        max_size: a larger dimension's factor is a diagonal.
    """
    qs = _unpacked(factors, g, max_size)
    if step == 1:
        return _packed([_identity(q) * scale ** (1 / len(qs)) for q in qs])
    if not balance or len(qs) == 1:
        return factors
    largest = [q.abs().reshape(len(q), -1).amax(dim=-1) for q in qs]
    mean = torch.stack(largest).log().mean(dim=0).exp()
    shares = [
        (mean / size).view(-1, *(1,) * (q.dim() - 1)) for q, size in zip(qs, largest, strict=True)
    ]
    return _packed([q * share for q, share in zip(qs, shares, strict=True)])


@opaque(returns=("factors",))
def fitted(
    g: Tensor,
    factors: Tensor,
    step: float,
    update: float,
    precond_lr: float,
    max_size: float,
    seed: float,
) -> Tensor:
    """The factors Q, where ``update`` is 1 a step nearer to those that make the gradient white.

    Args:
        g: (batch, *shape): the gradient.
        factors: (batch, length): the factors of its dimensions.
        step: chooses the random numbers, with the seed.
        update: whether to fit the factors to this gradient.
        precond_lr: how far an update goes.
        max_size: a larger dimension's factor is a diagonal.
        seed: of the random numbers that stand against the gradient.
    """
    if not update:
        return factors
    v = normal(merged(g.shape[1:]), generator(seed, step), g).unsqueeze(0)

    def of_one(x: Tensor, packed: Tensor) -> Tensor:
        x, packed = x.unsqueeze(0), packed.unsqueeze(0)
        qs = _unpacked(packed, x, max_size)
        return _packed(_fitted(_matrices(x), v, qs, precond_lr))[0]

    return each(of_one, g, factors)


def _fitted(x: Tensor, v: Tensor, qs: list[Tensor], precond_lr: float) -> list[Tensor]:
    """The factors of a gradient, in a batch of one, a step nearer to what makes v of it."""
    a, b = x + _safety(x) * v, v
    for dimension, q in enumerate(qs):
        a, b = _along(a, q, dimension), _divided(b, q, dimension)
    made = []
    for dimension, q in enumerate(qs):
        rows_a, rows_b = as_rows(a, dimension), as_rows(b, dimension)
        if q.dim() == 2:
            of_a, of_b = (rows_a * rows_a).sum(dim=-1), (rows_b * rows_b).sum(dim=-1)
            largest = (of_a + of_b).max().clamp(min=torch.finfo(q.dtype).tiny)
            made.append(q - precond_lr * (of_a - of_b) / largest * q)
        else:
            of_a, of_b = product(rows_a, rows_a.mT), product(rows_b, rows_b.mT)
            change = precond_lr * (of_a - of_b).triu() / _spectral_norm(of_a + of_b)
            made.append(q - product(change, q))
    return made


@opaque(returns=("factors", "bounds"))
def turned_upright(
    g: Tensor,
    factors: Tensor,
    bounds: Tensor,
    step: float,
    precondition_frequency: float,
    precond_lr: float,
    beta_bound: float,
    max_size: float,
    seed: float,
) -> tuple[Tensor, Tensor]:
    """The factors Q, every few steps a step nearer to those that make the gradient white.

    And each turned towards the rotation of it that is symmetric.

    Args:
        g: (batch, *shape): the gradient.
        factors: (batch, length): the factors of its dimensions.
        bounds: (batch, dimensions): of how curved the way is that each goes.
        step: chooses the random numbers, with the seed.
        precondition_frequency: how many steps factors are kept for.
        precond_lr: how far an update goes.
        beta_bound: how much of a bound is kept as it falls.
        max_size: a larger dimension's factor is a diagonal.
        seed: of the random numbers.
    """
    if (step - 1) % precondition_frequency:
        return factors, bounds
    v = normal(merged(g.shape[1:]), generator(seed, step), g).unsqueeze(0)

    def of_one(x: Tensor, packed: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
        x = _matrices(x.unsqueeze(0))
        x = x + _safety(x) * v
        qs = _unpacked(packed.unsqueeze(0), x, max_size)
        white = _whitened(x, qs)
        made, highest = [], []
        for dimension, (q, bound) in enumerate(zip(qs, held, strict=True)):
            rows, wanted = as_rows(white, dimension), x.numel() / q.shape[-1]
            if q.dim() == 2:
                found = (rows * rows).sum(dim=-1)
                curved = found.max() + wanted
            else:
                found = product(rows, rows.mT)
                curved = _spectral_norm(found) + wanted
            highest.append(torch.maximum(curved, beta_bound * bound + (1 - beta_bound) * curved))
            change = (found * q if q.dim() == 2 else product(found, q)) - wanted * q
            moved = q - precond_lr / highest[-1] * change
            made.append(moved if q.dim() == 2 else _procrustes(moved))
        return _packed(made)[0], torch.stack(highest)

    done: tuple[Tensor, Tensor] = each(of_one, g, factors, bounds)
    return done


def _safety(x: Tensor) -> Tensor:
    """The size of what is added, so that the factors stay finite without full rank."""
    mean: Tensor = torch.finfo(torch.float32).eps ** 0.5 * x.abs().mean()
    return mean


def _procrustes(q: Tensor) -> Tensor:
    """A factor a step nearer to the rotation of it that is nearest to the identity.

    By ``exp(a R) Q`` to its second order with ``R = (Qᵀ − Q) / |Qᵀ − Q|``, at most an eighth of a
    turn, and no further than the trace grows.
    """
    skew = q.mT - q
    turn = skew / _spectral_norm(skew)
    once = product(turn, q)
    twice = product(turn, once)
    slope, curve = once[0].trace(), twice[0].trace()
    a = torch.where(curve < 0, (-slope / curve).clamp(0, 1 / 8), 1 / 8)
    return q + a * (once + a / 2 * twice)


@opaque(returns=("g",))
def whitened(g: Tensor, factors: Tensor, max_size: float) -> Tensor:
    """The gradient with each dimension multiplied by the ``Qᵀ Q`` of its factor.

    Args:
        g: (batch, *shape): the gradient.
        factors: (batch, length): the factors of its dimensions.
        max_size: a larger dimension's factor is a diagonal.
    """
    return _whitened(_matrices(g), _unpacked(factors, g, max_size)).reshape(g.shape)


def _whitened(x: Tensor, qs: list[Tensor]) -> Tensor:
    for dimension, q in enumerate(qs):
        x = _along(_along(x, q, dimension), q if q.dim() == 2 else q.mT, dimension)
    return x


def _matrices(x: Tensor) -> Tensor:
    """A batch of weights, each with all dimensions but the last in one."""
    return x.reshape(len(x), *merged(x.shape[1:]))


def _unpacked(factors: Tensor, x: Tensor, max_size: float) -> list[Tensor]:
    """The factor of each dimension of x: matrices, or their diagonals."""
    shapes = factor_shapes(x.shape[1:], max_size)
    pieces = factors.split([torch.Size(shape).numel() for shape in shapes], dim=1)
    return [q.reshape(len(x), *shape) for q, shape in zip(pieces, shapes, strict=True)]


def _packed(qs: list[Tensor]) -> Tensor:
    return torch.cat([q.reshape(len(q), -1) for q in qs], dim=1)


def _spectral_norm(matrix: Tensor) -> Tensor:
    """A lower bound of the largest eigenvalue, no more than √2 below it; never 0."""
    tiny = torch.finfo(matrix.dtype).tiny
    largest = matrix.abs().max().clamp(min=tiny)
    scaled = matrix[0] / largest
    column = scaled[:, (scaled * scaled).sum(dim=0).argmax()]
    turned = column @ scaled
    turned = turned / torch.linalg.vector_norm(turned).clamp(min=tiny)
    return (torch.linalg.vector_norm(scaled @ turned) * largest).clamp(min=tiny)


def _identity(q: Tensor) -> Tensor:
    """The identity of each, as a matrix or as its diagonal."""
    ones = q.new_ones(q.shape[:2])
    return ones if q.dim() == 2 else ones.diag_embed()


def _along(x: Tensor, q: Tensor, dimension: int) -> Tensor:
    """x with a dimension, counted from 0 without the batch's, multiplied by its factor."""
    if q.dim() == 2:
        return x * _beside(q, x, dimension)
    return product(q, x) if dimension == 0 else product(x, q.mT)


def _divided(x: Tensor, q: Tensor, dimension: int) -> Tensor:
    """x with a dimension multiplied by the transposed inverse of its factor."""
    if q.dim() == 2:
        return x / _beside(q, x, dimension)
    if dimension == 0:
        return torch.linalg.solve_triangular(q.mT, x, upper=False)
    return torch.linalg.solve_triangular(q, x, upper=True, left=False)


def _beside(q: Tensor, x: Tensor, dimension: int) -> Tensor:
    """A diagonal in the shape in which it meets x."""
    return q.reshape(len(q), *(-1 if i == dimension else 1 for i in range(x.dim() - 1)))


def count_of_factors(shape: tuple[int, ...]) -> tuple[int]:
    """The shape of a state with a number for each factor."""
    return (len(merged(shape)),)


@rule(lr=3e-4, class_name="Kron")
def kron(
    g: Value,
    momentum_buffer: Value,
    factors: Value = shaped(packed_shape, "max_size_triangular"),
    waited: Value = number(0.0),
    unbalanced: Value = number(0.0),
    *,
    w: Value,
    step: Value,
    is_matrix: bool,
    b1: Decay = 0.9,
    weight_decay: NonNegative = 0.0,
    max_size_triangular: NonNegative = 8192,
    precond_lr: NonNegative = 0.1,
    precond_init_scale: Positive = 1.0,
    max_prob: Positive = 1.0,
    min_prob: Positive = 0.03,
    prob_decay: NonNegative = 1e-3,
    flat_start: NonNegative = 500,
    balance_interval: Positive = 100,
    seed: NonNegative = 0,
) -> Result:
    """PSGD Kron: the average gradient, made white by a matrix for each of its dimensions.

    Each dimension has a triangular Q that is fitted, step by step, until the gradients multiplied
    by ``Qᵀ Q`` along every dimension are as random numbers divided by it: ``A Aᵀ = B Bᵀ`` with
    ``A = Q₁ G Q₂ᵀ`` and ``B = Q₁⁻ᵀ V Q₂⁻¹``, V random, by

        Q ← Q − precond_lr · triu(A Aᵀ − B Bᵀ) / |A Aᵀ + B Bᵀ| · Q

    States:
        momentum_buffer: the moving average of the gradient.
        factors: the Q of all dimensions, one after the other.
        waited: how many steps have gone by since the last update of the factors.
        unbalanced: how many updates there were since the factors were balanced.

    Hyperparameters:
        b1: how much of the average gradient is kept at each step.
        weight_decay: shrinks weights of two dimensions or more by lr · weight_decay (decoupled).
        max_size_triangular: a larger dimension has a diagonal Q, as vectors have.
        precond_lr: how far an update of the factors goes.
        precond_init_scale: what the factors multiply the gradient by at first, as its root.
        max_prob: the share of steps that update the factors, at first.
        min_prob: the same in the end.
        prob_decay: how fast it falls: by this share of itself a step.
        flat_start: how many steps it takes until it falls.
        balance_interval: after how many updates the factors are made equally large.
        seed: chooses the random numbers V.

    Papers:
        Li 2015, "Preconditioned stochastic gradient descent", arXiv:1512.04202.
        Pooladzandi & Li 2024, "Curvature-informed SGD via general purpose Lie-group
        preconditioners", arXiv:2402.04553.

    Agrees with kron-torch 0.3.3 given the same V, but for three things. Every hundredth update
    balances the factors; there one in a hundred does, at random. The random numbers that make an
    update safe do not enter the step; there they do, at a part in 3,000. And each weight counts
    its own steps and updates; there all have one count. As there, weights of more than two
    dimensions are matrices, with all dimensions but the last in one; a step whose root mean square
    is above 1.1 is scaled down to it; and the share of steps is kept by counting, not by chance.
    """
    momentum_buffer = lerp(momentum_buffer, g, 1 - b1)
    prob = clamp(max_prob * exp(-prob_decay * (step - 1 - flat_start)), min_prob, max_prob)
    due = where((waited + 1) * prob >= 1, 1, 0)
    waited, unbalanced = (waited + 1) * (1 - due), unbalanced + due
    balance = where(unbalanced >= balance_interval, 1, 0)
    average = momentum_buffer / (1 - b1**step)
    factors = balanced(average, factors, step, precond_init_scale, balance, max_size_triangular)
    factors = fitted(average, factors, step, due, precond_lr, max_size_triangular, seed)
    direction = whitened(average, factors, max_size_triangular)
    direction = minimum(1, 1.1 / (rms(direction) + 1e-12)) * direction
    if nonzero(weight_decay) and is_matrix:
        direction = direction + weight_decay * w
    return direction, momentum_buffer, factors, waited, unbalanced * (1 - balance)


@rule(lr=3e-3, class_name="PSGDPro")
def psgd_pro(
    g: Value,
    exp_avg: Value,
    factors: Value = shaped(packed_shape, "max_size"),
    bounds: Value = shaped(count_of_factors),
    *,
    w: Value,
    step: Value,
    lr: Value,
    momentum: Decay = 0.9,
    weight_decay: NonNegative = 0.01,
    precond_lr: NonNegative = 0.1,
    min_precond_lr: NonNegative = 0.01,
    warmup_steps: Positive = 10000,
    precond_init_scale: Positive = 1.0,
    beta_bound: Share = 0.9,
    precondition_frequency: Positive = 1,
    max_size: NonNegative = 8192,
    seed: NonNegative = 0,
) -> Result:
    """PSGD with Procrustes steps: the average gradient, made white without solving for anything.

    As in Kron each dimension has a Q, and the direction is the average gradient multiplied by
    ``P = Qᵀ Q`` along every dimension. Q is no triangle but nearly symmetric: it goes along
    ``Q ← Q − precond_lr / L · (C − c) Q``, where C is what ``P G`` makes of the dimension's rows,
    ``(P G)(P G)ᵀ``, which shall become c = elements / rows times the identity, and L is a bound on
    C + c; and is then turned towards the rotation of it with the largest trace.

    States:
        exp_avg: the moving average of the gradient.
        factors: the Q of all dimensions, one after the other.
        bounds: the L of each.

    Hyperparameters:
        momentum: how much of the average gradient is kept at each step.
        weight_decay: shrinks the weight itself by lr · weight_decay, before its step.
        precond_lr: how far an update of the factors goes, at first: it falls with 1 / √(1 + (step −
            1) / warmup_steps).
        min_precond_lr: how far in the end.
        warmup_steps: after how many steps that is 1 / √2 of it.
        precond_init_scale: what the factors multiply the gradient by at first, as its root.
        beta_bound: how much of a bound is kept at an update as it falls; it grows at once.
        precondition_frequency: how many steps the factors are kept for.
        max_size: a larger dimension has a diagonal Q, as vectors have.
        seed: chooses the random numbers that make an update safe.

    Paper:
        Li 2024, "Stochastic Hessian fittings with Lie groups", arXiv:2402.11858.

    Has the steps and defaults of PSGDPro in NVIDIA's Emerging-Optimizers, which bounds norms by
    products with random matrices, and whose random numbers in the gradient have a size of their
    own; here, as in Kron, a 3,000th of its own. heavyball's PSGDPRO turns by up to a half, not an
    eighth. Weights of more than two dimensions are matrices with all dimensions but the last in
    one.
    """
    exp_avg = lerp(exp_avg, g, 1 - momentum)
    rate = maximum(precond_lr / sqrt(1 + (step - 1) / warmup_steps), min_precond_lr)
    factors = balanced(exp_avg, factors, step, precond_init_scale, 1, max_size)
    factors, bounds = turned_upright(
        exp_avg, factors, bounds, step, precondition_frequency, rate, beta_bound, max_size, seed
    )
    direction = whitened(exp_avg, factors, max_size)
    return (
        new_weight(w * (1 - lr * weight_decay) - lr * direction),
        exp_avg,
        factors,
        bounds,
    )
