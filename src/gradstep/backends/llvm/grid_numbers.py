"""The numbers of a step worked out on the device: a thread a tensor, in float64.

What :func:`gradstep.program.scalars.scalar_function` does on the host, operation by operation, so
that nothing waits for the host: where lr and step counts lie on the device, a step can be captured
in a graph and lr be changed between replays. Powers, logarithms and the like are their expansions:
of these alone the last bit may be another than the C library's of the host.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from gradstep.backends.llvm.element import F32, F64, I64, ElementCode, as_type
from gradstep.backends.llvm.grid import THREADS, Grid
from gradstep.program.numbers_spec import NumbersSpec

#: The arguments of ``numbers``: addresses and integers, 64 bits each.
NUMBERS_ARGUMENTS = (
    "table",  # as of a pass: what its states of one number are made from, and written to
    "tensors",  # n
    "row_width",  # the length of a row of states
    "numbers",  # float64: lr and the numeric hyperparameters, as the host has them
    "given",  # for each of those 0, or where it lies on the device
    "firsts",  # float64, one a tensor: whether its states have just been begun
    "more",  # float64, a row a tensor: the facts and sums that the spec names
    "scalars",  # float64, a row a tensor: what is worked out
    "skip",  # 0, or where a float32 lies: nothing is written where that is not 0
)
_POINTERS = ("table", "numbers", "given", "firsts", "more", "scalars")


def write_numbers_kernel(spec: NumbersSpec) -> str:
    """The code of a row: a module with the function ``numbers``."""
    module = ir.Module(name="gradstep")
    _Numbers(module, spec).write()
    return str(module)


class _NumberCode(ElementCode):
    """The operations as numbers have them; ``narrow``: numbers are kept as float32."""

    narrow = False

    def _stored(self, a: Any) -> Any:
        if not self.narrow:
            return a
        return self.builder.fpext(self.builder.fptrunc(a, F32), F64)

    def _lerp(self, start: Any, end: Any, weight: Any) -> Any:
        # Numbers are not contracted: each operation is rounded.
        b, one = self.builder, self.constant(1.0)
        near = b.fcmp_ordered("<", self._abs(weight), self.constant(0.5))
        way = b.fsub(end, start)
        from_start = b.fadd(start, b.fmul(weight, way))
        from_end = b.fsub(end, b.fmul(way, b.fsub(one, weight)))
        return b.select(near, from_start, from_end)


class _Numbers:
    def __init__(self, module: ir.Module, spec: NumbersSpec) -> None:
        self.spec = spec
        self.grid = Grid(module, spec.target, "numbers", NUMBERS_ARGUMENTS, _POINTERS)
        self.b = self.grid.b

    def write(self) -> None:
        b, grid, n = self.b, self.grid, self.grid.given["tensors"]
        grid.stop_where("skip")
        pieces = b.udiv(b.add(n, I64(THREADS - 1)), I64(THREADS))
        with grid.pieces(pieces) as piece, grid.threads() as thread:
            tensor = b.add(b.mul(piece, I64(THREADS)), thread)
            with b.if_then(b.icmp_signed("<", tensor, n)):
                self._row(tensor)
        b.ret_void()

    def _row(self, tensor: Any) -> None:
        b, spec, given = self.b, self.spec, self.grid.given
        places = [self._state(tensor, number) for number in range(len(spec.states))]
        known = {
            name: self._load(place, stored)
            for (name, stored), place in zip(spec.states, places, strict=True)
        }
        one = ir.Constant(F64, 1.0)
        known["step"] = b.fadd(known["step"], one) if spec.counts else one
        known["first"] = self._float(given["firsts"], tensor)
        for number, (name, stored) in enumerate(spec.given):
            known[name] = self._hyperparameter(number, stored)
        width = I64(len(spec.more))
        for number, name in enumerate(spec.more):
            known[name] = self._float(given["more"], b.add(b.mul(tensor, width), I64(number)))
        code = _NumberCode(b, F64)
        code.narrow = any(stored == "float32" for _, stored in spec.states)
        for node in spec.nodes():
            if node.operation == "input":
                code.values[id(node)] = known[str(node.value)]
            elif node.operation == "constant":
                code.values[id(node)] = code.constant(node.constant())
            else:
                code.write(node)
        made = [as_type(b, code.values[id(node)], F64) for node in spec.outputs]
        first = b.mul(tensor, I64(len(made)))
        for number, value in enumerate(made):
            at = b.gep(given["scalars"], [b.add(first, I64(number))], source_etype=F64)
            b.store(value, at, align=8)
        # The count of the step stands there as well where nobody counts.
        own = zip(spec.states, places, made[spec.behind :], strict=False)
        for (_, stored), place, value in own:
            narrow = stored == "float32"
            b.store(b.fptrunc(value, F32) if narrow else value, place, align=4 if narrow else 8)

    def _state(self, tensor: Any, number: int) -> Any:
        """Where a state of one number lies: at the end of the tensor's row of states."""
        b, given = self.b, self.grid.given
        n, width = given["tensors"], given["row_width"]
        end = b.add(b.add(n, n), b.mul(b.add(tensor, I64(1)), width))
        at = b.sub(end, I64(len(self.spec.states) - number))
        return b.inttoptr(self.grid.integer(given["table"], at), self.grid.pointer)

    def _hyperparameter(self, number: int, stored: str) -> Any:
        """From the device where it lies there; else as the host has it."""
        b, given = self.b, self.grid.given
        own = self._float(given["numbers"], I64(number))
        address = self.grid.integer(given["given"], I64(number))
        before = b.block
        with b.if_then(b.icmp_unsigned("!=", address, I64(0))):
            found = self._load(b.inttoptr(address, self.grid.pointer), stored)
            inside = b.block
        chosen = b.phi(F64)
        chosen.add_incoming(own, before)
        chosen.add_incoming(found, inside)
        return chosen

    def _load(self, place: Any, stored: str) -> Any:
        if stored == "float32":
            return self.b.fpext(self.b.load(place, typ=F32, align=4), F64)
        return self.b.load(place, typ=F64, align=8)

    def _float(self, rows: Any, index: Any) -> Any:
        return self.b.load(self.b.gep(rows, [index], source_etype=F64), typ=F64, align=8)
