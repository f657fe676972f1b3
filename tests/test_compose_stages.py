"""Every stage against its formula in NumPy, alone and in chains; chains keep their promises."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gradstep
from gradstep import chain
from gradstep.backends.cpu import compiler
from gradstep.rule.trace import trace as trace_rule
from gradstep.sight.catalogue import is_stage

LR = 0.125
SHAPES = [(), (7,), (6, 5), (4, 3, 2), (3, 2, 3, 3)]


def units(x: Any) -> Any:
    """The dimensions of a unit: all but the first; all of a vector."""
    return tuple(range(1 if x.ndim > 1 else 0, x.ndim))


def unit_norm(x: Any) -> Any:
    return np.sqrt((x * x).sum(axis=units(x), keepdims=True)) if x.ndim else abs(x)


def norm(x: Any) -> float:
    return float(np.sqrt((x * x).sum()))


def clip(g: Any, w: Any) -> Any:
    return g * min(1.0, 0.7 / norm(g)) if norm(g) else g


def block_rms(g: Any, w: Any) -> Any:
    return g / max(1.0, np.sqrt((g * g).mean()) / 0.5)


def adaptive(g: Any, w: Any) -> Any:
    most = 0.3 * np.maximum(unit_norm(w), 1e-3)
    return np.where(unit_norm(g) > most, g * most / np.maximum(unit_norm(g), 1e-6), g)


def cautious_decay(g: Any, w: Any) -> Any:
    return g + 0.2 * (np.sign(g) * np.sign(w) >= 0) * w


def trust(g: Any, w: Any) -> Any:
    if norm(w) == 0 or norm(g) == 0:
        return g
    return g * 0.5 * norm(w) / (norm(g) + 0.01)


def orthogonal(g: Any, w: Any) -> Any:
    left = g - (w * g).sum() / ((w * w).sum() + 1e-30) * w
    return left * norm(g) / (norm(left) + 1e-30)


def without_rescaling(g: Any, w: Any) -> Any:
    return g - (w * g).sum() / ((w * w).sum() + 1e-30) * w


def centralize(g: Any, w: Any) -> Any:
    return g - g.mean(axis=units(g), keepdims=True) if g.ndim > 1 else g


#: Stages without states: (rule, what it makes of gradient and weight).
FORMULAS: dict[str, tuple[gradstep.Rule, Callable[[Any, Any], Any]]] = {
    "clip_by_value": (gradstep.clip_by_value(0.6), lambda g, w: np.clip(g, -0.6, 0.6)),
    "clip_by_norm": (gradstep.clip_by_norm(0.7), clip),
    "clip_by_block_rms": (gradstep.clip_by_block_rms(0.5), block_rms),
    "adaptive_grad_clip": (gradstep.adaptive_grad_clip(0.3), adaptive),
    "decay_weights": (gradstep.decay_weights(0.2), lambda g, w: g + 0.2 * w),
    "independent_decay": (
        gradstep.independent_decay(0.2),
        lambda g, w: g + 0.2 / LR * w,
    ),
    "cautious_decay": (gradstep.cautious_decay(0.2), cautious_decay),
    "scale": (gradstep.scale(0.25), lambda g, w: 0.25 * g),
    "scale_by_sign": (gradstep.scale_by_sign, lambda g, w: np.sign(g)),
    "scale_by_trust_ratio": (
        gradstep.scale_by_trust_ratio(trust_coefficient=0.5, eps=0.01),
        trust,
    ),
    "normalize": (gradstep.normalize, lambda g, w: g / norm(g) if norm(g) else g),
    "centralize": (gradstep.centralize, centralize),
    "orthogonal_gradient": (gradstep.orthogonal_gradient, orthogonal),
    "without rescaling": (gradstep.orthogonal_gradient(rescale=False), without_rescaling),
    "keep_in_range": (
        gradstep.keep_in_range(-0.5, 0.5),
        lambda g, w: (w - np.clip(w - LR * g, -0.5, 0.5)) / LR,
    ),
}


def random(seed: int, shapes: list[Any] = SHAPES) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, dtype=torch.float64, generator=generator) for s in shapes]


@pytest.mark.parametrize("engine", ["fused", "eager"])
@pytest.mark.parametrize("name", FORMULAS)
def test_a_stage_is_its_formula(name: str, engine: str) -> None:
    rule, expected = FORMULAS[name]
    weights = [nn.Parameter(w) for w in random(1)]
    optimizer = gradstep.Optimizer(weights, rule, lr=LR, engine=engine)
    for step in range(3):
        before = [w.detach().numpy().copy() for w in weights]
        gradients = random(10 + step)
        if step == 2:
            gradients = [torch.zeros_like(g) for g in gradients]
        for w, g in zip(weights, gradients, strict=True):
            w.grad = g.clone()
        optimizer.step()
        for w, old, g in zip(weights, before, gradients, strict=True):
            if old.ndim == 0 and rule.name == "orthogonal_gradient":
                continue  # of one number nothing is left but rounding
            wanted = old - LR * expected(g.numpy(), old)
            np.testing.assert_allclose(w.detach().numpy(), wanted, rtol=1e-12, atol=1e-13)
    assert set(optimizer.engines_used().values()) == {engine}


def test_the_norm_over_all_weights() -> None:
    weights = [nn.Parameter(w) for w in random(1)]
    optimizer = gradstep.Optimizer(weights, gradstep.normalize_by_update_norm(3.0), lr=LR)
    gradients = random(2)
    before = [w.detach().clone() for w in weights]
    for w, g in zip(weights, gradients, strict=True):
        w.grad = g
    optimizer.step()
    total = torch.cat([g.flatten() for g in gradients]).norm() + 1e-6
    for w, old, g in zip(weights, before, gradients, strict=True):
        torch.testing.assert_close(w.detach(), old - LR * g * 3 / total, rtol=1e-12, atol=1e-13)


def test_trace_is_torchs_momentum() -> None:
    for nesterov in (False, True):
        ours, theirs = ([nn.Parameter(w) for w in random(1)] for _ in range(2))
        a = gradstep.Optimizer(ours, gradstep.trace(0.8, nesterov=nesterov), lr=LR)
        b = torch.optim.SGD(theirs, lr=LR, momentum=0.8, nesterov=nesterov)
        for step in range(4):
            for w, v, g in zip(ours, theirs, random(step), strict=True):
                w.grad, v.grad = g, g.clone()
            a.step()
            b.step()
        for w, v in zip(ours, theirs, strict=True):
            torch.testing.assert_close(w, v, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("engine", ["fused", "eager"])
@pytest.mark.parametrize("flags", [{}, {"by_mean": True}, {"rescale": False}])
def test_the_cautious_mask_looks_at_the_gradient_before_the_chain(
    flags: dict[str, bool], engine: str
) -> None:
    """Behind a momentum that a clipping and a decay stand before: still the gradient itself."""
    rule = chain(
        gradstep.clip_by_value(0.5),
        gradstep.decay_weights(0.1),
        gradstep.trace(0.9),
        gradstep.cautious(**flags),
    )
    weights = [nn.Parameter(w) for w in random(1)]
    optimizer = gradstep.Optimizer(weights, rule, lr=LR, engine=engine)
    expected = [w.detach().numpy().copy() for w in weights]
    sums = [0 * w for w in expected]
    for step in range(4):
        gradients = random(5 + step)
        for i, (w, g) in enumerate(zip(weights, gradients, strict=True)):
            w.grad = g.clone()
            raw = g.numpy()
            sums[i] = np.clip(raw, -0.5, 0.5) + 0.1 * expected[i] + 0.9 * sums[i]
            mask = (sums[i] * raw > 0).astype(float)
            scale = mask.size / (mask.sum() + 1)
            if flags:
                scale = 1 / max(mask.mean(), 1e-3) if "by_mean" in flags else 1
            expected[i] = expected[i] - LR * sums[i] * mask * scale
        optimizer.step()
    for w, wanted in zip(weights, expected, strict=True):
        np.testing.assert_allclose(w.detach().numpy(), wanted, rtol=1e-12, atol=1e-13)


def test_the_cautious_mask_climbs_where_it_is_told_to() -> None:
    """The gradient that it compares with has the sign that the chain got."""
    up, down = (nn.Parameter(torch.ones(3)) for _ in range(2))
    rule = chain(gradstep.trace(0.9), gradstep.cautious())
    a = gradstep.Optimizer([up], rule, lr=LR, maximize=True)
    b = gradstep.Optimizer([down], rule, lr=LR)
    up.grad, down.grad = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([-1.0, 2.0, -3.0])
    a.step()
    b.step()
    assert torch.equal(up, down) and not torch.equal(up, torch.ones(3))


@pytest.mark.parametrize("engine", ["fused", "eager"])
def test_grafting_takes_the_size_of_the_gradient(engine: str) -> None:
    rule = chain(gradstep.scale(7.0), gradstep.scale_by_sign(), gradstep.graft_to_gradient())
    weights = [nn.Parameter(w) for w in random(1)]
    optimizer = gradstep.Optimizer(weights, rule, lr=LR, engine=engine)
    for gradients in (random(2), [torch.zeros(s, dtype=torch.float64) for s in SHAPES]):
        before = [w.detach().clone() for w in weights]
        for w, g in zip(weights, gradients, strict=True):
            w.grad = g
        optimizer.step()
        for w, old, g in zip(weights, before, gradients, strict=True):
            wanted = old - LR * g.sign() * g.norm() / max(1, g.numel()) ** 0.5
            torch.testing.assert_close(w.detach(), wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has none")
def test_orthogonalize_behind_nesterov_is_muon() -> None:
    ours, theirs = (nn.Parameter(random(1, [(8, 5)])[0].float()) for _ in range(2))
    rule = chain(gradstep.trace(0.95, nesterov=True), gradstep.orthogonalize())
    a = gradstep.Optimizer([ours], rule, lr=0.02)
    b = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.0, momentum=0.95)
    for step in range(3):
        ours.grad = random(step, [(8, 5)])[0].float()
        theirs.grad = ours.grad.clone()
        a.step()
        b.step()
    # torch's average is a lerp, and the iteration divides its size away, in bfloat16.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)


def test_opaque_functions_of_several_shapes_under_a_norm_over_all() -> None:
    """All weights wait for the norm together, whatever their shapes."""
    for order in (1, -1):
        rule = chain(*[gradstep.clip_by_global_norm(1.0), gradstep.orthogonalize()][::order])
        reached = []
        for engine in ("fused", "eager"):
            weights = [nn.Parameter(w) for w in random(1, [(6, 5), (4, 3), (3, 3), (4, 3)])]
            optimizer = gradstep.Optimizer(weights, rule, lr=LR, engine=engine)
            for w, g in zip(weights, random(2, [w.shape for w in weights]), strict=True):
                w.grad = g
            optimizer.step()
            reached.append(weights)
        for a, b in zip(*reached, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


# Behind the step.


@pytest.mark.parametrize(
    "rule", [gradstep.adam(), gradstep.adam(weight_decay=0.1)(decoupled_weight_decay=True)]
)
def test_the_average_follows_the_weights_and_leaves_them_alone(rule: gradstep.Rule) -> None:
    """Also behind a rule that sets the weight outright."""
    alone, beside = ([nn.Parameter(w.float()) for w in random(1)] for _ in range(2))
    a = gradstep.Optimizer(alone, rule, lr=LR)
    b = gradstep.Optimizer(beside, chain(rule, gradstep.average_weights(0.75)), lr=LR)
    averages = [w.detach().clone() for w in beside]
    for step in range(4):
        for w, v, g in zip(alone, beside, random(step), strict=True):
            w.grad, v.grad = g.float(), g.float()
        a.step()
        b.step()
        averages = [torch.lerp(m, w.detach(), 0.25) for m, w in zip(averages, beside, strict=True)]
    for w, v, m in zip(alone, beside, averages, strict=True):
        assert torch.equal(w, v)
        assert torch.equal(b.state[v]["average"], m)


def test_lookahead_goes_back_every_few_steps() -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    rule = chain(gradstep.trace(0.5), gradstep.lookahead(3, 0.25))
    optimizer = gradstep.Optimizer([weight], rule, lr=LR)
    fast = slow = weight.detach().clone()
    buffer = torch.zeros(2, dtype=torch.float64)
    for step in range(1, 9):
        g = random(step, [(2,)])[0]
        weight.grad = g
        optimizer.step()
        buffer = g + 0.5 * buffer
        fast = fast - LR * buffer
        if step % 3 == 0:
            fast = slow = slow + 0.25 * (fast - slow)
        torch.testing.assert_close(weight.detach(), fast, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    "name", sorted(n for n in gradstep.rules.__all__ if is_stage(getattr(gradstep, n)))
)
def test_a_learning_rate_of_zero_changes_no_weight(name: str) -> None:
    rule = getattr(gradstep, name)
    weight = nn.Parameter(torch.tensor([[3.0, -2.0], [0.5, 0.0]]))
    optimizer = gradstep.Optimizer([weight], rule, lr=0.0)
    for gradient in (torch.zeros(2, 2), torch.ones(2, 2)):
        before = weight.detach().clone()
        weight.grad = gradient
        optimizer.step()
        assert torch.equal(weight, before)


def test_what_stands_behind_a_rule_that_sets_the_weight() -> None:
    decoupled = gradstep.adam(weight_decay=0.1, decoupled_weight_decay=True)
    gradstep.Optimizer([torch.zeros(3)], chain(decoupled, gradstep.keep_in_range()))
    with pytest.raises(gradstep.RuleError, match=r"decay_weights follows .* before stages that"):
        gradstep.Optimizer([torch.zeros(3)], chain(decoupled, gradstep.decay_weights()))


def test_what_takes_the_weight_after_the_step_stands_last() -> None:
    for last in (gradstep.average_weights, gradstep.lookahead, gradstep.keep_in_range):
        with pytest.raises(
            ValueError, match=f"adam stands behind {last.name}, .* Put {last.name} l"
        ):
            chain(last, gradstep.adam())
    chain(gradstep.adam(), gradstep.lookahead(), gradstep.average_weights())


# Chains of all kinds.

BEFORE = {
    "clip": gradstep.clip_by_value(0.7),
    "clip_by_norm": gradstep.clip_by_norm(1.5),
    "clip_by_global_norm": gradstep.clip_by_global_norm(2.0),
    "adaptive": gradstep.adaptive_grad_clip(0.3),
    "centralize": gradstep.centralize,
    "orthogonal": gradstep.orthogonal_gradient,
    "l2": gradstep.decay_weights(0.05),
}
RULES = {
    "adam": gradstep.adam(eps=0.1),
    "amsgrad": gradstep.adam(eps=0.1, amsgrad=True),
    "sgd": gradstep.sgd(momentum=0.9, nesterov=True),
    "sign": gradstep.scale_by_sign,
    "trace": gradstep.trace(0.5),
}
BEHIND = {
    "cautious": gradstep.cautious(by_mean=True),
    "cautious_decay": gradstep.cautious_decay(0.05),
    "decay": gradstep.decay_weights(0.05),
    "rms": gradstep.clip_by_block_rms(0.5),
    "trust": gradstep.scale_by_trust_ratio(eps=0.01),
    "scale": gradstep.scale(0.5),
}
LAST = {
    "average": gradstep.average_weights(0.9),
    "lookahead": gradstep.lookahead(2, 0.5),
    "range": gradstep.keep_in_range(-2.0, 2.0),
    "independent": gradstep.independent_decay(0.01),
}


def trained(rule: gradstep.Rule, engine: str, steps: int = 4) -> tuple[Any, gradstep.Optimizer]:
    # No weight of one element: what orthogonal_gradient leaves of it is nothing but rounding.
    weights = [nn.Parameter(w) for w in random(3, SHAPES[1:])]
    optimizer = gradstep.Optimizer(weights, rule, lr=0.05, engine=engine)
    for step in range(steps):
        give(weights, step)
        optimizer.step()
    return weights, optimizer


def give(weights: Any, step: int) -> None:
    for w, g in zip(weights, random(20 + step, SHAPES[1:]), strict=True):
        w.grad = g.to(w.dtype)


@settings(max_examples=10)
@given(
    before=st.lists(st.sampled_from(sorted(BEFORE)), max_size=2),
    rule=st.sampled_from(sorted(RULES)),
    behind=st.lists(st.sampled_from(sorted(BEHIND)), max_size=2),
    last=st.lists(st.sampled_from(sorted(LAST)), max_size=2, unique=True),
)
def test_any_chain_is_the_same_fused_and_eager(
    before: list[str], rule: str, behind: list[str], last: list[str]
) -> None:
    last = sorted(last, key=lambda name: name != "independent")  # which takes a direction
    stages = [*(BEFORE[n] for n in before), RULES[rule], *(BEHIND[n] for n in behind)]
    whole = chain(*stages, *(LAST[n] for n in last))
    fused, optimizer = trained(whole, "fused")
    eager, twin = trained(whole, "eager")
    assert set(optimizer.engines_used().values()) == {"fused"}
    for a, b in zip(fused, eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
        for name, state in optimizer.state[a].items():
            torch.testing.assert_close(state, twin.state[b][name], rtol=1e-10, atol=1e-10)


EVERYTHING = chain(
    gradstep.clip_by_global_norm(2.0),
    gradstep.adaptive_grad_clip(0.3),
    gradstep.centralize(),
    gradstep.adam(),
    gradstep.cautious(),
    gradstep.cautious_decay(0.1),
    gradstep.scale_by_trust_ratio(),
    gradstep.lookahead(2),
    gradstep.average_weights(0.9),
    gradstep.keep_in_range(-2.0, 2.0),
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_in_other_dtypes_too(dtype: torch.dtype) -> None:
    """No stage leaves a wider number behind that the next cannot take."""
    reached = []
    for engine in ("fused", "eager"):
        weights = [nn.Parameter(w.to(dtype)) for w in random(3, SHAPES[1:])]
        optimizer = gradstep.Optimizer(weights, EVERYTHING, lr=0.05, engine=engine)
        for step in range(4):
            give(weights, step)
            optimizer.step()
        assert set(optimizer.engines_used().values()) == {engine}
        reached.append(weights)
    for a, b in zip(*reached, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=64 * torch.finfo(dtype).eps)


@pytest.mark.deep
def test_the_engine_of_torch_compile_agrees() -> None:
    rule = chain(
        gradstep.clip_by_norm(1.0),
        gradstep.adam(),
        gradstep.cautious(),
        gradstep.cautious_decay(0.1),
        gradstep.lookahead(2),
        gradstep.average_weights(0.9),
    )
    reached = []
    for engine in ("fused", "compile"):
        weights = [nn.Parameter(w.float()) for w in random(3, [(6, 5), (7,)])]
        optimizer = gradstep.Optimizer(weights, rule, lr=0.05, engine=engine)
        for step in range(3):
            for w, g in zip(weights, random(20 + step, [(6, 5), (7,)]), strict=True):
                w.grad = g.float()
            optimizer.step()
        assert set(optimizer.engines_used().values()) == {engine}
        reached.append([t for w in weights for t in (w, optimizer.state[w]["average"])])
    for a, b in zip(*reached, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_a_chain_of_elementwise_stages_is_one_pass() -> None:
    rule = chain(
        gradstep.clip_by_value(0.3),
        gradstep.decay_weights(0.05),
        gradstep.adam(),
        gradstep.cautious(rescale=False),
        gradstep.cautious_decay(0.01),
        gradstep.scale(0.5),
        gradstep.lookahead(),
        gradstep.keep_in_range(),
        gradstep.average_weights(),
    )
    graph = trace_rule(rule, {**rule.hyperparameters, "lr": 1e-3})
    assert graph.is_elementwise
    compiled = len(compiler._functions)
    _, optimizer = trained(rule, "fused")
    assert set(optimizer.engines_used().values()) == {"fused"}
    # Beside it the two small functions that read and raise numbers, if nobody had them yet.
    assert len(compiler._functions) - compiled <= 2


WHOLE = chain(
    gradstep.clip_by_global_norm(2.0),
    gradstep.adaptive_grad_clip(0.3),
    gradstep.adam(),
    gradstep.cautious(),
    gradstep.decay_weights(0.05),
    gradstep.lookahead(3),
    gradstep.average_weights(0.9),
)


def test_a_chain_resumes_and_is_copied_bit_for_bit() -> None:
    weights, optimizer = trained(WHOLE, "fused")
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    loaded = [nn.Parameter(w.detach().clone()) for w in weights]
    resumed = gradstep.Optimizer(loaded, WHOLE, lr=0.7)
    resumed.load_state_dict(torch.load(file))
    copied = copy.deepcopy((weights, optimizer))
    pickled = pickle.loads(pickle.dumps((weights, optimizer)))
    for step in range(4, 8):
        for others, other in ((weights, optimizer), (loaded, resumed), copied, pickled):
            give(others, step)
            other.step()
    for others, other in ((loaded, resumed), copied, pickled):
        for a, b in zip(weights, others, strict=True):
            assert torch.equal(a, b)
            for name, state in optimizer.state[a].items():
                assert torch.equal(state, other.state[b][name])


def test_groups_and_a_scheduler_with_a_chain() -> None:
    """Each group its own numbers, and torch's scheduler over lr, as two optimizers apart."""
    rule = chain(gradstep.trace(0.9), gradstep.cautious(), gradstep.decay_weights(0.1))
    together, apart = (nn.ParameterList(random(3)[1:3]) for _ in range(2))
    groups = [{"params": [together[0]], "weight_decay": 0.0}, {"params": [together[1]], "lr": 0.5}]
    optimizers: list[Any] = [gradstep.Optimizer(groups, rule, lr=0.1)]
    optimizers.append(gradstep.Optimizer([apart[0]], rule, lr=0.1, weight_decay=0.0))
    optimizers.append(gradstep.Optimizer([apart[1]], rule, lr=0.5))
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in optimizers]
    for step in range(4):
        for model in (together, apart):
            for w, g in zip(model, random(step)[1:3], strict=True):
                w.grad = g
        for each in (*optimizers, *schedulers):
            each.step()
    assert all(map(torch.equal, together, apart))
    assert optimizers[0].param_groups[1]["lr"] == 0.5 * 0.5**4
