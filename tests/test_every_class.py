"""What torch's own tests ask of each of its optimizers, asked of each of ours."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from classes import (
    IN_TORCH,
    ROWS,
    Row,
    Task,
    assert_same_bits,
    each,
    each_configuration,
)
from gradstep.classes.rule_classes import load as rule_classes
from reference import REFERENCES

pytestmark = pytest.mark.sweep

WITH_GROUPS = [row for row in ROWS if row.takes_groups]


def went_the_right_way(row: Row, options: dict[str, Any], before: float, after: float) -> bool:
    return after > before if options.get("maximize") else after < before


def decays(optimizer: Any) -> bool:
    """Whether weights shrink without a gradient; ASGD's lambd and FTRL's penalties do that."""
    if any(r.shrinks and r.name == type(optimizer).__name__ for r in REFERENCES):
        return all(group.get("constraints", True) for group in optimizer.param_groups)  # Nero's
    keys = ("weight_decay", "lambd", "lambda_1", "lambda_2")
    return any(group.get(key, 0) != 0 for group in optimizer.param_groups for key in keys)


# The loss goes down, or up, and as far as with torch.


@pytest.mark.parametrize("spread", [False, True], ids=["contiguous", "with gaps"])
@each_configuration(ROWS)
def test_the_loss_goes_the_right_way(row: Row, options: dict[str, Any], spread: bool) -> None:
    task = Task(row, spread=spread)
    before = task.loss().item()
    task.train(row.make(task, options), 20)
    after = task.loss().item()
    assert went_the_right_way(row, options, before, after)
    if row.theirs is not None:
        other = Task(row, spread=spread)
        other.train(row.make_theirs(other, options), 20)
        assert after == pytest.approx(other.loss().item(), rel=1e-4, abs=1e-6)


def sets_of_schedulers(rows: list[Row]) -> Any:
    params = [
        pytest.param(row, number, id=f"{row.name}-{number}")
        for row in rows
        for number in range(len(row.schedulers))
    ]
    return pytest.mark.parametrize(("row", "number"), params)


@sets_of_schedulers(ROWS)
def test_with_the_schedulers_of_torchs_tests(row: Row, number: int) -> None:
    for options in row.configurations:
        task = Task(row)
        before = task.loss().item()
        optimizer = row.make(task, options)
        task.train(optimizer, 20, *(make(optimizer) for make in row.schedulers[number]))
        assert went_the_right_way(row, options, before, task.loss().item()), options


#: Classes whose papers' learning rates are too much for this loss, and one that is not.
GENTLE = {"QHM": 0.05, "ApolloQuasiNewton": 1e-4, "DAdaptAdan": 0.1}


@sets_of_schedulers(WITH_GROUPS)
def test_groups_with_schedulers(row: Row, number: int) -> None:
    task = Task(row)
    before = task.loss().item()
    first, second = task
    lr = {"lr": GENTLE[row.name]} if row.name in GENTLE else {}
    second_lr = min(0.01, *lr.values()) if lr else 0.01
    optimizer = row.make([{"params": [first]}, {"params": [second], "lr": second_lr}], lr)
    task.train(optimizer, 20, *(make(optimizer) for make in row.schedulers[number]))
    assert task.loss().item() < before


# Groups.


@each_configuration([row for row in IN_TORCH if row.takes_groups])
def test_a_weight_decay_of_a_groups_own(row: Row, options: dict[str, Any]) -> None:
    finals = []
    for make in (row.make, row.make_theirs):
        task = Task(row)
        before = task.loss().item()
        first, second = task
        # torch's Adagrad starts its sums with the constructor's number, whatever a group says.
        options = {k: v for k, v in options.items() if k != "initial_accumulator_value"}
        decaying = {"params": [first], **copy.deepcopy(options)}
        still = {"params": [second], **copy.deepcopy(options), "weight_decay": 0.0}
        optimizer = make([decaying, still])
        task.train(optimizer, 20)
        after = task.loss().item()
        assert went_the_right_way(row, options, before, after)
        finals.append(after)
    assert finals[0] == pytest.approx(finals[1], rel=1e-4, abs=1e-6)


@each_configuration([row for row in WITH_GROUPS if not row.coupled])
def test_a_learning_rate_of_a_groups_own(row: Row, options: dict[str, Any]) -> None:
    task = Task(row)
    before = task.loss().item()
    still = nn.Parameter(torch.randn(2, 2))
    kept = still.detach().clone()
    outer: dict[str, Any] = {"lr": 1e-28}
    if row.name == "Rprop":
        outer["step_sizes"] = (0, 50)  # its steps are otherwise no shorter than 1e-6
    if row.name == "AdaGO":
        outer["eps"] = 0.0  # its steps are otherwise no shorter than that
    if row.name == "AdaBound":
        outer["final_lr"] = 0.0  # else its bounds rise, whatever the learning rate
    if row.name == "Nero":
        outer["constraints"] = (
            False  # else its neurons have a norm of 1, whatever the learning rate
        )
    own = {"lr": 1e-3, **({"final_lr": 0.1} if "final_lr" in outer else {})}
    own |= copy.deepcopy(options)
    optimizer = row.make([{"params": list(task), **own}, {"params": [still]}], outer)
    closure = task.closure(optimizer)
    for _ in range(20):
        closure()
        g = torch.rand(2, 2)
        still.grad = g.to_sparse() if row.only_sparse else g
        optimizer.step()
    assert went_the_right_way(row, options, before, task.loss().item())
    # MADGRAD adds eps to its learning rate, FTRL works the weight out anew.
    apart = 0.05 if row.name in ("MADGRAD", "FTRL") else 0.0
    torch.testing.assert_close(still.detach(), kept, rtol=0, atol=apart)


# Numbers that are tensors.


@each_configuration(ROWS)
def test_lr_as_a_tensor_in_every_configuration(row: Row, options: dict[str, Any]) -> None:
    plain, given = Task(row), Task(row)
    number = 1.0 if row.needs_closure else 2.0**-8
    own = {key: value for key, value in options.items() if key != "lr"}
    for task, lr in ((plain, number), (given, torch.tensor(number))):
        task.train(row.make(task, own, lr=lr), 5)
    assert_same_bits(plain, given)


WITH_BETAS = [row for row in ROWS if "betas" in row.make([torch.zeros(1, 1)]).defaults]


@each(WITH_BETAS)
def test_betas_as_tensors_in_every_class(row: Row) -> None:
    plain, given = Task(row), Task(row)
    count = len(row.make([torch.zeros(1, 1)]).defaults["betas"])
    betas = (0.75, 0.875, 0.9375)[:count]
    plain.train(row.make(plain, betas=betas), 5)
    given.train(row.make(given, betas=tuple(map(torch.tensor, betas))), 5)
    assert_same_bits(plain, given)


# Steps that change nothing.


@each_configuration(ROWS)
def test_a_step_without_gradients(row: Row, options: dict[str, Any]) -> None:
    params = [torch.randn(2, 3) for _ in range(2)]
    before = [p.clone() for p in params]
    optimizer = row.make(params, options)
    loss = torch.tensor([1.0])
    assert optimizer.step(lambda: loss) is loss
    assert_same_bits(params, before)


@each_configuration(ROWS)
def test_a_step_with_zero_gradients(row: Row, options: dict[str, Any]) -> None:
    p = nn.Parameter(torch.randn(5, 1))
    before = p.detach().clone()
    optimizer = row.make([p], options)
    if row.only_sparse:  # a gradient that names no row
        nothing = torch.empty((1, 0), dtype=torch.int64), torch.empty(0, 1)
        p.grad = torch.sparse_coo_tensor(*nothing, (5, 1), check_invariants=True)
    else:
        p.grad = torch.zeros_like(p)
    loss = torch.tensor([1.0])
    optimizer.step(lambda: loss)
    only_measures = row.name in ("ADOPT", "SOAP", "KLSOAP", "SOAPMuon")  # in their first step
    assert torch.equal(p, before) != (decays(optimizer) and not only_measures)
    assert torch.isfinite(p).all()


def test_a_row_and_a_column_without_gradients() -> None:
    """As where units of two layers are silent: what is divided there is 0, or nearly."""
    for name, made in rule_classes().items():
        torch.manual_seed(0)
        p = nn.Parameter(torch.randn(4, 5))
        optimizer = made([p], engine="eager")
        for _ in range(3):
            p.grad = torch.randn(4, 5)
            p.grad[0] = p.grad[:, 0] = 0
            loss = p.square().mean()
            optimizer.step(lambda loss=loss: loss)
        assert torch.isfinite(p).all(), name


# What an optimizer shows of itself.


def is_number(state: Any) -> bool:
    return isinstance(state, Tensor) and state.dim() == 0


@each_configuration(IN_TORCH)
def test_it_prints_like_torchs(row: Row, options: dict[str, Any]) -> None:
    params = [nn.Parameter(torch.zeros(2, 3)) for _ in range(2)]
    assert repr(row.make(params, options)) == repr(row.theirs(params, **copy.deepcopy(options)))


@each(IN_TORCH)
def test_its_defaults_are_torchs(row: Row) -> None:
    params = [nn.Parameter(torch.zeros(2, 3))]
    assert row.make(params).defaults == row.theirs(params).defaults


@each_configuration(ROWS)
def test_every_entry_of_the_state_holds_something(row: Row, options: dict[str, Any]) -> None:
    task = Task(row)
    optimizer = row.make(task, options)
    task.train(optimizer, 1)
    assert all(len(entry) > 0 for entry in optimizer.state.values())
    assert {id(p) for p in optimizer.state} <= {id(p) for p in task}


@pytest.mark.parametrize("default", [torch.float32, torch.float64, torch.float16])
@each(IN_TORCH)
def test_the_type_of_numbers_in_the_state_is_torchs(row: Row, default: torch.dtype) -> None:
    found = []
    for make in (row.make, row.make_theirs):
        task = Task(row, torch.float64)
        torch.set_default_dtype(default)
        optimizer = make(task, row.fullest)
        task.train(optimizer, 2)
        torch.set_default_dtype(torch.float32)
        entries = optimizer.state_dict()["state"].values()
        found.append([{n: v.dtype for n, v in e.items() if is_number(v)} for e in entries])
    assert found[0] == found[1]
