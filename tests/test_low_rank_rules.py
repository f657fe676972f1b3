"""GaLore, APOLLO and Kron: rules with matrices for states, and random numbers of their own."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import gradstep

CLASSES = [gradstep.GaLore, gradstep.APOLLO, gradstep.Kron]
SHAPES = ((12, 20), (48, 80), (20, 12), (9, 9), (4, 3, 2, 2), (7,), (), (3, 1))
each_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
each_engine = pytest.mark.parametrize("engine", ["fused", "eager"])


def trained(cls: Any, starts: list[Tensor], steps: int = 8, **options: Any) -> list[Tensor]:
    """The weights after some steps; each one's gradients depend on its own start alone."""
    weights = [torch.nn.Parameter(w.clone()) for w in starts]
    optimizer = cls(weights, **options)
    for number in range(steps):
        for w, start in zip(weights, starts, strict=True):
            w.grad = (start * (number + 1)).sin() + w.detach()
        optimizer.step()
    return [w.detach() for w in weights]


def some_weights(count: int = 1, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    random = torch.Generator().manual_seed(4)
    return [torch.randn(s, generator=random).to(dtype) for s in SHAPES for _ in range(count)]


@each_engine
@each_class
def test_alone_and_among_others_of_its_shape(cls: Any, engine: str) -> None:
    starts = some_weights(3)
    options = {"lr": 0.01, "engine": engine}
    if cls is not gradstep.Kron:
        options |= {"rank": 3, "update_proj_gap": 3}
    together = trained(cls, starts, **options)
    for start, among in zip(starts, together, strict=True):
        (alone,) = trained(cls, [start], **options)
        assert torch.equal(alone, among), start.shape


@each_engine
@pytest.mark.parametrize("cls", CLASSES[1:], ids=lambda cls: cls.__name__)
def test_the_seed_chooses_the_random_numbers(cls: Any, engine: str) -> None:
    starts = some_weights()[:1]
    options = {"rank": 3} if cls is gradstep.APOLLO else {}
    runs = [trained(cls, starts, engine=engine, seed=s, **options)[0] for s in (0, 1, 0)]
    assert torch.equal(runs[0], runs[2]) and not torch.equal(runs[0], runs[1])


@pytest.mark.parametrize("decay", [0.0, 0.1])
@each_engine
@each_class
def test_a_step_of_length_0_without_a_gradient(cls: Any, engine: str, decay: float) -> None:
    """As torch.distributed.checkpoint makes one, to have the states there."""
    starts = some_weights()
    weights = [torch.nn.Parameter(w.clone()) for w in starts]
    optimizer = cls(weights, lr=0.0, weight_decay=decay, engine=engine)
    for w in weights:
        w.grad = torch.zeros_like(w)
    optimizer.step()
    for w, start in zip(weights, starts, strict=True):
        assert torch.equal(w.detach(), start)
    assert all(t.isfinite().all() for entry in optimizer.state.values() for t in entry.values())


@each_engine
@each_class
def test_zeros_and_tiny_and_huge_gradients(cls: Any, engine: str) -> None:
    weights = [torch.nn.Parameter(w) for w in some_weights()]
    optimizer = cls(weights, engine=engine)
    for size in (0.0, 1e-30, 0.0, 1e12, 1e-12, 1.0):
        for w in weights:
            w.grad = torch.full_like(w, size)
        optimizer.step()
        assert all(w.isfinite().all() for w in weights), size


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.deep)]
)
@each_engine
@each_class
def test_weights_of_16_bits(cls: Any, engine: str, dtype: torch.dtype) -> None:
    """Their matrices are float32, and they go where weights of 32 bits go."""
    starts = some_weights(dtype=dtype)
    # Longer steps than what 16 bits round to.
    options = {"steps": 20, "engine": engine, "lr": 0.02 if cls is gradstep.Kron else 0.2}
    found = trained(cls, starts, **options)
    expected = trained(cls, [w.float() for w in starts], **options)
    for a, b, start in zip(found, expected, starts, strict=True):
        way = (b - start).norm()
        assert way > 0 and (a.float() - b).norm() < 0.5 * way, start.shape
    weight = torch.nn.Parameter(starts[0])
    weight.grad = torch.ones_like(weight)
    optimizer = cls([weight], engine=engine)
    optimizer.step()
    names = {"projector", "low_exp_avg", "low_exp_avg_sq", "factors"}
    own = [t.dtype for name, t in optimizer.state[weight].items() if name in names]
    assert own == [torch.float32] * {"GaLore": 3, "APOLLO": 2, "Kron": 1}[cls.__name__]


@each_engine
def test_galore_takes_a_gradient_that_is_no_number(engine: str) -> None:
    """As Adam does; an SVD of it would be an error in the midst of a step."""
    weights = [torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2)]
    weights[0].grad, weights[1].grad = torch.full((3, 4), torch.nan), torch.ones(3, 4)
    gradstep.GaLore(weights, engine=engine).step()
    assert weights[0].isnan().all() and weights[1].isfinite().all()


def test_galore_moves_within_the_first_singular_vectors_of_the_first_gradient() -> None:
    (start,) = some_weights()[:1]
    moved = trained(gradstep.GaLore, [start], rank=2)[0] - start
    assert torch.linalg.matrix_rank(moved, rtol=1e-4) == 2
    left = torch.linalg.svd(start.sin() + start)[0][:, :2]
    torch.testing.assert_close(left @ left.T @ moved, moved, rtol=0, atol=1e-6)


def test_apollos_steps_grow_slowly_but_not_from_nothing() -> None:
    weight = torch.nn.Parameter(torch.zeros(6, 8))
    optimizer = gradstep.APOLLO([weight], lr=1.0, betas=(0.0, 0.0))
    ways = []
    for size in (1.0, 1.0, 0.0, 1.0, 1.0, 100.0, 1.0):
        before = weight.detach().clone()
        weight.grad = size * torch.ones(6, 8)
        optimizer.step()
        ways.append((weight.detach() - before).norm().item())
    assert ways[2] == 0
    for earlier, later in pairwise(ways[3:]):
        assert later <= 1.0101 * earlier
    assert ways[3] == pytest.approx(ways[0], rel=1e-3)


def test_kron_makes_gradients_white() -> None:
    """Of gradients with very unlike rows and columns it makes such as have like ones."""
    random = torch.Generator().manual_seed(0)
    rows, columns = 10 ** torch.linspace(-1, 1, 6), 10 ** torch.linspace(1, -1, 9)
    weight = torch.nn.Parameter(torch.zeros(6, 9))
    optimizer = gradstep.Kron([weight], lr=1.0, b1=0.0, flat_start=2000)
    ways = []
    for _ in range(1500):
        before = weight.detach().clone()
        noise = torch.randn(6, 9, generator=random)
        weight.grad = rows[:, None] * noise * columns
        optimizer.step()
        ways.append(weight.detach() - before)
    last = torch.stack(ways[-200:]).square().mean(dim=0).sqrt()
    assert last.max() / last.min() < 3  # of the gradients: 10,000
    assert optimizer.state[weight]["factors"].shape == (6 * 6 + 9 * 9,)


def test_kron_updates_less_and_less_often() -> None:
    """At the shares of steps that its hyperparameters say, by counting."""
    weight = torch.nn.Parameter(torch.zeros(3, 4))
    optimizer = gradstep.Kron([weight], flat_start=5, prob_decay=0.1, min_prob=0.2)
    random = torch.Generator().manual_seed(0)
    updated, before = [], None
    for step in range(1, 61):
        weight.grad = torch.randn(3, 4, generator=random)
        optimizer.step()
        factors = optimizer.state[weight]["factors"].clone()
        if before is None or not torch.equal(factors, before):
            updated.append(step)
        before = factors
    assert updated[:6] == [1, 2, 3, 4, 5, 6]
    gaps = [b - a for a, b in pairwise(updated)]
    assert gaps == sorted(gaps) and gaps[-5:] == [5] * 5


def test_a_rank_above_the_matrix_is_its_shorter_side() -> None:
    weight = torch.nn.Parameter(torch.ones(5, 3, 4))
    weight.grad = torch.ones_like(weight)
    for cls, names in ((gradstep.GaLore, ["projector"]), (gradstep.APOLLO, [])):
        optimizer = cls([weight], rank=100)
        optimizer.step()
        state = optimizer.state[weight]
        assert all(state[name].shape == (5, 5) for name in names)
        assert state["low_exp_avg"].shape == state["low_exp_avg_sq"].shape == (5, 12)
