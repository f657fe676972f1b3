"""Matrix rules on weights that are split among processes: each matrix has one owner.

What many processes reach is what one does, in bits where the arithmetic is the same; the work is
shared out evenly, and no more is sent than there and back.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.utils.flop_counter import FlopCounterMode

import gradstep
from gradstep.backends.owners import divide
from gradstep.backends.sharing import traffic
from gradstep.optimizer.optimizer import planner_of
from ranks import run_ranks

#: Of which two and four processes get shares of unequal size, among them empty ones.
SHAPES = {
    "attention": (24, 8), "out": (8, 8), "up": (32, 8), "down": (8, 32), "odd": (5, 7),
    "short": (1, 6), "other attention": (24, 8), "other up": (32, 8), "other down": (8, 32),
    "experts": (4, 6, 10),
}  # fmt: skip
STEPS = 3


class Matrices(nn.Module):
    """Weights alone: gradients are given."""

    def __init__(self, shapes: dict[str, tuple[int, ...]] = SHAPES) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape, generator=generator)))


def give_gradients(model: nn.Module, step: int) -> None:
    for place, weight in enumerate(model.parameters()):
        generator = torch.Generator().manual_seed(100 * step + place)
        gradient = torch.randn(tuple(weight.shape), generator=generator)
        if isinstance(weight, DTensor):
            gradient = distribute_tensor(gradient, weight.device_mesh, weight.placements)
        weight.grad = gradient


def rule_for(name: str) -> Any:
    if name == "muon":
        return gradstep.muon(precision="float32")
    if name == "muon in bfloat16":
        return gradstep.muon()
    if name == "soap":
        return gradstep.soap(precondition_frequency=2)
    if name == "soap in turn":
        return gradstep.soap(precondition_frequency=2, in_turn=True)
    if name in ("shampoo", "kron", "galore", "apollo"):
        return getattr(gradstep, name)()
    if name == "clipped":
        return gradstep.chain(gradstep.clip_by_global_norm(1.0), gradstep.muon(precision="float32"))
    assert name == "with a norm"  # a reduction behind the function: DTensors all the way
    return gradstep.chain(gradstep.adam(), gradstep.orthogonalize(), gradstep.normalize())


def optimizer_for(name: str, model: nn.Module, **more: Any) -> gradstep.Optimizer:
    return gradstep.Optimizer(model.named_parameters(), rule_for(name), lr=0.1, **more)


def whole(model: nn.Module) -> list[Any]:
    tensors = (getattr(p, "full_tensor", lambda p=p: p)() for p in model.parameters())
    return [t.detach().numpy().copy() for t in tensors]


def alone(name: str, steps: int = STEPS) -> list[Any]:
    model = Matrices()
    optimizer = optimizer_for(name, model, engine="eager")
    for step in range(steps):
        give_gradients(model, step)
        optimizer.step()
    return whole(model)


def lay_out(model: nn.Module, way: str) -> None:
    """Split the weights among two or four processes."""
    if way in ("FSDP2", "four", "one"):
        fully_shard(model, mesh=init_device_mesh("cpu", (WAYS[way],)))
        return
    if way == "HSDP":
        fully_shard(model, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("r", "s")))
        return
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
    for name, weight in list(model.named_parameters()):
        if name == "experts":  # on a mesh of their own
            placed = distribute_tensor(weight.detach(), mesh["inner"], [Shard(0)])
        elif name == "odd":
            placed = distribute_tensor(weight.detach(), mesh["outer"], [Replicate()])
        else:
            placed = distribute_tensor(weight.detach(), mesh["inner"], [Shard(1)])
        setattr(model, name, nn.Parameter(placed))
    if way == "tensor parallel, sharded":
        fully_shard(model, mesh=mesh["outer"])


QUICK = [("FSDP2", "clipped"), ("FSDP2", "with a norm")]
SPLIT = ["FSDP2", "four", "HSDP", "tensor parallel"]
WAYS = {"one": 1, "FSDP2": 2, "four": 4, "HSDP": 4, "tensor parallel": 4}


def shared(rank: int, way: str, name: str) -> tuple[list[Any], int, float]:
    model = Matrices()
    lay_out(model, way)
    optimizer = optimizer_for(name, model)
    sent, flops = traffic.bytes_sent, 0.0
    for step in range(STEPS):
        give_gradients(model, step)
        with FlopCounterMode(display=False) as counter:
            optimizer.step()
        flops += counter.get_total_flops()
    assert not set(optimizer.engines_used().values()) - {"eager"}
    return whole(model), traffic.bytes_sent - sent, flops


def operations_alone(name: str = "muon") -> float:
    """The floating-point operations of all matrix functions in one process."""
    with FlopCounterMode(display=False) as counter:
        alone(name)
    return float(counter.get_total_flops())


@pytest.mark.parametrize(
    "way",
    [pytest.param(w, marks=[] if w in ("FSDP2", "HSDP") else pytest.mark.deep) for w in SPLIT],
)
def test_the_work_is_shared_out_and_the_outcome_is_that_of_one_process(way: str) -> None:
    """To the last bit: the owner calls the function as the eager engine does."""
    expected = alone("muon")
    answers = run_ranks(shared, WAYS[way], way, "muon")
    for reached, _, _ in answers:
        for name, a, b in zip(SHAPES, reached, expected, strict=True):
            assert a.tobytes() == b.tobytes(), name
    # Those who hold a weight: with tensor parallelism alone, twice two. Experts are not worked on
    # by those who have other ones, and by all who have the same.
    holders = 2 if way == "tensor parallel" else WAYS[way]
    twice = 4 * 6 * 10 * (4 * 6 + 2 * 36 / 10) * 5 * STEPS if way == "HSDP" else 0.0
    for _, _, operations in answers:
        assert operations <= 1.15 * (operations_alone() + twice) / holders
    split = [w for n, w in zip(SHAPES, expected, strict=True) if n != "experts"]
    copies = {"HSDP": 2, "tensor parallel": 2}.get(way, 1)
    sent = sum(each for _, each, _ in answers)
    assert 0 < sent <= 2 * STEPS * copies * sum(w.nbytes for w in split)


def test_what_is_rounded_first_travels_so() -> None:
    """torch's Muon begins and ends with bfloat16: half of the bytes, and no other bits."""
    expected = alone("muon in bfloat16")
    narrow, wide = (run_ranks(shared, 2, "FSDP2", n) for n in ("muon in bfloat16", "muon"))
    for (reached, sent, _), (_, twice, _) in zip(narrow, wide, strict=True):
        assert 0 < 2 * sent == twice
        for a, b in zip(reached, expected, strict=True):
            assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize(
    ("way", "name"),
    [
        pytest.param(way, name, marks=[] if (way, name) in QUICK else pytest.mark.deep)
        for way in SPLIT
        for name in ("clipped", "with a norm")
    ],
)
def test_rules_that_also_sum_reach_what_one_process_does(way: str, name: str) -> None:
    expected = alone(name)
    for reached, *_ in run_ranks(shared, WAYS[way], way, name):
        for a, b in zip(reached, expected, strict=True):
            numpy.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * abs(b).max())


KEEPING = [
    "soap in turn",
    pytest.param("soap", marks=pytest.mark.deep),
    pytest.param("shampoo", marks=pytest.mark.deep),
    pytest.param("kron", marks=pytest.mark.deep),
]


def keeping(rank: int, way: str, name: str) -> tuple[list[Any], float, int, int, list[Any]]:
    """What is reached, the operations, elements of matrices held here and in all; a checkpoint."""
    model = Matrices()
    lay_out(model, way)
    optimizer = optimizer_for(name, model)
    flops = 0.0
    for step in range(STEPS):
        give_gradients(model, step)
        with FlopCounterMode(display=False) as counter:
            optimizer.step()
        flops += counter.get_total_flops()
    names = [n for n, s in planner_of(optimizer).rule.states.items() if s.shape == "own"]
    held = [e[n] for e in optimizer.state.values() for n in names if n in e]
    options = StateDictOptions(full_state_dict=True)
    saved = get_optimizer_state_dict(model, optimizer, options=options)
    states = saved["state"]["up"] if rank == 0 else {}
    full = [states[n].numpy().copy() for n in names if n in states]
    here = sum(t.to_local().numel() for t in held)
    return whole(model), flops, here, sum(t.numel() for t in held), full


@pytest.mark.parametrize("name", KEEPING)
@pytest.mark.parametrize("way", ["FSDP2", pytest.param("HSDP", marks=pytest.mark.deep)])
def test_matrices_that_are_kept_live_with_one_process_alone(way: str, name: str) -> None:
    """And what two and four reach is what one does, to the last bit."""
    ((expected, in_all, _, elements, kept),) = run_ranks(keeping, 1, "one", name)
    answers = run_ranks(keeping, WAYS[way], way, name)
    for reached, operations, _, _, _ in answers:
        for weight, a, b in zip(SHAPES, reached, expected, strict=True):
            assert a.tobytes() == b.tobytes(), weight
        assert operations <= 1.15 * in_all / WAYS[way]
    assert sum(here for _, _, here, _, _ in answers) == elements
    # A full state dict has them whole, with the first process.
    assert len(kept) == len(answers[0][4]) > 0
    for a, b in zip(answers[0][4], kept, strict=True):
        assert a.tobytes() == b.tobytes()
    # The one process's steps are those of the eager engine, but for roundings.
    for a, b in zip(expected, alone(name), strict=True):
        numpy.testing.assert_allclose(a, b, rtol=0, atol=1e-3 * abs(b).max())


def experts_alone(rank: int) -> int:
    model = Matrices({"experts": (4, 6, 10), "more experts": (2, 3, 8, 4)})
    mesh = init_device_mesh("cpu", (2,))
    for name, weight in list(model.named_parameters()):
        placed = distribute_tensor(weight.detach(), mesh, [Shard(weight.dim() - 3)])
        setattr(model, name, nn.Parameter(placed))
    optimizer = gradstep.Muon(model.named_parameters(), lr=0.1, flatten=False)
    sent = traffic.bytes_sent
    give_gradients(model, 0)
    optimizer.step()
    return traffic.bytes_sent - sent


def test_experts_that_are_split_one_from_another_do_not_travel() -> None:
    assert run_ranks(experts_alone, 2) == [0, 0]


def replicated(rank: int) -> tuple[int, list[Any], float]:
    shapes = {"large": (64, 96), "as large": (96, 64), "small": (8, 12)}
    model = Matrices(shapes)
    mesh = init_device_mesh("cpu", (2,))
    for name, weight in list(model.named_parameters()):
        setattr(model, name, nn.Parameter(distribute_tensor(weight.detach(), mesh, [Replicate()])))
    optimizer = optimizer_for("muon", model)
    sent, done = traffic.bytes_sent, traffic.calls
    give_gradients(model, 0)
    optimizer.step()
    return traffic.bytes_sent - sent, whole(model), traffic.calls - done


def test_of_what_all_have_whole_one_works_out_the_large_and_tells_the_others() -> None:
    (sent, weights, calls), (also_sent, others, other_calls) = run_ranks(replicated, 2)
    assert sent == also_sent == 64 * 96 * 4
    assert calls == other_calls == 2  # one of its own, and the small one
    for a, b in zip(weights, others, strict=True):
        assert a.tobytes() == b.tobytes()


def under_ddp(rank: int, engine: str, name: str, shared: bool) -> Any:
    """Three steps of real DDP; what was sent, the calls of functions, the weights, the states."""
    torch.manual_seed(0)
    layers = [nn.Linear(96, 64), nn.Linear(64, 96), nn.Linear(96, 96), nn.Linear(96, 8)]
    model = nn.parallel.DistributedDataParallel(nn.Sequential(*layers))
    rules = {"matrices": rule_for(name), "rest": gradstep.adam()}
    optimizer = gradstep.partition(rules, model, lr=0.01, engine=engine)
    if shared:
        gradstep.share_out(optimizer)
    sent, done = traffic.bytes_sent, traffic.calls
    explained = None
    for step in range(STEPS):
        if step == 1 and rank == 0:  # a look at a step asks no others
            explained = gradstep.explain(optimizer, next(iter(model.parameters())), "largest")
        optimizer.zero_grad()
        generator = torch.Generator().manual_seed(10 * step + rank)
        model(torch.randn(16, 96, generator=generator)).square().mean().backward()
        optimizer.step()
    saved: list[Any] = []
    if rank == 0:  # alone: nobody else is asked
        assert "newton_schulz" in str(explained) or name != "muon"
        entries = optimizer.state_dict()["state"].values()
        saved = [v.numpy().copy() for entry in entries for v in entry.values()]
    return traffic.bytes_sent - sent, traffic.calls - done, whole(model), saved


@pytest.mark.parametrize(
    ("engine", "name"),
    [
        ("auto", "muon"),
        pytest.param("eager", "muon", marks=pytest.mark.deep),
        pytest.param("auto", "clipped", marks=pytest.mark.deep),
        pytest.param("auto", "soap", marks=pytest.mark.deep),
        pytest.param("eager", "with a norm", marks=pytest.mark.deep),
        pytest.param("auto", "with a norm", marks=pytest.mark.deep),
    ],
)
def test_under_ddp_each_works_out_a_part_and_all_have_the_bits_of_doing_all(
    engine: str, name: str
) -> None:
    each_alone = run_ranks(under_ddp, 2, engine, name, False)
    together = run_ranks(under_ddp, 2, engine, name, True)
    made = list(zip(together[0][3], each_alone[0][3], strict=True))
    for _, _, weights, _ in together:
        made += zip(weights, each_alone[0][2], strict=True)
    for a, b in made:
        if engine == "eager":  # whose roundings are others where it waits
            numpy.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * abs(b).max())
        else:
            assert a.tobytes() == b.tobytes()
    (sent, calls, *_), (also_sent, other_calls, *_) = together
    if name == "soap":  # states of a shape of their own are made anew in each process
        assert sent == also_sent == 0
        return
    # 96 x 64, 64 x 96 and 96 x 96: the largest is as much work as half of all, or nearly so.
    assert calls + other_calls == 3 * STEPS and min(calls, other_calls) >= STEPS
    item = 2 if name == "with a norm" else 4  # which rounds to bfloat16 first
    assert sent + also_sent == STEPS * item * (2 * 64 * 96 + 96 * 96)


def what_share_out_refuses(rank: int) -> list[str]:
    model = Matrices({"w": (64, 64)})
    said: list[str] = []
    mesh = init_device_mesh("cpu", (2,))
    with pytest.raises(TypeError) as unknown:
        gradstep.share_out(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError) as elsewhere:
        gradstep.share_out(optimizer_for("muon", model), DeviceMesh("cpu", [1 - rank]))
    said += [str(unknown.value), str(elsewhere.value)]
    optimizer = optimizer_for("muon", model)
    gradstep.share_out(optimizer, mesh)
    if rank == 0:
        give_gradients(model, 0)
    with pytest.raises(RuntimeError) as error:
        optimizer.step()
    return [*said, str(error.value)]


def test_what_cannot_be_shared_out_is_said() -> None:
    for of_torch, elsewhere, without in run_ranks(what_share_out_refuses, 2):
        assert "SGD of torch has no rule" in of_torch
        assert "is not in the mesh [" in elsewhere
        assert "do not have gradients for the same weights" in without
    with pytest.raises(RuntimeError, match="init_process_group"):
        gradstep.share_out(optimizer_for("muon", Matrices({"w": (4, 4)})))


def test_work_goes_to_who_has_least() -> None:
    loads = [0.0, 0.0, 0.0]
    assert divide([1, 5, 3, 3, 1], loads) == [1, 0, 1, 2, 2]
    assert loads == [1.0, 0.0, 0.0]
    assert divide([2], loads) == [1]  # what one had more is remembered


# What goes wrong.


@gradstep.opaque
def refusing(x: Tensor, most: float) -> Tensor:
    """What it was given, unless there is too much of it."""
    if float(x.abs().max()) > most:
        raise ArithmeticError(f"more than {most:g}")
    return x


@gradstep.opaque(stack=lambda shape: 1)
def refusing_experts(x: Tensor, most: float) -> Tensor:
    """The same of the first dimension's matrices, each as if it were alone."""
    if float(x.abs().max()) > most:
        raise ArithmeticError(f"more than {most:g}")
    return x


def fails(rank: int, experts: bool) -> tuple[str, bool]:
    """The function fails for one weight, with its owner, or with who has that expert."""
    model = Matrices({"first": (4, 4), "second": (4, 4), "third": (4, 4)})
    if experts:
        mesh = init_device_mesh("cpu", (2,))
        for name, weight in list(
            Matrices({"first": (4, 3, 3), "second": (4, 3, 3)}).named_parameters()
        ):
            setattr(model, name, nn.Parameter(distribute_tensor(weight.detach(), mesh, [Shard(0)])))
        del model.third
    else:
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    function = refusing_experts if experts else refusing

    def direction(g: Any, momentum_buffer: Any, *, most: float = 2.0) -> Any:
        momentum_buffer = momentum_buffer + g
        return function(momentum_buffer, most), momentum_buffer

    optimizer = gradstep.Optimizer(model.named_parameters(), gradstep.rule(direction), lr=0.1)
    before = whole(model)
    for name, weight in model.named_parameters():
        high = name == "second" and (not experts or rank == 1)
        weight.grad = torch.ones_like(weight)
        weight.grad.to_local().fill_(3.0 if high else 1.0)
    message = ""
    try:
        optimizer.step()
    except (ArithmeticError, RuntimeError) as error:
        message = f"{type(error).__name__}: {error}"
    same = all((a == b).all() for a, b in zip(before, whole(model), strict=True))
    states = [e["momentum_buffer"] for e in optimizer.state.values()]
    return message, same and all(bool((s.to_local() == 0).all()) for s in states)


@pytest.mark.parametrize("experts", [False, True], ids=["with an owner", "with its expert"])
def test_a_function_that_fails_stops_all_and_nothing_is_changed(experts: bool) -> None:
    answers = run_ranks(fails, 2, experts)
    assert all(untouched for _, untouched in answers)
    (first,) = [m for m, _ in answers if not m.startswith("RuntimeError: process")]
    (other,) = [m for m, _ in answers if m.startswith("RuntimeError: process")]
    assert "more than 2" in first
    # Two experts of one shape are called together.
    name = "refusing_experts of first, second" if experts else "refusing of second"
    assert f"could not make its part of the step: {name}: more than 2" in other


def dies(rank: int, folder: str) -> str:
    model = Matrices({"first": (8, 8), "second": (8, 8)})
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = optimizer_for("muon", model)
    give_gradients(model, 0)
    optimizer.step()
    weights, states = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": states}, checkpoint_id=folder)
    give_gradients(model, 1)
    if rank == 1:
        Path(folder, "dead").touch()
        os._exit(0)
    try:
        optimizer.step()
    except RuntimeError as error:
        Path(folder, "said").write_text(str(error))
    return ""


def test_where_a_process_dies_the_others_hear_of_it(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="died with exit code"):
        run_ranks(dies, 2, str(tmp_path), patience=20.0)
    assert (tmp_path / "dead").exists()
    deadline = 0
    while not (tmp_path / "said").exists() and deadline < 600:
        deadline += 1
        threading.Event().wait(0.1)
    assert (tmp_path / "said").read_text()
    assert (tmp_path / ".metadata").exists()  # the checkpoint is whole


# Checkpoints.


def half(rank: int, folder: str, name: str) -> None:
    model = Matrices()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = optimizer_for(name, model)
    for step in range(2):
        give_gradients(model, step)
        optimizer.step()
    weights, states = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": states}, checkpoint_id=folder)


def rest(rank: int, count: int, folder: str, name: str) -> list[Any]:
    model = Matrices()
    fully_shard(model, mesh=init_device_mesh("cpu", (count,)))
    optimizer = optimizer_for(name, model)
    weights, states = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": states}, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=states)
    for step in range(2, 4):
        give_gradients(model, step)
        optimizer.step()
    return whole(model)


def through(rank: int, name: str) -> list[Any]:
    """One process, without a checkpoint."""
    model = Matrices()
    lay_out(model, "one")
    optimizer = optimizer_for(name, model)
    for step in range(4):
        give_gradients(model, step)
        optimizer.step()
    return whole(model)


@pytest.mark.parametrize("name", [pytest.param("muon", marks=pytest.mark.deep), "soap"])
def test_a_checkpoint_goes_on_with_another_number_of_processes(tmp_path: Path, name: str) -> None:
    run_ranks(half, 2, str(tmp_path), name)
    (expected,) = run_ranks(through, 1, name)
    for reached in run_ranks(rest, 3, 3, str(tmp_path), name):
        for weight, a, b in zip(SHAPES, reached, expected, strict=True):
            assert a.tobytes() == b.tobytes(), weight


# The page.


PAGE = Path(__file__).parent.parent / "docs" / "scale.md"


def from_the_page(rank: int) -> tuple[int, int, int]:
    """How many weights were trained by the page's two functions, and the second's calls."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    names: dict[str, Any] = {"__name__": "docs_scale"}
    exec(compile("\n".join(blocks), str(PAGE), "exec"), names)
    split = len(names["train"]().engines_used())
    before = traffic.calls
    return split, len(names["train_with_ddp"]().engines_used()), traffic.calls - before


def test_what_the_page_shows_trains() -> None:
    (split, with_ddp, calls), (_, _, others) = run_ranks(from_the_page, 2)
    assert (split, with_ddp) == (4, 6)
    assert calls == others == 2  # of two hidden matrices one each, in two steps


def test_the_table_of_the_page_is_what_its_command_makes() -> None:
    command = Path(__file__).parent.parent / "examples" / "scale.py"
    made = subprocess.run(
        [sys.executable, str(command)], capture_output=True, text=True, check=True
    )
    assert made.stdout in PAGE.read_text()
