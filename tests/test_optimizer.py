"""The optimizer as a torch.optim.Optimizer: each protocol of torch, against the real thing."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import swa_utils

import gradstep
from gradstep.optimizer.optimizer import planner_of

#: Class, and arguments that switch on most of its states.
CLASSES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.2, "weight_decay": 0.01}),
    ("Adam", {"lr": 0.01, "amsgrad": True, "weight_decay": 0.01}),
    ("AdamW", {"lr": 0.01}),
    ("RMSprop", {"lr": 0.01, "momentum": 0.9, "centered": True}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.01, "initial_accumulator_value": 0.1}),
    ("Adadelta", {"lr": 0.5, "weight_decay": 0.01}),
    ("Adamax", {"lr": 0.01}),
    ("ASGD", {"lr": 0.05, "t0": 4.0}),
    ("NAdam", {"lr": 0.01, "decoupled_weight_decay": True, "weight_decay": 0.01}),
    ("RAdam", {"lr": 0.01}),
    ("Rprop", {"lr": 0.01}),
    ("Lion", {"lr": 0.01, "weight_decay": 0.1}),
]
IN_TORCH = [(name, options) for name, options in CLASSES if hasattr(torch.optim, name)]


def label(value: Any) -> str:
    return value if isinstance(value, str) else "-".join(map(str, value)) or "default"


classes = pytest.mark.parametrize(("name", "options"), CLASSES, ids=label)
torch_classes = pytest.mark.parametrize(("name", "options"), IN_TORCH, ids=label)


@gradstep.rule
def heavy_ball(g: Any, velocity: Any, *, momentum: gradstep.Decay = 0.9) -> Any:
    """A rule of the tests' own, at a module's top so that it can be pickled."""
    velocity = momentum * velocity + g
    return velocity, velocity


def weights(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """Four parameters, the same at each call: matrix, vector, 0-dim and channels-last."""
    random = torch.Generator().manual_seed(1)
    made = [torch.randn(shape, generator=random) for shape in ((5, 3), (7,), (), (2, 3, 4, 4))]
    made[3] = made[3].to(memory_format=torch.channels_last)
    return [nn.Parameter(w.to(dtype)) for w in made]


def feed(params: list[nn.Parameter], number: int, skip: set[int] | None = None) -> None:
    """Gradients of step ``number``: those of the same number are the same, for any model."""
    random = torch.Generator().manual_seed(100 + number)
    for position, p in enumerate(params):
        g = torch.randn(p.shape, generator=random).to(p.dtype)
        if p.is_complex():
            g = torch.complex(g.real, torch.randn(p.shape, generator=random).to(g.real.dtype))
        p.grad = None if skip and position in skip else torch.empty_like(p).copy_(g).detach()


def copies(tensors: Any) -> list[Tensor]:
    return [t.detach().clone() for t in tensors]


def assert_same_bits(left: Any, right: Any) -> None:
    for a, b in zip(copies(left), copies(right), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def assert_close(left: Any, right: Any, units: float = 8) -> None:
    """Within ``units`` eps of the largest weight."""
    for a, b in zip(copies(left), copies(right), strict=True):
        assert a.dtype == b.dtype
        if a.numel():
            bound = units * torch.finfo(a.dtype).eps * max(1.0, b.abs().max().item())
            assert (a - b).abs().max().item() <= bound


def network() -> nn.Sequential:
    random = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))
    for p in model.parameters():
        p.data.copy_(torch.randn(p.shape, generator=random) * 0.3)
    return model


def batch(number: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(500 + number)
    return torch.randn(8, 6, generator=random), torch.randint(0, 4, (8,), generator=random)


def train(model: nn.Module, optimizer: Any, numbers: range) -> None:
    for number in numbers:
        images, targets = batch(number)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()


def make(name: str, params: Any, **options: Any) -> Any:
    return getattr(gradstep, name)(params, **options)


def make_torch(name: str, params: Any, **options: Any) -> Any:
    return getattr(torch.optim, name)(params, foreach=False, **options)


# Groups and names.


@torch_classes
def test_groups_have_options_of_their_own(name: str, options: dict[str, Any]) -> None:
    ours, theirs = weights(), weights()
    pair = []
    for params, maker in ((ours, make), (theirs, make_torch)):
        groups = [
            {"params": params[:2]},
            {"params": params[2], "lr": 0.5, "weight_decay": 0.0},
            {"params": iter(params[3:]), "maximize": True},
        ]
        pair.append(maker(name, groups, **options))
    for number in range(10):
        for params, optimizer in zip((ours, theirs), pair, strict=True):
            feed(params, number)
            optimizer.step()
    assert [set(g) for g in pair[0].param_groups] == [set(g) for g in pair[1].param_groups]
    assert_close(ours, theirs)


def test_it_is_an_optimizer_of_torch_and_prints_like_one() -> None:
    ours, theirs = gradstep.Adam(weights()), torch.optim.Adam(weights())
    assert isinstance(ours, torch.optim.Optimizer)
    assert repr(ours) == repr(theirs)


def test_named_parameters_stand_in_groups_checkpoints_and_reports() -> None:
    model = network()
    optimizer = gradstep.Adam(model.named_parameters())
    names = [name for name, _ in model.named_parameters()]
    assert optimizer.param_groups[0]["param_names"] == names
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == names
    assert [name for name, _ in planner_of(optimizer).named()] == names
    train(model, optimizer, range(1))
    assert optimizer.engines_used() == dict.fromkeys(names, "fused")


def test_a_group_added_in_training() -> None:
    ours, theirs = weights(), weights()
    left, right = gradstep.Adam(ours[:2], lr=0.01), make_torch("Adam", theirs[:2], lr=0.01)
    for number in range(8):
        if number == 4:
            left.add_param_group({"params": ours[2:], "lr": 0.1})
            right.add_param_group({"params": theirs[2:], "lr": 0.1})
        for params, optimizer in ((ours, left), (theirs, right)):
            feed(params, number)
            optimizer.step()
    assert_close(ours, theirs)
    assert [left.state[p]["step"].item() for p in ours] == [8, 8, 4, 4]


def test_a_refused_group_leaves_the_optimizer_as_it_was() -> None:
    params = weights()
    optimizer = gradstep.Adam(params[:2])
    for bad in (
        {"params": params[2:], "lr": -1.0},
        {"params": params[2:], "betas": (0.9, 1.0)},
        {"params": params[:1]},
        {"params": [torch.zeros(3, dtype=torch.int64)]},
    ):
        with pytest.raises((ValueError, TypeError)):
            optimizer.add_param_group(bad)
        assert [len(g["params"]) for g in optimizer.param_groups] == [2]
    feed(params, 0)
    optimizer.step()
    assert len(optimizer.state) == 2


# Hooks.


def test_step_hooks_of_the_optimizer() -> None:
    calls: list[str] = []
    ours = weights()
    optimizer = gradstep.SGD(ours, lr=0.1)
    before = copies(ours)

    def pre(given: Any, args: Any, kwargs: Any) -> None:
        assert given is optimizer
        assert_same_bits(ours, before)
        calls.append("pre")

    def post(given: Any, args: Any, kwargs: Any) -> None:
        assert given is optimizer
        assert not torch.equal(ours[0].detach(), before[0])
        calls.append("post")

    handles = [
        optimizer.register_step_pre_hook(pre),
        optimizer.register_step_post_hook(post),
    ]
    feed(ours, 0)
    optimizer.step()
    assert calls == ["pre", "post"]
    for handle in handles:
        handle.remove()
    optimizer.step()
    assert calls == ["pre", "post"]


def test_hooks_see_and_change_what_torch_lets_them() -> None:
    seen: list[list[Any]] = []
    for maker in (make, make_torch):
        params = weights()
        optimizer = maker("SGD", params, lr=0.1)
        own: list[Any] = []
        seen.append(own)

        def closure(params: Any = params) -> float:
            feed(params, 0)
            return 1.5

        def other(params: Any = params) -> float:
            feed(params, 1)
            return 2.5

        def pre(given: Any, args: Any, kwargs: Any, own: Any = own, other: Any = other) -> Any:
            own.append((len(args), args[0] is given, kwargs))
            return ((given, other), {}) if len(args) == 2 else None

        optimizer.register_step_pre_hook(pre)
        own.append(optimizer.step(closure))
        own.append(optimizer.step())
        own.extend(copies(params))
    for ours, theirs in zip(*seen, strict=True):
        if isinstance(ours, Tensor):
            assert torch.equal(ours, theirs)
        else:
            assert ours == theirs
    assert seen[0][1] == 2.5  # the closure that the hook put in place of the given one


def test_a_hook_that_raises_stops_the_step() -> None:
    params = weights()
    optimizer = gradstep.Adam(params)
    feed(params, 0)
    before = copies(params)

    def refuse(*_: Any) -> None:
        raise KeyError("not now")

    handle = optimizer.register_step_pre_hook(refuse)
    with pytest.raises(KeyError):
        optimizer.step()
    assert_same_bits(params, before)
    assert not optimizer.state
    handle.remove()
    optimizer.step()
    assert len(optimizer.state) == 4


def test_state_dict_hooks() -> None:
    calls: list[str] = []
    params = weights()
    optimizer = gradstep.Adam(params)
    feed(params, 0)
    optimizer.step()

    def note(call: str, change: Callable[[Any], None] | None = None) -> Callable[..., Any]:
        def hook(given: Any, *state: Any) -> Any:
            calls.append(call)
            assert given is optimizer
            if change is None or not state:
                return None
            changed = copy.deepcopy(state[0])
            change(changed)
            return changed

        return hook

    optimizer.register_state_dict_pre_hook(note("before saving"))
    optimizer.register_state_dict_post_hook(note("saved", lambda s: s.update(extra=7)))

    def rename(state: dict[str, Any]) -> None:
        state["param_groups"][0]["lr"] = 0.25
        del state["extra"]

    optimizer.register_load_state_dict_pre_hook(note("before loading", rename))
    optimizer.register_load_state_dict_post_hook(note("loaded"))
    saved = optimizer.state_dict()
    assert saved["extra"] == 7
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert calls == ["before saving", "saved", "before loading", "loaded"]


# Closures and zero_grad.


@classes
def test_a_closure_is_called_first_and_its_loss_returned(
    name: str, options: dict[str, Any]
) -> None:
    models = [network(), network()]
    plain, closed = (make(name, m.parameters(), **options) for m in models)
    for number in range(5):
        train(models[0], plain, range(number, number + 1))
        images, targets = batch(number)

        def closure(images: Tensor = images, targets: Tensor = targets) -> Tensor:
            assert torch.is_grad_enabled()
            closed.zero_grad()
            loss = nn.functional.cross_entropy(models[1](images), targets)
            loss.backward()
            return loss

        with torch.no_grad():  # a closure has gradients even here
            loss = closed.step(closure)
        assert isinstance(loss, Tensor) and loss.item() > 0
    assert_same_bits(models[0].parameters(), models[1].parameters())
    assert plain.step() is None


def test_zero_grad() -> None:
    params = weights()
    optimizer = gradstep.SGD(params, lr=0.1)
    feed(params, 0)
    kept = [p.grad for p in params]
    optimizer.zero_grad(set_to_none=False)
    for p, g in zip(params, kept, strict=True):
        assert p.grad is g and not g.any()
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)
    before = copies(params)
    optimizer.step()
    assert_same_bits(params, before)


# Copies in the middle of training.


def half_way(name: str, options: dict[str, Any]) -> tuple[nn.Module, Any]:
    model = network()
    optimizer = make(name, model.named_parameters(), **options)
    train(model, optimizer, range(4))
    return model, optimizer


@classes
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_a_copy_in_the_middle_of_training_goes_on_alike(
    name: str, options: dict[str, Any], how: str, tmp_path: Any
) -> None:
    model, optimizer = half_way(name, options)
    if how == "deepcopy":
        copied = copy.deepcopy((model, optimizer))
    elif how == "pickle":
        copied = pickle.loads(pickle.dumps((model, optimizer)))
    else:
        torch.save((model, optimizer), tmp_path / "both.pt")
        copied = torch.load(tmp_path / "both.pt", weights_only=False)
    assert type(copied[1]) is type(optimizer)
    at_copy = copies(model.parameters())
    train(*copied, range(4, 9))
    assert_same_bits(model.parameters(), at_copy)  # the copy shares nothing with the original
    train(model, optimizer, range(4, 9))
    assert_same_bits(model.parameters(), copied[0].parameters())
    for p, q in zip(model.parameters(), copied[0].parameters(), strict=True):
        states, copied_states = optimizer.state[p], copied[1].state[q]
        assert set(states) == set(copied_states)
        assert_same_bits(states.values(), copied_states.values())


@pytest.mark.parametrize("kind", ["own", "chain", "twice"])
def test_rules_of_ones_own_are_pickled_with_their_numbers(kind: str) -> None:
    rule = {
        "own": heavy_ball(momentum=0.8),
        "chain": gradstep.chain(
            gradstep.clip_by_value(limit=0.01), gradstep.adam(), gradstep.decay_weights()
        ),
        "twice": gradstep.chain(heavy_ball, heavy_ball(momentum=0.5)),
    }[kind]
    model = network()
    optimizer = gradstep.Optimizer(model.parameters(), rule, lr=0.01)
    train(model, optimizer, range(3))
    copied = pickle.loads(pickle.dumps((model, optimizer)))
    assert planner_of(copied[1]).rule.hyperparameters == rule.hyperparameters
    train(model, optimizer, range(3, 6))
    train(*copied, range(3, 6))
    assert_same_bits(model.parameters(), copied[0].parameters())


# Profiler and version counters.


def test_the_profiler_shows_the_step_under_torchs_name() -> None:
    model = network()
    optimizer = gradstep.Adam(model.parameters())
    train(model, optimizer, range(2))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        train(model, optimizer, range(2, 5))
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["Optimizer.step#Adam.step"] == 3
    assert counts["Optimizer.zero_grad#Adam.zero_grad"] == 3


@pytest.mark.parametrize("engine", ["fused", "eager"])
@classes
def test_a_step_counts_as_a_write_in_place(name: str, options: dict[str, Any], engine: str) -> None:
    params = weights()
    optimizer = make(name, params, engine=engine, **options)
    for number in range(3):
        loss = sum((p * p).sum() for p in params)  # keeps the weights for the backward pass
        feed(params, number, skip={1})
        before = [p._version for p in params]
        optimizer.step()
        after = [p._version for p in params]
        assert [a > b for a, b in zip(after, before, strict=True)] == [True, False, True, True]
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


# Numbers that are tensors, numbers that change.


@classes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lr_as_a_tensor(name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    lr = torch.tensor(0.03125, dtype=dtype)
    plain, given = weights(), weights()
    left = make(name, plain, **{**options, "lr": 0.03125})
    right = make(name, given, **{**options, "lr": lr})
    for number in range(6):
        if number == 3:
            lr.fill_(0.5)  # in place, as a scheduler does it
            left.param_groups[0]["lr"] = 0.5
        for params, optimizer in ((plain, left), (given, right)):
            feed(params, number)
            optimizer.step()
    assert right.param_groups[0]["lr"] is lr
    assert_same_bits(plain, given)


def test_betas_as_tensors() -> None:
    plain, given = weights(), weights()
    betas = (torch.tensor(0.75), torch.tensor(0.9375))
    left, right = gradstep.Adam(plain, betas=(0.75, 0.9375)), gradstep.Adam(given, betas=betas)
    for number in range(6):
        if number == 3:
            betas[0].fill_(0.5)
            left.param_groups[0]["betas"] = (0.5, 0.9375)
        for params, optimizer in ((plain, left), (given, right)):
            feed(params, number)
            optimizer.step()
    assert_same_bits(plain, given)


@pytest.mark.parametrize(
    ("name", "options", "change"),
    [
        ("SGD", {}, {"momentum": 0.9}),
        ("SGD", {"momentum": 0.9, "dampening": 0.5}, {"momentum": 0.0}),
        ("SGD", {"momentum": 0.9}, {"nesterov": True}),
        ("SGD", {}, {"weight_decay": 0.1}),
        ("SGD", {"weight_decay": 0.1}, {"weight_decay": 0.0, "maximize": True}),
        ("Adam", {}, {"betas": (0.5, 0.9)}),
        ("Adam", {}, {"eps": 1e-3, "weight_decay": 0.1}),
        ("Adam", {"amsgrad": True}, {"amsgrad": False}),
        ("RMSprop", {"momentum": 0.9}, {"momentum": 0.0}),
        ("RMSprop", {"centered": True}, {"centered": False, "alpha": 0.5}),
        ("Adagrad", {}, {"lr_decay": 0.1}),
    ],
)
def test_options_changed_in_training_act_as_in_torch(
    name: str, options: dict[str, Any], change: dict[str, Any]
) -> None:
    ours, theirs = weights(), weights()
    left = make(name, ours, lr=0.05, **options)
    right = make_torch(name, theirs, lr=0.05, **options)
    original = {key: left.param_groups[0][key] for key in change}
    for number in range(12):
        if number in (4, 8):
            for optimizer in (left, right):
                optimizer.param_groups[0].update(change if number == 4 else original)
        for params, optimizer in ((ours, left), (theirs, right)):
            feed(params, number)
            optimizer.step()
        assert_close(ours, theirs)


def test_a_number_that_changes_compiles_nothing() -> None:
    from gradstep.backends.cpu import compiler

    params = weights()
    optimizer = gradstep.AdamW(params, lr=0.1)
    feed(params, 0)
    optimizer.step()
    compiled = len(compiler._functions)
    for number in range(1, 20):
        group = optimizer.param_groups[0]
        group["lr"] = 0.1 / number
        group["betas"] = (0.9 - number / 100, 0.99)
        group["weight_decay"] = 0.01 * number
        feed(params, number)
        optimizer.step()
    assert len(compiler._functions) == compiled


def test_a_tensor_that_takes_the_place_of_an_equal_number() -> None:
    """float32's 0.1 is not float64's, and a copy must go on with the same one."""
    p = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = gradstep.SGD([p], lr=0.1)
    feed([p], 0)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = torch.tensor(0.1)
    q, copied = copy.deepcopy((p, optimizer))
    feed([p], 1)
    feed([q], 1)
    optimizer.step()
    copied.step()
    assert_same_bits([p], [q])


# Mixed precision, clipping, averaging.


def test_clip_grad_norm() -> None:
    models = [network(), network()]
    optimizers = [
        gradstep.SGD(models[0].parameters(), lr=0.5),
        make_torch("SGD", models[1].parameters(), lr=0.5),
    ]
    for number in range(6):
        norms = []
        for model, optimizer in zip(models, optimizers, strict=True):
            images, targets = batch(number)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), targets).backward()
            norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.05))
            optimizer.step()
        assert norms[0] > 0.05 and torch.equal(*norms)
    assert_same_bits(models[0].parameters(), models[1].parameters())


def test_averaged_models_and_swa() -> None:
    finals = []
    for maker in (make, make_torch):
        model = network()
        optimizer = maker("SGD", model.parameters(), lr=0.2)
        averaged = swa_utils.AveragedModel(model)
        ema = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.8))
        schedule = swa_utils.SWALR(optimizer, swa_lr=0.05, anneal_epochs=3)
        for number in range(8):
            train(model, optimizer, range(number, number + 1))
            averaged.update_parameters(model)
            ema.update_parameters(model)
            schedule.step()
        finals.append([*model.parameters(), *averaged.parameters(), *ema.parameters()])
    assert_same_bits(*finals)
    assert not torch.equal(finals[0][0], finals[0][4])


# Hooks on gradients.


def test_gradient_accumulation() -> None:
    finals = []
    for maker in (make, make_torch):
        model = network()
        optimizer = maker("SGD", model.parameters(), lr=0.2)
        for number in range(9):
            images, targets = batch(number)
            (nn.functional.cross_entropy(model(images), targets) / 3).backward()
            if number % 3 == 2:
                optimizer.step()
                optimizer.zero_grad(set_to_none=number == 5)
        finals.append(list(model.parameters()))
    assert_same_bits(*finals)


# Maximize, sparse gradients, missing gradients.


@pytest.mark.parametrize("engine", ["fused", "eager"])
@classes
def test_maximize_is_descent_along_the_negative_gradient(
    name: str, options: dict[str, Any], engine: str
) -> None:
    up, down = weights(), weights()
    climbing = make(name, up, maximize=True, engine=engine, **options)
    descending = make(name, down, engine=engine, **options)
    for number in range(6):
        feed(up, number)
        feed(down, number)
        for p in down:
            p.grad.neg_()
        climbing.step()
        descending.step()
    assert_same_bits(up, down)


def sparse_gradient(number: int, shape: tuple[int, int], coalesced: bool) -> Tensor:
    random = torch.Generator().manual_seed(number)
    rows = torch.randint(0, shape[0], (1, 5), generator=random)
    if not coalesced:
        rows[0, 1] = rows[0, 0]  # one row named twice: its values add up
    values = torch.randn(5, shape[1], generator=random)
    g = torch.sparse_coo_tensor(rows, values, shape, check_invariants=True)
    return g.coalesce() if coalesced else g


@pytest.mark.parametrize("coalesced", [True, False], ids=["coalesced", "uncoalesced"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {"lr": 0.1}),
        ("SGD", {"lr": 0.1, "maximize": True}),
        ("SGD", {"lr": 0.1, "momentum": 0.9}),
        ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        ("Adagrad", {"lr": 0.1}),
        ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.1}),
        ("Adagrad", {"lr": 0.1, "maximize": True}),
    ],
)
def test_sparse_gradients(name: str, options: dict[str, Any], coalesced: bool) -> None:
    start = torch.randn(40, 3, generator=torch.Generator().manual_seed(2))
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    left, right = make(name, [ours], **options), make_torch(name, [theirs], **options)
    for number in range(8):
        before = ours.detach().clone()
        for p, optimizer in ((ours, left), (theirs, right)):
            p.grad = sparse_gradient(number, (40, 3), coalesced)
            optimizer.step()
            assert p.grad.is_sparse
        if "momentum" not in options:
            named = sparse_gradient(number, (40, 3), True).indices()[0]
            others = torch.ones(40, dtype=torch.bool).index_fill(0, named, False)
            assert torch.equal(ours[others], before[others])
            assert not torch.equal(ours[named], before[named])
        assert_close([ours], [theirs])


def test_an_embedding_with_sparse_gradients_beside_dense_layers() -> None:
    finals = []
    for maker in (make, make_torch):
        torch.manual_seed(4)
        model = nn.Sequential(nn.Embedding(30, 6, sparse=True), nn.Linear(6, 4))
        optimizer = maker("Adagrad", model.parameters(), lr=0.1)
        for number in range(6):
            words = torch.randint(0, 30, (8,), generator=torch.Generator().manual_seed(number))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(words), batch(number)[1]).backward()
            optimizer.step()
        finals.append(list(model.parameters()))
    assert_close(*finals, units=32)  # the gradients themselves follow the weights


@pytest.mark.parametrize("name", ["Adam", "AdamW", "RMSprop", "Lion"])
def test_sparse_gradients_are_refused_where_torch_refuses_them(name: str) -> None:
    dense, embedded = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(40, 3))
    optimizer = make(name, [("dense", dense), ("words", embedded)])
    before = copies([dense, embedded])
    dense.grad = torch.ones(4)
    embedded.grad = sparse_gradient(0, (40, 3), True)
    with pytest.raises(RuntimeError, match=r"sparse gradients, and words has one"):
        optimizer.step()
    assert_same_bits([dense, embedded], before)
    assert not optimizer.state
    embedded.grad = embedded.grad.to_dense()
    optimizer.step()
    assert len(optimizer.state) == 2


def test_decay_and_sparse_gradients_exclude_each_other_in_adagrad() -> None:
    for maker in (make, make_torch):
        p = nn.Parameter(torch.ones(40, 3))
        optimizer = maker("Adagrad", [p], weight_decay=0.1)
        p.grad = sparse_gradient(0, (40, 3), True)
        with pytest.raises(RuntimeError, match="weight_decay"):
            optimizer.step()


@torch_classes
def test_weights_without_a_gradient_at_times(name: str, options: dict[str, Any]) -> None:
    ours, theirs = weights(), weights()
    left, right = make(name, ours, **options), make_torch(name, theirs, **options)
    absent = [{0}, {1, 2}, set(), {0, 1, 2, 3}, {3}, set(), {2}, {0, 2}, set(), {1}]
    for number, skip in enumerate(absent):
        before = copies(ours)
        for params, optimizer in ((ours, left), (theirs, right)):
            feed(params, number, skip)
            optimizer.step()
        for position in skip:
            assert torch.equal(ours[position].detach(), before[position])
        assert_close(ours, theirs)
    for p, q in zip(ours, theirs, strict=True):
        assert left.state[p].get("step") == right.state[q].get("step")


# Dtypes and unusual models.


@classes
def test_mixed_dtypes_in_one_group(name: str, options: dict[str, Any]) -> None:
    dtypes = [torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.complex64]
    together = [weights(dtype)[0] for dtype in dtypes]
    apart = [weights(dtype)[0] for dtype in dtypes]
    if name == "Lion":
        together, apart = together[:4], apart[:4]
    optimizer = make(
        name, [("a", together[0]), *((str(p.dtype), p) for p in together[1:])], **options
    )
    own = [make(name, [p], **options) for p in apart]
    for number in range(6):
        for p, q, alone in zip(together, apart, own, strict=True):
            feed([p], number)
            feed([q], number)
            alone.step()
        optimizer.step()
    assert set(optimizer.engines_used().values()) == {"fused"}
    assert_same_bits(together, apart)


@pytest.mark.parametrize("engine", ["fused", "eager"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@torch_classes
def test_complex_weights(
    name: str, options: dict[str, Any], dtype: torch.dtype, engine: str
) -> None:
    ours, theirs = weights(dtype), weights(dtype)
    left = make(name, ours, engine=engine, **options)
    right = make_torch(name, theirs, **options)
    for number in range(10):
        for params, optimizer in ((ours, left), (theirs, right)):
            feed(params, number)
            optimizer.step()
    assert_close(ours, theirs)


@pytest.mark.parametrize("engine", ["fused", "eager"])
@pytest.mark.parametrize("dense", [True, False], ids=["dense", "strided"])
def test_gradients_that_are_lazy_conjugates(engine: str, dense: bool) -> None:
    start = torch.randn(6, 4, dtype=torch.complex64)
    given = torch.randn(6, 4, dtype=torch.complex64)[:, : 4 if dense else 2]
    finals = []
    for lazy in (True, False):
        base = start.clone()
        p = nn.Parameter(base if dense else base[:, ::2])
        optimizer = gradstep.Adam([p], lr=0.1, engine=engine)
        for _ in range(3):
            p.grad = given.conj() if lazy else given.conj().resolve_conj()
            assert p.grad.is_conj() == lazy
            optimizer.step()
        finals.append([p])
    assert_same_bits(*finals)


def test_tied_weights() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(12, 5)
            self.head = nn.Linear(5, 12, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, words: Tensor) -> Tensor:
            return self.head(self.embedding(words))

    finals = []
    for maker in (make, make_torch):
        torch.manual_seed(9)
        model = Tied()
        optimizer = maker("AdamW", model.parameters(), lr=0.01)
        assert len(optimizer.param_groups[0]["params"]) == 1
        words = torch.arange(12)
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(words), (words + 1) % 12).backward()
            optimizer.step()
        assert model.head.weight is model.embedding.weight
        finals.append(list(model.parameters()))
    assert_close(*finals, units=64)


@pytest.mark.parametrize("threads", [1, 2])
def test_weights_that_come_to_share_memory_in_training(threads: int) -> None:
    """Tied by their data: both are updated, one after the other, by any number of threads."""
    torch.set_num_threads(threads)
    finals = []
    for engine in ("fused", "eager"):
        random = torch.Generator().manual_seed(0)
        pair = [nn.Parameter(torch.randn(500, 600, generator=random)) for _ in range(2)]
        optimizer = gradstep.SGD(pair, lr=0.125, engine=engine)
        for number in range(4):
            if number == 2:
                pair[1].data = pair[0].data
            for p in pair:
                p.grad = torch.randn(500, 600, generator=random)
            optimizer.step()
        assert torch.equal(*pair)
        finals.append(pair)
    assert_same_bits(*finals)


def test_a_gradient_that_is_the_weight_itself() -> None:
    finals = []
    for engine in ("fused", "eager"):
        p = weights()[0]
        optimizer = gradstep.Adam([p], lr=0.1, engine=engine)
        for number in range(4):
            p.grad = p.data if number > 1 else p.detach().clone()
            optimizer.step()
        finals.append([p])
    assert_close(*finals)


def test_a_first_step_in_inference_mode() -> None:
    """Its states must be such that later steps may write them."""
    for engine in ("fused", "eager"):
        p = nn.Parameter(torch.ones(3))
        optimizer = gradstep.Adam([p], lr=0.1, engine=engine)
        p.grad = torch.ones(3)
        with torch.inference_mode():
            optimizer.step()
        optimizer.step()
        assert not any(s.is_inference() for s in optimizer.state[p].values())
        assert optimizer.state[p]["step"] == 2


def test_functional_call() -> None:
    model, called = network(), network()
    optimizer = gradstep.Adam(model.parameters(), lr=0.01)
    params = {n: p.detach().clone().requires_grad_() for n, p in called.named_parameters()}
    functional = gradstep.Adam(params.items(), lr=0.01)
    train(model, optimizer, range(5))
    for number in range(5):
        images, targets = batch(number)
        functional.zero_grad()
        output = torch.func.functional_call(called, params, (images,))
        nn.functional.cross_entropy(output, targets).backward()
        functional.step()
    assert_same_bits(model.parameters(), params.values())
    assert_same_bits(called.parameters(), network().parameters())


def test_a_compiled_model() -> None:
    plain, compiled = network(), network()
    wrapped = torch.compile(compiled, backend="aot_eager")
    optimizer = gradstep.AdamW(plain.parameters(), lr=0.01)
    other = gradstep.AdamW(wrapped.parameters(), lr=0.01)
    train(plain, optimizer, range(6))
    train(wrapped, other, range(6))
    assert set(other.engines_used().values()) == {"fused"}
    assert_close(plain.parameters(), compiled.parameters(), units=64)


class Numbers(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.randn(6, generator=torch.Generator().manual_seed(index)), torch.tensor(
            index % 4
        )


@pytest.mark.parametrize("workers", [2])
def test_a_loop_over_a_data_loader_with_workers(workers: int) -> None:
    finals = []
    for count in (0, workers):
        model = network()
        optimizer = gradstep.AdamW(model.parameters(), lr=0.01)
        loader = torch.utils.data.DataLoader(Numbers(), batch_size=8, num_workers=count)
        for _ in range(2):
            for images, targets in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images), targets).backward()
                optimizer.step()
        finals.append(list(model.parameters()))
    assert_same_bits(*finals)


def test_adagrad_shares_its_memory() -> None:
    params = weights()
    optimizer = gradstep.Adagrad(params)
    optimizer.share_memory()
    assert all(optimizer.state[p]["sum"].is_shared() for p in params)
    feed(params, 0)
    optimizer.step()
    assert all(optimizer.state[p]["sum"].is_shared() for p in params)
