"""A default device or dtype of torch's that is not the weights': the same bits, everywhere.

The default device is ``meta``, whose tensors hold nothing: whatever is put there by mistake fails.
"""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradstep
from gradstep import rules
from representatives import Configuration, cover, features
from torch_release import IS_LOWEST

RULES = rules.load()


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_device(None)
    torch.set_default_dtype(dtype)


def on_meta() -> None:
    torch.set_default_device("meta")


def in_float64() -> None:
    torch.set_default_dtype(torch.float64)


SETTINGS = {"meta": on_meta, "float64": in_float64}


def weights() -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    made = torch.randn(2, 6, 5, generator=random, device="cpu", dtype=torch.float32)
    return [nn.Parameter(w) for w in made]


def gradients(step: int, sparse: bool) -> list[Tensor]:
    random = torch.Generator().manual_seed(100 + step)
    made = torch.randn(2, 6, 5, generator=random, device="cpu", dtype=torch.float32)
    return [g.to_sparse(1) if sparse else g for g in made]


def trained(rule: gradstep.Rule, engine: str) -> list[Tensor]:
    """The weights after two steps, a checkpoint that goes through a file, and a third step."""
    params = weights()
    optimizer = gradstep.Optimizer(params, rule, engine=engine)
    for step in range(3):
        if step == 2:
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            optimizer = gradstep.Optimizer(params, rule, engine=engine)
            optimizer.load_state_dict(torch.load(file, map_location="cpu"))
        for p, g in zip(params, gradients(step, rule.sparse == "only"), strict=True):
            p.grad = g
        optimizer.step(lambda: 0.7)
    return [p.detach() for p in params]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(map(torch.equal, one, other))


def asked_soon() -> set[str]:
    """Rules that have every feature of any graph, and all that call functions.

    Those make tensors by themselves; the others' are made by the engine, for all rules alike.
    """
    every = [
        Configuration(name, functools.partial(gradstep.Optimizer, rule=rule), {"lr": 0.1})
        for name, rule in RULES.items()
    ]
    calling = {e.name for e in every if any("opaque" in str(f[0]) for f in features(e))}
    return calling | {e.name for e in cover(every, frozenset().union(*map(features, every)))}


SOON = asked_soon()


@pytest.mark.parametrize("engine", ["auto", pytest.param("eager", marks=pytest.mark.deep)])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in SOON else pytest.mark.deep) for n in RULES]
)
def test_every_rule_whose_default_device_is_another(name: str, engine: str) -> None:
    usual = trained(RULES[name], engine)
    on_meta()
    found = trained(RULES[name], engine)
    assert same(found, usual)


@pytest.mark.deep
@pytest.mark.parametrize("name", RULES)
def test_every_rule_whose_default_dtype_is_float64(name: str) -> None:
    """torch keeps numbers of states in float64 then: the last bits are others."""
    usual = trained(RULES[name], "auto")
    in_float64()
    for one, other in zip(trained(RULES[name], "auto"), usual, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def lenet() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).to("cpu", torch.float32)


def batch() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(16, 4, generator=random, device="cpu", dtype=torch.float32)
    return x, x[:, :3].argmax(1)


def loss_of(model: nn.Module, given: Any) -> Tensor:
    return nn.functional.cross_entropy(model(given[0]), given[1])


def loop(model: nn.Module, optimizer: Any, steps: int = 3) -> None:
    for _ in range(steps):

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, batch())
            loss.backward()
            return loss

        optimizer.step(closure)


def clipped(model: nn.Module) -> Any:
    chain = gradstep.chain(gradstep.clip_by_global_norm(0.1), gradstep.adam())
    return gradstep.Optimizer(model.parameters(), chain)


def hessian(model: nn.Module) -> Any:
    optimizer = gradstep.Sophia(model.parameters())
    random = torch.Generator("cpu").manual_seed(3)
    loss = loss_of(model, batch())
    optimizer.update_hessian(gradstep.hutchinson(loss, model.parameters(), random))
    sampled = gradstep.sampled_loss(model(batch()[0]), random)
    optimizer.zero_grad()
    sampled.backward()
    optimizer.update_hessian(batch_size=16)
    return optimizer


def scheduled(model: nn.Module) -> Any:
    rate = gradstep.schedule.warmup(gradstep.schedule.cosine(0.1, steps=10), 2)
    return gradstep.SGD(model.parameters(), lr=rate, momentum=0.5)


WAYS: dict[str, Callable[[nn.Module], Any]] = {
    "Accumulate": lambda m: gradstep.Accumulate(gradstep.Adam(m.parameters()), 2),
    "AveragedWeights": lambda m: gradstep.AveragedWeights(
        gradstep.Optimizer(
            m.parameters(), gradstep.chain(gradstep.adam(), gradstep.average_weights())
        )
    ),
    "EMA": lambda m: gradstep.EMA(gradstep.Adam(m.parameters())),
    "Freeze": lambda m: gradstep.Freeze(gradstep.Adam(m.named_parameters()), "0.*"),
    "GradientNoise": lambda m: gradstep.GradientNoise(gradstep.Adam(m.parameters())),
    "SkipNonFinite": lambda m: gradstep.SkipNonFinite(gradstep.Adam(m.parameters())),
    "SAM": lambda m: gradstep.SAM(gradstep.SGD(m.parameters())),
    "ASAM": lambda m: gradstep.ASAM(gradstep.SGD(m.parameters())),
    "partition": lambda m: gradstep.partition(
        {"matrices": gradstep.muon(), "rest": gradstep.adam()}, m
    ),
    "for_model": lambda m: gradstep.for_model(m, gradstep.AdamW, weight_decay=0.1),
    "LBFGS": lambda m: gradstep.LBFGS(m.parameters(), max_iter=3, line_search_fn="strong_wolfe"),
    "clipped": clipped,
    "scheduled": scheduled,
    "Sophia": hessian,
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", WAYS)
def test_wrappers_and_their_checkpoints(name: str, setting: str) -> None:
    def run(change: Callable[[], None]) -> list[Tensor]:
        model = lenet()
        change()
        optimizer = WAYS[name](model)
        loop(model, optimizer)
        saved = optimizer.state_dict()
        optimizer = WAYS[name](model)
        optimizer.load_state_dict(saved)
        loop(model, optimizer)
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
        return [p.detach() for p in model.parameters()]

    usual, found = run(lambda: None), run(SETTINGS[setting])
    for one, other in zip(found, usual, strict=True):
        if setting == "meta":
            assert torch.equal(one, other)
        else:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("setting", SETTINGS)
def test_watch_explain_diagnose_and_lr_find(setting: str) -> None:
    model = lenet()
    SETTINGS[setting]()
    optimizer = gradstep.AdamW(model.named_parameters(), lr=1e-3)
    watch = gradstep.watch(model, optimizer, every=1)
    for index in ((0, 1), "largest", "random"):
        explained = gradstep.explain(optimizer, "0.weight", index=index)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with gradstep.diagnose(model, optimizer):
                loop(model, optimizer, 2)
        assert "0.weight" in str(explained)
    watch.close()
    assert watch.records
    found = gradstep.lr_find(
        model, optimizer, nn.functional.cross_entropy, [batch()], steps=12, verbose=False
    )
    assert found.suggestion


@pytest.mark.skipif(IS_LOWEST, reason="torch 2.7's own Adam counts on that device")
def test_audit() -> None:
    on_meta()
    found = gradstep.audit(torch.optim.Adam, gradstep.Adam, steps=3)
    torch.set_default_device(None)
    assert str(found) == str(gradstep.audit(torch.optim.Adam, gradstep.Adam, steps=3))
