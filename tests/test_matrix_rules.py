"""Rules of matrices: the same bits alone and among others, and gradients of any size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import gradstep

#: Weights of each shape several times, those of a batch that a matrix may be one of.
SHAPES = ((12, 20), (20, 12), (9, 9), (3, 1), (4, 3, 2, 2), (7,), ())
#: Each rule with options that have all of it at work within a few steps.
RULES: dict[str, tuple[Any, dict[str, Any]]] = {
    "SinkGD": (gradstep.SinkGD, {}),
    "RACS": (gradstep.RACS, {}),
    "KLShampoo": (gradstep.KLShampoo, {}),
    "KLSOAP": (gradstep.KLSOAP, {"precondition_frequency": 2}),
    "SPlus": (gradstep.SPlus, {"inverse_steps": 2}),
    "PSGDPro": (gradstep.PSGDPro, {"max_size": 15}),
    "Conda": (gradstep.Conda, {"update_proj_gap": 3}),
    "Fira": (gradstep.Fira, {"rank": 3, "update_proj_gap": 3}),
    "NorMuon": (gradstep.NorMuon, {}),
    "AdaMuon": (gradstep.AdaMuon, {}),
    "AdaGO": (gradstep.AdaGO, {}),
    "PolarGrad": (gradstep.PolarGrad, {}),
    "Scion": (gradstep.Scion, {}),
    "Dion": (gradstep.Dion, {"rank_fraction": 0.5}),
    "Dion2": (gradstep.Dion2, {}),
    "SOAPMuon": (gradstep.SOAPMuon, {"precondition_frequency": 2}),
}
#: Those that are given nothing but matrices.
MATRICES_ONLY = {
    "NorMuon",
    "AdaMuon",
    "AdaGO",
    "PolarGrad",
    "Scion",
    "Dion",
    "Dion2",
    "SOAPMuon",
}
each_rule = pytest.mark.parametrize("name", RULES)
each_engine = pytest.mark.parametrize(
    "engine", ["fused", pytest.param("eager", marks=pytest.mark.deep)]
)


def some_weights(name: str, count: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    random = torch.Generator().manual_seed(4)
    shapes = [s for s in SHAPES if len(s) == 2 or name not in MATRICES_ONLY]
    return [torch.randn(s, generator=random).to(dtype) for s in shapes for _ in range(count)]


def trained(name: str, starts: list[Tensor], steps: int = 5, **more: Any) -> list[Tensor]:
    """The weights after some steps; each one's gradients depend on its own start alone."""
    cls, options = RULES[name]
    weights = [torch.nn.Parameter(w.clone()) for w in starts]
    optimizer = cls(weights, **{"lr": 0.01, **options, **more})
    for number in range(steps):
        for w, start in zip(weights, starts, strict=True):
            w.grad = (start * (number + 1)).sin() + w.detach()
        optimizer.step()
    return [w.detach() for w in weights]


@each_engine
@each_rule
def test_alone_and_among_others_of_its_shape(name: str, engine: str) -> None:
    starts = some_weights(name, 3)
    together = trained(name, starts, engine=engine)
    for start, among in zip(starts[::3], together[::3], strict=True):
        (alone,) = trained(name, [start], engine=engine)
        assert torch.equal(alone, among), start.shape
        assert not torch.equal(alone, start)


@each_engine
@each_rule
def test_zeros_and_tiny_and_huge_gradients(name: str, engine: str) -> None:
    """No weight becomes inf or nan, and after zeros a weight moves again."""
    cls, options = RULES[name]
    weights = [torch.nn.Parameter(w) for w in some_weights(name, 1)]
    optimizer = cls(weights, lr=0.01, engine=engine, **options)
    # The factors of KL multiply and divide sizes of different steps by each other.
    kl = name.startswith("KL")
    for size in (0.0, 1e-9, 0.0, 1.0, 1e-9, 1e6) if kl else (0.0, 1e-30, 0.0, 1.0, 1e-12, 1e12):
        if size == 1:
            before = [w.detach().clone() for w in weights]
        for w in weights:
            w.grad = torch.full_like(w, size)
        optimizer.step()
        assert all(w.isfinite().all() for w in weights), size
    assert not any(torch.equal(a, b) for a, b in zip(before, weights, strict=True))


@each_rule
def test_a_step_of_length_0_without_a_gradient(name: str) -> None:
    """As torch.distributed.checkpoint makes one, to have the states there."""
    cls, options = RULES[name]
    starts = some_weights(name, 1)
    weights = [torch.nn.Parameter(w.clone()) for w in starts]
    decay = {} if name == "Scion" else {"weight_decay": 0.1}  # whose own it is
    optimizer = cls(weights, lr=0.0, **decay, **options)
    for w in weights:
        w.grad = torch.zeros_like(w)
    optimizer.step()
    assert all(torch.equal(w.detach(), start) for w, start in zip(weights, starts, strict=True))
    assert all(t.isfinite().all() for entry in optimizer.state.values() for t in entry.values())


@pytest.mark.parametrize("name", ["NorMuon", "AdaMuon", "PolarGrad", "Scion"])
def test_a_stack_of_matrices_is_matrices(name: str) -> None:
    """Experts move as each would alone; but for lengths that are taken of the whole weight."""
    (start,) = (torch.randn(3, 6, 9, generator=torch.Generator().manual_seed(2)),)
    options: dict[str, Any] = {"precision": "float32", "weight_decay": 0.1}
    options |= {"coefficients": "cubic"} if name == "AdaMuon" else {}
    if name == "Scion":
        options.pop("weight_decay")
    (whole,) = trained(name, [start], **options)
    parts = trained(name, list(start), **options)
    for one, own, before in zip(whole, parts, start, strict=True):
        ways = [(x - before).flatten() for x in (one, own)]
        cosine = torch.nn.functional.cosine_similarity(*ways, dim=0)
        assert cosine > (0.99999 if name == "Scion" else 0.95)


def test_bfloat16_is_near_to_float32() -> None:
    """What the rules are given by default."""
    for name in sorted(MATRICES_ONLY - {"Dion"}):
        starts = some_weights(name, 1)[:3]
        near, full = (trained(name, starts, precision=p) for p in ("bfloat16", "float32"))
        for a, b, start in zip(near, full, starts, strict=True):
            assert (a - b).norm() < 0.1 * (b - start).norm(), (name, start.shape)


def test_a_bias_under_scion_and_what_takes_no_vector() -> None:
    bias, row = torch.nn.Parameter(torch.zeros(4)), torch.nn.Parameter(torch.zeros(4))
    bias.grad = torch.tensor([3.0, -4.0, 0.0, 0.0])
    gradstep.Scion([bias], lr=0.5, momentum=0.0).step()
    torch.testing.assert_close(bias.detach(), torch.tensor([-0.6, 0.8, 0.0, 0.0]))
    for name in sorted(MATRICES_ONLY - {"Scion"}):
        row.grad = torch.ones(4)
        with pytest.raises(ValueError, match="another rule"):
            RULES[name][0]([row]).step()


IN_TURN: dict[str, tuple[Any, str]] = {
    "Shampoo": (gradstep.Shampoo, "roots"),
    "SOAP": (gradstep.SOAP, "Q"),
    "SOAPMuon": (gradstep.SOAPMuon, "Q"),
    "KLShampoo": (gradstep.KLShampoo, "roots"),
    "KLSOAP": (gradstep.KLSOAP, "Q"),
    "SPlus": (gradstep.SPlus, "Q"),
}


def refreshed(
    cls: Any, kept: str, shapes: list[tuple[int, int]], steps: int, **options: Any
) -> list[Tensor]:
    """Of each step after the first, which numbers of each weight's bases or roots have changed."""
    random = torch.Generator().manual_seed(3)
    weights = [torch.nn.Parameter(torch.randn(s, generator=random)) for s in shapes]
    name = "inverse_steps" if cls is gradstep.SPlus else "precondition_frequency"
    optimizer = cls(weights, lr=0.01, **{name: 4}, **options)
    changes = []
    for _ in range(steps + 1):
        before = [optimizer.state[w][kept].clone() for w in weights if w in optimizer.state]
        for w in weights:
            w.grad = torch.randn(w.shape, generator=random)
        optimizer.step()
        after = [optimizer.state[w][kept] for w in weights]
        if before:
            changes.append(torch.stack([a != b for a, b in zip(before, after, strict=True)]))
    return changes


def by_weight(changes: list[Tensor]) -> Tensor:
    """Of each step, of which weights any number has changed."""
    return torch.stack([c.flatten(1).any(-1) for c in changes])


@pytest.mark.parametrize("name", IN_TURN)
def test_in_turn_each_matrix_is_refreshed_at_steps_of_its_own(name: str) -> None:
    """Of eight weights two at each of four steps, in the same order again and again."""
    cls, kept = IN_TURN[name]
    shapes = [(6, 6)] * 8
    changes = by_weight(refreshed(cls, kept, shapes, 8, in_turn=True))
    assert changes.sum(0).tolist() == [2] * 8 and changes.sum(1).tolist() == [2] * 8
    assert torch.equal(changes[:4], changes[4:])
    together = by_weight(refreshed(cls, kept, shapes, 8))
    assert sorted(together.sum(1).tolist()) == [0] * 6 + [8] * 2


@pytest.mark.parametrize("name", ["Shampoo", "SOAP"])
def test_in_turn_each_block_too(name: str) -> None:
    """Of a weight of four blocks one at each of four steps."""
    cls, kept = IN_TURN[name]
    changes = torch.stack(
        [c[0] for c in refreshed(cls, kept, [(12, 12)], 4, in_turn=True, block_size=6)]
    )
    blocks = changes.view(4, 4, 2 * 6 * 6).any(-1)
    assert blocks.sum(0).tolist() == [1] * 4 and blocks.sum(1).tolist() == [1] * 4


@pytest.mark.parametrize("name", ["AdaMuon", "Scion"])
def test_filters_that_are_flattened_move_as_the_matrix_that_they_are(name: str) -> None:
    filters = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(5))
    options = {"precision": "float32", "flatten": True}
    (whole,) = trained(name, [filters], **options)
    (matrix,) = trained(name, [filters.flatten(1)], **options)
    assert torch.equal(whole.flatten(1), matrix)
    assert not torch.equal(whole, filters)


def test_parts_of_scions_matrix_move_as_matrices_of_their_own() -> None:
    fused = torch.randn(8, 5, generator=torch.Generator().manual_seed(6))
    options = {"precision": "float32", "coefficients": "cubic"}
    (whole,) = trained("Scion", [fused], split=(6, 2), **options)
    parts = trained("Scion", list(fused.split((6, 2))), **options)
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-5, atol=1e-6)
    (unsplit,) = trained("Scion", [fused], **options)
    assert not torch.allclose(whole, unsplit, atol=1e-3)
