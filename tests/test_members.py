"""Which weights of a model are heads, hidden matrices and gains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import gradstep
from gradstep.compose import members as kinds


def belongs(model: Any, kind: str) -> list[str]:
    return [m.name for m in kinds.members(model) if kinds.READY[kind](m)]


class Named(nn.Module):
    """A network whose output layer is registered first, or last, under a name."""

    def __init__(self, name: str, first: bool, head: nn.Module | None = None) -> None:
        super().__init__()
        head = head or nn.Linear(8, 3)
        if first:
            self.add_module(name, head)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8))
        if not first:
            self.add_module(name, head)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    "name", ["head", "lm_head", "classifier", "fc_out", "output", "score", "fc", "out", "logits"]
)
def test_a_head_is_known_by_its_name_wherever_it_is_registered(name: str, first: bool) -> None:
    model = Named(name, first)
    assert belongs(model, "heads") == [f"{name}.weight"]
    assert belongs(model, "matrices") == ["body.0.weight", "body.2.weight"]


@pytest.mark.parametrize("first", [True, False])
def test_of_a_head_of_several_layers_the_last_is_the_output(first: bool) -> None:
    """As torchvision's VGG, timm's and transformers' classifiers have it."""
    head = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    model = Named("classifier", first, head)
    assert belongs(model, "heads") == ["classifier.2.weight"]
    assert "classifier.0.weight" in belongs(model, "matrices")


def test_a_head_within_a_part_of_the_model() -> None:
    model = nn.Sequential()
    model.add_module("net", Named("lm_head", first=True))
    assert belongs(model, "heads") == ["net.lm_head.weight"]


def test_without_a_name_the_last_layer_is_the_output() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    assert belongs(model, "heads") == ["2.weight"]
    assert belongs(nn.Sequential(nn.Linear(4, 8)), "heads") == []


def test_layers_of_blocks_that_are_called_like_heads() -> None:
    block = nn.Module()
    block.output = nn.Sequential(nn.Linear(8, 8))  # as BERT's blocks have it
    model = nn.Sequential(block, nn.Linear(8, 3))
    assert belongs(model, "heads") == ["1.weight"]


def old(module: nn.Module, name: str = "weight") -> Any:
    with pytest.warns(FutureWarning):
        return torch.nn.utils.weight_norm(module, name)


@pytest.mark.parametrize("known", ["model", "names"])
@pytest.mark.parametrize("make", [parametrizations.weight_norm, old], ids=["new", "old"])
def test_gains_of_weight_norm_are_no_matrices(make: Any, known: str) -> None:
    model = nn.Sequential()
    model.add_module("hidden", make(nn.Linear(4, 8)))
    model.add_module("conv", make(nn.Conv1d(8, 8, 3)))
    model.add_module("head", make(nn.Linear(8, 3)))
    given: Any = model if known == "model" else list(model.named_parameters())
    new = make is not old
    gain, direction = [
        f"parametrizations.weight.original{i}" if new else f"weight_{'gv'[i]}" for i in (0, 1)
    ]
    assert belongs(given, "matrices") == [f"hidden.{direction}"]
    assert belongs(given, "filters") == [f"conv.{direction}"]
    assert belongs(given, "heads") == [f"head.{direction}"]
    spared = belongs(given, "biases_and_norms")
    assert {f"{layer}.{gain}" for layer in ("hidden", "conv", "head")} <= set(spared)
    assert len(spared) == 6


def test_gains_neither_decay_nor_go_to_muon() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 8)), nn.Linear(8, 3))
    groups = gradstep.for_model(model, gradstep.AdamW, weight_decay=0.1).param_groups
    assert "0.parametrizations.weight.original0" in groups[1]["param_names"]
    assert groups[1]["weight_decay"] == 0
    optimizer = gradstep.partition({"matrices": gradstep.muon(), "rest": gradstep.adam()}, model)
    assert optimizer.param_groups[0]["param_names"] == ["0.parametrizations.weight.original1"]
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()


def test_other_parametrizations_and_narrow_layers_stay_matrices() -> None:
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 8))
    model = nn.Sequential(spectral, nn.Linear(1, 8), nn.Linear(8, 3))
    assert belongs(model, "matrices") == ["0.parametrizations.weight.original", "1.weight"]


def test_a_recurrent_layer_under_weight_norm() -> None:
    layer = old(nn.LSTM(4, 8), "weight_hh_l0")
    assert "weight_hh_l0_g" in belongs(layer, "biases_and_norms")
    assert "weight_hh_l0_v" in belongs(layer, "matrices")
