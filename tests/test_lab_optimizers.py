"""The optimizers by name."""

import pytest
import torch

import gradstep
from gradstep.lab.errors import UnknownOptimizer
from gradstep.lab.optimizers import CHOICES, DEFAULT, check_name, make_optimizer

SIX = {
    "sgd": gradstep.SGD,
    "adam": gradstep.Adam,
    "adamw": gradstep.AdamW,
    "rmsprop": gradstep.RMSprop,
    "adagrad": gradstep.Adagrad,
    "lion": gradstep.Lion,
}


def test_the_six_are_there_and_are_gradsteps_own_classes() -> None:
    assert DEFAULT in CHOICES
    for name, kind in SIX.items():
        optimizer = make_optimizer(name, [torch.zeros(3, requires_grad=True)])
        assert type(optimizer) is kind
        assert optimizer.param_groups[0]["lr"] == CHOICES[name].lr


@pytest.mark.parametrize("name", CHOICES)
def test_each_goes_downhill_and_takes_the_learning_rate_given(name: str) -> None:
    weight = torch.tensor([3.0], requires_grad=True)
    optimizer = make_optimizer(name, [weight], lr=0.01)
    assert optimizer.param_groups[0]["lr"] == 0.01
    for _ in range(5):
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
    assert 0 < weight.item() < 3
    assert CHOICES[name].meaning


@pytest.mark.parametrize(
    ("name", "near"),
    [("adma", "adam"), ("Adam", "adam"), ("lio", "lion"), ("rmsprob", "rmsprop"), ("SGD", "sgd")],
)
def test_an_unknown_name_is_answered_with_those_that_come_near(name: str, near: str) -> None:
    with pytest.raises(UnknownOptimizer, match=f"did you mean .*{near}") as caught:
        check_name(name)
    assert name in str(caught.value)


def test_a_name_that_is_like_no_other_is_answered_with_all() -> None:
    with pytest.raises(UnknownOptimizer, match="there are sgd, momentum"):
        check_name("qqqq")
