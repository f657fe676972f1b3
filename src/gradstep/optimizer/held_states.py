"""States that one process holds for all, in a checkpoint: split evenly, as other DTensors are.

So torch.distributed.checkpoint and ``full_state_dict`` need nothing of their own, and any number
of processes loads them: each takes the whole for a moment, and who holds the state then keeps it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradstep.backends.sharing import spread
from gradstep.program.shards import is_held, is_sharded


def as_saved(saved: dict[str, Any], state: Mapping[Any, Any]) -> dict[str, Any]:
    """A checkpoint with such states split evenly; as it is, where there are none.

    Where there are some, all processes have to come here.

    Args:
        saved: what torch's ``state_dict()`` has made.
        state: the optimizer's.
    """
    split: dict[int, Any] = {}
    for p, entry in state.items():
        if is_sharded(p) and isinstance(entry, Mapping):
            for tensor in entry.values():
                if is_held(tensor) and tensor.device_mesh != p.device_mesh:
                    split[id(tensor)] = spread(p, tensor)
    if not split:
        return saved
    entries = {
        key: {n: split.get(id(v), v) for n, v in entry.items()}
        if isinstance(entry, Mapping)
        else entry
        for key, entry in saved["state"].items()
    }
    return {**saved, "state": entries}
