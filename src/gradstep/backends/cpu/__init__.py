"""Generated kernels on the CPU."""

from __future__ import annotations

import os
import threading
from collections.abc import Hashable, Sequence

from gradstep.backends.base import Backend, Binding
from gradstep.backends.eligibility import ineligible, ineligible_as_whole, is_sharded
from gradstep.backends.update import Update
from gradstep.program.formats import format_of
from gradstep.program.program import Program

# A fork waits while another thread imports the compiler: else the child would find that module's
# lock taken by a thread that it does not have, and wait for ever.
_importing = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_importing.acquire,
        after_in_parent=_importing.release,
        after_in_child=_importing.release,
    )


def _unknown_format(program: Program) -> str | None:
    """Why kernels cannot read its states; None if they can."""
    for state, name in program.rule.formats.items():
        if not format_of(name).in_kernels():
            return f"its {state} is stored as {name}, of which kernels know nothing"
    return None


class Cpu(Backend):
    """One generated kernel a group, for dense tensors on the CPU."""

    name = "fused"
    may_stop = False

    def refusal(self, update: Update, program: Program) -> str | None:
        reason = ineligible(update)
        if reason is None and not program.is_flat:
            reason = ineligible_as_whole(update, program.graph)
        return _unknown_format(program) if reason is None else reason

    def takes_plain(self, program: Program) -> bool:
        alone = program.is_flat and not program.graph.shared
        usual = not program.differentiable and program.rule.sparse != "only"
        return alone and usual and _unknown_format(program) is None

    def kind(self, update: Update, program: Program) -> Hashable:
        dtypes = tuple([number.dtype for number in update.numbers.values()])
        return (update.weight.dtype, dtypes, is_sharded(update.weight))

    def bind(self, program: Program, updates: Sequence[Update]) -> Binding:
        with _importing:
            from gradstep.backends.cpu.binding import Tensors
            from gradstep.backends.cpu.kernel import kernel_for
        weights = [u.weight for u in updates]
        return Tensors(kernel_for(program, weights[0].dtype), updates, weights)
