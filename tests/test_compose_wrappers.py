"""Wrappers around an optimizer: averages, sharpness, accumulation, skipped and frozen steps."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import gradstep
from ranks import run_ranks
from torch_release import IS_LOWEST


@gradstep.rule
def plain_schedule_free(
    g: Any,
    z: Any = gradstep.copy_of_weight(),
    *,
    w: Any,
    step: Any,
    lr: Any,
    momentum: float = 0.9,
) -> Any:
    """Schedule-Free SGD with a plain mean: x is the mean of all z, w lies between x and z."""
    x = (w - (1 - momentum) * z) / momentum
    z = z - lr * g
    x = gradstep.lerp(x, z, 1 / (step + 1))
    return gradstep.new_weight(gradstep.where(lr == 0, w, gradstep.lerp(z, x, momentum))), z


def model() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


def samples(step: int) -> torch.Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(step))


def learn(network: nn.Module, optimizer: Any, steps: range = range(4)) -> None:
    """With a closure, which all of them take."""
    for step in steps:

        def closure(step: int = step) -> Any:
            optimizer.zero_grad()
            loss = network(samples(step)).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)


def adamw(network: nn.Module) -> gradstep.Optimizer:
    return gradstep.AdamW(network.named_parameters(), lr=0.05)


def parts(network: nn.Module) -> gradstep.Partition:
    return gradstep.partition({"matrices": gradstep.muon(), "rest": gradstep.adam()}, network)


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "EMA": lambda m: gradstep.EMA(adamw(m), decay=0.75),
    "EMA of a partition": lambda m: gradstep.EMA(parts(m), decay=0.75),
    "AveragedWeights": lambda m: gradstep.AveragedWeights(
        gradstep.AdamWScheduleFree(m.named_parameters(), lr=0.05)
    ),
    "SAM": lambda m: gradstep.SAM(adamw(m)),
    "ASAM": lambda m: gradstep.ASAM(parts(m), rho=0.25),
    "Accumulate": lambda m: gradstep.Accumulate(adamw(m), 3),
    "SkipNonFinite": lambda m: gradstep.SkipNonFinite(adamw(m)),
    "GradientNoise": lambda m: gradstep.GradientNoise(parts(m), eta=0.1, seed=3),
    "Freeze": lambda m: gradstep.Freeze(adamw(m), "0.*"),
    "all": lambda m: gradstep.SAM(
        gradstep.SkipNonFinite(
            gradstep.GradientNoise(gradstep.Freeze(gradstep.EMA(adamw(m), 0.5), "2.bias"))
        )
    ),
    "EMA of SAM": lambda m: gradstep.EMA(gradstep.SAM(adamw(m), rho=0.5), 0.5),
}
every_wrapper = pytest.mark.parametrize("name", WRAPPERS)


def same(network: nn.Module, optimizer: Any, other: nn.Module, twin: Any) -> None:
    for a, b in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert set(optimizer.state.get(a, {})) == set(twin.state.get(b, {}))
        for key, state in optimizer.state.get(a, {}).items():
            assert torch.equal(state, twin.state[b][key])


@every_wrapper
def test_it_resumes_and_is_copied_bit_for_bit(name: str) -> None:
    network = model()
    optimizer = WRAPPERS[name](network)
    learn(network, optimizer)
    file = io.BytesIO()
    torch.save([network.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    weights, saved = torch.load(file)
    resumed_network = model()
    resumed_network.load_state_dict(weights)
    resumed = WRAPPERS[name](resumed_network)
    resumed.load_state_dict(saved)
    others = [(resumed_network, resumed), copy.deepcopy((network, optimizer))]
    for a, b in zip(network.parameters(), others[1][0].parameters(), strict=True):
        b.grad = None if a.grad is None else a.grad.clone()  # deepcopy leaves gradients behind
    pickled = pickle.loads(pickle.dumps((network, optimizer)))
    for a, b in zip(network.parameters(), pickled[0].parameters(), strict=True):
        b.grad = None if a.grad is None else a.grad.clone()
    learn(network, optimizer, range(4, 9))
    for other, twin in (*others, pickled):
        learn(other, twin, range(4, 9))
        same(network, optimizer, other, twin)


@every_wrapper
def test_torchs_checkpoints_by_names(name: str) -> None:
    if name in ("Freeze", "all") and IS_LOWEST:
        pytest.skip("torch 2.7 asks for the states of frozen weights, whatever strict is")
    network, other = model(), model()
    optimizer, twin = WRAPPERS[name](network), WRAPPERS[name](other)
    learn(network, optimizer, range(3))  # a whole round of Accumulate
    other.load_state_dict(network.state_dict())
    saved = copy.deepcopy(get_optimizer_state_dict(network, optimizer))
    if name == "Accumulate":
        optimizer.zero_grad()
    # torch's word for it that some have no state yet, such as frozen ones.
    set_optimizer_state_dict(other, twin, saved, options=StateDictOptions(strict=False))
    learn(network, optimizer, range(3, 7))
    learn(other, twin, range(3, 7))
    same(network, optimizer, other, twin)


@every_wrapper
def test_schedulers_and_hooks(name: str) -> None:
    network = model()
    optimizer = WRAPPERS[name](network)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("behind"))
    optimizer.register_state_dict_post_hook(lambda o, s: {**s, "mine": 1})
    optimizer.register_load_state_dict_pre_hook(lambda o, s: s["mine"] == 1 and None)
    before = [group["lr"] for group in optimizer.param_groups]
    learn(network, optimizer, range(1))
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [lr / 2 for lr in before]
    assert seen == ["before", "behind"]
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.add_param_group({"params": [("added", nn.Parameter(torch.ones(2)))], "part": "rest"})
    assert len(optimizer.param_groups[-1]["params"]) == 1


@every_wrapper
def test_it_says_what_it_wraps(name: str) -> None:
    assert type(WRAPPERS[name](model())).__name__ in repr(WRAPPERS[name](model()))


# Averages.


@pytest.mark.parametrize("make", [adamw, parts])
def test_the_average_of_the_weights_and_back(make: Any) -> None:
    network, plain = model(), model()
    optimizer, alone = gradstep.EMA(make(network), decay=0.75), make(plain)
    averages = [p.detach().clone() for p in plain.parameters()]
    for step in range(4):
        learn(network, optimizer, range(step, step + 1))
        learn(plain, alone, range(step, step + 1))
        averages = [
            torch.lerp(m, p.detach(), 0.25)
            for m, p in zip(averages, plain.parameters(), strict=True)
        ]
    with optimizer.averages():
        assert all(map(torch.equal, network.parameters(), averages))
        optimizer.eval()  # twice is as good as once
        with pytest.raises(RuntimeError, match=r"step\(\) while the averages stand.*train\(\)"):
            optimizer.step()
    assert all(map(torch.equal, network.parameters(), plain.parameters()))
    learn(network, optimizer, range(4, 6))
    learn(plain, alone, range(4, 6))
    assert all(map(torch.equal, network.parameters(), plain.parameters()))


def test_a_schedule_free_rule_is_evaluated_at_its_average() -> None:
    """x, of which the weight y is a mixture with z: y = (1 − β) z + β x."""
    for rule in (
        plain_schedule_free,
        gradstep.adamw_schedule_free(),
        gradstep.sgd_schedule_free(),
        gradstep.chain(gradstep.clip_by_value(0.1), plain_schedule_free),
    ):
        network = model()
        optimizer = gradstep.AveragedWeights(
            gradstep.Optimizer(network.parameters(), rule, lr=0.05)
        )
        learn(network, optimizer)
        y = [p.detach().clone() for p in network.parameters()]
        with optimizer.averages():
            for p, old in zip(network.parameters(), y, strict=True):
                mixture = 0.1 * optimizer.state[p]["z"] + 0.9 * p.detach()
                torch.testing.assert_close(mixture, old, rtol=1e-5, atol=1e-6)
                assert not torch.equal(p, old)
        assert all(map(torch.equal, network.parameters(), y))


def test_averages_that_are_not_there_or_are_there_twice() -> None:
    with pytest.raises(ValueError, match=r"adam keeps no average of the weights. Put gradstep\.av"):
        gradstep.AveragedWeights(adamw(model()))
    with pytest.raises(ValueError, match="keeps an average of the weights already"):
        gradstep.EMA(gradstep.EMA(adamw(model())))
    network = model()
    stepped = adamw(network)
    learn(network, stepped, range(1))
    with pytest.raises(ValueError, match=r"states already\. Add it before the first step"):
        gradstep.EMA(stepped)
    with pytest.raises(TypeError, match="AdamW of torch has no rule"):
        gradstep.EMA(torch.optim.AdamW(model().parameters()))
    with pytest.raises(ValueError, match="average_decay must be at least 0 and at most 1"):
        gradstep.EMA(adamw(model()), decay=1.5)
    with pytest.raises(gradstep.RuleError, match="can only stand last"):
        twice = gradstep.chain(plain_schedule_free, plain_schedule_free)
        gradstep.Optimizer(model().parameters(), twice)


def test_no_wrapper_inside_of_a_partition() -> None:
    with pytest.raises(TypeError, match="a partition holds no wrappers"):
        gradstep.partition({"rest": lambda p: gradstep.EMA(gradstep.Adam(p))}, model())  # type: ignore[arg-type, return-value]


# Sharpness.


@pytest.mark.parametrize(("adaptive", "rho"), [(False, 0.3), (True, 0.6)])
def test_sharpness_aware_steps_by_hand(adaptive: bool, rho: float) -> None:
    network, other = model().double(), model().double()
    inner = gradstep.SGD(network.parameters(), lr=0.1, momentum=0.9)
    optimizer = (gradstep.ASAM if adaptive else gradstep.SAM)(inner, rho)
    theirs = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    for step in range(4):
        x = samples(step).double()

        def closure(x: torch.Tensor = x) -> Any:
            optimizer.zero_grad()
            loss = network(x).square().mean()
            loss.backward()
            return loss

        loss = optimizer.step(closure)
        theirs.zero_grad()
        first = other(x).square().mean()
        first.backward()
        assert float(loss.detach()) == pytest.approx(float(first.detach()), rel=1e-12)
        params = list(other.parameters())
        sizes = [p.detach().abs() + 0.01 if adaptive else torch.ones_like(p) for p in params]
        slopes = [s * p.grad for s, p in zip(sizes, params, strict=True)]
        norm = torch.cat([s.flatten() for s in slopes]).norm() + 1e-12
        kept = [p.detach().clone() for p in params]
        with torch.no_grad():
            for p, s, slope in zip(params, sizes, slopes, strict=True):
                p += rho * s * slope / norm
        theirs.zero_grad()
        other(x).square().mean().backward()
        with torch.no_grad():
            for p, old in zip(params, kept, strict=True):
                p.copy_(old)
        theirs.step()
        for a, b in zip(network.parameters(), params, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_an_average_around_sharpness_leaves_it_its_closure() -> None:
    network, other = model(), model()
    around = WRAPPERS["EMA of SAM"](network)
    alone = gradstep.SAM(adamw(other), rho=0.5)
    learn(network, around)
    learn(other, alone)
    assert all(map(torch.equal, network.parameters(), other.parameters()))


def test_a_closure_that_fails_above_brings_the_weights_back() -> None:
    network = model()
    optimizer = gradstep.SAM(adamw(network))
    before = copy.deepcopy(network.state_dict())
    calls = 0

    def closure() -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyError("from the closure")
        loss = network(samples(0)).square().mean()
        loss.backward()
        return loss

    with pytest.raises(KeyError):
        optimizer.step(closure)
    assert all(torch.equal(v, before[n]) for n, v in network.state_dict().items())


def test_what_sharpness_refuses() -> None:
    with pytest.raises(RuntimeError, match=r"SAM.step\(\) needs a closure"):
        gradstep.SAM(adamw(model())).step()
    with pytest.raises(ValueError, match="Accumulate inside of the closure"):
        gradstep.SAM(gradstep.Accumulate(adamw(model()), 2))
    for around in (gradstep.SkipNonFinite, gradstep.GradientNoise, gradstep.Freeze, gradstep.ASAM):
        with pytest.raises(ValueError, match=r"around SAM, whose steps need .*: put SAM outside"):
            around(gradstep.SAM(adamw(model())))
    with pytest.raises(ValueError, match="Invalid rho"):
        gradstep.SAM(adamw(model()), rho=-1.0)
    with pytest.raises(ValueError, match="there is a SAM inside already"):
        gradstep.SAM(gradstep.SAM(adamw(model())))
    with pytest.raises(TypeError, match="SAM cannot wrap LBFGS"):
        gradstep.SAM(gradstep.LBFGS(model().parameters()))
    with pytest.raises(TypeError, match="SAM wraps an optimizer; got"):
        gradstep.SAM(model().parameters())  # type: ignore[arg-type]


# Accumulation.


def test_accumulated_batches_are_one_large_batch() -> None:
    network, whole = model().double(), model().double()
    optimizer = gradstep.Accumulate(gradstep.Adam(network.parameters(), lr=0.05), 4)
    theirs = torch.optim.Adam(whole.parameters(), lr=0.05)
    for step in range(12):
        optimizer.zero_grad()
        network(samples(step).double()).square().mean().backward()
        optimizer.step()
        assert optimizer.pending == (step + 1) % 4
        if optimizer.pending == 0:
            batch = torch.cat([samples(s) for s in range(step - 3, step + 1)]).double()
            theirs.zero_grad()
            whole(batch).square().mean().backward()
            theirs.step()
        for a, b in zip(network.parameters(), whole.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_a_round_of_gradients_is_in_the_checkpoint() -> None:
    network = model()
    optimizer = gradstep.Accumulate(gradstep.SGD(network.parameters(), lr=0.5), 3, mean=False)
    learn(network, optimizer, range(2))
    saved = optimizer.state_dict()
    assert optimizer.pending == 2
    gradients = [p.grad.clone() for p in network.parameters()]
    for p in network.parameters():
        p.grad = None
    optimizer.load_state_dict(saved)
    assert all(torch.equal(p.grad, g) for p, g in zip(network.parameters(), gradients, strict=True))
    for steps in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="Invalid steps"):
            gradstep.Accumulate(adamw(model()), steps)  # type: ignore[arg-type]


# What is left out.


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_step_with_a_bad_gradient_changes_nothing_but_the_count(bad: float) -> None:
    network = model()
    optimizer = gradstep.SkipNonFinite(adamw(network), limit=2)
    learn(network, optimizer, range(1))
    before = copy.deepcopy((network.state_dict(), dict(optimizer.state)))
    for _ in range(2):
        network[2].bias.grad[1] = bad
        optimizer.step()
    assert str((network.state_dict(), dict(optimizer.state))) == str(before)
    assert optimizer.param_groups[0]["nonfinite"] == 2
    with pytest.raises(FloatingPointError, match=r"3 steps in a row .* the last in 2\.bias"):
        optimizer.step()
    learn(network, optimizer, range(1, 2))
    assert optimizer.param_groups[0]["nonfinite_in_a_row"] == 0
    assert optimizer.param_groups[0]["nonfinite"] == 3


def test_a_large_gradient_is_no_bad_one() -> None:
    """Its square would overflow."""
    network = model()
    optimizer = gradstep.SkipNonFinite(gradstep.SGD(network.parameters(), lr=1e-30))
    for p in network.parameters():
        p.grad = torch.full_like(p, 1e30)
    before = copy.deepcopy(network.state_dict())
    optimizer.step()
    assert all(not torch.equal(v, before[n]) for n, v in network.state_dict().items())
    with pytest.raises(ValueError, match="Invalid limit"):
        gradstep.SkipNonFinite(adamw(model()), limit=-1)


def test_frozen_parameters_stand_still_and_thaw() -> None:
    network, apart = model(), model()
    optimizer = gradstep.Freeze(adamw(network), "0.*", "*.bias")
    assert optimizer.frozen() == ["0.weight", "0.bias", "2.bias"]
    before = copy.deepcopy(network.state_dict())
    learn(network, optimizer, range(2))
    changed = [n for n, v in network.state_dict().items() if not torch.equal(v, before[n])]
    assert changed == ["2.weight"] and list(optimizer.state) == [network[2].weight]
    assert all(p.grad is not None for p in network.parameters())
    optimizer.patterns = []
    learn(network, optimizer, range(2, 3))
    assert optimizer.state[network[0].weight]["step"] == 1
    with pytest.raises(
        ValueError, match=r"'decoder\.\*' fits no parameter; the first is '0.weight"
    ):
        gradstep.Freeze(adamw(model()), "decoder.*")
    with pytest.raises(ValueError, match=r"give it model\.named_parameters\(\)"):
        gradstep.Freeze(gradstep.Adam(apart.parameters()), "0.*")


def test_noise_on_gradients() -> None:
    """Normal, of the paper's variance, new at each step, and of a generator of its own."""
    weight = nn.Parameter(torch.zeros(100_000, dtype=torch.float64))
    optimizer = gradstep.GradientNoise(gradstep.SGD([weight], lr=1.0), eta=0.3, gamma=0.55)
    gradient = torch.full_like(weight, 2.0)
    weight.grad = gradient
    before, drawn = torch.get_rng_state(), []
    for step in range(3):
        old = weight.detach().clone()
        optimizer.step()
        noise = old - weight.detach() - 2
        drawn.append(noise)
        deviation = (0.3 / (1 + step) ** 0.55) ** 0.5
        assert abs(noise.mean()) < 4 * deviation / 100_000**0.5
        assert float(noise.std()) == pytest.approx(deviation, rel=0.01)
    assert abs(float(drawn[0] @ drawn[1])) < 5 * 0.3 * 100_000**0.5
    assert weight.grad is gradient and (gradient == 2).all()
    assert torch.equal(torch.get_rng_state(), before)
    for number in ({"eta": -1.0}, {"gamma": float("nan")}):
        with pytest.raises(ValueError, match="Invalid"):
            gradstep.GradientNoise(adamw(model()), **number)
    sparse = nn.Embedding(5, 2, sparse=True)
    optimizer = gradstep.GradientNoise(gradstep.SGD(sparse.parameters(), lr=1.0))
    sparse(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()


# Many processes.


def shared(rank: int, name: str) -> list[Any]:
    network: Any = fully_shard(model(), mesh=init_device_mesh("cpu", (2,)))
    optimizer = WRAPPERS[name](network)
    learn(network, optimizer, range(4))
    return reached(network, optimizer)


def reached(network: nn.Module, optimizer: Any) -> list[Any]:
    """The weights, and their averages where there are some."""
    params = list(network.parameters())
    found = [whole(p) for p in params]
    if hasattr(optimizer, "averages"):
        with optimizer.averages():
            found += [whole(p) for p in params]
    return found


def whole(p: torch.Tensor) -> Any:
    full: torch.Tensor = getattr(p, "full_tensor", lambda: p)()
    return full.detach().numpy().copy()


@pytest.mark.parametrize("name", ["all", "ASAM", "EMA of a partition"])
def test_split_weights_reach_what_whole_ones_do(name: str) -> None:
    alone = model()
    optimizer = WRAPPERS[name](alone)
    learn(alone, optimizer, range(4))
    expected = reached(alone, optimizer)
    for found in run_ranks(shared, 2, name):
        for a, b in zip(found, expected, strict=True):
            assert abs(a - b).max() <= 2e-3 * max(1.0, abs(b).max())
