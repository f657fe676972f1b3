"""The tensors of a group that one kernel updates, as a table of addresses.

What reaches a kernel goes through here, at every step: a look at type, dtype, device, sizes and
strides of each tensor, and at whether what is written lies where it lay when it was checked.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from gradstep.engine.fit import alike_in_parts, as_stored, is_sharded, local, local_update
from gradstep.engine.guard import make_guard
from gradstep.engine.number_states import NumberStates
from gradstep.engine.update import Update

# Bound once: in a cold cache every look-up on the way costs as much as the work.
_data_ptr = Tensor.data_ptr


class Table:
    """Weights, gradients and states of updates that were checked, and those that follow them.

    Attributes:
        owners: the parameters.
        weights: the tensors that are written: of a DTensor this process's part.
        state_names, row_width: the states, numbers included, that a weight has; how many.
        counts: whether steps are counted.
        number_count: how many states are one number, the step count among them.
        number_states: reads and writes the states that are one number, if there are any.
    """

    def __init__(self, updates: Sequence[Update]) -> None:
        self.owners = [u.weight for u in updates]
        self._sharded = is_sharded(self.owners[0])
        updates = [local_update(u) for u in updates]
        first = updates[0]
        self._names = [u.name for u in updates]
        self.weights = [u.weight for u in updates]
        self._relaid = [i for i, u in enumerate(updates) if not as_stored(u.gradient, u.weight)]
        names = (*first.states, *first.numbers)
        self.row_width = len(names)
        self.state_names = list(names)
        self._row_of = itemgetter(*names) if names else None
        self.counts = "step" in first.numbers
        self.number_count = len(first.numbers)
        self.number_states: NumberStates | None = None
        if first.numbers:
            stored = [str(n.dtype).removeprefix("torch.") for n in first.numbers.values()]
            self.number_states = NumberStates(len(updates), len(names), stored)
        self._empty = {i for i, u in enumerate(updates) if not u.weight.numel()}
        flat = self._flat(
            self.weights,
            [u.gradient for u in updates],
            [{**u.states, **u.numbers} for u in updates],
        )
        pointers = self._locate(flat)
        self._addresses = self._written(pointers)
        self._checked = (flat, pointers)
        # A number that all parameters have together stands in every row, and once in the guard.
        first_at: dict[int, int] = {}
        places = [first_at.setdefault(id(tensor), i) for i, tensor in enumerate(flat)]
        self._once = list(first_at.values()) if len(first_at) < len(flat) else None
        self._again = [(i, place) for i, place in enumerate(places) if place != i]
        self._guard = make_guard(flat if self._once is None else [flat[i] for i in self._once])

    def located(self) -> tuple[list[Any], array[int]]:
        """All tensors of the checked updates in the kernel's order, and where they lie; once."""
        checked, self._checked = self._checked, ([], array("q"))  # gradients are not kept alive
        return checked

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

    def fits(
        self, gradients: Sequence[Tensor], entries: Sequence[Mapping[str, Any]]
    ) -> tuple[list[Any], array[int]] | None:
        """The same for tensors that took their places, if each is as it was when checked.

        What is written must also lie where it lay: two weights that have come to share memory
        must not be taken for strangers.

        Args:
            gradients: one a weight, in the order of the updates.
            entries: one mapping a weight, which holds its states and its ``"step"``, by name.
        """
        try:
            flat = self._flat(self.owners, gradients, entries)
        except (KeyError, TypeError):
            return None
        if self._sharded:
            n = len(gradients)
            for i in range(n):
                row = flat[2 * n + i * self.row_width : 2 * n + (i + 1) * self.row_width]
                states = row[: len(row) - self.number_count]
                if not alike_in_parts([flat[i], flat[n + i], *states]):
                    return None
            flat = [local(t) for t in flat]
        if self._once is None:
            if not self._guard(*flat):
                return None
        elif any(flat[i] is not flat[place] for i, place in self._again) or not self._guard(
            *[flat[i] for i in self._once]
        ):
            return None
        pointers = self._locate(flat)
        return (flat, pointers) if self._written(pointers) == self._addresses else None

    def relay(self, flat: list[Any], pointers: array[int]) -> None:
        """Copy gradients that lie otherwise than their weights, and point at the copies."""
        n = len(self.weights)
        for i in self._relaid:
            with torch.no_grad():
                flat[n + i] = torch.empty_like(self.weights[i]).copy_(flat[n + i])
            pointers[n + i] = flat[n + i].data_ptr()

    def _locate(self, flat: list[Any]) -> array[int]:
        # By way of a list: array() takes twice as long to draw from a map.
        pointers = list(map(_data_ptr, flat))
        if not all(pointers):
            self._check_memory(pointers)
        pointers.append(0)  # the kernel's counter of chunks
        return array("q", pointers)

    def _written(self, pointers: array[int]) -> array[int]:
        n = len(self.weights)
        return pointers[:n] + pointers[2 * n : -1]

    def _given(self, numbers: array[float]) -> Sequence[float]:
        """Number states and the count of this step, for the row's function."""
        if not self.counts:
            return (*numbers, 1.0)
        numbers[-1] += 1.0
        return numbers

    def _check_memory(self, pointers: Sequence[int]) -> None:
        n = len(self.weights)
        for place, pointer in enumerate(pointers):
            owner = place % n if place < 2 * n else (place - 2 * n) // self.row_width
            if pointer == 0 and owner not in self._empty:
                what = "weight" if place < n else "gradient" if place < 2 * n else "state"
                raise ValueError(
                    f"the {what} of {self._names[owner]()} has no memory: its storage was resized "
                    "to nothing. Bring it back before the step."
                )
