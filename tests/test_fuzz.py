"""Random sequences of what may happen to an optimizer, good and bad, against an eager twin.

The machine below holds one optimizer on the fused engine and one on the eager engine, with equal
weights. Every step must take both to the same weights and states (within a few roundings); a step
that is refused must leave everything as it was; and after a repair both go on. pytest has Python's
faulthandler on, so that a crash would show where it came from.
"""

from __future__ import annotations

import copy
import functools
import io
import math
import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
)
from torch import Tensor, nn

import gradstep
from configurations import FLAG_CONFIGURATIONS
from gradstep.backends.update import is_dense, layout
from gradstep.optimizer.optimizer import planner_of

#: Sequences that are tried: the same ones at each run, unless another number is asked for.
USUAL = 60
EXAMPLES = int(os.environ.get("GRADSTEP_FUZZ_EXAMPLES", USUAL))

#: What an option may become while a rule runs, and what its flags may. ``centered`` stays: with an
#: average gradient that stood still for a while, a variance may be below 0.
CHANGES: dict[str, list[Any]] = {
    "lr": [0.0, 1e-3, 0.02, 0.1],
    "weight_decay": [0.0, 0.01, 0.1],
    "momentum": [0.0, 0.5, 0.9],
    "dampening": [0.0, 0.3],
    "betas": [(0.9, 0.999), (0.5, 0.9), (0.0, 0.99)],
    "eps": [1e-8, 1e-3],
    "alpha": [0.9, 0.99],
    "rho": [0.5, 0.9],
    "lr_decay": [0.0, 0.1],
    "momentum_decay": [0.004, 0.1],
    "lambd": [1e-4, 0.1],
    "t0": [5.0, 1e6],
    "etas": [(0.5, 1.2), (0.25, 1.75)],
    "step_sizes": [(1e-6, 50.0), (0.01, 0.5)],
    "limit": [0.1, 2.0],
    **{
        flag: [True, False]
        for flag in ("maximize", "nesterov", "amsgrad", "decoupled_weight_decay", "capturable")
    },
}


@dataclass(frozen=True)
class Kind:
    """What makes an optimizer, with which options, and what it can be made for."""

    name: str
    make: Callable[..., gradstep.Optimizer]
    options: dict[str, Any]
    dimensions: int | None = None
    takes_complex: bool = True
    bound: float = 8.0
    ill_conditioned: Sequence[str] = ()

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [s for s in SHAPES if self.dimensions in (None, len(s))]

    @property
    def dtypes(self) -> list[torch.dtype]:
        return [d for d in DTYPES if self.takes_complex or not d.is_complex]


CHAIN = gradstep.chain(
    gradstep.clip_by_value(limit=0.5), gradstep.adam(), gradstep.decay_weights(weight_decay=0.1)
)
KINDS = [
    Kind("chain", functools.partial(gradstep.Optimizer, rule=CHAIN), {}),
    *(
        Kind(
            r.name,
            r.ours,
            options,
            r.dimensions,
            r.takes_complex,
            # torch multiplies a batch of matrices in another order than one alone: now and then a
            # bfloat16 of Newton–Schulz is rounded the other way, which is 2**-9 of an update.
            r.bound if r.elementwise or r.dimensions is None else 8 * r.bound,
            r.ill_conditioned,
        )
        for r, options in FLAG_CONFIGURATIONS
        # Not those whose groups must agree, and whose steps run away: test_shared_states.py. Nor
        # SOAP, whose bases of 400 × 700 take a second each.
        if not r.coupled and r.longest > 700
    ),
]
SHAPES = ((), (1,), (0, 3), (7,), (4, 5), (5, 4), (2, 3, 4, 2), (1, 6), (400, 700))
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64)


def noise(shape: Any, dtype: torch.dtype, seed: int, scale: float = 1.0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    made = torch.randn(shape, generator=random) * scale
    if dtype.is_complex:
        return torch.complex(made, torch.randn(shape, generator=random) * scale).to(dtype)
    return made.to(dtype)


def without_cancelling(g: Tensor, w: Tensor, decay: float) -> Tensor:
    """A gradient with 0 where it all but cancels its weight's decay.

    What is left there is rounding alone, and a rule that divides a first gradient by its own size
    makes a whole step of it.
    """
    if g.is_complex():
        real = without_cancelling(torch.view_as_real(g), torch.view_as_real(w), decay)
        return torch.view_as_complex(real)
    size, other = g.abs(), w.abs() * decay
    near = (size - other).abs() < 1e-2 * torch.maximum(size, other)
    return torch.where(near, torch.zeros_like(g), g)


def relaid(tensor: Tensor, way: int) -> Tensor:
    """The same values in another order in memory: four dense ones, one with gaps."""
    if way == 4:
        wide = torch.empty((*tensor.shape, 2), dtype=tensor.dtype)
        wide[..., 0] = tensor
        return wide[..., 0]
    if tensor.dim() == 4 and way == 1:
        return tensor.contiguous(memory_format=torch.channels_last)
    if tensor.dim() >= 2 and way == 2:
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if tensor.dim() >= 2 and way == 3:
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    return tensor.contiguous()


def copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {k: copied(v) for k, v in value.items()}
    return copy.deepcopy(value)


def assert_same(left: Any, right: Any) -> None:
    assert type(left) is type(right)
    if isinstance(left, Tensor):
        assert left.dtype == right.dtype and left.shape == right.shape
        torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)
    elif isinstance(left, dict):
        assert list(left) == list(right)
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
    else:
        assert left == right or (left != left and right != right)


def assert_near(left: Tensor, right: Tensor, what: str, before: float, bound: float) -> None:
    """Within so many eps of the largest element, now or before the step."""
    assert left.dtype == right.dtype and left.shape == right.shape
    if not left.numel():
        return
    wide = torch.complex128 if left.is_complex() else torch.float64
    a, b = left.detach().to(wide), right.detach().to(wide)
    finite = torch.isfinite(a) & torch.isfinite(b)
    torch.testing.assert_close(a[~finite], b[~finite], rtol=0, atol=0, equal_nan=True)
    if not finite.any():
        return
    a, b = a[finite], b[finite]
    difference = (a - b).abs().max().item()
    largest = max(b.abs().max().item(), before, 1.0 if what == "weight" else 1e-30)
    assert difference <= bound * torch.finfo(left.dtype).eps * largest, (what, difference, largest)


def size(tensor: Tensor) -> float:
    """The largest element that is a number."""
    finite = tensor.detach().abs()[torch.isfinite(tensor.detach())]
    return finite.max().item() if finite.numel() else 0.0


def another(dtype: torch.dtype) -> torch.dtype:
    if dtype.is_complex:
        return torch.complex128
    return torch.float32 if dtype != torch.float32 else torch.float64


Repair = Callable[[], None]


def gradient_spoils(p: nn.Parameter) -> dict[str, Callable[[], Repair]]:
    def gradient(make: Callable[[Tensor], Tensor]) -> Callable[[], Repair]:
        def spoil() -> Repair:
            assert p.grad is not None
            before = p.grad.clone()
            p.grad.data = make(p.grad.detach())

            def repair() -> None:
                p.grad = before

            return repair

        return spoil

    def data(make: Callable[[Tensor], Tensor]) -> Callable[[], Repair]:
        def spoil() -> Repair:
            before, gradient = p.data, p.grad
            p.data = make(p.detach())

            def repair() -> None:
                p.data = before
                p.grad = gradient

            return repair

        return spoil

    other = another(p.dtype)
    return {
        "gradient of another dtype": gradient(lambda g: g.to(other)),
        "gradient of integers": gradient(lambda g: torch.zeros(g.shape, dtype=torch.int64)),
        "gradient of another shape": gradient(lambda g: torch.ones((*g.shape, 2), dtype=g.dtype)),
        "data of another size": data(lambda w: torch.ones((*w.shape, 3), dtype=w.dtype)),
        "data of another dtype": data(lambda w: w.to(other)),
    }


def state_spoils(
    p: nn.Parameter, entry: dict[str, Any], unused: set[str], numbers: set[str]
) -> dict[str, Callable[[], Repair]]:
    def state(key: str, make: Callable[[Any], Any]) -> Callable[[], Repair]:
        def spoil() -> Repair:
            before = entry[key]
            entry[key] = make(before)

            def repair() -> None:
                entry[key] = before

            return repair

        return spoil

    spoils: dict[str, Callable[[], Repair]] = {}
    for key, value in entry.items():
        if key in unused:
            continue
        if key in numbers:
            spoils[f"{key} as text"] = state(key, str)
            spoils[f"{key} as int"] = state(key, int)
            spoils[f"{key} of two"] = state(key, lambda s: torch.stack([s, s]))
        elif isinstance(value, Tensor):
            spoils[f"{key} of another dtype"] = state(key, lambda s: s.to(another(s.dtype)))
            spoils[f"{key} of another shape"] = state(key, lambda s: s.unsqueeze(0)[:, None])
            spoils[f"{key} as a list"] = state(key, lambda s: s.tolist())
            spoils[f"{key} as a number"] = state(key, lambda s: 1.0)
            if value.shape == p.shape and p.dim() == 2 and min(p.shape) > 1 and is_dense(p):
                spoils[f"{key} transposed"] = state(key, lambda s: relaid(s, turned(s)))
    return spoils


def turned(tensor: Tensor) -> int:
    """The way of :func:`relaid` that gives a matrix other strides than it has."""
    return 2 if tensor.is_contiguous() else 0


def number_spoils(group: dict[str, Any]) -> dict[str, Callable[[], Repair]]:
    def number(key: str, value: Any) -> Callable[[], Repair]:
        def spoil() -> Repair:
            before = group[key]
            group[key] = value

            def repair() -> None:
                group[key] = before

            return repair

        return spoil

    def twice() -> Repair:
        params = group["params"]
        group["params"] = [*params, params[0]]

        def repair() -> None:
            group["params"] = params

        return repair

    return {
        "lr text": number("lr", "0.1"),
        "lr None": number("lr", None),
        "a parameter twice": twice,
    }


class Training(RuleBasedStateMachine):
    """One optimizer, its eager twin, and what may happen to them."""

    def __init__(self) -> None:
        super().__init__()
        self.params: list[nn.Parameter] = []
        self.seed = 0
        self.sizes: dict[tuple[int, str], float] = {}

    @initialize(data=st.data(), kind=st.sampled_from(KINDS), split=st.booleans())
    def begin(self, data: st.DataObject, kind: Kind, split: bool) -> None:
        shape, dtype = st.sampled_from(kind.shapes), st.sampled_from(kind.dtypes)
        shapes = data.draw(st.lists(st.tuples(shape, dtype), min_size=1, max_size=4))
        self.kind = kind
        self.params = [nn.Parameter(noise(s, d, i)) for i, (s, d) in enumerate(shapes)]
        self.twins = [nn.Parameter(p.detach().clone()) for p in self.params]
        self.optimizer = self.make(self.groups(self.params, split), "fused")
        self.twin = self.make(self.groups(self.twins, split), "eager")

    def groups(self, params: list[nn.Parameter], split: bool) -> list[dict[str, Any]]:
        if split and len(params) > 1:
            return [{"params": params[:1]}, {"params": params[1:], "lr": 0.05}]
        return [{"params": params}]

    def make(self, groups: list[dict[str, Any]], engine: str) -> gradstep.Optimizer:
        return self.kind.make(groups, engine=engine, **self.kind.options)

    # What is looked at.

    def everything(self) -> list[Any]:
        position = {p: i for i, p in enumerate(self.params)}
        states = {position[p]: copied(dict(e)) for p, e in self.optimizer.state.items()}
        groups = [
            {k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups
        ]
        counted = [len(g["params"]) for g in self.optimizer.param_groups]
        gradients = [copied(p.grad) for p in self.params]
        return [copied(list(map(copied, self.params))), states, copied(groups), counted, gradients]

    def compare(self) -> None:
        bound = self.kind.bound
        for i, (p, q) in enumerate(zip(self.params, self.twins, strict=True)):
            assert_near(p, q, "weight", self.sizes.get((i, "weight"), 0.0), bound)
            left, right = self.optimizer.state.get(p, {}), self.twin.state.get(q, {})
            assert set(left) == set(right)
            for key, value in left.items():
                if key in self.numbers():  # to the roundings of the sums that some are made of
                    a, b = value.item(), right[key].item()
                    assert math.isclose(a, b, rel_tol=bound * 2**-23), (key, a, b)
                elif key in self.kind.ill_conditioned:
                    assert value.isfinite().all() and right[key].isfinite().all(), key
                else:
                    assert_near(value, right[key], key, self.sizes.get((i, key), 0.0), bound)

    def align(self) -> None:
        """Take the twin to the very bits, so that each step is compared by itself."""
        with torch.no_grad():
            for i, (p, q) in enumerate(zip(self.params, self.twins, strict=True)):
                q.copy_(p)
                self.sizes[i, "weight"] = size(p)
                for key, value in self.optimizer.state.get(p, {}).items():
                    self.twin.state[q][key].copy_(value)
                    self.sizes[i, key] = size(value)

    def feed(self, present: int, scale: float, way: int) -> None:
        self.seed += 1
        for i, (p, q) in enumerate(zip(self.params, self.twins, strict=True)):
            if present >> i & 1:
                g = noise(p.shape, p.dtype, 1000 * self.seed + i, scale)
                g = without_cancelling(g, p.detach(), self.group_of(p).get("weight_decay", 0.0))
                p.grad = relaid(g, way).detach()
                q.grad = g.detach().clone()
            else:
                p.grad = q.grad = None

    def step_both(self) -> None:
        held = [p.grad for p in self.params]
        before = copied(held) if held[0] is None else [copied(g) for g in held]
        self.optimizer.step()
        self.twin.step()
        for p, g, kept in zip(self.params, held, before, strict=True):
            assert p.grad is g
            assert_same(copied(g), kept)
        self.compare()
        self.align()

    def unused(self, p: nn.Parameter) -> set[str]:
        """States that are left over from another option, and that nobody looks at."""
        group, reader = self.group_of(p), planner_of(self.optimizer).reader
        return {
            n
            for n, s in reader.rule.states.items()
            if s.when is not None and not reader.hyperparameter(group, s.when)
        }

    def group_of(self, p: nn.Parameter) -> dict[str, Any]:
        return next(g for g in self.optimizer.param_groups if any(p is q for q in g["params"]))

    def numbers(self) -> set[str]:
        """States that are one number a parameter."""
        states = planner_of(self.optimizer).rule.states.items()
        return {"step", *(n for n, s in states if s.start == "number")}

    # What may happen.

    @rule(
        present=st.integers(0, 15),
        scale=st.sampled_from([1.0, 1.0, 1.0, 0.0, 1e-12, 100.0]),
        way=st.integers(0, 4),
        times=st.integers(1, 3),
    )
    def step(self, present: int, scale: float, way: int, times: int) -> None:
        for _ in range(times):
            self.feed(present, scale, way)
            self.step_both()

    @rule(data=st.data(), again=st.booleans())
    def refused_step(self, data: st.DataObject, again: bool) -> None:
        self.feed(15, 1.0, 0)
        place = data.draw(st.integers(0, len(self.params) - 1))
        p = self.params[place]
        groups = self.optimizer.param_groups
        spoils = {
            **gradient_spoils(p),
            **state_spoils(p, self.optimizer.state.get(p, {}), self.unused(p), self.numbers()),
            **number_spoils(groups[data.draw(st.integers(0, len(groups) - 1))]),
        }
        what = data.draw(st.sampled_from(sorted(spoils)))
        repair = spoils[what]()
        before = self.everything()
        layouts = planner_of(self.optimizer)._preparation._layouts
        if what.endswith("transposed") and layouts.get(id(p)) != layout(p):
            # The optimizer does not know this layout of the weight yet, since weight or optimizer
            # were just copied: the state has to follow its weight.
            self.step_both()
            return
        for _ in range(1 + again):
            with pytest.raises((ValueError, TypeError)):
                self.optimizer.step()
            assert_same(self.everything(), before)
        repair()
        self.step_both()

    @rule(data=st.data(), group=st.integers(0, 1))
    def change_an_option(self, data: st.DataObject, group: int) -> None:
        group %= len(self.optimizer.param_groups)
        chosen = self.optimizer.param_groups[group]
        key = data.draw(st.sampled_from([k for k in CHANGES if k in chosen]))
        value = data.draw(st.sampled_from(CHANGES[key]))
        if self.kind.make is gradstep.AdamW and (key, value) == ("decoupled_weight_decay", False):
            return  # as torch's, AdamW sets it to True when a checkpoint is loaded or it is copied
        try:
            planner_of(self.optimizer).reader.check_group({**chosen, key: value})
        except ValueError:
            return  # Nesterov's momentum without momentum
        for optimizer in (self.optimizer, self.twin):
            optimizer.param_groups[group][key] = value

    @rule(value=st.sampled_from([0.0, 0.015625, 0.125]))
    def make_lr_a_tensor(self, value: float) -> None:
        for optimizer in (self.optimizer, self.twin):
            optimizer.param_groups[0]["lr"] = torch.tensor(value)

    @rule(place=st.integers(0, 3), way=st.integers(0, 4))
    def lay_out_anew(self, place: int, way: int) -> None:
        p = self.params[place % len(self.params)]
        p.data = relaid(p.detach().clone(), way)
        p.grad = None

    @rule(count=st.integers(1, 4))
    def set_threads(self, count: int) -> None:
        torch.set_num_threads(count)

    @rule(place=st.integers(0, 3))
    def forget_a_state(self, place: int) -> None:
        i = place % len(self.params)
        self.optimizer.state.pop(self.params[i], None)
        self.twin.state.pop(self.twins[i], None)

    @rule(data=st.data())
    @precondition(lambda self: len(self.params) < 4)
    def add_a_group(self, data: st.DataObject) -> None:
        shape = data.draw(st.sampled_from(self.kind.shapes[:6]))
        dtype = data.draw(st.sampled_from(self.kind.dtypes))
        added = nn.Parameter(noise(shape, dtype, 77))
        self.params.append(added)
        self.twins.append(nn.Parameter(added.detach().clone()))
        self.optimizer.add_param_group({"params": self.params[-1:]})
        self.twin.add_param_group({"params": self.twins[-1:]})

    @rule(shape=st.sampled_from([(3,), (2, 2)]))
    def a_group_that_is_refused(self, shape: Any) -> None:
        before = self.everything()
        for bad in (
            {"params": [nn.Parameter(torch.ones(shape))], "lr": -1.0},
            {"params": [torch.ones(shape, dtype=torch.int64)]},
            {"params": [self.params[0]]},
        ):
            with pytest.raises((ValueError, TypeError)):
                self.optimizer.add_param_group(bad)
        assert_same(self.everything(), before)

    @rule(
        way=st.integers(0, 4),
        presents=st.lists(st.integers(0, 15), min_size=1, max_size=3),
        as_file=st.booleans(),
    )
    def save_and_load(self, way: int, presents: list[int], as_file: bool) -> None:
        """New weights and a new optimizer go on from a checkpoint, with the bits of the old."""
        saved: Any = [[p.detach() for p in self.params], self.optimizer.state_dict()]
        if as_file:
            file = io.BytesIO()
            torch.save(saved, file)
            saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
        else:
            saved = pickle.loads(pickle.dumps(saved))
        params = [nn.Parameter(w) for w in saved[0]]
        place = dict(zip(self.params, params, strict=True))
        groups = [{"params": [place[p] for p in g["params"]]} for g in self.optimizer.param_groups]
        resumed = self.make(groups, "fused")
        resumed.load_state_dict(saved[1])
        for present in presents:
            self.feed(present, 1.0, way)
            for p, q in zip(self.params, params, strict=True):
                q.grad = None if p.grad is None else relaid(p.grad.clone(), way)
            self.step_both()
            resumed.step()
            assert_same(copied(resumed.state_dict()), copied(self.optimizer.state_dict()))
            for p, q in zip(self.params, params, strict=True):
                assert_same(q.detach(), p.detach())
        self.params, self.optimizer = params, resumed

    @rule()
    def copy_all(self) -> None:
        gradients = [copied(p.grad) for p in self.params]
        self.params, self.optimizer = copy.deepcopy((self.params, self.optimizer))
        for p, g in zip(self.params, gradients, strict=True):
            p.grad = g

    @rule(data=st.data())
    @precondition(lambda self: len(self.optimizer.state) > 0)
    def load_what_is_refused(self, data: st.DataObject) -> None:
        saved = copied(self.optimizer.state_dict())
        ways = ["no groups", "group too long", "no state", "lr nan"]
        entry = next(iter(saved["state"].values()))
        if any(isinstance(v, Tensor) for v in entry.values()):
            ways += ["missing", "shape", "number"]
        way = data.draw(st.sampled_from(ways))
        # What an option asks for may be missing: it was switched on since, and starts as new.
        states = planner_of(self.optimizer).rule.states
        asked_for = {n for n, s in states.items() if s.when is not None}
        key = next((k for k in entry if k not in asked_for), next(iter(entry), ""))
        if way == "no groups":
            saved["param_groups"] = []
        elif way == "group too long":
            saved["param_groups"][0]["params"].append(99)
        elif way == "no state":
            del saved["state"]
        elif way == "lr nan":
            saved["param_groups"][0]["lr"] = float("nan")
        elif way == "missing" and len(entry) > 1 and key not in asked_for:
            del entry[key]
        elif way == "number" and key not in self.numbers():
            entry[key] = 3.0
        else:
            entry[key] = torch.ones(2, 1, 2, 1, 2)
        before = self.everything()
        with pytest.raises((ValueError, TypeError)):
            self.optimizer.load_state_dict(saved)
        assert_same(self.everything(), before)

    @rule(place=st.integers(0, 3))
    def share_memory_between_two(self, place: int) -> None:
        """Two weights on one memory: updated one after the other."""
        i = place % len(self.params)
        for j in range(i + 1, len(self.params)):
            p, other = self.params[i], self.params[j]
            if p.shape == other.shape and p.dtype == other.dtype:
                for params in (self.params, self.twins):
                    params[j].data = params[i].data
                    params[j].grad = None
                self.step(15, 1.0, 0, 1)
                for params in (self.params, self.twins):
                    params[j].data = params[j].detach().clone()
                return

    def teardown(self) -> None:
        torch.set_num_threads(2)


class TestTraining(Training.TestCase):  # type: ignore[misc,name-defined]
    settings = settings(
        max_examples=EXAMPLES // 5,
        stateful_step_count=25,
        deadline=None,
        derandomize=EXAMPLES == USUAL,
        phases=[Phase.generate, Phase.shrink],
    )


@pytest.mark.deep
class TestLongTraining(Training.TestCase):  # type: ignore[misc,name-defined]
    settings = settings(TestTraining.settings, max_examples=EXAMPLES)
