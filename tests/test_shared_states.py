"""Rules with numbers that all parameters have together, and with the loss of the step."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradstep
from gradstep import global_dot, global_norm, global_sum, lerp, maximum, shared, sqrt, where
from gradstep.optimizer.optimizer import planner_of


@gradstep.rule
def measured(
    g: Any,
    exp_avg: Any,
    length: Any = shared("start"),
    steps: Any = shared(0.0),
    *,
    w: Any,
    lr: Any,
    step: Any,
    start: float = 0.5,
    rate: float = 0.5,
) -> Any:
    """A length that grows with sums, one of which has each parameter's own step count in it."""
    exp_avg = lerp(exp_avg, g, 0.5)
    moved = global_sum(lr / step * (g * w)) + global_dot(exp_avg, exp_avg)
    longer = maximum(length, lerp(length, sqrt(gradstep.abs(moved)), rate))
    return longer / (1 + global_norm(g)) * exp_avg, exp_avg, longer, steps + 1


def expected(
    weights: Sequence[Tensor], gradients: Sequence[Sequence[Tensor | None]], lrs: Sequence[float]
) -> tuple[list[Tensor], float]:
    """The same in float64, by hand."""
    ws = [w.detach().double().clone() for w in weights]
    averages = [torch.zeros_like(w) for w in ws]
    counts = [0] * len(ws)
    length = 0.5
    for row in gradients:
        there = [i for i, g in enumerate(row) if g is not None]
        moved = squares = norm = 0.0
        for i in there:
            g = row[i].double()  # type: ignore[union-attr]
            counts[i] += 1
            averages[i] = averages[i] + 0.5 * (g - averages[i])
            moved += lrs[i] / counts[i] * (g * ws[i]).sum().item()
            squares += averages[i].square().sum().item()
            norm += g.square().sum().item()
        length = max(length, length + 0.5 * (math.sqrt(abs(moved + squares)) - length))
        for i in there:
            ws[i] -= lrs[i] * length / (1 + math.sqrt(norm)) * averages[i]
    return ws, length


SHAPES = [(30, 20), (7,), (0,), (3, 4), (5,)]


def start(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(5)
    made = [torch.randn(s, generator=random).to(dtype) for s in SHAPES]
    made[3] = torch.randn((3, 8), generator=random).to(dtype)[:, ::2]  # eager: it has gaps
    return [nn.Parameter(w) for w in made]


def all_gradients(dtype: torch.dtype, steps: int) -> list[list[Tensor | None]]:
    """The last weight's first gradient comes at step 3; the first sits out steps 2 and 4."""
    random = torch.Generator().manual_seed(7)
    rows: list[list[Tensor | None]] = []
    for t in range(steps):
        row: list[Tensor | None] = [torch.randn(s, generator=random).to(dtype) for s in SHAPES]
        row[4] = row[4] if t >= 2 else None
        row[0] = row[0] if t not in (1, 3) else None
        rows.append(row)
    return rows


def make(ws: Sequence[Tensor], engine: str = "auto") -> gradstep.Optimizer:
    groups = [{"params": ws[:2], "lr": 0.1}, {"params": ws[2:]}]
    return gradstep.Optimizer(groups, measured, lr=0.2, engine=engine)


def go(optimizer: Any, ws: Sequence[Tensor], rows: Sequence[Sequence[Tensor | None]]) -> None:
    for row in rows:
        for w, g in zip(ws, row, strict=True):
            w.grad = g
        optimizer.step()


def lengths(optimizer: Any) -> set[float]:
    return {float(entry["length"]) for entry in optimizer.state.values()}


@pytest.mark.parametrize("engine", ["auto", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_shared_state_is_one_number(dtype: torch.dtype, engine: str) -> None:
    """Several groups and engines, a late first gradient, steps that weights sit out."""
    ws, rows = start(dtype), all_gradients(dtype, 6)
    wanted, length = expected(ws, rows, [0.1, 0.1, 0.2, 0.2, 0.2])
    optimizer = make(ws, engine)
    go(optimizer, ws, rows)
    for w, right in zip(ws, wanted, strict=True):
        if w.numel():
            unit = torch.finfo(dtype).eps * right.abs().max()
            assert ((w.detach().double() - right).abs() <= 6 * unit).all()
    exact = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 2e-2}[dtype]
    (found,) = lengths(optimizer)
    assert found == pytest.approx(length, rel=exact)
    assert {float(e["steps"]) for e in optimizer.state.values()} == {6.0}
    assert all(e["length"].dtype == torch.float64 for e in optimizer.state.values())
    used = list(optimizer.engines_used().values())
    assert used == (["eager"] * 5 if engine == "eager" else ["fused"] * 3 + ["eager", "fused"])


def test_engines_and_threads_give_the_same_number() -> None:
    rows = all_gradients(torch.float64, 6)
    found = []
    for engine, threads in (("fused", 1), ("fused", 2), ("eager", 1)):
        torch.set_num_threads(threads)
        ws = start(torch.float64)
        optimizer = make(ws, engine)
        go(optimizer, ws, rows)
        found.append(lengths(optimizer).pop())
    assert found[0] == found[1] == pytest.approx(found[2], rel=1e-15)


def saved(optimizer: Any, file: Path) -> Any:
    torch.save(optimizer.state_dict(), file)
    return torch.load(file, weights_only=True)


def copied(optimizer: Any, file: Path) -> Any:
    """As after conversions of all kinds: no two entries have the same tensor."""
    state_dict = optimizer.state_dict()
    entries = {
        key: {n: t.clone() for n, t in entry.items()} for key, entry in state_dict["state"].items()
    }
    return {**state_dict, "state": entries}


@pytest.mark.parametrize("carry", [saved, copied])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_has_the_same_bits(carry: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    """Stopped while one weight still waits for its first gradient, and one sits out."""
    ws, rows = start(dtype), all_gradients(dtype, 6)
    optimizer = make(ws)
    go(optimizer, ws, rows[:2])
    rest = [nn.Parameter(w.detach().clone() if i != 3 else w.detach()) for i, w in enumerate(ws)]
    rest[3] = nn.Parameter(torch.empty_strided((3, 4), (8, 2), dtype=dtype).copy_(ws[3].detach()))
    resumed = make(rest)
    resumed.load_state_dict(copy.deepcopy(carry(optimizer, tmp_path / "half.pt")))
    go(resumed, rest, rows[2:3])  # the weight that sat out is still out of the plan
    assert len({id(e["length"]) for e in resumed.state.values()}) == 1
    go(resumed, rest, rows[3:])
    go(optimizer, ws, rows[2:])
    assert all(map(torch.equal, ws, rest))
    assert lengths(optimizer) == lengths(resumed)


def test_copies_of_an_optimizer_part_ways() -> None:
    ws, rows = start(), all_gradients(torch.float32, 6)
    optimizer = make(ws)
    go(optimizer, ws, rows[:3])
    before = lengths(optimizer)
    twin_ws, twin = copy.deepcopy((ws, optimizer))
    go(twin, twin_ws, rows[3:])
    assert lengths(optimizer) == before != lengths(twin)
    go(optimizer, ws, rows[3:])
    assert lengths(optimizer) == lengths(twin)


def test_a_number_that_was_put_there_is_taken_up() -> None:
    ws, rows = start(), all_gradients(torch.float32, 5)
    optimizer = make(ws)
    go(optimizer, ws, rows[:3])
    for entry in optimizer.state.values():
        entry["length"] = torch.tensor(100.0)
    go(optimizer, ws, rows[3:4])
    assert lengths(optimizer) == {100.0}
    optimizer.state[ws[1]]["length"] = torch.tensor(7.0)
    kept = [w.detach().clone() for w in ws]
    with pytest.raises(ValueError, match=r"one number for all parameters, and it is 100.* 7"):
        go(optimizer, ws, rows[4:])
    assert all(map(torch.equal, kept, ws))


def test_groups_must_agree_on_what_makes_it() -> None:
    ws = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    groups = [{"params": ws[:1]}, {"params": ws[1:], "rate": 0.25}]
    optimizer = gradstep.Optimizer(groups, measured)
    for w in ws:
        w.grad = torch.ones(3)
    with pytest.raises(ValueError, match=r"rate=0\.25 and 0\.5.*Give all groups the same"):
        optimizer.step()
    assert all((w == 1).all() for w in ws) and not optimizer.state


@pytest.mark.parametrize("what", ["step", "sum", "size"])
def test_what_a_parameter_has_for_itself_is_refused(what: str) -> None:
    @gradstep.rule
    def wrong(g: Any, total: Any = shared(0.0), *, step: Any) -> Any:
        own = {"step": step, "sum": gradstep.sum(g), "size": gradstep.size(g)}[what]
        return total * g, total + own

    message = "shared state total from .*which each parameter has for itself"
    with pytest.raises(gradstep.RuleError, match=message):
        gradstep.Optimizer([torch.zeros(3)], wrong)


def test_a_shared_state_without_sums() -> None:
    """One that only counts: each step once, for whichever parameters take part."""

    @gradstep.rule
    def counted(g: Any, steps: Any = shared(0.0)) -> Any:
        return g / (steps + 1), steps + 1

    for engine in ("fused", "eager"):
        ws = [nn.Parameter(torch.zeros(3)) for _ in range(2)]
        optimizer = gradstep.Optimizer(ws, counted, lr=1.0, engine=engine)
        for absent in ((0,), (), (1,)):
            for i, w in enumerate(ws):
                w.grad = None if i in absent else torch.ones(3)
            optimizer.step()
        assert [w[0].item() for w in ws] == pytest.approx([-1 / 2 - 1 / 3, -1 - 1 / 2])


@pytest.mark.parametrize("name", ["global_sum", "global_dot", "global_norm"])
def test_sums_over_all_parameters_of_one_tensor_are_refused(name: str) -> None:
    arguments = [torch.ones(3)] * (2 if name == "global_dot" else 1)
    with pytest.raises(TypeError, match=rf"{name}\(\) looks at all parameters at once"):
        getattr(gradstep, name)(*arguments)


# The loss.


@gradstep.rule
def by_loss(g: Any, lowest: Any = shared(0.0), *, loss: Any) -> Any:
    """As far as the loss is above 1."""
    lowest = where(lowest > 0, gradstep.minimum(lowest, loss), loss)
    return (loss - 1) * g, lowest


@gradstep.rule
def by_loss_alone(g: Any, *, loss: Any) -> Any:
    """Without any sum."""
    return (loss - 1) * g


@pytest.mark.parametrize(
    ("rule", "engine"), list(itertools.product([by_loss, by_loss_alone], ["fused", "eager"]))
)
def test_the_loss_is_what_the_closure_returns(rule: gradstep.Rule, engine: str) -> None:
    w = nn.Parameter(torch.zeros(3))
    optimizer = gradstep.Optimizer([w], rule, lr=0.5, engine=engine)
    w.grad = torch.ones(3)
    for loss in (torch.tensor(3.0, requires_grad=True), 2.0, torch.tensor([5.0])):
        assert optimizer.step(lambda loss=loss: loss) is loss
    assert w.tolist() == [-0.5 * (2 + 1 + 4)] * 3
    if rule is by_loss:
        assert float(optimizer.state[w]["lowest"]) == 2.0


@pytest.mark.parametrize("closure", [None, lambda: None])
def test_a_missing_loss_is_an_error(closure: Any) -> None:
    w = nn.Parameter(torch.zeros(3))
    optimizer = gradstep.Optimizer([w], by_loss)
    w.grad = torch.ones(3)
    with pytest.raises(ValueError, match=r"by_loss asks for the loss.*step\(lambda: loss\)"):
        optimizer.step(closure)
    assert w.tolist() == [0.0] * 3 and not optimizer.state
    # With this step torch.distributed.checkpoint makes the states, to load into them.
    optimizer.param_groups[0]["lr"] = 0.0
    w.grad = torch.zeros(3)
    optimizer.step()
    assert "lowest" in optimizer.state[w]


def test_to_climb_is_to_descend_what_is_turned() -> None:
    ws = [nn.Parameter(torch.zeros(3)) for _ in range(2)]
    for w, maximize in zip(ws, (False, True), strict=True):
        optimizer = gradstep.Optimizer([w], by_loss, maximize=maximize)
        sign = -1.0 if maximize else 1.0
        w.grad = torch.full((3,), sign)
        optimizer.step(lambda sign=sign: sign * 3)
    assert torch.equal(*ws)


def test_steps_after_the_first_are_not_planned_anew() -> None:
    """The number of all parameters stands in every entry, which is no reason for a long look."""
    weights = [torch.ones(4, 3, requires_grad=True), torch.ones(5, requires_grad=True)]
    optimizer = gradstep.Prodigy(weights)
    planned, planner = [], planner_of(optimizer)
    careful = planner._plan_anew
    planner._plan_anew = lambda *arguments: planned.append(1) or careful(*arguments)  # type: ignore
    for _ in range(3):
        for w in weights:
            w.grad = torch.ones_like(w)
        optimizer.step()
    assert len(planned) == 1
    entries = [optimizer.state[w] for w in weights]
    (name,) = [n for n, s in planner_of(optimizer).rule.states.items() if s.shared][:1]
    entries[1][name] = entries[1][name].clone()  # equal, and yet another tensor
    for count in (2, 2):
        for w in weights:
            w.grad = torch.ones_like(w)
        optimizer.step()
        assert len(planned) == count
        assert entries[0][name] is entries[1][name]
