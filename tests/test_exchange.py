"""Checkpoints of bitsandbytes and torchao: their codes as they are, there and back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import gradstep
from gradstep.optimizer.optimizer import planner_of
from gradstep.optimizer.weight_spec import state_specs
from gradstep.program.code_maps import dynamic_map


def weights(seed: int = 0) -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(seed)
    return [
        nn.Parameter(torch.randn(48, 256, generator=random)),
        nn.Parameter(torch.randn(9, generator=random)),
    ]


def take_steps(optimizer: Any, steps: int, seed: int = 1) -> Any:
    random = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.randn(p.shape, generator=random)
        optimizer.step()
    return optimizer


def of_bitsandbytes(optimizer: Any, names: dict[str, str], wrapped: bool) -> dict[str, Any]:
    """A checkpoint as bitsandbytes writes it, of states that are in our own."""
    saved = copy.deepcopy(optimizer.state_dict())
    for key, entry in saved["state"].items():
        made: dict[str, Any] = {"step": int(entry["step"])}
        hidden: dict[str, Any] = {}
        for number, (name, signed) in enumerate(names.items(), 1):
            hidden[f"state{number}"] = entry[name]
            if f"{name}_scale" in entry:
                hidden[f"absmax{number}"] = entry[f"{name}_scale"].flatten()
                map = dynamic_map(signed == "signed")
                hidden[f"qmap{number}"] = torch.tensor(map.entries)
        saved["state"][key] = (
            {**made, "__bnb_optimizer_quant_state__": hidden} if wrapped else {**made, **hidden}
        )
    for group in saved["param_groups"]:
        group["betas"] = (*group["betas"], 0.0)
        group.update(alpha=0.0, t_alpha=None, t_beta3=None)
    return saved


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_checkpoint_in_the_form_of_bitsandbytes(wrapped: bool) -> None:
    ours = take_steps(gradstep.AdamW(weights(), lr=0.01, state_dtype="dynamic8"), 3)
    names = {"exp_avg": "signed", "exp_avg_sq": "unsigned"}
    saved = of_bitsandbytes(ours, names, wrapped)
    held = [p.detach().clone() for p in ours.param_groups[0]["params"]]
    other = gradstep.AdamW([nn.Parameter(w) for w in held], lr=0.5, state_dtype="dynamic8")
    with pytest.raises(ValueError, match=r"is of bitsandbytes, .* Load gradstep.from_bitsandbytes"):
        other.load_state_dict(saved)
    other.load_state_dict(gradstep.from_bitsandbytes(saved, other))
    assert other.param_groups[0]["lr"] == 0.01
    take_steps(ours, 2, 7)
    take_steps(other, 2, 7)
    for p, q in zip(*(o.param_groups[0]["params"] for o in (ours, other)), strict=True):
        assert torch.equal(p, q)
    back = gradstep.to_bitsandbytes(other)["state"][0]
    assert set(back) == {"step", "state1", "state2", "absmax1", "absmax2", "qmap1", "qmap2"}
    assert back["step"] == 5 and back["absmax1"].shape == (48,) and back["qmap2"][0] == 0


def test_what_does_not_fit() -> None:
    ours = take_steps(gradstep.AdamW(weights(), state_dtype="dynamic8"), 1)
    saved = of_bitsandbytes(ours, {"exp_avg": "signed", "exp_avg_sq": "unsigned"}, False)
    lion = gradstep.Lion(weights(), state_dtype="dynamic8")
    with pytest.raises(ValueError, match="has 2 states, and lion has exp_avg"):
        gradstep.from_bitsandbytes(saved, lion)
    saved["state"][0]["absmax2"] = saved["state"][0]["absmax2"][::2]
    with pytest.raises(ValueError, match="24 scales for 12288 elements; dynamic8 has one for 256"):
        gradstep.from_bitsandbytes(saved, ours)
    narrow = take_steps(gradstep.AdamW(weights(), state_dtype="int8"), 1)
    with pytest.raises(ValueError, match="exp_avg is stored as int8, and bitsandbytes has"):
        gradstep.to_bitsandbytes(narrow)


def test_bitsandbytes_itself() -> None:
    library = pytest.importorskip("bitsandbytes")
    theirs = take_steps(library.optim.AdamW8bit(weights(), lr=0.01), 3)
    params = [nn.Parameter(p.detach().clone()) for p in theirs.param_groups[0]["params"]]
    ours = gradstep.AdamW(params, lr=0.01, state_dtype="dynamic8")
    for kind in (library.optim.AdamW8bit, library.optim.AdamW, library.optim.Lion):
        with pytest.raises(ValueError, match=r"Load gradstep\.from_bitsandbytes"):
            ours.load_state_dict(take_steps(kind(weights(), lr=0.01), 1).state_dict())
    ours.load_state_dict(gradstep.from_bitsandbytes(theirs.state_dict(), ours))
    for p, q in zip(theirs.param_groups[0]["params"], params, strict=True):
        assert torch.equal(theirs.state[p]["state1"], ours.state[q]["exp_avg"])
        assert torch.equal(theirs.state[p]["state2"], ours.state[q]["exp_avg_sq"])
    again = library.optim.AdamW8bit([nn.Parameter(p.detach().clone()) for p in params], lr=0.01)
    again.load_state_dict(gradstep.to_bitsandbytes(ours))
    take_steps(theirs, 1, 9)
    take_steps(ours, 1, 9)
    take_steps(again, 1, 9)
    for p, q, r in zip(*(o.param_groups[0]["params"] for o in (theirs, ours, again)), strict=True):
        assert torch.equal(p, r)
        assert (p - q).abs().max() < 2e-4


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("AdamW8bit", "dynamic8"), ("AdamW4bit", "int4"), ("AdamWFp8", "float8")],
)
def test_torchao_itself(theirs: str, ours: str) -> None:
    pytest.importorskip("torchao")
    import torchao.optim

    other = take_steps(getattr(torchao.optim, theirs)(weights(), lr=0.01), 2)
    params = [nn.Parameter(p.detach().clone()) for p in other.param_groups[0]["params"]]
    optimizer = gradstep.AdamW(params, lr=0.01, state_dtype=ours)
    with pytest.raises(ValueError, match=r"is of torchao, .* Load gradstep.from_torchao"):
        optimizer.load_state_dict(other.state_dict())
    optimizer.load_state_dict(gradstep.from_torchao(other.state_dict(), optimizer))
    (large, _), (theirs_large, _) = params, other.param_groups[0]["params"]
    spec = state_specs(planner_of(optimizer).rule)["exp_avg"]
    read = spec.read(optimizer.state[large], torch.float32, large.shape)
    assert torch.equal(read, other.state[theirs_large]["exp_avg"].dequantize())
    take_steps(other, 1, 9)
    take_steps(optimizer, 1, 9)
    for p, q in zip(other.param_groups[0]["params"], params, strict=True):
        assert (p - q).abs().max() < 1e-4


def test_what_is_kept_beside_a_weight_is_no_state_of_theirs() -> None:
    params = [nn.Parameter(torch.randn(48, 256).to(torch.bfloat16))]
    ours = gradstep.AdamW(params, state_dtype="dynamic8", low_precision="remainder")
    params[0].grad = torch.randn_like(params[0])
    ours.step()
    made = gradstep.to_bitsandbytes(ours)["state"][0]
    assert {name for name in made if name.startswith("state")} == {"state1", "state2"}
    saved = {"state": {0: {**made, "state3": made["state1"], "state4": made["state1"]}}}
    with pytest.raises(ValueError, match="has 4 states") as error:
        gradstep.from_bitsandbytes(saved, ours)
    assert "weight_remainder" not in str(error.value)
