"""What a rule reads beside its arguments, and what happens when that is changed later."""

from __future__ import annotations

import functools
import itertools
import logging
import math
import random
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy
import pytest
import torch

import gradstep
from gradstep import rules
from gradstep.optimizer import group_run
from gradstep.optimizer.optimizer import planner_of
from gradstep.rule.free_variables import FreeVariables
from gradstep.rule.trace import trace

scale = 2.0
config = types.SimpleNamespace(inner=types.SimpleNamespace(scale=2.0), on=True)
table: dict[str, Any] = {"scales": [2.0, 3.0]}
settings = types.ModuleType("settings_of_a_rule")
tensor = torch.tensor(2.0)
TENTH = Fraction(1, 10)


class Constants:
    """A class as a place for constants."""

    scale = 2.0


@dataclass
class Strength:
    """An object with a method, a property and a call."""

    scale: float = 2.0

    def of(self, g):
        return g * self.scale

    @property
    def double(self):
        return self.scale * 2

    def __call__(self, g):
        return self.of(g)


strength = Strength()


def helper(g, factor=1.0, *, options=(1.0,)):
    return g * scale * factor * options[0]


def through_helper(x):
    return helper(x)


def whole(g, thing):
    return g * thing.inner.scale


class Scaled:
    """Has a rule as a method."""

    def __init__(self):
        self.scale = 2.0

    def rule(self, g):
        inside = [self.scale for _ in range(2)]
        return g * inside[0]


Change = Callable[[pytest.MonkeyPatch], None]


def of_module(name: str, value: Any) -> Change:
    return lambda patch: patch.setattr(sys.modules[__name__], name, value)


def reads_global():
    def r(g):
        return g * scale

    return r, of_module("scale", 3.0)


def reads_the_sign_of_zero():
    zero = 0.0

    def r(g):
        return g * math.copysign(1.0, zero)

    def change(patch):
        nonlocal zero
        zero = -0.0

    return r, change


def reads_closure():
    mine = 2.0

    def r(g):
        return g * mine

    def change(patch):
        nonlocal mine
        mine = 3.0

    return r, change


def reads_attribute():
    def r(g):
        return g * config.inner.scale

    return r, lambda patch: patch.setattr(config.inner, "scale", 3.0)


def reads_attribute_of_an_exchanged_object():
    def r(g):
        return g * config.inner.scale

    return r, lambda patch: patch.setattr(config, "inner", types.SimpleNamespace(scale=5.0))


def branches_on_an_attribute():
    def r(g):
        return g if config.on else g / 2

    return r, lambda patch: patch.setattr(config, "on", False)


def gives_an_object_on():
    def r(g):
        return whole(g, config)

    return r, lambda patch: patch.setattr(config.inner, "scale", 3.0)


def reads_attribute_by_getattr():
    def r(g):
        return g * getattr(config.inner, "scale")  # noqa: B009

    return r, lambda patch: patch.setattr(config.inner, "scale", 3.0)


def reads_class():
    def r(g):
        return g * Constants.scale

    return r, lambda patch: patch.setattr(Constants, "scale", 3.0)


def reads_module():
    def r(g):
        return g * settings.scale

    settings.scale = 2.0
    return r, lambda patch: patch.setattr(settings, "scale", 3.0)


def imports_within():
    sys.modules["settings_of_a_rule"] = settings
    settings.scale = 2.0

    def r(g):
        import settings_of_a_rule as b
        from settings_of_a_rule import scale as a

        return g * a + g * b.scale

    return r, lambda patch: patch.setattr(settings, "scale", 3.0)


def reads_list_in_dict():
    def r(g):
        return g * table["scales"][0] + g * sum(table.get("scales", ()))

    def change(patch):
        patch.setitem(table, "scales", [2.0, 7.0])

    return r, change


def reads_tensor():
    def r(g):
        return g * tensor + g * tensor.item()

    def change(patch):
        with torch.no_grad():
            tensor.mul_(1.5)

    return r, change


def reads_array():
    array = numpy.array([2.0, 3.0])

    def r(g):
        return g * float(array[0])

    return r, lambda patch: array.fill(3.0)


def reads_date_like():
    def r(g):
        return g * float(TENTH)

    return r, of_module("TENTH", Fraction(1, 3))


def calls_function_that_reads():
    def r(g):
        return through_helper(g)

    return r, of_module("scale", 3.0)


def calls_function_that_is_exchanged():
    def r(g):
        return through_helper(g)

    return r, of_module("helper", lambda g: g * 4)


def calls_function_with_other_defaults():
    def r(g):
        return through_helper(g)

    return r, lambda patch: patch.setattr(helper, "__defaults__", (5.0,))


def calls_function_with_other_keyword_defaults():
    def r(g):
        return through_helper(g)

    return r, lambda patch: patch.setattr(helper, "__kwdefaults__", {"options": [6.0]})


def calls_method():
    def r(g):
        return strength.of(g)

    return r, lambda patch: patch.setattr(strength, "scale", 3.0)


def reads_property():
    def r(g):
        return g * strength.double

    return r, lambda patch: patch.setattr(strength, "scale", 3.0)


def calls_object():
    def r(g):
        return strength(g)

    return r, lambda patch: patch.setattr(strength, "scale", 3.0)


def calls_partial():
    part = functools.partial(helper, factor=2.0)

    def r(g):
        return part(g)

    return r, of_module("scale", 3.0)


def calls_functions_of_one_text():
    scales = [2.0, 3.0]

    def made(place):
        return lambda x: x * scales[place] ** (place + 1)

    first, second = made(0), made(1)

    def r(g):
        return first(g) + second(g)

    return r, lambda patch: scales.reverse()


def calls_decorated_function():
    def decorated(f):
        @functools.wraps(f)
        def inner(*args):
            return f(*args)

        return inner

    @decorated
    def mine(x):
        return x * scale

    def r(g):
        return mine(g)

    return r, of_module("scale", 3.0)


def reads_within_an_inner_function():
    mine = 2.0

    def r(g):
        def inner(x):
            return x * mine * scale

        return inner(g)

    def change(patch):
        nonlocal mine
        mine = 3.0

    return r, change


def is_a_method():
    owner = Scaled()
    return owner.rule, lambda patch: patch.setattr(owner, "scale", 3.0)


def calls_a_rule():
    @gradstep.rule
    def base(g):
        return g * scale

    def r(g):
        return base(g)

    return r, of_module("scale", 3.0)


def sums_over_all():
    def r(g):
        return g * scale / gradstep.global_norm(g)

    return r, of_module("scale", 3.0)


CASES = [
    reads_global,
    reads_the_sign_of_zero,
    reads_closure,
    reads_attribute,
    reads_attribute_of_an_exchanged_object,
    branches_on_an_attribute,
    gives_an_object_on,
    reads_attribute_by_getattr,
    reads_class,
    reads_module,
    imports_within,
    reads_list_in_dict,
    reads_tensor,
    reads_array,
    reads_date_like,
    calls_function_that_reads,
    calls_function_that_is_exchanged,
    calls_function_with_other_defaults,
    calls_function_with_other_keyword_defaults,
    calls_method,
    reads_property,
    calls_object,
    calls_partial,
    calls_functions_of_one_text,
    calls_decorated_function,
    reads_within_an_inner_function,
    is_a_method,
    calls_a_rule,
    sums_over_all,
]


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    with torch.no_grad():
        tensor.fill_(2.0)


def steps(rule: gradstep.Rule, engine: str, change: Callable[[], None]) -> list[torch.Tensor]:
    """The weight after each of four steps; the change comes after the second."""
    w = torch.nn.Parameter(torch.linspace(-1, 1, 6).reshape(2, 3))
    optimizer = gradstep.Optimizer([w], rule, lr=0.1, engine=engine)
    found = []
    for number in range(4):
        if number == 2:
            change()
        w.grad = torch.linspace(1, 2, 6).reshape(2, 3)
        optimizer.step()
        found.append(w.detach().clone())
    assert set(optimizer.engines_used().values()) == {engine}
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_what_a_rule_reads_may_change(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for engine in ("eager", "fused"):
        function, change = case()
        with monkeypatch.context() as patch:
            found[engine] = steps(gradstep.rule(function), engine, lambda c=change, p=patch: c(p))
        with torch.no_grad():
            tensor.fill_(2.0)
    for eager, fused in zip(found["eager"], found["fused"], strict=True):
        torch.testing.assert_close(fused, eager)
    function, _ = case()
    plain = steps(gradstep.rule(function), "fused", lambda: None)
    assert torch.equal(plain[1], found["fused"][1])
    assert not torch.equal(plain[3], found["fused"][3])


def test_in_a_chain_and_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    rule, _ = reads_global()
    chain = gradstep.chain(gradstep.rule(rule), gradstep.scale(0.5))
    a, b = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    optimizer = gradstep.Optimizer([{"params": [a]}, {"params": [b], "lr": 2.0}], chain, lr=1.0)
    for p in (a, b):
        p.grad = torch.ones(3)
    optimizer.step()
    monkeypatch.setattr(sys.modules[__name__], "scale", 10.0)
    optimizer.step()
    assert a.tolist() == [-1 - 5] * 3
    assert b.tolist() == [-2 - 10] * 3


def test_the_same_again_traces_nothing_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    function, _ = reads_attribute()
    w = torch.nn.Parameter(torch.zeros(3))
    optimizer = gradstep.Optimizer([w], gradstep.rule(function), lr=1.0)
    w.grad = torch.ones(3)
    optimizer.step()
    graphs = planner_of(optimizer)._known[0].graphs
    monkeypatch.setattr(config.inner, "scale", float("2.0"))
    optimizer.step()
    assert planner_of(optimizer)._known[0].graphs is graphs


def one_step(rule: gradstep.Rule) -> list[float]:
    w = torch.nn.Parameter(torch.zeros(3))
    w.grad = torch.ones(3)
    gradstep.Optimizer([w], rule, lr=1.0).step()
    return w.tolist()


def test_the_next_optimizer_of_a_rule_traces_nothing_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[object] = []

    def traces(*arguments: Any, **keywords: Any) -> Any:
        traced.append(arguments)
        return trace(*arguments, **keywords)

    monkeypatch.setattr(group_run, "trace", traces)
    rule = gradstep.rule(reads_global()[0])
    assert one_step(rule) == one_step(rule) == [-2.0] * 3
    assert len(traced) == 1
    monkeypatch.setattr(sys.modules[__name__], "scale", 10.0)
    assert one_step(rule) == [-10.0] * 3


def test_a_reloaded_function_is_traced_anew() -> None:
    """As a notebook's autoreload does it: new code in the function that is already there."""

    def before(g):
        return g * 2

    def after(g):
        return g * 3

    rule = gradstep.rule(before)
    assert one_step(rule) == [-2.0] * 3
    before.__code__ = after.__code__
    assert one_step(rule) == [-3.0] * 3


@pytest.mark.parametrize("name", sorted(rules.load()))
def test_gradsteps_own_rules_read_nothing(name: str) -> None:
    assert not FreeVariables(rules.load()[name])


def test_constants_are_no_readings() -> None:
    log = logging.getLogger("a rule's")

    @gradstep.rule
    def r(g, m, *, beta=0.9, w, lr):
        log.debug("traced")
        m = gradstep.lerp(m, g, 1 - beta)
        extra = math.sqrt(2.0) * math.pi + torch.finfo(torch.float32).eps + len([1]) + numpy.pi
        return m * extra + 0 * w * lr, m

    assert not FreeVariables(r)


generator = random.Random(1)
numpy_generator = numpy.random.default_rng(1)
counter = itertools.count()
big = list(range(1000))
big_tensor = torch.zeros(1000)
kept = 0


def draws(g):
    return g * random.random()  # ←


def draws_from_its_own(g):
    return g * generator.uniform(0, 1)  # ←


def draws_with_numpy(g):
    return g * numpy.random.rand()  # ←


def draws_from_numpys_generator(g):
    return g * numpy_generator.random()  # ←


def draws_with_torch(g):
    return g * torch.rand(())  # ←


def tells_the_time(g):
    return g * time.time()  # ←


def counts(g):
    return g * next(counter)  # ←


def reads_too_much(g):
    return g * big[3]  # ←


def reads_a_large_tensor(g):
    return g * big_tensor[3]  # ←


def keeps_a_global(g):
    global kept
    kept = kept + 1  # ←
    return g


def calls_one_that_counts(g):
    return counts(g)


REFUSED = {
    draws: "random.random",
    draws_from_its_own: "generator",
    draws_with_numpy: "numpy.random.rand",
    draws_from_numpys_generator: "numpy_generator",
    draws_with_torch: "torch.rand",
    tells_the_time: "time.time",
    counts: "counter, a count",
    reads_too_much: "big, a list of more than 100 values",
    reads_a_large_tensor: "big_tensor, a tensor of 1000 elements",
    keeps_a_global: "keeps kept between calls",
    calls_one_that_counts: "counter, a count",
}


@pytest.mark.parametrize("function", REFUSED, ids=lambda f: f.__name__)
@pytest.mark.parametrize("engine", ["eager", "fused"])
def test_what_cannot_be_looked_at_again_is_refused(function: Any, engine: str) -> None:
    w = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(gradstep.RuleError) as caught:
        gradstep.Optimizer([w], gradstep.rule(function), engine=engine)
    message = str(caught.value)
    with pytest.raises(gradstep.RuleError) as shown:  # which would have it for a constant
        gradstep.formula(gradstep.rule(function))
    assert str(shown.value) == message
    assert REFUSED[function] in message
    assert (", line " in message and "g * " in message) or "kept = kept + 1" in message
    assert "hyperparameter" in message or "Make it a state" in message


def test_a_tuple_may_be_long() -> None:
    weights = tuple(float(i) for i in range(1000))
    rule = gradstep.rule(lambda g: g * weights[3])
    w = torch.nn.Parameter(torch.zeros(3))
    optimizer = gradstep.Optimizer([w], rule, lr=1.0)
    w.grad = torch.ones(3)
    optimizer.step()
    assert w.tolist() == [-3.0] * 3
