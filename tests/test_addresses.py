"""Where tensors lie, in one call of generated code; and that a warm step has no call a tensor."""

from __future__ import annotations

import sys
from collections import Counter
from types import FrameType
from typing import Any

import pytest
import torch

import gradstep
from gradstep.backends.cpu import addresses


def tensors() -> list[Any]:
    whole = torch.arange(24.0).reshape(4, 6)
    return [
        whole,
        whole[1:, 2:],
        whole.t(),
        torch.nn.Parameter(torch.ones(3)),
        torch.ones((), dtype=torch.bfloat16),
        torch.ones(5, dtype=torch.complex64).conj(),
        torch.empty(0),
        torch.ones(2, 0, 3),
    ]


def test_the_generated_code_is_used_and_right() -> None:
    given = tensors()
    found, zeros = addresses.locate(given)
    assert found.tolist() == [*(t.data_ptr() for t in given), 0]
    assert zeros == sum(t.data_ptr() == 0 for t in given) > 0
    assert addresses.locate is not addresses.by_python


@pytest.mark.parametrize("found", [None, "another", 0])
def test_python_steps_in(monkeypatch: pytest.MonkeyPatch, found: Any) -> None:
    """Where torch has not the function, or something else under its name."""
    from torch._C._dynamo import guards

    name = "_torchinductor_pyobject_tensor_data_ptr"
    if found == 0:
        monkeypatch.setattr(addresses, "_works", lambda locate: False)
    elif found is None:
        monkeypatch.delattr(guards, name)
    else:
        monkeypatch.setattr(guards, name, found)
    monkeypatch.setattr(addresses, "locate", addresses._first)
    given = tensors()
    assert addresses.locate(given) == addresses.by_python(given)
    assert addresses.locate is addresses.by_python


def calls_of(optimizer: Any) -> Counter[str]:
    found: Counter[str] = Counter()

    def called(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            found[frame.f_code.co_name] += 1
        elif event == "c_call":
            found[argument.__qualname__] += 1

    sys.setprofile(called)
    try:
        optimizer.step()
    finally:
        sys.setprofile(None)
    return found


@pytest.mark.parametrize("make", [gradstep.SGD, gradstep.Adam, gradstep.Lion])
def test_a_warm_step_makes_no_call_a_tensor(make: Any) -> None:
    """What is done for each of many tensors is done by calls over whole lists."""
    counts = []
    for count in (3, 40):
        params = [torch.nn.Parameter(torch.ones(4)) for _ in range(count)]
        optimizer = make(params, lr=0.1)
        for _ in range(3):
            for p in params:
                p.grad = torch.ones(4)
            optimizer.step()
        counts.append(calls_of(optimizer))
    assert counts[0] == counts[1]
