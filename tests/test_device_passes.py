"""Rules that sum over rows, columns or a tensor, on devices of paper: all launches at once.

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
from reference import REFERENCES, Reference

ENGINE = "a device that sums"
SHAPES = ((7,), (5, 7), (2, 3, 70), (2100,), (60, 300), (0,), ())
MATRICES = tuple(shape for shape in SHAPES if len(shape) > 1)
#: What the device takes of these; the others sum over all weights or call functions.
SUMMING = [r for r in REFERENCES if not r.elementwise]


@pytest.fixture
def driver(request: Any) -> Iterator[Emulating]:
    made: Emulating = getattr(request, "param", Emulating)()
    register(Cuda(made, ENGINE))
    yield made
    del dispatch._engines[ENGINE]


def trained(engine: str, make: Any, driver: Emulating | None = None, **options: Any) -> Any:
    """Weights and states after three steps; and the optimizer."""

    def run(shapes: tuple[tuple[int, ...], ...]) -> Any:
        draw = torch.Generator().manual_seed(1)
        params = [nn.Parameter(torch.randn(s, generator=draw)) for s in shapes]
        optimizer = make(params, lr=0.01, engine=engine, **options)
        read_later: list[Tensor] = []  # the CPU's memory is not freed in a stream's order
        for step in range(3):
            for number, p in enumerate(params):
                gradient = torch.randn(p.shape, generator=draw)
                read_later.append(gradient)
                p.grad = None if number == 1 and step == 0 else gradient
            if driver is not None and step == 1:
                driver.lags = True
            optimizer.step(lambda: torch.tensor(0.5))
        if driver is not None:
            driver.wait(0)
            driver.lags = False
        found: list[Any] = [p.detach() for p in params]
        for p in params:
            found += [t for t in optimizer.state[p].values() if isinstance(t, Tensor)]
        return found, optimizer

    try:
        return run(SHAPES)
    except ValueError:  # it takes matrices alone
        return run(MATRICES)


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in pairs)


@pytest.mark.parametrize("name", [pytest.param("LAMB", marks=pytest.mark.deep), "Adafactor"])
@pytest.mark.parametrize(
    "driver", [Emulating, pytest.param(Interpreting, marks=pytest.mark.deep)], indirect=True
)
def test_sums_have_the_bits_of_the_cpu(name: str, driver: Emulating) -> None:
    """The device does nothing until the last step has been given away."""
    make = getattr(gradstep, name)
    right, _ = trained("fused", make)
    found, optimizer = trained(ENGINE, make, driver)
    assert set(optimizer.engines_used().values()) == {ENGINE}
    assert same(right, found)


@pytest.mark.deep
@pytest.mark.parametrize("reference", SUMMING, ids=lambda r: r.name)
def test_every_rule_that_sums(reference: Reference, driver: Emulating) -> None:
    options = {"capturable": True} if "capturable" in reference.default_group() else {}
    try:
        right, _ = trained("fused", reference.ours, **options)
    except ValueError:
        pytest.skip("it calls functions on matrices of two dimensions")
    found, optimizer = trained(ENGINE, reference.ours, **options)
    if set(optimizer.engines_used().values()) != {ENGINE}:
        pytest.skip("left to another engine")
    assert same(right, found)


@pytest.mark.parametrize("name", ["NovoGrad", "LAMB"])
def test_numbers_that_hang_on_sums_stay_on_the_device(name: str, driver: Emulating) -> None:
    make = getattr(gradstep, name)
    driver.numbers_there = True
    right, _ = trained("fused", make, capturable=True)
    found, optimizer = trained(ENGINE, make, driver, capturable=True)
    assert set(optimizer.engines_used().values()) == {ENGINE}
    for a, b in zip(right, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0, equal_nan=True)
    driver.forget()
    optimizer.step()
    optimizer.step()
    # The gradients are the last step's: nothing is sent.
    assert driver.copies == [] and driver.launches


def test_numbers_that_hang_on_sums_are_not_read_by_the_host(
    driver: Emulating, caplog: pytest.LogCaptureFixture
) -> None:
    _, optimizer = trained(ENGINE, gradstep.NovoGrad)
    assert set(optimizer.engines_used().values()) == {"eager"}
    assert "with capturable=True it begins on the device" in caplog.text


def test_a_captured_step_that_sums(driver: Emulating) -> None:
    driver.numbers_there = True
    found = []
    for graph in (False, True):
        _, optimizer = trained(ENGINE, gradstep.LAMB, capturable=True)
        optimizer.step()
        work: list[Any] = []
        if graph:
            driver.capturing = driver.lags = True
            optimizer.step()
            work, driver._queue = driver._queue, []
            driver.capturing = driver.lags = False
        for _ in range(2):
            if not graph:
                optimizer.step()
            for each in work:
                each()
        params = optimizer.param_groups[0]["params"]
        states = [t for p in params for t in optimizer.state[p].values()]
        found.append([t.detach().clone() for t in (*params, *states)])
    assert same(*found)
