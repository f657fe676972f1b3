"""LBFGS: its numbers, line search and closures against torch's, and what it refuses."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradstep
from classes import ROWS, Row, assert_same_state_dict, spelled

ROW = next(row for row in ROWS if row.name == "LBFGS")
#: The largest difference allowed, in eps of the largest weight: sums over all weights round apart.
BOUND = 64
configurations = pytest.mark.parametrize("options", ROW.configurations, ids=spelled)


def rosenbrock(params: Any) -> Tensor:
    """A narrow valley between all numbers of the parameters, which a line search follows."""
    parts = [(torch.view_as_real(p) if p.is_complex() else p).flatten() for p in params]
    x = torch.cat(parts)
    return ((1 - x[:-1]) ** 2 + 20 * (x[1:] - x[:-1] ** 2) ** 2).sum() / x.numel()


class Search:
    """An optimizer on the valley, with a record of all that it asked its closure for."""

    def __init__(self, row: Row, ours: bool, dtype: torch.dtype, options: dict[str, Any]) -> None:
        random = torch.Generator().manual_seed(2)
        shapes = ((3, 2), (), (0,), (2, 2, 2))
        values = [torch.randn(s, generator=random, dtype=dtype) for s in shapes]
        self.params = [nn.Parameter(v / 2) for v in values]
        self.optimizer = (row.make if ours else row.make_theirs)(self.params, options)
        #: What is climbed is the valley upside down.
        self.sign = -1 if options.get("maximize") else 1
        self.losses: list[float] = []
        self.enabled: list[bool] = []

    def closure(self) -> Tensor:
        self.enabled.append(torch.is_grad_enabled())
        self.optimizer.zero_grad()
        loss = self.sign * rosenbrock(self.params)
        loss.backward()
        self.losses.append(loss.item())
        return loss

    def step(self, times: int) -> list[float]:
        return [self.optimizer.step(self.closure).item() for _ in range(times)]


def assert_close(left: Search, right: Search) -> None:
    largest = max(p.detach().abs().max().item() for p in right.params if p.numel())
    for p, q in zip(left.params, right.params, strict=True):
        bound = BOUND * torch.finfo(p.dtype).eps * max(1.0, largest)
        torch.testing.assert_close(p, q, rtol=0, atol=bound)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        *(
            pytest.param(dtype, marks=pytest.mark.deep)
            for dtype in (torch.float64, torch.bfloat16, torch.complex64)
        ),
    ],
)
@pytest.mark.parametrize("steps", [6, pytest.param(25, marks=pytest.mark.deep)])
@configurations
def test_the_numbers_of_torch(options: dict[str, Any], dtype: torch.dtype, steps: int) -> None:
    ours, theirs = (Search(ROW, own, dtype, options) for own in (True, False))
    results = [search.step(steps) for search in (ours, theirs)]
    assert_close(ours, theirs)
    assert results[0] == pytest.approx(results[1], rel=1e-3, abs=1e-6)
    assert len(ours.losses) == len(theirs.losses)  # the same number of evaluations
    assert all(ours.enabled)


@configurations
def test_a_step_returns_the_first_loss_and_evaluates_as_often_as_torch(
    options: dict[str, Any],
) -> None:
    for more in ({}, {"max_iter": 4}, {"max_iter": 6, "max_eval": 5}, {"history_size": 2}):
        ours, theirs = (
            Search(ROW, own, torch.float64, {**options, **more}) for own in (True, False)
        )
        for _ in range(4):
            for search in (ours, theirs):
                before = len(search.losses)
                with torch.no_grad():  # a closure has gradients even here
                    assert search.step(1) == [search.losses[before]]
            assert len(ours.losses) == len(theirs.losses)
        assert_close(ours, theirs)


def test_a_line_search_comes_down_where_plain_steps_do_not() -> None:
    plain, searching = (
        Search(ROW, True, torch.float64, {"lr": 1, "line_search_fn": name})
        for name in (None, "strong_wolfe")
    )
    plain.step(4)
    searching.step(4)
    assert searching.losses[-1] < 1e-6 < plain.losses[0]


@pytest.mark.parametrize("how", ["deepcopy", "state dict", "ours to torch", "torch to ours"])
@configurations
def test_it_goes_on_from_the_middle(options: dict[str, Any], how: str) -> None:
    first, second = how != "torch to ours", how != "ours to torch"
    whole = Search(ROW, first, torch.float64, {**options, "max_iter": 3})
    whole.step(3)
    rest = Search(ROW, second, torch.float64, {"lr": 0.5})
    rest.sign = whole.sign
    for p, q in zip(rest.params, whole.params, strict=True):
        p.data.copy_(q.data)
    if how == "deepcopy":
        rest.params, rest.optimizer = copy.deepcopy((whole.params, whole.optimizer))
    else:
        rest.optimizer.load_state_dict(copy.deepcopy(whole.optimizer.state_dict()))
    if not isinstance(options.get("lr"), Tensor):  # torch casts what it made of it to the weights
        assert_same_state_dict(rest.optimizer.state_dict(), whole.optimizer.state_dict())
    whole.step(3)
    rest.step(3)
    assert_close(rest, whole)
    assert rest.losses == pytest.approx(whole.losses[-len(rest.losses) :], rel=1e-9, abs=1e-12)


@configurations
def test_layouts_at_which_torch_stops(options: dict[str, Any]) -> None:
    laid_out, rows = (Search(ROW, True, torch.float64, options) for _ in range(2))
    for position in (0, 3):
        p = laid_out.params[position]
        p.data = p.data.transpose(0, 1).contiguous().transpose(0, 1)
        assert not p.is_contiguous()
    laid_out.step(5)
    rows.step(5)
    assert laid_out.losses == rows.losses
    for p, q in zip(laid_out.params, rows.params, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("tolerance", [math.inf, -math.inf])
def test_a_loss_of_one_type_whether_it_steps_or_not(tolerance: float) -> None:
    optimizer = gradstep.LBFGS([torch.zeros(3)], tolerance_grad=tolerance)
    loss = optimizer.step(lambda: torch.tensor([10.0]))
    assert isinstance(loss, Tensor) and loss.item() == 10


def test_what_torch_refuses() -> None:
    found = []
    for module in (gradstep, torch.optim):
        params = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))]
        said = []
        for attempt in (
            lambda module=module, params=params: module.LBFGS([{"params": [p]} for p in params]),
            lambda module=module, params=params: module.LBFGS(params, lr=-1.0),
            lambda module=module, params=params: module.LBFGS(params).step(),
            lambda module=module, params=params: module.LBFGS(params, line_search_fn="golden").step(
                lambda: torch.tensor(1.0)
            ),
        ):
            try:
                said.append(repr(attempt()))
            except Exception as error:
                said.append(f"{type(error).__name__}: {error}")
        found.append(said)
    assert found[0] == found[1]
