"""Functions of a rule that raise in the middle of a step: what is updated, and what is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradstep
from gradstep import lerp
from gradstep.backends.cpu import buckets

#: The shapes that the function refuses at present.
_refused: list[tuple[int, ...]] = []


class Refusal(ValueError):
    """What the function raises."""


@gradstep.opaque
def picky(x: Tensor) -> Tensor:
    """A function that raises at some shapes."""
    if tuple(x.shape[1:]) in _refused:
        raise Refusal(f"no {tuple(x.shape[1:])} today")
    return 2 * x


@gradstep.rule
def moody(g: Any, exp_avg: Any, *, step: Any) -> Any:
    """A state that could be written before the function is called, and a step count."""
    exp_avg = lerp(exp_avg, g, 0.5)
    return picky(exp_avg) / step, exp_avg


@pytest.fixture(autouse=True)
def _refuse_nothing() -> Any:
    yield
    _refused.clear()


SHAPES = {"a": (4, 6), "b": (5, 3), "c": (4, 6), "d": (2, 2)}
#: The fused engine takes those of one shape together, the eager one each in turn.
DONE = {"fused": ["a", "c"], "eager": ["a"]}


def made(engine: str) -> gradstep.Optimizer:
    random = torch.Generator().manual_seed(5)
    named = [(n, nn.Parameter(torch.randn(s, generator=random))) for n, s in SHAPES.items()]
    optimizer = gradstep.Optimizer(named, moody, lr=0.1, engine=engine)
    set_gradients(optimizer, 0)
    return optimizer


def set_gradients(optimizer: Any, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    for p in weights(optimizer).values():
        p.grad = torch.randn(p.shape, generator=random)


def weights(optimizer: Any) -> dict[str, Tensor]:
    return dict(zip(SHAPES, optimizer.param_groups[0]["params"], strict=True))


def held(optimizer: Any) -> dict[str, list[Tensor]]:
    """Copies of each weight and its states."""
    return {
        name: [t.detach().clone() for t in (p, *optimizer.state.get(p, {}).values())]
        for name, p in weights(optimizer).items()
    }


def assert_equal(one: list[Tensor], other: list[Tensor]) -> None:
    assert len(one) == len(other)
    assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("engine", ["fused", "eager"])
def test_a_function_that_raises_at_its_second_shape(
    engine: str, before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "BUCKET", 30)
    optimizer, sound = made(engine), made(engine)
    for step in range(before):
        for each in (optimizer, sound):
            set_gradients(each, step)
            each.step()
    start = held(optimizer)
    set_gradients(optimizer, 9)
    set_gradients(sound, 9)
    _refused.append(SHAPES["b"])
    names = ", ".join(DONE[engine])
    text = (
        rf"Refusal: no \(5, 3\) today\. {len(DONE[engine])} of 4 parameters .* by then: {names}\."
    )
    with pytest.raises(RuntimeError, match=text) as caught:
        optimizer.step()
    assert isinstance(caught.value.__cause__, Refusal)
    _refused.clear()
    sound.step()
    after, whole = held(optimizer), held(sound)
    for name in SHAPES:
        assert_equal(after[name], (whole if name in DONE[engine] else start)[name])

    # It goes on from there: those that were left out are a step behind, and nothing else.
    for each in (optimizer, sound):
        set_gradients(each, 10)
        each.step()
    for name in DONE[engine]:
        assert_equal(held(optimizer)[name], held(sound)[name])
    counts = {n: float(optimizer.state[p]["step"]) for n, p in weights(optimizer).items()}
    assert counts == {n: before + 1 + (n in DONE[engine]) for n in SHAPES}


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("engine", ["fused", "eager"])
def test_a_function_that_raises_at_its_first_shape(engine: str, before: int) -> None:
    """Nothing has been written, not even a state, and the function's own error is raised."""
    optimizer = made(engine)
    for _ in range(before):
        optimizer.step()
    start = held(optimizer)
    _refused.extend(SHAPES.values())
    with pytest.raises(Refusal):
        optimizer.step()
    for name, found in held(optimizer).items():
        assert_equal(found, start[name])


def test_parts_that_were_updated_before_are_named() -> None:
    random = torch.Generator().manual_seed(5)
    named = [(n, nn.Parameter(torch.randn(s, generator=random))) for n, s in SHAPES.items()]
    optimizer = gradstep.partition(
        {
            "plain": lambda params: gradstep.SGD(params, lr=0.1),
            "rest": lambda params: gradstep.Optimizer(params, moody, lr=0.1),
        },
        named,
        where={"plain": "d"},
    )
    for _, p in named:
        p.grad = torch.ones_like(p)
    _refused.append(SHAPES["a"])
    with pytest.raises(RuntimeError, match=r"1 of 4 parameters had been updated by then: d\."):
        optimizer.step()
    assert all(not optimizer.state.get(p) for _, p in named)
