"""Functions that a rule calls and that are not looked into: matrix work, in torch's own operations.

Everything else in a rule is traced, operation by operation. An opaque function gets whole tensors
and returns whole tensors, several parameters of one shape at a time.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

import torch
from torch import Tensor

from gradstep.rule.symbol import Symbol


@dataclass(frozen=True)
class Opaque:
    """A function on a batch of tensors of one shape. Made by :func:`opaque`.

    Attributes:
        name: the function's name.
        function: takes tensors, then numbers. Each tensor is a batch: (batch, *the shape of one
            parameter's). The first may have the parameter's shape, the others (or all) are states
            of a shape of their own. Returns what takes the place of those in ``returns``, each of
            the same shape and dtype. It may overwrite what it returns anew and the first, draws
            no random numbers but from a generator of its own, and treats each of the batch as if it
            were alone.
        dtype: what it wants the tensor of the parameter's shape as; None for float32, or float64
            where the weight is that.
        dimensions: how many dimensions a parameter must have; None for any number.
        returns: the places of the arguments that it returns anew, in order.
        refuses: takes a parameter's shape and the choices; says why it cannot be called for such a
            one, to be said behind the parameter's name, or None.
        cost: takes the same; says how much work it is, in any unit.
        stack: takes the same; says how many of the first dimensions only count matrices (or
            whatever it takes), each of which it treats as if it were alone. None for none.
        rounds: takes the same; says to which dtype it first rounds the tensor of the parameter's
            shape, and last what takes its place, if it does: so they travel among processes.
        due: takes the numbers, by place, and the choices; says whether it is called at a step. If
            not, what it returns anew stays as it is. None for always.
        choices: the keyword-only arguments of the function that were chosen, by name.
    """

    name: str
    function: Callable[..., Any] = field(repr=False)
    dtype: torch.dtype | None = None
    dimensions: int | None = None
    returns: tuple[int, ...] = (0,)
    refuses: Callable[..., str | None] | None = field(default=None, repr=False)
    cost: Callable[..., float] | None = field(default=None, repr=False)
    stack: Callable[..., int] | None = field(default=None, repr=False)
    rounds: Callable[..., torch.dtype | None] | None = field(default=None, repr=False)
    due: Callable[..., bool] | None = field(default=None, repr=False)
    choices: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)
    _chosen: dict[Any, Opaque] = field(default_factory=dict, init=False, repr=False, compare=False)

    def argument_names(self) -> list[str]:
        """What the function calls its arguments, without those that are choices."""
        return [name for name in _parameters(self.function) if name not in self._choosable()]

    def _choosable(self) -> list[str]:
        parameters = _parameters(self.function)
        return [name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY]

    def choosing(self, **choices: Any) -> Opaque:
        """The same function with these of its keyword-only arguments: one object for equal ones.

        Raises:
            TypeError: an argument that it has not, or a value that is a tensor or a number to be
                worked out in a step.
        """
        for name, value in choices.items():
            if name not in self._choosable():
                raise TypeError(
                    f"{self.name} has no choice {name!r}; it has: "
                    + (", ".join(self._choosable()) or "none")
                )
            if isinstance(value, Tensor | Symbol):
                raise TypeError(
                    f"{self.name} got a value of the step as its {name}, which is chosen once: a "
                    "flag of the rule, or a constant. Tensors and numbers go before it, by place."
                )
        chosen = {
            n: tuple(v) if isinstance(v, list) else v
            for n, v in {**self.choices, **choices}.items()
        }
        key = tuple((n, type(v), v) for n, v in sorted(chosen.items()))
        return self._chosen.setdefault(key, replace(self, choices=chosen))

    def refusal(self, shape: Sequence[int]) -> str | None:
        """Why it cannot be called for a parameter of a shape, to be said behind its name."""
        if self.dimensions not in (None, len(shape)):
            return f"has {len(shape)}. Give it to another rule, as gradstep.partition does"
        return self.refuses(tuple(shape), **self.choices) if self.refuses is not None else None

    def work(self, shape: Sequence[int]) -> float:
        """How much work it is for a parameter of a shape, to be compared with others."""
        if self.cost is not None:
            return float(self.cost(tuple(shape), **self.choices))
        return float(math.prod(shape)) * min(shape, default=1)

    def travels_as(self, given: Tensor) -> torch.dtype:
        """The dtype of fewest bytes in which a tensor of a parameter's shape says as much to it."""
        wanted = self.dtype
        if self.rounds is not None:
            wanted = self.rounds(tuple(given.shape), **self.choices) or wanted
        narrower = wanted is not None and wanted.itemsize < given.element_size()
        return wanted if wanted is not None and narrower else given.dtype

    def is_due(self, numbers: Sequence[float]) -> bool:
        """Whether it is called at a step with these numbers."""
        return self.due is None or bool(self.due(*numbers, **self.choices))

    def leading(self, shape: Sequence[int]) -> int:
        """How many of a parameter's first dimensions only count what it takes."""
        return 0 if self.stack is None else self.stack(tuple(shape), **self.choices)

    def __call__(self, *arguments: Any, **choices: Any) -> Any:
        """Call it in a rule, or on one parameter's tensors.

        Raises:
            TypeError: see :meth:`choosing`.
            ValueError: the function returned another shape, or another number of tensors.
        """
        if choices:
            return self.choosing(**choices)(*arguments)
        symbol = next((a for a in arguments if isinstance(a, Symbol)), None)
        if symbol is not None:
            return symbol.recorder.call(self, arguments)
        x = arguments[0]
        if hasattr(x, "full_tensor"):
            return _in_parts(self, x, arguments[1:])
        numbers = [a for a in arguments if not (isinstance(a, Tensor) and a.dim())]
        # Of nothing, nothing is made: the function is not asked.
        if not x.numel() or not self.is_due(numbers):
            kept = tuple(arguments[place] for place in self.returns)
            return kept[0] if len(kept) == 1 else kept
        plain = torch.contiguous_format
        given: list[Any] = [
            a.unsqueeze(0).clone(memory_format=plain) if isinstance(a, Tensor) and a.dim() else a
            for a in arguments
        ]
        given[0] = x.unsqueeze(0).to(self.dtype or x.dtype, copy=True)
        made = [
            result[0].to(arguments[place].dtype)
            for place, result in zip(self.returns, self.on_batch(*given), strict=True)
        ]
        return made[0] if len(made) == 1 else tuple(made)

    def on_batch(self, *arguments: Any) -> list[Tensor]:
        """Call it on batches, the first of its own dtype; returns a list.

        Raises:
            ValueError: the function returned another shape, or another number of tensors.
        """
        result = self.function(*arguments, **self.choices)
        results = [result] if isinstance(result, Tensor) else list(result)
        if len(results) != len(self.returns):
            raise ValueError(
                f"{self.name} returned {len(results)} tensor(s) and must return {len(self.returns)}"
            )
        for place, made in zip(self.returns, results, strict=True):
            given = arguments[place].shape
            if made.shape != given:
                raise ValueError(
                    f"{self.name} returned shape {tuple(made.shape)} for a batch of shape "
                    f"{tuple(given)}; it must return the shape that it got"
                )
        return results


def _in_parts(function: Opaque, x: Any, others: tuple[Any, ...]) -> Any:
    """Of a DTensor: gather the whole in each process, call, and keep this process's part.

    States of a shape of their own are whole in each process.
    """
    from torch.distributed.tensor import DTensor, Replicate

    results = function(x.full_tensor(), *others)
    if function.returns[0] != 0:
        return results
    whole = [Replicate()] * x.device_mesh.ndim
    first = results[0] if isinstance(results, tuple) else results
    distributed = DTensor.from_local(first, x.device_mesh, whole, run_check=False)
    own = distributed.redistribute(placements=x.placements)
    return (own, *results[1:]) if isinstance(results, tuple) else own


@overload
def opaque(function: Callable[..., Any], /) -> Opaque: ...
@overload
def opaque(
    *,
    dtype: torch.dtype | None = None,
    dimensions: int | None = None,
    returns: Sequence[str] = (),
    refuses: Callable[..., str | None] | None = None,
    cost: Callable[..., float] | None = None,
    stack: Callable[..., int] | None = None,
    rounds: Callable[..., torch.dtype | None] | None = None,
    due: Callable[..., bool] | None = None,
) -> Callable[[Callable[..., Any]], Opaque]: ...


def opaque(
    function: Callable[..., Any] | None = None,
    /,
    *,
    dtype: torch.dtype | None = None,
    dimensions: int | None = None,
    returns: Sequence[str] = (),
    refuses: Callable[..., str | None] | None = None,
    cost: Callable[..., float] | None = None,
    stack: Callable[..., int] | None = None,
    rounds: Callable[..., torch.dtype | None] | None = None,
    due: Callable[..., bool] | None = None,
) -> Any:
    """Make a function that rules may call and that is not traced.

    ::

        @gradstep.opaque
        def whiten(x, eps):                      # x: (batch, rows, columns)
            u, _, v = torch.linalg.svd(x, full_matrices=False)
            return u @ v

        @gradstep.rule
        def whitened(g, *, eps=1e-7):
            return whiten(g, eps)

    It may also take states of a shape of their own (:func:`gradstep.shaped`), and return them anew:
    ``returns`` then names those of its arguments that it returns.

    Its keyword-only arguments are choices: flags of the rule, or constants, which are handed on as
    they are, ``whiten(g, eps, how=how)``. All others are tensors, then numbers.

    If it raises, the parameters that it was called for are as they were, and so are their states;
    those that were updated before in the same step are not taken back, and the error names them.

    Args:
        function: see :class:`Opaque`.
        dtype: what it wants its tensor as. Default: as the engine works, float32 or float64.
        dimensions: how many dimensions a parameter must have. Default: any number.
        returns: the names of the arguments that it returns anew, in their order. Default: the
            first.
        refuses: takes a parameter's shape and the choices by name; says why it cannot be called
            for such a parameter, as ``"has 3 rows"``, before anything is changed, or None.
        cost: takes the same; says how much work it is, by which weights that are split among
            processes are shared out. Default: the elements times the shortest side.
        stack: takes the same; says how many of the first dimensions only count matrices, each of
            which it treats as if it were alone. Default: none.
        rounds: takes the same; says to which dtype it first rounds its tensor, and last what takes
            its place: among processes they travel so. Default: none, or ``dtype``.
        due: takes the numbers by place and the choices by name; says whether it is called at this
            step, as ``step % frequency == 0``. Where it is not, what it returns anew stays as it
            is, and nothing is copied or sent. Default: at every step.

    Raises:
        ValueError: ``returns`` names something else, or not in their order.
    """
    if function is None:
        told: dict[str, Any] = {"refuses": refuses, "cost": cost, "stack": stack}
        told |= {"rounds": rounds, "due": due}
        return lambda f: replace(_made(f, dtype, dimensions, returns), **told)
    return _made(function, dtype, dimensions, returns)


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def _made(
    function: Callable[..., Any],
    dtype: torch.dtype | None,
    dimensions: int | None,
    returns: Sequence[str],
) -> Opaque:
    names = list(_parameters(function))
    unknown = [name for name in returns if name not in names]
    if unknown:
        raise ValueError(f"{function.__name__} has no argument {unknown[0]!r} to return anew")
    places = tuple(map(names.index, returns)) or (0,)
    if list(places) != sorted(set(places)):
        raise ValueError(f"{function.__name__} returns {', '.join(returns)}: name them in order")
    return Opaque(function.__name__, function, dtype, dimensions, places)
