"""Steps that are cut short: a function that a rule calls has raised, and others were made before.

Everything else is checked before the first write. A function of :func:`gradstep.opaque` runs in the
middle of a step, and what earlier ones led to is written by then: to keep all weights and states
until the last of them has returned would take as much memory as they have themselves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from torch import Tensor

from gradstep.planning import Planning


@contextlib.contextmanager
def accounted(optimizers: Sequence[Planning]) -> Iterator[None]:
    """Let an error within the block say which parameters have been updated already.

    Each parameter, its states included, is either updated or as it was. Where none is updated, the
    error passes as it is.

    Raises:
        RuntimeError: some parameters have been updated; names them. The error is its cause.
    """
    held = [
        (optimizer, p, _version(p), p in optimizer.state)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for p in group["params"]
        if p.grad is not None
    ]
    try:
        yield
    except Exception as error:
        done: list[str] = []
        for optimizer, p, version, had_states in held:
            if version is None:
                done.append(f"{optimizer.name_of(p)} (or not: it was made in inference mode)")
            elif version != _version(p):
                done.append(optimizer.name_of(p))
            elif not had_states:  # begun in this step
                optimizer.state.pop(p, None)
                optimizer._entries = []
        if not done:
            raise
        raise RuntimeError(
            f"the step was cut short by {type(error).__name__}: {error}. {len(done)} of "
            f"{len(held)} parameters had been updated by then: {', '.join(done)}. The others, and "
            "their states, are as they were. Load the last checkpoint, or go on from here: each "
            "parameter's states belong to it."
        ) from error


def _version(p: Tensor) -> int | None:
    """How often torch has seen it written; None where torch does not count."""
    return None if p.is_inference() else p._version
