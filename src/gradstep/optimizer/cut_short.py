"""Steps that are cut short: something has raised in the middle, and others were made before.

Everything else is checked before the first write. But a function of :func:`gradstep.opaque` runs in
the middle of a step, and so do torch's operations where no kernel of ours makes the step, which may
find no memory. What earlier ones led to is written by then: to keep all weights and states until
the last of them has returned would take as much memory as they have themselves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from gradstep.optimizer.planning import Planning


@contextlib.contextmanager
def accounted(optimizers: Sequence[Planning]) -> Iterator[None]:
    """Let an error within the block say which parameters have been updated already.

    Each parameter, its states included, is either updated or as it was, unless a tensor subclass
    refuses to be written: then the error says so. Where none is updated, the error passes as it is.

    Raises:
        RuntimeError: some parameters have been updated; names them. The error is its cause.
    """
    held = [
        (optimizer, p, _version(p), _versions(optimizer.state.get(p)))
        for optimizer in optimizers
        for group in optimizer.param_groups
        for p in group["params"]
        if p.grad is not None
    ]
    try:
        yield
    except Exception as error:
        done: list[str] = []
        half: list[str] = []
        for optimizer, p, version, states in held:
            if version is None:
                done.append(f"{optimizer.name_of(p)} (or not: it was made in inference mode)")
            elif version != _version(p):
                done.append(optimizer.name_of(p))
            elif states is None:  # begun in this step
                optimizer.state.pop(p, None)
                optimizer._entries = []
            elif states != _versions(optimizer.state.get(p)):
                half.append(optimizer.name_of(p))
        if not (done or half):
            raise
        others = "The others, and their states, are as they were."
        if half:
            others = f"The states of {', '.join(half)} had been, and the weight not. {others}"
        raise RuntimeError(
            f"the step was cut short by {type(error).__name__}: {error}. {len(done)} of "
            f"{len(held)} parameters had been updated by then: {', '.join(done) or 'none'}. "
            f"{others} Load the last checkpoint, or go on from here: each parameter's states "
            "belong to it."
        ) from error


def _version(p: Tensor) -> int | None:
    """How often torch has seen it written; None where torch does not count."""
    return None if p.is_inference() else p._version


def _versions(entry: Any) -> list[tuple[int, int | None]] | None:
    """The states of a parameter, and how often each was written; None where it has none yet."""
    if not isinstance(entry, Mapping):
        return None
    return [(id(s), _version(s)) for s in entry.values() if isinstance(s, Tensor)]
