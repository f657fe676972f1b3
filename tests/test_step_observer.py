"""``StepObserver``: the one door for whoever looks on at the steps of an optimizer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

import gradstep
from gradstep.optimizer.observer import StepObserver, observe
from gradstep.optimizer.step import Step


class Seen(StepObserver):
    """Writes down what it is told, and the weights at that time."""

    def __init__(self, params: list[torch.nn.Parameter]) -> None:
        self.params = params
        self.told: list[str] = []
        self.weights: dict[str, list[float]] = {}

    def note(self, event: str) -> None:
        self.told.append(event)
        self.weights[event] = [p[0].item() for p in self.params]

    def begun(self, step: Step) -> None:
        assert not step.runs
        self.note("begun")

    def planned(self, step: Step) -> None:
        assert len(step.runs) == len(step.planners) and all(step.runs)
        self.note("planned")

    def written(self, step: Step) -> None:
        self.note("written")

    def closed(self, step: Step) -> None:
        how = "skipped" if step.skipped else type(step.error).__name__ if step.error else "made"
        self.note(f"closed: {how}")


WHOLE = ["begun", "planned", "written", "closed: made"]


def weights() -> list[torch.nn.Parameter]:
    params = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))]
    for p in params:
        p.grad = torch.ones(3)
    return params


def two_parts(params: list[torch.nn.Parameter], **options: Any) -> gradstep.Partition:
    parts = {"first": gradstep.sgd(), "rest": gradstep.sgd()}
    named = [("a", params[0]), ("b", params[1])]
    return gradstep.partition(parts, named, where={"first": "a"}, lr=0.5, **options)


MAKES: dict[str, Callable[..., Any]] = {
    "optimizer": lambda params, **options: gradstep.SGD(params, lr=0.5, **options),
    "partition": two_parts,
    "wrapper": lambda params, **options: gradstep.Accumulate(two_parts(params, **options), 1),
}


@pytest.mark.parametrize("name", MAKES)
def test_a_step_is_begun_planned_written_closed(name: str) -> None:
    params = weights()
    optimizer, seen = MAKES[name](params), Seen(params)
    end = observe(optimizer, seen)
    optimizer.step()
    assert seen.told == WHOLE
    assert seen.weights["planned"] == [1.0, 1.0] and seen.weights["written"] == [0.5, 0.5]
    optimizer.step()
    assert seen.told == WHOLE * 2
    end()
    optimizer.step()
    assert seen.told == WHOLE * 2
    assert params[0].tolist() == [-0.5] * 3


def test_a_part_is_observed_within_the_whole() -> None:
    params = weights()
    optimizer, seen = two_parts(params), Seen(params)
    observe(optimizer.parts["rest"], seen)
    optimizer.step()
    assert seen.told == WHOLE


@pytest.mark.parametrize("name", MAKES)
def test_a_step_that_does_not_fit_is_begun_and_closed(name: str) -> None:
    params = weights()
    optimizer, seen = MAKES[name](params), Seen(params)
    observe(optimizer, seen)
    optimizer.param_groups[-1]["lr"] = "much"
    with pytest.raises(TypeError):
        optimizer.step()
    assert seen.told == ["begun", "closed: TypeError"]
    assert seen.weights["closed: TypeError"] == [1.0, 1.0]


@gradstep.opaque
def failing(x: torch.Tensor) -> torch.Tensor:
    """Raises within the step."""
    raise ArithmeticError("no")


def test_a_step_that_stops_in_the_middle_is_closed_unwritten() -> None:
    params = weights()
    optimizer = gradstep.Optimizer(params, gradstep.rule(lambda g: failing(g)), lr=0.5)
    seen = Seen(params)
    observe(optimizer, seen)
    with pytest.raises(ArithmeticError):
        optimizer.step()
    assert seen.told == ["begun", "planned", "closed: ArithmeticError"]


def test_a_step_that_grad_scaler_leaves_out_is_closed_skipped() -> None:
    params = weights()
    optimizer, seen = gradstep.SGD(params, lr=0.5, fused=True), Seen(params)
    observe(optimizer, seen)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(1.0)
    optimizer.step()
    assert seen.told == ["closed: skipped"] and params[0].tolist() == [1.0] * 3


def test_an_observer_that_refuses_ends_the_step_before_it_is_written() -> None:
    class Refusing(StepObserver):
        def planned(self, step: Step) -> None:
            raise PermissionError("not now")

    params = weights()
    optimizer, seen = gradstep.SGD(params, lr=0.5), Seen(params)
    observe(optimizer, seen)
    observe(optimizer, Refusing())
    with pytest.raises(PermissionError):
        optimizer.step()
    assert seen.told[-1] == "closed: PermissionError" and params[0].tolist() == [1.0] * 3


def test_a_copy_is_not_observed() -> None:
    params = weights()
    optimizer, seen = gradstep.SGD(params, lr=0.5), Seen(params)
    observe(optimizer, seen)
    copy.deepcopy(optimizer).step()
    assert seen.told == []


def test_a_partition_names_its_parameters_and_engines() -> None:
    params = weights()
    optimizer = two_parts(params, engine="eager")
    optimizer.step()
    assert [optimizer.name_of(p) for p in params] == ["a", "b"]
    assert optimizer.engines_used() == {"a": "eager", "b": "eager"}


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "Adafactor"])
def test_users_see_torchs_names_and_two_more(name: str) -> None:
    """Everything else stands behind the optimizer, in its planner."""

    def names(module: Any) -> set[str]:
        optimizer = getattr(module, name)([torch.nn.Parameter(torch.ones(2))])
        return {n for n in dir(optimizer) if not n.startswith("_")}

    assert names(gradstep) - names(torch.optim) == {"engines_used", "name_of"}
