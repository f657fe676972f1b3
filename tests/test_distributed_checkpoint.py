"""torch.distributed.checkpoint: saved on two processes, gone on with on one and on three.

Gradients depend on the step alone and are exact, so that what goes on must be equal to what was
never interrupted, to the last bit.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import gradstep
from gradstep.optimizer.optimizer import planner_of
from rank_cases import CASES, SHAPES, Case, Sums, give_gradients, whole
from ranks import run_ranks

BEFORE, AFTER = 4, 4
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def steps(optimizer: torch.optim.Optimizer, model: nn.Module, numbers: range) -> None:
    for number in numbers:
        give_gradients(model, number)
        for group in optimizer.param_groups:  # as a schedule would
            group["lr"] = 0.01 * (1 + number)
        optimizer.step()
    optimizer.zero_grad()


def sharded(case: Case, count: int) -> tuple[nn.Module, gradstep.Optimizer]:
    model = Sums()
    fully_shard(model, mesh=init_device_mesh("cpu", (count,)))
    return model, case.ours(model.named_parameters())


def save(rank: int, case: Case, folder: str, options: StateDictOptions) -> None:
    model, optimizer = sharded(case, 2)
    steps(optimizer, model, range(BEFORE))
    weights, states = get_state_dict(model, optimizer, options=options)
    dcp.save({"model": weights, "optimizer": states}, checkpoint_id=folder)


def go_on(
    rank: int, case: Case, count: int, folder: str, options: StateDictOptions
) -> tuple[list[Any], list[dict[str, Any]]]:
    """Load and go on; the weights at the end, and the states, put together."""
    model, optimizer = sharded(case, count)
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(0.25)  # no trace of the weights that were saved
    weights, states = get_state_dict(model, optimizer, options=options)
    content = {"model": weights, "optimizer": states}
    dcp.load(content, checkpoint_id=folder)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=content["model"],
        optim_state_dict=content["optimizer"],
        options=options,
    )
    steps(optimizer, model, range(BEFORE, BEFORE + AFTER))
    if case.elementwise:
        assert optimizer.engines_used() == dict.fromkeys(SHAPES, "fused")
    return whole(model.parameters()), states_of(optimizer)


def states_of(optimizer: gradstep.Optimizer) -> list[dict[str, Any]]:
    """Each parameter's states, put together from their parts."""
    found = []
    for _, p in planner_of(optimizer).named():
        held = optimizer.state.get(p, {})
        found.append(dict(zip(held, whole(held.values()), strict=True)))
    return found


def assert_uninterrupted(case: Case, weights: list[Any], states: list[dict[str, Any]]) -> None:
    model = Sums()
    optimizer = case.ours(model.named_parameters())
    steps(optimizer, model, range(BEFORE + AFTER))
    for name, a, b in zip(SHAPES, weights, whole(model.parameters()), strict=True):
        assert a.tobytes() == b.tobytes(), f"{name}: {a} is not {b}"
    for name, own, expected in zip(SHAPES, states, states_of(optimizer), strict=True):
        assert own.keys() == expected.keys(), name
        for key, value in expected.items():
            assert own[key].tobytes() == value.tobytes(), f"{key} of {name}"


@each_case
def test_saved_on_two_processes_it_goes_on_with_one_and_with_three(
    case: Case, tmp_path: Path
) -> None:
    run_ranks(save, 2, case, str(tmp_path), StateDictOptions())
    for count in (1, 3):
        for reached in run_ranks(go_on, count, case, count, str(tmp_path), StateDictOptions()):
            assert_uninterrupted(case, *reached)


#: How the states are keyed, and who holds them.
FORMS = {
    "a flat dict": StateDictOptions(flatten_optimizer_state_dict=True),
    "whole tensors": StateDictOptions(full_state_dict=True),
}
few_cases = pytest.mark.parametrize(
    "case", [c for c in CASES if c.name in ("AdamW", "NAdam", "ASGD", "Adagrad")], ids=str
)


@few_cases
@pytest.mark.parametrize("form", FORMS)
def test_other_forms_of_the_state_dict_do_the_same(case: Case, form: str, tmp_path: Path) -> None:
    run_ranks(save, 2, case, str(tmp_path), FORMS[form])
    for reached in run_ranks(go_on, 2, case, 2, str(tmp_path), FORMS[form]):
        assert_uninterrupted(case, *reached)


def exchange(rank: int, case: Case, to_ours: bool, folder: str) -> list[Any]:
    """Save with one library's class and go on with the other's."""
    model = Sums()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    makers = (case.theirs, case.ours) if to_ours else (case.ours, case.theirs)
    before = makers[0](model.parameters())
    steps(before, model, range(BEFORE))
    dcp.save(get_optimizer_state_dict(model, before), checkpoint_id=folder)
    after = makers[1](model.parameters())
    states = get_optimizer_state_dict(model, after)
    dcp.load(states, checkpoint_id=folder)
    set_optimizer_state_dict(model, after, states)
    steps(after, model, range(BEFORE, BEFORE + AFTER))
    return whole(model.parameters())


@pytest.mark.parametrize("case", [c for c in CASES if c.sharded_in_torch], ids=str)
@pytest.mark.parametrize("to_ours", [True, False], ids=["from torch", "to torch"])
def test_torchs_class_and_ours_read_each_others(case: Case, to_ours: bool, tmp_path: Path) -> None:
    model = Sums()
    steps(case.theirs(model.parameters()), model, range(BEFORE + AFTER))
    for reached in run_ranks(exchange, 2, case, to_ours, str(tmp_path)):
        for w, v in zip(reached, whole(model.parameters()), strict=True):
            bound = 8 * numpy.finfo(v.dtype).eps * abs(v).max()
            numpy.testing.assert_allclose(w, v, rtol=0, atol=bound)


def create_states(rank: int, case: Case) -> None:
    """What torch does before it loads: a step with lr = 0 and gradients of zero."""
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("gradstep").addHandler(handler)
    model, optimizer = sharded(case, 2)
    with torch.no_grad():
        for weight in model.parameters():
            local = weight.to_local().view(-1)
            odd = torch.tensor([-0.0, 1e-40, -1e-45, 3e38, -3e38])[: local.numel()]
            local[: len(odd)] = odd
    bits = [w.view(numpy.int32) for w in whole(model.parameters())]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        states = get_optimizer_state_dict(model, optimizer)
    for before, after in zip(bits, whole(model.parameters()), strict=True):
        numpy.testing.assert_array_equal(before, after.view(numpy.int32))
    assert not heard
    needed = [n for n, s in planner_of(optimizer).rule.states.items() if s.when is None]
    for name in SHAPES:
        assert set(needed) <= set(states["state"].get(name, {})), name
    assert all(group["lr"] == case.options["lr"] for group in optimizer.param_groups)


@each_case
def test_the_step_that_creates_the_states_changes_no_weight(case: Case) -> None:
    run_ranks(create_states, 2, case)


def load_into_another_model(rank: int, folder: str) -> str:
    model = Sums()
    if rank == 1:
        model.added = nn.Parameter(torch.zeros(6))
    optimizer = gradstep.AdamW(model.named_parameters())
    states = get_optimizer_state_dict(model, optimizer)
    with pytest.raises(dcp.api.CheckpointException) as caught:
        dcp.load({"optimizer": states}, checkpoint_id=folder)
    return str(caught.value)


def test_a_rank_whose_model_has_another_parameter_is_named(tmp_path: Path) -> None:
    run_ranks(save, 2, CASES[3], str(tmp_path), StateDictOptions())
    for error in run_ranks(load_into_another_model, 2, str(tmp_path)):
        assert "added" in error
