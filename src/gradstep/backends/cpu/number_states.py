"""Read and write the states that are one number a parameter: tensors of one element each.

In Python a number costs 190 ns to read, and torch takes 18 µs to raise ten step counts: as long as
the kernel of a small net. One call reads them all, one call writes them all.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from llvmlite import ir

from gradstep.backends.cpu.compiler import functions
from gradstep.program.loops import counted

I64, F32, F64 = ir.IntType(64), ir.FloatType(), ir.DoubleType()
POINTER = ir.PointerType()

#: read_numbers(rows, n, width, k, out): k numbers of each row, as float64.
#: write_numbers(rows, n, width, k, values, distance): from rows of values, so far apart.
_ARGUMENTS = {
    "read_numbers": [POINTER, I64, I64, I64, POINTER],
    "write_numbers": [POINTER, I64, I64, I64, POINTER, I64],
}


def _code(kinds: Sequence[str]) -> str:
    """Both functions, for numbers that are stored as float32 or float64.

    A row is ``width`` addresses; those of the numbers stand at its end.
    """
    module = ir.Module(name="gradstep_numbers")
    columns = [F32 if kind == "float32" else F64 for kind in kinds]

    def read(builder: ir.IRBuilder, address: Any, row: Any, column: int, stored: Any) -> None:
        value = builder.load(address, typ=stored)
        value = value if stored is F64 else builder.fpext(value, F64)
        out = builder.function.args[4]
        at = builder.add(builder.mul(row, builder.function.args[3]), ir.Constant(I64, column))
        builder.store(value, builder.gep(out, [at], source_etype=F64))

    def write(builder: ir.IRBuilder, address: Any, row: Any, column: int, stored: Any) -> None:
        values, distance = builder.function.args[4:]
        at = builder.add(builder.mul(row, distance), ir.Constant(I64, column))
        value = builder.load(builder.gep(values, [at], source_etype=F64), typ=F64)
        builder.store(value if stored is F64 else builder.fptrunc(value, F32), address)

    _write_loop(module, "read_numbers", columns, read)
    _write_loop(module, "write_numbers", columns, write)
    return str(module)


def _write_loop(
    module: ir.Module, name: str, columns: Sequence[Any], body: Callable[..., None]
) -> None:
    kind = ir.FunctionType(ir.VoidType(), _ARGUMENTS[name])
    function = ir.Function(module, kind, name)
    rows, count, width, numbers = function.args[:4]
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    with counted(builder, count) as row:
        first = builder.sub(builder.mul(builder.add(row, ir.Constant(I64, 1)), width), numbers)
        for column, stored in enumerate(columns):
            index = builder.add(first, ir.Constant(I64, column))
            place = builder.gep(rows, [index], source_etype=I64)
            address = builder.inttoptr(builder.load(place, typ=I64), POINTER)
            body(builder, address, row, column, stored)
    builder.ret_void()


# Thousands of groups have their numbers stored alike, and a look-up by text takes a millisecond.
@lru_cache(64)
def _functions(stored: tuple[str, ...]) -> tuple[Any, Any]:
    signatures = {name: (len(a), False) for name, a in _ARGUMENTS.items()}
    known = functions(" ".join(["numbers", *stored]), lambda: _code(stored), signatures)
    return known["read_numbers"], known["write_numbers"]


_ZERO = array("d", [0.0])


class NumberStates:
    """Reads and writes the last entries of ``rows`` rows of ``width`` addresses.

    ``stored`` is how each of them is stored: ``"float32"`` or ``"float64"``. Addresses are given as
    integers.
    """

    def __init__(self, rows: int, width: int, stored: Sequence[str]) -> None:
        numbers = len(stored)
        self._read, self._write = _functions(tuple(stored))
        self._shape = (rows, width, numbers)
        self._count = rows * numbers

    def read(self, rows_at: int) -> array[float]:
        """All numbers, row after row."""
        out = _ZERO * self._count
        self._read(rows_at, *self._shape, out.buffer_info()[0])
        return out

    def write(self, rows_at: int, values_at: int, distance: int) -> None:
        """Store new numbers from rows that are ``distance`` float64 numbers apart."""
        self._write(rows_at, *self._shape, values_at, distance)
