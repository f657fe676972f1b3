"""Every class of torch_optim, with a task that any of them can train.

A class that is added to ``gradstep.torch_optim`` is a row here by itself: what it can do is read
from torch's own table of optimizers, ``optim_db``; for a class that torch has not, from
``reference.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradstep
from gradstep import torch_optim
from gradstep.classes import rule_classes
from reference import REFERENCES
from torchs_table import optim_db

#: Of torch.optim, the classes that take nothing but matrices.
_MATRICES_ONLY = {"Muon"}
#: Class -> the arguments that only ours has, beyond torch's, with their defaults.
_BEYOND = {
    "Muon": {
        "coefficients": "fixed", "sum_momentum": False, "flatten": None, "split": None,
        "precision": "bfloat16",
    }
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A class, and what torch's own table says of it.

    Attributes:
        name: as in torch.optim.
        ours: the class of gradstep.
        theirs: torch's, if there is one.
        configurations: the arguments in torch's own tests, a dict a configuration.
        needs_closure: a step calls the loss by itself.
        only_sparse: gradients must be sparse.
        only_matrices: parameters must have two dimensions.
        takes_complex: complex parameters are allowed.
        takes_groups: groups with options of their own are allowed.
        schedulers: what torch's own tests schedule it with: functions of the optimizer, in sets.
        coupled: a weight's step depends on the other weights too.
        beyond: the arguments that only our class has, with their defaults.
        later_flags: arguments that the class's first version did not have.
    """

    name: str
    ours: Any
    theirs: Any
    configurations: Sequence[dict[str, Any]]
    needs_closure: bool = False
    only_sparse: bool = False
    only_matrices: bool = False
    takes_complex: bool = False
    takes_groups: bool = True
    schedulers: Sequence[Sequence[Callable[[Any], Any]]] = ()
    coupled: bool = False
    later_flags: Sequence[str] = ()
    beyond: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fullest(self) -> dict[str, Any]:
        """The configuration with the most arguments, which has most of the states."""
        # From torch 2.14 LBFGS has one that climbs: by a line search, and so to infinity.
        ends = [c for c in self.configurations if not (self.needs_closure and c.get("maximize"))]
        return max(ends, key=len)

    def make(self, params: Any, options: dict[str, Any] | None = None, **more: Any) -> Any:
        """Our optimizer. The options are copied: a scheduler writes into an lr that is a tensor."""
        return self.ours(params, **copy.deepcopy(options or {}), **more)

    def make_theirs(self, params: Any, options: dict[str, Any] | None = None, **more: Any) -> Any:
        """torch's optimizer, one tensor at a time where there is a choice."""
        if "foreach" in self.theirs([torch.zeros(1, 1)]).defaults:
            more.setdefault("foreach", False)
        return self.theirs(params, **copy.deepcopy(options or {}), **more)


def _row(name: str) -> Row:
    ours = getattr(gradstep, name)
    for info in optim_db:
        if info.optim_cls.__name__ == name:
            return Row(
                name,
                ours,
                info.optim_cls,
                [i.kwargs for i in info.optim_inputs_func(device="cpu")],
                needs_closure=info.step_requires_closure,
                only_sparse=info.only_supports_sparse_grads,
                only_matrices=name in _MATRICES_ONLY,
                takes_complex=info.supports_complex,
                takes_groups=info.supports_param_groups,
                schedulers=info.scheduler_inputs,
                later_flags=info.not_og_supported_flags,
                beyond=_BEYOND.get(name, {}),
            )
    reference = next(r for r in REFERENCES if r.name == name)
    schedulers = optim_db[0].scheduler_inputs
    # The two with the most arguments: what these classes do with them they share with all others.
    fullest = sorted(reference.extra, key=len)[-2:]
    return Row(
        name,
        ours,
        None,
        fullest,
        only_matrices=reference.dimensions == 2,
        schedulers=schedulers,
        coupled=reference.coupled,
    )


ROWS = [_row(name) for name in (*torch_optim.__all__, *rule_classes.load())]
IN_TORCH = [row for row in ROWS if row.theirs is not None]


def spelled(options: dict[str, Any]) -> str:
    """The arguments of a configuration, as a test's name has them."""
    return ",".join(f"{k}={v}" for k, v in options.items()) or "default"


def each(rows: Sequence[Row]) -> Any:
    """Parametrize a test by ``row``."""
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.name)


def each_configuration(rows: Sequence[Row]) -> Any:
    """Parametrize a test by ``row`` and ``options``: every configuration of torch's own tests."""
    params = [
        pytest.param(row, options, id=f"{row.name}-{spelled(options)}")
        for row in rows
        for options in row.configurations
    ]
    return pytest.mark.parametrize(("row", "options"), params)


def _spread(values: Tensor) -> Tensor:
    """The same values, with a gap behind each."""
    return values.new_zeros((*values.shape, 2))[..., 0].copy_(values)


@dataclass
class Task:
    """A sum of squares, ``|W x + b|²``, or ``|V W x|²`` where only matrices are allowed.

    Attributes:
        row: the class that is to train it.
        dtype: of the parameters.
        spread: let the parameters have gaps in memory.
        params: the parameters by name; the same numbers in each task.
    """

    row: Row
    dtype: torch.dtype = torch.float32
    spread: bool = False
    params: dict[str, nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        random = torch.Generator().manual_seed(1)
        second = (10, 10) if self.row.only_matrices else (10,)
        self.params = {}
        for name, shape in (("first", (10, 5)), ("second", second)):
            values = torch.randn(shape, generator=random).to(self.dtype)
            if self.dtype.is_complex:
                values = torch.complex(values.real, torch.randn(shape, generator=random))
            self.params[name] = nn.Parameter(_spread(values) if self.spread else values)
        self._input = torch.randn(5, generator=random).to(self.dtype)

    def __iter__(self) -> Iterator[nn.Parameter]:
        return iter(self.params.values())

    def loss(self) -> Tensor:
        """The loss with the present parameters."""
        first, second = self.params.values()
        out = first @ self._input
        out = second @ out if self.row.only_matrices else out + second
        return (out * out.conj()).real.sum()

    def closure(self, optimizer: Any) -> Callable[[], Tensor]:
        """What a step calls: new gradients, and the loss."""

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self.loss()
            loss.backward()
            if self.row.only_sparse:
                for p in self:
                    if p.grad is not None:
                        p.grad = p.grad.to_sparse()
            return loss.detach()

        return closure

    def train(self, optimizer: Any, steps: int, *schedulers: Any) -> None:
        """Some steps, and after each one of every scheduler."""
        closure = self.closure(optimizer)
        for _ in range(steps):
            loss = optimizer.step(closure)
            for scheduler in schedulers:
                plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
                scheduler.step(loss) if plateau else scheduler.step()

    def copy(self) -> Task:
        """Another task with parameters of the same values."""
        other = Task(self.row, self.dtype, self.spread)
        for p, q in zip(self, other, strict=True):
            q.data.copy_(p.data)
        return other


def assert_same_bits(left: Any, right: Any) -> None:
    """Equal tensors, of the same types."""
    for a, b in zip(list(left), list(right), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a.detach(), b.detach(), rtol=0, atol=0, equal_nan=True)


def assert_same_state_dict(left: Any, right: Any, but: Sequence[str] = ()) -> None:
    """The same keys, and bits; ``but`` names options of the groups that may differ."""
    assert set(left["state"]) == set(right["state"])
    for key, entry in left["state"].items():
        assert_same_values(entry, right["state"][key])
    for one, other in zip(left["param_groups"], right["param_groups"], strict=True):
        assert_same_values(*({k: v for k, v in g.items() if k not in but} for g in (one, other)))


def assert_same_values(left: Any, right: Any) -> None:
    """Equal dicts, lists and tuples of tensors and plain values."""
    if isinstance(left, Tensor):
        assert isinstance(right, Tensor) and left.dtype == right.dtype
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert set(left) == set(right)
        for key in left:
            assert_same_values(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert type(left) is type(right)
        for a, b in zip(left, right, strict=True):
            assert_same_values(a, b)
    else:
        assert left == right
