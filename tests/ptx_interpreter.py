"""PTX executed by NumPy, all threads of a grid side by side.

The instructions that come out of our kernels, as NVIDIA's manual of the language describes them; an
instruction that is not here is an error. Memory is this process's: addresses are those of host
tensors. An access that is not aligned to its width fails, as it does on a device, and so does a
barrier that not all threads of a block come to.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy

Values = Any
#: Does an instruction, for the threads of these numbers, or all (None).
Work = Callable[["Machine", Any], None]

_UNSIGNED = {8: numpy.uint8, 16: numpy.uint16, 32: numpy.uint32, 64: numpy.uint64}
_SIGNED = {8: numpy.int8, 16: numpy.int16, 32: numpy.int32, 64: numpy.int64}
_FLOAT = {16: numpy.float16, 32: numpy.float32, 64: numpy.float64}
#: Memory begins where no process has any; an array from address 0 on cannot be had.
_LOWEST = 4096


def kind_of(name: str) -> Any:
    """NumPy's type of one of PTX's: ``u32``, ``s64``, ``f32``, ``b16``."""
    if name == "pred":
        return numpy.bool_
    width = int(name[1:])
    return {"f": _FLOAT, "s": _SIGNED}.get(name[0], _UNSIGNED)[width]


@dataclass
class Module:
    """What a text of PTX defines.

    Attributes:
        entries: name -> its code.
        constants: name -> bytes of the tables of the module.
        shared: name -> bytes of the arrays that a block has.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    shared: dict[str, int] = field(default_factory=dict)


@dataclass
class Entry:
    """The code of a kernel, in stretches that threads run from the first to the last instruction.

    Attributes:
        parameters: their names.
        stretches: instructions; how it ends: ``"next"``, ``"barrier"``, ``"exit"``, or a predicate
            and a label.
        labels: label -> the stretch that begins there.
        widths: prefix of registers -> type.
    """

    parameters: list[str]
    stretches: list[tuple[list[Work], Any]]
    labels: dict[str, int]
    widths: dict[str, Any]


class Machine:
    """The threads of a grid: registers, memory."""

    def __init__(
        self, module: Module, entry: Entry, grid: int, threads: int, arguments: Sequence[int]
    ) -> None:
        self.module, self.entry = module, entry
        self.blocks, self.block_threads = grid, threads
        self.count = grid * threads
        assert len(arguments) == len(entry.parameters)
        masked = [argument & (2**64 - 1) for argument in arguments]
        self.given = dict(zip(entry.parameters, masked, strict=True))
        self.registers: dict[str, Values] = {}
        number = numpy.arange(self.count, dtype=numpy.uint32)
        self.special = {
            "%tid.x": number % threads,
            "%ctaid.x": number // threads,
            "%ntid.x": numpy.full(self.count, threads, numpy.uint32),
            "%nctaid.x": numpy.full(self.count, grid, numpy.uint32),
        }
        size = (1 << 47) - _LOWEST
        held = (ctypes.c_uint8 * size).from_address(_LOWEST)
        self.memory = numpy.frombuffer(held, numpy.uint8)
        self.shared: dict[str, int] = {}
        top = 0
        for name, length in module.shared.items():
            self.shared[name] = top
            top += -(-length // 16) * 16
        # Filled with what would be seen if it were read before it is written.
        self.shared_memory = numpy.full((grid, max(top, 16)), 0xA5, numpy.uint8)

    def read(self, operand: str, kind: Any, chosen: Any) -> Values:
        """The values of an operand, for the chosen threads."""
        if operand in self.special:
            found = self.special[operand]
        elif operand[0] == "%":
            found = self.registers[operand]
        else:
            return self.immediate(operand, kind)
        found = found if chosen is None else found[chosen]
        if kind is numpy.bool_ or found.dtype == numpy.bool_:
            return found
        narrow = numpy.dtype(kind).itemsize
        if found.dtype.itemsize > narrow:  # the lower part, as in a conversion
            found = found.astype(_UNSIGNED[8 * narrow])
        return found.view(kind)

    def immediate(self, operand: str, kind: Any) -> Values:
        """A number of the text."""
        if operand[:2] in ("0f", "0d"):
            bits = {"0f": numpy.uint32, "0d": numpy.uint64}[operand[:2]]
            whole = numpy.array([int(operand[2:], 16)], bits)
            return whole.view(kind) if whole.dtype.itemsize == numpy.dtype(kind).itemsize else whole
        if operand in self.shared:
            return numpy.array([self.shared[operand]], numpy.uint64)
        if operand in self.module.constants:
            at = self.module.constants[operand].ctypes.data
            return numpy.array([at], numpy.uint64)
        width = 8 * numpy.dtype(kind).itemsize
        if operand[:2] == "0x" and numpy.dtype(kind).kind == "f":
            return numpy.array([int(operand.rstrip("U"), 16)], _UNSIGNED[width]).view(kind)
        value = int(operand.rstrip("U"), 0) & ((1 << width) - 1)
        return numpy.array([value], _UNSIGNED[width]).view(kind)

    def write(self, register: str, values: Values, chosen: Any) -> None:
        """Put values into a register of the chosen threads."""
        if register == "_":
            return
        (prefix,) = re.findall(r"%[a-z]+", register)
        kind = self.entry.widths[prefix]
        held = self.registers.get(register)
        if held is None:
            held = self.registers[register] = numpy.zeros(self.count, kind)
        if kind is not numpy.bool_:
            values = numpy.ascontiguousarray(values)
            if values.dtype.itemsize != numpy.dtype(kind).itemsize:
                values = values.astype(kind)  # narrower ones stand in the lower part
            values = values.view(kind)
        held[slice(None) if chosen is None else chosen] = values

    def access(self, space: str, address: Values, kind: Any, chosen: Any) -> tuple[Any, Any]:
        """The array and the places in it that addresses mean."""
        size = numpy.dtype(kind).itemsize
        if space == "shared":
            numbers = numpy.arange(self.count) if chosen is None else chosen
            block = numbers // self.block_threads
            width = self.shared_memory.shape[1]
            assert (address + numpy.uint64(size) <= width).all(), "outside of shared memory"
            view = self.shared_memory.reshape(-1).view(kind)
            return view, (block.astype(numpy.uint64) * numpy.uint64(width) + address) // size
        assert (address >= _LOWEST).all() and (address < 1 << 47).all(), "no such address"
        end = (1 << 47) - _LOWEST
        view = self.memory[: end - end % size].view(kind)
        return view, (address - numpy.uint64(_LOWEST)) // numpy.uint64(size)


def run(module: Module, name: str, grid: int, threads: int, arguments: Sequence[int]) -> None:
    """Launch an entry of a module."""
    entry = module.entries[name]
    machine = Machine(module, entry, grid, threads, arguments)
    ended = len(entry.stretches)
    at = numpy.zeros(machine.count, numpy.int64)
    waiting = numpy.zeros(machine.count, numpy.bool_)
    with numpy.errstate(all="ignore"):
        while True:
            ready = ~waiting & (at < ended)
            if not ready.any():
                if not waiting.any():
                    return
                # Of each block either all wait, or none that has not ended.
                held = waiting.reshape(grid, threads)
                over = (at >= ended).reshape(grid, threads)
                assert ((held.all(1)) | (over.all(1))).all(), "a barrier that some do not come to"
                waiting[:] = False
                continue
            lowest = int(at[ready].min())
            chosen: Any = numpy.flatnonzero(ready & (at == lowest))
            if len(chosen) == machine.count:
                chosen = None
            every = slice(None) if chosen is None else chosen
            work, end = entry.stretches[lowest]
            for each in work:
                each(machine, chosen)
            at[every] = lowest + 1
            if end == "exit":
                at[every] = ended
            elif end == "barrier":
                waiting[every] = True
            elif end != "next":
                predicate, negated, label = end
                goal = entry.labels[label]
                if predicate is None:
                    at[every] = goal
                else:
                    holds = machine.read(predicate, numpy.bool_, chosen) ^ negated
                    at[every] = numpy.where(holds, goal, lowest + 1)


# Reading a text.


def parse(text: str) -> Module:
    """The module of a text of PTX."""
    module = Module()
    text = re.sub(r"//[^\n]*", "", text)
    for name, count, values in re.findall(
        r"\.global\s+\.align\s+\d+\s+\.b8\s+([\w$]+)\[(\d+)\]\s*=\s*\{([^}]*)\}", text
    ):
        table = numpy.zeros(int(count) + 16, numpy.uint8)
        numbers = [int(v) for v in values.split(",")]
        table[: len(numbers)] = numbers
        module.constants[name] = table
    shared = r"\.shared\s+\.align\s+\d+\s+\.[a-z](\d+)\s+([\w$]+)(?:\[(\d+)\])?;"
    for bits, name, count in re.findall(shared, text):
        module.shared[name] = int(bits) // 8 * int(count or 1)
    for name, parameters, body in re.findall(
        r"\.entry\s+([\w$]+)\((.*?)\)[^{]*\n\{\n(.*?)\n\}", text, re.S
    ):
        module.entries[name] = _entry(re.findall(r"\w+_param_\d+", parameters), body)
    return module


def _entry(parameters: list[str], body: str) -> Entry:
    widths = {
        prefix: kind_of(kind) if kind == "pred" else _UNSIGNED[int(kind[1:])]
        for kind, prefix in re.findall(r"\.reg\s+\.(\w+)\s+(%[a-z]+)<\d+>;", body)
    }
    stretches: list[tuple[list[Work], Any]] = []
    labels: dict[str, int] = {}
    work: list[Work] = []

    def close(end: Any) -> None:
        nonlocal work
        stretches.append((work, end))
        work = []

    # A part that nobody reads goes into a register of its own.
    body = re.sub(
        r"\{\s*\.reg\s+\.\w+\s+tmp;\s*([^;]*;)\s*\}", lambda f: f[1].replace("tmp", "_"), body
    )
    for line in re.findall(r"[^;\n]*[;\n]", re.sub(r"\{[^{}]*\}", _on_one_line, body) + "\n"):
        line = line.strip().rstrip(";").strip()
        label = re.fullmatch(r"(\$\w+):", line)
        if label:
            if work:
                close("next")
            labels[label[1]] = len(stretches)
            continue
        if not line or line.startswith("."):
            continue
        guard, negated, name, operands = _instruction(line)
        if name in ("bra", "bra.uni"):
            close((guard, negated, operands[0]))
        elif name == "ret":
            assert guard is None
            close("exit")
        elif name in ("bar.sync", "barrier.sync"):
            assert guard is None
            close("barrier")
        else:
            assert guard is None, f"a guard before {name}"
            work.append(compiled(name, operands))
    assert not work
    return Entry(parameters, stretches, labels, widths)


def _on_one_line(found: re.Match[str]) -> str:
    return found[0].replace("\n", " ")


def _instruction(line: str) -> tuple[str | None, bool, str, list[str]]:
    """Guard, whether it is negated, name and operands."""
    found = re.fullmatch(r"(?:@(!?)(%\w+)\s+)?([\w.]+)\s*(.*)", line)
    assert found is not None, line
    operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s{}\[\]]+", found[4])
    return found[2], found[1] == "!", found[3], operands


def _list(operand: str) -> list[str]:
    """The registers of a vector, or the one that there is."""
    return [each.strip() for each in operand.strip("{}").split(",")]


# The instructions.


def compiled(name: str, operands: list[str]) -> Work:
    """What an instruction does."""
    parts = name.split(".")
    maker = _MAKERS.get(parts[0])
    if maker is None:
        raise NotImplementedError(f"the interpreter has no {name}")
    return maker(name, parts, operands)


def _plain(function: Callable[..., Values]) -> Any:
    """An instruction that makes one value of some of one type."""

    def make(name: str, parts: list[str], operands: list[str]) -> Work:
        for part in parts[1:-1]:
            assert part in ("rn", "lo"), name
        kind = kind_of(parts[-1])
        target, *sources = operands

        def work(machine: Machine, chosen: Any) -> None:
            values = function(*(machine.read(s, kind, chosen) for s in sources))
            machine.write(target, values, chosen)

        return work

    return make


def _of_integers(function: Callable[..., Values]) -> Any:
    def make(name: str, parts: list[str], operands: list[str]) -> Work:
        assert parts[-1][0] in "su", name
        made: Work = _plain(function)(name, parts, operands)
        return made

    return make


def _fma(a: Values, b: Values, c: Values) -> Values:
    a, b, c = numpy.broadcast_arrays(a, b, c)
    if a.dtype == numpy.float32:
        return _odd_sum(a.astype(numpy.float64) * b, c.astype(numpy.float64)).astype(numpy.float32)
    return _fma_of_doubles(a, b, c)


def _two_sum(a: Values, b: Values) -> tuple[Values, Values]:
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _odd_sum(a: Values, b: Values) -> Values:
    """The sum rounded to odd: rounded once more to fewer digits, that is the sum's rounding."""
    total, rest = _two_sum(a, b)
    bits = total.view(numpy.int64)
    inexact = numpy.isfinite(total) & (rest != 0) & (bits & 1 == 0)
    away = (rest > 0) == (total > 0)
    moved = (bits + numpy.where(away, 1, -1)).view(numpy.float64)
    return numpy.where(inexact, moved, total)


def _fma_of_doubles(a: Values, b: Values, c: Values) -> Values:
    """As Boldo and Melquiond (2008) have it; by fractions where a part is too large or small."""
    high = a * b
    split = [x * 134217729.0 for x in (a, b)]
    (a1, b1) = (s - (s - x) for s, x in zip(split, (a, b), strict=True))
    a2, b2 = a - a1, b - b1
    low = a2 * b2 - (((high - a1 * b1) - a2 * b1) - a1 * b2)
    upper, rest = _two_sum(c, low)
    top, tail = _two_sum(high, upper)
    found = top + _odd_sum(rest, tail)
    plain = (high == 0) & ((a == 0) | (b == 0)) | ~numpy.isfinite(high + c)
    plain |= (c == 0) & (low == 0) & (numpy.abs(high) > 1e-250)
    sizes = [numpy.abs(x) for x in (a, b, c, high)]
    usual = numpy.logical_and.reduce([(s > 1e-140) & (s < 1e140) for s in sizes])
    found = numpy.where(plain, high + c, found)
    for place in numpy.flatnonzero(~usual & ~plain):
        x, y, z = (float(v.flat[place]) for v in (a, b, c))
        if not (numpy.isfinite(x) and numpy.isfinite(y) and numpy.isfinite(z)):
            found.flat[place] = x * y + z
            continue
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        try:
            found.flat[place] = float(exact) if exact else x * y + z
        except OverflowError:
            found.flat[place] = numpy.inf if exact > 0 else -numpy.inf
    return found


def _negated(a: Values) -> Values:
    width = 8 * a.dtype.itemsize
    if a.dtype.kind != "f":
        return -a
    return (a.view(_UNSIGNED[width]) ^ _UNSIGNED[width](1 << (width - 1))).view(a.dtype)


def _shift(left: bool) -> Any:
    def make(name: str, parts: list[str], operands: list[str]) -> Work:
        kind = kind_of(parts[-1])
        target, value, by = operands
        width = 8 * numpy.dtype(kind).itemsize

        def work(machine: Machine, chosen: Any) -> None:
            a = machine.read(value, kind, chosen)
            n = machine.read(by, numpy.uint32, chosen)
            most = width - 1 if numpy.dtype(kind).kind == "i" else width
            n = numpy.minimum(n, most)
            inside = numpy.minimum(n, width - 1).astype(kind)
            made = a << inside if left else a >> inside
            machine.write(target, numpy.where(n >= width, kind(0), made).astype(kind), chosen)

        return work

    return make


def _multiplied(name: str, parts: list[str], operands: list[str]) -> Work:
    kind = kind_of(parts[-1])
    if parts[1] == "wide":
        width = 16 * numpy.dtype(kind).itemsize
        wide = (_SIGNED if parts[-1][0] == "s" else _UNSIGNED)[width]
        target, *sources = operands

        def work(machine: Machine, chosen: Any) -> None:
            a, b = (machine.read(s, kind, chosen).astype(wide) for s in sources)
            machine.write(target, a * b, chosen)

        return work
    assert parts[1] in ("lo", "rn"), name
    made: Work = _plain(lambda a, b: a * b)(name, parts, operands)
    return made


def _multiplied_and_added(name: str, parts: list[str], operands: list[str]) -> Work:
    kind = kind_of(parts[-1])
    target, a, b, c = operands
    wide = kind
    if parts[1] == "wide":
        width = 16 * numpy.dtype(kind).itemsize
        wide = (_SIGNED if parts[-1][0] == "s" else _UNSIGNED)[width]
    else:
        assert parts[1] == "lo", name

    def work(machine: Machine, chosen: Any) -> None:
        x, y = (machine.read(s, kind, chosen).astype(wide) for s in (a, b))
        machine.write(target, x * y + machine.read(c, wide, chosen), chosen)

    return work


_ORDERS: dict[str, Callable[[Values, Values], Values]] = {
    "eq": numpy.equal, "ne": numpy.not_equal, "lt": numpy.less, "le": numpy.less_equal,
    "gt": numpy.greater, "ge": numpy.greater_equal, "lo": numpy.less, "ls": numpy.less_equal,
    "hi": numpy.greater, "hs": numpy.greater_equal,
}  # fmt: skip


def _compared(name: str, parts: list[str], operands: list[str]) -> Work:
    assert len(parts) == 3, name
    kind, relation = kind_of(parts[2]), parts[1]
    target, *sources = operands

    def work(machine: Machine, chosen: Any) -> None:
        a, b = (machine.read(s, kind, chosen) for s in sources)
        if parts[2][0] != "f":
            found = _ORDERS[relation](a, b)
        else:
            unordered = numpy.isnan(a) | numpy.isnan(b)
            if relation in ("num", "nan"):
                found = unordered if relation == "nan" else ~unordered
            elif relation in _ORDERS:  # false where one is nan
                found = _ORDERS[relation](a, b) & ~unordered
            else:
                found = _ORDERS[relation[:2]](a, b) | unordered
        machine.write(target, found, chosen)

    return work


def _selected(name: str, parts: list[str], operands: list[str]) -> Work:
    kind = kind_of(parts[-1])
    target, a, b, predicate = operands

    def work(machine: Machine, chosen: Any) -> None:
        x, y = (machine.read(s, kind, chosen) for s in (a, b))
        holds = machine.read(predicate, numpy.bool_, chosen)
        machine.write(target, numpy.where(holds, x, y), chosen)

    return work


def _converted(name: str, parts: list[str], operands: list[str]) -> Work:
    if name == "cvt.rn.f16x2.f32":
        target, upper, lower = operands

        def pack(machine: Machine, chosen: Any) -> None:
            pair = [
                machine.read(s, numpy.float32, chosen).astype(numpy.float16).view(numpy.uint16)
                for s in (lower, upper)
            ]
            made = pair[0].astype(numpy.uint32) | pair[1].astype(numpy.uint32) << numpy.uint32(16)
            machine.write(target, made, chosen)

        return pack
    *rounding, to, of = parts[1:]
    into, kind = kind_of(to), kind_of(of)
    target, source = operands
    if rounding == ["rzi"]:
        limits = numpy.iinfo(into)

        def cut(machine: Machine, chosen: Any) -> None:
            a = machine.read(source, kind, chosen).astype(numpy.float64)
            whole = numpy.trunc(numpy.where(numpy.isnan(a), 0.0, a))
            inside = (whole > float(limits.min) - 1) & (whole < float(limits.max))
            made = numpy.where(inside, whole, 0.0).astype(into)
            beyond = numpy.where(whole > 0, limits.max, limits.min).astype(into)
            machine.write(target, numpy.where(inside, made, beyond), chosen)

        return cut
    assert rounding in ([], ["rn"]), name

    def work(machine: Machine, chosen: Any) -> None:
        machine.write(target, machine.read(source, kind, chosen).astype(into), chosen)

    return work


def _moved(name: str, parts: list[str], operands: list[str]) -> Work:
    target, source = operands
    kind = kind_of(parts[-1])
    if parts[-1] == "pred":
        return _plain(lambda a: a)(name, parts, operands)
    whole = 8 * numpy.dtype(kind).itemsize
    if source[0] == "{":
        pieces = _list(source)
        width = whole // len(pieces)

        def pack(machine: Machine, chosen: Any) -> None:
            made: Any = numpy.zeros(1, _UNSIGNED[whole])
            for place, piece in enumerate(pieces):
                value = machine.read(piece, _UNSIGNED[width], chosen).astype(_UNSIGNED[whole])
                made = made | value << _UNSIGNED[whole](place * width)
            machine.write(target, made, chosen)

        return pack
    if target[0] == "{":
        pieces = _list(target)
        width = whole // len(pieces)

        def unpack(machine: Machine, chosen: Any) -> None:
            value = machine.read(source, _UNSIGNED[whole], chosen)
            for place, piece in enumerate(pieces):
                part = (value >> _UNSIGNED[whole](place * width)).astype(_UNSIGNED[width])
                machine.write(piece, part, chosen)

        return unpack

    def work(machine: Machine, chosen: Any) -> None:
        machine.write(target, machine.read(source, kind, chosen), chosen)

    return work


def _bytes_chosen(name: str, parts: list[str], operands: list[str]) -> Work:
    assert name == "prmt.b32"
    target, *sources = operands

    def work(machine: Machine, chosen: Any) -> None:
        a, b, selector = (machine.read(s, numpy.uint32, chosen) for s in sources)
        both = a.astype(numpy.uint64) | b.astype(numpy.uint64) << numpy.uint64(32)
        made: Any = numpy.zeros(1, numpy.uint32)
        for place in range(4):
            nibble = (selector >> numpy.uint32(4 * place)) & numpy.uint32(15)
            shift = ((nibble & numpy.uint32(7)) * numpy.uint32(8)).astype(numpy.uint64)
            byte = (both >> shift).astype(numpy.uint32) & numpy.uint32(255)
            signs = numpy.where(byte >= 128, numpy.uint32(255), numpy.uint32(0))
            byte = numpy.where(nibble >= 8, signs, byte)
            made = made | byte << numpy.uint32(8 * place)
        machine.write(target, made, chosen)

    return work


def _bits_cut(name: str, parts: list[str], operands: list[str]) -> Work:
    assert name in ("bfe.u32", "bfe.s32")
    target, *sources = operands

    def work(machine: Machine, chosen: Any) -> None:
        a, start, length = (machine.read(s, numpy.uint32, chosen) for s in sources)
        mask = (numpy.uint64(1) << length.astype(numpy.uint64)) - numpy.uint64(1)
        made = (a.astype(numpy.uint64) >> start.astype(numpy.uint64)) & mask
        if name == "bfe.s32":  # whose highest bit is the sign
            negative = (made & ((mask + numpy.uint64(1)) >> numpy.uint64(1))) > 0
            made = numpy.where(negative, made | ~mask, made)
        machine.write(target, made.astype(numpy.uint32), chosen)

    return work


def _accessed(load: bool) -> Any:
    def make(name: str, parts: list[str], operands: list[str]) -> Work:
        space = parts[1]
        if space == "param":
            return _parameter(name, operands)
        assert space in ("global", "shared"), name
        vector, kind = [p for p in parts[2:-1] if p[0] == "v"], kind_of(parts[-1])
        assert set(parts[2:-1]) <= {*vector, "nc"}, name
        place, held = operands if not load else operands[::-1]
        registers = _list(held)
        assert len(registers) == (int(vector[0][1:]) if vector else 1)
        found = re.fullmatch(r"\[([%\w$.]+)((?:\+-|[+-])\d+)?\]", place)
        assert found is not None, place
        base, offset = found[1], int((found[2] or "0").replace("+-", "-"))
        size = numpy.dtype(kind).itemsize

        def work(machine: Machine, chosen: Any) -> None:
            first = machine.read(base, numpy.uint64, chosen) + numpy.uint64(offset % 2**64)
            assert (first % numpy.uint64(size * len(registers)) == 0).all(), f"unaligned {name}"
            for number, register in enumerate(registers):
                address = first + numpy.uint64(number * size)
                view, places = machine.access(space, address, kind, chosen)
                if load:
                    values = view[places]
                    if size < 4 and parts[-1][0] == "s":
                        values = values.astype(_SIGNED[64]).view(numpy.uint64)
                    machine.write(register, values, chosen)
                else:
                    view[places] = machine.read(register, kind, chosen)

        return work

    return make


def _parameter(name: str, operands: list[str]) -> Work:
    target, place = operands
    assert name in ("ld.param.b64", "ld.param.u64")
    parameter = place.strip("[]")

    def work(machine: Machine, chosen: Any) -> None:
        machine.write(target, numpy.array([machine.given[parameter]], numpy.uint64), chosen)

    return work


def _copied_sign(a: Values, b: Values) -> Values:
    return numpy.copysign(b, a)  # the first gives the sign


_MAKERS: dict[str, Callable[[str, list[str], list[str]], Work]] = {
    "abs": _plain(numpy.abs),
    "add": _plain(lambda a, b: a + b),
    "and": _plain(lambda a, b: a & b),
    "bfe": _bits_cut,
    "copysign": _plain(_copied_sign),
    "cvt": _converted,
    "div": _plain(lambda a, b: a / b if a.dtype.kind == "f" else a // b),
    "fma": _plain(_fma),
    "ld": _accessed(True),
    "mad": _multiplied_and_added,
    "max": _of_integers(numpy.maximum),
    "min": _of_integers(numpy.minimum),
    "mov": _moved,
    "mul": _multiplied,
    "neg": _plain(_negated),
    "not": _plain(lambda a: ~a),
    "or": _plain(lambda a, b: a | b),
    "prmt": _bytes_chosen,
    "rcp": _plain(lambda a: a.dtype.type(1) / a),
    "rem": _plain(lambda a, b: a % b),
    "selp": _selected,
    "setp": _compared,
    "shl": _shift(True),
    "shr": _shift(False),
    "sqrt": _plain(numpy.sqrt),
    "st": _accessed(False),
    "sub": _plain(lambda a, b: a - b),
    "xor": _plain(lambda a, b: a ^ b),
}
