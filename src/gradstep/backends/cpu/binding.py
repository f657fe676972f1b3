"""Tensors of a group bound to the kernel that updates them."""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradstep.backends.base import Run, Values
from gradstep.backends.cpu.buckets import divided, lay_out
from gradstep.backends.cpu.kernel import Kernel
from gradstep.backends.cpu.run import FlatRun, PassesRun
from gradstep.backends.eligibility import STORAGE
from gradstep.backends.owners import goes_to_owner, mesh_of
from gradstep.backends.table import Row, Table, taken_strides
from gradstep.backends.update import AlikeUpdates, Update
from gradstep.program.shards import local
from gradstep.program.walks import FIELDS, flat_tiles
from gradstep.rule.reductions import facts_of

if TYPE_CHECKING:
    from gradstep.backends.cpu.probe import Probe

#: The scalars and states of a tensor, as far as they are known before its passes.
Given = tuple[float, ...]


class Tensors(Table):
    """The tensors that one kernel updates.

    A flat program has a short way: one call, and one row of scalars
    where all weights have the same.

    Attributes:
        elements: of a flat program, how many all weights have together.
        tiles, tile_count: the same: its tiles' numbers; how many tiles.
        fixed_at: where those numbers lie that its pass gets in every step.
        strides: of the tensors that opaque functions get, one tuple a weight.
        facts: what a rule may ask of each weight, as numbers.
        buckets: the weights that go through the passes together.
        mesh: of the processes that share the functions of these weights; None where each does all.
        probes: shown each bucket after its passes, with its arena and the totals of each tensor.
    """

    def __init__(
        self, kernel: Kernel, of: Sequence[Update] | Sequence[Row], weights: Sequence[Tensor]
    ) -> None:
        super().__init__(of)
        self.kernel = kernel
        self._firsts: Sequence[bool] | None = None
        if isinstance(of, AlikeUpdates):
            self._firsts = of.firsts
        elif not isinstance(of[0], Row):
            self._firsts = [u.first for u in of]  # type: ignore[union-attr]
        weights = list(map(local, weights)) if self.sharded else weights
        self._is_flat = kernel.is_flat
        if self._is_flat:
            stored = STORAGE[weights[0].dtype][1]
            self._lay_flat([stored * count for count in self.sizes])
            self._row_for: Given | None = None
            self._row = array("d")
            return
        if isinstance(of[0], Row):
            self.strides = [row.strides for row in of]  # type: ignore[union-attr]
        else:
            gradients = [local(update.gradient) for update in of]  # type: ignore[union-attr]
            self.strides = list(map(taken_strides, gradients, weights))
        by_shape: dict[Any, Given] = {}
        eps = torch.finfo(torch.float32).eps if kernel.is_wide else None
        self.facts = []
        for weight in weights:
            key = (weight.shape, weight.dtype)
            if key not in by_shape:
                by_shape[key] = tuple(facts_of(weight, eps).values())
            self.facts.append(by_shape[key])
        self.probes: list[Probe] = []
        calls = any(goes_to_owner(node) for stage in kernel.stages for node, _ in stage.calls)
        self.mesh = mesh_of(weights[0]) if calls else None
        known = (kernel, weights, self.strides)
        self.buckets = [lay_out(*known, tensors) for tensors in self._divided(weights)]

    def rows(self, kind: Hashable, updates: Sequence[Update]) -> Sequence[Row]:
        if self.sharded:
            return []
        return [Row(type(self), self.kernel, kind, update) for update in updates]

    def _divided(self, weights: Sequence[Tensor]) -> list[list[int]]:
        """The weights that go through the passes together."""
        return divided(self.kernel, weights, self.strides)

    def _lay_flat(self, sizes: Sequence[int]) -> None:
        """Cut tensors of so many stored numbers into the pieces of work of a flat walk."""
        self.elements = sum(sizes)
        self.tiles = flat_tiles(sizes)
        self.tile_count = len(self.tiles) // len(FIELDS["flat"])
        tiles_at = self.tiles.buffer_info()[0]
        fixed = (self.count, self.row_width, 0, 0, 0, tiles_at, self.tile_count)
        self._fixed = array("q", fixed)
        self.fixed_at = self._fixed.buffer_info()[0]

    def _take_accepted(
        self,
    ) -> tuple[Sequence[Tensor], list[Any], array[int], Sequence[bool] | None]:
        """The parameters, all tensors, where they lie, and whose first step it is, if it is any's.

        Once, so that no tensor is held.
        """
        (owners, flat, pointers), self._accepted = self._accepted, None  # type: ignore[misc]
        firsts, self._firsts = self._firsts, None
        if self._relaid:
            self.relay(flat, pointers)
        return owners, flat, pointers, firsts

    def prepare(self, values: Values) -> Run:
        owners, flat, pointers, firsts = self._take_accepted()
        kernel, states, n = self.kernel, self.number_states, self.count
        numbers = values.numbers
        if states is None and firsts is None and self._is_flat:
            # Only hyperparameters shape the row; where one changes they are a new tuple.
            if self._row_for is not numbers:
                self._row = array("d", kernel.row(1.0, False, *numbers))
                self._row_for = numbers
            return self._flat_run(owners, flat, pointers, self._row, 0)
        own = array("d")
        if states is not None:
            own = states.read(pointers.buffer_info()[0] + 16 * n)
        width = len(own) // n
        start = own[:width]
        alike = (n == 1 or firsts is None or len(set(firsts)) == 1) and own == start * n
        if alike:
            first = 0.0 if firsts is None else float(firsts[0])
            given = (*self._given(start), first, *numbers)
            if self._is_flat:
                return self._flat_run(owners, flat, pointers, array("d", kernel.row(*given)), 0)
            heads = [given] * n
        else:
            heads = []
            for i in range(n):
                each = self._given(own[width * i : width * (i + 1)])
                heads.append((*each, float(firsts is not None and firsts[i]), *numbers))
        if not self._is_flat:
            rows = [head + facts for head, facts in zip(heads, self.facts, strict=True)]
            return PassesRun(self, owners, flat, pointers, rows, alike)
        made = {head: kernel.row(*head) for head in set(heads)}
        scalars = array("d", chain.from_iterable([made[head] for head in heads]))
        return self._flat_run(owners, flat, pointers, scalars, len(scalars) // n)

    def _flat_run(
        self,
        owners: Sequence[Tensor],
        flat: list[Any],
        pointers: array[int],
        scalars: array[float],
        distance: int,
    ) -> Run:
        """What writes, of a flat program.

        Args:
            owners: the parameters.
            flat: all tensors, in the order of the table.
            pointers: where they lie.
            scalars: a row for each tensor, or one for all.
            distance: of two rows; 0 where there is one for all.
        """
        return FlatRun(self, owners, flat, pointers, scalars, distance)
