"""Weights for which torch lacks operations: nothing is moved, or the error says what was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradstep
from gradstep.backends import eager
from gradstep.backends.unusual import copy_of
from torch_release import IS_LOWEST

FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2]


class Lacking(Tensor):
    """A tensor that lacks operations, while ``broken`` names them."""

    broken: tuple[str, ...] = ()
    only: Any = None

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in cls.broken and (cls.only is None or args[0] is cls.only):
            raise NotImplementedError(f"no {name} here")
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.fixture(autouse=True)
def _whole() -> Any:
    yield
    Lacking.broken, Lacking.only = (), None


def lacking(x: Tensor) -> nn.Parameter:
    return nn.Parameter(x.as_subclass(Lacking))


def made(unusual: nn.Parameter, rule: Any, **options: Any) -> Any:
    """An optimizer of three weights, the second of which is unusual, with gradients."""
    a, c = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(2, 3))
    named = [("a", a), ("b", unusual), ("c", c)]
    if isinstance(rule, gradstep.Rule):
        optimizer: Any = gradstep.Optimizer(named, rule, lr=0.1, **options)
    else:
        optimizer = rule(named, lr=0.1, **options)
    set_gradients(optimizer)
    return optimizer


def set_gradients(optimizer: Any) -> None:
    for p in weights(optimizer):
        p.grad = torch.full_like(p.detach().float(), 0.5).to(p.dtype).as_subclass(type(p.data))


def weights(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def everything(optimizer: Any) -> list[list[Any]]:
    """Copies of each weight and its states."""
    return [
        [t.detach().as_subclass(Tensor).float().tolist() for t in (p, *state.values())]
        for p in weights(optimizer)
        for state in [optimizer.state.get(p, {})]
    ]


RULES = {
    "SGD": gradstep.SGD,
    "Adam": gradstep.Adam,
    "LAMB": gradstep.LAMB,
    "clipped": gradstep.chain(gradstep.clip_by_global_norm(1.0), gradstep.sgd()),
    "Prodigy": gradstep.prodigy(),
}


@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
@pytest.mark.parametrize("engine", ["auto", "eager"])
@pytest.mark.parametrize("name", RULES)
def test_float8_is_refused_before_anything_is_moved(name: str, engine: str, dtype: Any) -> None:
    optimizer = made(nn.Parameter(torch.ones(2, 3).to(dtype)), RULES[name], engine=engine)
    before = everything(optimizer)
    kind = RuntimeError if IS_LOWEST else NotImplementedError  # as torch raises
    with pytest.raises(kind, match=r"for b \(float8.* 2×3 on cpu\)") as caught:
        optimizer.step()
    assert str(caught.value).count("Leave it out") == 1
    assert everything(optimizer) == before
    assert not any(optimizer.state.get(p) for p in weights(optimizer))


LACKED = [("Adam", "lerp"), ("Adam", "__setitem__"), ("Prodigy", "lerp"), ("Prodigy", "copy_")]


@pytest.mark.parametrize("engine", ["auto", "eager"])
@pytest.mark.parametrize(("name", "broken"), [*LACKED, ("SGD", "add_")])
def test_a_subclass_that_lacks_operations_is_refused_before(
    name: str, engine: str, broken: str
) -> None:
    optimizer = made(lacking(torch.ones(2, 3)), RULES[name], engine=engine)
    if broken == "add_":
        weights(optimizer)[1].grad = torch.ones(2, 3).to_sparse()
    Lacking.broken = (broken,)
    before = everything(optimizer)
    with pytest.raises(NotImplementedError, match=rf"for b \(.*, Lacking\).*no {broken} here"):
        optimizer.step()
    assert everything(optimizer) == before
    Lacking.broken = ()
    optimizer.step()
    assert everything(optimizer)[0] != before[0]


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_what_fails_at_a_later_step_is_accounted_for(engine: str, differentiable: bool) -> None:
    options = {"engine": engine, "differentiable": differentiable}
    optimizer = made(lacking(torch.ones(2, 3)), gradstep.Adam, **options)
    with torch.no_grad():
        optimizer.step()
        before = everything(optimizer)
        Lacking.broken = ("lerp",)
        done = ["a", "c"] if engine == "auto" and not differentiable else ["a"]
        text = rf"step of adam for b .*{len(done)} of 3 .* updated by then: {', '.join(done)}\."
        with pytest.raises(RuntimeError, match=text):
            optimizer.step()
        after = everything(optimizer)
        for name, one, other in zip("abc", before, after, strict=True):
            assert (one != other) == (name in done)


def test_a_weight_that_cannot_be_written_when_its_states_are() -> None:
    optimizer = made(lacking(torch.ones(2, 3)), gradstep.Adam)
    optimizer.step()
    Lacking.broken, Lacking.only = ("__setitem__",), weights(optimizer)[1]
    with pytest.raises(RuntimeError, match=r"The states of b had been, and the weight not\."):
        optimizer.step()


def test_one_in_another_part() -> None:
    named = [("a", nn.Parameter(torch.ones(3))), ("b", lacking(torch.ones(3)))]
    optimizer = gradstep.partition(
        {"plain": gradstep.sgd(), "rest": gradstep.adam()}, named, where={"plain": "a"}
    )
    set_gradients(optimizer)
    Lacking.broken = ("lerp",)
    before = everything(optimizer)
    with pytest.raises(NotImplementedError, match="for b "):
        optimizer.step()
    assert everything(optimizer) == before
    Lacking.broken = ()
    optimizer.step()
    Lacking.broken = ("lerp",)
    with pytest.raises(RuntimeError, match=r"1 of 2 parameters had been updated by then: a\."):
        optimizer.step()


def test_memory_that_is_missing_keeps_its_kind() -> None:
    """Who searches for a batch size catches torch's own error."""

    class Full(Lacking):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if getattr(func, "__name__", "") == "lerp":
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().__torch_function__(func, types, args, kwargs or {})

    b = nn.Parameter(torch.ones(3).as_subclass(Full))
    optimizer = gradstep.Adam([("b", b)])
    b.grad = torch.ones(3).as_subclass(Full)
    with pytest.raises(torch.OutOfMemoryError):
        optimizer.step()


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_a_usual_weight_is_not_tried_out(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies are made of the unusual one alone, and only at its first step."""
    copied = []

    def noted(update: Any) -> Any:
        copied.append(update.name())
        return copy_of(update)

    monkeypatch.setattr(eager, "copy_of", noted)
    optimizer = made(lacking(torch.ones(2, 3)), gradstep.Adam, engine=engine)
    optimizer.step()
    optimizer.step()
    assert copied == ["b"]


@pytest.mark.slow
@pytest.mark.deep
def test_float8_that_torch_compile_refuses() -> None:
    optimizer = made(nn.Parameter(torch.ones(2, 3).to(FLOAT8[0])), gradstep.Adam, engine="compile")
    before = everything(optimizer)
    with pytest.raises(RuntimeError, match=r"torch\.compile cannot make the step of adam for a "):
        optimizer.step()
    assert everything(optimizer) == before
