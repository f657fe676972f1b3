"""Muon's choices: coefficients, scales, batches, filters, several matrices in one; and the bits.

Held against the iteration in NumPy's float64.
"""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

import gradstep
from gradstep.linalg.gram import gram, plus_square
from gradstep.linalg.newton_schulz import COEFFICIENTS, FIXED, newton_schulz

Array = Any


def orthogonal(x: Array, triples: Any, rows_first: bool = False) -> Array:
    """The iteration as it is written, of one matrix."""
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / numpy.linalg.norm(x)
    if rows_first:
        x = x / numpy.sqrt(numpy.abs(x @ x.T).sum(1, keepdims=True))
    for a, b, c in triples:
        s = x @ x.T
        x = a * x + (b * s + c * s @ s) @ x
    return x.T if tall else x


def triples_of(name: str, steps: int) -> list[tuple[float, float, float]]:
    listed = [(3.4445, -4.7750, 2.0315)] if name == "fixed" else list(COEFFICIENTS[name])
    return (listed + [listed[-1]] * steps)[:steps]


def stepped(shape: tuple[int, ...], **options: Any) -> tuple[Tensor, Tensor]:
    """A gradient, and the direction that the first step takes for it, with momentum 0."""
    generator = torch.Generator().manual_seed(len(shape))
    gradient = torch.randn(shape, generator=generator, dtype=torch.float64)
    weight = torch.zeros(shape, dtype=torch.float64)
    asked = {"precision": "float32", "momentum": 0.0, "weight_decay": 0.0, "flatten": False}
    options = {**asked, **options}
    optimizer = gradstep.Muon([weight], lr=1.0, **options)
    weight.grad = gradient.clone()
    optimizer.step()
    assert set(optimizer.engines_used().values()) == {"fused"}
    return gradient, -weight


SIZES = [(6, 10), (10, 6), (5, 24), (8, 8)]


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("name", ["fixed", *COEFFICIENTS])
def test_every_set_is_its_iteration(name: str, shape: tuple[int, int]) -> None:
    steps = len(COEFFICIENTS[name]) if name in FIXED else 5
    gradient, found = stepped(
        shape, coefficients=name, ns_steps=steps, adjust_lr_fn="spectral_unclamped"
    )
    expected = orthogonal(gradient.numpy(), triples_of(name, steps), name == "aol")
    expected *= (shape[0] / shape[1]) ** 0.5
    numpy.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-9)
    values = numpy.linalg.svd(expected / (shape[0] / shape[1]) ** 0.5)[1]
    assert values.min() > 0.3 and values.max() < 1.4  # what all of them are for


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_symmetric_products_by_blocks_are_the_whole_products(dtype: torch.dtype) -> None:
    x = torch.randn(600, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    s = (x @ x.mT / 600).to(dtype)
    made, wide = plus_square(s, -0.5, 2.0), s.double()
    expected = -0.5 * wide + 2.0 * wide @ wide
    tolerance = 1e-12 if dtype == torch.float64 else 2**-8
    assert (made.double() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("steps", [1, 8, 10])
def test_beyond_its_end_the_last_of_a_set_is_repeated(steps: int) -> None:
    gradient, found = stepped((6, 9), coefficients="polar_express", ns_steps=steps)
    expected = orthogonal(gradient.numpy(), triples_of("polar_express", steps))
    numpy.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-9)


SCALES = {
    None: lambda rows, columns: max(1, rows / columns) ** 0.5,
    "original": lambda rows, columns: max(1, rows / columns) ** 0.5,
    "match_rms_adamw": lambda rows, columns: 0.2 * max(rows, columns) ** 0.5,
    "spectral_unclamped": lambda rows, columns: (rows / columns) ** 0.5,
    "unit_rms": lambda rows, columns: (rows / columns) ** 0.5,
    "spectral": lambda rows, columns: max(rows, columns) ** 0.5,
}
PIECES = {
    "batch": ((3, 6, 8), {}, lambda x: list(x)),
    "batch of batches": ((2, 2, 9, 8), {}, lambda x: list(x.reshape(4, 9, 8))),
    "filters": ((8, 3, 5, 5), {"flatten": True}, lambda x: [x.reshape(8, -1)]),
    "short filters": ((8, 3, 5), {"flatten": True}, lambda x: [x.reshape(8, -1)]),
    "heads": ((12, 5), {"split": 3}, lambda x: [x[i : i + 4] for i in (0, 4, 8)]),
    "fused qkv": ((12, 5), {"split": (6, 4, 2)}, lambda x: [x[:6], x[6:10], x[10:]]),
    "heads of experts": (
        (2, 6, 5), {"split": [4, 2]}, lambda x: [part for e in x for part in (e[:4], e[4:])],
    ),
}  # fmt: skip


@pytest.mark.parametrize("pieces", list(PIECES))
@pytest.mark.parametrize("scale", list(SCALES), ids=str)
def test_each_matrix_in_a_weight_is_made_orthogonal_by_itself(
    pieces: str, scale: str | None
) -> None:
    shape, options, cut = PIECES[pieces]
    gradient, found = stepped(shape, adjust_lr_fn=scale, **options)
    for g, d in zip(cut(gradient.numpy()), cut(found.numpy()), strict=True):
        expected = orthogonal(g, triples_of("fixed", 5)) * SCALES[scale](*g.shape)
        numpy.testing.assert_allclose(d, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("shape", "options"), [v[:2] for v in PIECES.values()], ids=list(PIECES))
def test_alone_in_company_and_eager_it_has_the_same_bits(
    shape: tuple[int, ...], options: dict[str, Any], precision: str
) -> None:
    ends = []
    for company, engine in ((0, "fused"), (2, "fused"), (0, "eager")):
        torch.manual_seed(0)
        weights = [torch.randn(shape) for _ in range(1 + company)]
        optimizer = gradstep.Muon(
            weights, lr=0.1, weight_decay=0.0, precision=precision, engine=engine,
            **{"flatten": False, **options},
        )  # fmt: skip
        for step in range(3):
            for i, w in enumerate(weights):
                w.grad = torch.randn(shape, generator=torch.Generator().manual_seed(7 * i + step))
            optimizer.step()
        ends.append(weights[0])
    assert torch.equal(ends[0], ends[1])
    # The eager engine is torch's arithmetic around the same function.
    torch.testing.assert_close(ends[0], ends[2], rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", ["fixed", "aol", "cubic"])
def test_products_of_bfloat16_are_those_of_machines_that_have_them(name: str) -> None:
    """Where they are made in float32 and rounded: all but some last bits of bfloat16 are alike."""
    from gradstep.linalg.newton_schulz import _narrow, _rounded_iterations

    triples = triples_of(name, len(COEFFICIENTS[name]) if name in FIXED else 5)
    x = torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(2))
    x = (x / x.norm(dim=(-2, -1), keepdim=True)).bfloat16()
    narrow = _narrow(x, triples, 1e-7, name == "aol").float()
    rounded = torch.stack(
        [_rounded_iterations(one, triples, 1e-7, name == "aol") for one in x.float()]
    )
    assert torch.equal(rounded, rounded.bfloat16().float())
    if name != "aol":  # whose sums and roots of rows are rounded at other places
        assert (narrow == rounded).float().mean() > 0.8
    torch.testing.assert_close(narrow, rounded, rtol=0, atol=0.02)


def test_a_running_sum_goes_the_way_of_the_average() -> None:
    """The one is the other times 1/(1 − momentum), which the iteration does not see."""
    ends = []
    for sums in (False, True):
        w = torch.zeros(6, 8)
        optimizer = gradstep.Muon([w], lr=0.1, sum_momentum=sums, precision="float32")
        for step in range(4):
            w.grad = torch.randn(6, 8, generator=torch.Generator().manual_seed(step))
            optimizer.step()
        ends.append((w, optimizer.state[w]["momentum_buffer"]))
    # Nesterov's mix differs in how much of the present gradient is in it.
    numpy.testing.assert_allclose(ends[1][1], ends[0][1] / (1 - 0.95), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("rows", [3, 256, 300, 700])
def test_the_blocks_of_a_gram_matrix_are_all_of_it(rows: int) -> None:
    x = torch.randn(rows, 40, generator=torch.Generator().manual_seed(rows))
    made = gram(x)
    assert torch.equal(made, made.mT) or rows < 256
    numpy.testing.assert_allclose(made, x.double() @ x.double().mT, rtol=0, atol=1e-4)


BAD: list[tuple[tuple[int, ...], dict[str, Any], str]] = [
    ((6, 8), {"split": 4}, "has 6 rows, which split=4 equal parts .heads. do not divide"),
    ((6, 8), {"split": (3, 2)}, r"has 6 rows, and split=\(3, 2\) adds up to 5"),
    ((6, 8), {"split": "qkv"}, "split='qkv', which takes a number of parts, or the rows of each"),
    ((6, 8), {"split": 0}, "split=0, which takes a number of parts"),
    ((6, 8), {"split": (7, -1)}, r"split=\(7, -1\), which takes a number of parts"),
    (
        (8, 3, 5, 5),
        {"flatten": False},
        "filters of a convolution.*Set flatten=True to take it as 8 × 75",
    ),
]


@pytest.mark.parametrize(("shape", "options", "message"), BAD)
def test_what_does_not_fit_a_weight_is_said_before_anything_changes(
    shape: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    fits, does_not = torch.ones(6, 8), torch.ones(shape)
    groups = [{"params": [fits]}, {"params": [does_not], **options}]
    with pytest.raises(ValueError, match=message):
        gradstep.Muon(groups, lr=0.1)
    if "flatten" in options:
        return
    optimizer = gradstep.Muon([{"params": [fits]}, {"params": [does_not]}], lr=0.1)
    optimizer.param_groups[1].update(options)
    fits.grad, does_not.grad = torch.ones(6, 8), torch.ones(shape)
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert (fits == 1).all() and not optimizer.state


def test_the_class_asks_what_more_dimensions_are() -> None:
    """As torch's own refuses them; the rule takes a batch."""
    p = torch.ones(2, 3, 4)
    with pytest.raises(ValueError, match=r"supports 2D parameters.*\(2, 3, 4\).*one of 2 × 12"):
        gradstep.Muon([p])
    gradstep.Muon([{"params": [p], "flatten": True}])
    p.grad = torch.ones(2, 3, 4)
    gradstep.Optimizer([p], gradstep.muon, lr=0.1).step()
    with pytest.raises(
        ValueError, match=r"2D parameters, and .* has size \(3,\)\. Give it to AdamW"
    ):
        gradstep.Muon([torch.ones(3)], flatten=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coefficients": "polar_expres"}, "choose one of 'fixed', .*Did you mean 'polar_express'"),
        ({"adjust_lr_fn": "match"}, "match.*; choose one of 'original', 'match_rms_adamw'"),
        ({"precision": "float16"}, "Invalid precision value: 'float16'; choose one of"),
        (
            {"coefficients": "hybrid"},
            "'hybrid' are for 10 iterations, and ns_steps is 5. Set ns_st",
        ),
    ],
)
def test_a_choice_that_does_not_exist_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gradstep.Muon([torch.zeros(2, 2)], **options)
    if "ns_steps" not in message:
        with pytest.raises(ValueError, match=message):
            gradstep.muon(**options)
        with pytest.raises(ValueError, match=message):
            gradstep.chain(gradstep.clip_by_norm(1.0), gradstep.muon)(**options)


def test_a_function_of_ones_own_with_a_choice() -> None:
    @gradstep.opaque(
        refuses=lambda shape, *, power: None if len(shape) == 2 else f"has {len(shape)} dimensions"
    )
    def raised(x: Tensor, factor: float, *, power: int = 1) -> Tensor:
        """x to a power, factor times."""
        return factor * x**power

    def by_power(g: Any, *, factor: float = 2.0, cubed: bool = False) -> Any:
        return raised(g, factor, power=3 if cubed else 1)

    rule = gradstep.rule(by_power)
    for cubed in (False, True):
        for engine in ("fused", "eager"):
            w = torch.zeros(2, 3)
            optimizer = gradstep.Optimizer([w], rule(cubed=cubed), lr=1.0, engine=engine)
            w.grad = torch.full((2, 3), 3.0)
            optimizer.step()
            assert (w == -2 * (27 if cubed else 3)).all()
    v = torch.zeros(3)
    v.grad = torch.ones(3)
    with pytest.raises(
        ValueError, match=r"by_power calls raised, and parameter 0 .* has 1 dimensions"
    ):
        gradstep.Optimizer([v], rule, lr=1.0).step()
    with pytest.raises(TypeError, match="raised has no choice 'how'; it has: power"):
        raised(w, 1.0, how=2)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has none")
def test_torchs_checkpoint_loads_and_goes_on() -> None:
    """Its groups lack what only ours has."""
    a, b = torch.ones(4, 3), torch.ones(4, 3)
    theirs, ours = torch.optim.Muon([a]), gradstep.Muon([b], split=2)
    a.grad = b.grad = torch.randn(4, 3)
    theirs.step()
    ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0]["split"] == 2
    b.data.copy_(a)
    ours.step()
    theirs.load_state_dict(ours.state_dict())
    theirs.step()


def test_explained_with_its_choices() -> None:
    w = torch.ones(4, 3)
    optimizer = gradstep.Muon([("w", w)], split=2, coefficients="polar_express")
    w.grad = torch.randn(4, 3)
    explanation = gradstep.explain(optimizer, "w", index=(0, 0))
    optimizer.step()
    assert "newton_schulz(" in explanation.text()
    assert newton_schulz.argument_names() == ["x", "a", "b", "c", "eps", "ns_steps"]
