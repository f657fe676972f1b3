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


def held_by(whole: Any, place: int, tensor: Tensor, shape: tuple[int, ...]) -> Any:
    """A DTensor that one process of a mesh has whole, and the others have nothing of.

    Args:
        whole: a DTensor of that mesh.
        place: of the process in it.
        tensor: plain; only that process's is looked at. Of no element: zeros of its dtype.
        shape: of the tensor, which all know.
    """
    from torch.distributed.tensor import DeviceMesh, DTensor, Replicate

    mesh = whole.device_mesh
    rank = int(mesh.mesh.flatten()[place])
    # Nothing is ever sent within a mesh of one: it needs no process group.
    alone = DeviceMesh(mesh.device_type, [rank], _init_backend=False)
    here = rank == torch.distributed.get_rank()
    if not here or not tensor.numel():
        tensor = torch.zeros(shape if here else (0,), dtype=tensor.dtype, device=whole.device)
    like = torch.empty(shape, device="meta")
    return DTensor.from_local(
        tensor, alone, [Replicate()], run_check=False, shape=like.shape, stride=like.stride()
    )


def full(tensor: Any) -> Any:
    """The whole of a tensor, gathered in each process if it is split."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def is_held(tensor: Any) -> bool:
    """Whether it is a DTensor that one process alone has, and whole."""
    return is_sharded(tensor) and tensor.device_mesh.ndim == 1 and tensor.device_mesh.size() == 1
