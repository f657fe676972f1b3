"""Rules of eigenvectors, roots and products: no step hangs on how a machine rounds.

Gradients of one or two ranks have singular vectors that are LAPACK's choice. Here such gradients
are given again with their last bits changed, as another CPU, another layout or another batch would
change them: the weights must be the same but for roundings.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import gradstep

SHAPES = ((7, 9), (20, 3), (9, 9), (4, 3, 2, 5))
STEPS = 12


def gradients(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    random = torch.Generator().manual_seed(3)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=random, dtype=torch.float64)

    made = []
    first, rest = shape[0], torch.Size(shape[1:]).numel()
    column = normal(first, 1)
    for step in range(STEPS):
        if kind == "full":
            g = normal(first, rest)
        elif kind == "one rank":  # another one at each step, as of batches of one
            g = normal(first, 1) @ normal(1, rest)
        elif kind == "always one":  # as of inputs that are all alike
            g = column @ normal(1, rest)
        elif kind == "equal rows":
            g = normal(1, rest).expand(first, rest)
        elif kind == "dead":  # rows and columns without a gradient
            g = normal(first, rest)
            g[1::2], g[:, ::3] = 0, 0
        elif kind == "nothing at first":
            g = normal(first, rest) * (step > 0)
        else:
            raise AssertionError(kind)
        made.append(g.to(dtype).reshape(shape))
    return made


KINDS = ("full", "one rank", "always one", "equal rows", "dead", "nothing at first")


def turned_bits(g: Tensor, seed: int) -> Tensor:
    """With the last bit of each element turned up, down or left."""
    random = torch.Generator().manual_seed(seed)
    way = torch.randint(-1, 2, g.shape, generator=random) * torch.inf
    moved = torch.nextafter(g, way.nan_to_num(0.0, torch.inf, -torch.inf).to(g.dtype))
    return torch.where((g == 0) | way.isnan(), g, moved)


def trained(make: Any, given: list[Tensor], options: dict[str, Any], seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(1)
    start = torch.randn(given[0].shape, generator=random, dtype=torch.float64).to(given[0].dtype)
    weight = torch.nn.Parameter(start)
    optimizer = make([weight], **options)
    for step, g in enumerate(given):
        weight.grad = turned_bits(g, 100 * seed + step) if seed else g.clone()
        optimizer.step()
    return weight.detach()


RULES = [
    pytest.param(gradstep.SOAP, {}, id="SOAP"),
    pytest.param(gradstep.SOAP, {"precondition_frequency": 2}, id="SOAP-turned"),
    pytest.param(gradstep.SOAP, {"max_size": 8}, id="SOAP-max_size"),
    pytest.param(gradstep.Shampoo, {}, id="Shampoo"),
    pytest.param(gradstep.GaLore, {"update_proj_gap": 5}, id="GaLore"),
    pytest.param(gradstep.GaLore, {"rank": 2, "scale": 1.0}, id="GaLore-rank"),
    pytest.param(gradstep.APOLLO, {"rank": 2}, id="APOLLO"),
    pytest.param(gradstep.Kron, {}, id="Kron"),
    pytest.param(gradstep.PSGDPro, {}, id="PSGDPro", marks=pytest.mark.deep),
    pytest.param(gradstep.Dion, {}, id="Dion"),
    pytest.param(
        gradstep.SOAPMuon, {"precision": "float32"}, id="SOAPMuon", marks=pytest.mark.deep
    ),
    pytest.param(
        gradstep.KLSOAP, {"precondition_frequency": 2}, id="KLSOAP", marks=pytest.mark.deep
    ),
    pytest.param(gradstep.KLShampoo, {}, id="KLShampoo", marks=pytest.mark.deep),
    pytest.param(gradstep.SPlus, {}, id="SPlus"),
    pytest.param(gradstep.SPlus, {"inverse_steps": 3}, id="SPlus-turned", marks=pytest.mark.deep),
    pytest.param(gradstep.Conda, {"update_proj_gap": 5}, id="Conda", marks=pytest.mark.deep),
    pytest.param(gradstep.Fira, {"rank": 2, "update_proj_gap": 5}, id="Fira"),
]


MATRICES_ONLY = (gradstep.Dion, gradstep.SOAPMuon)
#: Those whose gradients leave the most null space; the other kinds are the deep run's.
HARDEST = ("one rank", "dead", "nothing at first")


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.deep] * (k not in HARDEST)) for k in KINDS]
)
@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.deep)], ids=str
)
@pytest.mark.parametrize(("make", "options"), RULES)
def test_a_last_bit_of_a_gradient_moves_no_more_than_last_bits(
    make: Any, options: dict[str, Any], dtype: torch.dtype, kind: str
) -> None:
    for shape in SHAPES if make not in MATRICES_ONLY else SHAPES[:3]:
        given = gradients(kind, shape, dtype)
        options = {"lr": 0.01, "engine": "eager", **options}
        a, b = trained(make, given, options), trained(make, given, options, seed=1)
        difference = (a - b).abs().max() / a.abs().max() / torch.finfo(dtype).eps
        assert difference <= 64, shape
