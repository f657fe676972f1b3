"""Optimizers by their names, with the groups that trainers make, beside groups made by hand."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

import gradstep
from gradstep import schedule
from gradstep.compose import create as creating
from gradstep.compose.members import of_type
from gradstep.lab.lenet import LeNet


class Blocks(nn.Module):
    """An embedding, three blocks, a norm and a head."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width)) for _ in range(3)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.norm(x))  # type: ignore[no-any-return]


class Stages(nn.Module):
    """Blocks within stages, as in ConvNeXt or Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.stages = nn.ModuleList()
        for depth in (1, 2):
            stage = nn.Module()
            stage.blocks = nn.ModuleList(
                nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(depth)
            )
            self.stages.append(stage)
        self.head = nn.Linear(4, 2)


def blocks() -> Blocks:
    torch.manual_seed(0)
    return Blocks()


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(torch.arange(8)), torch.arange(8) % 4).backward()
    optimizer.step()


def options(optimizer: torch.optim.Optimizer, option: str) -> dict[str, Any]:
    """An option of each parameter, by name."""
    return {n: g[option] for g in optimizer.param_groups for n in g["param_names"]}


# Names.


def test_every_name_makes_its_class_and_near_ones_are_named() -> None:
    weight = [("fc.weight", nn.Parameter(torch.ones(3, 2)))]
    for name in creating.names():
        made = gradstep.create(name, weight)
        assert isinstance(made, torch.optim.Optimizer), name
    assert {"adamw", "muon", "ademamix", "lion", "schedule_free_adamw"} <= {*creating.names()}
    for spelled in ("AdamWScheduleFree", "adamw-schedule-free", "Schedule_Free_AdamW", "SFAdamW"):
        assert type(gradstep.create(spelled, weight)) is gradstep.AdamWScheduleFree
    with pytest.raises(ValueError, match="'prodgy': the nearest are prodigy, "):
        gradstep.create("prodgy", weight)
    with pytest.raises(TypeError, match="AdamW has no option 'beta': the nearest are betas, "):
        gradstep.create("adamw", weight, beta=0.9)
    with pytest.raises(TypeError, match="the name of an optimizer"):
        gradstep.create(gradstep.AdamW, weight)  # type: ignore[arg-type]


def test_the_cautious_form() -> None:
    ours, theirs = blocks(), blocks()
    a = gradstep.create("cadamw", ours, lr=0.01, weight_decay=0.1, betas=(0.8, 0.9))
    b = gradstep.Optimizer(
        [
            {"params": [p for p in theirs.parameters() if p.dim() > 1]},
            {
                "params": [p for p in theirs.parameters() if p.dim() < 2],
                "decay_weights_weight_decay": 0.0,
            },
        ],
        gradstep.chain(
            gradstep.adam(beta1=0.8, beta2=0.9), gradstep.cautious(), gradstep.decay_weights(0.1)
        ),
        lr=0.01,
    )
    for _ in range(4):
        step(ours, a)
        step(theirs, b)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q)


def test_decay_behind_a_rule_that_has_none() -> None:
    model = blocks()
    optimizer = gradstep.create("gravity", model, weight_decay=0.2)
    assert type(optimizer) is gradstep.Gravity
    decays = options(optimizer, "weight_decay")
    assert {d for n, d in decays.items() if n.endswith("bias")} == {0.0}
    assert decays["head.weight"] == 0.2
    before = model.head.weight.detach().clone()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(model.head.weight.detach(), before * (1 - 0.1 * 0.2))
    with pytest.raises(TypeError, match="Fromage sets weights outright and has no weight_decay"):
        gradstep.create("fromage", model, weight_decay=0.2)


# Groups.


def test_layer_decay_is_timms_formula_and_trains_as_groups_by_hand() -> None:
    ours, theirs = blocks(), blocks()
    a = gradstep.create("adamw", ours, lr=0.01, weight_decay=0.1, layer_decay=0.5)
    depth = {"embed": 0, "blocks.0": 1, "blocks.1": 2, "blocks.2": 3, "norm": 4, "head": 4}
    scales = {
        n: 0.5 ** (4 - next(d for k, d in depth.items() if n.startswith(k)))
        for n, _ in theirs.named_parameters()
    }
    assert options(a, "lr") == {n: 0.01 * s for n, s in scales.items()}
    b = torch.optim.AdamW(
        [
            {"params": [p], "lr": 0.01 * scales[n], "weight_decay": 0.1 * (p.dim() > 1)}
            for n, p in theirs.named_parameters()
        ]
    )
    for _ in range(5):
        step(ours, a)
        step(theirs, b)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_depths() -> None:
    found = gradstep.layer_depths(Stages())
    assert found["stem.weight"] == 0 and found["head.bias"] == 4
    assert [found[f"stages.{s}.blocks.{b}.1.weight"] for s, b in ((0, 0), (1, 0), (1, 1))] == [
        1,
        2,
        3,
    ]
    plain = gradstep.layer_depths(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)))
    assert plain == {"0.weight": 1, "0.bias": 1, "2.weight": 2, "2.bias": 2}
    patterns = ["conv1.*", "conv2.*", "fc*"]
    assert {*gradstep.layer_depths(LeNet(), patterns).values()} == {1, 2, 3}
    assert gradstep.layer_depths(LeNet(), len)["fc1.bias"] == 8


def test_depths_that_cannot_be_told() -> None:
    with pytest.raises(
        ValueError, match=r"depth of LeNet cannot be told: there is no list .* conv1\.weight, .*lay"
    ):
        gradstep.create("adamw", LeNet(), layer_decay=0.7)
    two = nn.ModuleDict({"encoder": Blocks().blocks, "decoder": Blocks().blocks})
    with pytest.raises(ValueError, match=r"several lists of layers: encoder \(3\), decoder \(3\)"):
        gradstep.layer_depths(two)
    with pytest.raises(ValueError, match=r"the pattern 'conv9\.\*' fits no parameter"):
        gradstep.layer_depths(LeNet(), ["conv*", "conv9.*"])
    with pytest.raises(ValueError, match=r"conv1\.weight belongs to 'conv1\.\*' and '\*'"):
        gradstep.layer_depths(LeNet(), ["conv1.*", "*"])
    with pytest.raises(ValueError, match=r"Invalid layer_decay: 1\.5"):
        gradstep.create("adamw", Blocks(), layer_decay=1.5)


def test_rates_of_embeddings_heads_and_lora() -> None:
    model = blocks()
    found = options(
        gradstep.create("lion", model, lr=1e-3, embedding_lr=1e-5, head_lr=1e-2, layer_decay=0.5),
        "lr",
    )
    assert found["embed.weight"] == 1e-5 and found["head.weight"] == 1e-2
    assert found["head.bias"] == 1e-3 and found["blocks.2.0.weight"] == 5e-4
    lora = [(n, nn.Parameter(torch.ones(2, 2))) for n in ("q.lora_A.weight", "q.lora_B.weight")]
    rates = options(gradstep.create("adamw", lora, lr=1e-4, lora_plus=16), "lr")
    assert rates == {"q.lora_A.weight": 1e-4, "q.lora_B.weight": 16e-4}
    with pytest.raises(ValueError, match="lora_plus was given, and no parameter is called lora_B"):
        gradstep.create("adamw", model, lora_plus=16)
    with pytest.raises(ValueError, match="embedding_lr was given, and no embeddings are known"):
        gradstep.create("adamw", LeNet(), embedding_lr=1e-5)


def test_no_decay_by_pattern_by_names_and_by_the_model() -> None:
    model = blocks()
    model.no_weight_decay = lambda: {"head.weight"}  # type: ignore[assignment]

    def spared(**given: Any) -> set[str]:
        made = gradstep.create("adamw", model, weight_decay=0.1, **given)
        return {n for n, d in options(made, "weight_decay").items() if d == 0}

    flat = {n for n, p in model.named_parameters() if p.dim() < 2}
    assert spared() == {*flat, "head.weight"}
    assert spared(no_decay="embed.*") == {"embed.weight", "head.weight"}
    assert spared(no_decay=["norm.weight", "norm.bias"]) == {
        "norm.weight",
        "norm.bias",
        "head.weight",
    }
    assert spared(no_decay=of_type(nn.Embedding)) == {"embed.weight", "head.weight"}
    assert spared(no_decay=None) == set()


def test_a_schedule_runs_in_each_group_at_its_rate() -> None:
    model = blocks()
    course = schedule.warmup(schedule.cosine(0.1, 4), 2)
    optimizer = gradstep.create("sgd", model, lr=course, layer_decay=0.5, momentum=0.9)
    for number in range(5):
        step(model, optimizer)
        rates = options(optimizer, "lr")
        assert rates["head.weight"] == pytest.approx(course(number))
        assert rates["embed.weight"] == pytest.approx(course(number) / 16)
    again = gradstep.create("sgd", blocks(), lr=course, layer_decay=0.5, momentum=0.9)
    again.load_state_dict(optimizer.state_dict())
    assert options(again, "lr") == options(optimizer, "lr")


# Rules for matrices alone.


def test_what_takes_matrices_alone_shares_the_model() -> None:
    ours, theirs = blocks(), blocks()
    a = gradstep.create("muon", ours, lr=0.02, weight_decay=0.1, layer_decay=0.5)
    assert isinstance(a, gradstep.Partition)
    assert {n: type(p).__name__ for n, p in a.parts.items()} == {
        "matrices": "Muon",
        "rest": "AdamW",
    }
    scale = {"embed": 0.0625, "blocks.0": 0.125, "blocks.1": 0.25, "blocks.2": 0.5}
    scales = {
        n: next((s for k, s in scale.items() if n.startswith(k)), 1.0)
        for n, _ in theirs.named_parameters()
    }

    def made(own: bool) -> list[dict[str, Any]]:
        return [
            {"params": [p], "lr": 0.02 * scales[n], "weight_decay": 0.1 * (p.dim() > 1)}
            for n, p in theirs.named_parameters()
            if (n.startswith("blocks") and p.dim() > 1) is own
        ]

    parts = gradstep.Muon(made(True)), torch.optim.AdamW(made(False))
    for _ in range(3):
        step(ours, a)
        theirs.zero_grad()
        nn.functional.cross_entropy(theirs(torch.arange(8)), torch.arange(8) % 4).backward()
        for part in parts:
            part.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_two_names() -> None:
    model = blocks()
    optimizer = gradstep.create("soap+lion", model, precondition_frequency=5, weight_decay=0.3)
    assert isinstance(optimizer, gradstep.Partition)
    soap, lion = optimizer.parts.values()
    assert type(soap) is gradstep.SOAP and type(lion) is gradstep.Lion
    assert soap.param_groups[0]["precondition_frequency"] == 5
    assert {g["weight_decay"] for g in lion.param_groups} == {0.0, 0.3}
    assert lion.param_groups[0]["lr"] == 1e-4 and soap.param_groups[0]["lr"] == 3e-3
    step(model, optimizer)
    with pytest.raises(TypeError, match="neither SOAP nor Lion has 'momentum'"):
        gradstep.create("soap+lion", model, momentum=0.9)


@pytest.mark.deep
@pytest.mark.parametrize("name", [n for n in creating.names() if n != "sparseadam"])
def test_each_name_trains(name: str) -> None:
    """One step over a whole model, and every weight that has a gradient has moved, or may not."""
    model = blocks()
    optimizer = gradstep.create(name, model)
    before = [p.detach().clone() for p in model.parameters()]

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(torch.arange(8)), torch.arange(8) % 4)
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)), name
    assert all(torch.isfinite(p).all() for p in itertools.chain(model.parameters()))


def test_a_name_of_another_library_is_answered_from_the_catalogue() -> None:
    for name, words in (
        ("add_decayed_weights", r"optax .*: `decay_weights`$"),
        ("FusedAdam", r"apex .*: the classes, all of which are fused"),
        ("BSAM", r"pytorch_optimizer .*: not here"),
    ):
        with pytest.raises(AttributeError, match=rf"has no {name}: .*{words}"):
            getattr(gradstep, name)
    with pytest.raises(AttributeError, match=r"has no adopted_name$"):
        gradstep.adopted_name  # noqa: B018


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("AdamW8bit", r'gradstep\.AdamW\(…, state_dtype="dynamic8"\)'),
        ("PagedLion8bit", r'gradstep\.Offload\(Lion\(…, state_dtype="dynamic8"\)\)'),
        ("PagedAdamW", r"gradstep\.Offload\(AdamW\(…\)\)"),
        ("Lion32bit", r"gradstep\.Lion\(…\)"),
    ],
)
def test_a_class_of_bitsandbytes_is_answered_by_ours(name: str, way: str) -> None:
    with pytest.raises(ValueError, match=way):
        gradstep.create(name, nn.Linear(2, 2))
    with pytest.raises(AttributeError, match=way):
        getattr(gradstep, name)
