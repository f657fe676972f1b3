"""AdaNorm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy
import torch

import gradstep
from reference_row import Array, Reference, f64


def adanorm(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    gamma: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Dubey, Singh & Chaudhuri 2022, algorithm 2 (AdamNorm).

    The average norm is kept in float32, as all numbers of a parameter are.
    """
    m, v, e, t = 0 * w, 0 * w, numpy.float32(0), 0
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    gamma = w.dtype.type(gamma)
    for g in gradients:
        if g is not None:
            t += 1
            g = g + weight_decay * w
            size = numpy.sqrt(numpy.sum(g**2))
            average = gamma * w.dtype.type(e) + (1 - gamma) * size
            s = average / size * g if average > size > 0 else g
            m = beta1 * m + (1 - beta1) * s
            v = beta2 * v + (1 - beta2) * g**2
            w = w - lr * m / (1 - beta1**t) / (numpy.sqrt(v / (1 - beta2**t)) + eps)
            e = numpy.float32(average)
        yield w


def pytorch_optimizer_adanorm(params: Any, options: dict[str, Any]) -> torch.optim.Optimizer:
    """Theirs adds eps before the second average is corrected, and 1e-15 under the root."""
    from pytorch_optimizer import AdaNorm

    given: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8, **options}
    given["r"] = given.pop("gamma", 0.95)

    class AsInThePaper(AdaNorm):
        def apply_ams_bound(self, **options: Any) -> torch.Tensor:  # type: ignore[override]
            return AdaNorm.apply_ams_bound(**options, exp_avg_sq_eps=0.0)

        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                done = group.get("step", 0)
                group["eps"] = given["eps"] * (1 - group["betas"][1] ** (done + 1)) ** 0.5
            return super().step(closure)

    return AsInThePaper(params, **given, weight_decouple=False, foreach=False)


REFERENCES = [
    Reference(
        gradstep.AdaNorm,
        gradstep.adanorm,
        adanorm,
        extra=[
            {},
            {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.1, "maximize": True},
            {"lr": f64(0.01), "gamma": 0.5, "eps": 1e-3},
        ],
        takes_complex=False,
        elementwise=False,
        oracle=pytorch_optimizer_adanorm,
    ),
]
