"""A backend from outside the package: one in NumPy, which trains LeNet; and who is let in."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import gradstep
from gradstep.backends import Backend, Binding, Run, Values, engines, register
from gradstep.backends.update import Update
from gradstep.lab.lenet import LeNet
from gradstep.program.program import Program
from gradstep.rule.graph import Node
from gradstep.rule.reductions import facts_of

OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv,
    "neg": operator.neg, "pow": operator.pow, "sqrt": numpy.sqrt, "abs": abs,
    "lerp": lambda a, b, share: a + share * (b - a), "where": numpy.where,
    "maximum": numpy.maximum, "minimum": numpy.minimum, "lt": operator.lt, "gt": operator.gt,
    "eq": operator.eq, "ne": operator.ne, "le": operator.le, "ge": operator.ge,
    "and": numpy.logical_and, "or": numpy.logical_or, "not": numpy.logical_not,
    "sum": lambda a: numpy.sum(a, dtype=numpy.float64),
}  # fmt: skip


class NumpyBackend(Backend):
    """Steps worked out by NumPy, node by node, in float32."""

    name = "numpy"
    may_stop = False

    def refusal(self, update: Update, program: Program) -> str | None:
        if type(update.gradient) is not Tensor or update.gradient.layout is not torch.strided:
            return f"its gradient is a {type(update.gradient).__name__}"
        if not (update.weight.is_cpu and update.weight.dtype == torch.float32):
            return f"it is {update.weight.dtype} on {update.weight.device}"
        for node in program.graph.nodes:
            along = node.extent not in ("element", "number", "tensor")
            if along or node.operation not in {*OPERATIONS, "input", "constant"}:
                return f"this backend has no {node.operation} along {node.extent}s"
        return None

    def bind(self, program: Program, updates: Sequence[Update]) -> Binding:
        return Bound(program, updates)


class Bound(Binding):
    """Weights that are bound anew at each step."""

    def __init__(self, program: Program, updates: Sequence[Update]) -> None:
        self.program = program
        self.updates = updates

    def prepare(self, values: Values) -> Run:
        made = [(update, *self.work_out(update, values)) for update in self.updates]

        def run() -> None:
            with torch.no_grad():
                for update, weight, states, numbers in made:
                    update.weight.copy_(torch.from_numpy(weight))
                    for name, state in states.items():
                        update.states[name].copy_(torch.from_numpy(state))
                    for name, number in numbers.items():
                        update.numbers[name].fill_(number)

        return run

    def work_out(self, update: Update, values: Values) -> tuple[Any, dict[str, Any], Any]:
        graph, known = self.program.graph, dict[int, Any]()
        numbers = {n: float(t) for n, t in update.numbers.items()}
        numbers["step"] = numbers.get("step", 0.0) + 1
        given = dict(zip(self.program.names, values.numbers, strict=True))
        given |= {**facts_of(update.weight), **numbers, "first": float(update.first)}
        tensors = {id(graph.weight): update.weight, id(graph.gradient): update.gradient}
        tensors |= {id(before): update.states[name] for name, before, _ in graph.states}

        def value(node: Node) -> Any:
            if id(node) in tensors:
                return tensors[id(node)].detach().numpy()
            if node.operation == "input":
                return given[str(node.value)]
            if node.operation == "constant":
                return node.value
            return OPERATIONS[node.operation](*(known[id(a)] for a in node.arguments))

        for node in graph.nodes:
            known[id(node)] = value(node)
        states = {n: known[id(after)].astype(numpy.float32) for n, _, after in graph.states}
        after = {n: known[id(node)] for n, _, node in graph.numbers}
        after |= {"step": numbers["step"]} if "step" in update.numbers else {}
        return known[id(graph.new_weight)].astype(numpy.float32), states, after


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    from gradstep.backends import dispatch

    monkeypatch.setattr(dispatch, "_engines", dict(dispatch._engines))
    register(NumpyBackend())


def images() -> tuple[Tensor, Tensor]:
    """A handful of noisy images of ten patterns, and which pattern each shows."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(10, 1, 32, 32, generator=generator)
    labels = torch.arange(100) % 10
    return patterns[labels] + torch.randn(100, 1, 32, 32, generator=generator), labels


def trained(make: Callable[..., Any], steps: int, engine: str) -> tuple[LeNet, float, Any]:
    """LeNet after some steps, and what share of the images it then gets right."""
    torch.manual_seed(0)
    model = LeNet()
    optimizer = make(model.named_parameters(), engine=engine)
    inputs, labels = images()
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    with torch.no_grad():
        right = (model(inputs).argmax(1) == labels).float().mean()
    return model, float(right), optimizer


MAKERS = {
    "Adam": lambda p, engine: gradstep.Adam(p, lr=2e-3, weight_decay=1e-3, engine=engine),
    "LAMB": lambda p, engine: gradstep.Optimizer(p, gradstep.lamb(), lr=0.02, engine=engine),
}


@pytest.mark.parametrize("name", MAKERS)
def test_lenet_trains_through_a_backend_from_outside(name: str) -> None:
    _, right, optimizer = trained(MAKERS[name], 30, "numpy")
    assert set(optimizer.engines_used().values()) == {"numpy"}
    assert right > 0.95


@pytest.mark.parametrize("name", MAKERS)
def test_its_steps_are_those_of_the_kernels(name: str) -> None:
    theirs, _, optimizer = trained(MAKERS[name], 1, "numpy")
    ours, _, fused = trained(MAKERS[name], 1, "fused")
    for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert (a - b).abs().max() < 1e-5 * b.abs().max()
    for entry, expected in zip(optimizer.state.values(), fused.state.values(), strict=True):
        assert entry["step"] == expected["step"]


def test_what_it_refuses_is_updated_eagerly(caplog: pytest.LogCaptureFixture) -> None:
    weights = [torch.nn.Parameter(torch.ones(3, dtype=d)) for d in (torch.float32, torch.float64)]
    optimizer = gradstep.Adam([("a", weights[0]), ("b", weights[1])], engine="numpy")
    for _ in range(2):
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert optimizer.engines_used() == {"a": "numpy", "b": "eager"}
    said = [r.getMessage() for r in caplog.records if r.name == "gradstep"]
    assert said == ["b is updated by the eager engine: it is torch.float64 on cpu"]


def test_tensors_that_share_memory_are_left_to_the_eager_engine() -> None:
    whole = torch.ones(4)
    weights = [torch.nn.Parameter(whole[:3]), torch.nn.Parameter(whole[1:])]
    optimizer = gradstep.SGD(weights, lr=0.1, engine="numpy")
    for weight in weights:
        weight.grad = torch.ones(3)
    optimizer.step()
    assert set(optimizer.engines_used().values()) == {"eager"}


def test_an_engine_that_nobody_registered() -> None:
    with pytest.raises(ValueError, match=r"Invalid engine: 'numba'; choose one of auto, .*numpy"):
        gradstep.Adam([torch.ones(2)], engine="numba")
    assert engines() == ("auto", "eager", "fused", "compile", "cuda", "numpy")


def test_what_is_no_backend_is_refused() -> None:
    with pytest.raises(TypeError, match=r"register takes a backend; got .*Backend"):
        register(NumpyBackend)  # type: ignore[arg-type]
    for name, what in (("fused", "names an engine of gradstep's own"), ("", "Expected the text")):
        backend = NumpyBackend()
        backend.name = name
        with pytest.raises(ValueError, match=what):
            register(backend)
