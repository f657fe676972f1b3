"""SparseAdam, and sparse gradients for all that take them: against torch, row by row."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from classes import IN_TORCH, Row, each, spelled
from torchs_table import optim_db

ROW = next(row for row in IN_TORCH if row.name == "SparseAdam")
configurations = pytest.mark.parametrize("options", ROW.configurations, ids=spelled)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)


def gradient(number: int, dtype: torch.dtype, coalesced: bool = False) -> Tensor:
    """Some rows of 40, one of them named twice, and at times none at all."""
    random = torch.Generator().manual_seed(number)
    count = 0 if number == 4 else 6
    rows = torch.randint(0, 40, (1, count), generator=random)
    if count:
        rows[0, 1] = rows[0, 0]
    values = torch.randn(count, 3, generator=random).to(dtype)
    g = torch.sparse_coo_tensor(rows, values, (40, 3), check_invariants=True)
    return g.coalesce() if coalesced else g


def weight(dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.randn(40, 3, generator=torch.Generator().manual_seed(9)).to(dtype))


def assert_close(p: Tensor, q: Tensor, units: float = 8, lr: Any = 0.0) -> None:
    bound = units * torch.finfo(p.dtype).eps * max(1.0, q.detach().abs().max().item())
    if isinstance(lr, Tensor):  # torch works out the size of each step in its type
        bound += 25 * lr.item() * torch.finfo(lr.dtype).eps
    torch.testing.assert_close(p.detach(), q.detach(), rtol=0, atol=bound)


@dtypes
@configurations
@pytest.mark.parametrize("coalesced", [False, True], ids=["uncoalesced", "coalesced"])
def test_the_numbers_of_torch_and_only_the_rows_named(
    options: dict[str, Any], dtype: torch.dtype, coalesced: bool
) -> None:
    ours, theirs = weight(dtype), weight(dtype)
    left, right = ROW.make([ours], options), ROW.make_theirs([theirs], options)
    for number in range(25):
        held = {"weight": ours.detach().clone()}
        held.update({n: s.clone() for n, s in left.state[ours].items() if n != "step"})
        for p, optimizer in ((ours, left), (theirs, right)):
            p.grad = gradient(number, dtype, coalesced)
            kept = p.grad.clone()
            optimizer.step()
            assert p.grad.is_coalesced() == kept.is_coalesced()
            assert torch.equal(p.grad._values(), kept._values())
        named = torch.zeros(40, dtype=torch.bool)
        named[gradient(number, dtype).coalesce().indices()[0]] = True
        now = {"weight": ours.detach(), **left.state[ours]}
        for name, before in held.items():
            assert torch.equal(now[name][~named], before[~named]), name
        if number != 4 and dtype != torch.bfloat16:  # whose weights are too coarse for some steps
            assert not torch.equal(ours.detach()[named], held["weight"][named])
        # torch rounds every number in between to the weights' type; ours does not.
        assert_close(ours, theirs, 8 if dtype != torch.bfloat16 else 16, options.get("lr"))
        assert int(left.state[ours]["step"]) == right.state[theirs]["step"] == number + 1


@configurations
@pytest.mark.parametrize("direction", ["ours to torch", "torch to ours"])
def test_a_checkpoint_goes_on_in_the_other_library(options: dict[str, Any], direction: str) -> None:
    makers = [ROW.make, ROW.make_theirs]
    first, second = makers if direction == "ours to torch" else reversed(makers)
    whole = weight()
    uninterrupted = first([whole], options)
    for number in range(12):
        if number == 6:
            rest = nn.Parameter(whole.detach().clone())
            other = second([rest], lr=9.0)
            other.load_state_dict(copy.deepcopy(uninterrupted.state_dict()))
        whole.grad = gradient(number, torch.float32)
        uninterrupted.step()
        if number >= 6:
            rest.grad = gradient(number, torch.float32)
            other.step()
    assert_close(rest, whole)
    assert type(uninterrupted.state_dict()["state"][0]["step"]) is int
    assert other.state_dict()["state"][0]["step"] == 12


@pytest.mark.parametrize("engine", ["ours", "torch"])
def test_a_dense_gradient_is_refused(engine: str) -> None:
    p = weight()
    before = p.detach().clone()
    optimizer = (ROW.make if engine == "ours" else ROW.make_theirs)([p])
    p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="does not support dense gradients"):
        optimizer.step()
    assert torch.equal(p.detach(), before)


def test_an_embedding_learns_as_with_torch() -> None:
    finals = []
    for make in (ROW.make, ROW.make_theirs):
        torch.manual_seed(4)
        embedding = nn.Embedding(30, 6, sparse=True)
        optimizer = make(embedding.parameters(), {"lr": 0.05})
        for number in range(10):
            words = torch.randint(0, 30, (8,), generator=torch.Generator().manual_seed(number))
            optimizer.zero_grad()
            (embedding(words) - 1).square().sum().backward()
            optimizer.step()
        finals.append(embedding.weight)
    assert_close(*finals)


# One coordinate after the other down a valley, each by a sparse gradient.


def rosenbrock(p: Tensor) -> Tensor:
    x, y = p
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


INFO = {info.optim_cls.__name__: info for info in optim_db}
TAKES_SPARSE = [row for row in IN_TORCH if row.only_sparse or INFO[row.name].supports_sparse]


def coordinate(p: Tensor, number: int, sparse: bool) -> Tensor:
    """The derivative by one coordinate, in two parts where it is sparse."""
    x, y = p.detach()
    slope = -400 * x * (y - x**2) - 2 * (1 - x) if number % 2 else 200 * (y - x**2)
    place = 0 if number % 2 else 1
    if sparse:
        parts = torch.stack([slope / 4, slope - slope / 4])
        return torch.sparse_coo_tensor([[place, place]], parts, (2,), check_invariants=True)
    return torch.zeros_like(p).index_fill(0, torch.tensor(place), slope.item())


@pytest.mark.parametrize(
    ("scheduled", "steps"),
    [
        pytest.param(False, 600, id="constant", marks=pytest.mark.deep),
        pytest.param(True, 600, id="scheduled", marks=pytest.mark.deep),
        pytest.param(True, 60, id="scheduled, for a while"),
    ],
)
@each(TAKES_SPARSE)
def test_coordinate_descent(row: Row, scheduled: bool, steps: int) -> None:
    changed, schedulers = INFO[row.name].metadata_for_sparse
    if scheduled and not schedulers:
        pytest.skip("torch schedules no such run")
    for options in row.configurations:
        options = {**{k: v for k, v in options.items() if k not in changed}, "lr": changed["lr"]}
        p, q = (nn.Parameter(torch.tensor([1.5, 1.5], dtype=torch.float64)) for _ in range(2))
        optimizer, dense = row.make([p], options), row.make_theirs([q], options)
        followers = [make(o) for o in (optimizer, dense) for make in schedulers if scheduled]
        for number in range(steps):
            p.grad = coordinate(p, number, sparse=True)
            q.grad = coordinate(q, number, sparse=row.only_sparse)
            for o in (optimizer, dense):
                o.step()
            for follower in followers:
                plateau = isinstance(follower, torch.optim.lr_scheduler.ReduceLROnPlateau)
                loss = rosenbrock(p if follower.optimizer is optimizer else q).item()
                follower.step(loss) if plateau else follower.step()
            if options.get("maximize") and not torch.isfinite(q).all():
                break  # uphill there is no end
            torch.testing.assert_close(p, q, rtol=5e-6, atol=5e-6)
        start = rosenbrock(torch.tensor([1.5, 1.5])).item()
        if not options.get("maximize"):
            assert rosenbrock(p).item() < start
        elif torch.isfinite(p).all():
            assert rosenbrock(p).item() > start
