"""States in a shape of their own, which opaque functions take and return."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

import gradstep
from gradstep.rule.formula import formula
from gradstep.rule.graph import in_order
from gradstep.rule.trace import trace
from gradstep.sight.catalogue import graph_with

SHAPES = ((5, 3), (5, 3), (2, 7), (4,), (5, 3))


def square(shape: tuple[int, ...], share: float) -> tuple[int, int]:
    return (max(1, int(shape[0] * share)),) * 2


@gradstep.opaque(returns=("x", "factor"))
def whiten(x: Tensor, factor: Tensor, decay: float, size: float) -> tuple[Tensor, Tensor]:
    """x multiplied by the root of the average of its rows' products."""
    rows = x.reshape(len(x), x.shape[1], -1)[:, : factor.shape[-1]]
    factor = factor.mul_(decay) + (1 - decay) * rows @ rows.mT
    trace = factor.diagonal(dim1=-2, dim2=-1).sum(-1)
    return x / (1 + trace.view(-1, *[1] * (x.dim() - 1))), factor


@gradstep.opaque(returns=("seen",))
def count(x: Tensor, seen: Tensor) -> Tensor:
    return seen + x.shape[1]


@gradstep.opaque(returns=("total",))
def gather(factor: Tensor, total: Tensor, by: float) -> Tensor:
    """Two tensors of their own shape alone."""
    return total + by * factor.abs().sum((-2, -1), keepdim=True).squeeze(-1)


@gradstep.rule
def whitened(
    g: Any,
    momentum: Any,
    factor: Any = gradstep.shaped(square, "share"),
    seen: Any = gradstep.shaped(lambda shape: (1,), when="counts"),
    total: Any = gradstep.shaped(lambda shape: (1,)),
    *,
    decay: float = 0.9,
    share: float = 1.0,
    counts: bool = True,
) -> Any:
    momentum = decay * momentum + g
    direction, factor = whiten(momentum, factor, decay, share)
    total = gather(factor, total, 0.5)
    if seen is not None:
        seen = count(direction, seen)
    return direction * 2, momentum, factor, seen, total


def weights(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=random).to(dtype) for shape in SHAPES]


def optimizer_for(dtype: torch.dtype = torch.float32, **options: Any) -> gradstep.Optimizer:
    named = [(f"w{i}", w.requires_grad_()) for i, w in enumerate(weights(dtype))]
    return gradstep.Optimizer(named, whitened, **{"lr": 0.1, **options})


def step(optimizer: torch.optim.Optimizer, number: int) -> None:
    random = torch.Generator().manual_seed(number + 10)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.randn(p.shape, generator=random).to(p.dtype)
    optimizer.step()


def everything(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    held = [p for group in optimizer.param_groups for p in group["params"]]
    return [*held, *(t for p in held for t in optimizer.state[p].values())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_formula_in_every_engine(dtype: torch.dtype) -> None:
    """Equal shapes go through the functions together, and each is as if it were alone."""
    fused, eager = optimizer_for(dtype), optimizer_for(dtype, engine="eager")
    for number in range(4):
        step(fused, number)
        step(eager, number)
    assert set(fused.engines_used().values()) == {"fused"}
    for a, b in zip(everything(fused), everything(eager), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=4 * torch.finfo(a.dtype).eps, atol=1e-6)
    if dtype != torch.float64:
        return
    w, m, f, total = weights(dtype)[0].numpy().copy(), 0.0, numpy.zeros((5, 5)), 0.0
    for number in range(4):
        random = torch.Generator().manual_seed(number + 10)
        g = torch.randn(5, 3, generator=random).double().numpy()
        m = 0.9 * m + g
        f = 0.9 * f + 0.1 * m @ m.T
        total += 0.5 * numpy.abs(f).sum()
        w = w - 0.1 * 2 * m / (1 + numpy.trace(f))
    state = fused.state[fused.param_groups[0]["params"][0]]
    numpy.testing.assert_allclose(fused.param_groups[0]["params"][0].detach().numpy(), w, 1e-13)
    numpy.testing.assert_allclose(state["factor"].numpy(), f, 1e-13)
    assert float(state["total"]) == pytest.approx(total, 1e-13) and float(state["seen"]) == 20


@gradstep.opaque
def divided(x: Tensor, by: float, offset: float) -> Tensor:
    return x / (by + offset)


@gradstep.rule
def by_its_norm(g: Any, length: Any = gradstep.number(0.0), *, eps: float = 0.5) -> Any:
    length = gradstep.norm(g - gradstep.mean(g))
    return divided(g, length, eps), length


@pytest.mark.parametrize("engine", ["fused", "eager"])
def test_a_function_is_given_what_is_known_of_a_tensor(engine: str) -> None:
    """A number that takes two passes, other for each of a batch."""
    held = [w.double().requires_grad_() for w in weights()]
    optimizer = gradstep.Optimizer(held, by_its_norm, lr=1.0, engine=engine)
    before = [w.detach().clone() for w in held]
    step(optimizer, 0)
    for w, start in zip(held, before, strict=True):
        assert w.grad is not None
        length = (w.grad - w.grad.mean()).norm()
        torch.testing.assert_close(w.detach(), start - w.grad / (length + 0.5))
        assert float(optimizer.state[w]["length"]) == pytest.approx(float(length))


def test_states_are_wide_also_for_weights_of_few_bits() -> None:
    optimizer = optimizer_for(torch.bfloat16)
    step(optimizer, 0)
    state = optimizer.state[optimizer.param_groups[0]["params"][0]]
    kinds = {name: (t.dtype, tuple(t.shape)) for name, t in state.items()}
    assert kinds == {
        "momentum": (torch.bfloat16, (5, 3)),
        "factor": (torch.float32, (5, 5)),
        "seen": (torch.float32, (1,)),
        "total": (torch.float32, (1,)),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("engine", ["fused", "eager"])
def test_resumed_to_the_bit(dtype: torch.dtype, engine: str) -> None:
    """torch converts states to their weight's type on the way; these keep their own."""
    whole = optimizer_for(dtype, engine=engine)
    for number in range(3):
        step(whole, number)
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    resumed = optimizer_for(dtype, engine=engine)
    with torch.no_grad():
        for p, q in zip(
            resumed.param_groups[0]["params"], whole.param_groups[0]["params"], strict=True
        ):
            p.copy_(q)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    copied = copy.deepcopy(whole)
    for number in range(3, 6):
        for optimizer in (whole, resumed, copied):
            step(optimizer, number)
    for a, b, c in zip(*map(everything, (whole, resumed, copied)), strict=True):
        assert torch.equal(a, b) and torch.equal(a, c) and a.dtype == b.dtype


def test_in_a_chain_hyperparameters_have_other_names() -> None:
    rule = gradstep.chain(whitened, gradstep.decay_weights(0.1), whitened(share=0.5))
    assert {"whitened_factor", "whitened2_factor"} <= set(rule.states)
    weight = torch.ones(6, 2, requires_grad=True)
    optimizer = gradstep.Optimizer([weight], rule, lr=0.1, whitened_share=1.0)
    step(optimizer, 0)
    state = optimizer.state[weight]
    assert state["whitened_factor"].shape == (6, 6) and state["whitened2_factor"].shape == (3, 3)


def test_bad_states_are_named_and_nothing_moves() -> None:
    optimizer = optimizer_for()
    step(optimizer, 0)
    second = optimizer.param_groups[0]["params"][1]
    for wrong, said in (
        (torch.zeros(4, 4), "is float32 4×4 on cpu"),
        (torch.zeros(5, 5, dtype=torch.float64), "is float64 5×5"),
    ):
        good = optimizer.state[second]["factor"]
        optimizer.state[second]["factor"] = wrong
        before = [t.clone() for t in everything(optimizer)]
        with pytest.raises(ValueError, match="state 'factor' of w1") as caught:
            step(optimizer, 1)
        assert said in str(caught.value)
        assert all(map(torch.equal, before, everything(optimizer)))
        optimizer.state[second]["factor"] = good
    optimizer.param_groups[0]["share"] = 0.5  # a shape may not change once it is there
    with pytest.raises(ValueError, match="state 'factor' of w0"):
        step(optimizer, 1)


def test_a_checkpoint_of_another_shape() -> None:
    small, large = optimizer_for(share=0.5), optimizer_for()
    step(small, 0)
    kept = small.state_dict()
    for group in kept["param_groups"]:
        group["share"] = 1.0
    with pytest.raises(ValueError, match="its factor of w0 is float32 2×2"):
        large.load_state_dict(kept)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (lambda g, s: (g * s, s), "calculates with the state s, which has a shape of its own"),
        (lambda g, s: (g, gradstep.sqrt(s)), "Only functions with @gradstep.opaque"),
        (lambda g, s: (gradstep.norm(s) * g, s), "calculates with the state s"),
        (lambda g, s: (s, s), "returned a tensor of another shape for its direction"),
        (lambda g, s: (g, g), "returned a tensor for its s, which comes from an opaque function"),
        (lambda g, s: (g, count(g, g)), "a second tensor of the weight's shape"),
        (lambda g, s: (g, count(g, 1.0)), "takes the place of argument 2 too"),
        (lambda g, s: (g, gather(s, 0.5, s)), "with numbers before a tensor"),
        (lambda g, s: (g, gather(0.5, s, s)), "calls gather with a number"),
    ],
)
def test_what_a_rule_cannot_do_with_them(body: Any, problem: str) -> None:
    @gradstep.rule
    def wrong(g: Any, s: Any = gradstep.shaped(lambda shape: (2,))) -> Any:
        return body(g, s)

    with pytest.raises(gradstep.RuleError) as caught:
        trace(wrong, {"lr": 0.1})
    assert problem in str(caught.value)


def test_bad_functions() -> None:
    with pytest.raises(ValueError, match="has no argument 'z' to return anew"):
        gradstep.opaque(returns=("z",))(lambda x: x)
    with pytest.raises(ValueError, match="name them in order"):
        gradstep.opaque(returns=("y", "x"))(lambda x, y: (y, x))
    with pytest.raises(ValueError, match="it can be 'vector' or 'matrix'"):
        gradstep.shaped(lambda shape: shape, only="row")
    one = gradstep.opaque(returns=("x", "y"))(lambda x, y: x)
    with pytest.raises(ValueError, match=r"returned 1 tensor\(s\) and must return 2"):
        one(torch.ones(2), torch.ones(3))
    flat = gradstep.opaque(returns=("y",))(lambda x, y: y.sum(1))
    with pytest.raises(ValueError, match="it must return the shape that it got"):
        flat(torch.ones(2), torch.ones(3))


def test_the_formula_says_which_of_several_it_is() -> None:
    graph = graph_with(whitened)
    lines = [str(line) for line in formula(graph).lines]
    assert "factor ← whiten(momentum, factor, decay, share).factor" in lines
    assert "direction ← whiten(momentum, factor, decay, share).x" in lines
    assert "seen ← count(direction, seen)" in lines
    assert "total ← gather(factor, total, 0.5)" in lines
    assert r"\mathrm{factor}\right)" not in formula(graph).lines[0].latex
    latex = next(line.latex for line in formula(graph).lines if line.name == "factor")
    assert latex.endswith("_{\\mathrm{factor}}")
    assert any(node.operation == "part" for node in in_order(graph.outputs()))


@pytest.mark.parametrize("engine", ["fused", "eager"])
def test_an_explained_step(engine: str) -> None:
    """Matrices have no entry for one weight; all else is explained to the last bit."""
    optimizer = optimizer_for(engine=engine)
    step(optimizer, 0)
    explanation = gradstep.explain(optimizer, "w0", index=(2, 1))
    step(optimizer, 1)
    (account,) = explanation.accounts
    if engine == "fused":
        assert account.agrees
    text = explanation.text()
    assert "direction ← whiten(momentum, factor, decay, share).x" in text
    assert "factor ←" not in text


CALLED: list[tuple[int, float]] = []


@gradstep.opaque(returns=("x", "kept"), due=lambda step, place: (step + place) % 3 == 0)
def renew(x: Tensor, kept: Tensor, step: float, place: float) -> tuple[Tensor, Tensor]:
    CALLED.append((len(x), step))
    return x * 2, kept + step


@gradstep.rule
def renewed(
    g: Any,
    kept: Any = gradstep.shaped(lambda shape: (2,)),
    place: Any = gradstep.place(),
    *,
    step: Any,
) -> Any:
    direction, kept = renew(g, kept, step, place)
    return direction, kept, place


def renewing(shapes: list[tuple[int, ...]], **options: Any) -> gradstep.Optimizer:
    named = [(f"w{i}", torch.zeros(shape, requires_grad=True)) for i, shape in enumerate(shapes)]
    return gradstep.Optimizer(named, renewed, lr=1.0, **options)


def pull(optimizer: gradstep.Optimizer) -> list[float]:
    """Take a step with gradients of 1; how far each weight went."""
    weights = optimizer.param_groups[0]["params"]
    before = [w.detach().clone() for w in weights]
    for w in weights:
        w.grad = torch.ones_like(w)
    optimizer.step()
    return [float((a - b).mean()) for a, b in zip(before, weights, strict=True)]


@pytest.mark.parametrize("engine", ["fused", "eager"])
def test_a_function_is_called_when_it_is_due_and_each_weight_has_its_place(engine: str) -> None:
    optimizer = renewing([(3,), (4, 2), (5, 3), (3,), (4, 2)], engine=engine)
    CALLED.clear()
    went = [pull(optimizer) for _ in range(3)]
    entries = [optimizer.state[w] for w in optimizer.param_groups[0]["params"]]
    assert [float(e["place"]) for e in entries] == [3, 1, 0, 4, 2]  # the largest first
    # What is not due leaves the gradient, and the state, as they are.
    assert went == [[1, 1, 1, 1, 2], [1, 2, 1, 2, 1], [2, 1, 2, 1, 1]]
    assert [e["kept"].tolist() for e in entries] == [[3, 3], [2, 2], [3, 3], [2, 2], [1, 1]]
    assert sorted(CALLED) == [(1, 1), (1, 2), (1, 2), (1, 3), (1, 3)]


def test_a_place_goes_with_its_weight_into_another_order() -> None:
    first, second = renewing([(3,), (3,)]), renewing([(3,), (3,)])
    pull(first)
    saved = first.state_dict()
    names = saved["param_groups"][0]["param_names"]
    saved["param_groups"][0]["param_names"] = names[::-1]
    second.load_state_dict(saved)
    went = [pull(optimizer) for optimizer in (first, second)]
    assert went[0] == went[1][::-1] == [1, 2]


def test_functions_without_an_optimizer_are_due_too() -> None:
    params = {"a": torch.zeros(3), "b": torch.zeros(4, 2)}
    state = renewed.init(params)
    assert [float(state[n]["place"]) for n in params] == [1, 0]
    gradients = {n: torch.ones_like(p) for n, p in params.items()}
    for lengths in ((1, 1), (2, 1), (1, 2)):
        after, state = renewed.update(gradients, state, params, lr=1.0)
        assert [float((params[n] - after[n]).mean()) for n in params] == list(lengths)
