"""The trace of a rule: its graph, the errors of rules that have none, and what compiles anew."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

import gradstep
from gradstep import lerp, maximum, nonzero, sqrt, where, zeros
from gradstep.backends.base import Values
from gradstep.backends.cpu import compiler
from gradstep.optimizer.optimizer import planner_of
from gradstep.optimizer.parameter_groups import Reading
from gradstep.rule.trace import trace
from reference import REFERENCES, Reference

outside = torch.ones(3)
kept: list[Any] = []


# Rules that cannot be traced. Each has one line that says so, marked here with "# ←".


def branch_on_tensor(g, *, beta=0.9):
    if g > 0:  # ←
        g = g * beta
    return g


def branch_on_truth_of_tensor(g):
    return g if g else -g  # ←


def chained_comparison(g):
    return where(0 < g < 1, g, 0.0)  # ←


def python_max(g):
    return max(g, 0.0)  # ←


def boolean_and(g):
    return where(g > 0 and g < 1, g, 0.0)  # ←


def branch_on_step(g, *, step):
    if step > 10:  # ←
        g = g / 2
    return g


def branch_on_hyperparameter(g, *, beta=0.9):
    return g if beta == 0 else g * beta  # ←


def nonzero_of_an_expression(g, *, beta=0.9):
    return g * 2 if nonzero(beta - 1) else g  # ←


def nonzero_of_the_step(g, *, step):
    return g * 2 if nonzero(step) else g  # ←


def in_place_sum(g, velocity):
    velocity += g  # ←
    return velocity, velocity


def in_place_product(g, velocity):
    velocity *= 0.9  # ←
    return g + velocity, velocity


def written_elements(g, velocity):
    velocity[0] = g  # ←
    return velocity, velocity


def torch_method(g):
    return g.clamp(-1, 1)  # ←


def torch_method_in_place(g, velocity):
    velocity.mul_(0.9)  # ←
    return velocity, velocity


def torch_method_without_equal(g):
    return g.softmax(0)  # ←


def torch_function(g):
    return torch.sqrt(g)  # ←


def torch_function_without_equal(g):
    return torch.fft.fft(g)  # ←


def torch_function_of_two(g, *, w):
    return torch.where(g > 0, g, w)  # ←


def tensor_from_outside(g):
    return g * outside  # ←


def tensor_from_outside_first(g):
    return outside * g  # ←


def math_function(g, *, beta=0.9):
    return g * math.sqrt(1 - beta)  # ←


def math_function_of_a_tensor(g):
    return math.exp(g)  # ←


def numpy_function(g):
    return numpy.sqrt(g)  # ←


def to_float(g, *, beta=0.9):
    return g * float(beta)  # ←


def to_int(g, *, step):
    return g * int(step)  # ←


def rounded(g, *, step):
    return g * round(step)  # ←


def indexed(g):
    return g * g[0]  # ←


def looped(g):
    for x in g:  # ←
        g = g + x
    return g


def measured(g):
    return g / len(g)  # ←


def remainder(g, *, step):
    return g * (step % 2)  # ←


def whole_quotient(g, *, step):
    return g * (step // 2)  # ←


def matrix_product(g, *, w):
    return g @ w  # ←


def sum_of_a_comparison(g):
    return g * (g > 0)  # ←


def number_as_truth(g):
    return where(g, 1.0, 0.0)  # ←


def absent_state(g, best=zeros(when="amsgrad"), *, amsgrad=False):
    best = maximum(best, g)  # ←
    return best, best


def text(g):
    return g * "2"  # ←


def value_of_an_earlier_trace(g):
    kept.append(g)
    return g * kept[0]  # ←


def number_as_new_weight(g, *, lr):
    return gradstep.new_weight(lr * 2)  # ←


def branch_in_a_helper(g, *, step):
    return _halved(g, step)


def _halved(x, step):
    return x / 2 if step > 3 else x  # ←


#: The rule, what its message says of the problem, and what to write instead.
UNTRACEABLE: list[tuple[Callable[..., Any], str, str]] = [
    (branch_on_tensor, "branches on a tensor", "where(condition, a, b)"),
    (branch_on_truth_of_tensor, "branches on a tensor", "where(condition, a, b)"),
    (chained_comparison, "whether a comparison is true", "(a > 0) & (a < 1)"),
    (python_max, "branches on a tensor", "where(condition, a, b)"),
    (boolean_and, "whether a comparison is true", "(a > 0) & (a < 1)"),
    (branch_on_step, "branches on a number", "where(condition, a, b)"),
    (branch_on_hyperparameter, "branches on a number", "if nonzero(hyperparameter):"),
    (nonzero_of_an_expression, "nonzero() of something other", "where("),
    (nonzero_of_the_step, "nonzero() of something other", "where("),
    (in_place_sum, "in place", "x = x + y"),
    (in_place_product, "in place", "x = x + y"),
    (written_elements, "writes into a tensor", "where(condition, a, b)"),
    (torch_method, ".clamp of a tensor", "clamp(…) from gradstep"),
    (torch_method_in_place, ".mul_ of a tensor", "lerp, log, max, maximum"),
    (torch_method_without_equal, ".softmax of a tensor", "lerp, log, max, maximum"),
    (torch_function, "torch's sqrt", "sqrt(…) from gradstep"),
    (torch_function_without_equal, "torch's fft", "lerp, log, max, maximum"),
    (torch_function_of_two, "torch's where", "where(…) from gradstep"),
    (tensor_from_outside, "a tensor that is no argument", "Make it a state"),
    (tensor_from_outside_first, "a tensor that is no argument", "Make it a state"),
    (math_function, "the value of a number", "gradstep's own functions (sqrt"),
    (math_function_of_a_tensor, "the value of a tensor", "gradstep's own functions (sqrt"),
    (numpy_function, "the value of a tensor", "gradstep's own functions (sqrt"),
    (to_float, "the value of a number", "float()"),
    (to_int, "the value of a number", "int()"),
    (rounded, "the value of a number", "gradstep's own functions"),
    (indexed, "the value of a tensor", "gradstep's own functions"),
    (looped, "the value of a tensor", "gradstep's own functions"),
    (measured, "the value of a tensor", "gradstep's own functions"),
    (remainder, "uses % or //", "+ − * / **"),
    (whole_quotient, "uses % or //", "+ − * / **"),
    (matrix_product, "multiplies matrices", "Write * "),
    (sum_of_a_comparison, "the outcome of a comparison", "where(condition, 1, 0)"),
    (number_as_truth, "a number for a truth value", "a comparison such as x != 0"),
    (absent_state, "None: the state best, which is kept only with amsgrad", "if best is not"),
    (text, "calculates with a str", "tensors and numbers only"),
    (number_as_new_weight, "new_weight() got a number", "a tensor"),
    (branch_in_a_helper, "branches on a number", "where(condition, a, b)"),
]


def marked_line(function: Callable[..., Any]) -> tuple[int, str]:
    lines, start = inspect.getsourcelines(function)
    for number, line in enumerate(lines):
        if line.rstrip().endswith("# ←"):
            return start + number, line.strip()
    return marked_line(_halved)


@pytest.mark.parametrize(
    ("function", "problem", "remedy"), UNTRACEABLE, ids=[f.__name__ for f, _, _ in UNTRACEABLE]
)
def test_an_untraceable_rule_is_refused_at_construction(
    function: Callable[..., Any], problem: str, remedy: str
) -> None:
    """With the rule's name, the line, its text, what is wrong with it, and what to write."""
    with pytest.raises(gradstep.RuleError) as caught:
        gradstep.Optimizer([torch.zeros(3)], gradstep.rule(function))
    message = str(caught.value)
    number, line = marked_line(function)
    named = "_halved" if function is branch_in_a_helper else function.__name__
    assert f"rule {named}, line {number}:\n    {line}\n" in message
    assert problem in message
    assert remedy in message


def test_a_value_kept_from_an_earlier_trace() -> None:
    kept.clear()
    rule = gradstep.rule(value_of_an_earlier_trace)
    trace(rule, {})
    with pytest.raises(gradstep.RuleError, match=r"earlier trace.*may not keep values"):
        trace(rule, {})


def test_a_rule_whose_text_is_not_to_be_had() -> None:
    scope: dict[str, Any] = {}
    exec("def typed(g):\n    return g if g > 0 else -g", scope)
    with pytest.raises(gradstep.RuleError, match="rule typed, line 2: branches on a tensor"):
        gradstep.Optimizer([torch.zeros(3)], gradstep.rule(scope["typed"]))


# Rules that return something other than they declare.


def no_state_returned(g, velocity):
    return 0.9 * velocity + g


def one_too_many(g, velocity):
    return g, velocity, velocity


def none_for_a_state(g, velocity):
    return g, None


def value_for_an_absent_state(g, best=zeros(when="amsgrad"), *, amsgrad=False):
    return g, g


def nothing(g):
    g = g * 2


def number_as_direction(g, *, lr):
    return lr * 2


def comparison_as_direction(g):
    return g > 0


def number_as_state(g, velocity, *, step):
    return g, step


def plain_number_as_state(g, velocity):
    return g, 1.0


RETURNS = [
    (no_state_returned, r"returned 1 value\(s\) and must return 2: direction, velocity\. End it"),
    (one_too_many, r"returned 3 value\(s\) and must return 2: direction, velocity"),
    (none_for_a_state, r"returned None for state velocity\. Return its new value"),
    (
        value_for_an_absent_state,
        r"returned a value for the absent state best\. .* where it is None",
    ),
    (nothing, r"returned None for its direction, which must be a tensor"),
    (number_as_direction, r"returned a number for its direction, which must be a tensor"),
    (comparison_as_direction, r"returned the outcome of a comparison for its direction"),
    (number_as_state, r"returned a number for its velocity, .*where\(g == g, constant"),
    (plain_number_as_state, r"returned 1\.0 for its velocity, which must be a tensor"),
]


@pytest.mark.parametrize(("function", "message"), RETURNS, ids=[f.__name__ for f, _ in RETURNS])
def test_a_rule_that_returns_something_else(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(gradstep.RuleError, match=f"rule {function.__name__} {message}"):
        gradstep.Optimizer([torch.zeros(3)], gradstep.rule(function))


# Signatures that are no rule's.


def stars(g, *states, beta=0.9):
    return g


def keywords(g, **hyperparameters):
    return g


def no_gradient(*, beta=0.9):
    return beta


def default_for_the_gradient(g=0.9):
    return g


def no_default(g, *, beta):
    return g * beta


def number_among_states(g, beta=0.9):
    return g * beta, beta


def weight_among_states(g, w):
    return g + w, w


def step_among_states(g, step):
    return g / step, step


def list_as_default(g, *, betas=(0.9, 0.999)):
    return g


def state_of_nothing(g, best=zeros(when="amsgrad")):
    return g, best


def constant_of_nothing(g, total=gradstep.full("start")):
    return g, total


SIGNATURES = [
    (stars, r"has \*args or \*\*kwargs\. Name every state"),
    (keywords, r"has \*args or \*\*kwargs\. Name every state"),
    (no_gradient, r"takes no gradient\. Its first argument"),
    (default_for_the_gradient, r"first argument, g, is the gradient .* behind a \*"),
    (no_default, r"hyperparameter beta has no default\. Give it one"),
    (number_among_states, r"state beta has the default 0\.9\. .*full\(0\.9\).*behind a \*"),
    (weight_among_states, r"w is the weight before the step\. Put it behind the \*"),
    (step_among_states, r"step is the weight's own step count.*behind the \*"),
    (list_as_default, r"hyperparameter betas is a tuple\. A hyperparameter is a number"),
    (state_of_nothing, r"state best depends on 'amsgrad', which is no hyperparameter"),
    (constant_of_nothing, r"state total depends on 'start', which is no hyperparameter"),
]


@pytest.mark.parametrize(
    ("function", "message"), SIGNATURES, ids=[f.__name__ for f, _ in SIGNATURES]
)
def test_a_signature_that_is_no_rules(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(gradstep.RuleError, match=rf"rule {function.__name__}:? .*{message}"):
        gradstep.rule(function)


def test_a_function_without_the_decorator() -> None:
    with pytest.raises(TypeError, match=r"got no_default\. Put @gradstep\.rule above"):
        gradstep.Optimizer([torch.zeros(3)], no_default)  # type: ignore[arg-type]


# The graph.


def test_equal_parts_are_worked_out_once() -> None:
    @gradstep.rule
    def repeated(g: Any, a: Any, b: Any, *, step: Any, beta: float = 0.9) -> Any:
        a = a + g * g * (1 - beta**step)
        b = b + g * g * (1 - beta**step)
        return sqrt(g * g) / (1 - beta**step), a, b

    graph = trace(repeated, {"beta": 0.9})
    operations = [node.operation for node in graph.order]
    assert operations.count("pow") == 1
    assert operations.count("sqrt") == 1
    # g·g, its product with the correction, and lr times the direction.
    assert operations.count("mul") == 3
    assert operations.count("add") == 2


def test_zeros_of_both_signs_are_two_constants() -> None:
    @gradstep.rule
    def zeros_of_both_signs(g: Any) -> Any:
        return where(g > 1, 0.0, -0.0)

    constants = [n.value for n in trace(zeros_of_both_signs, {}).order if n.operation == "constant"]
    assert sorted(map(repr, constants)) == ["-0.0", "0.0", "1.0"]


def test_numbers_and_tensors_are_told_apart() -> None:
    graph = trace(gradstep.adam, dict(gradstep.adam.hyperparameters))
    kinds = {n.operation: set() for n in graph.order}  # type: ignore[var-annotated]
    for node in graph.order:
        kinds[node.operation].add(node.per_element)
    assert kinds["pow"] == {False}  # beta ** step is worked out on the host
    assert kinds["sqrt"] == {True, False}
    assert kinds["lerp"] == {True}


def test_whole_powers_are_products() -> None:
    @gradstep.rule
    def powers(g: Any, *, p: float = 2.0) -> Any:
        return g**2 + g**0.5 + g**3 + g**p

    operations = [n.operation for n in trace(powers, {"p": 2.0}).order]
    assert operations.count("pow") == 2 and operations.count("sqrt") == 1
    assert operations.count("mul") == 2  # g · g, and lr times the direction


def test_questions_are_remembered() -> None:
    values = dict(gradstep.adam.hyperparameters)
    graph = trace(gradstep.adam, values)
    assert dict(graph.questions)["weight_decay"] is False

    def fits(**changed: float) -> bool:
        numbers = Values((), {})
        return Reading(numbers, {**values, **changed}, [], False, False, False, None).fits(graph)

    assert fits()
    assert fits(beta1=0.5, eps=1.0)
    assert not fits(weight_decay=0.1)


def test_variables_give_their_names() -> None:
    graph = trace(gradstep.adam, dict(gradstep.adam.hyperparameters))
    names = {n.name for n in graph.order}
    assert {"direction", "correction1", "correction2", "exp_avg", "w"} <= names


def test_a_rule_is_a_function_too() -> None:
    """On tensors and numbers it gives what its text says."""
    g, velocity = torch.randn(3), torch.randn(3)

    @gradstep.rule
    def heavy_ball(g: Any, velocity: Any, *, momentum: float = 0.9) -> Any:
        velocity = momentum * velocity + g
        return velocity, velocity

    direction, after = heavy_ball(g, velocity)
    assert torch.equal(direction, 0.9 * velocity + g) and torch.equal(after, direction)
    assert torch.equal(heavy_ball(g, velocity, momentum=0.5)[0], 0.5 * velocity + g)
    assert heavy_ball(momentum=0.5).hyperparameters == {"momentum": 0.5}
    with pytest.raises(TypeError, match="no hyperparameter 'beta'; it has: momentum"):
        heavy_ball(beta=0.5)
    assert lerp(1.0, 3.0, 0.25) == 1.5 and nonzero(0.5) and not nonzero(0.0)


# What changes from step to step, and what compiles anew.


def train(optimizer: gradstep.Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.randn_like(p)
        optimizer.step(lambda: torch.tensor(2.0))


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda r: r.name)
def test_numbers_never_compile_anew(reference: Reference) -> None:
    """They change between steps, and take effect: the eager engine, which has no kernel, agrees."""
    options = {"weight_decay": 0.1, "momentum": 0.9}
    taken = inspect.signature(reference.ours).parameters
    options = {n: v for n, v in options.items() if n in taken}
    shape = (5,) if reference.dimensions is None else (2, 3)
    weights = [torch.zeros(shape, dtype=torch.float64) for _ in range(2)]
    fused, eager = (
        reference.ours([w], engine=engine, **options)
        for w, engine in zip(weights, ("fused", "eager"), strict=True)
    )

    def both(change: Callable[[gradstep.Optimizer], None]) -> None:
        for optimizer in (fused, eager):
            change(optimizer)
            torch.manual_seed(1)
            train(optimizer)
        torch.testing.assert_close(*weights, rtol=1e-9, atol=1e-9)

    def scaled(name: str, factor: float) -> Callable[[gradstep.Optimizer], None]:
        def change(optimizer: gradstep.Optimizer) -> None:
            group = optimizer.param_groups[0]
            if isinstance(group[name], tuple):
                *before, last = group[name]
                before = [None if b is None else b * factor for b in before]
                group[name] = (*before, 1 - (1 - last) * factor)
            else:
                group[name] *= factor

        return change

    both(lambda optimizer: None)
    before = set(compiler._functions)
    group = fused.param_groups[0]
    numbers = [n for n, v in group.items() if type(v) in (int, float, tuple)]
    numbers = [n for n in numbers if n != "d"]  # at least 1
    assert "lr" in numbers
    for name, factor in itertools.product(numbers, (0.5, 0.75)):
        both(scaled(name, factor))
    apart = reference.by_rows or reference.rule.tells_vectors_apart
    shape = (7,) if apart and reference.dimensions is None else (3, 4)  # matrices have other passes
    added = {n: group[n] for n in numbers}
    if "lr" not in {n for _, graph in planner_of(fused).graphs() for n in graph.alike}:
        added["lr"] = 0.123
    fused.add_param_group({"params": [torch.zeros(shape, dtype=torch.float64)], **added})
    train(fused)
    assert set(compiler._functions) == before


def test_flags_and_terms_that_come_and_go_have_kernels_of_their_own() -> None:
    optimizer = gradstep.Adam([torch.zeros(5)], engine="fused", eps=0.125, weight_decay=0.0)
    group = optimizer.param_groups[0]
    train(optimizer)
    seen = [len(compiler._functions)]
    for change in (
        {"weight_decay": 0.1},
        {"maximize": True},
        {"decoupled_weight_decay": True},
        {"amsgrad": True},
    ):
        group.update(change)
        train(optimizer)
        seen.append(len(compiler._functions))
    assert seen == sorted(seen)  # one kernel more for each, unless another test made it before
    # And back again: nothing is new.
    group.update(weight_decay=0.0, maximize=False, decoupled_weight_decay=False, amsgrad=False)
    train(optimizer)
    assert len(compiler._functions) == seen[-1]


def test_a_new_kernel_is_counted() -> None:
    """The count above does see a number in a rule's text, which is part of its kernel."""

    def scaled_by(constant: float) -> gradstep.Rule:
        @gradstep.rule
        def scaled(g: Any) -> Any:
            return g * constant

        return scaled

    counts = []
    for constant in (0.1234, 0.5678, 0.1234):
        train(gradstep.Optimizer([torch.zeros(2)], scaled_by(constant), engine="fused"))
        counts.append(len(compiler._functions))
    assert counts == [counts[0], counts[0] + 1, counts[0] + 1]


@pytest.mark.parametrize("engine", ["fused", "eager"])
def test_lr_as_a_tensor_changed_in_place(engine: str) -> None:
    lr, theirs_lr = (torch.tensor(0.1) for _ in range(2))
    start = torch.randn(4, 5)
    weight, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizer = gradstep.SGD([weight], lr=lr, engine=engine)
    in_torch = torch.optim.SGD([theirs], lr=theirs_lr, foreach=False)
    before = None
    for step in range(6):
        weight.grad = theirs.grad = torch.randn(4, 5)
        optimizer.step()
        in_torch.step()
        assert torch.equal(weight, theirs)
        if before is None:
            before = len(compiler._functions)
        lr.mul_(0.5 if step % 2 else 3.0)
        theirs_lr.copy_(lr)
    assert len(compiler._functions) == before
    assert optimizer.param_groups[0]["lr"] is lr


def test_flags_may_be_text() -> None:
    @gradstep.rule
    def either(g: Any, *, kind: str = "plain") -> Any:
        return gradstep.sign(g) if kind == "sign" else g

    def moved(**options: Any) -> Tensor:
        weight = torch.nn.Parameter(torch.zeros(2))
        weight.grad = torch.tensor([3.0, -5.0])
        gradstep.Optimizer([weight], either, lr=1.0, **options).step()
        return -weight.detach()

    assert moved().tolist() == [3.0, -5.0]
    assert moved(kind="sign").tolist() == [1.0, -1.0]
