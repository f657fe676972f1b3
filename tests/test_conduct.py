"""How every class behaves beside its arithmetic: the same tests over every rule and flag.

Libraries of optimizers fail many of these: they write into gradients, draw from the global random
generator, or count the steps of a weight that had no gradient.
"""

from __future__ import annotations

import copy
import functools
import itertools
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import gradstep
from configurations import FLAG_CONFIGURATIONS, implementation_flags, spelled, torch_options
from gradstep.optimizer.optimizer import planner_of
from layouts import (
    channels_last,
    contiguous,
    expanded,
    part_of_larger,
    permuted,
    transposed,
    with_gaps,
)
from reference import Reference
from reference_row import loss_at

pytestmark = pytest.mark.sweep

REALS = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
ENGINES = ("auto", "eager")

Layout = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Subject:
    """One class with arguments.

    Attributes:
        name: the class's.
        make: the class.
        options: its arguments.
        gradients: ``"dense"``, ``"sparse"`` in some rows, or of a ``"closure"``.
        reference: its row in the table; None for what has none.
    """

    name: str
    make: Callable[..., Any]
    options: dict[str, Any]
    gradients: str = "dense"
    reference: Reference | None = None

    @property
    def shapes(self) -> Sequence[tuple[int, ...]]:
        matrices = self.gradients == "sparse" or (self.reference and self.reference.dimensions == 2)
        return ((5, 3), (2, 7), (1, 1), (4, 4)) if matrices else ((5, 3), (7,), (), (2, 3, 4, 4))

    @property
    def dtypes(self) -> Sequence[torch.dtype]:
        # torch's sums overflow in float16; averages of tiny shares of a gradient underflow.
        if self.gradients == "closure" or (self.reference and self.reference.coupled):
            return REALS[:3]
        takes_complex = self.reference is not None and self.reference.takes_complex
        return (*REALS, torch.complex64) if takes_complex else REALS

    @property
    def engines(self) -> Sequence[dict[str, Any]]:
        """Arguments that choose the engine, where there is a choice."""
        return [{"engine": e} for e in ENGINES] if self.gradients == "dense" else [{}]

    @property
    def ways(self) -> list[tuple[torch.dtype, dict[str, Any]]]:
        """Each dtype and engine; for the eager engine, which is slow, two dtypes."""
        return [
            (dtype, engine)
            for dtype, engine in itertools.product(self.dtypes, self.engines)
            if engine != {"engine": "eager"} or dtype in REALS[:2]
        ]

    def __str__(self) -> str:
        return f"{self.name}-{spelled(self.options)}" + "-sparse" * (self.gradients == "sparse")


def subjects() -> Iterator[Subject]:
    for reference, options in FLAG_CONFIGURATIONS:
        yield Subject(reference.name, reference.ours, options, "dense", reference)
    sparse: list[tuple[Any, list[dict[str, Any]]]] = [
        (gradstep.SparseAdam, torch_options(torch.optim.SparseAdam)),
        (gradstep.SGD, [{"lr": 0.1}, {"lr": 0.1, "momentum": 0.9, "maximize": True}]),
        (gradstep.Adagrad, [{"lr": 0.1, "lr_decay": 0.1}]),
    ]
    for make, rows in sparse:
        yield from (Subject(make.__name__, make, options, "sparse") for options in rows)
    for options in torch_options(torch.optim.LBFGS):
        yield Subject("LBFGS", gradstep.LBFGS, options, "closure")


SUBJECTS = list(subjects())


def among(chosen: Callable[[Subject], bool]) -> Any:
    return pytest.mark.parametrize("subject", [s for s in SUBJECTS if chosen(s)], ids=str)


def is_dense(subject: Subject) -> bool:
    return subject.gradients == "dense"


def has_own_steps(subject: Subject) -> bool:
    """LBFGS makes one step for all weights together: a direction goes on without a gradient."""
    return subject.gradients != "closure"


def moves_alone(subject: Subject) -> bool:
    """Whether a weight's step depends on that weight alone, and no state is of all of them."""
    coupled = subject.reference is not None and subject.reference.coupled
    coupled = coupled or "in_turn" in subject.options  # a place among the others
    return has_own_steps(subject) and not coupled


def is_elementwise(subject: Subject) -> bool:
    return subject.reference is not None and subject.reference.elementwise


every_subject = among(lambda subject: True)
every_dense_subject = among(is_dense)
every_elementwise_subject = among(is_elementwise)


# Weights, gradients and steps: of the same number they are the same.


def noise(shape: Sequence[int], dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def weights(subject: Subject, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    made = [noise(shape, dtype, 1 + i) for i, shape in enumerate(subject.shapes)]
    made[-1] = transposed(made[-1]) if made[-1].dim() == 2 else channels_last(made[-1])
    return [nn.Parameter(w) for w in made]


def gradient(subject: Subject, w: Tensor, place: int, number: int) -> Tensor:
    """In the weight's own layout, and every third time contiguous; torch's LBFGS takes no other."""
    g = noise(w.shape, w.dtype, 1000 * number + place)
    if subject.gradients == "sparse":
        rows = [(place + number) % len(w), number % len(w)]  # at times one row, named twice
        return torch.sparse_coo_tensor([rows], g[rows], w.shape, check_invariants=True)
    if number % 3 == 1 or subject.gradients == "closure":
        return g
    return torch.empty_like(w).copy_(g).detach()


@dataclass
class Given:
    """A gradient that a step was given, and what it was before."""

    gradient: Tensor
    copy: Tensor
    version: int


def step(
    subject: Subject,
    optimizer: Any,
    params: Sequence[Tensor],
    number: int,
    absent: Collection[int] = (),
    make: Callable[[Subject, Tensor, int, int], Tensor] = gradient,
) -> list[Given]:
    """Make one step, and return the gradients that it was given."""
    given: list[Given] = []

    def closure() -> Tensor:
        loss = torch.zeros(())
        for place, p in enumerate(params):
            p.grad = None
            if place not in absent:
                g = make(subject, p, place, number)
                if subject.gradients == "closure":  # of the sum of (p + g)² / 2
                    g = (p + g).detach().contiguous()
                    loss += g.square().sum() / 2
                p.grad = g
                given.append(Given(g, g.clone(), g._version))
        return loss

    if subject.gradients == "closure":
        optimizer.step(closure)
    else:
        closure()
        optimizer.step(lambda: loss_at(number))
    return given


def same_bits(a: Tensor, b: Tensor) -> bool:
    if a.is_sparse:
        parts = ((t._indices(), t._values()) for t in (a, b))
        return all(itertools.starmap(same_bits, zip(*parts, strict=True)))
    flat = [t.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*flat)


def assert_same(a: Any, b: Any, what: object = "") -> None:
    """The same bits in all tensors, and equal in all else."""
    assert type(a) is type(b), what
    if isinstance(a, Tensor):
        assert same_bits(a, b), what
    elif isinstance(a, dict):
        assert list(a) == list(b), what
        for key in a:
            assert_same(a[key], b[key], f"{what} {key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), what
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{what} {i}")
    else:
        assert a == b, what


def picture(params: Sequence[Tensor], optimizer: Any) -> Any:
    """A copy of all weights, states and options."""
    return copy.deepcopy([[p.detach() for p in params], optimizer.state_dict()])


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors(part)


# The tests.


@every_subject
def test_gradients_are_only_read(subject: Subject) -> None:
    def repeated(subject: Subject, w: Tensor, place: int, number: int) -> Tensor:
        g = gradient(subject, w, place, number)
        return g if g.is_sparse or not g.dim() else expanded(g)

    for dtype, engine in subject.ways:
        params = weights(subject, dtype)
        optimizer = subject.make(params, **subject.options, **engine)
        for number, make in enumerate((gradient, gradient, repeated, gradient)):
            given = step(subject, optimizer, params, number, make=make)
            for g in given:
                assert same_bits(g.gradient, g.copy), (dtype, engine)
                assert g.gradient._version == g.version, (dtype, engine)
            last = given[-len(params) :]
            assert all(p.grad is g.gradient for p, g in zip(params, last, strict=True))


def random_states() -> list[Any]:
    return [
        torch.get_rng_state().tolist(),
        random.getstate(),
        [
            part.tolist() if isinstance(part, numpy.ndarray) else part
            for part in numpy.random.get_state()
        ],
    ]


@every_subject
def test_the_global_random_generators_are_left_alone(subject: Subject) -> None:
    for engine in subject.engines:
        params = weights(subject)
        before = random_states()
        optimizer = subject.make(params, **subject.options, **engine)
        for number in range(3):
            step(subject, optimizer, params, number)
        optimizer.load_state_dict(optimizer.state_dict())
        step(subject, optimizer, params, 3)
        assert random_states() == before


@among(moves_alone)
def test_a_weight_whose_first_gradient_comes_at_step_nine_moves_as_a_fresh_one(
    subject: Subject,
) -> None:
    for dtype, engine in subject.ways:
        params, alone = weights(subject, dtype), weights(subject, dtype)[:1]
        optimizer = subject.make(params, **subject.options, **engine)
        fresh = subject.make(alone, **subject.options, **engine)
        for number in range(1, 9):
            step(subject, optimizer, params, number, absent={0})
        for number in range(9, 13):
            step(subject, optimizer, params, number)
            step(subject, fresh, alone, number)
            assert same_bits(params[0], alone[0]), (dtype, engine, number)
        states = dict(optimizer.state[params[0]]), dict(fresh.state[alone[0]])
        assert_same(*states, (dtype, engine))


@every_subject
def test_a_weight_without_a_gradient_is_not_touched(subject: Subject) -> None:
    for dtype, engine in subject.ways:
        params = weights(subject, dtype)
        optimizer = subject.make(params, **subject.options, **engine)
        start = picture(params, optimizer)
        step(subject, optimizer, params, 0, absent=range(len(params)))
        assert_same(picture(params, optimizer)[0], start[0], (dtype, engine))
        # The first never has one, the last one only at first.
        for number in range(1, 7):
            before = picture(params, optimizer)
            versions = [p._version for p in params]
            absent = {0, number % 4} if number > 3 and has_own_steps(subject) else {0}
            step(subject, optimizer, params, number, absent)
            after = picture(params, optimizer)
            for place in absent:
                assert same_bits(params[place], before[0][place]), (dtype, engine, number)
                if has_own_steps(subject):
                    assert params[place]._version == versions[place], (dtype, engine, number)
                if moves_alone(subject):
                    states = (p[1]["state"].get(place) for p in (before, after))
                    assert_same(*states, (dtype, engine, number))


@every_subject
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(
    subject: Subject, tmp_path: Path
) -> None:
    file = tmp_path / "half.pt"
    for dtype, engine in subject.ways:

        def go(optimizer: Any, params: Any, numbers: range) -> None:
            for number in numbers:
                step(subject, optimizer, params, number, absent={3} if number % 4 == 0 else {})

        params = weights(subject, dtype)
        optimizer = subject.make(params, **subject.options, **engine)
        go(optimizer, params, range(5))
        torch.save({"weights": params, "optimizer": optimizer.state_dict()}, file)
        go(optimizer, params, range(5, 10))

        loaded = torch.load(file, weights_only=True, mmap=True)
        # New weights, and every option from the checkpoint.
        rest = [nn.Parameter(p.detach().clone()) for p in loaded["weights"]]
        resumed = subject.make(rest, lr=0.75, **engine)
        resumed.load_state_dict(loaded["optimizer"])
        go(resumed, rest, range(5, 10))
        assert_same(picture(rest, resumed), picture(params, optimizer), (dtype, engine))


# Layouts.

#: Shape, and how the weight and its gradients lie in memory.
LAYOUTS: list[tuple[tuple[int, ...], Layout, Layout]] = [
    ((), contiguous, contiguous),
    ((0,), contiguous, contiguous),
    ((3, 0), contiguous, contiguous),
    ((7, 9), transposed, transposed),
    ((7, 9), transposed, contiguous),
    ((7, 9), contiguous, transposed),
    ((7, 9), contiguous, expanded),
    ((7, 9), part_of_larger, part_of_larger),
    ((7, 9), contiguous, with_gaps),
    ((7, 9), with_gaps, contiguous),
    ((7, 9), with_gaps, with_gaps),
    ((4, 3, 2, 5), channels_last, channels_last),
    ((4, 3, 2, 5), channels_last, contiguous),
    ((4, 3, 2, 5), contiguous, channels_last),
    ((4, 3, 2, 5), with_gaps, channels_last),
    ((4, 5, 6), permuted, contiguous),
    ((9,), with_gaps, contiguous),
]


@every_dense_subject
def test_any_layout_has_the_numbers_of_a_contiguous_one(subject: Subject) -> None:
    """To the bit, where an element's step depends on that element alone."""
    assert subject.reference is not None
    dimensions = subject.reference.dimensions
    cases = [case for case in LAYOUTS if dimensions in (None, len(case[0]))]
    gaps = [weight is with_gaps for _, weight, _ in cases]
    for dtype in subject.dtypes:
        starts = [noise(shape, dtype, 1 + i) for i, (shape, _, _) in enumerate(cases)]
        laid_out = [nn.Parameter(lay(w)) for (_, lay, _), w in zip(cases, starts, strict=True)]
        plain = [nn.Parameter(contiguous(w).reshape(w.shape or (1,))) for w in starts]
        optimizer = subject.make(laid_out, **subject.options)
        # A weight with gaps is updated by torch's own operations, one by one.
        split = [[p for p, gap in zip(plain, gaps, strict=True) if gap is b] for b in (False, True)]
        twins = [
            subject.make(group, **subject.options, engine="eager" if by_itself else "auto")
            for group, by_itself in zip(split, (False, True), strict=True)
        ]
        if not moves_alone(subject):
            twins = [subject.make(plain, **subject.options)]
        for number in range(5):
            for i, (shape, _, lay) in enumerate(cases):
                g = noise(shape, dtype, 1000 * number + i)
                g = g[:1].expand(shape) if lay is expanded else g
                laid_out[i].grad, plain[i].grad = lay(g), contiguous(g).reshape(plain[i].shape)
            for each in (optimizer, *twins):
                each.step(lambda number=number: loss_at(number))
        if subject.reference.elementwise:
            used = list(optimizer.engines_used().values())
            assert used == ["eager" if gap else "fused" for gap in gaps]
        for (shape, lay, lay_gradient), a, b in zip(cases, laid_out, plain, strict=True):
            what = f"{dtype} {shape} {lay.__name__} {lay_gradient.__name__}"
            assert a.stride() == lay(a.detach()).stride(), what
            if subject.reference.elementwise:
                assert same_bits(a.reshape(b.shape), b), what
            elif a.numel():
                allowed = torch.finfo(dtype).eps * b.abs().max() * subject.reference.bound
                assert (a.reshape(b.shape) - b).abs().max() <= allowed, what


# Numbers that stay numbers.


def assert_finite(params: Sequence[Tensor], optimizer: Any, what: object) -> None:
    for t in tensors([*params, optimizer.state_dict()["state"]]):
        assert t.isfinite().all(), what


@every_subject
@pytest.mark.parametrize("ways", ["some", pytest.param("all", marks=pytest.mark.deep)])
@pytest.mark.parametrize(
    ("start", "lr"),
    [
        ("at first", None),
        ("at first", 0.0),
        ("later", None),
        pytest.param("later", 0.0, marks=pytest.mark.deep),
    ],
)
def test_zero_gradients_make_no_nan(
    subject: Subject,
    start: str,
    lr: float | None,
    ways: str,
    recwarn: pytest.WarningsRecorder,
    caplog: Any,
) -> None:
    """And with lr = 0, with which torch.distributed.checkpoint makes a step, they move nothing."""

    def zero(subject: Subject, w: Tensor, place: int, number: int) -> Tensor:
        if subject.gradients == "closure":
            return -w.detach()
        return gradient(subject, w, place, number) * 0

    if lr == 0.0 and subject.name in ("SparseAdam", "LBFGS"):
        return  # torch's refuses it, and torch's divides by it
    # The narrowest type, in which most becomes 0, and the usual one, by each engine.
    some = [way for way in subject.ways if way[0] in (torch.float32, torch.float16)]
    for dtype, engine in some if ways == "some" else subject.ways:
        if subject.options.get("centered") and dtype == torch.float16:
            continue  # see the next test
        options = {**subject.options, **({} if lr is None else {"lr": lr})}
        params = weights(subject, dtype)
        params.append(nn.Parameter(torch.zeros_like(params[0])))
        optimizer = subject.make(params, **options, **engine)
        group = optimizer.param_groups[0]
        if start == "later":
            for number in range(3):
                step(subject, optimizer, params, number)
        before = picture(params, optimizer)
        for number in range(10 if ways == "some" else 25):
            step(subject, optimizer, params, number, make=zero)
            assert all(p.isfinite().all() for p in params), (dtype, engine, lr, number)
        assert_finite(params, optimizer, (dtype, engine, lr))
        decays = any(group.get(n) for n in ("weight_decay", "lambd", "lambda_1", "lambda_2"))
        decays = decays or (subject.reference is not None and subject.reference.shrinks)
        if start == "at first" and (lr == 0.0 or not decays):
            assert all(map(torch.equal, params, before[0])), (dtype, engine, lr)
        if subject.name == "LBFGS":
            continue  # it keeps nothing of a place that it finds to be the lowest
        kept = [set(optimizer.state.get(p, ())) for p in params]
        step(subject, optimizer, params, 100)  # every state is there already
        assert kept == [set(optimizer.state.get(p, ())) for p in params]
    assert not recwarn.list
    by_rows = subject.reference is not None and subject.reference.by_rows
    # Those are said to run eagerly: of the second, weights whose rows lie apart.
    assert not caplog.records or subject.gradients == "sparse" or by_rows


@pytest.mark.xfail(
    strict=True,
    reason="the average square less the squared average, both rounded to float16, may be below 0; "
    "torch's is nan from the first step on",
)
def test_a_centred_variance_in_float16_makes_no_nan() -> None:
    w = nn.Parameter(noise((2000,), torch.float16, 1))
    optimizer = gradstep.RMSprop([w], lr=0.0, weight_decay=0.1, centered=True)
    for _ in range(25):
        w.grad = torch.zeros_like(w)
        optimizer.step()
    assert w.isfinite().all()


def low_precision() -> Iterator[Any]:
    for subject in SUBJECTS:
        for kind in ("bfloat16", "bfloat16 tiny", "bfloat16 huge", "float16"):
            if getattr(torch, kind.split()[0]) in subject.dtypes:
                yield pytest.param(subject, kind, id=f"{subject}-{kind}")


@pytest.mark.parametrize("long", [40, pytest.param(100, marks=pytest.mark.deep)])
@pytest.mark.parametrize(("subject", "kind"), list(low_precision()))
def test_low_precision_stays_finite(subject: Subject, kind: str, long: int) -> None:
    """While gradients are random, and then for long the same."""
    dtype = getattr(torch, kind.split()[0])

    def sized(subject: Subject, w: Tensor, place: int, number: int) -> Tensor:
        g = gradient(subject, w, place, min(number, 20))
        if kind == "float16":  # of a size of which it holds the square
            values = g._values() if g.is_sparse else g
            values.copy_(values.abs().clamp(1, 4) * (-1) ** place)
            return g
        return g * {"bfloat16": 1.0, "bfloat16 tiny": 1e-12, "bfloat16 huge": 1e6}[kind]

    for engine in subject.engines:
        params = weights(subject, dtype)
        optimizer = subject.make(params, **subject.options, **engine)
        # Where the gradient stays the same, rules that find their own step make it ever longer.
        steps = long if moves_alone(subject) else 20
        for number in range(steps if engine == {"engine": "auto"} else 10):
            step(subject, optimizer, params, number, make=sized)
            assert all(p.isfinite().all() for p in params), (engine, number)
        assert_finite(params, optimizer, engine)


# The engine that runs.


class Operations(TorchDispatchMode):
    """Notes torch's operations."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func) not in ("aten.detach.default", "aten._local_scalar_dense.default"):
            self.seen.append(str(func))  # those two read a number that is a tensor
        return func(*args, **(kwargs or {}))


@every_elementwise_subject
def test_the_fused_engine_runs_with_any_flag(subject: Subject, caplog: Any) -> None:
    """For dense weights on the CPU, and torch's own operations do no work."""
    assert subject.reference is not None
    dense = [case for case in LAYOUTS if case[1] is not with_gaps]
    every = ({}, *implementation_flags(subject.reference))
    if any(isinstance(value, Tensor) for value in subject.options.values()):
        # torch refuses tensors there, and so do we: test_errors has it.
        every = tuple(flags for flags in every if not flags.get("foreach"))
    for dtype, flags in itertools.product(subject.dtypes, every):
        params = [
            nn.Parameter(lay(noise(shape, dtype, 1 + i))) for i, (shape, lay, _) in enumerate(dense)
        ]
        optimizer = subject.make(params, **{**subject.options, **flags})
        assert planner_of(optimizer).engine == "auto"
        for number in range(4):
            for i, (p, (shape, _, lay)) in enumerate(zip(params, dense, strict=True)):
                g = noise(shape, dtype, 1000 * number + i)
                # At last in the weight's own layout, which needs no copy.
                p.grad = lay(g) if number < 2 else torch.empty_like(p).copy_(g).detach()
            with Operations() as operations:
                optimizer.step()
            assert set(optimizer.engines_used().values()) == {"fused"}
        assert operations.seen == []
        assert not caplog.records
    if "differentiable" in optimizer.defaults:
        w = weights(subject)[0].detach().clone()
        w.grad = torch.ones_like(w)
        optimizer = subject.make([w], **{**subject.options, "differentiable": True})
        optimizer.step()
        assert set(optimizer.engines_used().values()) == {"eager"}


# All or nothing.

#: Classes whose rules are linear in the gradient, or look at the rows that it has alone.
TAKES_SPARSE = {"SGD", "Adagrad", "ASGD", "SGDW", "QHM", "AggMo", "SGDScheduleFree", "SRMM"}


def spoils(subject: Subject, w: Tensor, optimizer: Any) -> dict[str, tuple[Any, Any, Any]]:
    """What may be wrong with a weight's step: what puts it there, the wrong, and the right."""
    entry, group, held = optimizer.state.get(w, {}), optimizer.param_groups[-1], w.grad
    assert held is not None

    def give(gradient: Tensor) -> None:
        try:
            w.grad = gradient
        except (
            RuntimeError,
            TypeError,
        ):  # torch looks at what is assigned, and not at what .data is
            w.grad = torch.zeros_like(w)
            w.grad.data = gradient

    found: dict[str, tuple[Any, Any, Any]] = {}
    if not held.is_sparse:
        found["gradient of another shape"] = (give, torch.ones(2, 9), held)
        found["gradient of another dtype"] = (give, held.double(), held)
        found["gradient of integers"] = (give, held.long(), held)
        if subject.name not in TAKES_SPARSE:
            found["sparse gradient"] = (give, held.to_sparse(), held)
    elif subject.name == "SparseAdam":
        found["dense gradient"] = (give, held.to_dense(), held)
    for key, value in entry.items():
        put = functools.partial(entry.__setitem__, key)
        found[f"{key} as text"] = (put, "1.0", value)
        found[f"{key} of another shape"] = (put, torch.ones(2, 9), value)
        found[f"{key} of another dtype"] = (put, value.bfloat16(), value)
    for key, value in (("lr", None), ("lr", "0.1"), ("lr", [0.1])):
        if key not in group:
            continue
        found[f"{key} {value}"] = (functools.partial(group.__setitem__, key), value, group[key])
    return found


def everything(params: Sequence[Tensor], optimizer: Any) -> Any:
    """Also how often each weight and gradient was written."""
    written = [[p._version, p.grad._version] for p in params if p.grad is not None]
    return [*picture(params, optimizer), written, [p.grad for p in params]]


@among(has_own_steps)
def test_nothing_is_written_when_a_step_raises(subject: Subject) -> None:
    """The last weight is spoilt, of the second group; after a repair training goes on."""
    for before, engine in itertools.product((0, 3), subject.engines):
        params, undisturbed = weights(subject), weights(subject)
        optimizer, twin = (
            subject.make([{"params": p[:2]}, {"params": p[2:]}], **subject.options, **engine)
            for p in (params, undisturbed)
        )
        for number in range(before):
            step(subject, optimizer, params, number)
            step(subject, twin, undisturbed, number)
        for place, p in enumerate(params):
            p.grad = gradient(subject, p, place, before)
        known = everything(params, optimizer)
        for what, (put, wrong, right) in spoils(subject, params[-1], optimizer).items():
            put(wrong)
            with pytest.raises((TypeError, ValueError, RuntimeError)):
                optimizer.step(lambda: 1.0)
            put(right)
            assert_same(everything(params, optimizer), known, what)

        def interrupted() -> float:
            raise KeyError("the loss")

        with pytest.raises(KeyError):
            optimizer.step(interrupted)
        assert_same(everything(params, optimizer), known, "closure")
        optimizer.step(lambda before=before: loss_at(before))
        step(subject, twin, undisturbed, before)
        assert_same(picture(params, optimizer), picture(undisturbed, twin), engine)
