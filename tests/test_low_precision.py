"""Weights in 16 bits that lose nothing: against float32, the eager engine, and chance itself."""

from __future__ import annotations

import copy
import io
import logging
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradstep
from configurations import CONFIGURATIONS, spelled
from gradstep.program.weight_formats import WEIGHT_FORMATS, Stochastic
from ranks import run_ranks
from reference_row import Reference, loss_at

BFLOAT16, FLOAT16 = torch.bfloat16, torch.float16
WAYS = [(mode, format.dtype) for mode, formats in WEIGHT_FORMATS.items() for format in formats]
#: What a way keeps beside a weight.
BESIDE = {
    "remainder": "weight_remainder",
    "kahan": "weight_compensation",
    "master": "master_weight",
}
#: Rules of an element, along rows, of whole weights and of all together.
KINDS = [gradstep.AdamW, gradstep.Adafactor, gradstep.LAMB, gradstep.Prodigy]


def rounded(shape: tuple[int, ...], seed: int) -> Tensor:
    """Numbers that bfloat16 has."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=random).to(BFLOAT16).float()


def trained(
    make: Callable[..., Any],
    dtype: torch.dtype,
    shapes: Any = ((60, 80), (7,)),
    steps: int = 4,
    **options: Any,
) -> Any:
    weights = [nn.Parameter(rounded(shape, i).to(dtype)) for i, shape in enumerate(shapes)]
    optimizer = make(weights, **options)
    return take_steps(optimizer, steps)


def take_steps(optimizer: Any, steps: int, seed: int = 10) -> Any:
    for step in range(steps):
        for group in optimizer.param_groups:
            for i, p in enumerate(group["params"]):
                p.grad = rounded(tuple(p.shape), seed + 7 * step + i).to(p.dtype)
        optimizer.step(lambda step=step: loss_at(step))
    return optimizer


def weights_of(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def wide(optimizer: Any, p: Tensor) -> Tensor:
    """The float32 weight that a bfloat16 one and what is beside it are."""
    entry = optimizer.state[p]
    if "master_weight" in entry:
        found: Tensor = entry["master_weight"]
        return found
    upper = p.detach().view(torch.int16).to(torch.int32) << 16
    lower = entry["weight_remainder"].contiguous().view(torch.int16).squeeze(-1)
    return (upper + lower.to(torch.int32)).view(torch.float32)


# The bits of a training in float32.


EACH_RULE = [
    pytest.param(reference, options, id=f"{reference.name}-{spelled(options)}")
    for reference, options in CONFIGURATIONS
    if reference.name not in ("SparseAdam", "LBFGS")
    and not any(isinstance(v, Tensor) for v in options.values())
    and not {"state_dtype", "differentiable"} & set(options)
]


@pytest.mark.parametrize(("reference", "options"), EACH_RULE)
def test_a_remainder_is_the_float32_training(reference: Reference, options: dict[str, Any]) -> None:
    """Of every rule: with the same gradients, weights and states have its bits."""
    shapes = [(6, 8), (7,)] if reference.dimensions is None else [(6, 8)]
    narrow = trained(reference.ours, BFLOAT16, shapes, **options, low_precision="remainder")
    exact = trained(reference.ours, torch.float32, shapes, **options)
    for p, q in zip(weights_of(narrow), weights_of(exact), strict=True):
        assert p.dtype == BFLOAT16
        assert torch.equal(wide(narrow, p), q)
        for name, state in exact.state[q].items():
            if isinstance(state, Tensor):
                assert torch.equal(narrow.state[p][name].to(state.dtype), state), name


@pytest.mark.parametrize("engine", ["fused", "eager"])
@pytest.mark.parametrize(
    "make", [gradstep.AdamW, gradstep.Adafactor, gradstep.LAMB, gradstep.Prodigy]
)
@pytest.mark.parametrize("way", ["remainder", "master"])
def test_both_engines_keep_the_float32_weight(way: str, make: Any, engine: str) -> None:
    narrow = trained(make, BFLOAT16, low_precision=way, engine=engine)
    exact = trained(make, torch.float32, engine=engine)
    assert set(narrow.engines_used().values()) == {engine}
    for p, q in zip(weights_of(narrow), weights_of(exact), strict=True):
        assert torch.equal(wide(narrow, p), q)
        half = (q - p.float()).abs() <= (q.abs() * 2.0**-8)
        assert half.all()


@pytest.mark.parametrize(
    "make",
    [
        gradstep.SGD,
        *(
            pytest.param(make, marks=pytest.mark.deep)
            for make in (gradstep.Lion, gradstep.AdamW, gradstep.CAME)
        ),
    ],
)
@pytest.mark.parametrize(("way", "dtype"), WAYS, ids=str)
def test_kernels_and_torch_write_the_same_bits(way: str, dtype: torch.dtype, make: Any) -> None:
    fused, eager = (
        trained(make, dtype, low_precision=way, lr=0.01, engine=engine)
        for engine in ("fused", "eager")
    )
    assert set(fused.engines_used().values()) == {"fused"}
    if make in (gradstep.SGD, gradstep.Lion):  # whose arithmetic is settled in both
        for p, q in zip(weights_of(fused), weights_of(eager), strict=True):
            assert torch.equal(p, q)
            for name, state in fused.state[p].items():
                assert torch.equal(state, eager.state[q][name]), name
    for p, q in zip(weights_of(fused), weights_of(eager), strict=True):
        assert (p != q).float().mean() < 0.02
        assert torch.allclose(p.float(), q.float(), rtol=2.0**-7, atol=1e-3)


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize("way", list(WEIGHT_FORMATS))
def test_steps_too_small_for_the_last_digit_add_up(way: str, dtype: torch.dtype) -> None:
    if way == "remainder" and dtype == FLOAT16:
        return
    reached = {}
    for each in ("nearest", way):
        weight = nn.Parameter(torch.ones(2000, dtype=dtype))
        optimizer = gradstep.SGD([weight], lr=1e-4, low_precision=each)
        for _ in range(500):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        reached[each] = weight.detach().float().mean().item()
    assert reached["nearest"] == 1.0
    assert reached[way] == pytest.approx(0.95, abs=0.004)


# Chance.


def test_rounding_by_chance_is_unbiased_and_each_place_by_itself() -> None:
    format = Stochastic(BFLOAT16)
    count, steps = 512, 4000
    places = torch.arange(count)
    fractions = torch.linspace(0.02, 0.98, count)
    value = 1 + fractions * 2.0**-7  # between 1 and the next bfloat16
    ups = torch.zeros(steps, count, dtype=torch.float64)
    for step in range(steps):
        (made,) = format.encode_at(value, places, step)
        assert set(made.tolist()) <= {1.0, 1 + 2.0**-7}
        ups[step] = (made > 1).double()
    off = (ups.mean(0) - fractions) / (fractions * (1 - fractions) / steps).sqrt()
    assert off.abs().max() < 4.5 and off.square().mean() < 1.3
    # Neither neighbours nor steps know of each other.
    normal = (ups - fractions) / (fractions * (1 - fractions)).sqrt()
    for apart in (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233):
        pairs = (normal[:, apart:] * normal[:, :-apart]).mean(0) * math.sqrt(steps)
        assert pairs.abs().max() < 5.5 and pairs.square().mean() < 1.5, apart
        pairs = (normal[apart:] * normal[:-apart]).mean(0) * math.sqrt(steps - apart)
        assert pairs.abs().max() < 5.5 and pairs.square().mean() < 1.5, apart
    whole = normal.sum(1) / math.sqrt(count)
    assert whole.square().mean() < 1.3, "the errors of a step add up"


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
def test_what_needs_no_chance_is_left_alone(dtype: torch.dtype) -> None:
    odd = torch.tensor([0.0, -0.0, math.inf, -math.inf, 1.0, -2.5, 65504.0, 6e-8])
    odd = odd.to(dtype).float()
    for key in range(50):
        (made,) = Stochastic(dtype).encode_at(odd, torch.arange(len(odd)), key)
        assert torch.equal(made.float(), odd)
        assert torch.equal(made.signbit(), odd.signbit())
    nan = torch.full((3,), torch.nan)
    assert Stochastic(dtype).encode_at(nan, torch.arange(3), 1)[0].isnan().all()


def test_chances_hang_on_seed_and_step_alone() -> None:
    before = torch.get_num_threads()
    reached: dict[str, list[Tensor]] = {"stochastic": [], "stochastic 7": []}
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for way, found in reached.items():
                optimizer = trained(
                    gradstep.SGD, BFLOAT16, [(700, 700)], lr=0.01, low_precision=way
                )
                found.append(weights_of(optimizer)[0].detach())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*reached["stochastic"]) and torch.equal(*reached["stochastic 7"])
    assert not torch.equal(reached["stochastic"][0], reached["stochastic 7"][0])


# Files.


@pytest.mark.parametrize(("way", "dtype"), [*WAYS, ("stochastic 3", BFLOAT16)], ids=str)
def test_training_goes_on_from_a_file_and_in_copies(way: str, dtype: torch.dtype) -> None:
    def made(steps: int) -> Any:
        return trained(gradstep.AdamW, dtype, steps=steps, lr=0.01, low_precision=way)

    whole, cut, other = made(3), made(3), made(1)
    with torch.no_grad():
        for p, q in zip(weights_of(other), weights_of(cut), strict=True):
            p.copy_(q)
    file = io.BytesIO()
    torch.save(cut.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    copies = [other, copy.deepcopy(cut), pickle.loads(pickle.dumps(cut))]
    take_steps(whole, 3, 50)
    for each in copies:
        take_steps(each, 3, 50)
        for p, q in zip(weights_of(whole), weights_of(each), strict=True):
            assert torch.equal(p, q)
            for name, state in whole.state[p].items():
                assert each.state[q][name].dtype == state.dtype
                assert torch.equal(state, each.state[q][name]), name


@pytest.mark.parametrize("way", list(WEIGHT_FORMATS))
def test_a_checkpoint_of_torch_s_is_taken_up(way: str) -> None:
    theirs = trained(torch.optim.AdamW, BFLOAT16, lr=0.01)
    ours = trained(gradstep.AdamW, BFLOAT16, steps=1, lr=0.01, low_precision=way)
    with torch.no_grad():
        for p, q in zip(weights_of(ours), weights_of(theirs), strict=True):
            p.copy_(q)
    ours.load_state_dict(theirs.state_dict())
    start = [p.detach().clone() for p in weights_of(ours)]
    take_steps(ours, 1)
    for p, old in zip(weights_of(ours), start, strict=True):
        assert (p - old).abs().max() < 0.05
        assert way == "stochastic" or BESIDE[way] in ours.state[p]


def test_what_is_beside_a_weight_has_its_shape_and_dtype() -> None:
    ours = trained(gradstep.SGD, BFLOAT16, lr=0.1, low_precision="remainder")
    for broken in (torch.zeros(3, dtype=torch.uint8), torch.zeros(60, 80, 2), 3):
        saved = copy.deepcopy(ours.state_dict())
        saved["state"][0]["weight_remainder"] = broken
        with pytest.raises(ValueError, match=r"weight_remainder of .* Expected uint8 of the shape"):
            ours.load_state_dict(saved)


def test_a_weight_that_was_written_by_hand_counts() -> None:
    for way in ("remainder", "kahan", "master"):
        optimizer = trained(gradstep.SGD, BFLOAT16, lr=0.1, low_precision=way)
        weight = weights_of(optimizer)[0]
        with torch.no_grad():
            weight.fill_(3.0)
        weight.grad = torch.full_like(weight, 0.5)
        optimizer.step()
        assert (weight.float() - 2.95).abs().max() <= 0.02, way


# What is not there.


def test_other_weights_are_kept_as_ever() -> None:
    for dtype in (torch.float32, torch.float64, torch.complex64):
        plain, other = (
            trained(gradstep.AdamW, dtype, lr=0.01, low_precision=way)
            for way in ("nearest", "remainder")
        )
        for p, q in zip(weights_of(plain), weights_of(other), strict=True):
            assert torch.equal(p, q) and set(plain.state[p]) == set(other.state[q])


@pytest.mark.parametrize(
    ("make", "kind", "said"),
    [
        (
            lambda w: gradstep.AdamW(w, low_precision="remainders"),
            ValueError,
            "low_precision got 'remainders'. Choose one of nearest, stochastic, kahan, remainder, "
            "master; behind stochastic may stand a number below 1048576, as in 'stochastic 7'. "
            "Did you mean 'remainder'?",
        ),
        (lambda w: gradstep.AdamW(w, low_precision="kahan 3"), ValueError, "got 'kahan 3'"),
        (lambda w: gradstep.AdamW(w, low_precision=None), ValueError, "got None"),
        (lambda w: gradstep.low_precision(w, "kahan"), TypeError, "takes a rule"),
        (
            lambda w: gradstep.chain(gradstep.low_precision(gradstep.sgd(), "kahan")),
            ValueError,
            "write low_precision(chain(…), 'kahan')",
        ),
        (
            lambda w: gradstep.SGD(
                [("w", nn.Parameter(torch.ones(2).half()))], low_precision="remainder"
            ),
            ValueError,
            "w holds float16 2 on cpu, and low_precision='remainder' is for bfloat16. Choose kahan",
        ),
    ],
)
def test_what_is_refused(make: Callable[[Any], Any], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind) as error:
        make([nn.Parameter(torch.ones(2, dtype=BFLOAT16))])
    assert said in str(error.value)


def test_a_step_that_autograd_records_is_refused() -> None:
    weight = nn.Parameter(torch.ones(2, dtype=BFLOAT16))
    optimizer = gradstep.SGD([weight], lr=0.1, low_precision="kahan", differentiable=True)
    weight.grad = torch.ones_like(weight)
    with pytest.raises(RuntimeError, match="not supported with low_precision='kahan'"):
        optimizer.step()
    assert torch.equal(weight.detach(), torch.ones(2, dtype=BFLOAT16))


def test_rules_say_how_they_keep_weights() -> None:
    rule = gradstep.low_precision(
        gradstep.chain(gradstep.adam(), gradstep.decay_weights(0.1)), "kahan"
    )
    assert pickle.loads(pickle.dumps(rule)).low_precision == "kahan"
    weight = nn.Parameter(torch.ones(3, dtype=BFLOAT16))
    optimizer = gradstep.Optimizer([weight], rule, lr=1e-3)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert optimizer.state[weight]["weight_compensation"].dtype == BFLOAT16


# In company.


@pytest.mark.parametrize("way", list(WEIGHT_FORMATS))
def test_with_states_in_blocks(way: str) -> None:
    fused, eager = (
        trained(gradstep.Lion, BFLOAT16, [(60, 80)], lr=0.01, low_precision=way,
                state_dtype="int8", engine=engine)
        for engine in ("fused", "eager")
    )  # fmt: skip
    assert set(fused.engines_used().values()) == {"fused"}
    (p,), (q,) = weights_of(fused), weights_of(eager)
    assert fused.state[p]["exp_avg"].dtype == torch.int8
    assert torch.equal(p, q)


def test_a_sparse_gradient() -> None:
    reached = []
    for way, dtype in (("remainder", BFLOAT16), ("nearest", torch.float32)):
        for make in (gradstep.SGD, gradstep.Adagrad):
            weight = nn.Parameter(rounded((5, 3), 0).to(dtype))
            optimizer = make([weight], lr=0.1, low_precision=way)
            for step in range(3):
                rows = torch.tensor([[step, 4]])
                values = rounded((2, 3), step).to(dtype)
                weight.grad = torch.sparse_coo_tensor(rows, values, (5, 3))
                optimizer.step()
            reached.append(wide(optimizer, weight) if way == "remainder" else weight.detach())
    assert torch.equal(reached[0], reached[2]) and torch.equal(reached[1], reached[3])


def _on_shards(rank: int, way: str) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    weight = nn.Parameter(distribute_tensor(rounded((9, 8), 0).to(BFLOAT16), mesh, [Shard(0)]))
    optimizer = gradstep.AdamW([weight], lr=0.01, low_precision=way)
    for step in range(3):
        gradient = rounded((9, 8), 10 + step).to(BFLOAT16)
        weight.grad = distribute_tensor(gradient, mesh, [Shard(0)])
        optimizer.step()
    names = [n for n in optimizer.state[weight] if n in BESIDE.values()]
    beside = [optimizer.state[weight][n].full_tensor().float().numpy() for n in names]
    return weight.full_tensor().detach().float().numpy(), beside


@pytest.mark.parametrize("way", ["remainder", "kahan", "master"])
def test_steps_on_shards_are_those_of_the_whole(way: str) -> None:
    weight = nn.Parameter(rounded((9, 8), 0).to(BFLOAT16))
    optimizer = gradstep.AdamW([weight], lr=0.01, low_precision=way)
    for step in range(3):
        weight.grad = rounded((9, 8), 10 + step).to(BFLOAT16)
        optimizer.step()
    for found, (beside,) in run_ranks(_on_shards, 2, way):
        assert np.array_equal(found, weight.detach().float().numpy())
        assert np.array_equal(beside, optimizer.state[weight][BESIDE[way]].float().numpy())


@pytest.mark.parametrize("way", ["stochastic 2", "kahan", "remainder", "master"])
def test_an_explanation_has_the_weight_with_all_its_digits(way: str) -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(5, 4).to(BFLOAT16))
    optimizer = gradstep.AdamW([("w", weight)], 0.01, low_precision=way)
    for _ in range(3):
        weight.grad = torch.randn(5, 4).to(BFLOAT16)
        explanation = gradstep.explain(optimizer, "w", [(1, 2), (4, 0)])
        optimizer.step()
        for account in explanation.accounts:
            assert account.agrees
            if way in ("remainder", "master"):
                assert account.written == float(wide(optimizer, weight)[account.element.place])


def test_the_doctor_looks_at_the_digits_that_are_kept() -> None:
    """bfloat16 weights that stay the same are no mistake where what they lose is kept."""
    found = {}
    rates = {"nearest": 1e-5, "remainder": 1e-5, "stochastic": 1e-5, "master": 1e-12}
    for way, lr in rates.items():
        torch.manual_seed(0)
        model = nn.Linear(40, 40).to(BFLOAT16)
        optimizer = gradstep.SGD(model.parameters(), lr=lr, low_precision=way)
        with gradstep.diagnose(model, optimizer) as diagnosis:
            for _ in range(60):
                optimizer.zero_grad()
                model(torch.randn(8, 40, dtype=BFLOAT16)).square().mean().backward()
                optimizer.step()
        found[way] = [f for f in diagnosis.findings if f.name == "updates-round-away"]
    assert found["nearest"] and not found["remainder"] and not found["stochastic"]
    assert "too small even with 'master'" in found["master"][0].write


def test_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "gradstep"):
        trained(gradstep.AdamW, BFLOAT16, low_precision="remainder")
    assert not caplog.records


def test_small_states_beside_a_float32_weight_are_float32() -> None:
    optimizer = trained(
        gradstep.AdamW, BFLOAT16, [(70, 80), (9,)], low_precision="remainder", state_dtype="int8"
    )
    large, small = weights_of(optimizer)
    assert optimizer.state[large]["exp_avg"].dtype == torch.int8
    assert optimizer.state[small]["exp_avg"].dtype == torch.float32
    assert "exp_avg_scale" not in optimizer.state[small]


def test_a_rate_that_moves_no_digit_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    weight = nn.Parameter(torch.ones(3, dtype=BFLOAT16))
    with caplog.at_level(logging.WARNING, "gradstep"):
        for way in ("remainder", "nearest", "stochastic"):
            for lr in (1e-12, 1e-5, 0.0):
                gradstep.SGD([weight], lr=lr, low_precision=way)
    (record,) = caplog.records
    assert record.message.startswith("lr=1e-12 with low_precision='remainder': a step along a")
    assert "no float32 weight of 3.4e-05 or more" in record.message
