"""GaLore, APOLLO, Fira and Conda."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy
import torch

import gradstep
from plain_package import module_of
from reference_row import Array, Reference, f64


class Moments:
    """Adam's two averages of whatever matrix they are given."""

    def __init__(self, betas: tuple[float, float], eps: float) -> None:
        self.betas, self.eps = betas, eps
        self.m: Any = 0.0
        self.v: Any = 0.0
        self.t = 0

    def direction(self, g: Array) -> Array:
        """Without the corrections, which are left to the step's length."""
        beta1, beta2 = (g.dtype.type(b) for b in self.betas)
        self.m = beta1 * self.m + (1 - beta1) * g
        self.v = beta2 * self.v + (1 - beta2) * g**2
        self.t += 1
        return numpy.asarray(self.m / (numpy.sqrt(self.v) + self.eps))

    def length(self, lr: float, kind: Any) -> Any:
        beta1, beta2 = (kind(b) for b in self.betas)
        return lr * numpy.sqrt(1 - beta2**self.t) / (1 - beta1**self.t)


def singular_vectors(a: Array) -> Array:
    """The left ones, in float64 at most, each with the sign that makes its largest element > 0."""
    u = numpy.linalg.svd(numpy.asarray(a, dtype=numpy.float64), full_matrices=False)[0]
    for column in u.T:
        column *= numpy.sign(column[numpy.abs(column).argmax()])
    return u


def random_projection(rows: int, rank: int, seed: int, count: int) -> Array:
    """Of the generator that the rule says it has."""
    source = torch.Generator().manual_seed(1_000_003 * seed + count)
    drawn = torch.randn(rows, rank, generator=source, dtype=torch.float64)
    return numpy.asarray(drawn.numpy() / math.sqrt(rank))


def galore(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    rank: int = 128,
    update_proj_gap: int = 200,
    scale: float = 0.25,
) -> Iterator[Array]:
    """Zhao et al. 2024, algorithm 2, from the left for wide matrices, from the right for others."""
    moments = Moments(betas, eps)
    shape = w.shape
    p: Any = None
    for g in gradients:
        if g is None:
            yield w
            continue
        if w.ndim < 2:
            direction = moments.direction(g)
        else:
            g = g.reshape(shape[0], -1)
            tall = g.shape[0] >= g.shape[1]
            if moments.t % update_proj_gap == 0:
                p = singular_vectors(g.T if tall else g)[:, :rank].astype(w.dtype)
            if tall:
                direction = scale * moments.direction(g @ p) @ p.T
            else:
                direction = scale * p @ moments.direction(p.T @ g)
        w = w - moments.length(lr, w.dtype.type) * direction.reshape(shape)
        w = w - lr * weight_decay * w
        yield w


def apollo(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    rank: int = 256,
    update_proj_gap: int = 200,
    scale: float = 1.0,
    tensor_wise: bool = False,
    seed: int = 0,
) -> Iterator[Array]:
    """Zhu et al. 2024, algorithm 1, with the limiter of Fira.

    The norm is kept in float32, as all numbers of a parameter are.
    """
    moments = Moments(betas, eps)
    shape = w.shape
    before = 0.0
    for g in gradients:
        if g is None:
            yield w
            continue
        if w.ndim < 2:
            direction = moments.direction(g)
        else:
            g = g.reshape(shape[0], -1)
            tall = g.shape[0] >= g.shape[1]
            shorter = min(g.shape)
            p = random_projection(
                shorter, min(rank, shorter), seed, moments.t // update_proj_gap
            ).astype(w.dtype)
            r = g @ p if tall else p.T @ g
            n = moments.direction(r)
            axis = None if tensor_wise else int(tall)
            sizes = [numpy.sqrt(numpy.sum(x**2, axis, keepdims=True)) for x in (n, r)]
            direction = g * (sizes[0] / (sizes[1] + 1e-8))
            norm = numpy.sqrt(numpy.sum(direction**2))
            if before:
                limit = max(norm / (before + 1e-8), 1.01) / 1.01
                direction, norm = direction / limit, norm / limit
            before = float(numpy.float32(norm))
            direction = w.dtype.type(scale) ** w.dtype.type(0.5) * direction
        w = w - moments.length(lr, w.dtype.type) * direction.reshape(shape)
        w = w - lr * weight_decay * w
        yield w


def conda(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    update_proj_gap: int = 2000,
    scale: float = 1.0,
) -> Iterator[Array]:
    """Wang et al. 2025, algorithm 1, from the left for wide matrices, from the right for others."""
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    shape = w.shape
    m: Any = 0.0
    v: Any = 0.0
    p: Any = None
    t = 0
    for g in gradients:
        if g is not None:
            tall = w.ndim > 1 and shape[0] >= w.size // shape[0]
            g = g.reshape(shape[0], -1) if w.ndim > 1 else g
            m = beta1 * m + (1 - beta1) * g
            if w.ndim > 1 and t % update_proj_gap == 0:
                p = singular_vectors(m.T if tall else m).astype(w.dtype)
            low, average = g, m
            if w.ndim > 1:
                low, average = (x @ p if tall else p.T @ x for x in (g, m))
            v = beta2 * v + (1 - beta2) * low**2
            d = average / (numpy.sqrt(v) + eps)
            if w.ndim > 1:
                d = scale * (d @ p.T if tall else p @ d)
            t += 1
            w = w - lr * numpy.sqrt(1 - beta2**t) / (1 - beta1**t) * d.reshape(shape)
            w = w - lr * weight_decay * w
        yield w


def fira(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    rank: int = 128,
    update_proj_gap: int = 200,
    scale: float = 0.25,
    gamma: float = 1.01,
) -> Iterator[Array]:
    """Chen et al. 2024, algorithm 1. The norm is kept in float32."""
    moments = Moments(betas, eps)
    shape = w.shape
    before = 0.0
    p: Any = None
    for g in gradients:
        if g is None:
            yield w
            continue
        if w.ndim < 2:
            direction = moments.direction(g)
        else:
            g = g.reshape(shape[0], -1)
            tall = g.shape[0] >= g.shape[1]
            if moments.t % update_proj_gap == 0:
                p = singular_vectors(g.T if tall else g)[:, :rank].astype(w.dtype)
            r = g @ p if tall else p.T @ g
            n = moments.direction(r)
            sizes = [numpy.sqrt(numpy.sum(x**2, int(tall), keepdims=True)) for x in (n, r)]
            back = [x @ p.T if tall else p @ x for x in (n, r)]
            rest = (g - back[1]) * (sizes[0] / (sizes[1] + 1e-8))
            norm = numpy.sqrt(numpy.sum(rest**2))
            limit = max(norm / (before + 1e-8), gamma) / gamma if before else 1.0
            before = float(numpy.float32(norm / limit))
            direction = scale * back[0] + rest / limit
        w = w - moments.length(lr, w.dtype.type) * direction.reshape(shape)
        w = w - lr * weight_decay * w
        yield w


# The authors' packages.


def on_matrices(base: Any, params: Any, own: dict[str, Any], rank: int, **options: Any) -> Any:
    """An authors' optimizer, given every weight of more than two dimensions as a matrix."""
    params = list(params)
    shapes = [(len(p), -1) if p.dim() > 1 else p.shape for p in params]
    views = [torch.nn.Parameter(p.data.view(s)) for p, s in zip(params, shapes, strict=True)]

    class OnMatrices(base):  # type: ignore[misc]
        def step(self, closure: Any = None) -> Any:
            for p, view in zip(params, views, strict=True):
                view.grad = None if p.grad is None else p.grad.reshape(view.shape)
            return super().step(closure)

    groups = [
        {"params": [v], **own, "rank": min(rank, *v.shape), "proj_type": "std"}
        if v.dim() > 1
        else {"params": [v]}
        for v in views
    ]
    return OnMatrices(groups, no_deprecation_warning=True, **options)


def authors_galore(params: Any, options: dict[str, Any]) -> torch.optim.Optimizer:
    module = module_of("galore_torch", "adamw")

    class Exact(module.GaLoreProjector):  # type: ignore[misc, name-defined]
        """In float64, with signs that are not left to chance."""

        def get_orthogonal_matrix(self, weights: Any, rank: int, type: str) -> Any:
            g = weights.numpy()
            found = torch.tensor(singular_vectors(g.T if type == "right" else g)[:, :rank])
            return found.T if type == "right" else found

    given = {"lr": 0.01, "eps": 1e-6, **options}
    own = {n: given.pop(n, d) for n, d in (("update_proj_gap", 200), ("scale", 0.25))}
    rank = given.pop("rank", 128)
    module.GaLoreProjector = Exact
    return on_matrices(module.AdamW, params, own, rank, **given)


def authors_apollo(params: Any, options: dict[str, Any]) -> torch.optim.Optimizer:
    module = module_of("apollo_torch", "apollo")
    seed = options.pop("seed", 0)

    class Seeded(module.GradientProjector):  # type: ignore[misc, name-defined]
        """With the matrices of the rule's generator."""

        def update_ortho_matrix(self, full_rank_grad: Any, proj_type: str) -> None:
            shorter = min(full_rank_grad.shape)
            drawn = random_projection(shorter, self.rank, seed, self.svd_count)
            self.svd_count += 1
            p = torch.tensor(drawn)
            self.ortho_matrix = p.T if proj_type == "right" else p

    given = {"lr": 0.01, "eps": 1e-6, **options}
    own = {n: given.pop(n, d) for n, d in (("update_proj_gap", 200), ("scale", 1.0))}
    own |= {"proj": "random", "scale_type": "channel"}
    if given.pop("tensor_wise", False):
        own["scale_type"] = "tensor"
    rank = given.pop("rank", 256)
    module.GradientProjector = Seeded
    return on_matrices(module.AdamW, params, own, rank, **given)


def library(name: str, params: Any, options: dict[str, Any]) -> torch.optim.Optimizer:
    """pytorch_optimizer's, given every weight of more than two dimensions as a matrix.

    Its projector is given float64 and signs that are not left to chance. Its steps begin at 1, so
    that it takes new singular vectors a step sooner.
    """
    import pytorch_optimizer
    from pytorch_optimizer.optimizer import utils

    class Exact(utils.galore.GaLoreProjector):  # type: ignore[misc, name-defined]
        def get_orthogonal_matrix(self, weights: Any, projection_type: str, **_: Any) -> Any:
            g = weights.numpy()
            right = projection_type == "right"
            found = torch.tensor(singular_vectors(g.T if right else g)[:, : self.rank])
            return found.T if right else found

    base = getattr(pytorch_optimizer, name)
    vars(importlib.import_module(base.__module__))["GaLoreProjector"] = Exact
    given = {"lr": 0.01, "eps": 1e-6, "scale": 0.25, **options}
    if name == "Conda":
        given = {"lr": 1e-3, "eps": 1e-8, "scale": 1.0, "update_proj_gap": 2000, **options}
    elif given["scale"] != 1:
        raise NotImplementedError("it takes only a share of what is inside from the gradient")
    if given.get("update_proj_gap", 200) <= 50 or given.pop("gamma", 1.01) != 1.01:
        raise NotImplementedError("it takes new singular vectors a step sooner")
    own = {n: given.pop(n) for n in ("update_proj_gap", "scale") if n in given}
    own = {"update_proj_gap": 200, "projection_type": "std", **own}
    rank = given.pop("rank", 128)
    made = on_matrices(base, params, own, rank, **given)
    return made


REFERENCES = [
    Reference(
        gradstep.GaLore,
        gradstep.galore,
        galore,
        extra=[
            {},
            {"rank": 2, "update_proj_gap": 7, "weight_decay": 0.1, "maximize": True},
            {"lr": f64(0.02), "betas": (0.5, 0.9), "eps": 1e-3, "scale": 2.0, "rank": 4},
        ],
        takes_complex=False,
        elementwise=False,
        bound=256.0,
        oracle=authors_galore,
    ),
    Reference(
        gradstep.APOLLO,
        gradstep.apollo,
        apollo,
        extra=[
            {},
            {"rank": 2, "update_proj_gap": 7, "weight_decay": 0.1, "seed": 5, "maximize": True},
            {"rank": 1, "scale": 16.0, "tensor_wise": True, "lr": f64(0.02), "betas": (0.5, 0.9)},
        ],
        takes_complex=False,
        elementwise=False,
        bound=32.0,
        oracle=authors_apollo,
    ),
    Reference(
        gradstep.Conda,
        gradstep.conda,
        conda,
        extra=[
            {},
            {"update_proj_gap": 7, "weight_decay": 0.1, "maximize": True},
            {"lr": f64(0.02), "betas": (0.5, 0.9), "eps": 1e-3, "scale": 2.0},
        ],
        takes_complex=False,
        elementwise=False,
        bound=256.0,
        oracle=functools.partial(library, "Conda"),
        oracle_shapes=[(8, 6), (5,), (4, 7)],
    ),
    Reference(
        gradstep.Fira,
        gradstep.fira,
        fira,
        extra=[
            {},
            {"rank": 2, "update_proj_gap": 7, "weight_decay": 0.1, "maximize": True},
            {"lr": f64(0.02), "betas": (0.5, 0.9), "eps": 1e-3, "scale": 1.0, "rank": 3},
        ],
        takes_complex=False,
        elementwise=False,
        bound=256.0,
        oracle=functools.partial(library, "Fira"),
        oracle_shapes=[(8, 6), (5,), (4, 7)],
    ),
]
