"""Every rule's numbers: against torch.optim, against its formula, and between the engines."""

from __future__ import annotations

import functools
import inspect
import itertools
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from configurations import CONFIGURATIONS, implementation_flags, spelled, torch_options
from gradstep import torch_optim
from gradstep.optimizer.optimizer import planner_of
from gradstep.rule.trace import trace
from layouts import (
    channels_last,
    contiguous,
    expanded,
    part_of_larger,
    permuted,
    transposed,
    with_gaps,
)
from reference import REFERENCES, Reference
from reference_row import loss_at
from torch_release import IS_LOWEST

pytestmark = pytest.mark.sweep

# torch.compile's own log would be kept by pytest, at ten times the test's time.
logging.getLogger("torch.__trace").setLevel(logging.WARNING)

STEPS = 25
#: The largest difference allowed, in eps of the largest weight.
BOUND = 8
#: The weight decay of most of torch's configurations.
DECAY = 0.1

REALS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
DTYPES = [*REALS, torch.complex64]
ENGINES = {
    dtype: ("fused",) if dtype in (torch.float16, torch.complex64) else ("fused", "eager")
    for dtype in DTYPES
}


# What is updated: weights of many shapes and layouts, and gradients laid out like them or not.


def always(t: int) -> bool:
    return True


def at_times(t: int) -> bool:
    return t >= 8 and t % 3 != 1


@dataclass(frozen=True)
class Case:
    """A weight: its shape, how it and its gradients lie in memory, and when it has a gradient."""

    name: str
    shape: tuple[int, ...]
    weight: Callable[[Tensor], Tensor] = contiguous
    gradient: Callable[[Tensor], Tensor] = contiguous
    has_gradient: Callable[[int], bool] = always


CASES = (
    Case("0-dim", ()),
    Case("empty", (0,)),
    Case("empty matrix", (3, 0)),
    Case("one element", (1, 1, 1)),
    Case("vector", (7,)),
    Case("matrix", (33, 65)),
    Case("several chunks", (33_001,)),
    Case("channels-last", (6, 3, 5, 5), channels_last, channels_last),
    Case("channels-last weight", (6, 3, 5, 5), channels_last, contiguous),
    Case("channels-last gradient", (6, 3, 5, 5), contiguous, channels_last),
    Case("transposed", (12, 20), transposed, transposed),
    Case("transposed weight", (12, 20), transposed, contiguous),
    Case("transposed gradient", (12, 20), contiguous, transposed),
    Case("permuted", (4, 5, 6), permuted, contiguous),
    Case("part of a larger tensor", (3, 7), part_of_larger, part_of_larger),
    Case("gaps in the weight", (5, 6), with_gaps, contiguous),
    Case("gaps in the gradient", (5, 6), contiguous, with_gaps),
    Case("expanded gradient", (4, 5), contiguous, expanded),
    Case("at times without gradient", (40,), contiguous, contiguous, at_times),
)

#: Weights and gradients that lie in memory as they mostly do, the one with most elements last.
SHAPES = tuple(
    sorted(
        (
            case
            for case in CASES
            if case.weight is case.gradient is contiguous and case.shape != (3, 0)
        ),
        key=lambda case: math.prod(case.shape),
    )
)

#: Where a tensor's elements lie is the engine's affair: the quick run asks of all layouts only for
#: the representatives, see :func:`representatives.deep`.
in_all_layouts = pytest.mark.parametrize("all_layouts", [False, True], ids=["shapes", "layouts"])


def one_by_one(reference: Reference) -> dict[str, Any]:
    """The flag for torch's plain loop, where it has another."""
    names = inspect.signature(reference.theirs or object).parameters
    return {"foreach": False} if "foreach" in names else {}


def suited(reference: Reference, cases: Sequence[Case] = CASES) -> tuple[Case, ...]:
    """The cases that a rule can have: torch itself divides by the size of an empty weight."""
    return tuple(
        case
        for case in cases
        if (reference.elementwise or math.prod(case.shape))
        and reference.takes_shape(case.shape)
        and not (reference.coupled and case.has_gradient is at_times)  # test_shared_states.py
    )


def eager_only(reference: Reference, case: Case) -> bool:
    """Whether a weight lies in memory as no kernel takes it."""
    rows_apart = case.weight in (channels_last, transposed, permuted)
    return case.weight is with_gaps or (reference.by_rows and rows_apart)


@dataclass(frozen=True)
class Problem:
    """Starting weights and all gradients of a run, one list of gradients a case."""

    cases: Sequence[Case]
    weights: Sequence[Tensor]
    gradients: Sequence[Sequence[Tensor | None]]


@functools.lru_cache(maxsize=12)  # the types and layouts of one rule; of 8 MB each
def problem(dtype: torch.dtype, cases: tuple[Case, ...] = CASES, seed: int = 0) -> Problem:
    """Weights of size 1 and gradients of sizes 0.01 to 3; some elements always have gradient 0.

    In float16 torch's own states underflow unless gradients are of size 1 to 4, so there they are.
    The largest weight has the largest gradients: among so many that were of the size of the decay,
    some would all but cancel it step after step. And no first gradient all but cancels its weight's
    decay: what is left would be rounding alone, and a rule that divides the first gradient by its
    own size makes a whole step of it.
    """
    generator = torch.Generator().manual_seed(seed)
    weights, gradients = [], []
    for number, case in enumerate(cases):
        size = 10 ** ((number * 3 + 1) % 10 / 4 - 2)
        weights.append(torch.randn(case.shape, dtype=dtype, generator=generator))
        dead = torch.rand(case.shape, generator=generator) < 0.02
        own: list[Tensor | None] = []
        for t in range(STEPS):
            g = torch.randn(case.shape, dtype=dtype, generator=generator) * size
            if dtype == torch.float16:
                g = g.sign() * (1 + 3 * torch.rand(case.shape, generator=generator)).half()
            else:
                g = torch.where(dead, torch.zeros_like(g), g)
            if all(earlier is None for earlier in own):
                near = (g.abs() - DECAY * weights[-1].abs()).abs() < 1e-3
                g = torch.where(near & ~dead, torch.full_like(g, 0.5), g)
            own.append(case.gradient(g) if case.has_gradient(t) else None)
        gradients.append(own)
    return Problem(cases, weights, gradients)


@pytest.fixture(scope="module", autouse=True)
def _no_problem_stays() -> Iterator[None]:
    yield
    problem.cache_clear()


def run(
    make: Callable[..., torch.optim.Optimizer],
    given: Problem,
    options: dict[str, Any],
    steps: int = STEPS,
) -> tuple[list[Tensor], torch.optim.Optimizer]:
    """The weights after all steps, and the optimizer."""
    weights = [
        torch.nn.Parameter(case.weight(w))
        for case, w in zip(given.cases, given.weights, strict=True)
    ]
    # What only the eager engine takes has a group of its own: beside it the others would be planned
    # anew at every step, and the tests take twice as long. test_any_hyperparameters mixes them.
    apart = [with_gaps is case.weight and len(given.cases) > 5 for case in given.cases]
    groups = [[w for w, a in zip(weights, apart, strict=True) if a is b] for b in (False, True)]
    optimizer = make([{"params": group} for group in groups if group], **options)
    for t in range(steps):
        for w, gradients in zip(weights, given.gradients, strict=True):
            w.grad = gradients[t]
        optimizer.step(lambda t=t: loss_at(t))
    return [w.detach() for w in weights], optimizer


def real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def assert_close(
    ours: Sequence[Tensor],
    theirs: Sequence[Tensor],
    given: Problem,
    bound: float = BOUND,
    steps_in: torch.dtype | None = None,
) -> None:
    """Each weight is within ``bound`` eps of the largest of its tensor, before and after.

    Or within one eps of the type ``steps_in``, of the tensor's largest change.
    """
    for case, a, b, start in zip(given.cases, ours, theirs, given.weights, strict=True):
        if a.numel() == 0:
            continue
        a64, b64, start64 = (real(t.resolve_conj()).double() for t in (a, b, start))
        largest = max(b64.abs().max().item(), start64.abs().max().item())
        difference = (a64 - b64).abs().max().item()
        unit = torch.finfo(a.dtype).eps * largest
        allowed = bound * unit
        if steps_in is not None:
            change = (b64 - start64).abs().max().item()
            allowed = max(allowed, torch.finfo(steps_in).eps * change)
        assert difference <= allowed, f"{case.name}: {difference / unit:.1f} eps"


def assert_same_states(ours: torch.optim.Optimizer, theirs: torch.optim.Optimizer) -> None:
    """The same states, each within twice BOUND eps of the largest of its tensor."""
    pairs = zip(ours.param_groups, theirs.param_groups, strict=True)
    params = [zip(a["params"], b["params"], strict=True) for a, b in pairs]
    for p, q in itertools.chain(*params):
        expected = {n: v for n, v in theirs.state[q].items() if v is not None}
        assert set(ours.state[p]) == set(expected)
        for name, value in expected.items():
            found = ours.state[p][name]
            largest = value.abs().max().item() if value.numel() else 0.0
            allowed = 2 * BOUND * torch.finfo(found.dtype).eps * largest
            assert found.shape == value.shape
            assert ((found - value).abs() <= allowed).all(), name


# The configurations: those of torch's own tests, and those of the table.


NAMED_CONFIGURATIONS = [
    pytest.param(reference, options, id=f"{reference.name}-{spelled(options)}")
    for reference, options in CONFIGURATIONS
]
TORCH_CONFIGURATIONS = [
    pytest.param(*c.values, dtype, engine, id=f"{c.id}-{dtype}-{engine}")
    for c in NAMED_CONFIGURATIONS
    for dtype in DTYPES
    for engine in ENGINES[dtype]
    if c.values[0].theirs is not None and (c.values[0].takes_complex or not dtype.is_complex)
]


def test_the_table_covers_every_rule_and_class() -> None:
    import gradstep
    from gradstep import rules
    from gradstep.classes import rule_classes
    from gradstep.sight.catalogue import is_stage

    elsewhere = {"LBFGS", "SparseAdam"}  # no rule, and one that takes only sparse gradients
    every = {*torch_optim.__all__, *rule_classes.load()}
    assert {r.name for r in REFERENCES} == every - elsewhere
    stages = {name for name, rule in rules.load().items() if is_stage(rule)}  # test_chain.py
    assert {r.rule.name for r in REFERENCES} == set(rules.load()) - stages - {"sparse_adam"}
    for reference in REFERENCES:
        made = reference.ours([torch.zeros((1,) * (reference.dimensions or 1))])
        assert planner_of(made).rule is reference.rule and isinstance(made, gradstep.Optimizer)
        if reference.theirs is not None:
            assert len(torch_options(reference.theirs)) >= 5


def exact(
    reference: Reference, given: Problem, options: dict[str, Any], kind: Any = None
) -> list[Any]:
    """The weights by the formula.

    In the given type of NumPy's; without, in float64, or for float64 in extended precision.
    """
    numbers = {k: v for k, v in options.items() if k != "maximize"}
    for name, value in numbers.items():
        if isinstance(value, Tensor):
            numbers[name] = value.item()
        elif isinstance(value, tuple):
            numbers[name] = tuple(None if v is None else float(v) for v in value)
    sign = -1 if options.get("maximize") else 1
    if kind is None:
        wide = given.weights[0].dtype == torch.float64
        kind = numpy.longdouble if wide else numpy.float64

    def as_array(tensor: Tensor) -> Any:
        return real(tensor).double().numpy().astype(kind)

    if reference.coupled:
        steps = [
            sign * numpy.concatenate([as_array(g).ravel() for g in row if g is not None])
            for row in zip(*given.gradients, strict=True)
        ]
        start = numpy.concatenate([as_array(w).ravel() for w in given.weights])
        *_, last = reference.formula(start, steps, **numbers)
        ends = numpy.cumsum([w.numel() for w in given.weights])[:-1]
        parts = zip(numpy.split(last, ends), given.weights, strict=True)
        return [part.reshape(w.shape) for part, w in parts]
    results = []
    for weight, gradients in zip(given.weights, given.gradients, strict=True):
        arrays = (None if g is None else sign * as_array(g) for g in gradients)
        *_, last = reference.formula(as_array(weight), arrays, **numbers)
        results.append(last)
    return results


def largest_error(weights: Sequence[Tensor], truth: Sequence[Any]) -> float:
    """The largest difference from the truth over all weights."""
    return max(
        float(numpy.abs(real(w).double().numpy().astype(t.dtype) - t).max(initial=0))
        for w, t in zip(weights, truth, strict=True)
    )


@pytest.mark.every_rule
@in_all_layouts
@pytest.mark.parametrize(("reference", "options", "dtype", "engine"), TORCH_CONFIGURATIONS)
def test_same_as_torch_and_as_exact(
    reference: Reference,
    options: dict[str, Any],
    dtype: torch.dtype,
    engine: str,
    all_layouts: bool,
) -> None:
    """Within the bound of torch, and no further from the formula than torch by more than half.

    "As exact" is a statement about a configuration: the largest error over all of its weights,
    some 39,000, so that it is not one unlucky rounding that decides.
    """
    assert reference.theirs is not None
    # torch works out step sizes in the type of a learning rate that is a tensor.
    options = {n: v.double() if isinstance(v, Tensor) else v for n, v in options.items()}
    given = problem(dtype, suited(reference, CASES if all_layouts else SHAPES))
    truth = exact(reference, given, options)
    theirs, in_torch = run(reference.theirs, given, {**options, **one_by_one(reference)})
    ours, optimizer = run(reference.ours, given, {**options, "engine": engine})
    if dtype == torch.float16 and IS_LOWEST:  # there eps becomes 0, and 0 / 0 nan
        assert not any(w.isnan().any() for w in ours)
        theirs = [t.where(~t.isnan(), o) for t, o in zip(theirs, ours, strict=True)]
    allowed = 1.5 * largest_error(theirs, truth)
    # torch rounds to float16 several times a step, so there its roundings may add up.
    bound = STEPS / 2 if dtype == torch.float16 else BOUND
    assert_close(ours, theirs, given, max(bound, reference.bound), reference.steps_in)
    if dtype in (torch.float32, torch.float64):
        assert_same_states(optimizer, in_torch)
    # Among fewer weights of 16 bits one unlucky rounding decides after all.
    told = all_layouts if dtype.itemsize == 2 else numpy.finfo(numpy.longdouble).eps < 1e-18
    if told or dtype == torch.float32 or dtype.is_complex:
        assert largest_error(ours, truth) <= allowed
    used = list(optimizer.engines_used().values())  # type: ignore[attr-defined]
    count = len(given.cases)
    apart = sum(eager_only(reference, case) for case in given.cases)
    expected = (count - apart, apart) if engine == "fused" else (count, count)
    assert (used.count(engine), used.count("eager")) == expected


#: A class that only this torch has not (Muon came with 2.9) is none of these.
FORMULA_CONFIGURATIONS = pytest.mark.parametrize(
    ("reference", "options"),
    [
        c
        for c in NAMED_CONFIGURATIONS
        if c.values[0].theirs is None and c.values[0].name not in torch_optim.__all__
    ],
)


def but_for_the_largest(reference: Reference, dtype: torch.dtype, all_layouts: bool) -> Problem:
    """What a rule is given, without the weight of several chunks.

    Of 33,000 elements one may have an average so near 0 that its sign, all that Lion takes of it,
    is a matter of rounding.
    """
    cases = suited(reference, CASES if all_layouts else SHAPES)
    return problem(dtype, tuple(c for c in cases if c.name != "several chunks"))


@pytest.mark.every_rule
@in_all_layouts
@pytest.mark.parametrize("engine", ["fused", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@FORMULA_CONFIGURATIONS
def test_same_as_the_formula(
    reference: Reference,
    options: dict[str, Any],
    dtype: torch.dtype,
    engine: str,
    all_layouts: bool,
) -> None:
    """Where torch has no such class: the formula itself, in the type of the weights."""
    given = but_for_the_largest(reference, dtype, all_layouts)
    in_kind = exact(reference, given, options, torch.zeros((), dtype=dtype).numpy().dtype)
    ours, _ = run(reference.ours, given, {**options, "engine": engine})
    ends = [torch.tensor(numpy.float64(a)) for a in in_kind]
    assert_close(ours, ends, given, reference.bound)


@pytest.mark.parametrize(
    "all_layouts",
    [pytest.param(False, id="shapes"), pytest.param(True, id="layouts", marks=pytest.mark.deep)],
)
@pytest.mark.parametrize("engine", ["fused", pytest.param("eager", marks=pytest.mark.deep)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@FORMULA_CONFIGURATIONS
def test_roundings_apart_from_the_formula_in_more_digits(
    reference: Reference,
    options: dict[str, Any],
    dtype: torch.dtype,
    engine: str,
    all_layouts: bool,
) -> None:
    """Equal steps round alike, so the roundings of all steps may add up, and no more than these."""
    given = but_for_the_largest(reference, dtype, all_layouts)
    ours, _ = run(reference.ours, given, {**options, "engine": engine})
    ends = [torch.tensor(numpy.float64(a)) for a in exact(reference, given, options)]
    assert_close(ours, ends, given, max(STEPS, reference.bound))


def exact_configurations() -> Iterator[Any]:
    """Of 16-bit types those only whose learning rate they hold: torch rounds it to the type."""
    for reference, dtype in itertools.product(REFERENCES, REALS):
        for options in reference.exact:
            lr = options.get("lr", reference.ours([torch.zeros(1)]).defaults["lr"])
            if dtype.itemsize > 2 or torch.tensor(lr, dtype=dtype).item() == lr:
                label = f"{reference.name}-{spelled(options)}-{dtype}"
                yield pytest.param(reference, options, dtype, id=label)


@pytest.mark.parametrize(("reference", "options", "dtype"), list(exact_configurations()))
def test_bits_of_torch(reference: Reference, options: dict[str, Any], dtype: torch.dtype) -> None:
    assert reference.theirs is not None
    for mode in ({"foreach": False}, {"foreach": True}, {"fused": True}):
        cases = CASES
        if mode == {"fused": True}:
            # Here torch rounds lr · gradient to 16 bits, and takes gradients in the order of
            # memory, whatever their layout.
            if dtype in (torch.bfloat16, torch.float16):
                continue
            cases = tuple(c for c in CASES if c.weight is c.gradient)
        given = problem(dtype, cases)
        theirs, _ = run(reference.theirs, given, {**options, **mode})
        for engine in ("fused", "eager"):
            ours, _ = run(reference.ours, given, {**options, "engine": engine})
            for case, a, b in zip(cases, ours, theirs, strict=True):
                assert torch.equal(a, b), f"{case.name}, {engine}, torch's {mode}"


# Flags, which change nothing in the result.


def accepted(reference: Reference) -> list[dict[str, Any]]:
    flags = implementation_flags(reference)
    return [*flags, {n: False for flag in flags for n in flag}]


@pytest.mark.parametrize(
    ("reference", "flags"),
    [
        pytest.param(
            r,
            flags,
            id=f"{r.name}-{spelled(flags)}",
            marks=[] if all(flags.values()) else pytest.mark.deep,
        )
        for r in REFERENCES
        for flags in accepted(r)
    ],
)
def test_flags_change_nothing(reference: Reference, flags: dict[str, Any]) -> None:
    options = max((*torch_options(reference.theirs), *reference.extra), key=len)
    options = {k: float(v) if isinstance(v, Tensor) else v for k, v in options.items()}
    for dtype in (torch.float32, torch.bfloat16):
        given = problem(dtype, suited(reference, CASES[:6]))
        for engine in ("fused", "eager"):
            plain, _ = run(reference.ours, given, {**options, "engine": engine}, 5)
            options_and_flags = {**options, **flags, "engine": engine}
            flagged, optimizer = run(reference.ours, given, options_and_flags, 5)
            assert all(torch.equal(a, b) for a, b in zip(plain, flagged, strict=True))
            assert {n: optimizer.param_groups[0][n] for n in flags} == flags


@pytest.mark.parametrize(
    "reference",
    [
        r
        for r in REFERENCES
        if r.theirs and "differentiable" in r.theirs([torch.ones(1, 1)]).defaults
    ],
    ids=lambda r: r.name,
)
def test_differentiable(reference: Reference) -> None:
    """The weights of torch, and the gradient of a loss with respect to the gradients."""
    assert reference.theirs is not None
    given = problem(torch.float64, CASES[4:6])
    seen = []
    for make, extra in ((reference.theirs, {"foreach": False}), (reference.ours, {})):
        starts = [w.clone().requires_grad_() for w in given.weights]
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        weights = [w.clone() for w in starts]
        optimizer = make(weights, differentiable=True, **extra)
        for t in range(5):
            for w, gradients in zip(weights, given.gradients, strict=True):
                g = gradients[t]
                assert g is not None
                # No element is 0, where the derivative of a root has none.
                w.grad = torch.where(g == 0, 0.25, g) * scale**t
            optimizer.step()
        loss = sum(((i + 1) * w).square().sum() for i, w in enumerate(weights))
        try:
            slopes = torch.autograd.grad(loss, [*starts, scale])
        except RuntimeError:
            # torch's Adamax and Rprop write over what autograd still needs.
            assert make is reference.theirs and reference.name in ("Adamax", "Rprop")
            slopes = ()
        seen.append([*weights, *slopes])
    for theirs, ours in zip(*seen, strict=len(seen[0]) == len(seen[1])):
        # torch works out the step size in float32 here.
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


# Hyperparameters that nobody listed.

RANGES: dict[str, st.SearchStrategy[Any]] = {
    # Long steps of unit size around 0 follow their own rounding: there the weight decays towards 0,
    # steps over it, and turns.
    "lr": st.floats(-4, -1.5).map(lambda x: 10**x),
    # Other decays may all but cancel a first gradient, see problem().
    "weight_decay": st.sampled_from([0.0, DECAY]),
    "betas": st.tuples(st.floats(0, 0.99), st.floats(0.5, 0.9999)),
    "eps": st.floats(-10, -1).map(lambda x: 10**x),
    "beta2_decay": st.floats(-1, -0.5),
    "d": st.floats(1, 2),
    "ns_steps": st.integers(1, 6),
    "momentum": st.floats(0, 0.95),
    "momentum_decay": st.floats(0, 1),
    "rho": st.floats(0, 0.99),
    "lambd": st.floats(0, 0.1),
    "t0": st.floats(0, 100),
    "etas": st.tuples(st.floats(0.1, 0.9), st.floats(1.1, 2)),
    "dampening": st.floats(-1, 1),
    # A short memory makes RMSprop's centred variance a difference of nearly equal numbers.
    "alpha": st.floats(0.9, 0.999),
    "lr_decay": st.floats(0, 1),
    "initial_accumulator_value": st.floats(0, 10),
    **{
        flag: st.booleans()
        for flag in ("maximize", "nesterov", "amsgrad", "decoupled_weight_decay", "centered")
    },
}


@pytest.mark.parametrize("reference", [r for r in REFERENCES if r.theirs], ids=lambda r: r.name)
@settings(max_examples=4)
@given(data=st.data())
def test_any_hyperparameters(reference: Reference, data: st.DataObject) -> None:
    check_any_hyperparameters(reference, data)


@pytest.mark.deep
@pytest.mark.parametrize("reference", [r for r in REFERENCES if r.theirs], ids=lambda r: r.name)
@settings(max_examples=20)
@given(data=st.data())
def test_more_hyperparameters(reference: Reference, data: st.DataObject) -> None:
    check_any_hyperparameters(reference, data)


def check_any_hyperparameters(reference: Reference, data: st.DataObject) -> None:
    assert reference.theirs is not None
    names = reference.theirs([torch.zeros((1,) * (reference.dimensions or 1))]).defaults
    options = {n: data.draw(RANGES[n], n) for n in names if n in RANGES}
    if reference.name == "Adafactor":  # two of another meaning
        del options["eps"]
    if options.get("nesterov"):
        options["momentum"] = options["momentum"] or 0.5
        if "dampening" in options:
            options["dampening"] = 0.0
    if reference.ours.__name__ == "AdamW":
        options.pop("decoupled_weight_decay", None)
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    some = st.lists(st.sampled_from(suited(reference)), min_size=1, max_size=3)
    cases = data.draw(some)
    given = problem(dtype, tuple(cases), data.draw(st.integers(1, 5)))
    theirs, _ = run(reference.theirs, given, {**options, **one_by_one(reference)})
    for engine in ("fused", "eager"):
        ours, _ = run(reference.ours, given, {**options, "engine": engine})
        assert_close(ours, theirs, given, reference.bound, reference.steps_in)


# The third engine. torch.compile takes seconds a function, so each rule has one function for four
# tensors of three dtypes.


#: Of the classes whose function is compiled, and not said to run eagerly, the quick run's.
COMPILED_SOON = {"Adam"}


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch.compile needs a compiler"
)
@pytest.mark.parametrize(
    "reference",
    [
        pytest.param(r, id=r.name, marks=[pytest.mark.deep] * (r.name not in COMPILED_SOON))
        for r in REFERENCES
    ],
)
def test_compile_engine(reference: Reference) -> None:
    options = max((*torch_options(reference.theirs), *reference.extra), key=len)
    options = {k: float(v) if isinstance(v, Tensor) else v for k, v in options.items()}
    cases = (
        (Case("0-dim", ()), torch.float32),
        (Case("transposed weight", (4, 3), transposed), torch.float32),
        (Case("vector", (9,)), torch.float64),
        (Case("half", (5, 1)), torch.bfloat16),
    )
    cases = tuple(c for c in cases if suited(reference, c[:1]))
    parts = [problem(dtype, (case,)) for case, dtype in cases]
    given = Problem(
        [case for case, _ in cases],
        [w for part in parts for w in part.weights],
        [own for part in parts for own in part.gradients],
    )
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    eager, _ = run(reference.ours, given, {**options, "engine": "eager"})
    compiled, optimizer = run(reference.ours, given, {**options, "engine": "compile"})
    values = {**reference.rule.hyperparameters, "lr": 0.1}
    graphs = [trace(reference.rule, values, matrix=len(case.shape) > 1) for case in given.cases]
    # A function that torch.compile need not understand, or sums that all parameters wait for.
    calls = [graph.calls_opaque or graph.sums_over_all for graph in graphs]
    expected = ["eager" if called else "compile" for called in calls]
    assert list(optimizer.engines_used().values()) == expected  # type: ignore[attr-defined]
    if all(calls):
        return
    assert_close(compiled, eager, given)
    if reference.theirs is not None:
        theirs, _ = run(reference.theirs, given, {**options, **one_by_one(reference)})
        assert_close(compiled, theirs, given)
    # One function for all steps: neither the step count nor the first step made another. torch
    # makes a second for a number that is nan, as one of RAdam's is at first.
    made = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    # A rule that tells vectors from matrices has one for each, unless one of them is not compiled.
    compiled_cases = [case for case, called in zip(given.cases, calls, strict=True) if not called]
    kinds = len({len(case.shape) > 1 for case in compiled_cases})
    apart = kinds if reference.rule.tells_vectors_apart else 1
    assert made == (2 if reference.name == "RAdam" else apart)
