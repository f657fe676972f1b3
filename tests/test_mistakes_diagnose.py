"""``gradstep.diagnose``: what it returns, how it reports, what it refuses and leaves behind."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad

import gradstep
from gradstep.lab.bench_diagnose import CONTENDERS, lines, measure_cost
from gradstep.lab.lenet import LeNet
from gradstep.sight.mistakes import (
    Diagnosis,
    Family,
    Finding,
    Mistake,
    MistakeError,
    MistakeWarning,
    Watched,
)

SGDS = [torch.optim.SGD, gradstep.SGD]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))


def backward(model: nn.Module) -> None:
    nn.functional.cross_entropy(model(torch.randn(8, 6)), torch.randint(0, 4, (8,))).backward()


def forget(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4) -> None:
    for _ in range(steps):
        backward(model)
        optimizer.step()


@pytest.mark.parametrize("make", SGDS)
def test_a_list_of_findings(make: Callable[..., torch.optim.Optimizer]) -> None:
    model = network()
    optimizer = make(model.parameters(), lr=0.05)
    with gradstep.diagnose(model, optimizer, on_mistake="list") as diagnosis:
        forget(model, optimizer)
    [finding] = diagnosis.findings
    assert isinstance(finding, Finding)
    assert (finding.name, finding.severity) == ("forgotten-zero-grad", "mistake")
    assert (finding.parameter, finding.step) == ("2.bias", 1)
    assert finding.place is not None
    assert (finding.place.file, finding.place.function) == (__file__, "backward")
    assert finding.place.text.startswith("nn.functional.cross_entropy(")
    text = str(finding)
    assert text.startswith(f"mistake: forgotten-zero-grad, {__file__}:{finding.place.line}\n")
    assert all(part in text for part in (finding.seen, finding.why, finding.write))


def test_a_warning_at_the_line() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with gradstep.diagnose(model, optimizer), pytest.warns(MistakeWarning) as caught:
        forget(model, optimizer, 6)
    [warning] = caught
    assert warning.filename == __file__
    assert "forgotten-zero-grad" in str(warning.message)


def test_warnings_that_are_errors_reach_the_script() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with (
        gradstep.diagnose(model, optimizer),
        warnings.catch_warnings(),
        pytest.raises(MistakeWarning),
    ):
        warnings.simplefilter("error")
        forget(model, optimizer)


def test_an_exception_before_the_step_that_is_wrong() -> None:
    model = network()
    optimizer = gradstep.SGD(model.parameters(), lr=0.05)
    with gradstep.diagnose(model, optimizer, on_mistake="raise"):
        forget(model, optimizer, 1)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(MistakeError, match="forgotten-zero-grad") as caught:
            forget(model, optimizer)
    assert caught.value.finding.name == "forgotten-zero-grad"
    assert all(torch.equal(w, before[name]) for name, w in model.state_dict().items())


def test_advice_does_not_raise() -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.001, weight_decay=0.1)
    with (
        gradstep.diagnose(model, optimizer, on_mistake="raise") as diagnosis,
        pytest.warns(MistakeWarning, match="decay-on-biases"),
    ):
        backward(model)
        optimizer.step()
    assert [f.severity for f in diagnosis.findings] == ["advice"]


def test_several_models_and_optimizers() -> None:
    one, two = network(), network()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05) for m in (one, two)]
    with gradstep.diagnose([one, two], *optimizers, on_mistake="list") as diagnosis:
        for _ in range(5):
            optimizers[0].zero_grad()
            backward(one)
            backward(two)
            for optimizer in optimizers:
                optimizer.step()
    [finding] = diagnosis.findings
    assert finding.name == "forgotten-zero-grad"


def test_scheduler_and_scaler() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with gradstep.diagnose(
        model, optimizer, on_mistake="list", scheduler=scheduler, scaler=scaler
    ) as diagnosis:
        for _ in range(4):
            optimizer.zero_grad()
            loss = model(torch.randn(8, 6)).square().mean()
            scaler.scale(loss).backward()
            optimizer.step()
    names = [f.name for f in diagnosis.findings]
    assert names == ["gradients-still-scaled", "scheduler-never-stepped"]


def test_a_scaler_that_nobody_has_any_more_excuses_nothing() -> None:
    scaler: Any = torch.amp.GradScaler("cpu")
    scaler.itself = scaler  # garbage from here on, that only a collection finds
    del scaler
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    with (
        pytest.warns(UserWarning, match="Detected call of"),
        gradstep.diagnose(model, optimizer, scheduler=scheduler, on_mistake="list") as diagnosis,
    ):
        model(torch.ones(2, 3)).sum().backward()
        scheduler.step()
        optimizer.step()
    assert [finding.name for finding in diagnosis.findings] == ["scheduler-before-optimizer"]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda m, o: gradstep.diagnose(m), "takes the optimizer behind the model; got none"),
        (lambda m, o: gradstep.diagnose(o, m), r"takes a torch.nn.Module first; got SGD"),
        (lambda m, o: gradstep.diagnose([m, o], o), "takes torch.nn.Modules; got SGD"),
        (lambda m, o: gradstep.diagnose(m, m), "takes torch.optim.Optimizers behind the model"),
        (lambda m, o: gradstep.diagnose(m, o, o), "one was given twice"),
        (lambda m, o: gradstep.diagnose(m, o, on_mistake="shout"), "choose 'warn', 'list' or"),
        (lambda m, o: gradstep.diagnose(m, o, every=0), "every is 0; it is a number of steps"),
        (lambda m, o: gradstep.diagnose(m, o, scheduler=3), "takes a scheduler of torch; got int"),
        (lambda m, o: gradstep.diagnose(m, o, scaler=3), "takes a torch.amp.GradScaler; got int"),
    ],
)
def test_bad_input(change: Callable[[Any, Any], Any], message: str) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with pytest.raises((TypeError, ValueError), match=message):
        change(model, optimizer)
    assert not optimizer._optimizer_step_pre_hooks


def hooks_of(model: nn.Module) -> int:
    return sum(
        len(getattr(p, name) or ())
        for p in model.parameters()
        for name in ("_backward_hooks", "_post_accumulate_grad_hooks")
    )


@pytest.mark.parametrize("steps", [0, 1, 30])
def test_closing_leaves_nothing_behind(steps: int) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    followed = (torch.amp.GradScaler.scale, clip_grad._clip_grads_with_norm_)
    stepped = torch.optim.lr_scheduler.LRScheduler.step
    registered = len(nn.modules.module._global_parameter_registration_hooks)
    first = gradstep.diagnose(model, optimizer, scheduler=scheduler, scaler=scaler)
    second = gradstep.diagnose(model, optimizer, scheduler=scheduler, scaler=scaler)
    for _ in range(steps):
        optimizer.zero_grad()
        backward(model)
        optimizer.step()
        scheduler.step()
    for diagnosis in (first, second, first):  # in the order of their beginning, one twice
        diagnosis.close()
    assert hooks_of(model) == 0
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    assert (torch.amp.GradScaler.scale, clip_grad._clip_grads_with_norm_) == followed
    assert torch.optim.lr_scheduler.LRScheduler.step is stepped
    assert len(nn.modules.module._global_parameter_registration_hooks) == registered
    assert first.findings == second.findings == []
    forget(model, optimizer)
    assert first.findings == []


def test_a_watched_optimizer_is_copied_and_pickled_as_ever() -> None:
    model = network()
    optimizer = gradstep.Adam(model.parameters(), lr=1e-3)
    with gradstep.diagnose(model, optimizer):
        backward(model)
        optimizer.step()
        twins = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
        pickle.loads(pickle.dumps(model))
        copy.deepcopy(model)
    for twin in twins:
        assert isinstance(twin, gradstep.Adam)
        twin.step()


def test_gradients_are_freed_as_without() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with gradstep.diagnose(model, optimizer):
        for _ in range(3):
            backward(model)
            gradients = [weakref.ref(p.grad) for p in model.parameters()]
            optimizer.step()
            optimizer.zero_grad()
            assert [r() for r in gradients] == [None] * 4


def test_model_and_optimizer_go_with_the_last_reference() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    diagnosis = gradstep.diagnose(model, optimizer)
    backward(model)
    optimizer.step()
    references = [weakref.ref(thing) for thing in (model, optimizer, diagnosis)]
    diagnosis.close()
    del model, optimizer, diagnosis
    gc.collect()
    assert [r() for r in references] == [None] * 3


def test_a_diagnosis_that_fails_does_not_stop_the_training(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradstep.sight.mistakes.sizes import Sizes

    def broken(self: Any, watched: Any) -> None:
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr(Sizes, "before_look", broken)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with gradstep.diagnose(model, optimizer, on_mistake="list") as diagnosis:
        forget(model, optimizer, 12)
    assert [f.name for f in diagnosis.findings] == ["forgotten-zero-grad"]
    assert len(caplog.records) == 1 and "of all things" in caplog.text


@pytest.mark.parametrize("make", [torch.optim.AdamW, gradstep.AdamW, gradstep.Muon])
def test_lenet_learns_the_same_bits(make: Callable[..., torch.optim.Optimizer]) -> None:
    images, labels = torch.randn(64, 1, 32, 32), torch.randint(0, 10, (64,))

    def train(watched: bool) -> list[Tensor]:
        torch.manual_seed(3)
        model = LeNet()
        if make is gradstep.Muon:
            optimizer = make([p for p in model.parameters() if p.dim() == 2], lr=1e-3)
        else:
            optimizer = make(model.parameters(), lr=1e-3)
        diagnosis = Diagnosis()
        if watched:
            diagnosis = gradstep.diagnose(model, optimizer, on_mistake="list")
        for step in range(12):
            model.zero_grad(set_to_none=step % 3 > 0)
            at = torch.randint(0, 64, (8,))
            nn.functional.cross_entropy(model(images[at]), labels[at]).backward()
            optimizer.step()
        diagnosis.close()
        draws = torch.rand(2)  # the random numbers are where they would be
        return [*(p.detach() for p in model.parameters()), draws]

    for one, other in zip(train(True), train(False), strict=True):
        assert torch.equal(one, other)


def test_a_parameter_thawed_later_is_watched_too() -> None:
    model = network()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with gradstep.diagnose(model, optimizer, on_mistake="list") as diagnosis:
        for step in range(40):
            if step == 10:
                model[0].requires_grad_(True)
            model[2].zero_grad()
            backward(model)
            optimizer.step()
    [finding] = diagnosis.findings
    assert (finding.name, finding.parameter) == ("forgotten-zero-grad", "0.bias")


@pytest.mark.parametrize(
    "names",  # a process each, of 240 MiB
    [("alone", "gradstep doctor"), pytest.param(tuple(CONTENDERS), marks=pytest.mark.deep)],
)
def test_what_it_costs_is_measured(names: tuple[str, ...]) -> None:
    cost = measure_cost(torch.optim.SGD, 1, rounds=1, each=1, names=names)  # compares weights, too
    assert tuple(cost.usual) == names
    assert {len(times) for [times] in cost.looks.values()} == {1}
    assert len(cost.usual["gradstep doctor"][0]) > 10
    text = lines(cost)
    assert len(text) == 1 + len(names)
    assert text[-1].endswith("%")


def test_hooks_in_the_backward_pass_come_and_go() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with gradstep.diagnose(model, optimizer, on_mistake="list") as diagnosis:
        following = []
        for step in range(12):
            if step != 8:
                optimizer.zero_grad()
            following.append(hooks_of(model) > 0)
            backward(model)
            optimizer.step()
    # On at first; off where every gradient is a new one; on after one was not.
    assert following == [True] * 3 + [False] * 6 + [True] * 2 + [False]
    assert diagnosis.findings == []  # once may be on purpose, and it is not proved


@pytest.mark.parametrize("in_place", [False, True])
def test_forgotten_in_the_middle_of_a_training(in_place: bool) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with gradstep.diagnose(model, optimizer, on_mistake="list") as diagnosis:
        for step in range(100):
            if step < 20:
                optimizer.zero_grad(set_to_none=not in_place)
            backward(model)
            optimizer.step()
    [finding] = [f for f in diagnosis.findings if f.severity == "mistake"]
    assert finding.name == "forgotten-zero-grad"
    assert finding.step <= (20 + 55 if in_place else 22)


ROUND_RATE = Mistake("round-rate", when="lr is 1", why="nobody tried it", write="another")


class Rates(Family):
    """Somebody's own."""

    def after_step(self, watched: Watched) -> None:
        if watched.optimizer.param_groups[0]["lr"] == 1:
            self.diagnosis.report(ROUND_RATE, "lr is 1", watched=watched)


def test_mistakes_of_ones_own_are_found_beside_the_known_ones() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with gradstep.diagnose(model, optimizer, on_mistake="list", also=[Rates]) as diagnosis:
        forget(model, optimizer)
    assert {"round-rate", "forgotten-zero-grad"} <= {f.name for f in diagnosis.findings}
    with pytest.raises(TypeError, match=r"also= takes classes derived from .*Family; got 3"):
        gradstep.diagnose(model, optimizer, also=[3])  # type: ignore[list-item]


@pytest.mark.parametrize(
    "late, name",
    [
        ("backward(model); optimizer.step()", "forgotten-zero-grad"),
        (
            "optimizer.zero_grad(); backward(model); optimizer.step(); optimizer.step()",
            "step-twice",
        ),
        (
            "optimizer.zero_grad(); backward(model); model[0].bias.grad.fill_(math.inf); "
            "optimizer.step()",
            "non-finite-gradient",
        ),
        (
            "optimizer.zero_grad(); backward(model); optimizer.step(); "
            "[p.data.sub_(0.05 * p.grad) for p in model.parameters()]",
            "updated-by-hand-too",
        ),
    ],
    ids=lambda value: None if " " in value else value,
)
def test_what_begins_late_in_a_long_training_is_found_soon(late: str, name: str) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    known = {"model": model, "optimizer": optimizer, "backward": backward, "math": math}
    with gradstep.diagnose(model, optimizer, on_mistake="list") as diagnosis:
        for step in range(210):
            if step < 143:
                optimizer.zero_grad()
                backward(model)
                optimizer.step()
            else:
                exec(late, known)
    found = [f for f in diagnosis.findings if f.severity == "mistake"]
    assert [f.name for f in found] == [name]
    assert 143 <= found[0].step <= (203 if "step(); optimizer" not in late else 260)


def test_most_steps_of_a_long_training_are_left_alone() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with gradstep.diagnose(model, optimizer, on_mistake="list") as diagnosis:
        [watched] = diagnosis.watched
        attended, hooks = 0, set()
        for step in range(200):
            optimizer.zero_grad()
            backward(model)
            optimizer.step()
            if step >= 100:
                attended += watched.attended
                hooks |= {p._post_accumulate_grad_hooks is None for p in model.parameters()}
    assert attended <= 10 and hooks == {True}
    assert diagnosis.findings == []
