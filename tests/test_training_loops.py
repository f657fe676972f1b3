"""Training as people write it, with every class."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from classes import IN_TORCH, ROWS, Row, Task, assert_same_bits, assert_same_state_dict, each
from torch_release import IS_LOWEST

WITH_GROUPS = [row for row in ROWS if row.takes_groups]
IN_TORCH_WITH_GROUPS = [row for row in IN_TORCH if row.takes_groups]


def assert_close(left: Any, right: Any) -> None:
    """The gradients follow the weights, so roundings may grow."""
    for p, q in zip(list(left), list(right), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def backward(task: Task) -> None:
    """Gradients, added to those that are there."""
    task.loss().backward()


def as_taken(task: Task) -> None:
    """Sparse gradients, for a class that takes no others."""
    if task.row.only_sparse:
        for p in task:
            if p.grad is not None and not p.grad.is_sparse:
                p.grad = p.grad.to_sparse()


@pytest.mark.parametrize("set_to_none", [True, False])
@each(IN_TORCH_WITH_GROUPS)
def test_accumulated_and_clipped_gradients(row: Row, set_to_none: bool) -> None:
    finals = []
    for make in (row.make, row.make_theirs):
        task = Task(row)
        optimizer = make(task, row.fullest)
        for number in range(9):
            backward(task)
            if number % 3 == 2:
                norm = nn.utils.clip_grad_norm_(list(task), 0.5)
                assert norm > 0.5
                as_taken(task)
                optimizer.step()
                optimizer.zero_grad(set_to_none=set_to_none or row.only_sparse)
                for p in task:
                    assert p.grad is None or not p.grad.any()
        finals.append(task)
    assert_close(*finals)


@each(IN_TORCH)
def test_a_parameter_frozen_and_thawed(row: Row) -> None:
    finals = []
    for make in (row.make, row.make_theirs):
        task = Task(row)
        optimizer = make(task, row.fullest)
        first, second = task
        for number in range(9):
            if number in (3, 6):
                first.requires_grad_(number == 6)
            before = [p.detach().clone() for p in task]
            task.train(optimizer, 1)
            if not row.needs_closure:  # LBFGS moves all weights, along what it remembers
                assert torch.equal(first.detach(), before[0]) == (3 <= number < 6)
            assert not torch.equal(second.detach(), before[1])
        finals.append(task)
    assert_close(*finals)


@each(IN_TORCH_WITH_GROUPS)
def test_a_parameter_that_comes_in_training(row: Row) -> None:
    if row.name == "Adagrad" and IS_LOWEST:
        pytest.skip("torch 2.7 begins its sums at construction alone")
    finals = []
    for make in (row.make, row.make_theirs):
        task = Task(row)
        first, second = task
        optimizer = make([first], row.fullest)
        start = second.detach().clone()
        task.train(optimizer, 3)
        assert torch.equal(second.detach(), start)
        optimizer.add_param_group({"params": [second], "lr": 0.01})
        second.grad = None
        task.train(optimizer, 3)
        assert not torch.equal(second.detach(), start)
        finals.append(task)
    assert_close(*finals)


@each(ROWS)
def test_weights_given_to_a_functional_call(row: Row) -> None:
    class Model(nn.Module):
        def __init__(self, task: Task) -> None:
            super().__init__()
            self.task = task
            self.first, self.second = task

        def forward(self) -> Tensor:
            self.task.params = {"first": self.first, "second": self.second}
            return self.task.loss()

    plain, called = Task(row), Task(row)
    kept = [p.detach().clone() for p in called]
    model = Model(called)
    params = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    optimizer, functional = row.make(plain, row.fullest), row.make(params.items(), row.fullest)
    held = list(model.parameters())

    def closure() -> Tensor:
        functional.zero_grad()
        loss = torch.func.functional_call(model, params, ())
        loss.backward()
        called.params = dict(params)  # type: ignore[arg-type]
        as_taken(called)
        return loss.detach()

    plain.train(optimizer, 4)
    for _ in range(4):
        functional.step(closure)
    assert_same_bits(plain, params.values())
    assert_same_bits(held, kept)


@each(IN_TORCH)
def test_tied_weights_of_every_class(row: Row) -> None:
    """One parameter under two names stands once in the optimizer, with both gradients in one."""
    finals = []
    for make in (row.make, row.make_theirs):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
        model[1].weight = model[0].weight
        optimizer = make(model.parameters(), row.fullest)
        assert len(optimizer.param_groups[0]["params"]) == 1

        def closure(model: Any = model, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = (model(torch.eye(6)) - 1).square().sum()
            loss.backward()
            if row.only_sparse:
                model[0].weight.grad = model[0].weight.grad.to_sparse()
            return loss.detach()

        for _ in range(5):
            optimizer.step(closure)
        assert model[0].weight is model[1].weight
        finals.append(model.parameters())
    assert_close(*finals)


@each(ROWS)
def test_one_optimizer_a_parameter_within_the_backward_pass(row: Row) -> None:
    if row.needs_closure or row.coupled:
        pytest.skip("its step looks at all parameters together")
    together, hooked = Task(row), Task(row)
    optimizer = row.make(together, row.fullest)
    own = {p: row.make([p], row.fullest) for p in hooked}

    def step(p: Tensor) -> None:
        if row.only_sparse:
            p.grad = p.grad.to_sparse()
        own[p].step()
        own[p].zero_grad()

    for p in hooked:
        p.register_post_accumulate_grad_hook(step)
    together.train(optimizer, 5)
    for _ in range(5):
        hooked.loss().backward()
        assert all(p.grad is None for p in hooked)
    assert_same_bits(together, hooked)


@each(ROWS)
def test_a_compiled_step_of_every_class(row: Row) -> None:
    torch.compiler.reset()
    plain, compiled = Task(row), Task(row)
    left, right = row.make(plain, row.fullest), row.make(compiled, row.fullest)
    step = torch.compile(right.step, backend="eager")
    closures = plain.closure(left), compiled.closure(right)
    for _ in range(3):
        if row.needs_closure:
            left.step(closures[0])
            step(closures[1])
        else:
            losses = [closure() for closure in closures]
            left.step(lambda losses=losses: losses[0])
            step(lambda losses=losses: losses[1])
    assert_same_bits(plain, compiled)


@each([row for row in IN_TORCH if not row.needs_closure and not row.only_sparse])
def test_grad_scaler_with_every_class(row: Row) -> None:
    """GradScaler takes neither closures nor, on the CPU, sparse gradients."""
    finals = []
    for make in (row.make, row.make_theirs):
        task = Task(row)
        optimizer = make(task, row.fullest)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=2)
        scales = []
        for number in range(8):
            optimizer.zero_grad()
            scaler.scale(task.loss()).backward()
            if number == 3:
                next(iter(task)).grad[0, 0] = torch.inf
            if number == 5:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(list(task), 1.0)
            before = copy.deepcopy((list(task), optimizer.state_dict()))
            scaler.step(optimizer)
            if number == 3:  # no weight moved, and no state or step count
                assert_same_bits(task, before[0])
                assert_same_state_dict(optimizer.state_dict(), before[1])
            scaler.update()
            scales.append(scaler.get_scale())
        finals.append((scales, task.loss().item()))
    assert finals[0][0] == finals[1][0]
    assert finals[0][0][3] < finals[0][0][2]
    assert finals[0][1] == pytest.approx(finals[1][1], rel=1e-4)


@each(ROWS)
def test_an_average_of_the_weights_of_every_class(row: Row) -> None:
    task = Task(row)
    model = nn.ParameterDict(task.params)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    optimizer = row.make(model.parameters(), row.fullest)
    schedule = torch.optim.swa_utils.SWALR(optimizer, swa_lr=2.0**-8, anneal_epochs=2)
    sums = [torch.zeros_like(p) for p in task]
    for _ in range(4):
        task.train(optimizer, 1, schedule)
        averaged.update_parameters(model)
        for total, p in zip(sums, task, strict=True):
            total += p.detach() / 4
    for total, p in zip(sums, averaged.parameters(), strict=True):
        torch.testing.assert_close(p, total, rtol=1e-5, atol=1e-6)
    assert optimizer.param_groups[0]["lr"] == 2.0**-8


@each(WITH_GROUPS)
def test_a_group_that_comes_while_a_scheduler_watches(row: Row) -> None:
    task = Task(row)
    optimizer = row.make(task, lr=0.5)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=1, factor=0.5)
    task.train(optimizer, 1)
    scheduler.step(1.0)
    more = Task(row)
    optimizer.add_param_group({"params": list(more), "lr": 0.25})
    before = [p.detach().clone() for p in more]
    for _ in range(3):
        task.closure(optimizer)()
        more.loss().backward()
        if row.only_sparse:
            for p in more:
                p.grad = p.grad.to_sparse()
        optimizer.step(lambda: torch.tensor(2.0))
        scheduler.step(2.0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.125]
    for p, start in zip(more, before, strict=True):
        assert not torch.equal(p, start)
