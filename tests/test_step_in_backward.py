"""Steps within backward: the bits of ordinary steps, with the gradients of one layer at a time."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
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
from torch.utils.checkpoint import checkpoint

import gradstep
from ranks import run_ranks


class Tied(nn.Module):
    """A language model of a few words: the output layer has the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.words = nn.Embedding(12, 8)
        self.hidden = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.idle = nn.Linear(8, 2)  # no loss depends on it
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Any:
        return self.head(self.norm(torch.tanh(self.hidden(self.words(x)))))


def loss_of(network: nn.Module, step: int) -> Tensor:
    x = torch.randint(0, 12, (16,), generator=torch.Generator().manual_seed(step))
    return nn.functional.cross_entropy(network(x), (x + 1) % 12)


def learn(network: nn.Module, optimizer: Any, steps: range = range(6)) -> None:
    for step in steps:
        loss_of(network, step).backward()
        optimizer.step()
        optimizer.zero_grad()


def adamw(network: nn.Module) -> gradstep.Optimizer:
    return gradstep.AdamW(network.named_parameters(), lr=0.05)


def rule(made: Any) -> Callable[[nn.Module], gradstep.Optimizer]:
    return lambda m: gradstep.Optimizer(m.named_parameters(), made, lr=0.05)


OPTIMIZERS: dict[str, Callable[[nn.Module], Any]] = {
    "AdamW": adamw,
    "AdamW, eager": lambda m: gradstep.AdamW(m.named_parameters(), lr=0.05, engine="eager"),
    "SGD": lambda m: gradstep.SGD(m.named_parameters(), lr=0.5, momentum=0.9, nesterov=True),
    "Adafactor": lambda m: gradstep.Adafactor(m.named_parameters(), lr=0.05),
    "LAMB, climbing": lambda m: gradstep.LAMB(m.named_parameters(), lr=0.01, maximize=True),
    "GaLore": lambda m: gradstep.GaLore(m.named_parameters(), lr=0.05, rank=3, update_proj_gap=2),
    "APOLLO": lambda m: gradstep.APOLLO(m.named_parameters(), lr=0.05, rank=3),
    "LOMO": lambda m: gradstep.LOMO(m.named_parameters(), lr=0.5, clip_value=0.01),
    "AdaLomo": lambda m: gradstep.AdaLomo(m.named_parameters(), lr=0.1),
    "a clip of each weight": rule(gradstep.chain(gradstep.clip_by_norm(0.1), gradstep.adam())),
    "a schedule": lambda m: gradstep.AdamW(
        m.named_parameters(),
        lr=gradstep.schedule.cosine(0.1, 10),
        weight_decay=gradstep.schedule.linear(0.1, 0.0, 5),
    ),
    "states in bfloat16": lambda m: gradstep.AdamW(m.named_parameters(), state_dtype="bfloat16"),
    "groups": lambda m: gradstep.for_model(m, gradstep.AdamW, lr=0.05, weight_decay=0.1),
    "a partition": lambda m: gradstep.partition(
        {"matrices": gradstep.muon(), "rest": gradstep.adam()}, m, lr=0.05
    ),
    "EMA": lambda m: gradstep.EMA(adamw(m), decay=0.75),
    "Freeze": lambda m: gradstep.Freeze(adamw(m), "hidden.*"),
    "Accumulate": lambda m: gradstep.Accumulate(adamw(m), 3),
    "Accumulate, EMA, a partition": lambda m: gradstep.Accumulate(
        gradstep.EMA(gradstep.partition({"matrices": gradstep.lion, "rest": gradstep.adam()}, m)), 2
    ),
}
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def same(network: nn.Module, optimizer: Any, other: nn.Module, twin: Any) -> None:
    for a, b in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert set(optimizer.state.get(a, {})) == set(twin.state.get(b, {}))
        for key, state in optimizer.state.get(a, {}).items():
            assert torch.equal(state, twin.state[b][key])


# The same as without.


@every_optimizer
def test_the_bits_of_ordinary_steps(name: str) -> None:
    ordinary, network = Tied(), Tied()
    alone, optimizer = OPTIMIZERS[name](ordinary), OPTIMIZERS[name](network)
    optimizer = gradstep.StepInBackward(optimizer)
    before = [p.detach().clone() for p in network.parameters()]
    for step in range(6):
        learn(ordinary, alone, range(step, step + 1))
        learn(network, optimizer, range(step, step + 1))
        same(ordinary, alone, network, optimizer)
    assert alone.engines_used() == optimizer.optimizer.engines_used() if name == "AdamW" else True
    moved = [not torch.equal(a, p) for a, p in zip(before, network.parameters(), strict=True)]
    assert sum(moved) >= 3


@every_optimizer
def test_it_resumes_and_is_copied_bit_for_bit(name: str) -> None:
    network = Tied()
    optimizer = gradstep.StepInBackward(OPTIMIZERS[name](network))
    learn(network, optimizer)
    file = io.BytesIO()
    torch.save([network.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    weights, saved = torch.load(file)
    resumed_network, plain = Tied(), Tied()
    resumed_network.load_state_dict(weights)
    plain.load_state_dict(weights)
    resumed = gradstep.StepInBackward(OPTIMIZERS[name](resumed_network))
    resumed.load_state_dict(saved)
    ordinary = OPTIMIZERS[name](plain)  # the file is that of the optimizer inside
    ordinary.load_state_dict(saved)
    others = [
        (resumed_network, resumed),
        (plain, ordinary),
        copy.deepcopy((network, optimizer)),
        pickle.loads(pickle.dumps((network, optimizer))),
    ]
    learn(network, optimizer, range(6, 12))
    for other, twin in others:
        learn(other, twin, range(6, 12))
        same(network, optimizer, other, twin)


#: Weights in bfloat16 as every ``low_precision`` has them, and states in every kind of format.
STORED: list[dict[str, Any]] = [
    *({"low_precision": kind} for kind in ("stochastic", "kahan", "remainder", "master")),
    *({"state_dtype": name} for name in ("int8", "dynamic8", "float8", "int4")),
    {"low_precision": "remainder", "state_dtype": "int8"},
]


@pytest.mark.parametrize("options", STORED, ids=str)
def test_formats_and_weights_of_16_bits(options: dict[str, Any]) -> None:
    found: list[Any] = []
    for around in (lambda o: o, gradstep.StepInBackward):
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


def test_weights_move_within_backward_and_gradients_go() -> None:
    network = Tied()
    optimizer = gradstep.StepInBackward(adamw(network))
    before = network.hidden.weight.detach().clone()
    loss_of(network, 0).backward()
    assert not torch.equal(network.hidden.weight, before)
    assert all(p.grad is None for p in network.parameters())
    assert optimizer.state[network.hidden.weight]["step"] == 1


# Memory.


def test_never_more_gradients_than_those_of_one_layer() -> None:
    """Counted by weak references to the gradients themselves: whoever held one would be seen."""
    network = nn.Sequential(*[nn.Linear(40, 40) for _ in range(8)])
    of_one_layer = 4 * (40 * 40 + 40)

    def most(make: Callable[[nn.Module], Any]) -> int:
        alive: list[tuple[weakref.ref[Tensor], int]] = []
        found = 0

        def come(p: Tensor) -> None:
            nonlocal alive, found
            assert p.grad is not None
            alive.append((weakref.ref(p.grad), p.grad.nbytes))
            alive = [each for each in alive if each[0]() is not None]
            found = max(found, sum(size for _, size in alive))

        # Before the hooks that step: a gradient is counted before it is freed.
        mine = [p.register_post_accumulate_grad_hook(come) for p in network.parameters()]
        optimizer = make(network)
        for _ in range(3):
            network(torch.ones(2, 40)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        for handle in mine:
            handle.remove()
        return found

    assert most(adamw) == 8 * of_one_layer
    assert most(lambda m: gradstep.StepInBackward(adamw(m))) <= of_one_layer


@pytest.mark.deep
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the command reads Linux's count of memory")
def test_the_command_of_the_page_shows_the_memory_that_is_saved() -> None:
    command = Path(__file__).parent.parent / "examples" / "step_in_backward.py"
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
    most = []
    for way in ((), ("within",)):
        done = subprocess.run(
            [sys.executable, command, "LOMO", *way],
            capture_output=True, text=True, check=True, env=environment,
        )  # fmt: skip
        most.append(int(done.stdout.removesuffix(" MB\n").replace(",", "")))
    assert most[0] - most[1] > 0.8 * 235  # MB of gradients


def test_it_keeps_no_optimizer_alive() -> None:
    network = Tied()
    optimizer: Any = gradstep.StepInBackward(adamw(network))
    learn(network, optimizer)
    gone = weakref.ref(optimizer)
    del optimizer
    assert gone() is None
    before = network.hidden.weight.detach().clone()
    loss_of(network, 0).backward()
    assert torch.equal(network.hidden.weight, before) and network.hidden.weight.grad is not None


# What is left to step().


def test_step_updates_what_no_backward_has() -> None:
    ordinary, network = Tied(), Tied()
    alone, optimizer = adamw(ordinary), gradstep.StepInBackward(adamw(network))
    for step in range(3):
        for each in (ordinary, network):
            loss_of(each, step).backward()
            each.idle.weight.grad = torch.full((2, 8), 0.5)
        alone.step()
        optimizer.step()
        assert network.idle.weight.grad is not None
        alone.zero_grad()
        optimizer.zero_grad()
        same(ordinary, alone, network, optimizer)


def test_a_closure() -> None:
    ordinary, network = Tied(), Tied()
    alone, optimizer = adamw(ordinary), gradstep.StepInBackward(adamw(network))
    for step in range(3):
        for each, its in ((ordinary, alone), (network, optimizer)):

            def closure(each: Any = each, its: Any = its, step: int = step) -> Tensor:
                its.zero_grad()
                loss = loss_of(each, step)
                loss.backward()
                return loss

            assert float(its.step(closure)) > 0
    same(ordinary, alone, network, optimizer)


def test_schedulers_and_hooks() -> None:
    ordinary, network = Tied(), Tied()
    alone, optimizer = adamw(ordinary), gradstep.StepInBackward(adamw(network))
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("behind"))
    schedulers: list[Any] = [
        torch.optim.lr_scheduler.OneCycleLR(alone, 0.1, total_steps=9),
        torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9),
    ]
    for step in range(6):
        learn(ordinary, alone, range(step, step + 1))
        learn(network, optimizer, range(step, step + 1))
        for scheduler in schedulers:
            scheduler.step()
    same(ordinary, alone, network, optimizer)
    assert seen == ["before", "behind"] * 6


def test_a_schedule_advances_with_step_alone() -> None:
    network = Tied()
    optimizer = gradstep.StepInBackward(OPTIMIZERS["a schedule"](network))
    loss_of(network, 0).backward()
    assert optimizer.param_groups[0]["schedule_step"] == 0
    optimizer.step()
    assert optimizer.param_groups[0]["schedule_step"] == 1


def test_weights_that_come_later_and_go() -> None:
    ordinary, network = Tied(), Tied()
    optimizers: list[Any] = [adamw(ordinary), gradstep.StepInBackward(adamw(network))]
    for each, optimizer in zip((ordinary, network), optimizers, strict=True):
        each.hidden.requires_grad_(False)
        learn(each, optimizer, range(2))
        each.hidden.requires_grad_(True)  # its first gradient is used by step()
        learn(each, optimizer, range(2, 4))
        each.added = nn.Parameter(torch.ones(12))
        optimizer.add_param_group({"params": [("added", each.added)]})
        for step in range(4, 7):
            (loss_of(each, step) + each.added.square().sum()).backward()
            optimizer.step()
            optimizer.zero_grad()
    same(ordinary, optimizers[0], network, optimizers[1])
    loss_of(network, 7).backward()
    assert network.hidden.weight.grad is None


def test_lazy_layers() -> None:
    networks = [nn.Sequential(nn.LazyLinear(6), nn.Tanh(), nn.LazyLinear(2)) for _ in range(2)]
    optimizers: list[Any] = [gradstep.AdamW(m.parameters(), lr=0.1) for m in networks]
    optimizers[1] = gradstep.StepInBackward(optimizers[1])
    for network, optimizer in zip(networks, optimizers, strict=True):
        torch.manual_seed(3)
        for _ in range(3):
            network(torch.ones(2, 4)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    same(networks[0], optimizers[0], networks[1], optimizers[1])
    networks[1](torch.ones(2, 4)).sum().backward()
    assert networks[1][0].weight.grad is None


def test_sparse_gradients() -> None:
    networks = [nn.Embedding(9, 4, sparse=True) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    optimizers: list[Any] = [gradstep.SparseAdam(list(m.parameters()), lr=0.1) for m in networks]
    optimizers[1] = gradstep.StepInBackward(optimizers[1])
    for network, optimizer in zip(networks, optimizers, strict=True):
        for step in range(3):
            network(torch.tensor([step, 5])).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    same(networks[0], optimizers[0], networks[1], optimizers[1])


# Accumulation.


def test_paused_adds_gradients_up() -> None:
    ordinary, network = Tied(), Tied()
    alone, optimizer = adamw(ordinary), gradstep.StepInBackward(adamw(network))
    for step in range(3):
        for batch in range(3):
            loss_of(ordinary, 3 * step + batch).backward()
        alone.step()
        alone.zero_grad()
        with optimizer.paused():
            loss_of(network, 3 * step).backward()
            loss_of(network, 3 * step + 1).backward()
        loss_of(network, 3 * step + 2).backward()
        assert all(p.grad is None for p in network.parameters())
        optimizer.step()
        optimizer.zero_grad()
        same(ordinary, alone, network, optimizer)


def test_a_checkpoint_within_a_round_of_accumulate() -> None:
    network, other = Tied(), Tied()
    optimizer = gradstep.StepInBackward(gradstep.Accumulate(adamw(network), 3))
    learn(network, optimizer, range(4))
    other.load_state_dict(network.state_dict())
    twin = gradstep.StepInBackward(gradstep.Accumulate(adamw(other), 3))
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    learn(network, optimizer, range(4, 9))
    learn(other, twin, range(4, 9))
    same(network, optimizer, other, twin)


def test_a_second_gradient_before_step() -> None:
    network = Tied()
    optimizer = gradstep.StepInBackward(adamw(network))
    loss_of(network, 0).backward()
    weights = [p.detach().clone() for p in network.parameters()]
    with pytest.raises(RuntimeError, match=r"second gradient of .* before step\(\).*paused\(\)"):
        loss_of(network, 1).backward()
    assert all(map(torch.equal, network.parameters(), weights))
    optimizer.zero_grad()
    optimizer.step()
    learn(network, optimizer, range(2, 4))
    assert optimizer.state[network.hidden.weight]["step"] == 3


def test_a_gradient_that_is_put_back_before_step() -> None:
    network = Tied()
    optimizer = gradstep.StepInBackward(adamw(network))
    loss_of(network, 0).backward()
    with optimizer.paused():
        loss_of(network, 1).backward()
    with pytest.raises(RuntimeError, match=r"has moved in backward\(\), and has a gradient again"):
        optimizer.step()
    optimizer.zero_grad()
    optimizer.step()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers(reentrant: bool) -> None:
    """A weight used twice in reentrant checkpoints gets two gradients in one backward."""

    def loss(network: Any) -> Tensor:
        x = torch.ones(2, 4, requires_grad=True)
        for layer in network:
            x = checkpoint(layer, x, use_reentrant=reentrant)
        return x.square().mean()

    networks = [nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    optimizers: list[Any] = [gradstep.AdamW(m.parameters(), lr=0.1) for m in networks]
    optimizers[1] = gradstep.StepInBackward(optimizers[1])
    for network, optimizer in zip(networks, optimizers, strict=True):
        for _ in range(3):
            loss(network).backward()
            optimizer.step()
            optimizer.zero_grad()
    same(networks[0], optimizers[0], networks[1], optimizers[1])
    network = nn.Sequential(networks[1][0], networks[1][0])
    if reentrant:
        with pytest.raises(RuntimeError, match="use_reentrant=False"):
            loss(network).backward()
    else:
        loss(network).backward()


# All or nothing, for each weight.


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


def test_an_error_says_which_weights_have_moved() -> None:
    torch.manual_seed(2)
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 6))
    inside = gradstep.Optimizer(network.named_parameters(), failing, lr=0.1)
    optimizer = gradstep.StepInBackward(inside)
    ended: list[Any] = []

    class Looks(gradstep.optimizer.observer.StepObserver):
        def closed(self, step: Any) -> None:
            ended.append(step.error)

    gradstep.optimizer.observer.observe(inside, Looks())
    x = torch.ones(2, 3)

    def train() -> None:
        network(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    train()
    inside.param_groups[0]["count"] = 5.0
    before = [p.detach().clone() for p in network.parameters()]
    states = [copy.deepcopy(optimizer.state[p]) for p in network.parameters()]
    with pytest.raises(RuntimeError, match="cut short by ArithmeticError") as caught:
        network(x).square().mean().backward()
    assert "2 of 6 weights had made theirs by then: 2.weight, 2.bias." in str(caught.value)
    assert isinstance(caught.value.__cause__, ArithmeticError)
    assert ended[0] is None and isinstance(ended[1], ArithmeticError) and len(ended) == 2
    for i, p in enumerate(network.parameters()):
        assert torch.equal(p, before[i]) == (i < 4)
        assert torch.equal(optimizer.state[p]["m"], states[i]["m"]) == (i < 4)
    inside.param_groups[0]["count"] = 0.0
    optimizer.zero_grad()
    train()
    assert not torch.equal(next(network.parameters()), before[0])


def test_the_first_weight_alone_raises_as_it_is() -> None:
    network = Tied()
    optimizer = gradstep.StepInBackward(adamw(network))
    optimizer.param_groups[0]["lr"] = "fast"
    before = [p.detach().clone() for p in network.parameters()]
    with pytest.raises(TypeError, match="lr"):
        loss_of(network, 0).backward()
    assert all(map(torch.equal, network.parameters(), before)) and not optimizer.state


def test_a_backward_that_breaks_off() -> None:
    """As when there is no memory left, and the loop goes on with the next batch."""
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = gradstep.StepInBackward(gradstep.SGD(network.parameters(), lr=0.1))

    def break_off(_: Tensor) -> None:
        raise MemoryError("no memory left")

    handle = network[0].weight.register_hook(break_off)
    with pytest.raises(MemoryError):
        network(torch.ones(2, 4)).sum().backward()
    handle.remove()
    optimizer.zero_grad()
    network(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert all(p.grad is None for p in network.parameters())


def test_no_checkpoint_between_backward_and_step() -> None:
    network = Tied()
    optimizer = gradstep.StepInBackward(adamw(network))
    loss_of(network, 0).backward()
    with pytest.raises(RuntimeError, match=r"Save behind step\(\)"):
        optimizer.state_dict()
    optimizer.step()
    optimizer.state_dict()


# What is refused.

MODEL = nn.Linear(3, 2)
REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "Prodigy": (gradstep.Prodigy, "prodigy sums over all weights"),
    "D-Adaptation": (gradstep.DAdaptAdam, "dadapt_adam sums over all weights"),
    "a global norm": (
        lambda p: gradstep.Optimizer(
            p, gradstep.chain(gradstep.clip_by_global_norm(), gradstep.adam())
        ),
        "clip_by_global_norm in .* sums over all weights.*gradstep.clip_by_norm",
    ),
    "the loss": (gradstep.Momo, "momo asks for the loss"),
    "SAM": (lambda p: gradstep.SAM(gradstep.SGD(p, lr=0.1)), "cannot go around SAM: it takes two"),
    "EMA of SAM": (
        lambda p: gradstep.EMA(gradstep.SAM(gradstep.SGD(p, lr=0.1))),
        "cannot go around SAM",
    ),
    "SkipNonFinite": (lambda p: gradstep.SkipNonFinite(gradstep.AdamW(p)), "around SkipNonFinite"),
    "GradientNoise": (lambda p: gradstep.GradientNoise(gradstep.AdamW(p)), "around GradientNoise"),
    "itself": (lambda p: gradstep.StepInBackward(gradstep.AdamW(p)), "inside already"),
    "a graph": (lambda p: gradstep.AdamW(p, differentiable=True), "differentiable=True"),
    "torch": (torch.optim.AdamW, r"takes an optimizer of gradstep; got torch\..*gradstep.AdamW"),
    "LBFGS": (gradstep.LBFGS, "cannot wrap LBFGS"),
    "a part": (
        lambda p: gradstep.partition({"rest": gradstep.prodigy()}, list(p)),
        "prodigy sums over all weights",
    ),
    "no optimizer": (list, "wraps an optimizer"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_all_gradients_is_refused_by_name(name: str) -> None:
    make, said = REFUSED[name]
    network = nn.Linear(3, 2)
    given = make(network.parameters())
    with pytest.raises((TypeError, ValueError), match=said):
        gradstep.StepInBackward(given)
    assert all(name == "itself" or not p._post_accumulate_grad_hooks for p in network.parameters())


def test_nothing_goes_around_it() -> None:
    optimizer = gradstep.StepInBackward(gradstep.AdamW(nn.Linear(3, 2).named_parameters()))
    for wrapper in (gradstep.EMA, gradstep.SAM, gradstep.SkipNonFinite):
        with pytest.raises(ValueError, match=r"put StepInBackward outside, as StepInBackward\("):
            wrapper(optimizer)
    with pytest.raises(ValueError, match="put StepInBackward outside"):
        gradstep.Accumulate(optimizer, 2)


def test_a_step_of_ones_own_is_refused() -> None:
    class Clipping(gradstep.AdamW):
        def step(self, closure: Any = None) -> Any:  # type: ignore[override]
            torch.nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 1.0)
            return super().step(closure)

    with pytest.raises(ValueError, match=r"Clipping overrides step\(\)"):
        gradstep.StepInBackward(Clipping(nn.Linear(3, 2).parameters()))


def test_weights_that_share_memory_are_refused() -> None:
    one = nn.Linear(4, 4)
    other = nn.Parameter(one.weight.detach()[:2])
    inside = gradstep.AdamW([("one", one.weight), ("part", other)])
    with pytest.raises(ValueError, match="one and part share memory"):
        gradstep.StepInBackward(inside)


def test_grad_scaler_is_refused() -> None:
    network = Tied()
    optimizer = gradstep.StepInBackward(adamw(network))
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss_of(network, 0)).backward()
    with pytest.raises(RuntimeError, match="GradScaler cannot be used with StepInBackward"):
        scaler.step(optimizer)
    off = torch.amp.GradScaler("cpu", enabled=False)
    optimizer.step()
    off.scale(loss_of(network, 1)).backward()
    off.step(optimizer)
    off.update()


def test_a_gradient_with_a_graph_is_refused() -> None:
    network = Tied()
    gradstep.StepInBackward(adamw(network))
    optimizer = gradstep.StepInBackward(adamw(network))
    with pytest.raises(RuntimeError, match=r"backward\(create_graph=True\)"):
        loss_of(network, 0).backward(create_graph=True)
    assert not optimizer.state


def test_averages_that_stand_in_the_place_of_the_weights() -> None:
    network = Tied()
    averages = gradstep.EMA(adamw(network))
    optimizer = gradstep.StepInBackward(averages)
    learn(network, optimizer, range(2))
    with averages.averages():
        before = network.hidden.weight.detach().clone()
        with pytest.raises(RuntimeError, match=r"call train\(\) first"):
            loss_of(network, 2).backward()
        assert torch.equal(network.hidden.weight, before)
    optimizer.zero_grad()
    learn(network, optimizer, range(2, 4))


def test_schedule_free_in_evaluation() -> None:
    network = Tied()
    inside: Any = gradstep.AdamWScheduleFree(network.parameters())
    optimizer = gradstep.StepInBackward(inside)
    learn(network, optimizer, range(2))
    inside.eval()
    with pytest.raises(RuntimeError, match=r"optimizer.train\(\) first"):
        loss_of(network, 2).backward()


# Several of them.


def test_the_latest_takes_the_weights_over() -> None:
    network = Tied()
    first = gradstep.StepInBackward(adamw(network))
    second = gradstep.StepInBackward(adamw(network))
    learn(network, second, range(2))
    assert not first.state and second.state
    with pytest.raises(RuntimeError, match="go to another StepInBackward, which was made later"):
        first.step()


def test_close_makes_ordinary_steps_of_them() -> None:
    ordinary, network = Tied(), Tied()
    alone, optimizer = adamw(ordinary), gradstep.StepInBackward(adamw(network))
    learn(ordinary, alone, range(6))
    learn(network, optimizer, range(2))
    optimizer.close()
    loss_of(network, 2).backward()
    assert network.hidden.weight.grad is not None
    optimizer.step()
    optimizer.zero_grad()
    learn(network, optimizer.optimizer, range(3, 6))
    same(ordinary, alone, network, optimizer)


# Seeing.


def test_explain() -> None:
    ordinary, network = Tied(), Tied()
    alone, optimizer = adamw(ordinary), gradstep.StepInBackward(adamw(network))
    for each, its in ((ordinary, alone), (network, optimizer)):
        learn(each, its, range(2))
    told = gradstep.explain(alone, "hidden.weight", index=(1, 2))
    learn(ordinary, alone, range(2, 3))
    mine = gradstep.explain(optimizer, "hidden.weight", index=(1, 2))
    loss_of(network, 2).backward()
    optimizer.step()
    assert mine.ready and mine.text() == told.text()
    loss_of(network, 3).backward()
    late = gradstep.explain(optimizer, "hidden.weight", index=(1, 2))
    optimizer.step()
    assert not late.ready and "waits for the next step" in late.text()
    learn(network, optimizer, range(4, 5))
    assert late.ready and "exp_avg" in late.text()


def test_watch_says_that_there_is_nothing_to_see() -> None:
    network = Tied()
    optimizer = gradstep.StepInBackward(adamw(network))
    with pytest.raises(ValueError, match="StepInBackward has freed them"):
        gradstep.watch(network, optimizer)


def test_torchs_checkpoints_by_names() -> None:
    network, other = Tied(), Tied()
    optimizer, twin = (gradstep.StepInBackward(adamw(m)) for m in (network, other))
    for each, its in ((network, optimizer), (other, twin)):
        for p in each.idle.parameters():
            p.requires_grad_(False)
        learn(each, its, range(2))
    other.load_state_dict(network.state_dict())
    saved = copy.deepcopy(get_optimizer_state_dict(network, optimizer))
    set_optimizer_state_dict(other, twin, saved)
    learn(network, optimizer, range(3, 6))
    learn(other, twin, range(3, 6))
    same(network, optimizer, other, twin)


# Many processes.


SPLIT = ["AdamW", "Adafactor", "LAMB, climbing", "a partition", "EMA", "Accumulate"]


def split(rank: int, name: str) -> list[Any]:
    network: Any = Tied()
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(network.hidden, mesh=mesh)
    fully_shard(network, mesh=mesh)
    optimizer = gradstep.StepInBackward(OPTIMIZERS[name](network))
    for step in range(6):
        loss_of(network, step).backward()
        if name != "Accumulate":
            assert all(p.grad is None for p in network.parameters())
        optimizer.step()
        optimizer.zero_grad()
    return [p.full_tensor().detach().numpy().copy() for p in network.parameters()]


def split_ordinarily(rank: int, name: str) -> list[Any]:
    network: Any = Tied()
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(network.hidden, mesh=mesh)
    fully_shard(network, mesh=mesh)
    learn(network, OPTIMIZERS[name](network))
    return [p.full_tensor().detach().numpy().copy() for p in network.parameters()]


@pytest.mark.parametrize("name", SPLIT)
def test_fsdp2(name: str) -> None:
    found, ordinary = run_ranks(split, 2, name), run_ranks(split_ordinarily, 2, name)
    for mine, other in ((found[0], found[1]), (found[0], ordinary[0])):
        assert all((a == b).all() for a, b in zip(mine, other, strict=True))


def replicated(rank: int, behind: bool) -> str:
    network = nn.Linear(4, 2)
    try:
        if behind:
            optimizer = gradstep.StepInBackward(gradstep.AdamW(network.parameters()))
            ddp = nn.parallel.DistributedDataParallel(network)
            ddp(torch.ones(2, 4)).sum().backward()
            optimizer.step()
        else:
            ddp = nn.parallel.DistributedDataParallel(network)
            gradstep.StepInBackward(gradstep.AdamW(ddp.parameters()))
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("behind", [False, True])
def test_ddp_is_refused(behind: bool) -> None:
    for said in run_ranks(replicated, 2, behind):
        assert "cannot step the weights of a DistributedDataParallel" in said
        assert "fully_shard" in said
