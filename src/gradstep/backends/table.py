"""The tensors of a group that one kernel updates, as a table of addresses.

What reaches a kernel goes through here, at every step: a look at type, dtype, device, sizes and
strides of each tensor, and at whether what is written lies where it lay when it was checked.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from gradstep.backends.base import Binding
from gradstep.backends.cpu import addresses
from gradstep.backends.cpu.number_states import NumberStates
from gradstep.backends.eligibility import alike_in_parts, as_stored, local_update, spans_of
from gradstep.backends.guard import make_guard
from gradstep.backends.update import AlikeUpdates, Update, is_dense, weights_of
from gradstep.program.shards import is_sharded, local

# Bound once: in a cold cache every look-up on the way costs as much as the work.
_data_ptr = Tensor.data_ptr


#: The parameters; all tensors in the kernel's order; where those lie, and a place for the counter.
Accepted = tuple[Sequence[Tensor], list[Any], "array[int]"]


class Row:
    """What was found out about one weight, its gradient and its states when they were checked.

    It holds none of these: a parameter that is replaced is to be freed with its last owner.

    Attributes:
        binding: makes a binding of a kernel, rows and weights.
        kernel: what updates it.
        kind: tensors of equal kinds go through the kernel together.
        name: gives the parameter's name, for messages.
        names: of its states, numbers included.
        stored: how each of the numbers is stored.
        size: how many elements it has.
        strides: of the tensor that an opaque function gets.
        relaid: whether the gradient lies otherwise than the weight.
        guard: whether weight, gradient and states are what they were.
        written: where what is written lies: the weight, then its states.
        spans: the stretches of memory of the weight and of those states that are no numbers.
    """

    __slots__ = (
        "binding", "guard", "kernel", "kind", "name", "names", "relaid", "size", "spans",
        "stored", "strides", "written",
    )  # fmt: skip

    def __init__(
        self, binding: Callable[..., Binding], kernel: Any, kind: Any, update: Update
    ) -> None:
        weight, gradient = update.weight, update.gradient
        self.binding = binding
        self.kernel = kernel
        self.kind = kind
        self.name = update.name
        self.names = (*update.states, *update.numbers)
        self.stored = [str(n.dtype).removeprefix("torch.") for n in update.numbers.values()]
        self.size = weight.numel()
        self.strides = taken_strides(gradient, weight)
        self.relaid = not as_stored(gradient, weight)
        states = [*update.states.values(), *update.numbers.values()]
        self.guard = make_guard([weight, gradient, *states])
        self.written = list(map(_data_ptr, [weight, *states]))
        self.spans = spans_of(weight, update.states.values(), id(weight))

    def bind(self, rows: Sequence[Row], weights: Sequence[Tensor]) -> Binding:
        """Bind the kernel to weights of which these are the rows, this one among them."""
        return self.binding(self.kernel, rows, weights)


def taken_strides(gradient: Tensor, weight: Tensor) -> tuple[int, ...]:
    """Of the tensor that an opaque function gets: the gradient's, as torch's own code would have
    it. The last bits of a matrix product depend on it."""
    return gradient.stride() if is_dense(gradient) else weight.stride()


class Table(Binding):
    """Weights, gradients and states that were checked, and those that take their places.

    It holds none of them: a parameter that is replaced is to be freed with its last owner.

    Attributes:
        count: how many weights there are.
        sizes: how many elements each has.
        state_names, row_width: the states, numbers included, that a weight has; how many.
        counts: whether steps are counted.
        names: gives each weight's name, for messages.
        number_count: how many states are one number, the step count among them.
        number_states: reads and writes the states that are one number, if there are any.
    """

    lasts = True

    def __init__(self, of: Sequence[Update] | Sequence[Row]) -> None:
        first = of[0]
        self.count = len(of)
        self.names = of.names if isinstance(of, AlikeUpdates) else [each.name for each in of]
        #: What was accepted last, or checked at the beginning, until it is prepared.
        self._accepted: Accepted | None = None
        self._rows: list[Row] = []
        self._again: list[tuple[int, int]] = []
        self._once: list[int] | None = None
        self._guard: Callable[..., bool] = _refuse
        if isinstance(first, Row):
            self._take_rows(of)  # type: ignore[arg-type]
        else:
            self._take_updates(of)  # type: ignore[arg-type]

    def _take_updates(self, updates: Sequence[Update]) -> None:
        owners = weights_of(updates)
        self.sharded = is_sharded(updates[0].weight)
        updates = [local_update(u) for u in updates] if self.sharded else updates
        first = updates[0]
        weights = weights_of(updates)
        entries: Sequence[Mapping[str, Any]]
        if isinstance(updates, AlikeUpdates):
            gradients, entries, self._relaid = updates.gradients, updates.entries, []
        else:
            gradients = [u.gradient for u in updates]
            entries = [{**u.states, **u.numbers} for u in updates]
            self._relaid = _relaid(gradients, weights)
        self._set_sizes(list(map(Tensor.numel, weights)))
        stored = [str(n.dtype).removeprefix("torch.") for n in first.numbers.values()]
        self._set_columns((*first.states, *first.numbers), stored)
        flat = self._flat(weights, gradients, entries)
        found = list(map(_data_ptr, flat))
        pointers = self._with_memory(array("q", [*found, 0]), found.count(0))
        self._addresses = self._written(pointers)
        self._accepted = (owners, flat, pointers)
        # Plain tensors are known to lie apart, but for those without elements, and numbers.
        plain = isinstance(updates, AlikeUpdates) and not (stored or self._empty)
        self._guard_all(flat, plain)

    def _take_rows(self, rows: Sequence[Row]) -> None:
        self.sharded = False
        self._relaid = [i for i, row in enumerate(rows) if row.relaid]
        self._set_sizes([row.size for row in rows])
        self._set_columns(rows[0].names, rows[0].stored)
        states = chain.from_iterable([row.written[1:] for row in rows])
        self._addresses = array("q", [*[row.written[0] for row in rows], *states])
        self._rows = [*rows]
        self._looks = 0

    def _set_sizes(self, sizes: list[int]) -> None:
        self.sizes = sizes
        self._empty = {i for i, size in enumerate(sizes) if not size} if 0 in sizes else set()

    def _set_columns(self, names: Sequence[str], stored: Sequence[str]) -> None:
        self.row_width = len(names)
        self.state_names = list(names)
        self._row_of = itemgetter(*names) if names else None
        self.counts = "step" in names[len(names) - len(stored) :]
        self.number_count = len(stored)
        self.number_states: NumberStates | None = None
        if stored:
            self.number_states = NumberStates(self.count, len(names), stored)

    def _guard_all(self, flat: Sequence[Tensor], distinct: bool = False) -> None:
        """One guard for all of these."""
        # A number that all parameters have together stands in every row, and once in the guard.
        self._once, self._again = None, []
        if distinct or len(set(map(id, flat))) == len(flat):
            self._guard = make_guard(flat)
            return
        first_at: dict[int, int] = {}
        places = [first_at.setdefault(id(tensor), i) for i, tensor in enumerate(flat)]
        self._once = list(first_at.values())
        self._again = [(i, place) for i, place in enumerate(places) if place != i]
        self._guard = make_guard([flat[i] for i in self._once])

    def _guard_rows(self, flat: Sequence[Tensor]) -> bool:
        """Ask the guard of each row. Who comes again gets one guard for all, which is quicker."""
        n, width, start = self.count, self.row_width, 2 * self.count
        for i, row in enumerate(self._rows):
            if not row.guard(flat[i], flat[n + i], *flat[start : start + width]):
                return False
            start += width
        self._looks += 1
        if self._looks == 2:
            self._guard_all(flat)
            self._rows = []
        return True

    def _flat(
        self,
        weights: Sequence[Tensor],
        gradients: Sequence[Tensor],
        entries: Sequence[Mapping[str, Any]],
    ) -> list[Any]:
        flat: list[Any] = [*weights, *gradients]
        if self._row_of is not None:
            rows = map(self._row_of, entries)
            flat += rows if self.row_width == 1 else chain.from_iterable(rows)
        return flat

    def accepts(
        self,
        weights: Sequence[Tensor],
        gradients: Sequence[Tensor],
        entries: Sequence[Mapping[str, Any]],
    ) -> bool:
        # What is written must also lie where it lay: two weights that have come to share memory
        # must not be taken for strangers.
        try:
            flat = self._flat(weights, gradients, entries)
        except (KeyError, TypeError):
            return False
        if self.sharded:
            n = len(gradients)
            for i in range(n):
                row = flat[2 * n + i * self.row_width : 2 * n + (i + 1) * self.row_width]
                states = row[: len(row) - self.number_count]
                if not alike_in_parts([flat[i], flat[n + i], *states]):
                    return False
            flat = [local(t) for t in flat]
        if self._rows:
            if not self._guard_rows(flat):
                return False
        elif self._once is None:
            if not self._guard(*flat):
                return False
        elif any(flat[i] is not flat[place] for i, place in self._again) or not self._guard(
            *[flat[i] for i in self._once]
        ):
            return False
        pointers = self._with_memory(*addresses.locate(flat))
        if self._written(pointers) != self._addresses:
            return False
        self._accepted = (weights, flat, pointers)
        return True

    def relay(self, flat: list[Any], pointers: array[int]) -> None:
        """Copy gradients that lie otherwise than their weights, and point at the copies."""
        n = self.count
        for i in self._relaid:
            with torch.no_grad():
                flat[n + i] = torch.empty_like(flat[i]).copy_(flat[n + i])
            pointers[n + i] = flat[n + i].data_ptr()

    def _with_memory(self, pointers: array[int], zeros: int) -> array[int]:
        """Addresses, and behind them a place for the kernel's counter of tiles.

        Raises:
            ValueError: one of so many zeros is that of a tensor with elements.
        """
        if zeros:
            self._check_memory(pointers[:-1])
        return pointers

    def _written(self, pointers: array[int]) -> array[int]:
        n = self.count
        return pointers[:n] + pointers[2 * n : -1]

    def _given(self, numbers: array[float]) -> Sequence[float]:
        """Number states and the count of this step, for the row's function."""
        if not self.counts:
            return (*numbers, 1.0)
        numbers[-1] += 1.0
        return numbers

    def _check_memory(self, pointers: Sequence[int]) -> None:
        n = self.count
        for place, pointer in enumerate(pointers):
            owner = place % n if place < 2 * n else (place - 2 * n) // self.row_width
            if pointer == 0 and owner not in self._empty:
                what = "weight" if place < n else "gradient" if place < 2 * n else "state"
                raise ValueError(
                    f"the {what} of {self.names[owner]()} has no memory: its storage was resized "
                    "to nothing. Bring it back before the step."
                )


def _relaid(gradients: Sequence[Tensor], weights: Sequence[Tensor]) -> list[int]:
    """The places of the gradients that lie otherwise than their weights."""
    if (  # of thousands, in a tenth of the time
        all(map(Tensor.is_contiguous, chain(gradients, weights)))
        and not any(map(Tensor.is_conj, gradients))
        and not any(map(Tensor.is_neg, gradients))
    ):
        return []
    pairs = zip(gradients, weights, strict=True)
    return [i for i, (gradient, weight) in enumerate(pairs) if not as_stored(gradient, weight)]


def _refuse(*_: Any) -> bool:
    return False
