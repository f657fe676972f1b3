"""Sophia: estimates of the Hessian's diagonal, and how they get into the optimizer."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy

import gradstep
from gradstep.lab.digits import load_digits
from references.adahessian import adahessian
from references.sophia import sophia

OPTIONS = {"lr": 0.01, "betas": (0.75, 0.5), "rho": 0.5, "weight_decay": 0.125}


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def held(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [nn.Parameter(normal(1, 3, 4, dtype=dtype)), nn.Parameter(normal(2, 5, dtype=dtype))]


def give_gradients(params: list[nn.Parameter], seed: int) -> None:
    for place, p in enumerate(params):
        p.grad = normal(100 * seed + place, *p.shape).to(p.dtype)


def step(optimizer: Any, params: list[nn.Parameter], seed: int) -> None:
    give_gradients(params, seed)
    optimizer.step()


# The average.


@pytest.mark.parametrize("engine", ["fused", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_as_the_formula_with_estimates(engine: str, dtype: torch.dtype) -> None:
    """Large curvatures, small ones and negative ones, before the first step and between others."""
    w = nn.Parameter(normal(0, 50, dtype=dtype))
    gradients = [normal(10 + t, 50, dtype=dtype) for t in range(25)]
    estimates = {t: 10 * normal(90 + t, 50, dtype=dtype) for t in (0, 7, 14, 15)}
    optimizer = gradstep.Sophia([w], **OPTIONS, engine=engine)
    arrays = {t: e.double().numpy() for t, e in estimates.items()}
    start = w.detach().double().numpy()
    expected = list(sophia(start, (g.double().numpy() for g in gradients), arrays, **OPTIONS))
    unclipped = 0
    for t, g in enumerate(gradients):
        if t in estimates:
            optimizer.update_hessian([estimates[t]])
        w.grad = g
        before = w.detach().double() * (1 - OPTIONS["lr"] * OPTIONS["weight_decay"])
        optimizer.step()
        unclipped += int(((w - before).abs() < 0.99 * OPTIONS["lr"]).sum())
        rounding = 50 * torch.finfo(dtype).eps
        numpy.testing.assert_allclose(w.detach().double(), expected[t], rtol=0, atol=rounding)
    assert unclipped > 200


def test_the_squares_of_the_gradients_are_the_estimate() -> None:
    params = held()
    optimizer = gradstep.Sophia(params, **OPTIONS)
    step(optimizer, params, 1)
    give_gradients(params, 2)
    params[1].grad = None
    optimizer.update_hessian(batch_size=16)
    first, second = (optimizer.state[p]["hessian"] for p in params)
    torch.testing.assert_close(first, 0.5 * 16 * params[0].grad.square())
    assert not second.any()
    optimizer.update_hessian(batch_size=16)
    torch.testing.assert_close(first, 0.75 * 16 * params[0].grad.square())


def test_a_step_leaves_the_average_as_it_is() -> None:
    params = held()
    optimizer = gradstep.Sophia(params, **OPTIONS)
    optimizer.update_hessian([normal(5, 3, 4), normal(6, 5)])
    before = [optimizer.state[p]["hessian"].clone() for p in params]
    for seed in range(5):
        step(optimizer, params, seed)
    for p, h in zip(params, before, strict=True):
        assert torch.equal(optimizer.state[p]["hessian"], h)


def test_without_an_estimate_every_weight_moves_by_a_sign() -> None:
    params = held()
    starts = [p.detach().clone() for p in params]
    optimizer = gradstep.Sophia(params, lr=0.5, weight_decay=0.0)
    step(optimizer, params, 1)
    for p, start in zip(params, starts, strict=True):
        torch.testing.assert_close(p.detach(), start - 0.5 * p.grad.sign())


def test_by_parameter_in_order_or_left_out() -> None:
    found = []
    estimate = normal(5, 5)
    for form in ("mapping", "sequence", "iterator"):
        params = held()
        optimizer = gradstep.Sophia(params, **OPTIONS)
        forms: dict[str, Any] = {
            "mapping": {params[1]: estimate},
            "sequence": (None, estimate),
            "iterator": iter([None, estimate]),
        }
        optimizer.update_hessian(forms[form])
        assert params[0] not in optimizer.state
        found.append(optimizer.state[params[1]]["hessian"])
    torch.testing.assert_close(found[0], 0.5 * estimate)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_each_group_has_its_own_beta2() -> None:
    first, second = held()
    groups = [{"params": [first]}, {"params": [second], "betas": (0.9, torch.tensor(0.75))}]
    optimizer = gradstep.Sophia(groups, **OPTIONS)
    optimizer.update_hessian([torch.ones(3, 4), torch.ones(5)])
    assert optimizer.state[first]["hessian"].unique().tolist() == [0.5]
    assert optimizer.state[second]["hessian"].unique().tolist() == [0.25]


def test_maximize_takes_the_negative_of_what_is_climbed() -> None:
    """Climbing minus a loss is descending it."""
    ways = []
    for sign in (1, -1):
        params = held()
        optimizer = gradstep.Sophia(params, **OPTIONS, maximize=sign < 0)
        optimizer.update_hessian([sign * normal(5, 3, 4).abs(), sign * normal(6, 5).abs()])
        for seed in range(3):
            give_gradients(params, seed)
            for p in params:
                p.grad = sign * p.grad
            optimizer.step()
        ways.append([p.detach() for p in params])
    assert all(map(torch.equal, *ways))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_averaged_in_32(dtype: torch.dtype) -> None:
    w = nn.Parameter(torch.ones(64, dtype=dtype))
    optimizer = gradstep.Sophia([w], betas=(0.9, 0.75))
    estimate = normal(3, 64)
    optimizer.update_hessian([estimate])
    first = optimizer.state[w]["hessian"]
    assert first.dtype == dtype and torch.equal(first, (0.25 * estimate).to(dtype))
    w.grad = torch.full_like(w, 2.0**-7)  # whose square float16 has no more
    before = first.clone()
    optimizer.update_hessian(batch_size=3)
    after = torch.lerp(before.float(), torch.tensor(3 * 2.0**-14), 0.25)
    assert torch.equal(optimizer.state[w]["hessian"], after.to(dtype))


def test_complex_weights_are_pairs() -> None:
    start = torch.complex(normal(1, 6), normal(2, 6))
    whole = nn.Parameter(start.clone())
    pairs = nn.Parameter(torch.view_as_real(start).clone())
    one, two = gradstep.Sophia([whole], **OPTIONS), gradstep.Sophia([pairs], **OPTIONS)
    for seed in range(4):
        g = torch.complex(normal(10 + seed, 6), normal(20 + seed, 6))
        whole.grad, pairs.grad = g, torch.view_as_real(g).clone()
        one.update_hessian(batch_size=4)
        two.update_hessian(batch_size=4)
        one.step(), two.step()
    assert torch.equal(torch.view_as_real(whole.detach()), pairs.detach())


def test_other_layouts_take_estimates_by_place() -> None:
    w = nn.Parameter(normal(1, 6, 3, 2, 2).to(memory_format=torch.channels_last))
    plain = nn.Parameter(w.detach().contiguous())
    for p in (w, plain):
        optimizer = gradstep.Sophia([p], **OPTIONS)
        optimizer.update_hessian([normal(2, 6, 3, 2, 2)])
        p.grad = normal(3, 6, 3, 2, 2)
        optimizer.step()
    assert torch.equal(w, plain)


def test_in_a_chain_with_other_betas_and_in_an_average_of_weights() -> None:
    w = nn.Parameter(normal(1, 5))
    rule = gradstep.chain(gradstep.clip_by_value(0.5), gradstep.adam(), gradstep.sophia(beta2=0.5))
    optimizer = gradstep.HessianOptimizer([w], rule, lr=0.1)
    optimizer.update_hessian([torch.ones(5)])
    assert optimizer.state[w]["hessian"].unique().tolist() == [0.5]
    w.grad = normal(2, 5)
    optimizer.step()
    inner = gradstep.Sophia([w], **OPTIONS)
    outer = gradstep.EMA(inner)
    inner.update_hessian([torch.ones(5)])
    outer.step()
    assert inner.state[w]["hessian"].unique().tolist() == [0.5]
    assert "average" in inner.state[w]


def test_a_differentiable_step_does_not_mind_a_later_estimate() -> None:
    w = nn.Parameter(normal(1, 5))
    optimizer = gradstep.Sophia([w.clone()], **OPTIONS, differentiable=True)
    (p,) = optimizer.param_groups[0]["params"]
    optimizer.update_hessian([torch.ones(5)])
    p.grad = (w * w).detach().requires_grad_()
    optimizer.step()
    optimizer.update_hessian([torch.full((5,), 3.0)])
    assert optimizer.state[p]["hessian"].unique().tolist() == [1.75]
    p.sum().backward()


# What is refused, before anything is written.


def refused(change: Callable[[Any, list[nn.Parameter]], None]) -> str:
    params = held()
    optimizer = gradstep.Sophia(zip(("first", "second"), params, strict=True), **OPTIONS)
    optimizer.update_hessian([torch.ones(3, 4), torch.ones(5)])
    give_gradients(params, 1)
    before = copy.deepcopy(optimizer.state_dict()["state"])
    with pytest.raises((TypeError, ValueError, RuntimeError)) as caught:
        change(optimizer, params)
    after = optimizer.state_dict()["state"]
    for key, entry in before.items():
        assert all(torch.equal(entry[name], after[key][name]) for name in entry)
    return f"{caught.type.__name__}: {caught.value}"


def test_estimates_that_do_not_fit_are_refused() -> None:
    good, nan = torch.ones(3, 4), torch.full((5,), torch.nan)
    cases: list[tuple[Any, str]] = [
        ([good], "ValueError: there are 1 estimates for 2 parameters"),
        ([good, torch.ones(4)], "ValueError: the estimate of the Hessian for second is float32 4"),
        ([good, torch.ones(5).long()], "TypeError: the estimate of the Hessian for second is int"),
        ([good, torch.ones(5).double()], "TypeError: the estimate of the Hessian for second"),
        ([good, 1.0], "TypeError: the estimate of the Hessian for second is a float"),
        ([good, nan], "ValueError: the estimate of the Hessian for second holds inf or nan"),
        ([good, nan / 0], "second holds inf or nan"),
        ({torch.ones(3): good}, "float32 3 on cpu, which is no parameter of the optimizer"),
        ({"first": good}, "'first', which is no parameter of the optimizer"),
        (good, "TypeError: estimates is a Tensor"),
        (7, "TypeError: estimates is a int"),
    ]
    for estimates, words in cases:
        assert words in refused(lambda o, _, e=estimates: o.update_hessian(e)), words
    assert "batch_size is for the squares" in refused(
        lambda o, _: o.update_hessian([good, torch.ones(5)], batch_size=2)
    )


def test_gradients_that_do_not_fit_are_refused() -> None:
    assert "TypeError: update_hessian() squares the gradients" in refused(
        lambda o, _: o.update_hessian()
    )
    for batch_size in (0, -1, float("nan")):
        assert "ValueError: Invalid batch_size" in refused(
            lambda o, _, b=batch_size: o.update_hessian(batch_size=b)
        )

    def without(optimizer: Any, params: list[nn.Parameter]) -> None:
        optimizer.zero_grad()
        optimizer.update_hessian(batch_size=2)

    assert "RuntimeError: update_hessian() got no estimates, and no parameter" in refused(without)

    def too_large(optimizer: Any, params: list[nn.Parameter]) -> None:
        params[1].grad = torch.full((5,), 1e30)  # whose square is inf
        optimizer.update_hessian(batch_size=2)

    assert "second holds inf or nan" in refused(too_large)

    def sparse(optimizer: Any, params: list[nn.Parameter]) -> None:
        params[1].grad = torch.ones(5).to_sparse()
        optimizer.update_hessian(batch_size=2)

    assert "no sparse gradients, and second has one" in refused(sparse)


def test_a_state_that_does_not_fit_is_refused() -> None:
    params = held()
    optimizer = gradstep.Sophia(params, **OPTIONS)
    optimizer.update_hessian([torch.ones(3, 4), torch.ones(5)])
    optimizer.state[params[1]]["hessian"] = torch.ones(4)
    with pytest.raises(ValueError, match=r"state 'hessian' of parameter 1 .* is float32 4"):
        optimizer.update_hessian([torch.ones(3, 4), torch.ones(5)])
    assert optimizer.state[params[0]]["hessian"].unique().tolist() == [0.5]


def test_a_rule_without_such_a_state_is_refused() -> None:
    w = nn.Parameter(torch.ones(3))
    optimizer = gradstep.HessianOptimizer([w], gradstep.adam())
    with pytest.raises(TypeError, match=r"adam has no state hessian .* gradstep.sophia"):
        optimizer.update_hessian([torch.ones(3)])


def test_a_chain_that_begins_with_its_first_gradient_needs_a_step_before() -> None:
    @gradstep.rule
    def change(g: Any, before: Any = gradstep.copy_of_gradient()) -> Any:
        return 2 * g - before, g

    w = nn.Parameter(torch.ones(3))
    optimizer = gradstep.HessianOptimizer([w], gradstep.chain(change, gradstep.sophia()))
    with pytest.raises(RuntimeError, match="Make a step before the first update_hessian"):
        optimizer.update_hessian([torch.ones(3)])
    assert not optimizer.state
    w.grad = torch.ones(3)
    optimizer.step()
    optimizer.update_hessian([torch.ones(3)])


# Checkpoints.


@pytest.mark.parametrize("begun", [0, 4])
def test_a_resumed_training_has_the_same_bits(begun: int) -> None:
    """Saved right behind an estimate, before the first step as well as later."""

    def go_on(optimizer: Any, params: list[nn.Parameter], start: int, end: int) -> None:
        for t in range(start, end):
            if t % 4 == 0:
                optimizer.update_hessian([100 * normal(70 + t, *p.shape) for p in params])
            if t == begun and start <= begun and end == begun + 1:
                return
            step(optimizer, params, t)

    whole = held()
    go_on(gradstep.Sophia(whole, **OPTIONS), whole, 0, 12)
    cut = held()
    optimizer = gradstep.Sophia(cut, **OPTIONS)
    go_on(optimizer, cut, 0, begun + 1)
    file = io.BytesIO()
    torch.save([[p.detach() for p in cut], optimizer.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    resumed = [nn.Parameter(w) for w in weights]
    optimizer = gradstep.Sophia(resumed, **OPTIONS)
    optimizer.load_state_dict(state)
    step(optimizer, resumed, begun)
    go_on(optimizer, resumed, begun + 1, 12)
    assert all(map(torch.equal, whole, resumed))


# Hutchinson's estimate.


def test_hutchinson_is_exact_where_no_weights_are_coupled() -> None:
    w, v = nn.Parameter(normal(1, 3, 4)), nn.Parameter(normal(2, 5))
    linear, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    loss = (w**4).sum() + v.exp().sum() + linear.sum()
    w.grad = torch.ones(3, 4)
    first, second, third, fourth = gradstep.hutchinson(loss, iter([w, v, linear, unused]))
    torch.testing.assert_close(first, 12 * w.detach() ** 2)
    torch.testing.assert_close(second, v.detach().exp())
    assert not third.any() and third.shape == (2,)
    assert not fourth.any() and fourth.shape == (3,)
    assert torch.equal(w.grad, torch.ones(3, 4)) and v.grad is None
    assert not any(e.requires_grad for e in (first, second, third, fourth))


def test_hutchinson_has_the_diagonal_for_its_mean() -> None:
    matrix = normal(3, 6, 6).double()
    matrix = matrix + matrix.T
    w = nn.Parameter(normal(4, 6).double())
    random = torch.Generator().manual_seed(0)
    draws = torch.stack(
        [gradstep.hutchinson(w @ matrix @ w / 2, [w], random)[0] for _ in range(2000)]
    )
    beside = (matrix.square().sum(1) - matrix.diag() ** 2).sqrt()
    torch.testing.assert_close(draws.std(0), beside, rtol=0.1, atol=0)
    assert ((draws.mean(0) - matrix.diag()).abs() < 4 * beside / 2000**0.5).all()


def test_hutchinson_of_complex_weights_is_that_of_their_parts() -> None:
    w = nn.Parameter(torch.complex(normal(1, 4), normal(2, 4)))
    (found,) = gradstep.hutchinson((w.real**4 + 5 * w.imag**2).sum(), [w])
    torch.testing.assert_close(found.real, 12 * w.detach().real ** 2)
    torch.testing.assert_close(found.imag, torch.full((4,), 10.0))


@pytest.mark.parametrize("function", ["hutchinson", "sampled_loss"])
def test_draws_are_those_of_the_generator_and_of_no_other(function: str) -> None:
    w = nn.Parameter(normal(1, 8, 8))

    def draw(generator: torch.Generator | None) -> Tensor:
        if function == "hutchinson":
            return gradstep.hutchinson((w @ w).square().sum(), [w], generator)[0]
        return gradstep.sampled_loss(w, generator).detach()

    before = torch.get_rng_state()
    one = draw(torch.Generator().manual_seed(5))
    two = draw(torch.Generator().manual_seed(5))
    other = draw(torch.Generator().manual_seed(6))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert not torch.equal(draw(None), draw(None))
    assert torch.equal(before, torch.get_rng_state())


def test_what_hutchinson_refuses() -> None:
    w = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=r"of one element; got shape \(3,\)"):
        gradstep.hutchinson(w * w, [w])
    with pytest.raises(ValueError, match="this one has none"):
        gradstep.hutchinson((w * w).sum().detach(), [w])
    with pytest.raises(TypeError, match=r"got a str. Give model.parameters"):
        gradstep.hutchinson((w * w).sum(), ["w"])  # type: ignore[list-item]


# Labels from the model.


def test_labels_are_drawn_as_often_as_the_model_says() -> None:
    """The mean loss over draws is the entropy of the answers; a class of probability 0 is none."""
    answers = torch.tensor([0.5, 0.375, 0.125, 0.0])
    logits = answers.log().expand(2000, 5, 4)
    loss = gradstep.sampled_loss(logits, torch.Generator().manual_seed(0))
    entropy = torch.special.entr(answers).sum()
    assert torch.isfinite(loss) and abs(float(loss - entropy)) < 0.02


def test_the_squares_are_the_gauss_newton_diagonal_on_average() -> None:
    """Of a softmax regression, whose Hessian is the mean of x² · p(1 − p)."""
    inputs, w = normal(1, 32, 3).double(), nn.Parameter(normal(2, 3, 4).double())
    answers = (inputs @ w).softmax(1).detach()
    exact = (inputs[:, :, None] ** 2 * (answers * (1 - answers))[:, None, :]).mean(0)
    optimizer = gradstep.Sophia([w], betas=(0.9, 0.0))
    random = torch.Generator().manual_seed(0)
    total = torch.zeros(3, 4, dtype=torch.float64)
    for _ in range(3000):
        optimizer.zero_grad()
        gradstep.sampled_loss(inputs @ w, random).backward()
        optimizer.update_hessian(batch_size=32)
        total += optimizer.state[w]["hessian"]
    torch.testing.assert_close(total / 3000, exact, rtol=0.1, atol=0)


def test_what_sampled_loss_refuses() -> None:
    for shape in ((10,), (0, 10)):
        with pytest.raises(ValueError, match="logits of shape"):
            gradstep.sampled_loss(torch.zeros(shape))


def test_16_bit_logits_are_drawn_from_in_32() -> None:
    logits = normal(1, 64, 10).half()
    a, b = (
        gradstep.sampled_loss(x, torch.Generator().manual_seed(3)) for x in (logits, logits.float())
    )
    assert a.dtype == torch.float16 and float(a) == pytest.approx(float(b), rel=1e-2)


# All together.


@pytest.mark.parametrize("kind", ["signs", "G", "H"])
def test_both_kinds_learn_to_read_digits(kind: str) -> None:
    """And with a learning rate that is too much for signs alone: what is left without estimates."""
    data = load_digits(0)
    train, test = (avg_pool2d(x, 4).flatten(1) for x in (data.train_images, data.test_images))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 10))
    optimizer = gradstep.Sophia(model.parameters(), lr=0.01, rho=2.0)
    random = torch.Generator().manual_seed(0)
    for _ in range(6):
        order = torch.randperm(len(train), generator=random)
        for number, chosen in enumerate(order.split(48)):
            images, labels = train[chosen], data.train_labels[chosen]
            if number % 10 == 0 and kind == "G":
                gradstep.sampled_loss(model(images), random).backward()
                optimizer.update_hessian(batch_size=len(images))
            elif number % 10 == 0 and kind == "H":
                loss = cross_entropy(model(images), labels)
                optimizer.update_hessian(gradstep.hutchinson(loss, model.parameters(), random))
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimizer.step()
    with torch.no_grad():
        answers = model(test)
    right = (answers.argmax(1) == data.test_labels).float().mean()
    loss = cross_entropy(answers, data.test_labels)
    if kind == "signs":
        assert right < 0.92 and loss > 0.3
    else:
        assert right > 0.93 and loss < 0.2


@pytest.mark.parametrize("engine", ["fused", "eager"])
def test_adahessian_is_its_formula_with_estimates(engine: str) -> None:
    """An estimate counts again at each step until the next."""
    w = nn.Parameter(normal(0, 50, dtype=torch.float64))
    gradients = [normal(10 + t, 50, dtype=torch.float64) for t in range(12)]
    estimates = {t: normal(90 + t, 50, dtype=torch.float64) for t in (0, 1, 5, 9)}
    options: dict[str, Any] = {"lr": 0.05, "hessian_power": 0.5, "hessian_decay": 0.25, "eps": 0.01}
    optimizer = gradstep.AdaHessian([w], engine=engine, **options)
    arrays = {t: e.numpy() for t, e in estimates.items()}
    start = w.detach().numpy().copy()
    expected = list(adahessian(start, (g.numpy() for g in gradients), arrays, **options))
    for t, g in enumerate(gradients):
        if t in estimates:
            optimizer.update_hessian([estimates[t]])
        w.grad = g
        optimizer.step()
        numpy.testing.assert_allclose(w.detach().numpy(), expected[t], rtol=1e-10, atol=1e-12)
