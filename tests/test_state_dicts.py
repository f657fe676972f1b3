"""State dicts of every class in every configuration: what is saved, and what may be loaded."""

from __future__ import annotations

import copy
import functools
import inspect
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import gradstep
from classes import (
    IN_TORCH,
    ROWS,
    Row,
    Task,
    assert_same_bits,
    assert_same_state_dict,
    assert_same_values,
    each,
    each_configuration,
)

pytestmark = pytest.mark.sweep


def given(task: Task, named: bool) -> Any:
    return list(task.params.items()) if named else list(task)


named_or_not = pytest.mark.parametrize(
    "named", [(False, False), (False, True), (True, False), (True, True)], ids=str
)


@named_or_not
@each_configuration(ROWS)
def test_a_loaded_optimizer_goes_on_alike(
    row: Row, options: dict[str, Any], named: tuple[bool, bool]
) -> None:
    task = Task(row)
    optimizer = row.make(given(task, named[0]), options)
    task.train(optimizer, 4)
    saved = copy.deepcopy(optimizer.state_dict())
    kept = copy.deepcopy(saved)
    rest = task.copy()
    resumed = row.make(given(rest, named[1]), options)
    resumed.load_state_dict(saved)
    # Loading writes nothing into it. Training does: as in torch, the loaded tensors are taken over.
    assert_same_values(saved, kept)
    task.train(optimizer, 4)
    rest.train(resumed, 4)
    assert_same_bits(task, rest)
    assert_same_state_dict(optimizer.state_dict(), resumed.state_dict(), but=["param_names"])
    names = resumed.state_dict()["param_groups"][0].get("param_names")
    assert names == (["first", "second"] if any(named) else None)


@each_configuration(ROWS)
def test_a_group_listed_twice_is_saved_the_same_twice(row: Row, options: dict[str, Any]) -> None:
    task = Task(row)
    optimizer = row.make(task, options)
    task.train(optimizer, 1)
    once = optimizer.state_dict()["param_groups"][-1]
    optimizer.param_groups.extend(optimizer.param_groups)
    assert_same_values(optimizer.state_dict()["param_groups"][-1], once)


@each_configuration(ROWS)
def test_without_the_flags_that_came_later(row: Row, options: dict[str, Any]) -> None:
    """A checkpoint of an older torch."""
    task = Task(row)
    optimizer = row.make(task, options)
    task.train(optimizer, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    rest = task.copy()
    resumed = row.make(rest, options)
    for group in saved["param_groups"]:
        for flag in row.later_flags:
            if not group.get(flag):
                group.pop(flag, None)
    resumed.load_state_dict(saved)
    task.train(optimizer, 2)
    rest.train(resumed, 2)
    assert_same_bits(task, rest)
    assert set(resumed.param_groups[0]) == set(optimizer.param_groups[0])


@each_configuration(ROWS)
def test_step_counts_as_plain_numbers(row: Row, options: dict[str, Any]) -> None:
    task = Task(row)
    optimizer = row.make(task, options)
    task.train(optimizer, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    for entry in saved["state"].values():
        if "step" in entry:
            entry["step"] = float(entry["step"])
    rest = task.copy()
    resumed = row.make(rest, options)
    resumed.load_state_dict(saved)
    task.train(optimizer, 2)
    rest.train(resumed, 2)
    assert_same_bits(task, rest)


@pytest.mark.parametrize("named", [False, True], ids=["plain", "named"])
@each_configuration(ROWS)
def test_through_a_file_and_weights_only(row: Row, options: dict[str, Any], named: bool) -> None:
    task = Task(row)
    optimizer = row.make(given(task, named), options)
    task.train(optimizer, 3)
    saved, file = optimizer.state_dict(), io.BytesIO()
    torch.save(saved, file)
    for weights_only in (False, True):
        file.seek(0)
        assert_same_values(torch.load(file, weights_only=weights_only), saved)


@each_configuration(ROWS)
def test_a_copy_has_every_public_attribute(row: Row, options: dict[str, Any]) -> None:
    task = Task(row)
    optimizer = row.make(task, options)
    task.train(optimizer, 3)

    def public(o: Any) -> set[str]:
        return {name for name in vars(o) if not name.startswith("_")}

    assert public(copy.deepcopy(optimizer)) == public(optimizer)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@each_configuration(ROWS)
def test_a_copy_in_training_goes_on_alike(row: Row, options: dict[str, Any], how: str) -> None:
    task = Task(row)
    optimizer = row.make(given(task, True), options)
    task.train(optimizer, 3)
    params = list(task)
    pair = (params, optimizer)
    params, copied = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    rest = Task(row)
    rest.params = dict(zip(rest.params, params, strict=True))
    at_copy = [p.detach().clone() for p in rest]
    task.train(optimizer, 3)
    assert_same_bits(rest, at_copy)
    rest.train(copied, 3)
    assert_same_bits(task, rest)
    assert_same_state_dict(optimizer.state_dict(), copied.state_dict())


# To torch and back.


@pytest.mark.parametrize("direction", ["ours to torch", "torch to ours"])
@each_configuration(IN_TORCH)
def test_the_other_library_goes_on(row: Row, options: dict[str, Any], direction: str) -> None:
    first, second = row.make, row.make_theirs
    if direction == "torch to ours":
        first, second = second, first
    task = Task(row)
    optimizer = first(task, options)
    task.train(optimizer, 4)
    rest = task.copy()
    other = second(rest, lr=99.0)  # every option comes from the checkpoint
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    # One class of checkpoints: what is loaded is saved again as it was.
    returned = first(task.copy(), lr=99.0)
    returned.load_state_dict(copy.deepcopy(other.state_dict()))
    assert_same_state_dict(returned.state_dict(), optimizer.state_dict(), but=["foreach"])
    task.train(optimizer, 4)
    rest.train(other, 4)
    for p, q in zip(task, rest, strict=True):
        largest = p.detach().abs().max().item()
        bound = (64 if row.needs_closure or row.only_matrices else 8) * torch.finfo(p.dtype).eps
        torch.testing.assert_close(q, p, rtol=0, atol=bound * max(1.0, largest))


# Parameters and states put in for a while.


swaps = pytest.mark.skipif(
    not hasattr(torch.optim, "swap_in_optimizer_params_and_state"),
    reason="a newer torch swaps parameters in",
)


@swaps
@each_configuration(ROWS)
def test_parameters_and_states_swapped_in(row: Row, options: dict[str, Any]) -> None:
    """torch.optim.swap_in_optimizer_params_and_state: a step on others, and all as it was."""
    task, other = Task(row), Task(row)
    optimizer, away = row.make(given(task, True), options), row.make(given(other, True), options)
    task.train(optimizer, 2)
    other.train(away, 5)
    saved = copy.deepcopy(away.state_dict())
    if not saved["state"] or row.needs_closure:
        pytest.skip("torch swaps in a state a parameter, and there is none")
    swapped = {name: p.detach().clone().requires_grad_() for name, p in other.params.items()}
    before = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in task]
    state, params = optimizer.state, [group["params"] for group in optimizer.param_groups]
    other.closure(away)()
    with torch.optim.swap_in_optimizer_params_and_state(optimizer, swapped, saved):
        for p, q in zip(swapped.values(), other, strict=True):
            p.grad = q.grad
        optimizer.step(lambda: torch.tensor(1.0))
    away.step(lambda: torch.tensor(1.0))
    assert_same_bits(swapped.values(), other)
    assert optimizer.state is state
    assert all(g["params"] is p for g, p in zip(optimizer.param_groups, params, strict=True))
    assert_same_state_dict(optimizer.state_dict(), before[0])
    assert_same_bits(task, before[1])
    twin = Task(row)
    untouched = row.make(given(twin, True), options)
    twin.train(untouched, 2)
    task.train(optimizer, 2)
    twin.train(untouched, 2)
    assert_same_bits(task, twin)


@swaps
@each([row for row in ROWS if not row.needs_closure and not row.only_sparse])
def test_make_fx_records_the_operations_of_the_eager_engine(row: Row) -> None:
    """A graph of a step, which does to any weights and states what the step would do to them."""
    if "engine" not in inspect.signature(row.ours).parameters:
        pytest.skip("its engine cannot be chosen")
    task = Task(row)
    optimizer = row.make(given(task, True), row.fullest, engine="eager")
    task.train(optimizer, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    numbers = any(t.dim() == 0 for entry in saved["state"].values() for t in entry.values())
    if row.coupled or not saved["state"] or numbers:
        pytest.skip("a step count is read as a number, which no graph can hold: nor with torch's")

    def step(params: dict[str, Tensor], state: Any) -> list[Tensor]:
        with torch.optim.swap_in_optimizer_params_and_state(optimizer, params, state):
            for p in params.values():
                p.grad = torch.ones_like(p)
            optimizer.step()
        return list(params.values())

    def weights() -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in task.params.items()}

    graph = make_fx(step)(weights(), copy.deepcopy(saved))
    expected = step(weights(), copy.deepcopy(saved))
    found = graph(weights(), copy.deepcopy(saved))
    assert_same_bits(found, expected)
    assert not any(torch.equal(p, q) for p, q in zip(found, task, strict=True))


@swaps
def test_make_fx_records_a_step_whatever_the_engine() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = gradstep.SGD([("p", p)], lr=0.5, momentum=0.9)
    p.grad = torch.ones(3)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())

    def step(weight: Tensor, state: Any) -> Tensor:
        with torch.optim.swap_in_optimizer_params_and_state(optimizer, {"p": weight}, state):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        return weight

    graph = make_fx(step)(torch.zeros(3), copy.deepcopy(saved))
    assert_same_bits([graph(torch.zeros(3), copy.deepcopy(saved))], [torch.full((3,), -0.95)])


# A checkpoint of another class.


def trained(row: Row, make: Any) -> tuple[Any, Any]:
    """A state dict of some steps, and the parameters."""
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(4, 3)) for _ in range(2)]
    optimizer = make(params, row.fullest)
    for _ in range(3):
        for p in params:
            g = torch.randn(4, 3)
            p.grad = g.to_sparse() if row.only_sparse else g
        optimizer.step(lambda: torch.tensor(1.0))
    return copy.deepcopy(optimizer.state_dict()), optimizer


@functools.cache
def saved_by(name: str, maker: str) -> Any:
    row = next(row for row in IN_TORCH if row.name == name)
    return trained(row, row.make if maker == "ours" else row.make_theirs)[0]


#: AdamW is an Adam with another default, which its checkpoint holds: torch loads one as the other.
SAME_FORMAT = [{"Adam", "AdamW"}]


# Of the classes that torch has not, many have the same options and states as another, so that
# nothing in a checkpoint tells them apart.
@pytest.mark.parametrize("maker", ["ours", "torch"])
@pytest.mark.parametrize("into", IN_TORCH, ids=lambda row: f"into {row.name}")
@pytest.mark.parametrize("of", IN_TORCH, ids=lambda row: f"of {row.name}")
def test_a_checkpoint_of_the_wrong_class_names_both(of: Row, into: Row, maker: str) -> None:
    saved = saved_by(of.name, maker)
    own, optimizer = trained(into, into.make)
    if of is into or {of.name, into.name} in SAME_FORMAT:
        optimizer.load_state_dict(saved)
        assert_same_values(optimizer.state_dict()["state"], saved["state"])
        return
    with pytest.raises(ValueError) as caught:
        optimizer.load_state_dict(saved)
    message = str(caught.value)
    words = message.replace(",", " ").replace(".", " ").replace(";", " ").replace(":", " ").split()
    assert of.name in words and into.name in words, message
    assert_same_state_dict(optimizer.state_dict(), own)


def test_a_rule_of_ones_own_takes_no_checkpoint_of_a_class() -> None:
    row = next(row for row in ROWS if row.name == "SGD")
    saved, _ = trained(row, row.make)
    params = [nn.Parameter(torch.randn(4, 3)) for _ in range(2)]
    optimizer = gradstep.Optimizer(params, gradstep.lion)
    with pytest.raises(ValueError, match="SGD"):
        optimizer.load_state_dict(saved)
