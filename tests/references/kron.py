"""PSGD Kron."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy
import torch

import gradstep
from plain_package import module_of
from reference_row import Array, Reference, f64


def random_numbers(shape: tuple[int, ...], seed: int, step: int) -> torch.Tensor:
    """Of the generator that the rule says it has."""
    source = torch.Generator().manual_seed(1_000_003 * seed + step)
    return torch.randn(shape, generator=source, dtype=torch.float64)


def inverse(q: Array) -> Array:
    """Of an upper triangular matrix, in its own type: by back substitution."""
    found = numpy.zeros_like(q)
    for i in reversed(range(len(q))):
        found[i, i] = 1
        found[i] = (found[i] - q[i, i + 1 :] @ found[i + 1 :]) / q[i, i]
    return found


def bound(a: Array) -> Any:
    """A lower bound of the spectral norm of a symmetric or skew matrix, from its longest column."""
    largest = numpy.abs(a).max()
    if largest == 0:
        return a.dtype.type(numpy.finfo(a.dtype).tiny)
    a = a / largest
    x = a[:, numpy.argmax(numpy.sum(a**2, 0))] @ a
    x = a @ (x / numpy.sqrt(numpy.sum(x**2)))
    return numpy.sqrt(numpy.sum(x**2)) * largest


def kron(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 3e-4,
    b1: float = 0.9,
    weight_decay: float = 0.0,
    max_size_triangular: float = 8192,
    precond_lr: float = 0.1,
    precond_init_scale: float = 1.0,
    max_prob: float = 1.0,
    min_prob: float = 0.03,
    prob_decay: float = 1e-3,
    flat_start: float = 500,
    balance_interval: int = 100,
    seed: int = 0,
) -> Iterator[Array]:
    """Pooladzandi & Li 2024, for matrices L G Rᵀ, every factor as a whole matrix; vectors by R.

    A diagonal factor is a matrix of which only the diagonal is ever changed.
    """
    kind = w.dtype.type
    shape = w.shape
    rows = shape[:-1] if w.ndim > 1 else ()
    height, width = int(numpy.prod(rows)), int(numpy.prod(shape)) // int(numpy.prod(rows))
    sizes = (height, width) if w.ndim > 1 else (width,)
    whole = [w.ndim > 1 and 1 < d <= max_size_triangular for d in sizes]
    start = kind(precond_init_scale) ** (1 / kind(len(sizes)))
    qs = [start * numpy.eye(d, dtype=w.dtype) for d in sizes]
    m, t, waited, updates = 0 * w, 0, 0, 0
    b1 = kind(b1)
    for g in gradients:
        if g is None:
            yield w
            continue
        t += 1
        m = b1 * m + (1 - b1) * g
        x = (m / (1 - b1**t)).reshape(height, width)
        prob = max_prob * numpy.exp(-prob_decay * (t - 1 - flat_start))
        prob = min(max(prob, min_prob), max_prob)
        waited += 1
        if waited >= 1 / prob:
            waited = 0
            updates += 1
            if updates % balance_interval == 0 and len(qs) > 1:
                tops = [numpy.abs(q).max() for q in qs]
                qs = [
                    q * numpy.sqrt(tops[0] * tops[1]) / top for q, top in zip(qs, tops, strict=True)
                ]
            v = random_numbers((height, width), seed, t).numpy().astype(w.dtype)
            noisy = x + numpy.sqrt(kind(2.0**-23)) * numpy.mean(numpy.abs(x)) * v
            left = qs[0] if len(qs) > 1 else numpy.eye(1, dtype=w.dtype)
            a = left @ noisy @ qs[-1].T
            b = inverse(left).T @ v @ inverse(qs[-1])
            for i, q in enumerate(qs):
                turned = [c if i < len(qs) - 1 else c.T for c in (a, b)]
                of_a, of_b = (c @ c.T for c in turned)
                if whole[i]:
                    step = numpy.triu(of_a - of_b) / bound(of_a + of_b)
                else:
                    diagonal = numpy.diag(of_a - of_b) / numpy.diag(of_a + of_b).max()
                    step = numpy.diag(diagonal)
                qs[i] = q - kind(precond_lr) * step @ q
        left = qs[0] if len(qs) > 1 else numpy.eye(1, dtype=w.dtype)
        d = (left.T @ left @ x @ qs[-1].T @ qs[-1]).reshape(shape)
        d = d * min(1, kind(1.1) / (numpy.sqrt(numpy.mean(d**2)) + kind(1e-12)))
        w = w - lr * (d + weight_decay * w if w.ndim > 1 else d)
        yield w


def psgd_pro(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 3e-3,
    momentum: float = 0.9,
    weight_decay: float = 0.01,
    precond_lr: float = 0.1,
    min_precond_lr: float = 0.01,
    warmup_steps: float = 10000,
    precond_init_scale: float = 1.0,
    beta_bound: float = 0.9,
    precondition_frequency: int = 1,
    max_size: float = 8192,
    seed: int = 0,
) -> Iterator[Array]:
    """Li 2024, the group Q^0.5 E Q^1.5, every factor as a whole matrix; vectors by the right."""
    kind = w.dtype.type
    shape = w.shape
    rows = shape[:-1] if w.ndim > 1 else ()
    height, width = int(numpy.prod(rows)), int(numpy.prod(shape)) // int(numpy.prod(rows))
    places = (0, 1) if w.ndim > 1 else (1,)
    sizes = (height, width)
    start = kind(precond_init_scale) ** (1 / kind(len(places)))
    qs = [numpy.eye(d, dtype=w.dtype) * (start if i in places else 1) for i, d in enumerate(sizes)]
    bounds = [kind(0), kind(0)]
    m, t = 0 * w, 0
    momentum = kind(momentum)
    for g in gradients:
        if g is None:
            yield w
            continue
        t += 1
        m = momentum * m + (1 - momentum) * g
        x = m.reshape(height, width)
        if t > 1 and len(places) > 1:
            tops = [numpy.abs(q).max() for q in qs]
            qs = [q * numpy.sqrt(tops[0] * tops[1]) / top for q, top in zip(qs, tops, strict=True)]
        if (t - 1) % precondition_frequency == 0:
            rate = kind(max(precond_lr / numpy.sqrt(1 + (t - 1) / warmup_steps), min_precond_lr))
            v = random_numbers((height, width), seed, t).numpy().astype(w.dtype)
            noisy = x + numpy.sqrt(kind(2.0**-23)) * numpy.mean(numpy.abs(x)) * v
            white = qs[0].T @ qs[0] @ noisy @ qs[1].T @ qs[1]
            for i in places:
                c = white @ white.T if i == 0 else white.T @ white
                wanted = kind(x.size / sizes[i])
                whole = w.ndim > 1 and 1 < sizes[i] <= max_size
                c = c if whole else numpy.diag(numpy.diag(c))
                curved = (bound(c) if whole else numpy.diag(c).max()) + wanted
                kept = kind(beta_bound) * bounds[i] + (1 - kind(beta_bound)) * curved
                bounds[i] = max(curved, kept)
                q = qs[i] - rate / bounds[i] * (c @ qs[i] - wanted * qs[i])
                if whole:
                    turn = (q.T - q) / bound(q.T - q)
                    once = turn @ q
                    slope, curve = numpy.trace(once), numpy.trace(turn @ once)
                    a = min(max(-slope / curve, 0), 1 / 8) if curve < 0 else 1 / 8
                    q = q + kind(a) * (once + kind(a) / 2 * turn @ once)
                qs[i] = q
        d = (qs[0].T @ qs[0] @ x @ qs[1].T @ qs[1]).reshape(shape)
        w = w - lr * weight_decay * w - lr * d
        yield w


class Balances:
    """In the place of the authors' random numbers: 0, which balances, at every so many updates."""

    def __init__(self, optimizer: Any, interval: int) -> None:
        self.optimizer, self.interval, self.updates = optimizer, interval, 0

    def random(self) -> float:
        if self.optimizer._update_counter != 0:
            return 1.0
        self.updates += 1
        return float(self.updates % self.interval != 0)


class Seeded:
    """torch, but for its random numbers."""

    def __init__(self, seed: int, step: int) -> None:
        self.seed, self.step = seed, step

    def randn_like(self, x: torch.Tensor) -> torch.Tensor:
        return random_numbers(tuple(x.shape), self.seed, self.step).to(x)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def in_float64(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """``x a⁻¹``."""
    rows = x.reshape(-1, x.shape[-1])
    return torch.linalg.solve_triangular(a, rows, upper=True, left=False).reshape(x.shape)


def authors_kron(params: Any, options: dict[str, Any]) -> torch.optim.Optimizer:
    """kron-torch, in float64 and not compiled, with our random numbers, and none in its step."""
    module = module_of("kron_torch", "kron")
    if module._solve_triangular_right is not in_float64:
        module._solve_triangular_right = in_float64
        for name in ("_balance_Q", "_update_precond", "_precond_grad", "_clip_update_rms"):
            compiled = getattr(module, name)
            setattr(module, name, getattr(compiled, "_torchdynamo_orig_callable", compiled))
        update = module._update_precond
        # It adds random numbers to its gradient in place.
        module._update_precond = lambda q, e, g, *numbers: update(q, e, g.clone(), *numbers)

    given = {"lr": 3e-4, **options}
    seed, interval = given.pop("seed", 0), given.pop("balance_interval", 100)
    highest, lowest = given.pop("max_prob", 1.0), given.pop("min_prob", 0.03)
    decay, flat = given.pop("prob_decay", 1e-3), given.pop("flat_start", 500)

    class Kron(module.Kron):  # type: ignore[misc, name-defined]
        def step(self, closure: Any = None) -> Any:
            module.torch = Seeded(seed, int(self._prob_step) + 1)
            return super().step(closure)

    def probability(n: torch.Tensor) -> torch.Tensor:
        """As precond_update_prob_schedule has it, but in float64."""
        return (highest * torch.exp(-decay * (n.double() - flat))).clamp(lowest, highest)

    made = Kron(
        params,
        **given,
        preconditioner_update_probability=probability,
        precond_dtype=torch.float64,
    )
    made.rng = Balances(made, interval)
    return made


REFERENCES = [
    Reference(
        gradstep.Kron,
        gradstep.kron,
        kron,
        extra=[
            {},
            {"lr": 0.01, "weight_decay": 0.1, "balance_interval": 3, "seed": 7, "maximize": True},
            {
                "lr": f64(0.02),
                "b1": 0.5,
                "max_size_triangular": 10,
                "precond_lr": 0.5,
                "precond_init_scale": 0.25,
                "prob_decay": 0.1,
                "flat_start": 5,
            },
        ],
        takes_complex=False,
        elementwise=False,
        oracle=authors_kron,
    ),
    Reference(
        gradstep.PSGDPro,
        gradstep.psgd_pro,
        psgd_pro,
        extra=[
            {},
            {"lr": 0.01, "weight_decay": 0.1, "seed": 7, "beta_bound": 0.0, "maximize": True},
            {
                "lr": f64(0.02),
                "momentum": 0.5,
                "max_size": 10,
                "precond_lr": 0.5,
                "warmup_steps": 2,
                "precond_init_scale": 0.25,
                "precondition_frequency": 3,
            },
        ],
        takes_complex=False,
        elementwise=False,
        bound=64.0,
    ),
]
