"""DTensors: tensors of which each process holds a part."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_sharded(tensor: Any) -> bool:
    """Whether it is a DTensor, of which each process holds a part."""
    # Asked by name: importing torch.distributed.tensor takes longer than a thousand steps.
    kind = type(tensor)
    if kind is torch.nn.Parameter or kind is Tensor:
        return False
    return kind.__name__ == "DTensor" and kind.__module__.startswith("torch.distributed.")


def local(tensor: Any) -> Any:
    """A DTensor's part in this process; any other tensor itself."""
    return tensor._local_tensor if is_sharded(tensor) else tensor


def like_shards_of(whole: Any, part: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A DTensor of another shape that is split as ``whole`` is, from this process's part of it.

    Args:
        whole: a DTensor, or anything else: then ``part`` is all there is, and is returned.
        part: of the new one.
        shape: of the new one as a whole.
    """
    if not is_sharded(whole):
        return part
    from torch.distributed.tensor import DTensor

    like = torch.empty(shape, device="meta")
    return DTensor.from_local(
        part,
        whole.device_mesh,
        whole.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )
