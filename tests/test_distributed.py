"""Training in several real processes: DDP, FSDP2, DTensors, ZeroRedundancyOptimizer."""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel

import gradstep
from rank_cases import (
    BATCH,
    CASES,
    SHAPES,
    Case,
    Sums,
    backward,
    batch,
    give_gradients,
    train,
    whole,
)
from ranks import run_ranks

STEPS = 6
each_case = pytest.mark.parametrize("case", CASES, ids=str)
few_cases = pytest.mark.parametrize(
    "case", [c for c in CASES if c.name in ("AdamW", "NAdam")], ids=str
)


def alone(case: Case) -> list[Any]:
    """The weights that one process reaches."""
    model = Sums()
    train(case.ours(model.parameters()), model, range(STEPS))
    return whole(model.parameters())


def assert_same_bits(found: list[Any], expected: list[Any]) -> None:
    for name, a, b in zip(SHAPES, found, expected, strict=True):
        assert a.tobytes() == b.tobytes(), f"{name}: {a} is not {b}"


def bound(weight: Any) -> float:
    """8 eps of the largest weight."""
    return float(8 * numpy.finfo(weight.dtype).eps * abs(weight).max())


def share(step: int, rank: int, count: int) -> torch.Tensor:
    """A process's samples of the global batch."""
    size = BATCH // count
    return batch(step)[rank * size : (rank + 1) * size]


# DDP.


def ddp(rank: int, case: Case) -> list[list[Any]]:
    """The weights after some steps by our class and, in the same set-up, by torch's."""
    reached = []
    for make in (case.ours, case.theirs)[: 1 + case.in_torch]:
        model = DistributedDataParallel(Sums())
        optimizer = make(model.parameters())
        for step in range(STEPS):
            optimizer.zero_grad()
            backward(model, share(step, rank, 2))
            optimizer.step()
        if make == case.ours and case.elementwise:
            assert set(optimizer.engines_used().values()) == {"fused"}
        reached.append(whole(model.parameters()))
    return reached


@each_case
def test_ddp_reaches_what_one_process_does(case: Case) -> None:
    (ours, *theirs), (ours_there, *_) = run_ranks(ddp, 2, case)
    assert_same_bits(ours, ours_there)
    assert_same_bits(ours, alone(case))
    for w, v in zip(ours, theirs[0] if theirs else ours, strict=True):
        numpy.testing.assert_allclose(w, v, rtol=0, atol=bound(v))


def ddp_rows(rank: int, name: str, options: dict[str, Any]) -> list[Any]:
    """An embedding with sparse gradients: the weights by our class, and by torch's."""
    reached = []
    for library in (gradstep, torch.optim):
        torch.manual_seed(1)
        model = DistributedDataParallel(nn.Embedding(20, 3, sparse=True))
        optimizer = getattr(library, name)(model.parameters(), **options)
        for step in range(STEPS):
            optimizer.zero_grad()
            rows = torch.tensor([step, 3 + 2 * rank, 3])  # one that both name, and twice
            model(rows).square().sum().backward()
            optimizer.step()
        reached += whole(model.parameters())
    return reached


@pytest.mark.parametrize(
    ("name", "options"),
    [("SparseAdam", {"lr": 0.01}), ("SGD", {"lr": 0.1}), ("Adagrad", {"lr": 0.1})],
)
def test_ddp_with_sparse_gradients_reaches_what_torch_does(
    name: str, options: dict[str, Any]
) -> None:
    (ours, theirs), (ours_there, _) = run_ranks(ddp_rows, 2, name, options)
    assert ours.tobytes() == ours_there.tobytes()
    # The gradients follow the weights here, and hand on what rounding there is.
    numpy.testing.assert_allclose(ours, theirs, rtol=0, atol=4 * bound(theirs))


# FSDP2 and DTensors.


def fsdp(rank: int, count: int, case: Case) -> list[Any]:
    model = Sums()
    fully_shard(model, mesh=init_device_mesh("cpu", (count,)))
    empty = {n for n, p in model.named_parameters() if p.to_local().numel() == 0}
    assert empty == ({"row", "single"} if rank else set())
    optimizer = case.ours(model.named_parameters())
    for step in range(STEPS):
        optimizer.zero_grad()
        backward(model, share(step, rank, count))
        with CommDebugMode() as communication:
            optimizer.step()
        if case.elementwise:
            assert communication.get_total_counts() == 0
            assert optimizer.engines_used() == dict.fromkeys(SHAPES, "fused")
    return whole(model.parameters())


@each_case
def test_fully_sharded_it_reaches_what_one_process_does(case: Case) -> None:
    for reached in run_ranks(fsdp, 2, 2, case):
        assert_same_bits(reached, alone(case))


def dtensors(rank: int, count: int, split: int | None, case: Case) -> list[Any]:
    model = Sums()
    mesh = init_device_mesh("cpu", (count,))
    for name, weight in list(model.named_parameters()):
        placement = Replicate() if split is None else Shard(min(split, weight.dim() - 1))
        distributed = distribute_tensor(weight.detach(), mesh, [placement])
        setattr(model, name, nn.Parameter(distributed))
    optimizer = case.ours(model.named_parameters())
    for step in range(STEPS):
        give_gradients(model, step)
        with CommDebugMode() as communication:
            optimizer.step()
        if case.elementwise:
            assert communication.get_total_counts() == 0
            assert optimizer.engines_used() == dict.fromkeys(SHAPES, "fused")
    for weight, states in optimizer.state.items():
        assert all(
            isinstance(s, DTensor) and s.placements == weight.placements
            for n, s in states.items()
            if case.elementwise and n not in ("step", "mu_product", "eta", "mu")
        )
    return whole(model.parameters())


@each_case
@pytest.mark.parametrize("split", [None, 0, 1], ids=["replicated", "rows", "columns"])
def test_dtensors_reach_what_plain_tensors_do(case: Case, split: int | None) -> None:
    expected = alone(case)
    for reached in run_ranks(dtensors, 3, 3, split, case):
        assert_same_bits(reached, expected)


def step_alone(rank: int, case: Case) -> None:
    model = Sums()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = case.ours(model.named_parameters())
    give_gradients(model, 0)
    if rank == 0:
        for _ in range(3):
            optimizer.step()


@pytest.mark.parametrize("case", [c for c in CASES if c.elementwise], ids=str)
def test_a_step_waits_for_nobody(case: Case) -> None:
    """The other process has left the group, or is about to: any communication would fail."""
    run_ranks(step_alone, 2, case, patience=5.0)


def on_a_mesh(rank: int, kind: str, case: Case) -> list[Any]:
    """Four processes in two dimensions."""
    model = Sums()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
    if kind == "replicated and sharded":
        fully_shard(model, mesh=mesh)
    else:
        for name, weight in list(model.named_parameters()):
            placement = Shard(1) if weight.dim() > 1 else Replicate()
            parts = distribute_tensor(weight.detach(), mesh["inner"], [placement])
            setattr(model, name, nn.Parameter(parts))
        fully_shard(model, mesh=mesh["outer"])
    optimizer = case.ours(model.named_parameters())
    for step in range(STEPS):
        give_gradients(model, step)
        with CommDebugMode() as communication:
            optimizer.step()
        assert communication.get_total_counts() == 0
        assert optimizer.engines_used() == dict.fromkeys(SHAPES, "fused")
    return whole(model.parameters())


@few_cases
@pytest.mark.parametrize("kind", ["replicated and sharded", "sharded twice"])
def test_meshes_of_two_dimensions(case: Case, kind: str) -> None:
    for reached in run_ranks(on_a_mesh, 4, kind, case):
        assert_same_bits(reached, alone(case))


def otherwise_split(rank: int, case: Case) -> tuple[list[Any], list[str]]:
    """Gradients that are not split as their weights are, and a plain weight among DTensors."""
    model = Sums()
    mesh = init_device_mesh("cpu", (2,))
    placements = {"matrix": Shard(0), "row": Shard(1), "vector": Replicate()}
    for name, placement in placements.items():
        weight = getattr(model, name).detach()
        setattr(model, name, nn.Parameter(distribute_tensor(weight, mesh, [placement])))
    optimizer = case.ours(model.named_parameters())
    for step in range(STEPS):
        give_gradients(model, step)
        model.matrix.grad = model.matrix.grad.redistribute(mesh, [Replicate()])
        model.vector.grad = model.vector.grad.redistribute(mesh, [Shard(0)])
        optimizer.step()
    used = optimizer.engines_used()
    return whole(model.parameters()), [used[name] for name in SHAPES]


@few_cases
def test_a_gradient_that_is_split_otherwise_is_brought_into_line(case: Case) -> None:
    expected = alone(case)
    for reached, engines in run_ranks(otherwise_split, 2, case):
        assert engines == ["eager", "fused", "eager", "fused"]
        for w, v in zip(reached, expected, strict=True):
            # The eager engine is torch's arithmetic, which rounds here and there otherwise.
            numpy.testing.assert_allclose(w, v, rtol=0, atol=bound(v))


# ZeroRedundancyOptimizer.


def zero(rank: int, as_views: bool, case: Case) -> tuple[list[Any], Any]:
    model = DistributedDataParallel(Sums(), gradient_as_bucket_view=as_views)
    optimizer = ZeroRedundancyOptimizer(
        model.parameters(),
        optimizer_class=getattr(gradstep, case.name),
        parameters_as_bucket_view=as_views,
        **case.options,
    )
    for step in range(STEPS):
        optimizer.zero_grad()
        backward(model, share(step, rank, 2))
        optimizer.step()
        if step == STEPS // 2:  # through a checkpoint and back
            optimizer.consolidate_state_dict(to=0)
            saved = [optimizer.state_dict() if rank == 0 else None]
            dist.broadcast_object_list(saved)
            optimizer.load_state_dict(saved[0])
    optimizer.consolidate_state_dict(to=0)
    held = len(optimizer.optim.state)
    assert held < len(SHAPES), "each rank holds the states of its own share only"
    state = None
    if rank == 0:
        content = optimizer.state_dict()
        state = [
            {k: torch.as_tensor(v).numpy().copy() for k, v in content["state"].get(i, {}).items()}
            for i in range(len(SHAPES))
        ]
    return whole(model.parameters()), state


@each_case
@pytest.mark.parametrize("as_views", [False, True], ids=["own memory", "bucket views"])
def test_zero_redundancy_reaches_what_one_process_does(case: Case, as_views: bool) -> None:
    model = Sums()
    single = case.ours(model.parameters())
    train(single, model, range(STEPS))
    (weights, state), (there, _) = run_ranks(zero, 2, as_views, case)
    assert_same_bits(weights, whole(model.parameters()))
    assert_same_bits(there, weights)
    expected = single.state_dict()["state"]
    for index in range(len(SHAPES)):
        own = expected.get(index, {})
        assert state[index].keys() == own.keys()
        for name, value in own.items():
            assert state[index][name].tobytes() == value.numpy().tobytes(), name


# Processes that do not agree on what they train.


class Ragged(Sums):
    """A model with one more weight."""

    def __init__(self) -> None:
        super().__init__()
        self.added = nn.Parameter(torch.ones(3))
        self.uses_it = True

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        scores = super().forward(samples)
        return scores + self.added.sum() if self.uses_it else scores


def disagree(rank: int, way: str) -> tuple[str, list[Any]]:
    """What becomes of a process whose weights, or gradients, are not those of the other."""
    model: Any = Ragged() if rank == 0 or "gradient" in way else Sums()
    if "gradient" in way:
        model.uses_it = rank == 0
    make: Any = gradstep.AdamW
    try:
        if way.startswith("FSDP2"):
            fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
        elif way.startswith("DDP"):
            found = way.endswith("looked for")
            model = DistributedDataParallel(model, find_unused_parameters=found)
        else:
            make = functools.partial(ZeroRedundancyOptimizer, optimizer_class=make)
        optimizer = make(model.parameters(), lr=0.01)
        for step in range(3):
            optimizer.zero_grad()
            backward(model, share(step, rank, 2))
            optimizer.step()
    except RuntimeError as error:
        return f"error: {error}", []
    return "trained", whole(model.parameters())


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("DDP, another weight", "expects same model across all ranks"),
        ("DDP, a gradient on one rank", "Expected to have finished reduction"),
        ("ZeRO, another weight", "Timed out|closed by peer|reset by peer"),
    ],
)
def test_processes_that_disagree_get_an_error_and_do_not_hang(way: str, message: str) -> None:
    outcomes = [outcome for outcome, _ in run_ranks(disagree, 2, way, timeout=300.0, patience=8.0)]
    assert all(outcome.startswith("error: ") for outcome in outcomes), outcomes
    assert any(re.search(message, outcome) for outcome in outcomes), outcomes


@pytest.mark.parametrize("way", ["FSDP2, another weight", "FSDP2, a gradient on one rank"])
def test_fully_sharded_processes_that_disagree_end(way: str) -> None:
    """gloo aborts one of the processes, which ends the other's wait: nobody hangs."""
    try:
        outcomes = run_ranks(disagree, 2, way, timeout=300.0, patience=8.0)
    except AssertionError as failure:
        assert "died with exit code" in str(failure)
        assert "did not end" not in str(failure)
    else:
        assert all(outcome.startswith("error: ") for outcome, _ in outcomes), outcomes


def test_a_gradient_that_one_process_lacks_is_shared_if_ddp_looks_for_it() -> None:
    way = "DDP, a gradient on one rank, looked for"
    (outcome, weights), (there, weights_there) = run_ranks(disagree, 2, way)
    assert outcome == there == "trained"
    for w, v in zip(weights, weights_there, strict=True):
        assert w.tobytes() == v.tobytes()
    assert (weights[-1] != 1.0).all()
