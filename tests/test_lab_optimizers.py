"""The optimizers by name."""

import pytest
import torch
from torch.nn.functional import cross_entropy

import gradstep
import gradstep.torch_optim
from gradstep.classes import rule_classes
from gradstep.lab.errors import UnknownOptimizer
from gradstep.lab.optimizers import (
    CHOICES,
    DEFAULT,
    TRAINABLE,
    check_name,
    make_optimizer,
    needs_closure,
)
from gradstep.lab.training import Learner, initial_model, learn

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
    weight = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    optimizer = make_optimizer(name, [weight], lr=0.01)
    assert optimizer.param_groups[0]["lr"] == 0.01
    for _ in range(5):
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        optimizer.step(lambda loss=loss: loss)
    least = -0.2 if name == "pid" else 0  # whose derivative carries it past the lowest point
    assert least < weight.item() < 3
    assert CHOICES[name].meaning


@pytest.mark.parametrize(
    ("name", "near"),
    [("adma", "adam"), ("lio", "lion"), ("rmsprob", "rmsprop"), ("lamda", "lamb")],
)
def test_an_unknown_name_is_answered_with_those_that_come_near(name: str, near: str) -> None:
    with pytest.raises(UnknownOptimizer, match=f"did you mean .*{near}") as caught:
        check_name(name)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("AdamW", "adamw"),
        ("SGD", "sgd"),
        ("DAdaptAdam", "dadapt_adam"),
        ("MUON+AdamW", "muon+adamw"),
    ],
)
def test_a_name_may_be_spelled_as_the_class(name: str, known: str) -> None:
    assert check_name(name) == known


def test_a_name_that_is_like_no_other_is_answered_with_all() -> None:
    with pytest.raises(UnknownOptimizer, match="there are sgd, momentum"):
        check_name("qqqq")


def test_every_class_can_be_trained_with_but_those_that_lenet_is_nothing_for() -> None:
    weight = torch.zeros(3, requires_grad=True)
    made = {type(make_optimizer(name, [weight])).__name__ for name in TRAINABLE}
    known = {*gradstep.torch_optim.__all__, *rule_classes.load(), "Partition"}
    matrices_only = {
        "Muon",
        "NorMuon",
        "AdaMuon",
        "AdaGO",
        "PolarGrad",
        "Scion",
        "Dion",
        "Dion2",
        "SOAPMuon",
    }
    assert made == known - {"SparseAdam", *matrices_only}


def test_why_lenet_cannot_be_trained_with_muon() -> None:
    with pytest.raises(UnknownOptimizer, match=r"matrices only.*convolutions.*Take muon.adamw"):
        check_name("muon")


@pytest.mark.parametrize("name", ["sparseadam", "sparse_adam"])
def test_why_lenet_cannot_be_trained_with_sparse_adam(name: str) -> None:
    with pytest.raises(UnknownOptimizer, match=r"sparse gradients only.*LeNet has none.*Take adam"):
        check_name(name)


def test_only_lbfgs_needs_a_closure_and_is_given_one() -> None:
    """Two batches by the lab, and by hand with torch's own class: the same bits."""
    names = [name for name in TRAINABLE if needs_closure(make_optimizer(name, [torch.ones(1)]))]
    assert names == ["lbfgs"]
    ours, model = initial_model(0), initial_model(0)
    learner = Learner("lbfgs", 1.0, ours, make_optimizer("lbfgs", ours.parameters()))
    group = {k: v for k, v in learner.optimizer.param_groups[0].items() if k != "params"}
    theirs = torch.optim.LBFGS(model.parameters(), **group)
    generator = torch.Generator().manual_seed(0)
    calls = []
    for _ in range(2):
        images = torch.randn(8, 1, 32, 32, generator=generator)
        labels = torch.randint(10, (8,), generator=generator)

        def closure(images: torch.Tensor = images, labels: torch.Tensor = labels) -> torch.Tensor:
            theirs.zero_grad()
            loss = cross_entropy(model(images), labels)
            loss.backward()
            calls.append(loss.item())
            return loss

        learn(learner, images, labels)
        theirs.step(closure)
    assert len(calls) > 4
    assert calls[-1] < calls[0]
    for a, b in zip(ours.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert learner.tally.steps == 2
