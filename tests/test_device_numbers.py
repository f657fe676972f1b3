"""Numbers that lie on the device: step counts, lr, GradScaler's scale and verdict.

With drivers whose devices' memory is the CPU's, as in ``test_device_host.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradstep
from device_drivers import Emulating, Interpreting
from gradstep.backends import dispatch, register
from gradstep.backends.cuda import Cuda

ENGINE = "a device with numbers"


@pytest.fixture(params=[Emulating, pytest.param(Interpreting, marks=pytest.mark.deep)])
def driver(request: Any) -> Iterator[Emulating]:
    made: Emulating = request.param()
    made.numbers_there = True
    register(Cuda(made, ENGINE))
    yield made
    del dispatch._engines[ENGINE]


def weights() -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(1)
    made = [nn.Parameter(torch.randn(s, generator=draw)) for s in ((5,), (30, 7), ())]
    for p in made:
        p.grad = torch.randn(p.shape, generator=draw)
    return made


def held(params: list[nn.Parameter], optimizer: Any) -> list[Tensor]:
    found: list[Any] = [p.detach() for p in params]
    for p in params:
        found += [t for t in optimizer.state[p].values() if isinstance(t, Tensor)]
    return [t.clone() for t in found]


def close(one: list[Tensor], other: list[Tensor]) -> bool:
    """To the last bit, where no power of the host's is in the numbers; else nearly."""
    return all(torch.allclose(a, b, rtol=1e-6, atol=0) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("make", [gradstep.Adam, gradstep.ASGD, gradstep.NAdam])
def test_counts_on_the_device_need_no_copy(make: Any, driver: Emulating) -> None:
    params, others = weights(), weights()
    ours = make(params, lr=0.1, engine=ENGINE, capturable=True)
    theirs = make(others, lr=0.1, engine="fused")
    for step in range(5):
        if step == 2:
            driver.forget()
        ours.step()
        theirs.step()
        if step == 3:
            # The numbers' kernel and the step's: nothing that the host knows has changed.
            assert len(driver.launches) == 4 and driver.copies == []
            ours.param_groups[0]["lr"] = theirs.param_groups[0]["lr"] = 0.05
    assert len(driver.copies) == 1
    assert set(ours.engines_used().values()) == {ENGINE}
    assert close(held(params, ours), held(others, theirs))


def test_a_graph_counts_and_finds_lr_changed(driver: Emulating) -> None:
    params, others = weights(), weights()
    lr = torch.tensor(0.1, dtype=torch.float64)
    ours = gradstep.AdamW(params, lr=lr, engine=ENGINE, capturable=True)
    theirs = gradstep.AdamW(others, lr=0.1, engine="fused")
    for _ in range(2):
        ours.step()
        theirs.step()
    driver.capturing = driver.lags = True
    ours.step()
    graph, driver._queue = driver._queue, []
    driver.capturing = driver.lags = False
    for rate in (0.1, 0.3, 0.01):
        lr.fill_(rate)
        theirs.param_groups[0]["lr"] = rate
        for work in graph:
            work()
        theirs.step()
    assert close(held(params, ours), held(others, theirs))
    ours.step()  # an ordinary step, and the graph once more
    theirs.step()
    for work in graph:
        work()
    theirs.step()
    assert close(held(params, ours), held(others, theirs))
    assert {float(ours.state[p]["step"]) for p in params} == {7.0}


def test_lr_in_a_tensor_of_a_rule_that_counts_nothing(driver: Emulating) -> None:
    params, others = weights(), weights()
    lr = torch.tensor(0.1)
    ours = gradstep.SGD(params, lr=lr, momentum=0.9, engine=ENGINE)
    theirs = gradstep.SGD(others, lr=lr, momentum=0.9, engine="fused")
    for group in ours.param_groups:
        group["capturable"] = True
    for rate in (0.1, 0.2, 0.2, 0.3):
        lr.fill_(rate)
        ours.step()
        theirs.step()
    assert all(map(torch.equal, held(params, ours), held(others, theirs)))
    assert len(driver.copies) < 12


class Unreadable(Tensor):
    """A number on a device of which the host must not ask."""

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in (Tensor.item, Tensor.__float__, Tensor.__bool__, Tensor.tolist):
            raise AssertionError("the host waits for the device")
        return super().__torch_function__(function, types, args, kwargs or {})


@pytest.mark.parametrize("make", [gradstep.AdamW, gradstep.SGD])
def test_scale_and_verdict_are_read_by_the_kernel(make: Any, driver: Emulating) -> None:
    params, others = weights(), weights()
    options = {"lr": 0.1, "momentum": 0.9} if make is gradstep.SGD else {"lr": 0.1}
    ours = make(params, engine=ENGINE, fused=True, **options)
    theirs = make(others, engine="fused", fused=True, **options)
    scale = torch.tensor(8.0)
    for step, bad in enumerate([0.0, 0.0, 1.0, 0.0, 1.0, 0.0]):
        for p, q in zip(params, others, strict=True):
            p.grad = q.grad = torch.full_like(p, 3.0 + step)
            if bad:
                p.grad = torch.full_like(p, torch.inf)
        found = torch.tensor(bad)
        for each in (ours, theirs):
            # As torch.amp.GradScaler leaves them; of ours, from the second step on, not to be read.
            unread = each is ours and step > 0
            each.found_inf = found.as_subclass(Unreadable) if unread else found
            each.grad_scale = scale.as_subclass(Unreadable) if unread else scale
            each.step()
            del each.found_inf, each.grad_scale
    assert close(held(params, ours), held(others, theirs))
    if make is gradstep.AdamW:
        assert {float(ours.state[p]["step"]) for p in params} == {4.0}


def test_a_verdict_is_read_where_some_would_not_look(driver: Emulating) -> None:
    """A sparse gradient is the eager engine's: that writes nothing either."""
    params = weights()
    optimizer = gradstep.Adagrad(params, lr=0.1, engine=ENGINE, fused=True)
    optimizer.step()
    before = held(params, optimizer)
    params[1].grad = torch.full_like(params[1], torch.inf).to_sparse()
    optimizer.found_inf, optimizer.grad_scale = torch.tensor(1.0), torch.tensor(2.0)
    optimizer.step()
    assert all(map(torch.equal, before, held(params, optimizer)))


def test_grad_scaler_itself(driver: Emulating) -> None:
    found = []
    for engine in ("fused", ENGINE):
        params = weights()
        optimizer = gradstep.AdamW(params, lr=0.1, engine=engine, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=2)
        for step in range(6):
            scaler.scale(torch.zeros(()))
            for p in params:
                p.grad = torch.full_like(p, 1.0 + step) * scaler.get_scale()
            if step == 3:
                params[0].grad[0] = torch.inf
            scaler.step(optimizer)
            scaler.update()
        found.append(held(params, optimizer))
    assert close(*found)


def test_counts_on_host_and_device_together_are_refused(
    driver: Emulating, caplog: pytest.LogCaptureFixture
) -> None:
    holds = driver.holds
    seen: list[Tensor] = []

    def every_other(tensor: Tensor) -> bool:
        seen.append(tensor)
        return holds(tensor) and len(seen) % 2 == 0

    driver.holds = every_other  # type: ignore[method-assign]
    params = weights()
    optimizer = gradstep.NAdam(params, lr=0.1, engine=ENGINE, capturable=True)
    optimizer.step()
    assert set(optimizer.engines_used().values()) == {"eager"}
    assert any("some lie on the device and some do not" in m for m in caplog.messages)
