"""Explanations: each printed line, worked out from the print, against what the step wrote."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import gradstep
from gradstep.optimizer.optimizer import planner_of
from gradstep.sight.element import element_of
from gradstep.sight.explanation import Explanation, explain_element
from gradstep.sight.ink import Ink
from printed import holds, number, unbroken
from test_sight_arithmetic import CONFIGURATIONS, at, bits, gradients

pytestmark = pytest.mark.sweep

PLACES = [(0, 0), (0, 1), (1, 0), (1, 1)]


def check(explanation: Explanation) -> None:
    """Every equation holds, and the print has every number of it."""
    text = unbroken(str(explanation))
    assert [line.name for line in explanation.lines].count("w") >= 1
    for line in explanation.lines:
        found = line.equation
        assert f"{line.name} ← {line.formula}" in " ".join(text.split())  # it may go on below
        assert found.paper in text
        if found.paper in ("true", "false"):
            continue
        if found.numbers:
            assert found.numbers in text
            assert holds(found.numbers, found.paper), line
        shown = float(number(found.kept or found.paper))
        assert shown == pytest.approx(line.value, rel=0.06, nan_ok=True), line
        if line.stored is not None:
            assert "stored as" in text


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("rule", "settings"), [c[1:] for c in CONFIGURATIONS], ids=[c[0] for c in CONFIGURATIONS]
)
def test_every_line_holds_and_the_last_is_what_was_written(
    rule: gradstep.Rule, settings: dict[str, Any], dtype: torch.dtype
) -> None:
    torch.manual_seed(1)
    weight = torch.nn.Parameter(torch.randn(2, 2, dtype=torch.float64).to(dtype))
    optimizer = gradstep.Optimizer([("w", weight)], rule, engine="fused", **settings)
    rest = gradients(dtype, (2, 2), seed=2)
    for _ in range(3):
        weight.grad = next(rest)
        armed = gradstep.explain(optimizer, weight, PLACES)
        optimizer.step()
        explanations = [account.explanation for account in armed.accounts]
        for place, explanation in zip(PLACES, explanations, strict=True):
            check(explanation)
            assert bits(explanation.weight, dtype) == bits(weight[place].item(), dtype)
            last = [line for line in explanation.lines if line.name == "w"][-1]
            written = last.value if last.stored is None else last.stored
            assert bits(written, dtype) == bits(weight[place].item(), dtype)
            for name, value in explanation.states.items():
                state = optimizer.state[weight][name]
                found = at(state, place) if state.dim() else state.item()
                assert bits(value, state.dtype) == bits(found, state.dtype), name


def explained(optimizer: gradstep.Optimizer) -> Explanation:
    """The next step of the only weight that the optimizer has."""
    (weight,) = optimizer.param_groups[0]["params"]
    return explain_element(element_of(planner_of(optimizer), weight, (0,)))


def stepped(optimizer: gradstep.Optimizer, index: Any) -> Explanation:
    """The same of a step that is made."""
    armed = gradstep.explain(optimizer, None, index)
    optimizer.step()
    return armed.accounts[0].explanation


def parameter(weight: float, gradient: float, dtype: torch.dtype = torch.float32) -> Any:
    p = torch.nn.Parameter(torch.tensor([weight], dtype=dtype))
    p.grad = torch.tensor([gradient], dtype=dtype)
    return p


def test_the_tutorials_line() -> None:
    optimizer = gradstep.SGD([parameter(0.0513, 0.0051)], lr=0.1)
    assert str(explained(optimizer)) == (
        "w ← w − lr·g\n"  #
        "  = 0.0513 − 0.1 · 0.0051 = 0.05079"
    )


def test_choices_name_their_reason() -> None:
    p = parameter(0.5, 0.25)
    optimizer = gradstep.SGD([p], lr=0.1, momentum=0.9)
    assert "= 0.25   (this is the first step)" in str(explained(optimizer))
    optimizer.step()
    p.grad = torch.tensor([1.0])
    assert "= 0.9 · 0.25 + (1 − 0) · 1 = 1.225   (this is not the first step)" in str(
        explained(optimizer)
    )


def test_sums_say_over_what_and_functions_at_which_entry() -> None:
    @gradstep.opaque
    def turned(x: torch.Tensor) -> torch.Tensor:
        return x.flip(-1)

    @gradstep.rule
    def around(g: Any, rows: Any = gradstep.per_row(), *, w: Any) -> Any:
        if rows is None:
            return g / gradstep.norm(w), None
        rows = rows + gradstep.mean(g, -1)
        trust = gradstep.max(gradstep.abs(w)) / gradstep.sum(rows, -2)
        return trust * turned(g) + gradstep.max(g, -2), rows

    p = torch.nn.Parameter(torch.tensor([[1.0, 2.0, -4.0], [0.5, 0.25, 3.0]]))
    p.grad = torch.tensor([[1.0, 2.0, 3.0], [6.0, 5.0, 1.0]])
    assert str(stepped(gradstep.Optimizer([p], around, lr=0.5), (1, 0))) == (
        "rows ← rows + mean(g, −1)\n"
        "     = 0 + 12 / 3 = 4   (sum of the 3 elements of row 1)\n"
        "trust ← max(|w|) / sum(rows, −2)\n"
        "      = 4 / 6 = 0.6667   (largest of all 6 elements; sum over the 2 rows)\n"
        "direction ← trust·turned(g) + max(g, −2)\n"
        "          = 0.6667 · 1 + 6 = 6.667\n"
        "          (entry [1, 0] of turned; largest of the 2 elements of column 0)\n"
        "w ← w − lr·direction\n"
        "  = 0.5 − 0.5 · 6.6667 = −2.833"
    )
    deep = torch.nn.Parameter(torch.ones(2, 2, 1, 3))
    deep.grad = torch.ones_like(deep)
    text = str(stepped(gradstep.Optimizer([deep], around, lr=0.5), (1, 0, 0, 2)))
    assert "(sum of the 3 elements of row 0 of matrix [1, 0])" in text
    assert "(largest of all 12 elements; sum over the 1 row of matrix [1, 0])" in text
    assert "(entry [1, 0, 0, 2] of turned; largest of the 1 element of column 2 of" in text
    flat = parameter(3.0, 1.0)
    text = str(stepped(gradstep.Optimizer([flat], around, lr=0.5), 0))
    assert "= 1 / √9 = 0.3333   (sum of 1 element)" in text


def test_only_the_last_weight_is_stored() -> None:
    """Muon shrinks the weight first, under the same name."""
    p = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))
    p.grad = torch.ones_like(p)
    lines = stepped(gradstep.Muon([p]), (0, 0)).lines
    shrunk, last = [line for line in lines if line.name == "w"]
    assert shrunk.stored is None
    assert shrunk.value == pytest.approx(0.9999)
    assert last.stored == 1.0


def test_a_narrow_weight_shows_what_is_stored() -> None:
    p = parameter(1.0, 0.001, torch.bfloat16)
    explanation = explained(gradstep.SGD([p], lr=0.1))
    assert str(explanation) == (
        "w ← w − lr·g\n"  #
        "  = 1 − 0.1 · 0.0009995 = 0.9999, stored as bfloat16: 1"
    )
    assert explanation.weight == 1.0


def test_a_product_that_is_taken_in_before_rounding_is_shown_exactly() -> None:
    """2¹² + 1 squared needs 25 binary digits, one more than a float32 has."""

    @gradstep.rule
    def squares(g: Any, *, w: Any) -> Any:
        square = g * g
        return gradstep.new_weight(square - w)

    optimizer = gradstep.Optimizer([parameter(16785408.0, 4097.0)], squares)
    lines = explained(optimizer).lines
    assert [line.equation.paper for line in lines] == ["1.679e7", "1"]
    assert explained(optimizer).weight == 1.0
    assert lines[0].value == 4097.0**2
    assert lines[1].equation.numbers == "1.6785409e7 − 1.6785408e7"


def test_tensor_hyperparameters_and_groups() -> None:
    a, b = parameter(1.0, 1.0), parameter(1.0, 1.0)
    optimizer = gradstep.Adam(
        [{"params": [a]}, {"params": [b], "lr": torch.tensor(0.25)}], lr=0.5, betas=(0.5, 0.75)
    )
    for p, lr in ((a, "0.5"), (b, "0.25")):
        text = str(explain_element(element_of(planner_of(optimizer), p, (0,))))
        assert "1 − 0.5^1 = 0.5" in text
        assert f"= 1 − {lr} · " in text


def test_colour_only_adds_to_the_text() -> None:
    explanation = explained(gradstep.Adam([parameter(0.5, 0.25)]))
    plain, coloured = explanation.text(), explanation.text(Ink(True))
    assert "\033[" in coloured
    assert re.sub(r"\033\[[\d;]*m", "", coloured) == plain
    assert all(row.startswith("    ") for row in explanation.text(indent="    ").splitlines())
    assert all(len(row) <= 100 for row in plain.splitlines())
