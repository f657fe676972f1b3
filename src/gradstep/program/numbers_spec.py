"""What shapes the code that works out a row of scalars on a device, a thread a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gradstep.program.kernel_spec import Listing
from gradstep.program.program import Program
from gradstep.program.targets import Target
from gradstep.rule.graph import Node, in_order


@dataclass(frozen=True)
class NumbersSpec:
    """Of the code of a row.

    Attributes:
        target: the processors that it is for.
        outputs: what a row has, in order: numbers that passes read, and then what becomes of the
            states of one number, those of ``states`` first.
        behind: how many of the outputs stand before the latter.
        states: (name, storage type) of the states that are one number, as they stand at the end of
            a row of states; the step count last, if there is one.
        given: (name, storage type) of lr and the numeric hyperparameters, where they lie on the
            device.
        more: names of numbers that the host or another kernel has put down for each tensor: facts
            of its shape, and its sums.
    """

    target: Target
    outputs: tuple[Node, ...]
    behind: int
    states: tuple[tuple[str, str], ...]
    given: tuple[tuple[str, str], ...]
    more: tuple[str, ...] = ()

    @property
    def counts(self) -> bool:
        """Whether steps are counted, in a state of the tensor's."""
        return bool(self.states) and self.states[-1][0] == "step"

    def nodes(self) -> Sequence[Node]:
        """All nodes below the outputs, in order."""
        return in_order(self.outputs)

    def text(self) -> str:
        """All of it, for comparison."""
        listing = Listing(f"numbers {self.target} {self.behind}", True)
        for name, stored in (*self.states, *self.given):
            listing.say(name, stored)
        listing.say("more", *self.more)
        nodes = self.nodes()
        for node in nodes:
            if node.operation == "input":
                listing.add(node, f"input {node.value}")
        listing.operations(n for n in nodes if n.operation not in ("input", "constant"))
        for node in self.outputs:
            listing.say("truth" if node.boolean else "number", listing.name(node))
        return str(listing)


def numbers_spec(
    program: Program,
    scalars: Sequence[Node],
    states: Sequence[tuple[str, str]],
    given: Sequence[str],
    target: Target,
) -> NumbersSpec:
    """The spec of a flat program's rows.

    Args:
        program: whose.
        scalars: what its pass reads, as its kernel's spec has them.
        states: name and storage type of a weight's states of one number, in their order; the step
            count last, if there is one.
        given: the storage type of each of the program's ``names``, where it lies on the device.
        target: the processors.
    """
    after = [node for _, _, node in program.contracted.numbers]
    outputs = (*scalars, *after, Node("input", value="step"))
    named = tuple(zip(program.names, given, strict=True))
    return NumbersSpec(target, outputs, len(scalars), tuple(states), named)
