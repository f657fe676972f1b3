"""Opaque functions on weights that are split among processes: each matrix has one owner.

A function needs the whole of a matrix, of which each process holds a part. So the parts travel to
the matrix's owner, which calls the function, and the parts of the outcome travel back. Owners are
chosen so that all have as much work; what lies whole in a process (experts that are split along
their first dimension) stays there. Parts go in buckets, one ahead: while the functions of a bucket
run, the parts of the next are on their way.

All processes of a mesh come here with the same calls in the same order: which the planner has made
sure of (:func:`gradstep.backends.desync.check_desync` compares the weights of a step).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradstep.rule.opaque import Opaque

#: About so many bytes of all processes' parts go together.
BUCKET_BYTES = 32 << 20
#: Where each process holds the whole: of matrices whose shorter side is below this, sending the
#: outcome takes longer than working it out in each process.
WORTH_SENDING = 64


@dataclass(frozen=True, eq=False)
class Call:
    """A call of a function for one weight, which its rule waits for.

    Attributes:
        function: takes one tensor of the weight's shape, and numbers.
        part: of that tensor in this process; a plain tensor.
        like: a DTensor that is split as it is.
        numbers: the function's.
        name: gives the weight's name, for messages.
    """

    function: Opaque
    part: Tensor
    like: Any
    numbers: tuple[float, ...]
    name: Callable[[], str]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole."""
        return tuple(self.like.shape)

    @property
    def work(self) -> float:
        """How much it is, to be compared with others."""
        return self.function.work(self.shape)

    @property
    def stays(self) -> bool:
        """Whether the function needs nothing that this process has not."""
        leading = self.function.leading(self.shape)
        split = [p.dim for p in self.like.placements if not p.is_replicate()]
        if not split:
            return min(self.shape[leading:], default=0) < WORTH_SENDING
        return bool(max(split) < leading)

    def make(self, whole: Sequence[Tensor]) -> list[Tensor]:
        """Call it on a batch of several calls' tensors, of equal shapes."""
        if not whole[0].numel():
            return list(whole)
        batch = torch.stack(list(whole)).to(self.function.dtype or whole[0].dtype)
        made = self.function.on_batch(batch, *self.numbers)[0]
        return [each.to(w.dtype) for each, w in zip(made, whole, strict=True)]


@dataclass
class Traffic:
    """What has gone through this module in this process since it was imported.

    Attributes:
        bytes_sent: to other processes.
        calls: of functions, of matrices that this process owns, or has whole.
        work: of these, in the unit of their ``cost``.
    """

    bytes_sent: int = 0
    calls: int = 0
    work: float = 0.0


#: Counts up; anybody may look.
traffic = Traffic()


def answer(calls: Sequence[Call]) -> list[Tensor]:
    """What the functions make, in the order of the calls: this process's parts.

    Raises:
        RuntimeError: the function failed in another process, which is named.
        Exception: what the function raised in this one.
    """
    found: list[Tensor | None] = [None] * len(calls)
    there = [i for i, call in enumerate(calls) if call.stays]
    failures: dict[int, Exception] = {}
    for alike in _alike(calls, there):
        made = _attempt([calls[i] for i in alike], [calls[i].part for i in alike], failures, alike)
        for i, each in zip(alike, made, strict=True):
            found[i] = each
    travelling = [i for i in range(len(calls)) if i not in set(there)]
    meshes: dict[Any, list[int]] = {}
    for i in travelling:
        meshes.setdefault((calls[i].like.device_mesh, calls[i].part.dtype), []).append(i)
    for (mesh, _), own in meshes.items():
        for i, each in zip(own, _Exchange(mesh, [calls[i] for i in own]).run(), strict=True):
            found[i] = each
    if failures:
        raise next(iter(failures.values()))
    return [each for each in found if each is not None]


def _alike(calls: Sequence[Call], places: Sequence[int]) -> list[list[int]]:
    """Those that a function takes together: of one shape, with the same numbers."""
    kinds: dict[Any, list[int]] = {}
    for i in places:
        call = calls[i]
        kinds.setdefault((id(call.function), call.part.shape, call.numbers), []).append(i)
    return list(kinds.values())


def _attempt(
    calls: Sequence[Call],
    tensors: Sequence[Tensor],
    failures: dict[int, Exception],
    places: Sequence[int],
) -> list[Tensor]:
    """Call a function; an exception waits until the others have what they wait for."""
    traffic.calls += len(calls)
    traffic.work += sum(c.function.work(t.shape) for c, t in zip(calls, tensors, strict=True))
    try:
        return calls[0].make(tensors)
    except Exception as error:
        failures[places[0]] = error
        return list(tensors)


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


class _Exchange:
    """The calls of one mesh: to their owners and back."""

    def __init__(self, mesh: Any, calls: Sequence[Call]) -> None:
        self.calls = calls
        self.ranks: list[int] = mesh.mesh.flatten().tolist()
        self.group = group_of(mesh)
        self.me = self.ranks.index(torch.distributed.get_rank())
        self.regions = [regions_of(call.like, self.group, len(self.ranks)) for call in calls]
        self.owners = share_out([call.work for call in calls], _loads_of(tuple(self.ranks)))
        self.whole: dict[int, Tensor] = {}
        self.made: dict[int, Tensor] = {}
        self.failures: dict[int, Exception] = {}

    def run(self) -> list[Tensor]:
        """The parts of all outcomes."""
        buckets = self._buckets()
        coming = self._gather(buckets[0])
        returning: list[Callable[[], None]] = []
        for number, bucket in enumerate(buckets):
            arrived = coming
            if number + 1 < len(buckets):
                coming = self._gather(buckets[number + 1])
            arrived()
            own = [i for i in bucket if self.owners[i] == self.me]
            for places in self._together(own):
                calls, wholes = [self.calls[i] for i in places], [self.whole.pop(i) for i in places]
                made = _attempt(calls, wholes, self.failures, places)
                self.whole.update(zip(places, made, strict=True))
            returning.append(self._return(bucket))
        for arrived in returning:
            arrived()
        self._compare_failures()
        return [self.made[i] for i in range(len(self.calls))]

    def _together(self, own: Sequence[int]) -> list[list[int]]:
        kinds: dict[Any, list[int]] = {}
        for i in own:
            call = self.calls[i]
            kinds.setdefault((id(call.function), call.shape, call.numbers), []).append(i)
        return list(kinds.values())

    def _buckets(self) -> list[list[int]]:
        """The calls, some of each owner in each bucket, the largest first."""
        by_owner: list[list[int]] = [[] for _ in self.ranks]
        for i in sorted(range(len(self.calls)), key=lambda i: (-self.calls[i].work, i)):
            by_owner[self.owners[i]].append(i)
        buckets: list[list[int]] = [[]]
        size = 0
        for row in itertools.zip_longest(*by_owner):
            if size >= BUCKET_BYTES:
                buckets.append([])
                size = 0
            for i in row:
                if i is not None:
                    buckets[-1].append(i)
                    part = self.calls[i].part
                    size += math.prod(self.calls[i].shape) * part.element_size()
        return buckets

    def _sender(self, i: int, region: Region) -> int:
        """Who of those that hold a region sends it to the owner: itself, where it can."""
        regions, owner = self.regions[i], self.owners[i]
        if regions[owner] == region:
            return owner
        holders = [rank for rank, held in enumerate(regions) if held == region]
        return holders[i % len(holders)]

    def _gather(self, bucket: Sequence[int]) -> Callable[[], None]:
        """Send parts to their owners; returns what waits for them and puts them together."""
        outgoing: list[list[Tensor]] = [[] for _ in self.ranks]
        incoming: list[list[tuple[int, Region]]] = [[] for _ in self.ranks]
        for i in bucket:
            owner, regions = self.owners[i], self.regions[i]
            for region in dict.fromkeys(regions):
                sender = self._sender(i, region)
                if not region.numel or (sender, owner).count(self.me) == 0:
                    continue
                if sender == self.me and owner != self.me:
                    outgoing[owner].append(self.calls[i].part)
                elif owner == self.me and sender != self.me:
                    incoming[sender].append((i, region))
        arrived = self._send(outgoing, incoming, bucket)

        def put_together() -> None:
            for i in bucket:
                if self.owners[i] == self.me:
                    part = self.calls[i].part
                    self.whole[i] = part.new_empty(self.calls[i].shape)
                    self.regions[i][self.me].of(self.whole[i]).copy_(part)
            for i, region, values in arrived():
                region.of(self.whole[i]).copy_(values.view(region.sizes))

        return put_together

    def _return(self, bucket: Sequence[int]) -> Callable[[], None]:
        """Send the parts of outcomes to all that hold them."""
        outgoing: list[list[Tensor]] = [[] for _ in self.ranks]
        incoming: list[list[tuple[int, Region]]] = [[] for _ in self.ranks]
        for i in bucket:
            regions, owner = self.regions[i], self.owners[i]
            if owner == self.me:
                whole = self.whole.pop(i)
                for rank, region in enumerate(regions):
                    if rank != self.me and region.numel:
                        outgoing[rank].append(region.of(whole))
                self.made[i] = regions[self.me].of(whole).contiguous()
            elif regions[self.me].numel:
                incoming[owner].append((i, regions[self.me]))
            else:
                self.made[i] = self.calls[i].part
        arrived = self._send(outgoing, incoming, bucket)

        def keep() -> None:
            for i, region, values in arrived():
                self.made[i] = values.view(region.sizes).clone()

        return keep

    def _send(
        self,
        outgoing: Sequence[Sequence[Tensor]],
        incoming: Sequence[Sequence[tuple[int, Region]]],
        bucket: Sequence[int],
    ) -> Callable[[], list[tuple[int, Region, Tensor]]]:
        """All to all; returns what waits and says what has come."""
        like = self.calls[bucket[0]].part
        sizes = [sum(t.numel() for t in tensors) for tensors in outgoing]
        flat = [t.reshape(-1) for tensors in outgoing for t in tensors]
        sent = torch.cat(flat) if flat else like.new_empty(0)
        coming = [sum(region.numel for _, region in parts) for parts in incoming]
        received = like.new_empty(sum(coming))
        traffic.bytes_sent += sent.numel() * sent.element_size()
        work = torch.distributed.all_to_all_single(
            received, sent, coming, sizes, group=self.group, async_op=True
        )

        def arrived() -> list[tuple[int, Region, Tensor]]:
            work.wait()
            on_their_way.clear()
            parts = [part for parts in incoming for part in parts]
            values = torch.split(received, [region.numel for _, region in parts])
            return [(i, region, v) for (i, region), v in zip(parts, values, strict=True)]

        on_their_way = [sent]  # to be kept until they have arrived
        return arrived

    def _compare_failures(self) -> None:
        """Raise in every process where one has failed."""
        device = self.calls[0].part.device
        flag = torch.tensor([float(bool(self.failures))], device=device)
        torch.distributed.all_reduce(flag, group=self.group)
        if not flag.item():
            return
        words = [
            f"{self.calls[i].function.name} of {self.calls[i].name()}: {error}"
            for i, error in self.failures.items()
        ]
        said: list[Any] = [None] * len(self.ranks)
        torch.distributed.all_gather_object(said, words, group=self.group)
        if self.failures:
            raise next(iter(self.failures.values()))
        rank, first = next((r, w[0]) for r, w in zip(self.ranks, said, strict=True) if w)
        raise RuntimeError(f"process {rank} could not make its part of the step: {first}")


def share_out(work: Sequence[float], loads: list[float]) -> list[int]:
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


#: The processes of a mesh -> what each has had to do more than the one with the least.
_loads: dict[tuple[int, ...], list[float]] = {}
_regions: dict[Any, list[Region]] = {}
_groups: dict[tuple[int, ...], tuple[Any, Any]] = {}


def _loads_of(ranks: tuple[int, ...]) -> list[float]:
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


def regions_of(tensor: Any, group: Any, count: int) -> list[Region]:
    """Where each process's part of a DTensor lies, in the order of its mesh.

    Asks the others at the first call for such a tensor: how parts lie is torch's affair.
    """
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    mesh, placements, shape = tensor.device_mesh, tuple(tensor.placements), tuple(tensor.shape)
    key = (tuple(mesh.mesh.flatten().tolist()), tuple(mesh.mesh.shape), placements, shape)
    known = _regions.get(key)
    if known is None:
        sizes, offsets = compute_local_shape_and_global_offset(shape, mesh, placements)
        told: list[Any] = [None] * count
        torch.distributed.all_gather_object(told, (tuple(sizes), tuple(offsets)), group=group)
        known = _regions[key] = [Region(*each) for each in told]
    return known
