"""The range test for learning rates: what it finds, and that it leaves nothing behind."""

from __future__ import annotations

import copy
import math
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import gradstep

CLASSES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "gradstep.AdamW": lambda p: gradstep.AdamW(p, lr=1e-3),
    "gradstep.SGD": lambda p: gradstep.SGD(p, lr=1e-2, momentum=0.9),
    "gradstep.Adafactor": lambda p: gradstep.Adafactor(p),
    "gradstep.LBFGS": lambda p: gradstep.LBFGS(p, lr=0.1, max_iter=2),
    "torch.Adam, lr a tensor": lambda p: torch.optim.Adam(p, lr=torch.tensor(1e-3)),
    "torch.ASGD": lambda p: torch.optim.ASGD(p),
    "torch.LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=2),
}
FEW = ("gradstep.AdamW", "torch.LBFGS")


def net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3)
    )


def loader() -> DataLoader[Any]:
    torch.manual_seed(4)
    inputs = torch.randn(96, 8)
    data = TensorDataset(inputs, inputs[:, :3].argmax(1))
    generator = torch.Generator().manual_seed(5)
    return DataLoader(data, batch_size=16, shuffle=True, generator=generator)


def contents(thing: Any) -> Any:
    """All that is in nested containers, tensors as their bytes."""
    if isinstance(thing, Tensor):
        return (str(thing.dtype), tuple(thing.shape), thing.detach().numpy().tobytes())
    if isinstance(thing, dict):
        return {str(key): contents(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return [contents(value) for value in thing]
    return repr(thing)


def everything(model: nn.Module, optimizer: torch.optim.Optimizer, data: Any) -> Any:
    return (
        contents(dict(model.named_parameters())),
        contents(dict(model.named_buffers())),
        [contents(p.grad) for p in model.parameters()],
        [module.training for module in model.modules()],
        contents(optimizer.state_dict()),
        contents(torch.get_rng_state()),
        random.getstate(),
        repr(numpy.random.get_state()),
        contents(data.generator.get_state()),
    )


def identities(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[int]:
    """The objects that others may hold on to."""
    found: list[Any] = [*model.parameters(), *model.buffers(), optimizer.state]
    found += [p.grad for p in model.parameters()]
    for group in optimizer.param_groups:
        found += [group, group["lr"]]
    for entry in optimizer.state.values():
        found += [entry, *entry.values()]
    return [id(thing) for thing in found]


def warmed(name: str) -> tuple[nn.Sequential, torch.optim.Optimizer, DataLoader[Any]]:
    """A model, optimizer and data in the middle of a training, with gradients in place."""
    model, data = net(), loader()
    optimizer = CLASSES[name](model.parameters())
    train(model, optimizer, data)
    model[1].eval()  # somebody's frozen statistics
    return model, optimizer, data


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: Any) -> None:
    for inputs, targets in data:

        def closure(inputs: Tensor = inputs, targets: Tensor = targets) -> Any:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), targets)
            loss.backward()
            return loss

        optimizer.step(closure)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.deep] * (n not in FEW)) for n in CLASSES]
)
@pytest.mark.parametrize("way", ["through", "raises", "closure"])
def test_all_is_as_before_to_the_bit(name: str, way: str) -> None:
    model, optimizer, data = warmed(name)
    twin, twin_optimizer, twin_data = warmed(name)
    before, objects = everything(model, optimizer, data), identities(model, optimizer)
    calls = 0

    def loss(output: Tensor, target: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        random.random()
        numpy.random.rand()
        model.train(calls % 2 == 0)
        if way == "raises" and calls == 7:
            model[1].register_buffer("new", torch.ones(3))
            model[1].running_mean = torch.zeros(16)
            raise RuntimeError("the user's own")
        return nn.functional.cross_entropy(output, target)

    def closure() -> Tensor:
        optimizer.zero_grad()
        result = loss(model(torch.randn(16, 8)), torch.randint(3, (16,)))
        result.backward()
        return result

    if way == "raises":
        with pytest.raises(RuntimeError, match="the user's own"):
            gradstep.lr_find(model, optimizer, loss, data, steps=30)
    elif way == "closure":
        gradstep.lr_find(model, optimizer, closure, steps=12, highest=1.0)
    else:
        found = gradstep.lr_find(model, optimizer, loss, data, steps=30, highest=1.0)
        assert len(found.lrs) > 6 and len(set(found.losses)) > 3  # it did train
    assert everything(model, optimizer, data) == before
    assert identities(model, optimizer) == objects
    # And the training goes on as if nothing had been.
    torch.manual_seed(8)
    train(model, optimizer, data)
    torch.manual_seed(8)
    train(twin, twin_optimizer, twin_data)
    assert everything(model, optimizer, data)[:5] == everything(twin, twin_optimizer, data)[:5]


def test_a_scheduler_notices_nothing() -> None:
    model, data = net(), loader()
    for kind in (torch.optim.SGD, gradstep.SGD):
        optimizer = kind(model.parameters(), lr=0.5)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.1)
        state = copy.deepcopy(schedule.state_dict())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            gradstep.lr_find(model, optimizer, nn.functional.cross_entropy, data, steps=5)
        assert schedule.state_dict() == state
        assert optimizer.param_groups[0]["lr"] == 0.5
        with pytest.warns(UserWarning, match=r"lr_scheduler\.step"):
            schedule.step()  # before the optimizer's first step: still a mistake that torch sees


def test_a_watch_and_its_diagnoses_do_not_see_the_steps_but_own_hooks_work() -> None:
    model, data = net(), loader()
    optimizer = gradstep.AdamW(model.parameters(), lr=1e-3)
    watch = gradstep.watch(model, optimizer, every=1, on_mistake="raise")
    own = []
    optimizer.register_step_pre_hook(lambda *_: own.append(1))
    train(model, optimizer, data)
    gradstep.lr_find(model, optimizer, nn.functional.cross_entropy, data, steps=30)
    assert watch.steps == 6 and len(watch.records) == 6 < len(own)
    train(model, optimizer, data)
    assert watch.steps == 12
    watch.close()
    assert [f for f in watch.findings if f.severity == "mistake"] == []


def quadratic(curvature: float) -> tuple[nn.Module, torch.optim.Optimizer, Callable[[], Tensor]]:
    """``curvature/2 · |w|²``: gradient descent converges below 2/curvature, and diverges above."""
    model = nn.Linear(4, 1, bias=False)
    nn.init.constant_(model.weight, 100.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = curvature / 2 * model.weight.square().sum()
        loss.backward()
        return loss

    return model, optimizer, closure


@pytest.mark.parametrize("curvature", [0.1, 1.0, 100.0])
def test_suggestions_on_a_parabola(curvature: float) -> None:
    model, optimizer, closure = quadratic(curvature)
    found = gradstep.lr_find(model, optimizer, closure, lowest=1e-6, highest=1e3, steps=200)
    assert found.steepest is not None and found.tenth_of_minimum is not None
    assert found.suggestion == found.steepest
    assert 0.005 < found.steepest * curvature < 2
    assert 0.005 < found.tenth_of_minimum * curvature < 2
    assert found.lrs[0] == pytest.approx(1e-6)
    ratios = [b / a for a, b in zip(found.lrs, found.lrs[1:], strict=False)]
    assert ratios == pytest.approx([1e9 ** (1 / 199)] * len(ratios))
    # By hand: the losses that those rates give.
    w, losses = 100.0, []
    for lr in found.lrs:
        losses.append(4 * curvature / 2 * w * w)
        w -= lr * curvature * w
    assert found.losses == pytest.approx(losses, rel=1e-3, abs=1e-12)


def test_it_stops_where_the_loss_diverges(capsys: pytest.CaptureFixture[str]) -> None:
    model, optimizer, closure = quadratic(1.0)
    found = gradstep.lr_find(model, optimizer, closure, highest=1e6, steps=300)
    assert found.diverged and len(found.lrs) < 300 and found.lrs[-1] > 2
    out = capsys.readouterr().out
    assert out == f"{found}\n" and out.count("\n") == 1
    assert "(steepest descent)" in out and "(a tenth of the minimum)" in out
    assert f"diverged at {found.lrs[-1]:.1e}" in out


def test_infinity_is_a_divergence_too() -> None:
    model, optimizer, closure = quadratic(1.0)
    found = gradstep.lr_find(model, optimizer, closure, lowest=1e30, highest=1e38, steps=20)
    assert found.diverged and found.suggestion is None and len(found.lrs) < 6


def test_no_suggestion_where_nothing_is_learned(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    random_loss = torch.Generator().manual_seed(0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = 0.0 * model.weight.sum() + torch.rand((), generator=random_loss)
        loss.backward()
        return loss

    found = gradstep.lr_find(model, optimizer, closure)
    assert found.suggestion is None and found.tenth_of_minimum is None
    assert "no suggestion, the loss never fell" in capsys.readouterr().out


def test_groups_keep_their_proportion() -> None:
    model = net()
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[4].parameters()}], lr=0.3
    )
    seen = []
    optimizer.register_step_pre_hook(
        lambda o, *_: seen.append([g["lr"] for g in o.param_groups])  # type: ignore[func-returns-value]
    )
    found = gradstep.lr_find(model, optimizer, nn.functional.cross_entropy, loader(), steps=10)
    for lr, (first, second) in zip(found.lrs, seen, strict=True):
        assert first == pytest.approx(lr) and second == pytest.approx(3 * lr)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.3]


def test_data_shorter_than_the_test_begin_anew() -> None:
    model, optimizer, data = warmed("gradstep.SGD")
    assert len(data) == 6
    loss = nn.functional.cross_entropy
    found = gradstep.lr_find(model, optimizer, loss, data, steps=20, highest=1e-3)
    assert len(found.losses) == 20


def test_the_picture(tmp_path: Path) -> None:
    model, optimizer, closure = quadratic(1.0)
    found = gradstep.lr_find(model, optimizer, closure, verbose=False)
    found.plot(tmp_path / "lr.png")
    with Image.open(tmp_path / "lr.png") as image:
        assert min(image.size) > 400
    with pytest.raises(OSError, match="cannot write"):
        found.plot(tmp_path / "none" / "lr.png")


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"model": 3}, TypeError, "takes the model first; got a int"),
        ({"optimizer": 3}, TypeError, "takes an optimizer second; got a int"),
        ({"loss": 3}, TypeError, "takes a loss function third; got a int"),
        ({"lowest": 0.0}, ValueError, "expected 0 < lowest < highest"),
        ({"highest": math.nan}, ValueError, "expected 0 < lowest < highest"),
        ({"steps": 1}, ValueError, "steps=1; expected a whole number, 2 or more"),
        ({"smoothing": 1.0}, ValueError, "smoothing=1.0; expected a number from 0 to below 1"),
        ({"data": []}, ValueError, "data gave no batch"),
        ({"data": [torch.ones(3)]}, TypeError, r"data gave a Tensor. Expected \(inputs, targets\)"),
        ({"loss": lambda o, t: o}, TypeError, r"a tensor of shape \(16, 3\). Expected a tensor of"),
        ({"loss": lambda o, t: 1.0}, TypeError, "returned a float. Expected a tensor of one"),
        ({"loss": lambda o, t: o.sum() * math.nan}, ValueError, "the loss is nan before the first"),
        ({"loss": lambda: None, "data": None}, TypeError, "the closure returned None"),
        ({"model": nn.Linear(2, 2)}, ValueError, "holds no parameter of the model"),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(
    arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    model, optimizer, data = warmed("gradstep.SGD")
    before = everything(model, optimizer, data)
    given = {
        "model": model,
        "optimizer": optimizer,
        "loss": nn.functional.cross_entropy,
        "data": data,
        **arguments,
    }
    with pytest.raises(error, match=text) as caught:
        gradstep.lr_find(**given)
    assert "\n" not in str(caught.value)
    assert everything(model, optimizer, data) == before


def test_a_lazy_module_is_asked_for_a_batch_first() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 3))
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    with pytest.raises(ValueError, match="lazy module has no weights yet"):
        gradstep.lr_find(model, optimizer, nn.functional.cross_entropy, loader())
