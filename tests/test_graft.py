"""The length of one rule's step on the direction of another."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import gradstep

SHAPES = ((7,), (4, 5), (2, 3, 4, 2), ())


def weights(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=random).to(dtype)) for s in SHAPES]


def feed(params: list[nn.Parameter], step: int) -> None:
    random = torch.Generator().manual_seed(step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=random).to(p.dtype)


@pytest.mark.parametrize(
    "engine", ["fused", "eager", pytest.param("compile", marks=pytest.mark.deep)]
)
def test_torchs_sgd_says_how_far_and_torchs_adam_where_to(engine: str) -> None:
    """Both of torch.optim make a step from the same weights; ours has one's length and the other's
    direction."""
    rule = gradstep.graft(gradstep.sgd(momentum=0.9), gradstep.adam(beta2=0.9))
    ours = weights()
    optimizer = gradstep.Optimizer(ours, rule, lr=0.1, engine=engine)
    lengths, directions = weights(), weights()
    sgd = torch.optim.SGD(lengths, lr=0.1, momentum=0.9)
    adam = torch.optim.Adam(directions, lr=0.1, betas=(0.9, 0.9))
    for step in range(12):
        before = [p.detach().clone() for p in ours]
        for params in (ours, lengths, directions):
            feed(params, step)
            for p, w in zip(params, before, strict=True):
                p.data.copy_(w)
        for each in (optimizer, sgd, adam):
            each.step()
        for p, far, to, w in zip(ours, lengths, directions, before, strict=True):
            wanted = (to - w) * ((far - w).norm() / (to - w).norm())
            torch.testing.assert_close((p - w).detach(), wanted.detach(), rtol=1e-12, atol=1e-15)


def test_a_direction_of_zero_stays_zero() -> None:
    p = nn.Parameter(torch.ones(3))
    rule = gradstep.graft(gradstep.sgd(weight_decay=1.0), gradstep.adam())
    optimizer = gradstep.Optimizer([p], rule, lr=0.1)
    p.grad = torch.zeros(3)
    optimizer.step()
    assert p.tolist() == [1.0, 1.0, 1.0]


def test_in_a_chain_and_of_chains() -> None:
    """The gradient that both are given is the direction so far; what is behind gets the outcome."""
    inner = gradstep.graft(
        gradstep.chain(gradstep.clip_by_value(0.1), gradstep.sgd()), gradstep.scale_by_sign()
    )
    rule = gradstep.chain(gradstep.scale(2.0), inner, gradstep.decay_weights(0.1))
    (p,) = weights()[:1]
    before = p.detach().clone()
    optimizer = gradstep.Optimizer([p], rule, lr=0.5)
    feed([p], 0)
    assert p.grad is not None
    g = 2 * p.grad
    optimizer.step()
    sign = g.sign()
    direction = sign * (g.clamp(-0.1, 0.1).norm() / sign.norm()) + 0.1 * before
    torch.testing.assert_close(p.detach(), before - 0.5 * direction, rtol=1e-12, atol=0)


def test_names_of_states_and_hyperparameters() -> None:
    rule = gradstep.graft(gradstep.adam(beta1=0.8), gradstep.adam(beta1=0.7))
    assert "adam_exp_avg" in rule.states and "adam2_exp_avg" in rule.states
    assert (rule.hyperparameters["adam_beta1"], rule.hyperparameters["adam2_beta1"]) == (0.8, 0.7)
    optimizer = gradstep.Optimizer(weights(), rule, lr=0.1)
    assert optimizer.param_groups[0]["adam2_beta1"] == 0.7


RULE = gradstep.graft(gradstep.sgd(momentum=0.9), gradstep.lion(weight_decay=0.1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumed_as_uninterrupted(dtype: torch.dtype) -> None:
    params = weights(dtype)
    optimizer = gradstep.Optimizer(params, RULE, lr=0.1)

    def train(params: list[nn.Parameter], optimizer: gradstep.Optimizer, start: int) -> None:
        for step in range(start, start + 4):
            feed(params, step)
            optimizer.step()

    train(params, optimizer, 0)
    again, saved = copy.deepcopy(params), copy.deepcopy(optimizer.state_dict())
    resumed = gradstep.Optimizer(again, pickle.loads(pickle.dumps(RULE)), lr=0.3)
    resumed.load_state_dict(saved)
    train(params, optimizer, 4)
    train(again, resumed, 4)
    for p, q in zip(params, again, strict=True):
        assert torch.equal(p, q)


def test_the_formula_and_the_explanation_name_the_parts() -> None:
    text = str(gradstep.formula(RULE))
    parts = [text.index(f"\n  {part}:\n") for part in ("sgd", "lion", "grafted", "step")]
    assert parts == sorted(parts)
    (p,) = weights(torch.float32)[:1]
    optimizer = gradstep.Optimizer([p], RULE, lr=0.1)
    explanation = gradstep.explain(optimizer, param=p, index=2)
    feed([p], 0)
    optimizer.step()
    last = str(explanation).splitlines()[-1]
    assert f"{abs(p[2].item()):.8g}" in last and "bit for bit" in last


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: gradstep.graft(gradstep.sgd(), gradstep.average_weights()),
            ValueError,
            r"takes the weight after the step \(next_w\).*chain\(graft",
        ),
        (lambda: gradstep.graft(gradstep.adam(), gradstep.Adam), TypeError, "takes rules; got"),
        (
            lambda: gradstep.Optimizer(
                weights(), gradstep.graft(gradstep.madgrad(), gradstep.adam()), lr=0.1
            ),
            gradstep.RuleError,
            "sets the weight outright",
        ),
    ],
)
def test_what_cannot_be_grafted(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_shampoo_in_blocks_with_the_length_of_rmsprop() -> None:
    """Of the whole weight: the direction is that of the blocks, each a weight of its own."""
    rule = gradstep.graft(gradstep.rmsprop(alpha=0.9), gradstep.shampoo(block_size=3, eps=0.1))
    start = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole, far = (nn.Parameter(start.clone()) for _ in range(2))
    cuts = [(slice(i, i + 3), slice(j, j + 3)) for i in (0, 3) for j in (0, 3)]
    parts = [nn.Parameter(start[cut].clone()) for cut in cuts]
    optimizers = [
        gradstep.Optimizer([whole], rule, lr=0.1),
        torch.optim.RMSprop([far], lr=0.1, alpha=0.9),
        gradstep.Shampoo(parts, lr=0.1, eps=0.1),
    ]
    for step in range(4):
        before = whole.detach().clone()
        far.data.copy_(before)
        for part, cut in zip(parts, cuts, strict=True):
            part.data.copy_(before[cut])
        feed([whole], step)
        assert whole.grad is not None
        far.grad = whole.grad.clone()
        for part, cut in zip(parts, cuts, strict=True):
            part.grad = whole.grad[cut].clone()
        for each in optimizers:
            each.step()
        to = torch.zeros_like(before)
        for part, cut in zip(parts, cuts, strict=True):
            to[cut] = part.detach() - before[cut]
        wanted = to * ((far.detach() - before).norm() / to.norm())
        torch.testing.assert_close(whole.detach() - before, wanted, rtol=1e-10, atol=1e-13)
