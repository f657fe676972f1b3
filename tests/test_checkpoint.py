"""Checkpoints: to torch.optim's class of the same name and back, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradstep
from gradstep.optimizer import checkpoint

CASES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ("Adam", {"lr": 0.01, "weight_decay": 0.01}),
    ("Adam", {"lr": 0.01, "amsgrad": True}),
    ("AdamW", {"lr": 0.01}),
    ("AdamW", {"lr": 0.01, "amsgrad": True, "maximize": True}),
    ("RMSprop", {"lr": 0.01}),
    ("RMSprop", {"lr": 0.01, "centered": True, "momentum": 0.9}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.1}),
    ("Adadelta", {"lr": 0.5}),
    ("Adamax", {"lr": 0.01, "weight_decay": 0.01}),
    ("ASGD", {"lr": 0.05, "t0": 4.0}),
    ("NAdam", {"lr": 0.01}),
    ("RAdam", {"lr": 0.01}),
    ("Rprop", {"lr": 0.01}),
]
ALL = [*CASES, ("Lion", {"lr": 0.01})]
COUNTING = [case for case in CASES if case[0] != "SGD"]


def label(value: Any) -> str:
    return value if isinstance(value, str) else "-".join(map(str, value)) or "default"


def cases(rows: Any) -> Any:
    return pytest.mark.parametrize(("name", "options"), rows, ids=label)


def weights(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(1)
    shapes = ((5, 3), (7,), (), (2, 3, 4, 4))
    return [nn.Parameter(torch.randn(s, generator=random).to(dtype)) for s in shapes]


def ours(name: str, params: Any, **options: Any) -> Any:
    return getattr(gradstep, name)(params, **options)


def theirs(name: str, params: Any, **options: Any) -> Any:
    return getattr(torch.optim, name)(params, foreach=False, **options)


def go(params: list[nn.Parameter], optimizer: Any, numbers: range) -> None:
    """Steps with gradients that depend on the number alone; the last weight often has none."""
    for number in numbers:
        random = torch.Generator().manual_seed(100 + number)
        for position, p in enumerate(params):
            g = torch.randn(p.shape, generator=random).to(p.dtype)
            absent = position == 3 and number % 3 == 0
            p.grad = None if absent else torch.empty_like(p).copy_(g).detach()
        optimizer.step()


def continued(start: list[nn.Parameter], dtype: torch.dtype | None = None) -> list[nn.Parameter]:
    """New parameters with the weights of others."""
    return [nn.Parameter(p.detach().clone().to(dtype or p.dtype)) for p in start]


def assert_same_bits(left: Any, right: Any) -> None:
    for a, b in zip(list(left), list(right), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert torch.equal(a.detach(), b.detach())


def assert_close(left: Any, right: Any) -> None:
    for a, b in zip(list(left), list(right), strict=True):
        bound = 8 * torch.finfo(a.dtype).eps * max(1.0, b.abs().max().item())
        assert (a - b).abs().max().item() <= bound


def assert_same_state(left: Any, right: Any) -> None:
    """Two state dicts with the same keys and bits."""
    assert set(left["state"]) == set(right["state"])
    for key, entry in left["state"].items():
        assert set(entry) == set(right["state"][key])
        for name, value in entry.items():
            other = right["state"][key][name]
            assert value.dtype == other.dtype and torch.equal(value, other), (key, name)
    assert left["param_groups"] == right["param_groups"]


# To torch and back.


@cases(CASES)
def test_the_same_keys_as_torchs(name: str, options: dict[str, Any]) -> None:
    saved = []
    for maker in (ours, theirs):
        params = weights()
        optimizer = maker(name, params, **options)
        go(params, optimizer, range(4))
        saved.append(optimizer.state_dict())
    left, right = saved
    assert {k: set(e) for k, e in left["state"].items()} == {
        k: {n for n, v in e.items() if v is not None} for k, e in right["state"].items()
    }
    for k, entry in left["state"].items():
        for n, value in entry.items():
            other = right["state"][k][n]
            assert value.shape == other.shape and value.dtype == other.dtype
    groups = [{k: v for k, v in s["param_groups"][0].items() if k != "foreach"} for s in saved]
    assert groups[0] == groups[1]


@cases(CASES)
@pytest.mark.parametrize("direction", ["ours to torch", "torch to ours"])
def test_training_goes_on_in_the_other_library(
    name: str, options: dict[str, Any], direction: str
) -> None:
    first, second = (ours, theirs) if direction == "ours to torch" else (theirs, ours)
    whole = weights()
    uninterrupted = first(name, whole, **options)
    go(whole, uninterrupted, range(12))

    half = weights()
    optimizer = first(name, half, **options)
    go(half, optimizer, range(6))
    rest = continued(half)
    other = second(name, rest, lr=99.0)  # every option comes from the checkpoint
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    go(rest, other, range(6, 12))
    assert_close(rest, whole)
    for p, q in zip(rest, whole, strict=True):
        assert other.state[p].get("step") == uninterrupted.state[q].get("step")


@cases(CASES)
@pytest.mark.parametrize("direction", ["ours", "torch"])
def test_a_visit_to_the_other_library_changes_no_bit(
    name: str, options: dict[str, Any], direction: str
) -> None:
    home, abroad = (ours, theirs) if direction == "ours" else (theirs, ours)
    whole = weights()
    uninterrupted = home(name, whole, **options)
    go(whole, uninterrupted, range(12))

    half = weights()
    optimizer = home(name, half, **options)
    go(half, optimizer, range(6))
    visitor = abroad(name, continued(half), **options)
    visitor.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    rest = continued(half)
    returned = home(name, rest, **options)
    returned.load_state_dict(copy.deepcopy(visitor.state_dict()))
    go(rest, returned, range(6, 12))
    assert_same_bits(rest, whole)
    assert_same_state(returned.state_dict(), uninterrupted.state_dict())


# Through a file.


def test_lr_and_betas_as_tensors_are_kept(tmp_path: Path) -> None:
    params = weights()
    betas = (torch.tensor(0.8), torch.tensor(0.95))
    optimizer = gradstep.Adam(params, lr=torch.tensor(0.02), betas=betas)
    go(params, optimizer, range(3))
    torch.save(optimizer.state_dict(), tmp_path / "a.pt")
    rest = continued(params)
    resumed = gradstep.Adam(rest)
    resumed.load_state_dict(torch.load(tmp_path / "a.pt", weights_only=True))
    assert resumed.param_groups[0]["lr"] == torch.tensor(0.02)
    go(params, optimizer, range(3, 6))
    go(rest, resumed, range(3, 6))
    assert_same_bits(rest, params)


# Old and unusual checkpoints.


@cases(COUNTING)
@pytest.mark.parametrize("kind", [int, float, torch.tensor, lambda s: torch.tensor([int(s)])])
def test_old_checkpoints_count_steps_in_plain_numbers(
    name: str, options: dict[str, Any], kind: Callable[[float], Any]
) -> None:
    whole, half = weights(), weights()
    uninterrupted = ours(name, whole, **options)
    go(whole, uninterrupted, range(8))
    before = theirs(name, half, **options)
    go(half, before, range(4))
    saved = copy.deepcopy(before.state_dict())
    for entry in saved["state"].values():
        entry["step"] = kind(entry["step"].item())
    for group in saved["param_groups"]:  # options that came later
        for key in ("foreach", "maximize", "capturable", "differentiable", "fused"):
            if not options.get(key):
                group.pop(key, None)
    rest = continued(half)
    resumed = ours(name, rest, **options)
    resumed.load_state_dict(saved)
    go(rest, resumed, range(4, 8))
    assert_close(rest, whole)
    for p, q in zip(rest, whole, strict=True):
        assert resumed.state[p]["step"].item() == uninterrupted.state[q]["step"].item()


@cases(ALL)
def test_a_contiguous_checkpoint_in_a_channels_last_model(
    name: str, options: dict[str, Any]
) -> None:
    whole = weights()
    uninterrupted = ours(name, whole, **options)
    go(whole, uninterrupted, range(8))
    half = weights()
    optimizer = ours(name, half, **options)
    go(half, optimizer, range(5))
    rest = continued(half)
    rest[3].data = rest[3].data.to(memory_format=torch.channels_last)
    resumed = ours(name, rest, **options)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for state in resumed.state[rest[3]].values():
        if state.dim():
            assert state.stride() == rest[3].stride()
    go(rest, resumed, range(5, 8))
    assert rest[3].is_contiguous(memory_format=torch.channels_last)
    assert_same_bits(rest, whole)
    assert set(resumed.engines_used().values()) == {"fused"}


def test_a_model_that_becomes_channels_last_in_training() -> None:
    whole, changed = weights(), weights()
    left, right = gradstep.Adam(whole, lr=0.01), gradstep.Adam(changed, lr=0.01)
    go(whole, left, range(9))
    go(changed, right, range(3))
    changed[3].data = changed[3].data.to(memory_format=torch.channels_last)
    go(changed, right, range(3, 6))
    assert right.state[changed[3]]["exp_avg"].stride() == changed[3].stride()
    changed[3].data = changed[3].data.contiguous()
    go(changed, right, range(6, 9))
    assert right.state[changed[3]]["exp_avg"].is_contiguous()
    assert_same_bits(changed, whole)


@cases(CASES)
def test_a_checkpoint_of_the_model_in_another_dtype_is_converted_as_torch_does(
    name: str, options: dict[str, Any]
) -> None:
    half = weights(torch.float64)
    optimizer = ours(name, half, **options)
    go(half, optimizer, range(4))
    results = []
    for maker in (ours, theirs):
        rest = continued(half, torch.float32)
        resumed = maker(name, rest, **options)
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        go(rest, resumed, range(4, 8))
        results.append(rest)
        for p in rest:
            for key, state in resumed.state[p].items():
                assert state.dtype == (torch.float32 if key != "step" else state.dtype)
    assert_close(*results)


def test_weights_without_a_state_stay_without_one() -> None:
    params = weights()
    optimizer = gradstep.Adam(params, lr=0.01)
    params[0].grad = torch.ones_like(params[0])
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    assert list(saved["state"]) == [0]
    rest = weights()
    resumed = gradstep.Adam(rest)
    go(rest, resumed, range(3))
    resumed.load_state_dict(saved)
    assert len(resumed.state) == 1
    go(rest, resumed, range(3))
    assert [resumed.state[p]["step"].item() for p in rest] == [4, 3, 3, 2]


@pytest.mark.parametrize(
    ("name", "options", "change"),
    [
        ("SGD", {"momentum": 0.9}, {"momentum": 0.0}),
        ("SGD", {}, {"momentum": 0.9}),
        ("RMSprop", {"momentum": 0.9}, {"momentum": 0.0}),
        ("RMSprop", {}, {"momentum": 0.9, "centered": True}),
        ("Adam", {"amsgrad": True}, {"amsgrad": False}),
        ("Adam", {}, {"amsgrad": True}),
    ],
)
def test_an_option_that_changed_just_before_saving(
    name: str, options: dict[str, Any], change: dict[str, Any]
) -> None:
    """A state is left over then, or still to come."""
    params = weights()
    optimizer = ours(name, params, lr=0.01, **options)
    go(params, optimizer, range(4))
    optimizer.param_groups[0].update(change)
    rest = continued(params)
    resumed = ours(name, rest)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for number in range(4, 12):
        if number == 8:  # and back
            for o in (optimizer, resumed):
                o.param_groups[0].update({k: options.get(k, 0) for k in change if k == "momentum"})
        go(params, optimizer, range(number, number + 1))
        go(rest, resumed, range(number, number + 1))
        assert_same_bits(rest, params)


def test_the_initial_lr_of_a_scheduler_is_kept() -> None:
    params = weights()
    optimizer = gradstep.SGD(params, lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    for number in range(5):
        go(params, optimizer, range(number, number + 1))
        scheduler.step()
    saved = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    rest = continued(params)
    resumed = gradstep.SGD(rest, lr=7.0)
    schedule = torch.optim.lr_scheduler.StepLR(resumed, 2, 0.5)
    resumed.load_state_dict(saved[0])
    schedule.load_state_dict(saved[1])
    assert resumed.param_groups[0]["initial_lr"] == 0.1
    for number in range(5, 8):
        go(params, optimizer, range(number, number + 1))
        scheduler.step()
        go(rest, resumed, range(number, number + 1))
        schedule.step()
    assert_same_bits(rest, params)


def test_names_in_a_checkpoint_can_reorder_it() -> None:
    """torch's recipe for a model whose parameters come in another order."""
    names = ["a", "b", "c", "d"]
    whole = weights()
    optimizer = gradstep.Adam(zip(names, whole, strict=True), lr=0.01)
    go(whole, optimizer, range(4))
    saved = copy.deepcopy(optimizer.state_dict())
    turned = dict(reversed(list(zip(names, continued(whole), strict=True))))
    resumed = gradstep.Adam(turned.items(), lr=0.01)

    def by_name(given: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        group = state_dict["param_groups"][0]
        place = {n: state_dict["state"][i] for i, n in enumerate(group["param_names"])}
        wanted = given.param_groups[0]["param_names"]
        state = {i: place[n] for i, n in enumerate(wanted)}
        return {"state": state, "param_groups": [{**group, "param_names": wanted}]}

    handle = resumed.register_load_state_dict_pre_hook(by_name)
    resumed.load_state_dict(saved)
    handle.remove()
    for n, p in zip(names, whole, strict=True):
        assert torch.equal(resumed.state[turned[n]]["exp_avg"], optimizer.state[p]["exp_avg"])
    # Without the hook, the names themselves tell.
    plain = gradstep.Adam(turned.items(), lr=0.01)
    plain.load_state_dict(saved)
    for n in names:
        one, other = (each.state[turned[n]]["exp_avg"] for each in (plain, resumed))
        assert torch.equal(one, other)


@cases(ALL)
def test_through_torch_distributed_checkpoint(name: str, options: dict[str, Any]) -> None:
    from torch.distributed.checkpoint import state_dict as dcp

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterList(weights())

    whole = Model()
    optimizer = ours(name, whole.parameters(), **options)
    go(list(whole.weights), optimizer, range(5))
    saved = copy.deepcopy(dcp.get_optimizer_state_dict(whole, optimizer))
    fresh = Model()
    fresh.load_state_dict(whole.state_dict())
    before = [p.detach().clone() for p in fresh.weights]
    resumed = ours(name, fresh.parameters(), **options)
    dcp.set_optimizer_state_dict(fresh, resumed, saved)
    assert_same_bits(fresh.weights, before)
    go(list(whole.weights), optimizer, range(5, 8))
    go(list(fresh.weights), resumed, range(5, 8))
    assert_same_bits(fresh.weights, whole.weights)


# What is refused. Nothing may have changed then: weights, states, groups, and what follows.


Snapshot = tuple[list[Tensor], dict[str, Any]]


def snapshot(params: list[nn.Parameter], optimizer: Any) -> Snapshot:
    return [p.detach().clone() for p in params], copy.deepcopy(optimizer.state_dict())


def assert_unchanged(params: list[nn.Parameter], optimizer: Any, before: Snapshot) -> None:
    assert_same_bits(params, before[0])
    assert_same_state(optimizer.state_dict(), before[1])


def refused(
    optimizer_of: Callable[[list[nn.Parameter]], Any],
    checkpoint: Any,
    error: type[Exception] | tuple[type[Exception], ...],
    message: str,
) -> None:
    params, twin = weights(), weights()
    optimizer, untouched = optimizer_of(params), optimizer_of(twin)
    go(params, optimizer, range(4))
    go(twin, untouched, range(4))
    before = snapshot(params, optimizer)
    kept = copy.deepcopy(checkpoint)
    with pytest.raises(error, match=message):
        optimizer.load_state_dict(checkpoint)
    assert_unchanged(params, optimizer, before)
    if isinstance(checkpoint, dict):
        assert set(checkpoint) == set(kept)  # nor is the checkpoint written into
    go(params, optimizer, range(4, 8))
    go(twin, untouched, range(4, 8))
    assert_same_bits(params, twin)


def saved(name: str, params: list[nn.Parameter] | None = None, **options: Any) -> dict[str, Any]:
    params = weights() if params is None else params
    optimizer = ours(name, params, **options)
    go(params, optimizer, range(4))
    return copy.deepcopy(optimizer.state_dict())


def adam(params: list[nn.Parameter]) -> Any:
    names = ["conv.weight", "conv.bias", "scale", "kernel"]
    return gradstep.Adam(zip(names, params, strict=True), lr=0.01)


def test_a_checkpoint_of_another_model() -> None:
    other = weights()
    other[1] = nn.Parameter(torch.zeros(9))
    refused(adam, saved("Adam", other), ValueError, r"another model: its exp_avg of conv.bias is "
            r"float32 9 on cpu; the parameter is float32 7 on cpu")  # fmt: skip


def test_a_checkpoint_of_a_model_with_the_same_sizes_turned() -> None:
    other = weights()
    other[0] = nn.Parameter(torch.zeros(3, 5))
    refused(adam, saved("Adam", other), ValueError, r"exp_avg of conv.weight is float32 3×5")


@pytest.mark.parametrize(
    ("made", "options", "into", "into_options"),
    [
        ("Adam", {}, "SGD", {}),
        ("Adam", {}, "SGD", {"momentum": 0.9}),
        ("SGD", {}, "Adam", {}),
        ("SGD", {"momentum": 0.9}, "Adam", {}),
        ("RMSprop", {}, "Adam", {}),
        ("Adam", {}, "RMSprop", {"momentum": 0.9}),
        ("Adagrad", {}, "RMSprop", {}),
        ("RMSprop", {}, "Adagrad", {}),
        ("Lion", {}, "RMSprop", {}),
        ("Adagrad", {}, "Lion", {}),
        ("Lion", {}, "Adam", {}),
        ("Adam", {}, "Lion", {}),
    ],
)
def test_a_checkpoint_of_another_rule(
    made: str, options: dict[str, Any], into: str, into_options: dict[str, Any]
) -> None:
    refused(
        lambda params: ours(into, params, **into_options),
        saved(made, **options),
        ValueError,
        r"another rule|does not fit",
    )


def test_a_checkpoint_of_torch_of_another_rule() -> None:
    params = weights()
    optimizer = theirs("RMSprop", params)
    go(params, optimizer, range(3))
    refused(adam, optimizer.state_dict(), ValueError, "another rule.*betas")


def without(*path: Any) -> Callable[[dict[str, Any]], None]:
    def change(checkpoint: dict[str, Any]) -> None:
        for key in path[:-1]:
            checkpoint = checkpoint[key]
        del checkpoint[path[-1]]

    return change


def with_value(value: Any, *path: Any) -> Callable[[dict[str, Any]], None]:
    def change(checkpoint: dict[str, Any]) -> None:
        for key in path[:-1]:
            checkpoint = checkpoint[key]
        checkpoint[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("state"), "no 'state'"),
        (without("param_groups"), "no 'param_groups'"),
        (without("param_groups", 0, "params"), "params"),
        (without("param_groups", 0, "lr"), "lr"),
        (without("param_groups", 0), "number of parameter groups"),
        (without("param_groups", 0, "params", 3), "size of optimizer's group"),
        (without("state", 1, "exp_avg_sq"), "conv.bias.*expected step, exp_avg, exp_avg_sq"),
        (without("state", 2, "step"), "scale.*expected step"),
        (with_value(None, "state"), "state"),
        (with_value([], "state"), "state"),
        (with_value(None, "param_groups"), "param_groups"),
        (with_value(None, "state", 1), "NoneType as the state of parameter 1"),
        (with_value(3.5, "state", 1), "float as the state of parameter 1"),
        (with_value([1.0] * 7, "state", 1, "exp_avg"), "exp_avg of conv.bias is a list"),
        (with_value({"a": 1}, "state", 0, "step"), "step of conv.weight"),
        (with_value(torch.zeros(2), "state", 0, "step"), "step of conv.weight"),
        (with_value(float("nan"), "param_groups", 0, "lr"), "learning rate: nan"),
        (with_value("fast", "param_groups", 0, "lr"), "learning rate: 'fast'"),
        (with_value((0.9,), "param_groups", 0, "betas"), "betas"),
        (with_value((0.9, None), "param_groups", 0, "betas"), "beta"),
        (with_value("small", "param_groups", 0, "eps"), "eps"),
        (with_value("no", "param_groups", 0, "amsgrad"), "amsgrad"),
    ],
)
def test_a_checkpoint_that_is_cut_short_or_spoilt(
    change: Callable[[dict[str, Any]], None], message: str
) -> None:
    checkpoint = saved("Adam", lr=0.01)
    change(checkpoint)
    refused(adam, checkpoint, (ValueError, TypeError), message)


@pytest.mark.parametrize("wrong", [None, 3, [], "state"])
def test_something_that_is_no_checkpoint(wrong: Any) -> None:
    refused(adam, wrong, ValueError, "not the state_dict")


def test_groups_of_another_number_or_length() -> None:
    params = weights()
    two = gradstep.Adam([{"params": params[:1]}, {"params": params[1:]}])
    go(params, two, range(2))
    refused(adam, copy.deepcopy(two.state_dict()), ValueError, "number of parameter groups")

    def other_split(params: list[nn.Parameter]) -> Any:
        return gradstep.Adam([{"params": params[:2]}, {"params": params[2:]}])

    refused(other_split, copy.deepcopy(two.state_dict()), ValueError, "match the size")
    more = saved("Adam", [*weights(), nn.Parameter(torch.zeros(1))])
    refused(adam, more, ValueError, "match the size")


def test_the_second_group_is_bad_and_the_first_is_not_loaded() -> None:
    def split(params: list[nn.Parameter]) -> Any:
        return gradstep.Adam([{"params": params[:2]}, {"params": params[2:], "lr": 0.5}])

    params = weights()
    optimizer = split(params)
    go(params, optimizer, range(6))
    checkpoint = copy.deepcopy(optimizer.state_dict())
    del checkpoint["state"][3]["exp_avg"]
    refused(split, checkpoint, ValueError, r"parameter 1 of group 1 \(shape \(2, 3, 4, 4\)\)")


def test_a_file_that_is_cut_short_is_found_when_it_is_read(tmp_path: Path) -> None:
    params = weights()
    optimizer = gradstep.Adam(params, lr=0.01)
    go(params, optimizer, range(4))
    torch.save(optimizer.state_dict(), tmp_path / "whole.pt")
    data = (tmp_path / "whole.pt").read_bytes()
    before = snapshot(params, optimizer)
    for length in (0, 10, len(data) // 2, len(data) - 1):
        (tmp_path / "cut.pt").write_bytes(data[:length])
        with pytest.raises((RuntimeError, EOFError, ValueError, OSError)):
            optimizer.load_state_dict(torch.load(tmp_path / "cut.pt", weights_only=True))
        assert_unchanged(params, optimizer, before)


def test_an_error_names_what_was_found_and_expected() -> None:
    params = weights()
    optimizer = adam(params)
    checkpoint = saved("Adam")
    del checkpoint["state"][0]["exp_avg"]
    with pytest.raises(ValueError) as caught:
        optimizer.load_state_dict(checkpoint)
    message = str(caught.value)
    for part in ("fit Adam", "conv.weight", "holds step, exp_avg_sq", "expected step, exp_avg, "):
        assert part in message


PLAIN_CASES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any] | None]] = {
    "momentum": (lambda p: gradstep.SGD(p, lr=0.1, momentum=0.9), None),
    "Adam": (gradstep.Adam, None),
    "amsgrad, of torch": (
        lambda p: gradstep.Adam(p, amsgrad=True),
        lambda p: torch.optim.Adam(p, amsgrad=True),
    ),
    "in groups": (lambda p: gradstep.AdamW([{"params": [q]} for q in p]), None),
    "names": (lambda p: gradstep.Lion([(f"w{i}", q) for i, q in enumerate(p)], lr=0.1), None),
}


@pytest.mark.parametrize("case", PLAIN_CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("of_file", [None, torch.bfloat16])
def test_states_taken_at_once_are_those_of_a_look_at_each(
    case: str,
    dtype: torch.dtype,
    of_file: torch.dtype | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, other = PLAIN_CASES[case]
    shapes = [(3, 4), (5,), (), (2, 3, 2)] * 20  # more than torch's search has an order for

    def parameters() -> list[torch.nn.Parameter]:
        params = [torch.nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in shapes]
        for place, p in enumerate(params):
            p.grad = torch.full_like(p, 0.5 + place)
        return params

    saving = (other or ours)(parameters())
    saving.step()
    saved = saving.state_dict()
    for entry in saved["state"].values() if of_file else ():
        entry.update({n: t.to(of_file) for n, t in entry.items() if n != "step"})
    taken: list[Any] = []
    real = checkpoint.plain_states

    def noted(*given: Any) -> Any:
        taken.append(real(*given))
        return taken[-1]

    loaded = []
    for take in (noted, lambda *given: None):
        monkeypatch.setattr(checkpoint, "plain_states", take)
        optimizer = ours(parameters())
        optimizer.load_state_dict(saved)
        assert not {
            t.data_ptr() for e in optimizer.state.values() for t in e.values() if t.numel()
        } & {t.data_ptr() for e in saved["state"].values() for t in e.values()}
        loaded.append(optimizer.state_dict())
    assert taken and all(each is not None for each in taken)
    assert loaded[0]["param_groups"] == loaded[1]["param_groups"]
    assert list(loaded[0]["state"]) == list(loaded[1]["state"])
    for one, two in zip(loaded[0]["state"].values(), loaded[1]["state"].values(), strict=True):
        assert list(one) == list(two)
        for name in one:
            assert one[name].dtype == two[name].dtype
            assert torch.equal(one[name], two[name])


def test_states_that_are_not_plain_are_looked_at_one_by_one() -> None:
    """One among many that would be taken at once: it is named, and nothing has changed."""
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(100)]
    for p in params:
        p.grad = torch.ones(3)
    optimizer = gradstep.Adam(params)
    optimizer.step()
    saved = optimizer.state_dict()
    spoilt: list[tuple[str, Any]] = [
        ("exp_avg", torch.ones(4)),
        ("exp_avg", torch.ones(3, dtype=torch.int32)),
        ("exp_avg_sq", "no tensor"),
        ("step", torch.ones(2)),
    ]
    for name, value in spoilt:
        changed = copy.deepcopy(saved)
        changed["state"][70][name] = value
        before = optimizer.state[params[70]][name]
        with pytest.raises((ValueError, TypeError), match="parameter 70"):
            optimizer.load_state_dict(changed)
        assert optimizer.state[params[70]][name] is before
    changed = copy.deepcopy(saved)
    turned = torch.ones(6)[::2]
    changed["state"][70]["exp_avg"] = turned
    optimizer.load_state_dict(changed)
    assert optimizer.state[params[70]]["exp_avg"].is_contiguous()
