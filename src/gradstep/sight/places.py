"""Which weights are meant: a parameter by its name, and places in it by index or by a word."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradstep.optimizer.optimizer import Optimizer, planner_of
from gradstep.sight.catalogue import nearest

Place = tuple[int, ...]

_WORDS = ("largest", "random")


@dataclass(frozen=True)
class Choice:
    """The weights of a parameter that are to be looked at.

    Attributes:
        places: where they are; empty while the gradients are to choose.
        count: how many the gradients choose: those of the largest.
    """

    places: tuple[Place, ...]
    count: int = 0

    def of(self, gradient: Tensor) -> tuple[Place, ...]:
        """The places, now that the gradient is known."""
        if not self.count:
            return self.places
        if gradient.is_sparse:
            gradient = gradient.coalesce()
            sizes = gradient.values().abs().flatten()
            rows = gradient.indices().t().tolist()
            inner = gradient.values().shape[1:]
            found = [_unravel(i, (len(rows), *inner)) for i in _largest(sizes, self.count)]
            return tuple((*rows[place[0]], *place[1:]) for place in found)
        sizes = gradient.detach().abs().reshape(-1)
        return tuple(_unravel(i, gradient.shape) for i in _largest(sizes, self.count))


def find_parameter(
    optimizers: Sequence[Optimizer], param: Tensor | str | None, model: nn.Module | None
) -> tuple[str, Tensor, Optimizer]:
    """A parameter with the name that messages use, and the optimizer that holds it.

    Args:
        optimizers: one, or the parts of one.
        param: the tensor itself; or its name in the model, or in the optimizer if that was given
            names; None for the only one that there is.
        model: whose names are meant; None for the optimizer's own.

    Raises:
        ValueError: no such name, with the nearest ones; or a tensor that the optimizer does not
            hold.
        TypeError: neither a name nor a tensor.
    """
    held = [(name, p, each) for each in optimizers for name, p in planner_of(each).named()]
    named: dict[str, Tensor] = {}
    if model is not None:
        named |= model.named_parameters(remove_duplicate=False)
    for name, p, _ in held if model is None else ():
        named.setdefault(name, p)
    if param is None:
        if len(held) == 1:
            return held[0]
        raise ValueError(f"say which parameter: {_listed(list(named))}")
    if isinstance(param, str):
        if param not in named:
            raise ValueError(_unknown(optimizers, param, list(named), model))
        holder = next((each for _, p, each in held if p is named[param]), None)
        if holder is None:
            raise ValueError(
                f"{param} is in the model, but the optimizer does not hold it, so no step of it "
                "will move it"
            )
        return param, named[param], holder
    if not isinstance(param, Tensor):
        raise TypeError(
            f"param is a {type(param).__name__}; expected a parameter's name or the tensor itself"
        )
    for name, p, each in held:
        if p is param:
            return next((n for n, q in named.items() if q is p), name), p, each
    raise ValueError(f"the optimizer does not hold this tensor of shape {tuple(param.shape)}")


def _unknown(
    optimizers: Sequence[Optimizer], name: str, known: list[str], model: nn.Module | None
) -> str:
    groups = [group for each in optimizers for group in each.param_groups]
    unnamed = not any(group.get("param_names") for group in groups)
    if model is None and unnamed:
        return (
            f"the optimizer knows no parameter {name!r}: it was given no names. Pass model=model, "
            "or the tensor itself, or make the optimizer with model.named_parameters()"
        )
    where = "the model" if model is not None else "the optimizer"
    return f"{where} has no parameter {name!r}: {nearest(name, known) or _listed(known)}"


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:8])
    return f"there are {shown}" + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def choose_places(
    name: str, shape: Sequence[int], index: Any, count: int, seed: int | None
) -> Choice:
    """The places that an index or a word names.

    Args:
        name, shape: of the parameter.
        index: one number a dimension, in a tuple; or a plain number for a vector; several of these
            in a list; ``"largest"`` or ``"random"``; None where there is but one weight.
        count: how many, for the words.
        seed: for ``"random"``; None for another choice each time.

    Raises:
        IndexError: out of range; says the shape.
        ValueError: missing, of another length than the shape, an unknown word, or a count that is
            not 1 or more.
        TypeError: something else.
    """
    shape = tuple(shape)
    total = torch.Size(shape).numel()
    said = f"{name}, of shape {shape}"
    if not total:
        raise ValueError(f"{said}, has no weights")
    if isinstance(index, str):
        if index not in _WORDS:
            raise ValueError(f"index={index!r}; the words are 'largest' and 'random'")
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"count={count!r}; expected 1 or more")
        count = min(count, total)
        if index == "largest":
            return Choice((), count)
        numbers = torch.Generator()  # its own, so that no other random number becomes another
        if seed is None:
            numbers.seed()
        else:
            numbers.manual_seed(seed)
        chosen: dict[int, None] = {}
        while len(chosen) < count:  # a permutation would be as large as the parameter
            drawn = torch.randint(total, (2 * count,), generator=numbers, device="cpu").tolist()
            chosen.update(dict.fromkeys(drawn))
        return Choice(tuple(_unravel(i, shape) for i in list(chosen)[:count]))
    if index is None:
        if total > 1:
            example = ", ".join("0" * len(shape))
            raise ValueError(
                f"{said}, has {total} weights: say which, as index="
                f"{f'({example})' if len(shape) > 1 else example}, 'largest' or 'random'"
            )
        return Choice(((0,) * len(shape),))
    several = isinstance(index, list) or (
        isinstance(index, tuple) and any(isinstance(i, tuple | list) for i in index)
    )
    given = list(index) if several else [index]
    if not given:
        raise ValueError(f"index=[] names no weight of {said}")
    return Choice(tuple(_place(said, shape, each) for each in given))


def _place(said: str, shape: Place, given: Any) -> Place:
    """One index, counted from 0."""
    parts = tuple(given) if isinstance(given, tuple | list) else (given,)
    try:
        if any(isinstance(part, bool) for part in parts):
            raise TypeError
        place = tuple(operator.index(part) for part in parts)
    except TypeError:
        raise TypeError(
            f"index {given!r} is no index; expected whole numbers, 'largest' or 'random'"
        ) from None
    if len(place) != len(shape):
        numbers = "1 number" if len(shape) == 1 else f"{len(shape)} numbers"
        hint = ", such as " + str((0,) * len(shape)) if len(shape) > 1 else ""
        raise ValueError(
            f"index {given!r} has {len(place)} number(s); {said}, takes {numbers}{hint}"
        )
    if any(not -n <= i < n for i, n in zip(place, shape, strict=True)):
        last = tuple(n - 1 for n in shape)
        raise IndexError(
            f"index {given!r} is out of range for {said}, whose last weight is at "
            f"{last if len(last) > 1 else last[0]}"
        )
    return tuple(i % n for i, n in zip(place, shape, strict=True))


def _largest(sizes: Tensor, count: int) -> list[int]:
    """Where the largest numbers are, the largest first; a nan is the largest of all."""
    return [int(i) for i in sizes.topk(min(count, sizes.numel())).indices.tolist()]


def _unravel(position: int, shape: Sequence[int]) -> Place:
    place: list[int] = []
    for n in reversed(shape):
        position, at = divmod(position, n)
        place.append(at)
    return tuple(reversed(place))
