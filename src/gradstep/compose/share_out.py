"""Matrix work of weights that every process has whole, as under DDP: a part for each process."""

from __future__ import annotations

from typing import Any

import torch

from gradstep.backends.owners import replicate
from gradstep.compose.wrapper import rules_inside
from gradstep.optimizer.optimizer import begin_anew


def share_out(optimizer: torch.optim.Optimizer, mesh: Any = None) -> None:
    """Let each process work out its part of the matrices of weights that all have whole.

    ::

        model = DistributedDataParallel(model)
        optimizer = gradstep.create("muon+adamw", model)
        gradstep.share_out(optimizer)                # in every process

    Under DDP all processes have the same gradients, and would all do the same. From now on one of
    them, its owner, calls ``newton_schulz`` (or any other function of one matrix) for a matrix,
    and sends the outcome to the others, in buckets. Momentum, decay and the step itself are worked
    out in each, as before: sending them would take longer. So are matrices with a side below 64,
    and what has to do with states of a shape of their own (``shampoo``, ``soap``, ``kron``): every
    process keeps all states, and any one of them can save a checkpoint alone.

    Weights have the bits of each process doing all (with ``engine="eager"``: but for roundings),
    and the same in all processes. Weights that are split among processes (DTensors) are shared out
    by themselves, and left as they are here. Where steps are made weight by weight (``Offload``
    with ``states_in``, ``StepInBackward``) there is nothing to share at a time.

    Args:
        optimizer: any of gradstep's, partitions and wrappers of them included.
        mesh: the ``DeviceMesh`` of the processes that have these weights, of any number of
            dimensions. Default: of all processes, on the weights' device.

    Raises:
        RuntimeError: torch.distributed has not been initialized.
        TypeError: an optimizer of torch's, which has no rule.
        ValueError: this process is not in the mesh.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        raise RuntimeError(
            "share_out() needs the other processes: call torch.distributed.init_process_group() "
            "first, in each of them"
        )
    parts = rules_inside(optimizer)
    weights = [p for part in parts for group in part.param_groups for p in group["params"]]
    if mesh is None:
        from torch.distributed.device_mesh import init_device_mesh

        kind = next((p.device.type for p in weights), "cpu")
        mesh = init_device_mesh(kind, (torch.distributed.get_world_size(),))
    if mesh.get_coordinate() is None:
        raise ValueError(
            f"process {torch.distributed.get_rank()} is not in the mesh {mesh.mesh.tolist()}: give "
            "each process the mesh of those that have its weights"
        )
    replicate(weights, mesh)
    for part in parts:
        begin_anew(part)
