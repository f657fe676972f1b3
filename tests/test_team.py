"""Kernels in the threads of torch's own operations: the same bits, the same modes, no hang."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import pytest
import torch
from torch import Tensor, nn

import gradstep
from gradstep.backends.cpu import compiler, run, team, threads

SIZE = run.PARALLEL + 12_345


@pytest.fixture(autouse=True)
def three_threads() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def has_team() -> bool:
    info = torch.__config__.parallel_info()
    return sys.platform == "linux" and "backend: OpenMP" in info


needs_team = pytest.mark.skipif(not has_team(), reason="torch has another kind of threads here")


def trained(rule: str) -> Tensor:
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(SIZE))
    optimizer = getattr(gradstep, rule)([p], lr=0.01)
    for _ in range(3):
        p.grad = torch.randn(SIZE)
        optimizer.step()
    return p.detach()


def threads_of(work: Callable[[], object]) -> int:
    """How many of this process's threads have begun while it worked."""
    tasks = Path("/proc/self/task")
    before = set(tasks.iterdir())
    work()
    return len(set(tasks.iterdir()) - before)


@needs_team
def test_a_kernel_runs_in_the_team(monkeypatch: pytest.MonkeyPatch) -> None:
    """In torch's own threads: none begin beside them, and ours have nothing to do."""

    def refused(*arguments: object) -> None:
        raise AssertionError("threads of our own were asked for")

    monkeypatch.setattr(threads, "run", refused)
    monkeypatch.setattr(team, "_is_awake", lambda: True)
    torch.randn(1 << 22).mul_(2)  # torch begins its threads
    assert threads_of(lambda: trained("Adam")) == 0
    assert threads_of(lambda: torch.randn(1 << 22).mul_(2)) == 0  # and has them still


@needs_team
@pytest.mark.parametrize("rule", ["SGD", "Adam", "LAMB"])
def test_the_team_writes_the_bits_of_our_own_threads(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(team, "_is_awake", lambda: True)
    in_team = trained(rule)
    monkeypatch.setattr(team, "lent", lambda: None)
    assert torch.equal(in_team.view(torch.int32), trained(rule).view(torch.int32))
    assert threads._pool is not None  # the work was indeed shared out


@needs_team
def test_a_team_that_sleeps_is_left_alone() -> None:
    """It is awake after an operation of torch's, and sleeps some time later."""
    trained("SGD")  # a member has been seen

    def becomes(awake: bool, before: Callable[[], object]) -> bool:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            before()
            if (team.lent() is not None) == awake:
                return True
        return False

    assert becomes(False, lambda: time.sleep(0.05))
    assert becomes(True, lambda: torch.ones(1 << 22).mul_(2))


@needs_team
def test_another_number_of_threads_is_another_team() -> None:
    trained("SGD")
    torch.set_num_threads(2)
    torch.ones(1 << 22).mul_(2)  # of three threads one has ended
    trained("SGD")
    torch.set_num_threads(1)
    trained("SGD")


@needs_team
def test_the_members_keep_their_own_mode_for_small_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step under ``set_flush_denormal`` leaves torch's threads as they were."""
    monkeypatch.setattr(team, "_is_awake", lambda: True)
    torch.ones(1 << 22).mul_(2)  # torch's threads have begun, in the mode of their beginner
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot")
    try:
        p = nn.Parameter(torch.full((SIZE,), 1e-39))
        p.grad = torch.zeros(SIZE)
        gradstep.SGD([p], lr=0.1).step()
    finally:
        torch.set_flush_denormal(False)
    assert not p.any()  # w − lr · g, with every thread's w taken for 0
    assert torch.full((1 << 22,), 1e-39).mul(1.0).all()


def test_threads_that_step_at_once() -> None:
    expected = trained("Adam")
    found: list[Tensor] = []

    def work() -> None:
        p = nn.Parameter(start.clone())
        optimizer = gradstep.Adam([p], lr=0.01)
        for gradient in gradients:
            p.grad = gradient
            optimizer.step()
        found.append(p.detach())

    torch.manual_seed(0)
    start = torch.randn(SIZE)
    gradients = [torch.randn(SIZE) for _ in range(3)]
    at_once = [threading.Thread(target=work) for _ in range(4)]
    for each in at_once:
        each.start()
    for each in at_once:
        each.join()
    assert len(found) == 4
    assert all(torch.equal(each, expected) for each in found)


@pytest.mark.parametrize(
    ("platform", "info"),
    [("darwin", "ATen parallel backend: OpenMP"), ("linux", "ATen parallel backend: native")],
)
def test_no_team_where_torch_has_another_kind(
    platform: str, info: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(torch.__config__, "parallel_info", lambda: info)
    assert team._runtime() is None


@pytest.mark.parametrize(("name", "register"), [("x86_64", "mxcsr"), ("aarch64", "fpcr")])
def test_the_code_compiles_for_each_processor(name: str, register: str) -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple(f"{name}-unknown-linux-gnu")
    text = compiler.assembly(team._code(*team._MODES[name]), target.create_target_machine())
    assert register in text.lower()
