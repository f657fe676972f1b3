"""What torch.optim refuses: every error of torch's own list, of the same type and in its words."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import gradstep
from gradstep import torch_optim
from torchs_table import OptimizerErrorEnum, optim_db


def listed() -> Iterator[Any]:
    for info in optim_db:
        name = info.optim_cls.__name__
        if name not in torch_optim.__all__:
            continue
        ours = getattr(gradstep, name)
        for error in info.optim_error_inputs_func(device="cpu", dtype=torch.float32):
            description = error.optimizer_error_input.desc
            yield pytest.param(info.optim_cls, ours, error, id=f"{name}-{description}")


ERRORS = list(listed())


def provoke(make: Callable[..., Any], error: Any) -> None:
    """As torch's own tests do it: two parameters where none are given, warnings as errors."""
    given = error.optimizer_error_input
    params = given.params
    if params is None:
        params = [torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(3))]
    with warnings.catch_warnings():
        if issubclass(error.error_type, Warning):
            warnings.simplefilter("error", error.error_type)
        if error.error_on == OptimizerErrorEnum.CONSTRUCTION_ERROR:
            make(params, **given.kwargs)
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer = make(params, **given.kwargs)
        optimizer.step()


def test_every_error_that_torch_lists_for_our_classes() -> None:
    found = {p.values[1].__name__ for p in ERRORS}
    assert found == {n for n in torch_optim.__all__ if hasattr(torch.optim, n)}
    assert len(ERRORS) >= 7 * len(found)


@pytest.mark.parametrize(("theirs", "ours", "error"), ERRORS)
def test_the_error_is_torchs(theirs: Any, ours: Any, error: Any) -> None:
    found = []
    for make in (theirs, ours):
        with pytest.raises(error.error_type, match=error.error_regex) as caught:
            provoke(make, error)
        found.append(type(caught.value))
    assert found[0] is found[1]


#: Beyond torch's list: what its constructors refuse as well, and their words' beginning.
MORE: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("SGD", {"lr": -0.1}, ValueError, "Invalid learning rate: -0.1"),
    ("SGD", {"weight_decay": -0.1}, ValueError, "Invalid weight_decay value: -0.1"),
    ("SGD", {"nesterov": True}, ValueError, "Nesterov momentum requires a momentum and zero"),
    ("SGD", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, ValueError, "Nesterov momentum"),
    ("SGD", {"foreach": True, "fused": True}, RuntimeError, "`fused` and `foreach` cannot be"),
    ("SGD", {"differentiable": True, "fused": True}, RuntimeError, "`fused` does not support"),
    ("Adam", {"lr": -0.1}, ValueError, "Invalid learning rate: -0.1"),
    ("Adam", {"eps": -1e-8}, ValueError, "Invalid epsilon value: -1e-08"),
    ("Adam", {"betas": (-0.1, 0.9)}, ValueError, "Invalid beta parameter at index 0: -0.1"),
    ("Adam", {"betas": (0.9, 1.0)}, ValueError, "Invalid beta parameter at index 1: 1.0"),
    ("Adam", {"foreach": True, "fused": True}, RuntimeError, "`fused` and `foreach` cannot be"),
    ("AdamW", {"weight_decay": -0.1}, ValueError, "Invalid weight_decay value: -0.1"),
    ("AdamW", {"differentiable": True, "fused": True}, RuntimeError, "`fused` does not support"),
    ("RMSprop", {"alpha": -0.1}, ValueError, "Invalid alpha value: -0.1"),
    ("RMSprop", {"eps": -1.0}, ValueError, "Invalid epsilon value: -1.0"),
    ("RMSprop", {"weight_decay": -0.1}, ValueError, "Invalid weight_decay value: -0.1"),
    ("Adagrad", {"eps": -1.0}, ValueError, "Invalid epsilon value: -1.0"),
    (
        "Adagrad",
        {"initial_accumulator_value": -1.0},
        ValueError,
        "Invalid initial_accumulator_value value: -1.0",
    ),
]


@pytest.mark.parametrize(("name", "arguments", "error", "words"), MORE)
def test_what_torch_refuses_beyond_its_list(
    name: str, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    for module in (torch.optim, gradstep):
        with pytest.raises(error) as caught:
            getattr(module, name)([torch.nn.Parameter(torch.zeros(2))], **arguments)
        assert str(caught.value).startswith(words)


def test_no_parameters() -> None:
    for module in (torch.optim, gradstep):
        with pytest.raises(ValueError, match="optimizer got an empty parameter list"):
            module.SGD([])
