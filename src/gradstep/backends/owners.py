"""Who of several processes owns which matrix, and where in a tensor each one's part lies."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from gradstep.program.shards import is_sharded
from gradstep.rule.graph import Node


@dataclass(frozen=True)
class Region:
    """Where in a whole tensor a process's part lies."""

    sizes: tuple[int, ...]
    offsets: tuple[int, ...]

    def of(self, whole: Tensor) -> Tensor:
        """A view of it."""
        for dim, (size, offset) in enumerate(zip(self.sizes, self.offsets, strict=True)):
            whole = whole.narrow(dim, offset if size else 0, size)
        return whole

    @property
    def numel(self) -> int:
        return math.prod(self.sizes)


@dataclass
class Layout:
    """Where the parts of a DTensor lie.

    Attributes:
        regions: of each process, in the order of the mesh.
    """

    regions: list[Region]

    @cached_property
    def holders(self) -> dict[Region, list[int]]:
        """Who has each region: several, where a mesh has replicas."""
        found: dict[Region, list[int]] = {}
        for rank, region in enumerate(self.regions):
            found.setdefault(region, []).append(rank)
        return found


@dataclass(frozen=True, eq=False)
class Replica:
    """What a plain tensor that every process of a mesh has whole would be as a DTensor."""

    device_mesh: Any
    shape: tuple[int, ...]
    device: torch.device

    @property
    def placements(self) -> tuple[Any, ...]:
        from torch.distributed.tensor import Replicate

        return tuple([Replicate()] * self.device_mesh.ndim)

    def numel(self) -> int:
        return math.prod(self.shape)


#: Plain weight -> the mesh over whose processes the functions of its rule are shared out.
_replicated: Any = WeakIdKeyDictionary()


def replicate(weights: Iterable[Tensor], mesh: Any) -> None:
    """From now on share the functions of these plain weights out over a mesh's processes."""
    _replicated.update({weight: mesh for weight in weights if not is_sharded(weight)})


def mesh_of(weight: Any) -> Any:
    """The mesh of the processes that share a weight's work; None where each does its own."""
    if is_sharded(weight):
        return weight.device_mesh
    return _replicated.get(weight) if _replicated else None


def goes_to_owner(node: Node) -> bool:
    """Whether one process calls an opaque function for all, where each has the weight whole.

    Not one that has to do with states of a shape of their own, which each process has, too.
    """
    return node.extent == "element" and all(a.extent != "own" for a in node.arguments)


def divide(work: Sequence[float], loads: list[float]) -> list[int]:
    """An owner for each piece of work: the one that has the least so far, the largest first.

    Args:
        work: how much each piece is.
        loads: what each process has had before; added to.

    Returns:
        the places of the owners, in the order of the work.
    """
    owners = [0] * len(work)
    for i in sorted(range(len(work)), key=lambda i: (-work[i], i)):
        owner = min(range(len(loads)), key=lambda rank: (loads[rank], rank))
        owners[i] = owner
        loads[owner] += work[i]
    least = min(loads)
    loads[:] = [load - least for load in loads]
    return owners


#: Weight -> the place in its mesh of who holds its states of a shape of their own.
_holders: Any = WeakIdKeyDictionary()
#: The processes of a mesh -> how much work such states are to each.
_held: dict[tuple[int, ...], list[float]] = {}


def settle_holders(weights: Sequence[Any]) -> None:
    """Choose who holds the states of a matrix's own shape, for DTensors that have nobody yet.

    Work is counted as products and factorisations of all sides of a weight take it. All processes
    come here with the same weights in the same order.
    """
    meshes: dict[tuple[int, ...], list[Any]] = {}
    for weight in weights:
        if is_sharded(weight) and weight not in _holders:
            meshes.setdefault(tuple(weight.device_mesh.mesh.flatten().tolist()), []).append(weight)
    for ranks, new in meshes.items():
        work = [float(w.numel() * sum(w.shape) + sum(d**3 for d in w.shape)) for w in new]
        loads = _held.setdefault(ranks, [0.0] * len(ranks))
        for weight, place in zip(new, divide(work, loads), strict=True):
            _holders[weight] = place


def holder_of(weight: Any) -> int:
    """The place in a DTensor's mesh of who holds its states of a shape of their own."""
    settle_holders([weight])
    place: int = _holders[weight]
    return place


#: The processes of a mesh -> what each has had to do more than the one with the least.
_loads: dict[tuple[int, ...], list[float]] = {}
_layouts: dict[Any, Layout] = {}
_groups: dict[tuple[int, ...], tuple[Any, Any]] = {}


def loads_of(ranks: tuple[int, ...]) -> list[float]:
    """What each process of a mesh has had to do more than the one with the least; to be kept."""
    return _loads.setdefault(ranks, [0.0] * len(ranks))


def group_of(mesh: Any) -> Any:
    """The process group of all processes of a mesh. Made anew at the first call, by all of them."""
    world = torch.distributed.group.WORLD
    if mesh.ndim == 1:
        return mesh.get_group()
    ranks = tuple(mesh.mesh.flatten().tolist())
    if ranks == tuple(range(torch.distributed.get_world_size())):
        return world
    known = _groups.get(ranks)
    if known is None or known[0] is not world:
        made = torch.distributed.new_group(list(ranks), use_local_synchronization=True)
        _groups[ranks] = known = (world, made)
    return known[1]


def layout_of(tensor: Any, group: Any, count: int) -> Layout:
    """Where each process's part of a DTensor lies.

    Asks the others at the first call for such a tensor: how parts lie is torch's affair.
    """
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    mesh, placements, shape = tensor.device_mesh, tuple(tensor.placements), tuple(tensor.shape)
    key = (tuple(mesh.mesh.flatten().tolist()), tuple(mesh.mesh.shape), placements, shape)
    known = _layouts.get(key)
    if known is None:
        sizes, offsets = compute_local_shape_and_global_offset(shape, mesh, placements)
        told: list[Any] = [None] * count
        torch.distributed.all_gather_object(told, (tuple(sizes), tuple(offsets)), group=group)
        known = _layouts[key] = Layout([Region(*each) for each in told])
    return known
