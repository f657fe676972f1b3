"""Tensors in buckets: which go through the passes together, and where in memory their values lie.

As many as have :data:`BUCKET` elements together, or one. So what is kept between passes stays
small, and small tensors are still in the cache when the next pass reads them. Tensors that an
opaque function is to take together have one shape.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from gradstep.backends.cpu.kernel import Kernel
from gradstep.program.kernel_spec import ITEM_BYTES, kept_storage
from gradstep.rule.graph import Node, as_matrix

#: Elements a bucket, unless one tensor has more.
BUCKET = 1 << 22


@dataclass
class Bucket:
    """Tensors that go through the passes together.

    Attributes:
        tensors: their places in the table.
        tiles: for each pass the tiles' numbers, how many, and how many elements.
        places: a row of offsets into the arena for each tensor.
        bytes: the arena's length.
        totals: for each whole reduction, and each tensor: where its partial outcomes lie.
        joins: for each pass what is to be put together: place, count and length of partial sums.
        batches: opaque function's node -> where each tensor's share lies.
        alike: the tensors by shape and layout, as ranges of neighbours: each range is a batch.
    """

    tensors: list[int]
    tiles: list[tuple[array[int], int, int]] = field(default_factory=list)
    places: array[int] = field(default_factory=lambda: array("q"))
    bytes: int = 0
    totals: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    joins: list[list[tuple[str, int, int, int]]] = field(default_factory=list)
    batches: dict[int, list[int]] = field(default_factory=dict)
    alike: list[range] = field(default_factory=list)


def divided(kernel: Kernel, weights: Sequence[Tensor], strides: Sequence[Any]) -> list[list[int]]:
    """The tensors in buckets, empty ones left out.

    Args:
        kernel: what they go through.
        weights: what is written.
        strides: of the tensors that opaque functions get, one tuple a weight.
    """
    groups: dict[Any, list[int]] = {}
    has_calls = any(stage.calls for stage in kernel.stages)
    for i, weight in enumerate(weights):
        if weight.numel():
            key = (weight.shape, weight.stride(), strides[i]) if has_calls else None
            groups.setdefault(key, []).append(i)
    buckets: list[list[int]] = []
    if kernel.sums_over_all:  # all wait for each other
        return [[i for tensors in groups.values() for i in tensors]] if groups else []
    for tensors in groups.values():
        held = BUCKET + 1
        for i in tensors:
            held += weights[i].numel()
            if held > BUCKET:
                buckets.append([])
                held = weights[i].numel()
            buckets[-1].append(i)
    return buckets


def lay_out(
    kernel: Kernel,
    all_weights: Sequence[Tensor],
    strides: Sequence[Any],
    tensors: list[int],
) -> Bucket:
    """A bucket of these tensors, with all that its passes need laid out in its arena."""
    bucket = Bucket(tensors)
    weights = [all_weights[i] for i in tensors]
    offsets: dict[tuple[int, int], int] = {}
    position = {id(owner): p for p, owner in enumerate(kernel.places.owners)}

    def place(owner: Node, sizes: list[int]) -> None:
        bucket.bytes = -(-bucket.bytes // 64) * 64
        for row, size in enumerate(sizes):
            offsets[position[id(owner)], row] = bucket.bytes
            bucket.bytes += size

    for stage in kernel.stages:
        each = stage.each
        cuts = [kernel.geometry(weight, each.domain) for weight in weights]
        numbers = array("q")
        for row, (tensor, cut) in enumerate(zip(tensors, cuts, strict=True)):
            numbers.extend(cut.tiles(tensor, row))
        elements = sum(c.flat or c.outer * c.middle * c.inner for c in cuts)
        bucket.tiles.append((numbers, sum(c.count() for c in cuts), elements))
        for node, owner in each.keeps:
            item = ITEM_BYTES[kept_storage(owner, kernel.working)]
            place(owner, [item * _length(kernel, w, node.extent) for w in weights])
            if owner.operation == "opaque":
                own = [offsets[position[id(owner)], row] for row in range(len(weights))]
                bucket.batches[id(owner)] = own
        joins: list[tuple[str, int, int, int]] = []
        for node in each.sums:
            if node.extent == "tensor":
                place(node, [8 * cut.count() for cut in cuts])
            else:
                parts = [
                    cut.middle_tiles()
                    if each.domain == "element" and node.extent == "column"
                    else cut.inner_tiles()
                    for cut in cuts
                ]
                lengths = [_length(kernel, w, node.extent) for w in weights]
                place(node, [8 * p * n for p, n in zip(parts, lengths, strict=True)])
            starts = [offsets[position[id(node)], row] for row in range(len(weights))]
            if node.extent == "tensor":
                counts = [cut.count() for cut in cuts]
                bucket.totals[id(node)] = list(zip(starts, counts, strict=True))
            else:
                for start, count, length in zip(starts, parts, lengths, strict=True):
                    if count > 1:
                        joins.append((node.operation, start, count, length))
        bucket.joins.append(joins)
    keys = [(w.shape, w.stride(), strides[i]) for w, i in zip(weights, tensors, strict=True)]
    for row, key in enumerate(keys):
        if row and key == keys[row - 1]:
            bucket.alike[-1] = range(bucket.alike[-1].start, row + 1)
        else:
            bucket.alike.append(range(row, row + 1))
    for row in range(len(tensors)):
        bucket.places.extend(offsets.get((p, row), 0) for p in range(len(kernel.places.owners)))
    return bucket


def _length(kernel: Kernel, weight: Tensor, extent: str) -> int:
    """How many values there are of an extent."""
    if extent == "element":
        return weight.numel()
    matrices, rows, columns = as_matrix(weight.shape, kernel.rows_are_units)
    return matrices * {"row": rows, "column": columns, "matrix": 1}[extent]
