"""Steps on the CPU for weights elsewhere, and states in files: the bits of ordinary steps.

The weights are on the CPU here, and travel to copies that are there as well: what is asked of the
logic needs no accelerator. What only one can show is in ``gpu/``.
"""

from __future__ import annotations

import copy
import io
import pickle
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import gradstep
from ranks import FORKS, run_ranks


class Travelling(gradstep.Offload):
    """Also copies the weights that are on the CPU."""

    def _travels(self, p: Tensor) -> bool:
        return p.numel() >= self.smallest


def model() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 3)
    )


def loss_of(network: nn.Module, step: int) -> Tensor:
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
    return network(x).square().mean()


def learn(network: nn.Module, optimizer: Any, steps: range = range(5)) -> None:
    for step in steps:
        loss_of(network, step).backward()
        optimizer.step()
        optimizer.zero_grad()


def adamw(network: nn.Module) -> gradstep.Optimizer:
    return gradstep.AdamW(network.named_parameters(), lr=0.05)


def rule(made: Any, **options: Any) -> Callable[[nn.Module], gradstep.Optimizer]:
    return lambda m: gradstep.Optimizer(m.named_parameters(), made, **options)


OPTIMIZERS: dict[str, Callable[[nn.Module], Any]] = {
    "AdamW": adamw,
    "SGD": lambda m: gradstep.SGD(m.parameters(), lr=0.1, momentum=0.9, dampening=0.5),
    "Adafactor": lambda m: gradstep.Adafactor(m.named_parameters(), lr=0.05),
    "Prodigy": lambda m: gradstep.Prodigy(m.named_parameters()),
    "a global norm": rule(
        gradstep.chain(gradstep.clip_by_global_norm(0.1), gradstep.adam()), lr=0.05
    ),
    "GaLore, eager": lambda m: gradstep.GaLore(m.named_parameters(), rank=2, engine="eager"),
    "Schedule-Free": lambda m: gradstep.AdamWScheduleFree(m.named_parameters(), lr=0.05),
    "states in bfloat16": lambda m: gradstep.AdamW(m.named_parameters(), state_dtype="bfloat16"),
    "a schedule": lambda m: gradstep.AdamW(
        m.named_parameters(), lr=gradstep.schedule.cosine(0.1, 10)
    ),
    "groups": lambda m: gradstep.for_model(m, gradstep.AdamW, lr=0.05, weight_decay=0.1),
    "a partition": lambda m: gradstep.partition(
        {"matrices": gradstep.muon(), "rest": gradstep.adam()}, m, lr=0.05
    ),
    "EMA": lambda m: gradstep.EMA(adamw(m), decay=0.75),
    "Freeze": lambda m: gradstep.Freeze(adamw(m), "0.*"),
    "Accumulate": lambda m: gradstep.Accumulate(adamw(m), 3),
    "SkipNonFinite": lambda m: gradstep.SkipNonFinite(adamw(m)),
    "GradientNoise": lambda m: gradstep.GradientNoise(adamw(m), eta=0.1),
}
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)

#: How it is offloaded; small tensors stay where they are in most.
WAYS: dict[str, dict[str, Any]] = {
    "all": {"smallest": 0},
    "large ones": {"smallest": 20},
    "at the step": {"smallest": 20, "copy_in_backward": False},
    "freed": {"smallest": 20, "free_gradients": True},
}


def same(network: nn.Module, optimizer: Any, other: nn.Module, twin: Any) -> None:
    for a, b in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert set(optimizer.state.get(a, {})) == set(twin.state.get(b, {}))
        for key, state in optimizer.state.get(a, {}).items():
            assert torch.equal(state, twin.state[b][key])


def sees_gradients(name: str) -> bool:
    return name in ("Freeze", "Accumulate", "SkipNonFinite", "GradientNoise")


# The same as without.


@pytest.mark.parametrize("way", WAYS)
@every_optimizer
def test_the_bits_of_ordinary_steps(name: str, way: str) -> None:
    if way == "freed" and sees_gradients(name):
        pytest.skip("refused: it has to see the gradients")
    ordinary, network = model(), model()
    alone, optimizer = OPTIMIZERS[name](ordinary), OPTIMIZERS[name](network)
    optimizer = Travelling(optimizer, **WAYS[way])
    before = [p.detach().clone() for p in network.parameters()]
    params = list(network.parameters())
    for step in range(6):
        learn(ordinary, alone, range(step, step + 1))
        learn(network, optimizer, range(step, step + 1))
        same(ordinary, alone, network, optimizer)
        held = [p for group in optimizer.param_groups for p in group["params"]]
        assert {id(p) for p in held} == {id(p) for p in params}
    assert sum(not torch.equal(a, p) for a, p in zip(before, params, strict=True)) >= 3


@pytest.mark.parametrize("on_disk", [False, True])
@every_optimizer
def test_it_resumes_and_is_copied_bit_for_bit(name: str, on_disk: bool, tmp_path: Path) -> None:
    options: dict[str, Any] = {"smallest": 20, "states_in": tmp_path if on_disk else None}

    def offloaded(m: nn.Module) -> Any:
        return Travelling(OPTIMIZERS[name](m), **options)

    network = model()
    optimizer = offloaded(network)
    learn(network, optimizer)
    file = io.BytesIO()
    torch.save([network.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    weights, saved = torch.load(file)
    resumed_network, plain = model(), model()
    resumed_network.load_state_dict(weights)
    plain.load_state_dict(weights)
    resumed, ordinary = offloaded(resumed_network), OPTIMIZERS[name](plain)
    resumed.load_state_dict(saved)
    ordinary.load_state_dict(saved)  # the file is that of the optimizer inside
    others = [(resumed_network, resumed), (plain, ordinary)]
    if name != "Accumulate":  # the gradients of its round are not copied with a model
        others += [
            copy.deepcopy((network, optimizer)),
            pickle.loads(pickle.dumps((network, optimizer))),
        ]
    learn(network, optimizer, range(5, 10))
    for other, twin in others:
        learn(other, twin, range(5, 10))
        same(network, optimizer, other, twin)


#: Weights in bfloat16 as every ``low_precision`` has them, and states in every kind of format.
STORED: list[dict[str, Any]] = [
    *({"low_precision": kind} for kind in ("stochastic", "kahan", "remainder", "master")),
    *({"state_dtype": name} for name in ("int8", "dynamic8", "float8", "int4")),
    {"low_precision": "remainder", "state_dtype": "int8"},
]


@pytest.mark.parametrize("options", STORED, ids=str)
def test_formats_and_weights_of_16_bits(options: dict[str, Any], tmp_path: Path) -> None:
    found: list[Any] = []
    ways: list[Callable[[Any], Any]] = [
        lambda o: o,
        lambda o: Travelling(o, smallest=20),
        lambda o: gradstep.Offload(o, smallest=20, states_in=tmp_path),
    ]
    for around in ways:
        torch.manual_seed(1)
        network = nn.Sequential(nn.Linear(96, 96), nn.LayerNorm(96), nn.Linear(96, 96))
        network.to(torch.bfloat16 if "low_precision" in options else torch.float32)
        optimizer = around(gradstep.AdamW(network.parameters(), lr=0.01, **options))
        for step in range(4):
            x = torch.randn(8, 96, generator=torch.Generator().manual_seed(step))
            network(x.to(network[0].weight.dtype)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append((network, optimizer))
    same(*found[0], *found[1])
    same(*found[0], *found[2])


def test_what_moves_are_the_copies_and_all_else_stays() -> None:
    network = model()
    optimizer = Travelling(adamw(network), smallest=20)
    weight, bias = network[0].weight, network[0].bias
    states = []
    for _ in range(2):
        learn(network, optimizer, range(1))
        states.append({n: s.data_ptr() for n, s in optimizer.state[weight].items()})
        copied = optimizer._in_step(weight)
        assert copied is not weight and torch.equal(copied, weight)
        assert copied.data_ptr() != weight.data_ptr() and copied.grad is None
        assert optimizer._in_step(bias) is bias
    assert states[0] == states[1]


# Clipping and accumulation.


@pytest.mark.parametrize("way", WAYS)
def test_clipping_behind_backward(way: str) -> None:
    ordinary, network = model(), model()
    alone = adamw(ordinary)
    optimizer = Travelling(adamw(network), **WAYS[way])
    for step in range(4):
        loss_of(ordinary, step).backward()
        loss_of(network, step).backward()
        norm = torch.nn.utils.clip_grad_norm_(ordinary.parameters(), 0.01)
        if way == "freed":
            assert network[0].weight.grad is None
            mine = optimizer.clip_grad_norm_(0.01)
        else:
            mine = torch.nn.utils.clip_grad_norm_(network.parameters(), 0.01)
        assert 0.01 < float(norm) == pytest.approx(float(mine), rel=1e-6)
        alone.step()
        optimizer.step()
        alone.zero_grad()
        optimizer.zero_grad()
        if way == "freed":  # a norm of two norms is rounded otherwise
            for a, b in zip(ordinary.parameters(), network.parameters(), strict=True):
                assert torch.allclose(a, b, rtol=0, atol=1e-6)
        else:
            same(ordinary, alone, network, optimizer)


@pytest.mark.parametrize("way", WAYS)
def test_several_batches_a_step(way: str) -> None:
    ordinary, network = model(), model()
    alone = adamw(ordinary)
    optimizer = Travelling(adamw(network), **WAYS[way])
    for step in range(4):
        for batch in range(3):
            loss_of(ordinary, 3 * step + batch).backward()
            loss_of(network, 3 * step + batch).backward()
        alone.step()
        optimizer.step()
        alone.zero_grad()
        optimizer.zero_grad()
        same(ordinary, alone, network, optimizer)


@pytest.mark.parametrize("way", WAYS)
def test_gradients_that_are_cleared_make_no_step(way: str) -> None:
    network = model()
    optimizer = Travelling(adamw(network), **WAYS[way])
    before = [p.detach().clone() for p in network.parameters()]
    loss_of(network, 0).backward()
    optimizer.zero_grad()
    optimizer.step()
    assert all(map(torch.equal, network.parameters(), before)) and not optimizer.state


def test_gradients_that_somebody_replaces() -> None:
    ordinary, network = model(), model()
    alone, optimizer = adamw(ordinary), Travelling(adamw(network), smallest=0)
    for step in range(3):
        for each, its in ((ordinary, alone), (network, optimizer)):
            loss_of(each, step).backward()
            for p in each.parameters():
                p.grad = p.grad * 0.5
            its.step()
            its.zero_grad()
    same(ordinary, alone, network, optimizer)


def test_grad_scaler() -> None:
    ordinary, network = model(), model()
    alone, optimizer = adamw(ordinary), Travelling(adamw(network), smallest=20)
    for each, its in ((ordinary, alone), (network, optimizer)):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)  # the first steps overflow
        for step in range(30):
            scaler.scale(loss_of(each, step) * 1e30).backward()
            scaler.step(its)
            scaler.update()
            its.zero_grad()
    same(ordinary, alone, network, optimizer)
    assert 0 < optimizer.state[network[0].weight]["step"] < 30
    freed = Travelling(adamw(network), free_gradients=True, smallest=0)
    scaler.scale(loss_of(network, 0)).backward()
    with pytest.raises(RuntimeError, match="GradScaler finds no gradients with free_gradients"):
        scaler.step(freed)


def test_sam_and_closures() -> None:
    ordinary, network = model(), model()
    alone = gradstep.SAM(adamw(ordinary))
    optimizer = Travelling(gradstep.SAM(adamw(network)), smallest=20)
    for step in range(3):
        for each, its in ((ordinary, alone), (network, optimizer)):

            def closure(each: Any = each, its: Any = its, step: int = step) -> Tensor:
                its.zero_grad()
                loss = loss_of(each, step)
                loss.backward()
                return loss

            assert float(its.step(closure)) > 0
    same(ordinary, alone, network, optimizer)


def test_the_loss() -> None:
    ordinary, network = model(), model()
    alone = gradstep.Momo(ordinary.parameters())
    optimizer = Travelling(gradstep.Momo(network.parameters()), smallest=20)
    for step in range(3):
        for each, its in ((ordinary, alone), (network, optimizer)):
            loss = loss_of(each, step)
            loss.backward()
            its.step(lambda loss=loss: loss)
            its.zero_grad()
    same(ordinary, alone, network, optimizer)


# The world around.


def test_weights_that_somebody_writes() -> None:
    ordinary, network = model(), model()
    alone, optimizer = adamw(ordinary), Travelling(adamw(network), smallest=0)
    for step in range(4):
        learn(ordinary, alone, range(step, step + 1))
        learn(network, optimizer, range(step, step + 1))
        with torch.no_grad():
            for p in (*ordinary.parameters(), *network.parameters()):
                p.mul_(0.9)
    same(ordinary, alone, network, optimizer)


def test_averages() -> None:
    ordinary, network = model(), model()
    alone, inside = gradstep.EMA(adamw(ordinary)), gradstep.EMA(adamw(network))
    optimizer = Travelling(inside, smallest=0)
    for step in range(3):
        learn(ordinary, alone, range(step, step + 1))
        learn(network, optimizer, range(step, step + 1))
        with alone.averages(), inside.averages():
            assert all(map(torch.equal, ordinary.parameters(), network.parameters()))
    same(ordinary, alone, network, optimizer)


def test_schedulers_and_hooks() -> None:
    ordinary, network = model(), model()
    alone, optimizer = adamw(ordinary), Travelling(adamw(network), smallest=0)
    seen: list[Any] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(network[0].weight.grad is not None))
    optimizer.register_step_post_hook(lambda *_: seen.append("behind"))
    schedulers: list[Any] = [
        torch.optim.lr_scheduler.OneCycleLR(each, 0.1, total_steps=9) for each in (alone, optimizer)
    ]
    for step in range(6):
        learn(ordinary, alone, range(step, step + 1))
        learn(network, optimizer, range(step, step + 1))
        for scheduler in schedulers:
            scheduler.step()
    same(ordinary, alone, network, optimizer)
    assert seen == [True, "behind"] * 6


def test_weights_that_come_and_go() -> None:
    ordinary, network = model(), model()
    optimizers: list[Any] = [adamw(ordinary), Travelling(adamw(network), smallest=0)]
    for each, optimizer in zip((ordinary, network), optimizers, strict=True):
        each[0].requires_grad_(False)
        learn(each, optimizer, range(2))
        each[0].requires_grad_(True)
        learn(each, optimizer, range(2, 4))
        each.added = nn.Parameter(torch.ones(12))
        optimizer.add_param_group({"params": [("added", each.added)]})
        for step in range(4, 7):
            loss_of(each[:5], step).backward()
            each.added.square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    same(ordinary, optimizers[0], network, optimizers[1])
    del optimizers[1].param_groups[1]
    optimizers[1].step()
    assert len(optimizers[1]._copies) == len(list(network.parameters())) - 1


def test_sparse_gradients() -> None:
    networks = [nn.Embedding(9, 4, sparse=True) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    optimizers: list[Any] = [gradstep.SparseAdam(list(m.parameters()), lr=0.1) for m in networks]
    optimizers[1] = Travelling(optimizers[1], smallest=0)
    for network, optimizer in zip(networks, optimizers, strict=True):
        for step in range(3):
            network(torch.tensor([step, 5])).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    same(networks[0], optimizers[0], networks[1], optimizers[1])


def test_states_that_are_there_already_move() -> None:
    ordinary, network = model(), model()
    alone, inside = adamw(ordinary), adamw(network)
    learn(ordinary, alone)
    learn(network, inside, range(3))
    learn(network, Travelling(inside, smallest=0), range(3, 5))
    same(ordinary, alone, network, inside)


def test_explain() -> None:
    ordinary, network = model(), model()
    alone, optimizer = adamw(ordinary), Travelling(adamw(network), smallest=0)
    learn(ordinary, alone, range(2))
    learn(network, optimizer, range(2))
    told = gradstep.explain(alone, "3.weight", index=(1, 2))
    mine = gradstep.explain(optimizer, "3.weight", index=(1, 2))
    learn(ordinary, alone, range(2, 3))
    learn(network, optimizer, range(2, 3))
    assert mine.ready and mine.text() == told.text()


def test_torchs_checkpoints_by_names() -> None:
    network, other = model(), model()
    optimizer, twin = (Travelling(adamw(m), smallest=20) for m in (network, other))
    learn(network, optimizer, range(3))
    other.load_state_dict(network.state_dict())
    saved = copy.deepcopy(get_optimizer_state_dict(network, optimizer))
    set_optimizer_state_dict(other, twin, saved)
    learn(network, optimizer, range(3, 6))
    learn(other, twin, range(3, 6))
    same(network, optimizer, other, twin)


def test_it_keeps_no_optimizer_alive() -> None:
    network = model()
    optimizer: Any = Travelling(adamw(network), smallest=0)
    learn(network, optimizer)
    gone = weakref.ref(optimizer)
    del optimizer
    assert gone() is None
    loss_of(network, 0).backward()


def test_the_latest_takes_the_gradients() -> None:
    ordinary, network = model(), model()
    first = Travelling(adamw(network), smallest=0, free_gradients=True)
    in_backward = gradstep.StepInBackward(adamw(network))
    alone, optimizer = adamw(ordinary), Travelling(adamw(network), smallest=0)
    learn(ordinary, alone, range(3))
    learn(network, optimizer, range(3))
    same(ordinary, alone, network, optimizer)
    assert not first.state and not in_backward.state
    with pytest.raises(RuntimeError, match="go to another Travelling, which was made later"):
        in_backward.step()


# All or nothing.


def test_an_error_leaves_all_as_it_was() -> None:
    network = model()
    optimizer = Travelling(adamw(network), smallest=0)
    learn(network, optimizer, range(2))
    before = [p.detach().clone() for p in network.parameters()]
    states = copy.deepcopy(optimizer.state_dict()["state"])
    loss_of(network, 2).backward()
    good = optimizer.state[network[4].weight]["exp_avg"]
    optimizer.state[network[4].weight]["exp_avg"] = good[:1]
    with pytest.raises(ValueError, match=r"state 'exp_avg' of 4.weight"):
        optimizer.step()
    assert all(map(torch.equal, network.parameters(), before))
    optimizer.state[network[4].weight]["exp_avg"] = good
    for key, entry in optimizer.state_dict()["state"].items():
        assert all(torch.equal(s, states[key][n]) for n, s in entry.items())
    optimizer.step()
    assert not torch.equal(network[4].weight, before[-2])


@gradstep.opaque
def fails_for_rows(x: Tensor, count: float) -> Tensor:
    """Raises for a weight of that many rows."""
    if x.shape[1] == count:  # the first dimension is of the batch
        raise ArithmeticError("no such rows")
    return x


@gradstep.rule
def failing(g: Any, m: Any, *, count: float = 0.0) -> Any:
    m = 0.5 * m + g
    return fails_for_rows(m, count), m


def test_a_step_that_is_cut_short_sends_what_it_has_written() -> None:
    torch.manual_seed(2)
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 6))
    inside = gradstep.Optimizer(network.named_parameters(), failing, lr=0.1)
    optimizer = Travelling(inside, smallest=0)

    def train() -> None:
        network(torch.ones(2, 3)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    train()
    inside.param_groups[0]["count"] = 5.0
    before = [p.detach().clone() for p in network.parameters()]
    with pytest.raises(
        RuntimeError, match=r"2 of 6 parameters had been updated by then: 2\.weight"
    ):
        train()
    params = list(network.parameters())
    assert [torch.equal(p, b) for p, b in zip(params, before, strict=True)] == [True] * 4 + [
        False
    ] * 2
    inside.param_groups[0]["count"] = 0.0
    optimizer.zero_grad()
    train()
    copies = map(optimizer._in_step, params)
    assert all(map(torch.equal, params, copies))


def test_zero_grad_of_a_wrapper_asks_the_one_inside() -> None:
    """Accumulate keeps the gradients of earlier batches, whatever stands around it."""
    ordinary, network = model(), model()
    alone = gradstep.Accumulate(adamw(ordinary), 3)
    around = gradstep.SkipNonFinite(gradstep.Accumulate(adamw(network), 3))
    learn(ordinary, alone, range(6))
    learn(network, around, range(6))
    same(ordinary, alone, network, around)


# What is refused.


def test_what_is_refused() -> None:
    network = model()
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: Travelling(torch.optim.AdamW(network.parameters())), "AdamW of torch has no rule"),
        (lambda: Travelling(gradstep.LBFGS(network.parameters())), "cannot wrap LBFGS"),
        (lambda: Travelling(gradstep.Sophia(network.parameters())), "Sophia is given estimates"),
        (lambda: Travelling(Travelling(adamw(network))), "inside already"),
        (lambda: gradstep.EMA(Travelling(adamw(network))), "put Travelling outside"),
        (lambda: gradstep.StepInBackward(Travelling(adamw(network))), "put Travelling outside"),
        (lambda: Travelling(gradstep.StepInBackward(adamw(network))), "put StepInBackward outside"),
        (lambda: Travelling(adamw(network), smallest=-1), "Invalid smallest: -1"),
        (
            lambda: Travelling(gradstep.Accumulate(adamw(network), 2), free_gradients=True),
            "free_gradients=True leaves Accumulate no gradients",
        ),
    ]
    for make, said in cases:
        with pytest.raises((TypeError, ValueError), match=said):
            make()


def split(rank: int) -> str:
    network: Any = fully_shard(model(), mesh=init_device_mesh("cpu", (2,)))
    try:
        gradstep.Offload(adamw(network))
    except ValueError as error:
        return str(error)
    return ""


def replicated(rank: int) -> list[Any]:
    network = model()
    ddp = nn.parallel.DistributedDataParallel(network)
    optimizer = Travelling(adamw(network), smallest=0)
    ordinary = model()
    alone = adamw(ordinary)
    twin = nn.parallel.DistributedDataParallel(ordinary)
    for step in range(4):
        for each, its in ((ddp, optimizer), (twin, alone)):
            loss_of(each, 2 * step + rank).backward()
            its.step()
            its.zero_grad()
    same(ordinary, alone, network, optimizer)
    try:
        Travelling(adamw(network), smallest=0, free_gradients=True)
    except ValueError as error:
        return [str(error), *(p.detach().numpy().copy() for p in network.parameters())]
    return []


def test_fsdp2_is_refused() -> None:
    for said in run_ranks(split, 2):
        assert "is split among processes" in said and "CPUOffloadPolicy" in said


def test_ddp() -> None:
    one, other = run_ranks(replicated, 2)
    assert "cannot go with DistributedDataParallel" in one[0]
    assert all((a == b).all() for a, b in zip(one[1:], other[1:], strict=True))


# States in files.

MAPS = Path("/proc/self/maps")


def test_states_lie_in_files_that_go_with_them(tmp_path: Path) -> None:
    folder = tmp_path / "states"
    ordinary, network = model(), model()
    alone = adamw(ordinary)
    optimizer = gradstep.Offload(adamw(network), states_in=folder, smallest=20)
    learn(ordinary, alone)
    learn(network, optimizer)
    same(ordinary, alone, network, optimizer)
    assert folder.is_dir() and list(folder.iterdir()) == []  # they have no names
    mapped = MAPS.read_text().count(str(folder))
    large = sum(p.numel() >= 20 for p in network.parameters())
    assert mapped == 2 * large > 0
    assert optimizer._in_step(network[0].weight) is network[0].weight
    del optimizer, alone
    assert str(folder) not in MAPS.read_text()


def _resident(folder: str | None, end: Any) -> None:
    """How much more memory of its own a process has after steps than before the states began."""

    def anonymous() -> int:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert found is not None
        return int(found[1]) * 1024

    def step(network: nn.Module, optimizer: Any) -> None:
        network(torch.ones(2, 512)).square().mean().backward()
        optimizer.step()

    small = nn.Linear(512, 8)
    step(small, adamw(small))  # compiles
    network = nn.Sequential(*[nn.Linear(512, 512) for _ in range(64)])
    network(torch.ones(2, 512)).square().mean().backward()
    before, optimizer = anonymous(), adamw(network)
    if folder is not None:
        optimizer = gradstep.Offload(optimizer, states_in=folder)
    for _ in range(3):
        optimizer.step()
    if folder is not None:  # by way of a checkpoint
        torch.save(optimizer.state_dict(), Path(folder) / "checkpoint.pt")
        optimizer = gradstep.Offload(adamw(network), states_in=folder)
        optimizer.load_state_dict(torch.load(Path(folder) / "checkpoint.pt", mmap=True))
        optimizer.step()
    end.send(
        (anonymous() - before, sum(s.nbytes for e in optimizer.state.values() for s in e.values()))
    )


def test_states_in_files_take_no_memory_of_the_process(tmp_path: Path) -> None:
    found = []
    for folder in (None, str(tmp_path)):
        end, other = FORKS.Pipe(duplex=False)
        process = FORKS.Process(target=_resident, args=(folder, other))
        process.start()
        other.close()
        found.append(end.recv())
        process.join()
    (ordinary, states), (mapped, _) = found
    assert states > 120 << 20
    assert ordinary > 0.9 * states and mapped < states / 3


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    taken = tmp_path / "file"
    taken.write_text("")
    with pytest.raises(OSError, match=r"states_in='.*file' is no folder that can be written"):
        gradstep.Offload(adamw(model()), states_in=str(taken))


def _fill(folder: str, end: Any) -> None:
    """A process with so little place for files that the third state has none."""
    import resource

    ordinary = nn.Sequential(*[nn.Linear(64, 64) for _ in range(3)])
    inside = gradstep.AdamW(ordinary.named_parameters())
    optimizer = gradstep.Offload(inside, states_in=folder)
    with torch.no_grad():
        ordinary[1].weight.set_(torch.randn(128, 64)[:, :64])  # twice as large as the others
    ordinary[1].bias.data = torch.zeros(128)
    ordinary[2].weight.data = torch.randn(64, 128)
    before = [p.detach().clone() for p in ordinary.parameters()]
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 64 * 4, resource.RLIM_INFINITY))
    said = ""
    ordinary(torch.ones(2, 64)).square().mean().backward()
    try:
        optimizer.step()
    except OSError as error:
        said = str(error)
    whole = all(map(torch.equal, ordinary.parameters(), before)) and not optimizer.state
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    optimizer.step()
    moved = not any(map(torch.equal, ordinary.parameters(), before))
    end.send((said, whole, moved))


def test_no_place_on_the_disk(tmp_path: Path) -> None:
    end, other = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_fill, args=(str(tmp_path), other))
    process.start()
    other.close()
    said, whole, moved = end.recv()
    process.join()
    assert re.search(r"no place for state exp_avg of \d.weight in states_in=.*32,768 bytes", said)
    assert "\n" not in said and whole and moved


def _killed(folder: str, file: str, end: Any) -> None:
    import os
    import signal

    network = model()
    optimizer = gradstep.Offload(adamw(network), states_in=folder, smallest=20)
    learn(network, optimizer, range(3))
    torch.save([network.state_dict(), optimizer.state_dict()], file)
    learn(network, optimizer, range(3, 5))
    end.send("now")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_leaves_the_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    folder, file = tmp_path / "states", tmp_path / "checkpoint.pt"
    end, other = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_killed, args=(str(folder), str(file), other))
    process.start()
    other.close()
    assert end.recv() == "now"
    process.join()
    assert list(folder.iterdir()) == []
    ordinary, network = model(), model()
    alone = adamw(ordinary)
    learn(ordinary, alone, range(6))
    # Mapped, as files that are larger than the memory are; nothing of it is written.
    weights, saved = torch.load(file, mmap=True)
    content = file.read_bytes()
    network.load_state_dict(weights)
    optimizer = gradstep.Offload(adamw(network), states_in=folder, smallest=20)
    optimizer.load_state_dict(saved)
    learn(network, optimizer, range(3, 6))
    same(ordinary, alone, network, optimizer)
    assert file.read_bytes() == content
