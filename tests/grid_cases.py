"""Trainings whose every bit is compared between kernels of grids and the CPU's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from configurations import FLAG_CONFIGURATIONS, fullest, spelled
from gradstep.backends import dispatch, register
from gradstep.backends.cpu.kernel import Kernel
from gradstep.backends.cuda.code import TARGET
from gradstep.backends.update import Update
from gradstep.program.formats import formats
from gradstep.program.kernel_spec import KernelSpec
from gradstep.program.program import Program
from gradstep.program.weight_formats import WEIGHT_FORMATS
from grid_backend import GridBackend
from reference import REFERENCES, Reference

#: Every elementwise rule with every flag.
FLAT = [(r, o) for r, o in FLAG_CONFIGURATIONS if r.elementwise]
FLAT_NAMES = [f"{r.name}-{spelled(o)}" for r, o in FLAT]
#: Of those the few that the quick run looks at: powers and roots, choices, comparisons.
FEW = [FLAT[FLAT_NAMES.index(name)] for name in ("Adam-default", "Rprop-default", "Lion-default")]

#: Ragged ends, several tensors, one of no dimensions and one without elements.
SMALL = ((), (1030,), (3, 5), (0,), (9, 2))
#: A tensor of several chunks beside them.
LARGE = ((2, 16_401), *SMALL)

#: Rules that look at more than one element, with every flag.
WHOLE = [(r, o) for r, o in FLAG_CONFIGURATIONS if not r.elementwise]
WHOLE += [(r, fullest(r)) for r in REFERENCES if r.coupled]
WHOLE_NAMES = [f"{r.name}-{spelled(o)}" for r, o in WHOLE]
#: Lines of one element and of many, short last ones, several matrices; and tiles beside each other.
MATRICES = ((70, 33), (9, 2), (5, 2, 40), (3, 5))
TILES = ((300, 1100), (2100, 70), (9000, 3), (5, 2050), *MATRICES)

#: Dtype of the weight, and how states and weights are stored.
FORMATS: list[tuple[torch.dtype, dict[str, Any]]] = [
    *(
        (dtype, {"state_dtype": name})
        for name in formats()
        for dtype in (torch.float32, torch.bfloat16, torch.float64)
    ),
    *((torch.bfloat16, {"low_precision": way}) for way in WEIGHT_FORMATS),
    *((torch.float16, {"low_precision": way}) for way in ("stochastic", "kahan", "master")),
    (torch.bfloat16, {"low_precision": "remainder", "state_dtype": "int8"}),
    (torch.bfloat16, {"low_precision": "stochastic 7", "state_dtype": "float8"}),
]
FORMAT_NAMES = [" ".join([str(d), *o.values()]) for d, o in FORMATS]
#: Whole blocks and a short last one; fewer elements than are stored in codes; several chunks.
IN_BLOCKS = ((4097,), (70, 100), (5,))
IN_CHUNKS = (*IN_BLOCKS, (17_001,))


def whole_shapes(
    reference: Reference, shapes: Sequence[tuple[int, ...]]
) -> Sequence[tuple[int, ...]]:
    """The shapes, and others that have no rows where the rule takes such."""
    try:
        reference.ours([nn.Parameter(torch.ones(()))])
    except ValueError:
        return shapes
    return (*shapes, *SMALL)


def trained(
    engine: str,
    reference: Reference,
    options: dict[str, Any],
    dtype: torch.dtype,
    shapes: Sequence[tuple[int, ...]],
    steps: int = 3,
) -> list[Tensor]:
    """Weights and states after some steps.

    One weight lies at an address that is no multiple of 16, and one has its first gradient late.
    """
    draw = torch.Generator().manual_seed(1)

    def normal(shape: tuple[int, ...]) -> Tensor:
        kind = torch.complex128 if dtype.is_complex else torch.float64
        return torch.randn(shape, dtype=kind, generator=draw).to(dtype)

    weights = [nn.Parameter(normal(shape)) for shape in shapes]
    apart = normal((400,))[1:]
    weights.append(nn.Parameter(apart if () in shapes else apart.view(21, 19)))
    optimizer = reference.ours(weights, engine=engine, **options)
    for step in range(steps):
        for number, weight in enumerate(weights):
            gradient = normal(tuple(weight.shape))
            late = number == 1 and step == 0
            weight.grad = None if late else gradient * 10.0 ** -(step + number)
        if getattr(optimizer, "needs_loss", False):
            optimizer.step(lambda: torch.tensor(0.7))
        else:
            optimizer.step()
    assert set(optimizer.engines_used().values()) == {engine}
    found = [w.detach() for w in weights]
    for weight in weights:
        states = optimizer.state[weight]
        found += [states[name] for name in sorted(states) if isinstance(states[name], Tensor)]
    return found


def differing(found: Sequence[Tensor], right: Sequence[Tensor]) -> list[str]:
    """Where bits differ, and not because both are nan, whose other bits processors choose."""
    assert len(found) == len(right)
    wrong = []
    for number, (a, b) in enumerate(zip(found, right, strict=True)):
        assert a.shape == b.shape and a.dtype == b.dtype
        a, b = (torch.view_as_real(t) if t.is_complex() else t for t in (a, b))
        bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
        same = a.contiguous().view(bits) == b.contiguous().view(bits)
        if a.is_floating_point():
            same = same | (a.isnan() & b.isnan())
        if not same.all():
            place = int((~same).flatten().nonzero()[0])
            pair = a.flatten()[place].item(), b.flatten()[place].item()
            wrong.append(f"tensor {number} {tuple(a.shape)} at {place}: {pair}")
    return wrong


def bound(
    reference: Reference, options: dict[str, Any], dtype: torch.dtype
) -> tuple[list[KernelSpec], Program, Kernel, Update]:
    """What a rule comes to for weights of a dtype, as NVIDIA's devices get it."""
    found: list[KernelSpec] = []

    def keep(spec: KernelSpec) -> Any:
        found.append(spec)
        return lambda *arguments: None

    backend = GridBackend("specs", TARGET, keep)
    before = dict(dispatch._engines)
    register(backend)
    try:
        weight = nn.Parameter(torch.ones(64, 64, dtype=dtype))
        weight.grad = torch.ones_like(weight)
        optimizer = reference.ours([weight], engine="specs", **options)
        optimizer.step(lambda: torch.tensor(0.7))
    finally:
        dispatch._engines.clear()
        dispatch._engines.update(before)
    return found, *backend.bound[0]


def specs(reference: Reference, options: dict[str, Any], dtype: torch.dtype) -> list[KernelSpec]:
    """The passes of a rule for weights of a dtype, as NVIDIA's devices get them."""
    return bound(reference, options, dtype)[0]
