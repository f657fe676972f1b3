"""Find out whether all processes are about to make the same step.

A rule that looks beyond single elements talks to the other processes about weights that are split
among them. If one of them had another set of gradients, they would wait for each other for ever.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch


def check_desync(mesh: Any, names: Sequence[str]) -> None:
    """Raise in every process unless all of a mesh's are about to update the same weights.

    Args:
        mesh: the device mesh over which the weights are split.
        names: of the weights, their sizes included.

    Raises:
        RuntimeError: they differ; names the weights that this process alone has, or lacks.
    """
    import torch.distributed as dist

    digest = hashlib.sha256("\n".join(names).encode()).digest()[:8]
    own = torch.tensor([int.from_bytes(digest, "big", signed=True)], device=mesh.device_type)
    for dimension in range(mesh.ndim):
        group = mesh.get_group(dimension)
        count = dist.get_world_size(group)
        found = [torch.empty_like(own) for _ in range(count)]
        dist.all_gather(found, own, group=group)
        if all(torch.equal(own, other) for other in found):
            continue
        lists: list[Any] = [None] * count
        dist.all_gather_object(lists, list(names), group=group)
        everywhere = set(lists[0]).intersection(*lists)
        somewhere = set(lists[0]).union(*lists)
        missing = sorted(somewhere - set(names)) or ["none"]
        alone = sorted(set(names) - everywhere) or ["none"]
        raise RuntimeError(
            f"the processes do not have gradients for the same weights: process {dist.get_rank()} "
            f"lacks {', '.join(missing)}, and has {', '.join(alone)}, which others lack. A rule "
            "that looks at whole tensors needs them all at once: build the same model in each "
            "process, and give each weight a gradient in all of them or in none."
        )


def mean_over(mesh: Any, value: float) -> float:
    """The mean of a number over all processes of a mesh, the same bits in each."""
    import torch.distributed as dist

    found = torch.tensor([value], dtype=torch.float64, device=mesh.device_type)
    for dimension in range(mesh.ndim):
        group = mesh.get_group(dimension)
        dist.all_reduce(found, group=group)
        found /= dist.get_world_size(group)
    return float(found)
