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

from gradstep.backends.owners import Region, divide, group_of, layout_of, loads_of
from gradstep.program.shards import local
from gradstep.rule.opaque import Opaque

#: About so many bytes of all processes' parts go together.
BUCKET_BYTES = 32 << 20
#: Where each process holds the whole: of matrices whose shorter side is below this, or with less
#: work than this an element, sending the outcome takes longer than working it out in each process.
WORTH_SENDING = 64


@dataclass(frozen=True, eq=False)
class Call:
    """A call of a function for one weight, which its rule waits for.

    Attributes:
        function: takes a tensor of the weight's shape, states of a shape of their own, numbers.
        part: of the tensor of the weight's shape in this process, a plain tensor; None for none.
        like: a DTensor that is split as it is, or what a plain tensor would be as one.
        numbers: the function's.
        name: gives the weight's name, for messages.
        own: the states of a shape of their own: whole with their owner, empty elsewhere.
        owner: the owner's place in the mesh, where those states have one; else None.
    """

    function: Opaque
    part: Tensor | None
    like: Any
    numbers: tuple[float, ...]
    name: Callable[[], str]
    own: tuple[Tensor, ...] = ()
    owner: int | None = None

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
        if self.owner is not None:
            return False
        leading = self.function.leading(self.shape)
        split = [p.dim for p in self.like.placements if not p.is_replicate()]
        if not split:
            shortest = min(self.shape[leading:], default=0)
            per_element = self.work / max(1, math.prod(self.shape))
            return min(shortest, per_element) < WORTH_SENDING
        return bool(max(split) < leading)

    @property
    def kind(self) -> Any:
        """Calls of equal kinds and shapes are made together."""
        return id(self.function), self.numbers, tuple(t.shape for t in self.own)

    @property
    def returns_part(self) -> bool:
        """Whether the function makes a tensor of the weight's shape anew."""
        return self.part is not None and self.function.returns[0] == 0


#: What functions raised, by the places of the calls that were made together.
Failures = dict[tuple[int, ...], Exception]
#: So many of them a message names.
NAMED = 3

#: What a call makes: a tensor for each argument that the function returns anew, by its place.
Made = dict[int, Tensor]


def made_together(calls: Sequence[Call], wholes: Sequence[Tensor | None]) -> list[Made]:
    """Call a function on a batch of several calls' tensors, of equal shapes, with equal numbers.

    Args:
        calls: of one function.
        wholes: their tensors of the weight's shape, if they have such.
    """
    function, first = calls[0].function, wholes[0]
    tensors: list[list[Tensor]] = [list(t) for t in zip(*(call.own for call in calls), strict=True)]
    if first is not None:
        tensors.insert(0, [w for w in wholes if w is not None])
        if not first.numel():
            return [{place: t[i] for place, t in enumerate(tensors)} for i in range(len(calls))]
    batches = [torch.stack(each) for each in tensors]
    if first is not None and function.dtype is not None:
        batches[0] = batches[0].to(function.dtype)
    results = function.on_batch(*batches, *calls[0].numbers)
    placed = zip(function.returns, results, strict=True)
    rows = [list(made.to(tensors[place][0].dtype)) for place, made in placed]
    return [dict(zip(function.returns, each, strict=True)) for each in zip(*rows, strict=True)]


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


def answer(calls: Sequence[Call]) -> list[Made]:
    """What the functions make, in the order of the calls: of the weights' shapes, the parts here.

    Raises:
        RuntimeError: the function failed in another process, which is named.
        Exception: what the function raised in this one.
    """
    found: dict[int, Made] = {}
    there = [i for i, call in enumerate(calls) if call.stays]
    failures: Failures = {}
    for alike in _alike(there, lambda i: (_shape_of(calls[i].part), calls[i].kind)):
        parts = [calls[i].part for i in alike]
        made = _attempt([calls[i] for i in alike], parts, failures, alike)
        found.update(zip(alike, made, strict=True))
    together: dict[Any, list[int]] = {}
    for i, call in enumerate(calls):
        if i not in found:
            dtype = None if call.part is None else call.part.dtype
            together.setdefault((call.like.device_mesh, dtype), []).append(i)
    for (mesh, _), own in together.items():
        exchange = _Exchange(mesh, [calls[i] for i in own])
        found.update(zip(own, exchange.run(), strict=True))
        for places, error in exchange.failures.items():
            failures[tuple([own[place] for place in places])] = error
    _compare_failures(calls, failures)
    return [found[i] for i in range(len(calls))]


def _compare_failures(calls: Sequence[Call], failures: Failures) -> None:
    """Raise in every process of the calls' meshes where one has failed.

    Who has heard of a failure in one mesh tells those of the next.
    """
    words = []
    for places, error in failures.items():
        names = ", ".join([calls[i].name() for i in places[:NAMED]])
        more = f" and {len(places) - NAMED} more" if len(places) > NAMED else ""
        words.append(f"{calls[places[0]].function.name} of {names}{more}: {error}")
    here = torch.distributed.get_rank()
    first = (here, words[0]) if words else None
    for mesh, device in {call.like.device_mesh: call.like.device for call in calls}.items():
        group = group_of(mesh)
        flag = torch.tensor([float(first is not None)], device=device)
        torch.distributed.all_reduce(flag, group=group)
        if flag.item():
            said: list[Any] = [None] * mesh.size()
            torch.distributed.all_gather_object(said, first, group=group)
            first = next(each for each in said if each is not None)
    if failures:
        raise next(iter(failures.values()))
    if first is not None:
        raise RuntimeError(f"process {first[0]} could not make its part of the step: {first[1]}")


def _shape_of(part: Tensor | None) -> Any:
    return None if part is None else part.shape


def _alike(places: Sequence[int], kind: Callable[[int], Any]) -> list[list[int]]:
    """Those that a function takes together, in lists."""
    kinds: dict[Any, list[int]] = {}
    for i in places:
        kinds.setdefault(kind(i), []).append(i)
    return list(kinds.values())


def _attempt(
    calls: Sequence[Call],
    wholes: Sequence[Tensor | None],
    failures: Failures,
    places: Sequence[int],
) -> list[Made]:
    """Call a function; an exception waits until the others have what they wait for."""
    traffic.calls += len(calls)
    for call, whole in zip(calls, wholes, strict=True):
        traffic.work += call.function.work(call.shape if whole is None else whole.shape)
    try:
        return made_together(calls, wholes)
    except Exception as error:
        failures[tuple(places)] = error
        made = []
        for call, whole in zip(calls, wholes, strict=True):
            given = call.own if whole is None else (whole, *call.own)
            made.append({place: given[place] for place in call.function.returns})
        return made


class _Exchange:
    """The calls of one mesh: to their owners and back."""

    def __init__(self, mesh: Any, calls: Sequence[Call]) -> None:
        self.calls = calls
        self.ranks: list[int] = mesh.mesh.flatten().tolist()
        self.group = group_of(mesh)
        self.me = self.ranks.index(torch.distributed.get_rank())
        self.layouts = [layout_of(call.like, self.group, len(self.ranks)) for call in calls]
        self.work = [call.work for call in calls]
        free = [i for i, call in enumerate(calls) if call.owner is None]
        chosen = divide([self.work[i] for i in free], loads_of(tuple(self.ranks)))
        of_free = dict(zip(free, chosen, strict=True))
        self.owners = [of_free[i] if c.owner is None else c.owner for i, c in enumerate(calls)]
        self.whole: dict[int, Tensor] = {}
        self.made: dict[int, Made] = {
            i: dict(enumerate(call.own, start=int(call.part is not None)))
            for i, call in enumerate(calls)
        }
        self.failures: Failures = {}

    def run(self) -> list[Made]:
        """What all calls make, the parts of it here."""
        buckets = self._buckets()
        coming = self._gather(buckets[0])
        returning: list[Callable[[], None]] = []
        for number, bucket in enumerate(buckets):
            arrived = coming
            if number + 1 < len(buckets):
                coming = self._gather(buckets[number + 1])
            arrived()
            own = [i for i in bucket if self.owners[i] == self.me]
            for places in _alike(own, lambda i: (self.calls[i].shape, self.calls[i].kind)):
                wholes = [self.whole.pop(i, None) for i in places]
                made = _attempt([self.calls[i] for i in places], wholes, self.failures, places)
                for i, each in zip(places, made, strict=True):
                    self.made[i].update(each)
            returning.append(self._return(bucket))
        for arrived in returning:
            arrived()
        return [self.made[i] for i in range(len(self.calls))]

    def _buckets(self) -> list[list[int]]:
        """The calls, some of each owner in each bucket, the largest first."""
        by_owner: list[list[int]] = [[] for _ in self.ranks]
        for i in sorted(range(len(self.calls)), key=lambda i: (-self.work[i], i)):
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
                    size += 0 if part is None else self.calls[i].like.numel() * part.element_size()
        return buckets

    def _sender(self, i: int, region: Region) -> int:
        """Who of those that hold a region sends it to the owner: itself, where it can."""
        layout, owner = self.layouts[i], self.owners[i]
        if layout.regions[owner] == region:
            return owner
        holders = layout.holders[region]
        return holders[i % len(holders)]

    def _gather(self, bucket: Sequence[int]) -> Callable[[], None]:
        """Send parts to their owners; returns what waits for them and puts them together."""
        outgoing: list[list[Tensor]] = [[] for _ in self.ranks]
        incoming: list[list[tuple[int, Region]]] = [[] for _ in self.ranks]
        for i in bucket:
            owner, part, layout = self.owners[i], self.calls[i].part, self.layouts[i]
            if part is None:
                continue
            if owner != self.me:
                mine = layout.regions[self.me]
                if mine.numel and self._sender(i, mine) == self.me:
                    outgoing[owner].append(part)
                continue
            for region in layout.holders:
                sender = self._sender(i, region)
                if region.numel and sender != owner:
                    incoming[sender].append((i, region))
        arrived = self._send(outgoing, incoming, bucket)

        def put_together() -> None:
            for i in bucket:
                part = self.calls[i].part
                if self.owners[i] == self.me and part is not None:
                    self.whole[i] = part.new_empty(self.calls[i].shape)
                    self.layouts[i].regions[self.me].of(self.whole[i]).copy_(part)
            for i, region, values in arrived():
                region.of(self.whole[i]).copy_(values.view(region.sizes))

        return put_together

    def _return(self, bucket: Sequence[int]) -> Callable[[], None]:
        """Send the parts of outcomes to all that hold them."""
        outgoing: list[list[Tensor]] = [[] for _ in self.ranks]
        incoming: list[list[tuple[int, Region]]] = [[] for _ in self.ranks]
        for i in bucket:
            regions, owner, call = self.layouts[i].regions, self.owners[i], self.calls[i]
            if not call.returns_part or call.part is None:
                continue
            if owner == self.me:
                whole = self.made[i][0]
                for rank, region in enumerate(regions):
                    if rank != self.me and region.numel:
                        outgoing[rank].append(region.of(whole))
                self.made[i][0] = regions[self.me].of(whole).contiguous()
            elif regions[self.me].numel:
                incoming[owner].append((i, regions[self.me]))
            else:
                self.made[i][0] = call.part
        arrived = self._send(outgoing, incoming, bucket)

        def keep() -> None:
            for i, region, values in arrived():
                self.made[i][0] = values.view(region.sizes).clone()

        return keep

    def _send(
        self,
        outgoing: Sequence[Sequence[Tensor]],
        incoming: Sequence[Sequence[tuple[int, Region]]],
        bucket: Sequence[int],
    ) -> Callable[[], list[tuple[int, Region, Tensor]]]:
        """All to all; returns what waits and says what has come."""
        like = self.calls[bucket[0]].part
        if like is None:  # of calls without such tensors nothing travels
            return list
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


def spread(weight: Any, held: Any) -> Any:
    """What one process has whole as a DTensor that is split evenly, as checkpoints have it.

    All processes of the weight's mesh take part.

    Args:
        weight: the DTensor whose state it is.
        held: see :func:`gradstep.program.shards.held_by`.
    """
    from torch.distributed.tensor import DTensor, Shard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    mesh, shape = weight.device_mesh, held.shape
    ranks, group = mesh.mesh.flatten().tolist(), group_of(mesh)
    placements = [p if p.is_replicate() else Shard(0) for p in weight.placements]
    sizes, _ = compute_local_shape_and_global_offset(shape, mesh, placements)
    whole = local(held)
    part = whole.new_empty(tuple(sizes))
    made = DTensor.from_local(
        part, mesh, placements, run_check=False, shape=shape, stride=held.stride()
    )
    regions = layout_of(made, group, len(ranks)).regions
    me = ranks.index(torch.distributed.get_rank())
    owner = ranks.index(int(held.device_mesh.mesh[0]))
    outgoing, incoming = [0] * len(ranks), [0] * len(ranks)
    incoming[owner] = part.numel()
    sent = whole.new_empty(0)
    if me == owner:
        outgoing = [region.numel for region in regions]
        sent = torch.cat([region.of(whole).reshape(-1) for region in regions if region.numel])
    arrived = whole.new_empty(part.numel())
    torch.distributed.all_to_all_single(arrived, sent, incoming, outgoing, group=group)
    part.copy_(arrived.view(part.shape))
    return made
