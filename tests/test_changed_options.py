"""Options that change after an optimizer was made: what torch takes, gradstep takes."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler as s

import gradstep
from torch_release import IS_LOWEST

START = [[1.0, -2.0], [0.5, 3.0]]


def weight() -> nn.Parameter:
    return nn.Parameter(torch.tensor(START))


def moved(optimizer: torch.optim.Optimizer, steps: Iterator[int] | range) -> Tensor:
    """The weight after steps with gradients that differ."""
    (p,) = optimizer.param_groups[0]["params"]
    for step in steps:
        p.grad = torch.tensor([[0.3, -0.1], [0.2, 0.7]]) / (step + 1)
        if type(optimizer).__name__ == "SparseAdam":
            p.grad = p.grad.to_sparse()
        optimizer.step()
    return p.detach().clone()


# Numbers and flags set between steps.

NAN = math.nan
#: Flags that are neither True nor False nor a number, which torch takes as Python does.
WORDS: list[Any] = ["yes", "False", "", [True], [], object]

#: Class, options, what is changed, to what, and whether it is nonsense.
CHANGED: list[tuple[str, dict[str, Any], str, list[Any], bool]] = [
    ("SGD", {}, "lr", [-0.1, -3.0], True),
    ("SGD", {"momentum": 0.9}, "momentum", [-0.5, -22.0], True),
    ("SGD", {"momentum": 0.9}, "momentum", [1.5, 22, 0, True, False], False),
    ("SGD", {"momentum": 0.9, "nesterov": True}, "momentum", [0.0], True),
    ("SGD", {"momentum": 0.9, "nesterov": True}, "dampening", [0.5], True),
    ("SGD", {"momentum": 0.9}, "nesterov", [1, 2.0, 0, None, torch.tensor(True)], False),
    ("SGD", {}, "maximize", [1, 0, None], False),
    ("SGD", {}, "weight_decay", [-0.1], True),
    ("SGD", {}, "weight_decay", [False, 0], False),
    ("Adam", {}, "lr", [-0.1, -1], True),
    ("Adam", {}, "betas", [(22, 0.99), (-0.5, 0.9), (0.9, 1.0), (0.9, -0.1)], True),
    ("Adam", {}, "betas", [[0.5, 0.9], (0.5, torch.tensor(0.9)), (0, 0)], None),
    ("Adam", {}, "eps", [-1e-3], True),
    ("Adam", {"amsgrad": True}, "amsgrad", [1, 2, 0, None], False),
    ("AdamW", {}, "weight_decay", [-0.1], True),
    ("NAdam", {}, "momentum_decay", [-0.5], True),
    ("RAdam", {}, "betas", [(1.5, 0.99)], True),
    ("RMSprop", {}, "alpha", [-0.5], True),
    ("Adagrad", {}, "lr_decay", [-0.1], True),
    ("Adadelta", {}, "rho", [1.5], True),
    ("Rprop", {}, "etas", [(0.5, 0.9), (1.2, 0.5)], True),
    ("Adafactor", {}, "beta2_decay", [0.5], True),
    ("Muon", {}, "momentum", [22], None),
    ("Muon", {}, "nesterov", [0, 1], False),
    # Numbers that are none.
    ("SGD", {}, "lr", [NAN, torch.tensor(NAN), numpy.float32(NAN)], True),
    ("SGD", {"momentum": 0.9}, "momentum", [NAN], True),
    ("SGD", {"momentum": 0.9}, "dampening", [NAN], True),
    ("SGD", {}, "weight_decay", [NAN], True),
    ("Adam", {}, "lr", [NAN, torch.tensor([NAN])], True),
    ("Adam", {}, "betas", [(NAN, 0.9), (0.9, NAN), torch.tensor([NAN, 0.9])], True),
    ("AdamW", {"amsgrad": True}, "weight_decay", [NAN], True),
    ("RMSprop", {"momentum": 0.9, "centered": True}, "alpha", [NAN], True),
    ("Rprop", {}, "step_sizes", [(NAN, 1.0)], None),
    ("Adafactor", {}, "eps", [(None, NAN)], True),
    # Words.
    ("SGD", {"momentum": 0.9}, "nesterov", WORDS, True),
    ("SGD", {}, "maximize", WORDS, True),
    ("Adam", {"amsgrad": True}, "amsgrad", WORDS, True),
    ("NAdam", {"weight_decay": 0.1}, "decoupled_weight_decay", WORDS, True),
    ("RMSprop", {"centered": True}, "centered", WORDS[:2], True),
    # Pairs of another kind, and numbers in other shapes.
    ("Adam", {}, "betas", [torch.tensor([0.5, 0.9]), numpy.array([0.5, 0.9])], False),
    ("SparseAdam", {}, "betas", [torch.tensor([0.5, 0.9])], False),
    ("Rprop", {}, "etas", [torch.tensor([0.5, 1.5]), numpy.array([0.5, 1.5])], False),
    ("Adafactor", {}, "eps", [numpy.array([0.1, 0.9])], False),
    ("SGD", {}, "lr", [torch.tensor([0.5]), torch.tensor([[0.5]]), numpy.float64(0.5)], False),
    ("Adam", {}, "lr", [torch.tensor(1), torch.tensor(0.5, dtype=torch.float64)], False),
]  # fmt: skip
EACH = [
    pytest.param(name, options, key, value, odd, id=f"{name}-{key}-{value}")
    for name, options, key, values, odd in CHANGED
    for value in values
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "options", "key", "value", "odd"), EACH)
def test_what_torch_takes_later_is_taken(
    name: str, options: dict[str, Any], key: str, value: Any, odd: bool | None
) -> None:
    if not hasattr(torch.optim, name):
        pytest.skip(f"this torch has no {name}")
    if getattr(value, "ndim", 0) and key == "lr" and IS_LOWEST:
        pytest.skip("torch 2.7 itself refuses it")
    theirs = getattr(torch.optim, name)([weight()], **options)
    ours = getattr(gradstep, name)([weight()], **options)
    for optimizer in (theirs, ours):
        moved(optimizer, range(2))
        optimizer.param_groups[0][key] = value
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = moved(ours, range(2, 5))
    torch.testing.assert_close(found, moved(theirs, range(2, 5)), equal_nan=True)
    assert ours.param_groups[0][key] is value
    told = [str(w.message) for w in said if "set after the optimizer was made" in str(w.message)]
    if odd is not None:
        assert len(told) == odd


def test_a_warning_names_what_was_found_and_comes_once_an_option() -> None:
    optimizer = gradstep.Adam([weight()])
    moved(optimizer, range(2))
    with pytest.warns(UserWarning, match=r"learning rate: -0.5; lr must be at least 0. It was set"):
        optimizer.param_groups[0]["lr"] = -0.5
        moved(optimizer, range(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for lr in (-0.25, -0.125):
            optimizer.param_groups[0]["lr"] = lr
            moved(optimizer, range(1))
    optimizer.param_groups[0]["betas"] = (0.9, 1.5)
    with pytest.warns(UserWarning, match="index 1: 1.5"):
        moved(optimizer, range(1))


@pytest.mark.parametrize("engine", ["fused", "eager"])
@pytest.mark.parametrize("place", ["number", "tensor"])
def test_a_learning_rate_that_becomes_nan_in_place(place: str, engine: str) -> None:
    """Told of once; and a number again, it is taken again, by weights that can."""
    runs = []
    for made in (torch.optim.SGD, partial(gradstep.SGD, engine=engine)):
        lr = torch.tensor(0.1)
        optimizer = made([weight()], lr=lr)
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": 0.1})
        (other,) = optimizer.param_groups[1]["params"]
        moved(optimizer, range(2))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            lr.fill_(NAN) if place == "tensor" else optimizer.param_groups[0].update(lr=NAN)
            other.grad = torch.ones(2)
            found = [moved(optimizer, range(2)).clone()]
            optimizer.param_groups[0]["lr"] = 0.2
            found += [moved(optimizer, range(2)), other.detach()]
        told = [str(w.message) for w in said if "learning rate: nan" in str(w.message)]
        assert len(told) == (made is not torch.optim.SGD)
        runs.append(found)
    assert runs[0][0].isnan().all() and not runs[0][2].isnan().any()
    torch.testing.assert_close(*runs, equal_nan=True)


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize(
    ("name", "flag"),
    [("Adam", "amsgrad"), ("RMSprop", "centered"), ("AdamW", "maximize"), ("Lion", "maximize")],
)
@pytest.mark.parametrize("engine", ["fused", "eager"])
def test_flags_are_true_as_python_takes_them(
    name: str, flag: str, later: bool, engine: str
) -> None:
    made = partial(getattr(gradstep, name), **({"betas": (0.5, 0.2)} if flag == "amsgrad" else {}))
    runs = []
    for value in (True, 1, 2.0, torch.tensor(1)):
        if later:
            optimizer = made([weight()], engine=engine)
            optimizer.param_groups[0][flag] = value
        else:
            optimizer = made([weight()], engine=engine, **{flag: value})
        runs.append(moved(optimizer, range(3)))
    assert all(torch.equal(run, runs[0]) for run in runs)
    assert not torch.equal(runs[0], moved(made([weight()]), range(3)))


def test_truth_values_and_numbers_of_a_rule() -> None:
    assert gradstep.adam(amsgrad=1).hyperparameters["amsgrad"] is True
    assert gradstep.sgd(nesterov=None).hyperparameters["nesterov"] is False
    assert gradstep.sgd(momentum=True, weight_decay=False).hyperparameters["momentum"] == 1.0
    with pytest.raises(TypeError, match="nesterov value: 'False'"):
        gradstep.sgd(nesterov="False")


@pytest.mark.parametrize("value", ["spectrum", 1])
def test_a_word_that_no_one_knows_is_refused_later_too(value: Any) -> None:
    optimizer = gradstep.Muon([weight()])
    before = moved(optimizer, range(2))
    optimizer.param_groups[0]["adjust_lr_fn"] = value
    with pytest.raises(ValueError, match=f"{value} is not supported"):
        moved(optimizer, range(1))
    assert torch.equal(optimizer.param_groups[0]["params"][0], before)


@pytest.mark.parametrize(
    "change", [{"lr": -1.5e-18}, {"lr": -0.5}, {"betas": (22, 0.99)}, {"eps": -1e-18}]
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_checkpoint_of_such_a_group_loads(change: dict[str, Any]) -> None:
    saved = torch.optim.Adam([weight()])
    moved(saved, range(2))
    saved.param_groups[0].update(change)
    resumed = gradstep.Adam([weight()])
    (p,) = resumed.param_groups[0]["params"]
    p.data.copy_(saved.param_groups[0]["params"][0].detach())
    resumed.load_state_dict(copy.deepcopy(saved.state_dict()))
    torch.testing.assert_close(moved(resumed, range(2)), moved(saved, range(2)))


# Schedulers.

LENGTHS = (1, 2, 3, 4, 5, 6, 7, 11, 13, 30, 59, 100, 120)

SCHEDULERS: dict[str, Callable[[Any, int], Any]] = {
    "ConstantLR": lambda o, n: s.ConstantLR(o, 1 / 3, n),
    "LinearLR to 0": lambda o, n: s.LinearLR(o, 1 / 3, 0.0, n),
    "LinearLR from 1 to 0": lambda o, n: s.LinearLR(o, 1.0, 0.0, n),
    "PolynomialLR": lambda o, n: s.PolynomialLR(o, n, 1.5),
    "CosineAnnealingLR": lambda o, n: s.CosineAnnealingLR(o, n),
    "CosineAnnealingWarmRestarts": lambda o, n: s.CosineAnnealingWarmRestarts(o, n),
    "CyclicLR": lambda o, n: s.CyclicLR(o, 0.0, 0.1, n),
    "CyclicLR exp_range": lambda o, n: s.CyclicLR(o, 0.0, 0.1, n, mode="exp_range", gamma=0.9),
    "OneCycleLR": lambda o, n: s.OneCycleLR(o, 0.1, n + 3, final_div_factor=math.inf),
    "OneCycleLR linear": lambda o, n: s.OneCycleLR(
        o, 0.1, n + 3, anneal_strategy="linear", three_phase=True, final_div_factor=1e30
    ),
    "LambdaLR": lambda o, n: s.LambdaLR(o, lambda epoch: 1 - epoch / n),
    "SequentialLR": lambda o, n: s.SequentialLR(
        o, [s.LinearLR(o, 0.1, 1.0, n), s.LinearLR(o, 1.0, 0.0, n)], [n]
    ),
    "ChainedScheduler": lambda o, n: s.ChainedScheduler(
        [s.LinearLR(o, 1 / 3, 0.0, n), s.CosineAnnealingLR(o, n)]
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*", "ignore:.*epoch parameter.*")
@pytest.mark.parametrize("name", ["SGD", "Adam"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_length_and_past_the_end(scheduler: str, name: str) -> None:
    """Steps are made where a schedule ends, and some past it; LambdaLR goes far below 0."""
    for length in LENGTHS:
        options = {"momentum": 0.9} if name == "SGD" else {}
        pair = []
        for library in (torch.optim, gradstep):
            optimizer = getattr(library, name)([weight()], lr=0.1, **options)
            schedule = SCHEDULERS[scheduler](optimizer, length)
            with warnings.catch_warnings():
                if scheduler != "LambdaLR" and library is gradstep:
                    warnings.filterwarnings("error", message=".*was set after the optimizer")
                else:
                    warnings.simplefilter("ignore")
                for step in range(length + 3):
                    if step > length - 3:
                        found = moved(optimizer, range(1))
                    if step < length + 2:
                        schedule.step()
            pair.append(found)
        torch.testing.assert_close(*pair)


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*")
@pytest.mark.parametrize(("end", "length"), [(0.0, 4), (0.0, 7), (0.0, 120)])
def test_a_rate_that_ends_a_rounding_below_0_is_saved_and_loaded(end: float, length: int) -> None:
    optimizer = gradstep.AdamW([weight()], lr=0.1)
    schedule = s.LinearLR(optimizer, 1 / 3, end, length)
    for _ in range(length):
        moved(optimizer, range(1))
        schedule.step()
    resumed = gradstep.AdamW([weight()], lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed.load_state_dict(optimizer.state_dict())
        moved(resumed, range(1))
    assert resumed.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_cyclic_momenta_beyond_1() -> None:
    """As torch's own tests of schedulers have them."""
    pair = []
    for library in (torch.optim, gradstep):
        optimizer = library.Adam([weight()], lr=0.1)  # type: ignore[attr-defined]
        schedule = s.CyclicLR(optimizer, 1, 5, 4, base_momentum=11, max_momentum=22)
        betas = []
        for step in range(6):
            betas.append(optimizer.param_groups[0]["betas"][0])
            found = moved(optimizer, range(step, step + 1))
            schedule.step()
        assert betas[0] == 22
        pair.append(found)
    torch.testing.assert_close(*pair)
