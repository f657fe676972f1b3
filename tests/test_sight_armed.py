"""``gradstep.explain``: what it says of a step, against what the step wrote, bit for bit."""

from __future__ import annotations

import copy
import gc
import pickle
import re
import weakref
from typing import Any

import numpy
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gradstep
from configurations import FLAG_CONFIGURATIONS, spelled
from gradstep.sight.account import Account
from gradstep.sight.armed import StepExplanation
from gradstep.sight.page import Page
from printed import holds, latex_as_text, number, unbroken
from reference import Reference
from test_sight_arithmetic import bits, lamb, surroundings

CLIPPED = gradstep.chain(
    gradstep.clip_by_global_norm(0.5), gradstep.adam(), gradstep.decay_weights(0.1)
)


@gradstep.rule
def everywhere(
    g: Any, slow: Any = gradstep.copy_of_gradient(), mood: Any = gradstep.number(0.5), *, w: Any
) -> Any:
    """Sums over all parameters twice, the second of what the first gave, beside other sums."""
    scaled = g / (1 + gradstep.global_norm(g))
    slow = gradstep.lerp(slow, scaled, 0.25)
    together = gradstep.global_norm(slow + 0.01 * w)
    mood = 0.5 * mood + gradstep.mean(g * w)
    return slow / together + gradstep.norm(scaled) * mood * w, slow, mood


def numbers(*, low: float, high: float) -> st.SearchStrategy[float]:
    return st.one_of(st.floats(low, high, width=32), st.sampled_from([0.0, -0.0, 1e-8, 0.5]))


def check_page(page: Page, account: Account) -> None:
    """Each equation of each form holds, from the print alone."""
    text = unbroken(account_text(page))
    rows = [row for section in page.sections for row in section.rows]
    assert any(row.name == "w" for row in rows)
    for row in rows:
        assert f"{row.name} ← {row.formula}" in text
        assert all(part in text for part in row.parts)
        if len(row.parts) == 2:
            result = row.parts[1].partition(",")[0]
            assert holds(row.parts[0], result), row
            left, right = (latex_as_text(p.partition(r" \approx")[0].partition(r"\text")[0])
                           for p in row.latex_parts)  # fmt: skip
            assert holds(left, ten(right)), row.latex_parts
    closing = page.closing
    assert closing is not None
    assert holds(closing.moved[0], closing.moved[1].partition(",")[0])
    assert f"weight after   {closing.after}" in text
    before = float(number(page.given[0].number))
    real = numpy.float64 if account.element.dtype == torch.float64 else numpy.float32
    assert real(before) == account.element.weight


def ten(text: str) -> str:
    """``1.2 *10**(−5)`` as ``1.2e−5``."""
    found = re.fullmatch(r"(?:(−?[\d.]+) \* )?10\*\*\((−?\d+)\)", text)
    return f"{found[1] or 1}e{found[2]}" if found else text


def account_text(page: Page) -> str:
    from gradstep.sight.ink import Ink
    from gradstep.sight.text import page_text

    return page_text(page, Ink())


def check_written(
    explanation: StepExplanation, weight: Tensor, optimizer: gradstep.Optimizer
) -> None:
    """The last numbers are what the step wrote: the weight, and each state."""
    assert explanation.ready
    for account in explanation.accounts:
        place, dtype = account.element.place, weight.dtype
        found = account.explanation
        assert bits(found.weight, dtype) == bits(weight[place].item(), dtype)
        assert account.agrees
        for name, value in found.states.items():
            state = optimizer.state[weight][name]
            at = tuple(min(i, n - 1) for i, n in zip(place, state.shape, strict=False))
            assert bits(value, state.dtype) == bits(state[at].item(), state.dtype), name


@pytest.mark.parametrize(
    ("reference", "options"),
    FLAG_CONFIGURATIONS,
    ids=[f"{r.name}-{spelled(o)}" for r, o in FLAG_CONFIGURATIONS],
)
@settings(max_examples=2, phases=[Phase.generate])  # the examples are small as they are
@given(data=st.data())
def test_the_last_number_is_what_was_written(
    reference: Reference, options: dict[str, Any], data: st.DataObject
) -> None:
    shape = data.draw(st.sampled_from([(3, 4)] if reference.dimensions == 2 else [(3, 4), (5,)]))
    place = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    weight = nn.Parameter(torch.randn(shape, generator=random))
    with torch.no_grad():
        weight[place] = data.draw(numbers(low=-3, high=3))
    optimizer = reference.ours([("w", weight)], **options)
    for step in range(data.draw(st.integers(1, 3))):
        weight.grad = torch.randn(shape, generator=random)
        weight.grad[place] = data.draw(numbers(low=-10, high=10))
        loss = data.draw(st.floats(0, 10))
        explanation = gradstep.explain(optimizer, "w", place)
        optimizer.step(lambda given=loss: given)
        check_written(explanation, weight, optimizer)
        if step == 0:
            (account,) = explanation.accounts
            check_page(account.page(), account)


AROUND = [
    CLIPPED,
    everywhere,
    lamb,
    surroundings,
    gradstep.muon,
    gradstep.adafactor,
    gradstep.chain(lamb, gradstep.clip_by_global_norm(0.3), gradstep.muon),
]


def network(rule: gradstep.Rule, shapes: Any, **options: Any) -> tuple[list[Any], Any]:
    """Weights in two groups, and an optimizer that knows them as w0, w1, …"""
    weights = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    named = [(f"w{i}", w) for i, w in enumerate(weights)]
    groups = [{"params": named[:2]}, {"params": named[2:], "lr": 0.02}]
    return weights, gradstep.Optimizer(groups, rule, lr=0.1, **options)


@pytest.mark.parametrize("rule", AROUND, ids=lambda rule: rule.name)
def test_what_a_rule_takes_from_other_weights(rule: gradstep.Rule) -> None:
    """Several weights of several parameters at once, one of them longer than a tile."""
    weights, optimizer = network(rule, [(4, 6), (3, 2500), (5, 7), (4, 6)])
    others, control = copy.deepcopy(weights), None
    named = [(f"w{i}", w) for i, w in enumerate(others)]
    control = gradstep.Optimizer(
        [{"params": named[:2]}, {"params": named[2:], "lr": 0.02}], rule, lr=0.1
    )
    for _ in range(3):
        for weight, other in zip(weights, others, strict=True):
            weight.grad = torch.randn_like(weight) * 3
            other.grad = weight.grad.clone()
        explanations = [
            gradstep.explain(optimizer, "w0", [(0, 1), (-1, -1)]),
            gradstep.explain(optimizer, "w1", "random", count=3, seed=5),
            gradstep.explain(optimizer, "w3", (2, 2)),
            gradstep.explain(optimizer, "w0", (0, 1)),
        ]
        optimizer.step()
        control.step()
        for explanation, weight in zip(explanations, [0, 1, 3, 0], strict=True):
            check_written(explanation, weights[weight], optimizer)
            for account in explanation.accounts:
                check_page(account.page(), account)
        assert explanations[0].accounts[0].page() == explanations[3].accounts[0].page()
        # Looking has changed nothing.
        assert all(map(torch.equal, weights, others))


def test_a_norm_over_all_parameters_by_hand() -> None:
    a, b, idle = (nn.Parameter(torch.zeros(n)) for n in (2, 1, 4))
    optimizer = gradstep.Optimizer(
        [("a", a), ("b", b), ("idle", idle)],
        gradstep.chain(gradstep.clip_by_global_norm(1.0), gradstep.sgd),
        lr=0.5,
    )
    a.grad, b.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    explanation = gradstep.explain(optimizer, "b")
    optimizer.step()
    assert explanation.text() == (
        "b[0]: a step of chain(clip_by_global_norm, sgd)\n"
        "\n"
        "  weight     w = 0\n"
        "  gradient   g = 4\n"
        "\n"
        "  clip_by_global_norm:\n"
        "    g ← g·min(1, max_norm / (global_norm(g) + 1e-6))\n"
        "      = 4 · min(1, 1 / (√25 + 1e-6)) = 0.8000"
        "   (sum over all 3 elements of 2 parameters)\n"
        "  step:\n"
        "    w ← w − lr·g\n"
        "      = 0 − 0.5 · 0.8000 = −0.4000\n"
        "\n"
        "  step           −0.4000 − 0 = −0.4000\n"
        "  weight after   −0.39999992   (what step() wrote, bit for bit)"
    )


@pytest.mark.parametrize("rule", [CLIPPED, everywhere, lamb, gradstep.muon], ids=lambda r: r.name)
def test_the_eager_engine_is_told_from_what_the_rule_says(rule: gradstep.Rule) -> None:
    """torch's operations round in other places: the same to a few last places, and said so."""
    weights, optimizer = network(rule, [(4, 6), (3, 5), (5, 7)], engine="eager")
    for _ in range(2):
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        everything = [(i, j) for i in range(3) for j in range(5)]
        explanation = gradstep.explain(optimizer, "w1", everything)
        optimizer.step()
        for account in explanation.accounts:
            written = weights[1][account.element.place].item()
            assert account.written == written
            # Muon's products are worked out in bfloat16.
            assert account.explanation.weight == pytest.approx(written, rel=1e-5, abs=1e-6)
            text = str(account.page().closing)
            if account.agrees:
                assert "bit for bit" in text
            else:
                assert "the eager engine rounds in other places" in text


def test_dtypes_and_the_largest() -> None:
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        weight = nn.Parameter(torch.randn(3, 4).to(dtype))
        optimizer = gradstep.AdamW([weight], lr=0.05)
        weight.grad = torch.randn(3, 4).to(dtype)
        weight.grad[1, 2], weight.grad[0, 3] = -9.0, 7.0
        explanation = gradstep.explain(optimizer, None, "largest", count=2)
        optimizer.step()
        assert [a.element.place for a in explanation.accounts] == [(1, 2), (0, 3)]
        check_written(explanation, weight, optimizer)
        for account in explanation.accounts:
            check_page(account.page(), account)


# Arming.


def parameter(*, gradient: float | None = 1.0) -> nn.Parameter:
    weight = nn.Parameter(torch.tensor([0.5, 0.25]))
    weight.grad = None if gradient is None else torch.full((2,), gradient)
    return weight


def unarmed(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer is as if nobody had ever explained anything."""
    hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    return not any(hooks) and "plan" not in optimizer.__dict__


def test_it_waits_for_one_step_and_looks_at_no_other() -> None:
    weight = parameter()
    optimizer = gradstep.SGD([("w", weight)], lr=0.5)
    explanation = gradstep.explain(optimizer, "w", 0)
    assert not explanation.ready
    assert str(explanation) == "w: waits for the next step of SGD"
    assert repr(explanation) == "<explanation of w: waits for the next step of SGD>"
    for form in (explanation.markdown(), explanation.html(), explanation.latex()):
        assert "waits for the next step of SGD" in form
    optimizer.step()
    assert explanation.ready and unarmed(optimizer)
    told = explanation.text()
    optimizer.step()
    assert explanation.text() == told
    assert "weight after   0   " in told
    second = gradstep.explain(optimizer, "w", 1)
    second.cancel()
    assert unarmed(optimizer)
    optimizer.step()
    assert str(second) == "w: cancelled before a step of SGD"


def test_a_closure_and_hooks_that_change_gradient_and_weight() -> None:
    weight = parameter(gradient=None)
    optimizer = gradstep.SGD([("w", weight)], lr=0.5)

    def halve(chosen: Any, args: Any, kwargs: Any) -> None:
        if weight.grad is not None:
            weight.grad /= 2

    def spoil(chosen: Any, args: Any, kwargs: Any) -> None:
        with torch.no_grad():
            weight.fill_(100.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (weight * torch.tensor([1.0, 8.0])).sum()
        loss.backward()
        return loss

    optimizer.register_step_post_hook(spoil)
    explanation = gradstep.explain(optimizer, "w", "largest")
    optimizer.register_step_pre_hook(halve)
    assert optimizer.step(closure).item() == 2.5
    (account,) = explanation.accounts
    assert account.element.place == (1,)
    assert account.element.gradient == 8.0
    assert account.agrees and account.written == 0.25 - 4.0
    weight.grad = torch.tensor([1.0, 1.0])
    explanation = gradstep.explain(optimizer, "w", 0)
    optimizer.step()
    assert explanation.accounts[0].element.gradient == 0.5  # by the hook that came later


def test_steps_that_raise() -> None:
    weight = parameter()
    optimizer = gradstep.Adam([("w", weight)])
    explanation = gradstep.explain(optimizer, "w", 0)
    right, weight.grad = weight.grad, None
    weight.grad = torch.ones(2).to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)
    assert str(explanation) == "w: waits for the next step of Adam"
    weight.grad = right
    optimizer.step()
    assert explanation.accounts[0].agrees and unarmed(optimizer)


def test_a_function_that_raises_in_the_middle_of_a_step() -> None:
    broken: list[int] = []

    @gradstep.opaque
    def fragile(x: Tensor) -> Tensor:
        if not broken:
            broken.append(1)
            raise ArithmeticError("no luck")
        return x

    @gradstep.rule
    def fragile_rule(g: Any) -> Any:
        return fragile(g)

    weight = parameter()
    optimizer = gradstep.Optimizer([("w", weight)], fragile_rule, lr=0.5)
    explanation = gradstep.explain(optimizer, "w", 0)
    with pytest.raises(ArithmeticError):
        optimizer.step()
    assert "waits for the next step of fragile_rule; the last one raised" in str(explanation)
    optimizer.step()
    assert explanation.accounts[0].agrees and unarmed(optimizer)


def test_parts_that_follow_different_rules() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    rules = {"matrices": gradstep.muon, "rest": CLIPPED}
    optimizer = gradstep.partition(rules, model, lr={"matrices": 0.1, "rest": 0.01})
    for _ in range(2):
        model(torch.randn(5, 4)).square().sum().backward()
        first = gradstep.explain(optimizer, "0.weight", (1, 2))
        second = gradstep.explain(optimizer, model[1].bias, [(0,), (1,)])
        optimizer.step()
        check_written(first, model[0].weight, optimizer)
        check_written(second, model[1].bias, optimizer)
    assert "of newton_schulz)" in first.text()
    assert "1.bias[1]: step 2 of chain(" in second.text()
    assert unarmed(optimizer) and all(map(unarmed, optimizer.parts.values()))
    with pytest.raises(ValueError, match=r"no parameter '0\.wieght': did you mean 0"):
        gradstep.explain(optimizer, "0.wieght", (0, 0))


def test_no_gradient() -> None:
    weight, other = parameter(gradient=None), parameter()
    optimizer = gradstep.SGD([("w", weight), ("other", other)], lr=0.5)
    explanation = gradstep.explain(optimizer, "w", 0)
    optimizer.step()
    assert explanation.ready
    assert str(explanation) == "w: it had no gradient in this step, which left it as it was"
    assert unarmed(optimizer)


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_grad_scaler_leaves_out(fused: bool) -> None:
    """Without ``fused`` GradScaler does not call step() at all, and the explanation waits on."""
    weight = parameter()
    optimizer = gradstep.Adam([("w", weight)], lr=0.5, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    explanation = gradstep.explain(optimizer, "w", 0)
    for factor in (float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale((weight * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        if factor != 1.0 and fused:
            assert str(explanation).startswith("w: the step was skipped, and nothing was written")
            assert unarmed(optimizer)
            explanation = gradstep.explain(optimizer, "w", 0)
        elif factor != 1.0:
            assert "waits for the next step of Adam; a gradient is inf or nan" in str(explanation)
    check_written(explanation, weight, optimizer)
    assert ("1 / grad_scale" in str(explanation)) == fused


@pytest.mark.parametrize("make", [gradstep.SparseAdam, gradstep.Adagrad], ids=lambda m: m.__name__)
def test_rows_of_a_sparse_gradient(make: Any) -> None:
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = make([("table", table.weight)], lr=0.5)
    for step in range(2):
        optimizer.zero_grad()
        table(torch.tensor([1, 1, 3])).pow(3).sum().backward()
        chosen = gradstep.explain(optimizer, "table", [(1, 2), (3, 0), (4, 1)])
        largest = gradstep.explain(optimizer, "table", "largest")
        total = table.weight.grad.to_dense()
        optimizer.step()
        check_written(largest, table.weight, optimizer)
        (top,) = largest.accounts
        assert abs(top.element.gradient) == total.abs().max()
        assert total[top.element.place] == top.element.gradient
        for account in chosen.accounts[:2]:
            check_page(account.page(), account)
            assert account.agrees
        assert "table[4, 1]: the sparse gradient does not name its row" in str(chosen)
        if make is gradstep.SparseAdam:
            assert f"table[1, 2]: step {step + 1} of SparseAdam" in str(chosen)


def test_a_differentiable_step_and_one_under_a_profiler() -> None:
    weight = parameter()
    optimizer = gradstep.SGD([("w", weight)], lr=0.5, differentiable=True)
    explanation = gradstep.explain(optimizer, "w", 0)
    with torch.no_grad():
        optimizer.step()
    assert explanation.accounts[0].written == 0.0
    with torch.profiler.profile():
        explanation = gradstep.explain(optimizer, "w", 1)
        with torch.no_grad():
            optimizer.step()
    assert explanation.accounts[0].agrees


def test_copies_and_lifetime() -> None:
    """An optimizer that is copied or saved while armed is one that is not."""
    weight = parameter()
    optimizer = gradstep.SGD([("w", weight)], lr=0.5, momentum=0.9)
    explanation = gradstep.explain(optimizer, "w", 0)
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert unarmed(other)
        other.step()
    assert not explanation.ready
    optimizer.step()
    gone = weakref.ref(optimizer), weakref.ref(weight)
    del optimizer, weight, other
    gc.collect()
    assert [reference() for reference in gone] == [None, None]
    assert explanation.accounts[0].agrees
    assert r"\mathrm{momentum\_buffer}" in explanation.latex()


def test_the_random_choice_disturbs_no_other() -> None:
    optimizer = gradstep.SGD([("w", nn.Parameter(torch.randn(30, 40)))])
    state = torch.get_rng_state()
    places = []
    for seed in (3, 3, 4):
        explanation = gradstep.explain(optimizer, "w", "random", count=5, seed=seed)
        optimizer.param_groups[0]["params"][0].grad = torch.zeros(30, 40)
        optimizer.step()
        places.append([a.element.place for a in explanation.accounts])
        assert len(set(places[-1])) == 5
    assert places[0] == places[1] != places[2]
    gradstep.explain(optimizer, "w", "random")
    assert torch.equal(torch.get_rng_state(), state)


# Bad input: one line each.


class Own(torch.optim.Optimizer):
    """Somebody's own."""


class Around(torch.optim.Optimizer):
    """Holds an optimizer, as that of Accelerate does."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer


def refusals() -> list[Any]:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    known = gradstep.SGD(model.named_parameters())
    nameless = gradstep.SGD(model.parameters())
    part = gradstep.SGD(model[0].named_parameters())
    pair = gradstep.SGD([nn.Parameter(torch.zeros(2, dtype=torch.complex64))])
    empty = gradstep.SGD([("none", nn.Parameter(torch.zeros(0, 3)))])
    theirs, lbfgs = torch.optim.SGD(model.parameters()), gradstep.LBFGS(model.parameters())
    return [
        (known, "0.wieght", (0, 0), {}, ValueError, r"no parameter '0.wieght': did you mean 0.wei"),
        (known, "xyz", 0, {}, ValueError, "there are 0.weight, 0.bias, 1.weight, 1.bias"),
        (known, None, 0, {}, ValueError, "say which parameter: there are 0.weight"),
        (known, torch.zeros(2), 0, {}, ValueError, r"does not hold this tensor of shape \(2,\)"),
        (known, 7, 0, {}, TypeError, "param is a int; expected a parameter's name or the tensor"),
        (nameless, "0.bias", 0, {}, ValueError, "it was given no names. Pass model=model"),
        (nameless, "0.bia", 0, {"model": model}, ValueError, "the model has no .* mean 0.bias"),
        (part, "1.bias", 0, {"model": model}, ValueError, "the optimizer does not hold it"),
        (
            known,
            "0.weight",
            None,
            {},
            ValueError,
            r"of shape \(3, 4\), has 12 weights: say which",
        ),
        (known, "0.weight", 3, {}, ValueError, r"takes 2 numbers, such as \(0, 0\)"),
        (known, "0.weight", (3, 0), {}, IndexError, r"of shape \(3, 4\), whose last .* \(2, 3\)"),
        (known, "0.bias", -4, {}, IndexError, "out of range for 0.bias, of shape .* is at 2"),
        (known, "0.bias", 1.5, {}, TypeError, "1.5 is no index; expected whole numbers"),
        (known, "0.bias", True, {}, TypeError, "True is no index"),
        (known, "0.bias", [], {}, ValueError, "names no weight of 0.bias"),
        (known, "0.bias", "smallest", {}, ValueError, "the words are 'largest' and 'random'"),
        (known, "0.bias", "largest", {"count": 0}, ValueError, "count=0; expected 1 or more"),
        (empty, "none", "largest", {}, ValueError, r"none, of shape \(0, 3\), has no weights"),
        (pair, None, 0, {}, TypeError, "is complex: its weights are pairs"),
        (theirs, "0.bias", 0, {}, TypeError, "got torch.optim.sgd.SGD. Make it with gradstep.SGD"),
        (Around(known), "0.bias", 0, {}, TypeError, "Around wraps one: give what stands in its"),
        (Own([nn.Parameter(torch.ones(1))], {}), "0.bias", 0, {}, TypeError, r"gradstep.create\("),
        (lbfgs, "0.bias", 0, {}, TypeError, "there is no formula for one weight"),
        ([1], "0.bias", 0, {}, TypeError, "got builtins.list. Give the optimizer first"),
    ]


@pytest.mark.parametrize("case", refusals(), ids=lambda case: case[5][:40])
def test_bad_input_is_refused_in_one_line(case: Any) -> None:
    optimizer, param, index, more, kind, message = case
    with pytest.raises(kind, match=message) as caught:
        gradstep.explain(optimizer, param, index, **more)
    assert "\n" not in str(caught.value)
    assert not isinstance(optimizer, gradstep.Optimizer) or unarmed(optimizer)
