"""Rules that look at one layer at a time: how often they go over memory, and what they turn on."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import gradstep
from gradstep.backends.cpu import run as runs
from gradstep.program.passes import passes
from gradstep.rule.contraction import contracted
from gradstep.rule.trace import trace


def domains(rule: gradstep.Rule, matrix: bool = True, **options: Any) -> list[str]:
    """What the passes of a rule run over, in order."""
    values = {**rule.hyperparameters, "lr": 0.1, "weight_decay": 0.1, **options}
    graph = trace(rule, values, matrix=matrix)
    return [each.domain for each in passes(contracted(graph))]


#: Passes over the elements of a matrix, and of a vector: one to look, one to write.
OVER_ELEMENTS = {
    "lamb": (2, 2),
    "lars": (2, 2),
    "stable_adamw": (2, 2),
    "novograd": (2, 2),
    "mars": (2, 2),
    "fromage": (2, 2),
    "adanorm": (2, 2),
    "amos": (2, 2),
    "adamp": (2, 1),
    "sgdp": (2, 1),
    "adam_mini": (2, 2),
    "sm3": (2, 1),
    "apollo_quasi_newton": (3, 3),  # a norm, products with what it divides, and the step
    "adalomo": (3, 2),
    "came": (4, 2),  # a norm between two second moments
}


@pytest.mark.parametrize("name", OVER_ELEMENTS)
@pytest.mark.parametrize("matrix", [True, False], ids=["matrix", "vector"])
def test_passes_over_memory(name: str, matrix: bool) -> None:
    found = domains(getattr(gradstep, name), matrix)
    assert found.count("element") == OVER_ELEMENTS[name][0 if matrix else 1]
    if not matrix:
        assert set(found) == {"element"}


@pytest.mark.parametrize("name", ["LAMB", "LARS"])
def test_a_step_runs_each_pass_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the step itself, and not of the plan: what is run, and over how many elements."""
    seen: list[tuple[int, int]] = []
    run_stage = runs.PassesRun._run_stage

    def noted(self: Any, wave: Any, number: int, *rest: Any) -> None:
        seen.append((number, wave.tiles[number][2]))
        run_stage(self, wave, number, *rest)

    monkeypatch.setattr(runs.PassesRun, "_run_stage", noted)
    ws = [nn.Parameter(torch.ones(30, 40)), nn.Parameter(torch.ones(7))]
    optimizer = getattr(gradstep, name)(ws, engine="fused")
    for w in ws:
        w.grad = torch.full_like(w, 0.5)
    optimizer.step()
    assert seen == [(0, 1207), (1, 1207)]


@pytest.mark.parametrize("name", ["LAMB", "LARS", "Fromage"])
def test_weights_that_are_0_can_leave_it(name: str) -> None:
    """There is no ratio to scale by, and the direction is left as it is."""
    w = nn.Parameter(torch.zeros(4, 3))
    w.grad = torch.full_like(w, 0.25)
    getattr(gradstep, name)([w], lr=0.5).step()
    size = {"LAMB": 0.5 / (1 + 1e-6 / 0.25), "LARS": 0.125, "Fromage": 0.125 / math.sqrt(1.25)}
    torch.testing.assert_close(w.detach(), torch.full_like(w, -size[name]))


@pytest.mark.parametrize("name", ["LAMB", "LARS", "Fromage"])
def test_a_step_is_in_proportion_to_the_weights(name: str) -> None:
    """A layer whose weights are twice as large moves twice as far, whatever its gradient's size."""
    moved = []
    for size, slope in ((1.0, 1.0), (2.0, 64.0)):
        random = torch.Generator().manual_seed(1)
        w = nn.Parameter(size * torch.randn((20, 30), dtype=torch.float64, generator=random))
        start = w.detach().clone()
        w.grad = slope * torch.randn((20, 30), dtype=torch.float64, generator=random)
        options = {} if name == "Fromage" else {"weight_decay": 0.0}
        options |= {"eps": 0.0} if name == "LAMB" else {}
        getattr(gradstep, name)([w], lr=0.01, **options).step()
        moved.append(w.detach() - start)
    torch.testing.assert_close(moved[1], 2 * moved[0], rtol=1e-12, atol=0)


def test_lars_and_a_learning_rate_that_changes() -> None:
    """In the paper what has entered the velocity keeps its learning rate; timm's does not."""
    for inside, last in ((True, 0.5 * 1.0), (False, 0.5 * 0.1)):
        w = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
        optimizer = gradstep.LARS(
            [w], lr=1.0, momentum=0.5, weight_decay=0.0, lr_in_momentum=inside
        )
        w.grad = torch.tensor([0.6, 0.8], dtype=torch.float64)
        optimizer.step()
        first = torch.tensor([3.0, 4.0], dtype=torch.float64) - w.detach()
        before = w.detach().clone()
        optimizer.param_groups[0]["lr"] = 0.1
        w.grad = torch.zeros_like(w)
        optimizer.step()
        torch.testing.assert_close(before - w.detach(), last * first)


def test_stable_adamw_steps_less_after_a_surprise() -> None:
    """A gradient a hundred times as large as the ones before, and the step that it makes."""
    steps = []
    for surprise in (1.0, 100.0):
        w = nn.Parameter(torch.zeros(50, dtype=torch.float64))
        optimizer = gradstep.StableAdamW([w], lr=1.0, weight_decay=0.0)
        adam = torch.optim.Adam([v := nn.Parameter(torch.zeros_like(w))], 1.0, (0.9, 0.99))
        for number in range(30):
            g = torch.full_like(w, surprise if number == 29 else 1.0)
            w.grad, v.grad = g, g.clone()
            before = w.detach().clone(), v.detach().clone()
            optimizer.step()
            adam.step()
        steps.append([(b - a).abs().max().item() for a, b in zip(before, (w, v), strict=True)])
    assert steps[0][0] == pytest.approx(1.0, rel=1e-5)
    assert steps[1][0] < 0.3 * steps[1][1]


def test_adamp_leaves_the_size_of_weights_where_their_gradient_has_no_part_in_it() -> None:
    """Rows whose gradients stand at right angles to them, and a weight whose gradients do not."""
    for along, grows in ((0.0, False), (1.0, True)):
        random = torch.Generator().manual_seed(2)
        w = nn.Parameter(torch.randn((6, 400), dtype=torch.float64, generator=random))
        optimizer = gradstep.SGDP([w], lr=1e-3, momentum=0.9)
        start = w.detach().norm(dim=1)
        for _ in range(5):
            g = torch.randn(w.shape, dtype=torch.float64, generator=random)
            unit = w.detach() / w.detach().norm(dim=1, keepdim=True)
            g = g - unit * (unit * g).sum(1, keepdim=True) - 20 * along * unit
            w.grad = g
            optimizer.step()
        change = (w.detach().norm(dim=1) / start - 1).abs().max().item()
        assert (change > 1e-3) == grows, change


@gradstep.rule
def rows_or_all(g: Any, *, is_matrix: bool) -> Any:
    """A rule that does something else to vectors."""
    return g - gradstep.mean(g, -1) if is_matrix else 2 * g


@pytest.mark.parametrize("engine", ["fused", "eager"])
def test_a_rule_may_ask_whether_its_weight_is_a_matrix(engine: str) -> None:
    ws = [
        nn.Parameter(torch.zeros(2, 3)),
        nn.Parameter(torch.zeros(3)),
        nn.Parameter(torch.zeros(())),
    ]
    optimizer = gradstep.Optimizer(ws, rows_or_all, lr=1.0, engine=engine)
    g = torch.tensor([1.0, 2.0, 6.0])
    ws[0].grad, ws[1].grad, ws[2].grad = torch.stack([g, 2 * g]), g, g[0].clone()
    optimizer.step()
    assert ws[0].detach().tolist() == [[2.0, 1.0, -3.0], [4.0, 2.0, -6.0]]
    assert ws[1].detach().tolist() == [-2.0, -4.0, -12.0] and ws[2].item() == -2.0
    assert set(optimizer.engines_used().values()) == {engine}


def test_came_and_sm3_keep_no_more_than_rows_and_columns() -> None:
    """Beside CAME's momentum, and SM3's, which can be left out."""
    w = nn.Parameter(torch.ones(40, 30))
    w.grad = torch.ones_like(w)
    for optimizer, kept in (
        (gradstep.CAME([w]), 1200 + 2 * 70),
        (gradstep.SM3([w], momentum=0.0), 70),
        (gradstep.AdamMini([w]), 1200 + 40),
        (gradstep.AdamMini([w], by_rows=False), 1200),
    ):
        optimizer.step()
        entry = optimizer.state[w]
        assert sum(t.numel() for n, t in entry.items() if t.numel() > 1) == kept


@pytest.mark.parametrize("name", ["AdamMini", "AdamP", "AdaNorm", "Amos", "NovoGrad", "SM3"])
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)], ids=str)
def test_a_weight_without_elements_makes_no_nan(name: str, shape: tuple[int, ...]) -> None:
    """Of nothing there is no mean and no largest, and the step is made all the same."""
    for engine in ("fused", "eager"):
        w = nn.Parameter(torch.zeros(shape))
        optimizer = getattr(gradstep, name)([w], engine=engine)
        for _ in range(2):
            w.grad = torch.zeros_like(w)
            optimizer.step()
        assert all(t.isfinite().all() for t in optimizer.state[w].values())
