"""Kernel specs: what shapes the code of a kernel, and nothing else.

The code is written from its spec alone, so equal specs have equal code. A spec's text is therefore
the name under which compiled code lies on disk, and a process that finds it there writes no code at
all: for CAME's twelve passes that is 50 of 150 ms of the first step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gradstep.program.format import Format
from gradstep.program.passes import Pass
from gradstep.program.targets import PLAIN, Target
from gradstep.program.weight_formats import WeightFormat
from gradstep.rule.graph import REDUCTIONS, Node
from gradstep.rule.operations import expanded

#: Storage type -> bytes an element.
ITEM_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}


def working_type(storage: str) -> str:
    """What a step is worked out in, for elements that are stored so."""
    return "float64" if storage == "float64" else "float32"


def kept_storage(node: Node, working: str) -> str:
    """How what lies in the arena is stored."""
    if node.operation in REDUCTIONS:
        return "float64"
    if node.operation == "opaque" and node.value.dtype is not None:
        return str(node.value.dtype).removeprefix("torch.")
    return working


class Places:
    """Numbers the things that lie in the arena: a row's length and what each place holds."""

    def __init__(self) -> None:
        self.owners: list[Node] = []

    def of(self, node: Node) -> int:
        """The place of a kept value, or of a reduction's partial outcomes."""
        for position, owner in enumerate(self.owners):
            if owner is node:
                return position
        self.owners.append(node)
        return len(self.owners) - 1


@dataclass(frozen=True)
class Column:
    """One thing in memory that a pass reads, writes, or both.

    Attributes:
        format: how its elements are stored, the name of a format.
        extent: what it has elements for.
        table: the places of its tensors in the table: 0 is the weight, 1 the gradient, then come
            the states, each as many as its format asks for; none where it lies in the arena.
        place: its place in a row of the arena's offsets, where it is not in the table.
    """

    format: str
    extent: str
    table: tuple[int, ...]
    place: int = -1


@dataclass(frozen=True)
class KeptWeight:
    """How a weight is kept that is not kept as any other.

    Attributes:
        format: what it is stored as.
        seed: of the chances by which it is rounded, if it is.
    """

    format: WeightFormat
    seed: int = 0

    @property
    def key(self) -> Node:
        """A number for each step and seed; the last scalar of a pass that rounds by chance."""
        step = Node("input", value="step")
        return Node("add", (step, Node("constant", value=float(self.seed << 32))))


@dataclass(frozen=True)
class KernelSpec:
    """Of the code of one pass.

    Attributes:
        walk: how it goes through a tensor, a key of :data:`gradstep.program.walks.FIELDS`.
        domain: what it runs over, as :class:`gradstep.program.passes.Pass` has it.
        working: what elements are worked out in, ``"float32"`` or ``"float64"``.
        target: the processors that it is for.
        columns: what it reads and writes.
        scalars: the host's numbers that it reads from a row, in order.
        loads: (value, number of the column that it is read from).
        work: the operations, in order.
        stores: (value, number of the column that it goes to).
        sums: (reduction, its partial outcomes' place in a row of the arena's offsets).
    """

    walk: str
    domain: str
    working: str
    target: Target
    columns: tuple[Column, ...]
    scalars: tuple[Node, ...]
    loads: tuple[tuple[Node, int], ...]
    work: tuple[Node, ...]
    stores: tuple[tuple[Node, int], ...]
    sums: tuple[tuple[Node, int], ...]

    def text(self) -> str:
        """All of it, for comparison."""
        title = f"{self.walk} {self.domain} {self.working} {self.target}"
        listing = Listing(title, self.working == "float64")
        for column in self.columns:
            places = " ".join(map(str, column.table)) or "arena"
            listing.say(column.format, column.extent, places, str(column.place))
        listing.scalars(self.scalars)
        for node, number in self.loads:
            listing.add(node, f"column {number}")
        listing.operations(self.work)
        for node, number in self.stores:
            listing.say("store", listing.name(node), str(number))
        for node, place in self.sums:
            argument = listing.name(node.arguments[0])
            listing.say(node.operation, node.extent, argument, str(place))
        return str(listing)


def kernel_spec(
    each: Pass,
    inputs: Sequence[Node],
    storage: str,
    places: Places,
    target: Target = PLAIN,
    working: str | None = None,
    formats: Mapping[str, Format] | None = None,
    weight: KeptWeight | None = None,
) -> KernelSpec:
    """The spec of one pass.

    Args:
        each: the pass.
        inputs: what the table of tensors holds, in order: weight, gradient, states.
        storage: how they are stored, a key of :data:`ITEM_BYTES`.
        places: the arena's places; new ones are added.
        target: the processors that it is for.
        working: what elements are worked out in, ``"float32"`` or ``"float64"``; None for what a
            step takes.
        formats: of the inputs that are stored otherwise: their names -> their formats.
        weight: how the weight is kept; None for as it is stored.
    """
    working, formats = working or working_type(storage), formats or {}
    columns: list[Column] = []
    table: dict[int, tuple[int, ...]] = {}
    held = 0
    for node in inputs:
        own = formats.get(str(node.value))
        count = 1 if own is None else len(own.suffixes)
        table[id(node)] = tuple(range(held, held + count))
        held += count
    if weight is not None:  # what is kept beside it comes behind the states
        beside = len(weight.format.extra)
        table[id(inputs[0])] = (0, *range(held, held + beside))

    def number_of(column: Column) -> int:
        if column not in columns:
            columns.append(column)
        return columns.index(column)

    def of_table(before: Node) -> int:
        own = formats.get(str(before.value))
        if weight is not None and before is inputs[0]:
            own = weight.format
        kept = storage if own is None else own.name
        return number_of(Column(kept, before.extent, table[id(before)]))

    def in_arena(value: Node, owner: Node) -> int:
        kept = kept_storage(owner, working)
        return number_of(Column(kept, value.extent, (), places.of(owner)))

    loads = []
    for node in each.loads:
        if node.operation == "input":
            number = of_table(node)
        else:
            number = in_arena(node, node)
        loads.append((node, number))
    stores = [(node, of_table(before)) for before, node in each.writes]
    stores += [(node, in_arena(node, owner)) for node, owner in each.keeps]
    scalars = list(each.scalars)
    written = any(before is inputs[0] for before, _ in each.writes)
    if weight is not None and weight.format.is_random and written:
        scalars.append(weight.key)
    return KernelSpec(
        each.walk,
        each.domain,
        working,
        target,
        tuple(columns),
        tuple(scalars),
        tuple(loads),
        tuple(each.work),
        tuple(stores),
        tuple((node, places.of(node)) for node in each.sums),
    )


class Listing:
    """Lines of text in which each value has a number.

    It is an algebra of :mod:`gradstep.rule.expansions`, on names: what an expansion is made of
    stands in the text, operation by operation.
    """

    def __init__(self, title: str, is_double: bool) -> None:
        self.is_double = is_double
        self._lines = [title]
        self._names: dict[int, str] = {}
        self._count = 0

    def say(self, *words: str) -> None:
        self._lines.append(" ".join(words))

    def name(self, node: Node) -> str:
        """A constant's value, to the last bit, or the number of a value that was listed."""
        if node.operation == "constant":
            return self.constant(node.constant())
        return self._names[id(node)]

    def add(self, node: Node, what: str) -> None:
        self._names[id(node)] = self._line(what)

    def _line(self, what: str) -> str:
        name = f"%{self._count}"
        self._count += 1
        self.say(name, what)
        return name

    def constant(self, value: float) -> str:
        return float(value).hex()

    def operate(self, name: str, *values: str) -> str:
        value = expanded(name, self, *values)
        return self._line(" ".join([name, *values])) if value is None else str(value)

    def scalars(self, nodes: Sequence[Node]) -> None:
        for node in nodes:
            self.add(node, "truth" if node.boolean else "number")

    def operations(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            arguments = map(self.name, node.arguments)
            self._names[id(node)] = self.operate(node.operation, *arguments)

    def __str__(self) -> str:
        return "\n".join(self._lines)
