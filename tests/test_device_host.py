"""The host's half of a step on a GPU, without one: with drivers whose devices' memory is the CPU's.

What is launched and copied is counted; and the kernels run, as the same code in loops over blocks
and threads, so that whole trainings are held against the CPU's to the last bit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn.functional import cross_entropy

import gradstep
from device_drivers import Emulating, Interpreting
from gradstep.backends import dispatch, register
from gradstep.backends.cuda import Cuda
from gradstep.backends.update import Update, check
from gradstep.lab.lenet import LeNet

ENGINE = "on a device of paper"


@pytest.fixture
def driver() -> Iterator[Emulating]:
    """Of the devices that :data:`ENGINE` runs on."""
    made = Emulating()
    register(Cuda(made, ENGINE))
    yield made
    del dispatch._engines[ENGINE]


def weights(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(1)
    made = [nn.Parameter(torch.randn(s, generator=draw).to(dtype)) for s in shapes]
    for p in made:
        p.grad = torch.randn(p.shape, generator=draw).to(dtype)
    return made


def bits(tensors: Any) -> list[Tensor]:
    return [t.detach().clone() for t in tensors]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# What is launched and copied.


@pytest.mark.parametrize("make", [gradstep.SGD, gradstep.Lion, gradstep.Adam])
def test_a_step_is_one_launch_and_one_copy_of_what_changed(make: Any, driver: Emulating) -> None:
    params = weights((3,), (5, 7), (), (20_000,), (0,))
    optimizer = make(params, lr=1e-2, engine=ENGINE)
    optimizer.step()
    driver.forget()
    for _ in range(3):
        optimizer.step()
    assert len(driver.launches) == 3
    # Adam's count of steps is in its numbers; for the others all is as it was.
    counts = make is gradstep.Adam
    assert len(driver.copies) == (3 if counts else 0)
    assert all(size <= 64 for _, size in driver.copies)
    driver.forget()
    optimizer.param_groups[0]["lr"] = 1e-3
    optimizer.step()
    assert len(driver.launches) == len(driver.copies) == 1
    driver.forget()
    kept = [p.grad for p in params]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert len(driver.launches) == len(driver.copies) == 1
    assert set(optimizer.engines_used().values()) == {ENGINE} and kept


def test_a_launch_a_group_on_the_present_stream(driver: Emulating) -> None:
    params = weights((4,), (6,), (8,))
    groups = [{"params": params[:2]}, {"params": params[2:], "momentum": 0.5}]
    optimizer = gradstep.SGD(groups, lr=0.1, engine=ENGINE)
    optimizer.step()
    driver.forget()
    driver.on_stream = 11
    optimizer.step()
    assert [stream for stream, *_ in driver.launches] == [11, 11]
    assert all(stream == 11 for stream, _ in driver.copies)
    optimizer.param_groups[0]["lr"] = 0.2
    optimizer.step()
    # What lies in memory that was made for another stream must not be freed before it was read.
    assert driver.held and driver.copies[-1][0] == 11


def test_the_host_never_waits_and_never_writes_what_is_still_to_be_read(
    driver: Emulating,
) -> None:
    """The device does nothing for twenty steps; then it finds each step's numbers as they were."""
    expected = trained_lenet("fused", gradstep.AdamW, steps=20)
    found = trained_lenet(ENGINE, gradstep.AdamW, steps=20, driver=driver)
    assert same(expected, found)


def trained_lenet(
    engine: str,
    make: Any,
    steps: int = 4,
    dtype: torch.dtype = torch.float32,
    driver: Emulating | None = None,
    **options: Any,
) -> list[Tensor]:
    """LeNet's weights and its optimizer's states after a training on random digits.

    With a driver the gradients are made ahead, for a device that does its work at the end.
    """
    torch.manual_seed(3)
    net = LeNet().to(dtype)
    params = list(net.parameters())
    optimizer = make(params, lr=1e-2, engine=engine, **options)
    draw = torch.Generator().manual_seed(5)
    fixed = steps == 20
    for step in range(steps):
        if not fixed:
            images = torch.randn(8, 1, 32, 32, generator=draw).to(dtype)
            digits = torch.randint(10, (8,), generator=draw)
            optimizer.zero_grad()
            cross_entropy(net(images), digits).backward()
        elif step == 0:
            for p in params:
                p.grad = torch.randn(p.shape, generator=draw)
        optimizer.step()
        if driver is not None and step == 0:
            driver.forget()
            driver.lags = True
        optimizer.param_groups[0]["lr"] *= 0.9
    if driver is not None:
        assert len(driver.launches) == len(driver.copies) == steps - 1
        assert driver.host_pieces >= steps - 3  # each transfer has its own until it was read
        driver.wait(0)
        driver.lags = False
    states = [t for p in params for t in optimizer.state[p].values()]
    return bits([*params, *states])


@pytest.mark.parametrize(
    "make, options",
    [
        (gradstep.AdamW, {}),
        (gradstep.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}),
        pytest.param(gradstep.RAdam, {}, marks=pytest.mark.deep),
        pytest.param(gradstep.Rprop, {}, marks=pytest.mark.deep),
        pytest.param(gradstep.Adam, {"state_dtype": "bfloat16"}, marks=pytest.mark.deep),
    ],
)
def test_lenet_trains_with_the_bits_of_the_cpu(
    make: Any, options: dict[str, Any], driver: Emulating
) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        ours = trained_lenet(ENGINE, make, dtype=dtype, **options)
        assert same(trained_lenet("fused", make, dtype=dtype, **options), ours)
    assert driver.launches


@pytest.mark.parametrize(
    "make", [gradstep.SGD, pytest.param(gradstep.AdamW, marks=pytest.mark.deep)]
)
def test_lenet_trains_by_ptx_with_the_bits_of_the_cpu(make: Any) -> None:
    driver = Interpreting(capability=75)
    register(Cuda(driver, ENGINE))
    try:
        ours = trained_lenet(ENGINE, make, steps=2)
    finally:
        del dispatch._engines[ENGINE]
    assert same(trained_lenet("fused", make, steps=2), ours)
    assert len(driver.launches) >= 2


def test_gradients_come_and_go_and_lie_otherwise(driver: Emulating) -> None:
    found = []
    for engine in ("fused", ENGINE):
        params = weights((4, 6), (5,), (3, 3))
        optimizer = gradstep.Adam(params, lr=0.1, engine=engine)
        draw = torch.Generator().manual_seed(2)
        for step in range(6):
            for place, p in enumerate(params):
                p.grad = None if (step + place) % 3 == 0 else torch.randn(p.shape, generator=draw)
            if params[0].grad is not None:
                params[0].grad = params[0].grad.t().contiguous().t()
            optimizer.step()
        found.append(bits([*params, *[t for p in params for t in optimizer.state[p].values()]]))
    assert same(*found)


# Machine code on disk.


def test_machine_code_and_text_are_kept_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADSTEP_CACHE_DIR", str(tmp_path / "kernels"))

    def step(driver: Emulating) -> Emulating:
        register(Cuda(driver, ENGINE))
        try:
            gradstep.SGD(weights((3,)), lr=0.1, momentum=0.9, engine=ENGINE).step()
        finally:
            del dispatch._engines[ENGINE]
        return driver

    first = step(Emulating())
    assert (first.written, first.assembled, first.loaded) == (1, 1, 1)
    assert len(first.launches) == 2  # the first proves it
    again = step(Emulating())
    assert (again.written, again.assembled, again.loaded) == (0, 0, 1)
    assert len(again.launches) == 1  # it is proved
    newer = step(Emulating(version=13010))
    assert (newer.written, newer.assembled, newer.loaded) == (0, 1, 1)
    assert len(newer.launches) == 2
    for file in (tmp_path / "kernels").iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    spoilt = step(Emulating())
    assert (spoilt.written, spoilt.assembled, len(spoilt.launches)) == (1, 1, 2)


# What is not to be trusted, and what does not work.


def complaint(driver: Emulating, caplog: pytest.LogCaptureFixture) -> str:
    """The one line that is logged of a step; it was made all the same, by the eager engine."""
    register(Cuda(driver, ENGINE))
    try:
        params, others = weights((5,), (7, 3)), weights((5,), (7, 3))
        optimizer = gradstep.Adam(params, lr=0.1, engine=ENGINE)
        with caplog.at_level(logging.WARNING, logger="gradstep"):
            optimizer.step()
            optimizer.step()
    finally:
        del dispatch._engines[ENGINE]
    eager = gradstep.Adam(others, lr=0.1, engine="eager")
    eager.step()
    eager.step()
    assert same(bits(params), bits(others))
    assert set(optimizer.engines_used().values()) == {"eager"}
    (line,) = caplog.messages
    return line


def test_a_kernel_with_another_bit_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GRADSTEP_CACHE_DIR", str(tmp_path))
    driver = Emulating()
    driver.spoil = lambda text: text.replace("llvm.sqrt", "llvm.ceil")
    line = complaint(driver, caplog)
    assert "its kernel was tried on a device of paper, and differs from the CPU's in " in line
    assert " of 64,562 numbers" in line and "where the weight is " in line


def test_devices_and_drivers_that_are_too_old(caplog: pytest.LogCaptureFixture) -> None:
    assert complaint(Emulating(capability=70), caplog).endswith(
        "a device of paper has compute capability 7.0, and kernels are written for 7.5 and newer"
    )
    caplog.clear()
    assert complaint(Emulating(version=9020), caplog).endswith(
        "knows CUDA 9.2, and kernels for a device of paper need 10.0: install a newer driver"
    )


def test_a_driver_that_does_not_take_the_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GRADSTEP_CACHE_DIR", str(tmp_path))
    driver = Emulating()
    driver.spoil = lambda text: "nothing"
    assert complaint(driver, caplog).endswith("CUDA_ERROR_INVALID_IMAGE (no code)")


def test_a_driver_that_is_not_there(caplog: pytest.LogCaptureFixture) -> None:
    """The real one's words, on a machine without a GPU."""
    from gradstep.backends.cuda.driver import Unavailable
    from gradstep.backends.cuda.nvidia import Nvidia

    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(Unavailable, match=r"cuda-bindings is not installed|cannot be used"):
        Nvidia()


def test_two_devices_in_one_group_and_a_gradient_elsewhere() -> None:
    """On tensors that know their devices and have no memory there."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        one, other = (torch.empty(4, device=f"cuda:{index}") for index in (0, 1))

        def update(weight: Tensor, gradient: Tensor, **states: Tensor) -> Update:
            return Update(weight, gradient, states, {}, False, lambda: "fc.weight")

        program: Any = None
        kinds = [Cuda().kind(update(w, w), program) for w in (one, one, other)]
        assert kinds[0] == kinds[1] != kinds[2]  # a launch for each device
        check(update(one, one.clone(), exp_avg=one.clone()))
        with pytest.raises(ValueError, match=r"^gradient of fc.weight is .* on cuda:1; its weight"):
            check(update(one, other))
        with pytest.raises(ValueError, match=r"^state 'exp_avg' of fc.weight is .* on cuda:1; its"):
            check(update(one, one.clone(), exp_avg=other))


def test_gpus_of_another_maker(monkeypatch: pytest.MonkeyPatch) -> None:
    from gradstep.backends.cuda.driver import Unavailable
    from gradstep.backends.cuda.nvidia import Nvidia

    monkeypatch.setattr(torch.version, "hip", "7.0")
    with pytest.raises(Unavailable, match="built for ROCm"):
        Nvidia()


def test_memory_that_is_full_in_the_first_step(driver: Emulating) -> None:
    params = weights((5,), (7, 3))
    before = bits(params)
    optimizer = gradstep.Adam(params, lr=0.1, engine=ENGINE)
    full = torch.OutOfMemoryError("no memory left on the device")

    def refuse(index: int, size: int) -> Tensor:
        raise full

    driver.memory = refuse  # type: ignore[method-assign]
    with pytest.raises(torch.OutOfMemoryError, match="no memory left"):
        optimizer.step()
    assert same(before, bits(params)) and not optimizer.state
    del driver.memory
    optimizer.step()
    assert len(optimizer.state) == 2


def test_captures_that_could_not_be_replayed(driver: Emulating) -> None:
    params = weights((5,))
    optimizer = gradstep.Adam(params, lr=0.1, engine=ENGINE)
    driver.capturing = True
    with pytest.raises(RuntimeError, match="Make a few steps before the capture"):
        optimizer.step()
    driver.capturing = False
    optimizer.step()
    before = bits(params)
    driver.capturing = True
    with pytest.raises(RuntimeError, match="Make the optimizer with capturable=True"):
        optimizer.step()
    assert same(before, bits(params))


def test_a_captured_step_can_be_replayed_beside_others(driver: Emulating) -> None:
    """At each replay a graph reads what it read when it was captured, whatever came between."""
    params = weights((5,), (3, 4))
    gradients = [p.grad for p in params]
    optimizer = gradstep.SGD(params, lr=0.5, engine=ENGINE)
    optimizer.step()
    driver.capturing, driver.lags = True, True
    static = [torch.ones_like(p) for p in params]
    for p, ones in zip(params, static, strict=True):
        p.grad = ones
    optimizer.step()
    graph, driver._queue = driver._queue, []
    driver.capturing = driver.lags = False
    optimizer.param_groups[0]["lr"] = 0.25
    for p, g in zip(params, gradients, strict=True):
        p.grad = g
    expected = bits(params)
    for _ in range(2):
        optimizer.step()
        for work in graph:
            work()
    for w, g in zip(expected, gradients, strict=True):
        for _ in range(2):
            w.add_(g, alpha=-0.25).sub_(0.5)
    assert same(expected, bits(params))
