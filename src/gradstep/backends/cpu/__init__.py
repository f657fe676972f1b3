"""Generated kernels on the CPU."""

from __future__ import annotations

import os
import threading
from collections.abc import Hashable, Sequence

from gradstep.backends.base import Backend, Binding
from gradstep.backends.eligibility import ineligible, ineligible_as_whole, unreadable
from gradstep.backends.owners import mesh_of
from gradstep.backends.update import Update, weights_of
from gradstep.program.format import DType
from gradstep.program.formats import format_of
from gradstep.program.program import Program
from gradstep.program.shards import is_sharded

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
    device_types = frozenset({"cpu"})

    def refusal(self, update: Update, program: Program) -> str | None:
        reason = ineligible(update)
        if reason is None and not program.is_flat:
            reason = ineligible_as_whole(update, program.graph)
        return unreadable(update, program.graph) if reason is None else reason

    def takes_plain(self, program: Program) -> bool:
        alone = program.is_flat and not program.graph.shared
        usual = not program.differentiable and program.rule.sparse != "only"
        # Others may be stored otherwise from weight to weight.
        by_dtype = all(isinstance(format_of(n), DType) for n in program.rule.formats.values())
        return alone and usual and by_dtype and program.rule.low_precision == "nearest"

    def kind(self, update: Update, program: Program) -> Hashable:
        dtypes = tuple([number.dtype for number in update.numbers.values()])
        formats = (update.weight_format, *update.formats.items())
        shared_by = mesh_of(update.weight) if program.graph.calls_opaque else None
        return (update.weight.dtype, dtypes, formats, is_sharded(update.weight), shared_by)

    def bind(self, program: Program, updates: Sequence[Update]) -> Binding:
        with _importing:
            from gradstep.backends.cpu.binding import Tensors
            from gradstep.backends.cpu.kernel import kernel_for
        return Tensors(kernel_for(program, updates[0]), updates, weights_of(updates))
