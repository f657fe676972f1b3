"""Generated kernels on the CPU."""

from __future__ import annotations

import os
import threading
from collections.abc import Hashable, Sequence

from gradstep.backends.base import Backend, Binding
from gradstep.engine.fit import is_sharded, unfit, unfit_whole
from gradstep.engine.program import Program
from gradstep.engine.update import Update

# A fork waits while another thread imports the compiler: else the child would find that module's
# lock taken by a thread that it does not have, and wait for ever.
_importing = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_importing.acquire,
        after_in_parent=_importing.release,
        after_in_child=_importing.release,
    )


class Cpu(Backend):
    """One generated kernel a group, for dense tensors on the CPU."""

    name = "fused"
    may_stop = False

    def refusal(self, update: Update, program: Program) -> str | None:
        reason = unfit(update)
        if reason is None and not program.is_flat:
            reason = unfit_whole(update, program.graph)
        return reason

    def kind(self, update: Update, program: Program) -> Hashable:
        dtypes = tuple([number.dtype for number in update.numbers.values()])
        return (update.weight.dtype, dtypes, is_sharded(update.weight))

    def bind(self, program: Program, updates: Sequence[Update]) -> Binding:
        with _importing:
            from gradstep.engine.binding import Tensors
            from gradstep.engine.kernel import kernel_for
        weights = [u.weight for u in updates]
        return Tensors(kernel_for(program, weights[0].dtype), updates, weights)
