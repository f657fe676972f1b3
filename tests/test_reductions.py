"""Rules that look beyond single elements: reductions, states a row or column, opaque functions."""

from __future__ import annotations

import builtins
import itertools
import math
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import numpy
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

import gradstep
from gradstep import dot, lerp, max, mean, norm, per_column, per_row, rms, size, sqrt, sum, where
from gradstep.backends.cpu import buckets, compiler
from gradstep.backends.cpu import kernel as kernel_module
from gradstep.backends.cpu import run as run_module
from gradstep.backends.llvm import walk
from gradstep.program import walks
from gradstep.rule.contraction import contracted
from gradstep.rule.trace import trace


@gradstep.rule
def trust_ratio(g: Any, exp_avg: Any, *, w: Any, beta: float = 0.9, eps: float = 1e-3) -> Any:
    """Two norms of a whole tensor, the second of something worked out (as LAMB does)."""
    exp_avg = lerp(exp_avg, g, 1 - beta)
    update = exp_avg + 0.1 * w
    return norm(w) / (norm(update) + eps) * update, exp_avg


@gradstep.rule
def everything_reduced(g: Any, *, w: Any) -> Any:
    """Each reduction of a whole tensor, and a second that depends on a first."""
    centred = g - mean(g)
    scale = max(gradstep.abs(g)) + rms(centred) + norm(w) / sqrt(size(w)) + 0.01 * sum(g)
    return centred / scale + 0.001 * dot(g, w) * w


@gradstep.rule
def rows_and_columns(
    g: Any, row: Any = per_row(), column: Any = per_column(), *, w: Any, share: float = 0.25
) -> Any:
    """Each reduction along a dimension, and of what they leave."""
    row = lerp(row, rms(g, -1), share)
    column = lerp(column, norm(w, -2) + max(gradstep.abs(g), -2), share)
    centred = g - mean(g, -1) - dot(g, w, -2) / size(w, -2)
    height = mean(row, -2) + mean(column, -1) + 0.5 * mean(row) + max(column)
    return centred / (row + column + height + 0.1), row, column


@gradstep.opaque
def doubled(x: Tensor, factor: float) -> Tensor:
    """Twice the matrix: something that is easily checked."""
    return x * (2 * factor)


@gradstep.opaque(dtype=torch.float64)
def flipped(x: Tensor) -> Tensor:
    """Rows upside down: no function of one element."""
    return x.flip(1)


@gradstep.rule
def with_functions(g: Any, exp_avg: Any, *, step: Any, factor: float = 1.5) -> Any:
    """Two opaque functions, one with a number that is another at every step."""
    exp_avg = lerp(exp_avg, g, 0.5)
    return doubled(exp_avg, factor / step) + flipped(g * g), exp_avg


WHOLE = [trust_ratio, everything_reduced]


@gradstep.rule
def of_units(g: Any, exp_avg: Any, *, w: Any, is_matrix: bool, share: float = 0.25) -> Any:
    """Each reduction of a row or filter, and of what they leave."""
    if not is_matrix:
        return lerp(g, exp_avg, share), exp_avg
    centred = g - mean(g, "unit")
    length = norm(w, "unit") + max(gradstep.abs(centred), dim="unit") + size(w, "unit")
    exp_avg = lerp(exp_avg, rms(centred, "unit") * g, share)
    return exp_avg / (length + 0.5 * mean(length) + max(length)), exp_avg


BY_ROWS = [rows_and_columns, of_units]
SHAPES: list[tuple[int, ...]] = [
    (7,),
    (),
    (33, 65),
    (3, 4, 5),
    (6, 2, 3, 3),
    (1, 1),
    (2, 5000),
    (3000, 5),
]
MATRICES = [s for s in SHAPES if len(s) > 1]


def run(
    rule: gradstep.Rule,
    shapes: Any,
    engine: str,
    dtype: torch.dtype = torch.float32,
    steps: int = 4,
    lr: float = 0.01,
) -> tuple[list[Tensor], gradstep.Optimizer]:
    random = torch.Generator().manual_seed(3)
    ws = [nn.Parameter(torch.randn(s, generator=random).to(dtype)) for s in shapes]
    optimizer = gradstep.Optimizer(ws, rule, lr=lr, engine=engine)
    for _ in range(steps):
        for w in ws:
            w.grad = torch.randn(w.shape, generator=random).to(dtype)
        optimizer.step()
    return [w.detach() for w in ws], optimizer


def cases() -> Iterator[Any]:
    for rule, dtype in itertools.product(
        [*WHOLE, *BY_ROWS, with_functions], (torch.float32, torch.float64, torch.bfloat16)
    ):
        shapes = SHAPES if rule in WHOLE else MATRICES
        yield pytest.param(rule, shapes, dtype, id=f"{rule.name}-{dtype}")


@pytest.mark.parametrize(("rule", "shapes", "dtype"), list(cases()))
def test_passes_do_what_torch_does(rule: Any, shapes: Any, dtype: torch.dtype) -> None:
    """The fused engine against the rule as it is written, on torch's tensors."""
    fused, optimizer = run(rule, shapes, "fused", dtype)
    eager, _ = run(rule, shapes, "eager", dtype)
    assert set(optimizer.engines_used().values()) == {"fused"}
    for a, b in zip(fused, eager, strict=True):
        unit = torch.finfo(dtype).eps * b.abs().max()
        assert ((a - b).abs() <= 8 * unit).all()


@pytest.mark.parametrize("rule", [*WHOLE, *BY_ROWS, gradstep.adafactor], ids=lambda r: r.name)
def test_the_same_bits_for_any_number_of_threads(
    rule: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And whatever else is in the bucket."""
    shapes = [(700, 900), (40, 30), (3, 5, 5)]
    alone = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        alone.append(run(rule, shapes, "fused")[0])
    monkeypatch.setattr(buckets, "BUCKET", 1)
    alone.append(run(rule, shapes, "fused")[0])
    for other in alone[1:]:
        assert all(map(torch.equal, alone[0], other))


@gradstep.rule
def extremes(g: Any, *, w: Any) -> Any:
    """The largest of a whole tensor, nan and infinite ones too, and a choice between numbers."""
    largest = max(gradstep.where(g > 0.5, g * g, gradstep.maximum(g, 0.25)))
    return g / (1 + largest) + 0.01 * dot(gradstep.sign(g), w) / size(w)


@pytest.mark.parametrize(
    ("rule", "dtype"),
    [
        # All sums and the largest in every type; of the others each its own type.
        pytest.param(rule, dtype, marks=[pytest.mark.deep] * (own not in (None, dtype)))
        for rule, own in (
            (everything_reduced, None),
            (extremes, None),
            (trust_ratio, torch.float64),
            (gradstep.lamb, torch.bfloat16),
            (gradstep.prodigy, torch.float32),
        )
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    ],
)
def test_lines_summed_as_they_are_read_have_the_same_bits(
    rule: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those that are laid out first, and summed after."""
    generator = torch.Generator().manual_seed(3)
    shapes = [(7,), (1024,), (5 * 1024 + 3,), (64 * 1024 + 32,), (300_001,), (3, 50, 40)]
    drawn = [torch.randn(2, *shape, generator=generator).to(dtype) for shape in shapes]
    drawn[1][1, 100], drawn[4][1, 150_000] = math.nan, math.inf
    found = []
    for together in (True, False):
        if not together:  # under another name, or the kernels were those that are there
            monkeypatch.setattr(compiler, "WRITERS", "one after the other")
            monkeypatch.setattr(walk, "lines_at_once", lambda spec: 0)
        parameters = [nn.Parameter(w.clone()) for w, _ in drawn]
        # A rule of its own: kernels of this very one are there after the first time.
        optimizer = gradstep.Optimizer(parameters, rule(), lr=0.1, engine="fused")
        before = len(compiler._functions)
        for _ in range(2):
            for p, (_, g) in zip(parameters, drawn, strict=True):
                p.grad = g.clone()
            optimizer.step()
        if not together:
            assert len(compiler._functions) > before
        found.append([p.detach().view(torch.uint8) for p in parameters])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_buckets_hold_tensors_of_one_shape_for_a_function() -> None:
    shapes = [(4, 6), (6, 4), (4, 6), (4, 6)]
    seen: list[tuple[int, ...]] = []

    @gradstep.opaque
    def watched(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        return x

    @gradstep.rule
    def watching(g: Any) -> Any:
        return watched(g)

    after, _ = run(watching, shapes, "fused", steps=1)
    assert sorted(seen) == [(1, 6, 4), (3, 4, 6)]
    plain, _ = run(gradstep.sgd, shapes, "fused", steps=1)
    assert all(map(torch.equal, after, plain))


def exact_sum(values: numpy.ndarray) -> float:
    return math.fsum(float(v) for v in values.ravel())


@settings(max_examples=40)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 5000),
    matrices=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_sums_are_those_of_float64(rows: int, columns: int, matrices: int, seed: int) -> None:
    """A step of 1 along the sums: what was subtracted is the sum itself."""

    @gradstep.rule
    def by_sums(g: Any, row: Any = per_row(), column: Any = per_column()) -> Any:
        row, column = row + sum(g, -1), column + sum(g, -2)
        return 0 * g + sum(g), row, column

    random = torch.Generator().manual_seed(seed)
    g = torch.randn((matrices, rows, columns), generator=random)
    w = nn.Parameter(torch.zeros_like(g))
    optimizer = gradstep.Optimizer([w], by_sums, lr=1.0, engine="fused")
    w.grad = g
    optimizer.step()
    wide = g.double()
    state = optimizer.state[w]
    scale = wide.abs().sum() * 2**-50
    assert (state["row"].double() - wide.sum(-1, True)).abs().max() <= scale + 2**-23 * (
        wide.sum(-1).abs().max()
    )
    assert (state["column"].double() - wide.sum(-2, True)).abs().max() <= scale + 2**-23 * (
        wide.sum(-2).abs().max()
    )
    total = exact_sum(wide.numpy())
    assert abs(-w.detach().double() - total).max() <= scale + 2**-23 * abs(total)


@given(
    outer=st.integers(0, 40),
    middle=st.integers(0, 300),
    inner=st.integers(0, 5000),
    flat=st.booleans(),
)
def test_tiles_cover_each_element_once(outer: int, middle: int, inner: int, flat: bool) -> None:
    cut = walks.flat(outer * inner) if flat else walks.Geometry(outer, middle, inner)
    numbers = list(cut.tiles(5, 3))
    fields = len(walks.FIELDS["lines"])
    assert len(numbers) == fields * cut.count()
    covered = 0
    for start in range(0, len(numbers), fields):
        tile = dict(zip(walks.FIELDS["lines"], numbers[start : start + fields], strict=True))
        lines = tile["outers"] * tile["middles"]
        covered += (lines - 1) * tile["inners"] + tile["last_inners"] if lines else 0
        assert 0 < tile["inners"] <= walks.LINE
    assert covered == (outer * inner if flat else outer * middle * inner)


def test_nan_and_infinity_come_through() -> None:
    @gradstep.rule
    def by_extremes(g: Any, *, w: Any) -> Any:
        return 0 * w + max(g) + sum(g)

    for bad in (math.nan, math.inf):
        w = nn.Parameter(torch.zeros(5000))
        w.grad = torch.zeros(5000)
        w.grad[4321] = bad
        gradstep.Optimizer([w], by_extremes, lr=1.0, engine="fused").step()
        wanted = math.nan if bad != bad else -math.inf
        assert torch.allclose(w.detach(), torch.tensor(wanted), equal_nan=True)


def test_what_works_along_rows_refuses_vectors_and_changes_nothing() -> None:
    @gradstep.rule
    def centred(g: Any) -> Any:
        return g - mean(g, -1)

    ws = [nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(5))]
    with pytest.raises(ValueError, match="bias has 1 dimension"):
        gradstep.Optimizer([("matrix", ws[0]), ("bias", ws[1])], centred, lr=0.1)
    optimizer = gradstep.Optimizer([("matrix", ws[0])], centred, lr=0.1, engine="fused")
    optimizer.add_param_group({"params": [("bias", ws[1])]})
    for w in ws:
        w.grad = torch.randn_like(w)
    with pytest.raises(ValueError, match="bias has 1 dimension"):
        optimizer.step()
    assert all((w == 1).all() for w in ws)


@pytest.mark.parametrize("name", ["Adafactor", "Muon"])
def test_complex_weights_are_refused_by_name(name: str) -> None:
    w = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
    w.grad = torch.ones_like(w)
    with pytest.raises(RuntimeError, match=f"{name} does not support complex parameters"):
        getattr(gradstep, name)([w]).step()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (lambda g: sum(g, -3), "dimension -3"),
        (lambda g: g * sum(sum(g, -1), -1), "gone already"),
        (lambda g: g * sum(sum(g)), "sum of one number"),
        (lambda g: g * sum(g > 0), "comparison"),
        (lambda g: doubled(sum(g), 1.0) + g, "takes a tensor first"),
        (lambda g: doubled(g, 2 * g), "second tensor"),
        (lambda g: doubled(g, sum(g, -1)), "second tensor"),
        (lambda g: sum(g, -1), "for each row"),
        (lambda g: g @ g, "opaque"),
    ],
)
def test_misuse_is_refused_with_a_way_out(body: Any, message: str) -> None:
    @gradstep.rule
    def wrong(g: Any) -> Any:
        return body(g)

    with pytest.raises(gradstep.RuleError, match=message):
        gradstep.Optimizer([torch.zeros(3, 3)], wrong)


def test_a_function_that_returns_another_shape_is_named() -> None:
    @gradstep.opaque
    def halved(x: Tensor) -> Tensor:
        return x[:, :1]

    @gradstep.rule
    def rule(g: Any) -> Any:
        return halved(g)

    w = nn.Parameter(torch.zeros(4, 4))
    w.grad = torch.ones_like(w)
    with pytest.raises(ValueError, match="halved returned shape"):
        gradstep.Optimizer([w], rule).step()


def test_a_group_that_gains_its_first_vector() -> None:
    group = [nn.Parameter(torch.ones(3, 4))]
    optimizer = gradstep.Adafactor(group, lr=0.1)
    optimizer.param_groups[0]["params"].append(nn.Parameter(torch.ones(5)))
    for w in optimizer.param_groups[0]["params"]:
        w.grad = torch.ones_like(w)
    optimizer.step()
    states = [set(optimizer.state[w]) for w in optimizer.param_groups[0]["params"]]
    assert states == [{"row_var", "col_var", "step"}, {"variance", "step"}]


# Sums over all parameters.


@gradstep.rule
def by_global_norms(
    g: Any, exp_avg: Any, length: Any = gradstep.number(0.0), *, w: Any, step: Any
) -> Any:
    """Two sums over all parameters, the second of something that needs the first; one is kept."""
    exp_avg = lerp(exp_avg, g / gradstep.global_norm(g), 0.5)
    direction = exp_avg + 0.1 * w / (1 + step)
    whole = gradstep.global_norm(direction)
    return direction / whole, exp_avg, 0.5 * length + whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sums_over_all_parameters(dtype: torch.dtype) -> None:
    """Several groups, dtypes, layouts and engines at once, against the formula in float64."""
    random = torch.Generator().manual_seed(5)
    shapes = [(40, 30), (7,), (3, 4, 5), (0,), (6, 5)]
    start = [torch.randn(s, generator=random).to(dtype) for s in shapes]
    start.append(torch.randn((5, 8), generator=random).to(dtype)[:, ::2])  # eager: it has gaps
    ws = [nn.Parameter(w.clone() if w.is_contiguous() else w) for w in start]
    before = [w.detach().double().clone() for w in ws]
    optimizer = gradstep.Optimizer(
        [{"params": ws[:2], "lr": 0.1}, {"params": ws[2:]}], by_global_norms, lr=0.2
    )
    averages = [torch.zeros_like(w) for w in before]
    length = 0.0
    for step in (1, 2, 3):
        gradients = [torch.randn(w.shape, generator=random).to(dtype) for w in ws]
        for w, g in zip(ws, gradients, strict=True):
            w.grad = g
        optimizer.step()
        whole = math.sqrt(builtins.sum(g.double().square().sum().item() for g in gradients))
        averages = [a + 0.5 * (g / whole - a) for a, g in zip(averages, gradients, strict=True)]
        directions = [a + 0.1 * w / (1 + step) for a, w in zip(averages, before, strict=True)]
        whole = math.sqrt(builtins.sum(d.square().sum().item() for d in directions))
        length = 0.5 * length + whole
        for i, d in enumerate(directions):
            before[i] = before[i] - (0.1 if i < 2 else 0.2) * d / whole
    for w, wanted in zip(ws, before, strict=True):
        if w.numel():
            unit = torch.finfo(dtype).eps * wanted.abs().max()
            assert ((w.detach().double() - wanted).abs() <= 4 * unit).all()
    found = optimizer.state[ws[0]]["length"].item()
    assert found == pytest.approx(length, rel=1e-6 if dtype.itemsize > 2 else 1e-2)
    used = list(optimizer.engines_used().values())
    assert used == ["fused"] * 5 + ["eager"]


def test_a_function_beside_a_sum_over_all_parameters() -> None:
    """All tensors wait for each other then, and those of one shape still go to it together."""

    @gradstep.opaque
    def from_the_left(x: Tensor) -> Tensor:
        return x.cumsum(-1)

    @gradstep.rule
    def both(g: Any) -> Any:
        return from_the_left(g / gradstep.global_norm(g))

    weights = [torch.randn(shape) for shape in [(4, 6), (3, 5), (7, 2), (4, 6)]]
    gradients = [torch.randn_like(w) for w in weights]
    ours = [torch.nn.Parameter(w.clone()) for w in weights]
    for p, g in zip(ours, gradients, strict=True):
        p.grad = g
    gradstep.Optimizer(ours, both, lr=0.5, engine="fused").step()
    norm = torch.stack([g.double().square().sum() for g in gradients]).sum().sqrt()
    for p, w, g in zip(ours, weights, gradients, strict=True):
        expected = w - 0.5 * (g.double() / norm).cumsum(-1)
        torch.testing.assert_close(p.detach(), expected.float())


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clipping_is_torchs(max_norm: float) -> None:
    """A chain that clips, against torch's function before torch's optimizer."""
    rule = gradstep.chain(gradstep.clip_by_global_norm(max_norm), gradstep.adam())
    ws = [[nn.Parameter(torch.full(s, 0.5)) for s in ((30, 20), (9,))] for _ in range(2)]
    ours = gradstep.Optimizer(ws[0], rule, lr=0.01)
    theirs = torch.optim.Adam(ws[1], lr=0.01)
    for number in range(5):
        torch.manual_seed(number)
        for a, b in zip(*ws, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        ours.step()
        torch.nn.utils.clip_grad_norm_(ws[1], max_norm)
        theirs.step()
    for a, b in zip(*ws, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_a_sum_over_all_parameters_of_one_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match="all parameters at once"):
        gradstep.global_norm(torch.ones(3))
    w = nn.Parameter(torch.ones(3))
    w.grad = torch.ones(3)
    optimizer = gradstep.Optimizer([w], gradstep.clip_by_global_norm, differentiable=True)
    with pytest.raises(RuntimeError, match="differentiable"):
        optimizer.step()
    assert (w == 1).all()


def test_a_function_for_matrices_refuses_others_before_anything_is_written() -> None:
    ws = [nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(5))]
    with pytest.raises(
        ValueError, match=r"bias has 1 dimension.*Give it to another rule, as gradstep"
    ):
        gradstep.Optimizer([("matrix", ws[0]), ("bias", ws[1])], gradstep.muon)
    optimizer = gradstep.Optimizer([("matrix", ws[0])], gradstep.muon)
    optimizer.add_param_group({"params": [("bias", ws[1])]})
    for w in ws:
        w.grad = torch.ones_like(w)
    with pytest.raises(ValueError, match=r"newton_schulz, and bias has 1 dimension"):
        optimizer.step()
    assert all((w == 1).all() for w in ws) and not optimizer.state


def test_a_sum_that_a_weight_and_a_number_state_need_is_taken_once() -> None:
    """Its product and addition are one rounded operation for both."""

    @gradstep.rule
    def shared(g: Any, total: Any = gradstep.number(0.0), *, w: Any) -> Any:
        total = sum(0.3 * g + w)
        return g / total, total

    settled = contracted(trace(shared, {"lr": 0.1}))
    assert [node.operation for node in settled.gathered] == ["sum"]
    (reduction,) = settled.gathered
    assert reduction.arguments[0].operation == "fma"
    ((_, _, after),) = settled.numbers
    assert after is reduction


@gradstep.rule
def between_passes(g: Any, *, w: Any) -> Any:
    """What a comparison of rows says is asked in the first pass and in the second."""
    square = mean(g * g, -1)
    usual = (square > 0.9) & (square < 1.1)
    left = gradstep.where(usual, g, 0)
    return gradstep.where(usual | (g > 2), left / (1e-3 + gradstep.norm(left)), 0.1 * g)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_comparison_of_rows_is_kept_between_passes(dtype: torch.dtype) -> None:
    ends = []
    for engine in ("fused", "eager"):
        generator = torch.Generator().manual_seed(0)
        w, gradient = (torch.randn(33, 97, generator=generator).to(dtype) for _ in range(2))
        w.grad = gradient
        optimizer = gradstep.Optimizer([w], between_passes, lr=0.1, engine=engine)
        optimizer.step()
        assert set(optimizer.engines_used().values()) == {engine}
        ends.append(w)
    torch.testing.assert_close(*ends, rtol=0, atol=8 * torch.finfo(dtype).eps)


@gradstep.rule
def measured_at_first(
    g: Any,
    scale: Any = gradstep.number(0.0),
    *,
    w: Any,
    lr: Any,
    first: Any,
    limit: float = 0.0,
) -> Any:
    """Sums that the first step, a limit or a learning rate asks for, and one of each step."""
    centred = g - mean(g)
    found = where(norm(centred) > 0, norm(centred), 1)
    scale = where(first, 1 / found, scale)
    rows = where(limit > 0, norm(w - mean(w, -1), -1), 1.0)
    moved = w - lr * scale * rows * (g / (1 + rms(g)))
    return gradstep.new_weight(where(lr > 0, moved, w)), scale


def test_sums_that_a_step_does_not_need_are_not_made_and_change_no_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where weights begin at other steps, limits are set and the learning rate is 0 for a time."""

    def train() -> tuple[list[Tensor], list[int]]:
        generator = torch.Generator().manual_seed(0)
        ws = [torch.randn(shape, generator=generator) for shape in ((5, 7), (3, 4), (2, 3, 4))]
        optimizer = gradstep.Optimizer(ws, measured_at_first, lr=0.1, engine="fused")
        passes = []
        for number in range(6):
            for i, w in enumerate(ws):
                w.grad = torch.randn(w.shape, generator=generator) if number >= i else None
            optimizer.param_groups[0]["limit"] = float(number == 4)
            optimizer.param_groups[0]["lr"] = 0.1 * (number != 5)
            before = len(ran)
            optimizer.step()
            passes.append(len(ran) - before)
        states = [optimizer.state[w]["scale"] for w in ws]
        return [*ws, *states], passes

    ran: list[int] = []
    run_pass = run_module.run_pass
    monkeypatch.setattr(run_module, "run_pass", lambda *a: (ran.append(1), run_pass(*a)))
    short, few = train()
    monkeypatch.setattr(kernel_module.Due, "__call__", lambda *_: True)
    whole, all_of_them = train()
    assert len(set(all_of_them)) == 1
    assert few[3] < few[2] < all_of_them[2] and few[4] > few[3] > few[5]
    for left, right in zip(short, whole, strict=True):
        assert torch.equal(left, right)


def test_an_explanation_has_the_sums_that_its_step_does_not_need() -> None:
    weight = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    weight.grad = weight.clone()
    optimizer = gradstep.Optimizer([weight], measured_at_first, lr=0.1)
    optimizer.step()
    explained = gradstep.explain(optimizer, weight, (1, 2))
    optimizer.step()
    (account,) = explained.accounts
    assert account.explanation.weight == weight[1, 2]
    found = 1 / norm(weight.grad - mean(weight.grad))
    (line,) = [line for line in account.explanation.lines if line.name == "centred"]
    assert line.value == pytest.approx(float((weight.grad - mean(weight.grad))[1, 2]), rel=1e-5)
    assert account.explanation.states["scale"] == pytest.approx(float(found), rel=1e-6)


@pytest.mark.parametrize("engine", ["fused", "eager"])
def test_an_explanation_has_the_sum_of_a_filter(engine: str) -> None:
    weight = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    weight.grad = weight.flip(0)
    optimizer = gradstep.Optimizer([weight], of_units, lr=0.1, engine=engine)
    length = float(weight[4].norm())
    explained = gradstep.explain(optimizer, weight, (4, 1, 0, 2))
    optimizer.step()
    (account,) = explained.accounts
    assert account.explanation.weight == pytest.approx(float(weight[4, 1, 0, 2]), rel=1e-6)
    assert "of unit 4" in explained.text() and "18 elements" in explained.text()
    (line,) = [each for each in account.explanation.lines if each.name == "length"]
    assert line.value > length + 18


def test_units_are_not_taken_beside_rows() -> None:
    @gradstep.rule
    def both(g: Any) -> Any:
        return g / (norm(g, "unit") + norm(g, -1))

    @gradstep.rule
    def twice(g: Any) -> Any:
        return g / sum(norm(g, "unit"), "unit")

    @gradstep.rule
    def with_rows(g: Any, row: Any = per_row()) -> Any:
        return g / norm(g, "unit"), row

    for rule, words in (
        (both, "reduces units, and along single dimensions"),
        (twice, "reduces units that are gone already"),
        (with_rows, "has one number a row"),
    ):
        weight = torch.ones(2, 3)
        weight.grad = weight.clone()
        with pytest.raises(gradstep.RuleError, match=words):
            gradstep.Optimizer([weight], rule, lr=0.1).step()
