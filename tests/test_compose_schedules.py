"""Schedules of any number: their shapes, and what an optimizer makes of them."""

from __future__ import annotations

import copy
import io
import math
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import lr_scheduler

import gradstep
from gradstep import schedule, torch_optim

# Shapes.


def torchs(make: Any, steps: int) -> list[float]:
    """The learning rates of a scheduler of torch, from 0.5, a step each."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
    scheduler = make(optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("ours", "theirs", "steps"),
    [
        (schedule.constant(0.5), lambda o: lr_scheduler.ConstantLR(o, 1.0), 5),
        (schedule.linear(0.5, 0.1, 8), lambda o: lr_scheduler.LinearLR(o, 1.0, 0.2, 8), 12),
        (schedule.cosine(0.5, 9, 0.05), lambda o: lr_scheduler.CosineAnnealingLR(o, 9, 0.05), 10),
        (schedule.exponential(0.5, 0.9), lambda o: lr_scheduler.ExponentialLR(o, 0.9), 9),
        (
            schedule.piecewise({4: 0.05, 0: 0.5, 7: 0.005}),
            lambda o: lr_scheduler.MultiStepLR(o, [4, 7], 0.1),
            10,
        ),
        (
            schedule.warmup(schedule.cosine(0.5, 6), 4),
            lambda o: lr_scheduler.SequentialLR(
                o,
                [
                    lr_scheduler.LambdaLR(o, lambda s: s / 4),
                    lr_scheduler.CosineAnnealingLR(o, 6),
                ],
                [4],
            ),
            10,
        ),
        (
            schedule.one_cycle(0.4, 20, rise=0.25, start_divisor=10, end_divisor=100),
            lambda o: lr_scheduler.OneCycleLR(
                o,
                0.4,
                20,
                pct_start=0.25,
                div_factor=10,
                final_div_factor=100,
                cycle_momentum=False,
            ),
            19,
        ),
        (
            schedule.polynomial(0.5, 8, power=1.5),
            lambda o: lr_scheduler.PolynomialLR(o, 8, 1.5),
            10,
        ),
        (
            schedule.cosine_restarts(0.5, 4, growth=3, end=0.1),
            lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4, 3, 0.1),
            60,
        ),
        (
            schedule.cosine_restarts(0.5, 5),
            lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 5),
            14,
        ),
        (
            schedule.cyclic(0.1, 0.5, 3, 5),
            lambda o: lr_scheduler.CyclicLR(o, 0.1, 0.5, 3, 5, cycle_momentum=False),
            20,
        ),
        (
            schedule.join(
                [schedule.linear(0.25, 0.5, 3), 0.5, schedule.exponential(0.5, 0.8)], [3, 7]
            ),
            lambda o: lr_scheduler.SequentialLR(
                o,
                [
                    lr_scheduler.LinearLR(o, 0.5, 1.0, 3),
                    lr_scheduler.ConstantLR(o, 1.0),
                    lr_scheduler.ExponentialLR(o, 0.8),
                ],
                [3, 7],
            ),
            12,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_the_shapes_that_torch_has(ours: Any, theirs: Any, steps: int) -> None:
    expected = torchs(theirs, steps)
    found = [ours(step) for step in range(steps)]
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_ends_stay() -> None:
    assert schedule.cosine(0.5, 9, 0.05)(1000) == pytest.approx(0.05)
    assert schedule.linear(0.5, 0.1, 8)(1000) == pytest.approx(0.1)
    cycle = schedule.one_cycle(0.5, 20)
    assert cycle(19) == cycle(1000) == pytest.approx(0.5 / 25 / 1e4)


def test_up_level_and_down() -> None:
    shape = schedule.warmup_stable_decay(1.0, 20, warmup=4, decay=5, end=0.5)
    assert [shape(s) for s in (0, 1, 4, 10, 15)] == [0.0, 0.25, 1.0, 1.0, 1.0]
    assert [shape(s) for s in (16, 19, 20, 99)] == pytest.approx([0.9, 0.6, 0.5, 0.5])
    assert schedule.warmup(3.0, 2, start=1.0)(1) == 2.0
    assert schedule.warmup(lambda step: 2.0 + step, 2)(4) == 4.0
    assert schedule.exponential(1.0, 0.5, 2)(3) == pytest.approx(0.5**1.5)


def test_restarts_that_end_and_shrink() -> None:
    """Hugging Face's formula for n steps in c cycles."""
    steps, cycles = 10, 3
    shape = schedule.cosine_restarts(0.5, steps / cycles, cycles=cycles)
    for step in range(14):
        share = step / steps
        wanted = 0.25 * (1 + math.cos(math.pi * (cycles * share % 1.0))) if share < 1 else 0.0
        assert shape(step) == pytest.approx(wanted, abs=1e-12), step
    shape = schedule.cosine_restarts(0.8, 4, shrink=0.5, growth=2, end=0.1)
    assert [shape(s) for s in (0, 4, 12)] == pytest.approx([0.8, 0.4, 0.2])
    assert schedule.floor(shape, 0.3)(3) == 0.3 and schedule.floor(shape, 0.3)(0) == 0.8


def test_the_root_behind_a_warmup_is_the_transformers() -> None:
    shape = schedule.warmup(schedule.inverse_square_root(0.5, 4), 4)
    wanted = [0.5 * min(s / 4, math.sqrt(4 / max(s, 1))) for s in range(20)]
    assert [shape(s) for s in range(20)] == pytest.approx(wanted)


@pytest.mark.parametrize("shape", ["linear", "cosine", "exponential", "1-sqrt", "minus_sqrt"])
def test_four_ways_down(shape: str) -> None:
    """Megatron's formulas."""
    ours = schedule.warmup_stable_decay(2.0, 20, warmup=4, decay=8, end=0.5, shape=shape)
    left = {
        "linear": lambda t: 1 - t,
        "cosine": lambda t: 0.5 * (math.cos(math.pi * t) + 1),
        "exponential": lambda t: 2.0 * 0.5**t - 1.0,
        "minus_sqrt": lambda t: 1 - t**0.5,
    }[shape.replace("1-", "minus_")]
    for step in range(12, 21):
        assert ours(step) == pytest.approx(0.5 + left((step - 12) / 8) * 1.5)
    assert [ours(s) for s in (0, 2, 4, 11, 99)] == [0.0, 1.0, 2.0, 2.0, 0.5]


def test_power_rex_and_lines() -> None:
    shape = schedule.power_cooldown(2.0, 20, warmup=2, cooldown=8, power=0.4, end=0.5)
    assert [shape(s) for s in (1, 5, 12, 20, 30)] == [1.0, 2.0, 2.0, 0.5, 0.5]
    assert shape(15) == pytest.approx(2.0 - 1.5 * (3 / 8) ** 0.4)
    assert schedule.power_cooldown(1.0, 10, power=2)(5) == pytest.approx(0.75)
    assert schedule.rex(1.0, 10)(4) == pytest.approx(0.6 / (0.5 + 0.5 * 0.6))
    lines = schedule.interpolate({0: 0.0, 4: 1.0, 6: 0.5})
    assert [lines(s) for s in (0, 1, 4, 5, 6, 9)] == [0.0, 0.25, 1.0, 0.75, 0.5, 0.5]


def test_parts_that_overlap() -> None:
    down = schedule.cosine(1.0, 500)
    with pytest.raises(
        ValueError, match=r"part 0 takes 500 steps from step 0 .* begins at step 400"
    ):
        schedule.join([down, 0.1], [400])
    with pytest.raises(
        ValueError, match=r"part 2 begins at step 600, and part 1 at step 600: they"
    ):
        schedule.join([down, 0.1, 0.2], [600, 600])
    with pytest.raises(ValueError, match="2 parts and 2 boundaries"):
        schedule.join([down, 0.1], [500, 600])
    assert schedule.join([down, 0.1], [500])(500) == 0.1


@pytest.mark.parametrize(
    "make",
    [
        lambda: schedule.cosine_restarts(1, -4),
        lambda: schedule.cosine_restarts(1, 4, cycles=0),
        lambda: schedule.cosine_restarts(1, 4, growth=0.5),
        lambda: schedule.polynomial(1, -5),
        lambda: schedule.polynomial(1, 5, power=0),
        lambda: schedule.inverse_square_root(1, -1),
        lambda: schedule.rex(1, -1),
        lambda: schedule.cyclic(0, 1, -3),
        lambda: schedule.interpolate({-4: 0.1, 0: 1.0}),
        lambda: schedule.join([0.1, 0.2], [-1]),
        lambda: schedule.warmup_stable_decay(1, 10, warmup=-1, decay=5),
        lambda: schedule.warmup_stable_decay(1, 10, warmup=1, decay=5, shape="round"),
        lambda: schedule.power_cooldown(1, -10),
        lambda: schedule.linear(1, 0, 0),
        lambda: schedule.cosine(1, 2.5),  # type: ignore[arg-type]
        lambda: schedule.exponential(1, 0),
        lambda: schedule.piecewise({1: 2.0}),
        lambda: schedule.warmup(1.0, 0),
        lambda: schedule.warmup_stable_decay(1, 10, warmup=6, decay=5),
        lambda: schedule.one_cycle(1, 10, rise=1.5),
    ],
)
def test_shapes_that_are_none(make: Any) -> None:
    with pytest.raises(ValueError, match=r"Invalid|fit into|interpolate\(\)|piecewise\(\)|rise"):
        make()


# In an optimizer.


def weights() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(s, generator=generator)) for s in ((4, 3), (5,))]


def give(params: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)


CLASSES = sorted(
    name
    for name in torch_optim.__all__
    if issubclass(getattr(gradstep, name), gradstep.Optimizer) and name != "SparseAdam"
)


@pytest.mark.parametrize("name", CLASSES)
def test_a_scheduled_rate_is_the_rate_set_by_hand(name: str) -> None:
    shape = schedule.warmup(schedule.cosine(0.02, 5), 2, start=0.001)
    scheduled, by_hand = weights(), weights()
    if name == "Muon":
        scheduled, by_hand = scheduled[:1], by_hand[:1]
    ours = getattr(gradstep, name)(scheduled, lr=shape)
    theirs = getattr(gradstep, name)(by_hand, lr=0.001)
    for step in range(6):
        give(scheduled, step)
        give(by_hand, step)
        theirs.param_groups[0]["lr"] = shape(step)
        ours.step()
        theirs.step()
        assert ours.param_groups[0]["lr"] == shape(step)
    assert all(map(torch.equal, scheduled, by_hand))
    assert ours.param_groups[0]["schedule_step"] == 6


@pytest.mark.parametrize("engine", ["fused", "eager"])
def test_any_number_may_follow_a_schedule(engine: str) -> None:
    """In a rule, in a chain, in a pair, by a plain function; and 0 at first."""
    beta = schedule.linear(0.5, 0.9, 4)
    scheduled, by_hand = weights(), weights()
    rule = gradstep.chain(
        gradstep.scale(lambda step: 1.0 if step < 3 else 0.5),
        gradstep.adam(beta1=beta),
        gradstep.decay_weights(schedule.linear(0.0, 0.2, 3)),
    )
    ours = gradstep.Optimizer(scheduled, rule, lr=0.01, engine=engine)
    plain = gradstep.chain(gradstep.scale(), gradstep.adam(), gradstep.decay_weights())
    theirs = gradstep.Optimizer(by_hand, plain, lr=0.01, engine=engine)
    for step in range(6):
        give(scheduled, step)
        give(by_hand, step)
        group = theirs.param_groups[0]
        group["factor"] = 1.0 if step < 3 else 0.5
        group["beta1"] = beta(step)
        group["decay_weights_weight_decay"] = 0.2 * min(1.0, step / 3)
        ours.step()
        theirs.step()
    assert all(map(torch.equal, scheduled, by_hand))
    pair = gradstep.Adam(weights(), betas=(beta, 0.99))
    give(pair.param_groups[0]["params"], 0)
    for _ in range(3):
        pair.step()
    assert pair.param_groups[0]["betas"] == (beta(2), 0.99)


def test_groups_have_schedules_of_their_own() -> None:
    a, b = weights()
    shape = schedule.exponential(0.5, 0.5)
    optimizer = gradstep.SGD(
        [{"params": [a]}, {"params": [b], "lr": 0.1, "momentum": schedule.linear(0.5, 1, 2)}],
        lr=shape,
    )
    for step in range(3):
        give([a, b], step)
        optimizer.step()
    first, second = optimizer.param_groups
    assert (first["lr"], first["momentum"]) == (0.125, 0.0)
    assert (second["lr"], second["momentum"]) == (0.1, 1.0)
    mine = {"params": [nn.Parameter(torch.ones(2))], "made_by": len}
    optimizer.add_param_group(mine)
    assert optimizer.param_groups[2]["lr"] == 0.5  # its own first step
    assert optimizer.param_groups[2]["made_by"] is len  # which is nobody's number
    assert optimizer.param_groups[2] is mine


def test_a_group_that_is_refused_leaves_the_others_their_schedules() -> None:
    a, b = weights()
    optimizer: Any
    for optimizer in (
        gradstep.SGD([a], lr=0.5),
        gradstep.partition({"rest": gradstep.sgd()}, [a], lr=0.5),
    ):
        given = {"params": [a], "lr": schedule.constant(0.25), "part": "rest"}
        with pytest.raises(ValueError, match="more than one"):
            optimizer.add_param_group(given)
        given["params"] = [b]
        optimizer.add_param_group(given)
        give([a, b], 0)
        optimizer.step()
        first, second = optimizer.param_groups
        assert "schedule_step" not in first and second["schedule_step"] == 1
        assert second["lr"] == 0.25


SHAPES = {"lr": schedule.cosine(0.05, 20), "weight_decay": schedule.linear(0.1, 0, 9)}


def make(params: Any) -> gradstep.Optimizer:
    return gradstep.AdamW(params, **SHAPES)


def test_it_resumes_and_is_copied_bit_for_bit() -> None:
    params = weights()
    optimizer = make(params)
    for step in range(4):
        give(params, step)
        optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    loaded = [nn.Parameter(p.detach().clone()) for p in params]
    resumed = make(loaded)
    resumed.load_state_dict(torch.load(file))
    others = [(loaded, resumed), copy.deepcopy((params, optimizer))]
    others.append(pickle.loads(pickle.dumps((params, optimizer))))
    for step in range(4, 8):
        for ps, each in ((params, optimizer), *others):
            give(ps, step)
            each.step()
    for ps, each in others:
        assert all(map(torch.equal, params, ps))
        assert each.param_groups[0]["lr"] == SHAPES["lr"](7)
        assert each.param_groups[0]["schedule_step"] == 8


def test_torchs_checkpoints_by_names() -> None:
    """Its steps with a learning rate of 0 do not count."""
    for steps in (0, 3):
        model, other = nn.Linear(3, 2), nn.Linear(3, 2)
        optimizer, twin = make(model.parameters()), make(other.parameters())
        for step in range(steps):
            give(list(model.parameters()), step)
            optimizer.step()
        saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
        assert optimizer.param_groups[0].get("schedule_step") == steps
        set_optimizer_state_dict(other, twin, saved)
        other.load_state_dict(model.state_dict())
        for step in range(3, 6):
            for m, o in ((model, optimizer), (other, twin)):
                give(list(m.parameters()), step)
                o.step()
        assert all(map(torch.equal, model.parameters(), other.parameters()))
        assert twin.param_groups[0]["lr"] == SHAPES["lr"](steps + 2)


def test_in_partitions_and_wrappers() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    shape = schedule.exponential(0.1, 0.5)
    partition = gradstep.partition(
        {"heads": gradstep.adam(), "rest": gradstep.sgd()}, model, lr={"heads": shape, "rest": 0.1}
    )
    optimizer = gradstep.EMA(partition, decay=schedule.linear(0.0, 1.0, 2))  # type: ignore[arg-type]
    for step in range(3):
        give(list(model.parameters()), step)
        optimizer.step()
    assert [g["lr"] for g in optimizer.param_groups] == [shape(2), 0.1]
    assert [g["average_decay"] for g in optimizer.param_groups] == [1.0, 1.0]
    skipping = gradstep.SkipNonFinite(make(model.parameters()))
    give(list(model.parameters()), 0)
    model[0].bias.grad.fill_(math.nan)  # type: ignore[union-attr]
    skipping.step()
    assert skipping.param_groups[0]["schedule_step"] == 0


# No fight.


def test_a_scheduler_of_torch_over_a_scheduled_rate_is_named() -> None:
    params = weights()
    optimizer = make(params)
    lr_scheduler.StepLR(optimizer, 30)
    before = [p.detach().clone() for p in params]
    give(params, 0)
    with pytest.raises(
        ValueError, match=r"lr of group 0 follows the schedule cosine.*lr_scheduler"
    ):
        optimizer.step()
    assert all(map(torch.equal, params, before))


def test_a_run_that_was_saved_under_torchs_scheduler_goes_on_under_a_schedule() -> None:
    params = weights()
    before = gradstep.AdamW(params, lr=0.1)
    lr_scheduler.StepLR(before, 30)
    give(params, 0)
    before.step()
    optimizer = make(params)
    optimizer.load_state_dict(before.state_dict())
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == SHAPES["lr"](0)


def test_a_scheduler_of_torch_over_lr_beside_schedules_of_other_numbers() -> None:
    params = weights()
    optimizer = gradstep.AdamW(params, lr=0.1, weight_decay=SHAPES["weight_decay"])
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)
    for step in range(3):
        give(params, step)
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.0125
    assert optimizer.param_groups[0]["weight_decay"] == SHAPES["weight_decay"](2)


def test_a_number_that_somebody_else_changes_is_named() -> None:
    params = weights()
    optimizer = make(params)
    give(params, 0)
    optimizer.step()
    optimizer.param_groups[0]["weight_decay"] = 0.7
    with pytest.raises(ValueError, match=r"weight_decay of group 0 follows .* from 0\.1 to 0\.7"):
        optimizer.step()


def test_numbers_that_are_not_allowed() -> None:
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        gradstep.SGD(weights(), lr=lambda step: -1.0)
    with pytest.raises(ValueError, match="beta1 must be at least 0 and below 1"):
        gradstep.adam(beta1=schedule.constant(1.0))
    with pytest.raises(TypeError, match="gives 'a' for step 0, not a number"):
        gradstep.SGD(weights(), lr=lambda step: "a")  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError, match="Invalid nesterov value"):
        gradstep.sgd(nesterov=schedule.constant(1.0))
    params = weights()
    optimizer = gradstep.SGD(params, lr=lambda step: 1.0 if step < 2 else math.nan)
    give(params, 0)
    optimizer.step()
    optimizer.step()
    before = [p.detach().clone() for p in params]
    for _ in range(2):
        with pytest.raises(ValueError, match="Invalid learning rate: nan"):
            optimizer.step()
    assert all(map(torch.equal, params, before))
    assert optimizer.param_groups[0]["schedule_step"] == 2
