"""What joins the parts of sums that tiles have left, on the device: no sum waits for the host.

``fold`` adds up the parts of sums for each row or column, tile after tile. ``totals`` has the sum
of a whole tensor: the exact sum of its tiles' sums, rounded once, as ``math.fsum`` gives it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from llvmlite import ir

from gradstep.backends.llvm.element import F64, I64
from gradstep.backends.llvm.grid import THREADS, Grid
from gradstep.program.loops import counted, strided
from gradstep.program.targets import Target

#: The arguments of ``fold``: addresses and integers, 64 bits each.
FOLD_ARGUMENTS = (
    "arena",  # where the parts lie
    "joins",  # FOLD_FIELDS numbers each
    "join_count",
    "skip",  # 0, or where a float32 lies: nothing is written where that is not 0
)
#: What is folded: parts of so many float64 numbers each, one behind the other; into the first.
FOLD_FIELDS = ("largest", "start", "count", "length")

#: The arguments of ``totals``.
TOTALS_ARGUMENTS = (
    "arena",
    "sums",  # TOTALS_FIELDS numbers each
    "sum_count",
    "more",  # float64: where the totals go
    "skip",
)
#: So many parts from a place of the arena on, in bytes; their sum or the largest goes to a number
#: of ``more``, and again to others so far apart.
TOTALS_FIELDS = ("largest", "start", "count", "out", "repeats", "stride")

#: A sum of any float64 numbers as digits of 32 bits, the lowest two of them 0; with what 2^30
#: numbers carry over.
_DIGITS = 72
_MASK = 0xFFFFFFFF


def write_joins(target: Target) -> str:
    """A module with the functions ``fold`` and ``totals``."""
    module = ir.Module(name="gradstep")
    _write_fold(Grid(module, target, "fold", FOLD_ARGUMENTS, ("arena", "joins")))
    _Totals(Grid(module, target, "totals", TOTALS_ARGUMENTS, ("arena", "sums", "more"))).write()
    return str(module)


def _fields(grid: Grid, table: str, piece: Any, names: tuple[str, ...]) -> dict[str, Any]:
    at = grid.b.mul(piece, I64(len(names)))
    return {
        name: grid.integer(grid.given[table], grid.b.add(at, I64(i)))
        for i, name in enumerate(names)
    }


def _parts(grid: Grid, start: Any) -> Any:
    return grid.b.gep(grid.given["arena"], [start], source_etype=ir.IntType(8))


def _place(b: ir.IRBuilder, numbers: Any, index: Any) -> Any:
    return b.gep(numbers, [index], source_etype=F64)


def _joined(b: ir.IRBuilder, largest: Any, total: Any, value: Any) -> Any:
    """The sum, or the larger where that is asked for; nan where either is."""
    more = b.or_(b.fcmp_ordered(">", value, total), b.fcmp_unordered("uno", value, value))
    return b.select(largest, b.select(more, value, total), b.fadd(total, value))


def _repeated(
    b: ir.IRBuilder, count: Any, begin: Any, following: Callable[[Any, Any], Any], first: int = 0
) -> Any:
    """What a loop makes of a value, given the number of each turn and what is there before it."""
    before = b.block
    with strided(b, I64(first), count, I64(1)) as number:
        value = b.phi(begin.type)
        value.add_incoming(begin, before)
        made = following(number, value)
        value.add_incoming(made, b.block)
        inside = b.block
    end = b.phi(begin.type)
    end.add_incoming(begin, before)
    end.add_incoming(made, inside)
    return end


def _write_fold(grid: Grid) -> None:
    b = grid.b
    grid.stop_where("skip")
    with grid.pieces(grid.given["join_count"]) as piece:
        f = _fields(grid, "joins", piece, FOLD_FIELDS)
        largest = b.icmp_signed("!=", f["largest"], I64(0))
        parts = _parts(grid, f["start"])
        with (
            grid.threads() as thread,
            strided(b, thread, f["length"], I64(THREADS)) as index,
        ):
            first = _place(b, parts, index)
            begin = b.load(first, typ=F64, align=8)

            def add(number: Any, total: Any) -> Any:
                at = b.add(b.mul(number, f["length"]), index)
                value = b.load(_place(b, parts, at), typ=F64, align=8)
                return _joined(b, largest, total, value)

            end = _repeated(b, f["count"], begin, add, 1)
            b.store(end, first, align=8)
    b.ret_void()


class _Totals:
    """A block a total, of which one thread adds up: the tiles of a tensor are not many."""

    def __init__(self, grid: Grid) -> None:
        self.grid, self.b = grid, grid.b
        self.digits = grid.shared("digits", I64, _DIGITS)
        self.plain = grid.shared("plain", F64, 1)
        self.finite = grid.shared("finite", I64, 1)

    def write(self) -> None:
        b, grid = self.b, self.grid
        grid.stop_where("skip")
        count = grid.given["sum_count"]
        with (
            grid.pieces(count) as piece,
            grid.threads() as thread,
            b.if_then(b.icmp_signed("==", thread, I64(0))),
        ):
            self._total(_fields(grid, "sums", piece, TOTALS_FIELDS))
        b.ret_void()

    def _total(self, f: dict[str, Any]) -> None:
        b = self.b
        largest = b.icmp_signed("!=", f["largest"], I64(0))
        with counted(b, I64(_DIGITS)) as k:
            b.store(I64(0), self._digit(k))
        lowest = ir.Constant(F64, -math.inf)
        b.store(b.select(largest, lowest, ir.Constant(F64, 0.0)), self.plain)
        b.store(I64(1), self.finite)
        parts = _parts(self.grid, f["start"])
        with counted(b, f["count"]) as number:
            value = b.load(_place(b, parts, number), typ=F64, align=8)
            total = b.load(self.plain, typ=F64)
            b.store(_joined(b, largest, total, value), self.plain)
            self._add(value)
        plain = b.load(self.plain, typ=F64)
        # Of what is infinite or nan the plain sum is right; of no elements none is the largest.
        none = b.and_(largest, b.icmp_signed("==", f["count"], I64(0)))
        plain = b.select(none, ir.Constant(F64, math.nan), plain)
        exact = b.icmp_signed("!=", b.load(self.finite, typ=I64), I64(0))
        exact = b.and_(exact, b.icmp_signed("==", f["largest"], I64(0)))
        found = b.select(exact, self._rounded(), plain)
        with counted(b, f["repeats"]) as number:
            at = b.add(f["out"], b.mul(number, f["stride"]))
            b.store(found, _place(b, self.grid.given["more"], at), align=8)

    def _digit(self, k: Any) -> Any:
        return self.b.gep(self.digits, [k], source_etype=I64)

    def _add(self, value: Any) -> None:
        """Add a number's digits."""
        b = self.b
        bits = b.bitcast(value, I64)
        exponent = b.and_(b.lshr(bits, I64(52)), I64(0x7FF))
        finite = b.icmp_signed("!=", exponent, I64(0x7FF))
        before = b.load(self.finite, typ=I64)
        b.store(b.select(finite, before, I64(0)), self.finite)
        with b.if_then(finite):
            normal = b.icmp_signed("!=", exponent, I64(0))
            fraction = b.and_(bits, I64((1 << 52) - 1))
            whole = b.or_(fraction, b.select(normal, I64(1 << 52), I64(0)))
            # In units of 2^-1074, the smallest number, behind two digits that are 0.
            shift = b.add(b.select(normal, b.sub(exponent, I64(1)), I64(0)), I64(64))
            first, by = b.lshr(shift, I64(5)), b.and_(shift, I64(31))
            low = b.shl(b.and_(whole, I64(_MASK)), by)
            high = b.shl(b.lshr(whole, I64(32)), by)
            negative = b.icmp_signed("<", bits, I64(0))
            for k, digit in enumerate(
                (
                    b.and_(low, I64(_MASK)),
                    b.add(b.lshr(low, I64(32)), b.and_(high, I64(_MASK))),
                    b.lshr(high, I64(32)),
                )
            ):
                at = self._digit(b.add(first, I64(k)))
                signed = b.select(negative, b.neg(digit), digit)
                b.store(b.add(b.load(at, typ=I64), signed), at)

    def _carry(self, flip: Any = None) -> Any:
        """Bring each digit into 32 bits; gives what the highest carries: -1 below 0.

        With ``flip`` the digits change their signs first where it holds.
        """
        b = self.b

        def bring(k: Any, carry: Any) -> Any:
            at = self._digit(k)
            digit = b.load(at, typ=I64)
            if flip is not None:
                digit = b.select(flip, b.neg(digit), digit)
            digit = b.add(digit, carry)
            b.store(b.and_(digit, I64(_MASK)), at)
            return b.ashr(digit, I64(32))

        return _repeated(b, I64(_DIGITS), I64(0), bring)

    def _rounded(self) -> Any:
        """The number of the digits, to the nearest, ties to even."""
        b = self.b
        negative = b.icmp_signed("<", self._carry(), I64(0))
        # Its complement has carried past the highest digit: changing all signs brings that back.
        self._carry(negative)

        def higher(k: Any, highest: Any) -> Any:
            digit = b.load(self._digit(k), typ=I64)
            return b.select(b.icmp_signed("!=", digit, I64(0)), k, highest)

        found = _repeated(b, I64(_DIGITS), I64(2), higher, 3)
        top, middle, low = (b.load(self._digit(b.sub(found, I64(k))), typ=I64) for k in range(3))
        below = b.sub(found, I64(2))
        rest = _repeated(
            b, below, I64(0), lambda k, seen: b.or_(seen, b.load(self._digit(k), typ=I64))
        )
        upper = b.or_(b.shl(top, I64(32)), middle)
        zeros = self._leading_zeros(upper)
        shifted = b.shl(low, zeros)
        bits = b.or_(b.shl(upper, zeros), b.lshr(shifted, I64(32)))
        rest = b.or_(rest, b.and_(shifted, I64(_MASK)))
        kept, cut = b.lshr(bits, I64(11)), b.and_(bits, I64(2047))
        tie = b.and_(b.icmp_signed("==", cut, I64(1024)), b.icmp_signed("==", rest, I64(0)))
        odd = b.icmp_signed("!=", b.and_(kept, I64(1)), I64(0))
        above = b.icmp_signed(">=", cut, I64(1024))
        up = b.and_(above, b.or_(b.not_(tie), odd))
        whole = b.uitofp(b.add(kept, b.zext(up, I64)), F64)
        # In two steps, either a power of two: no number of the result is rounded again.
        scale = b.sub(b.mul(b.sub(found, I64(1)), I64(32)), zeros)
        scale = b.sub(scale, I64(1074 + 64 - 11))
        half = b.ashr(scale, I64(1))
        value = b.fmul(b.fmul(whole, self._power(half)), self._power(b.sub(scale, half)))
        none = b.icmp_signed("==", bits, I64(0))
        value = b.select(none, ir.Constant(F64, 0.0), value)
        return b.select(b.and_(negative, b.not_(none)), b.fneg(value), value)

    def _leading_zeros(self, value: Any) -> Any:
        """Of a number whose upper half is not 0, or of 0: then so many that nothing is shifted."""
        b = self.b
        zeros: Any = I64(0)
        for by in (16, 8, 4, 2, 1):
            empty = b.icmp_unsigned("<", b.shl(value, zeros), I64(1 << (64 - by)))
            zeros = b.select(empty, b.add(zeros, I64(by)), zeros)
        return zeros

    def _power(self, exponent: Any) -> Any:
        b = self.b
        return b.bitcast(b.shl(b.add(exponent, I64(1023)), I64(52)), F64)
