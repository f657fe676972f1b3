"""A program as machine code for weights of one storage type, with what works out its scalars."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradstep.backends.cpu import compiler
from gradstep.backends.eligibility import STORAGE
from gradstep.backends.llvm.walk import ARGUMENTS, write_kernel
from gradstep.backends.update import Update
from gradstep.program.format import Format
from gradstep.program.formats import is_ours
from gradstep.program.kernel_spec import (
    KeptWeight,
    KernelSpec,
    Places,
    kernel_spec,
    working_type,
)
from gradstep.program.needs import EVER, Cases
from gradstep.program.passes import Pass
from gradstep.program.program import Program
from gradstep.program.scalars import ScalarRows, TotalsAsInputs, scalar_function
from gradstep.program.targets import Target
from gradstep.program.walks import Geometry, flat, of_matrices
from gradstep.program.weight_formats import WeightFormat
from gradstep.rule.graph import FACTS, Node, as_matrix, in_order

#: The count of the step that is being made, as a number of the row.
STEP = Node("input", value="step")


def compiled(spec: KernelSpec) -> Any:
    """A pass's machine code: a function of the integers that :mod:`.llvm.walk` lists."""
    signatures = {"run": (len(ARGUMENTS), False)}
    text = spec.text()
    if not all(is_ours(column.format) for column in spec.columns):
        text = write_kernel(spec)  # whose code for a format may be another tomorrow
    return compiler.functions(text, lambda: write_kernel(spec), signatures)["run"]


@dataclass
class Stage:
    """One pass, ready to run.

    Attributes:
        each: what it does.
        run: the machine code.
        row: works out the scalars that it reads.
        calls: the opaque functions after it, each with what works out its scalars.
        due: says of the rows of some tensors whether any of these needs the pass; None for always.
        totals: how many whole reductions it makes.
    """

    each: Pass
    run: Any
    row: ScalarRows
    calls: list[tuple[Node, ScalarRows]]
    due: Due | None
    totals: int


class Due:
    """Whether a step needs a pass that stands behind choices by numbers.

    Args:
        cases: of the pass.
        nodes: of the graph, by their ids.
        inputs: the names of the numbers that there are, in order.
    """

    def __init__(self, cases: Cases, nodes: Mapping[int, Node], inputs: Sequence[str]) -> None:
        conditions = list({node: None for case in cases for node, _ in case})
        outputs = [nodes[node] for node in conditions]
        names = {str(n.value) for n in in_order(outputs) if n.operation == "input"}
        used = [place for place, name in enumerate(inputs) if name in names]
        self._cases = [[(conditions.index(n), answer) for n, answer in case] for case in cases]
        self._function = scalar_function(outputs, [inputs[place] for place in used])
        self._used = used

    def __call__(self, rows: Sequence[Sequence[float]]) -> bool:
        """Whether any of the tensors with these numbers needs it."""
        used = self._used
        for key in {tuple([row[place] for place in used]) for row in rows}:
            found = self._function(*key)
            for case in self._cases:
                if all(bool(found[i]) is answer for i, answer in case):
                    return True
        return False


class Kernel:
    """The machine code of a program's passes for weights of one storage type.

    Args:
        program: whose.
        storage: of the weights, a key of :data:`gradstep.program.kernel_spec.ITEM_BYTES`.
        formats: of the states that are stored otherwise.
        weight_format, seed: how weights of 16 bits are kept, and which chances round them.
        target, compile: the processors, and what makes functions of specs for them: this machine's,
            and :func:`compiled`.

    Attributes:
        is_flat, needs_matrix: of the program: one pass of single elements; rows and columns.
        rows_are_units: the same: each row is all but the first dimension.
        is_wide: whether weights of 16 bits are kept with the digits of float32.
        stages: the passes.
        inputs: the names of the numbers that scalars are made of.
        after: works out what the states of one number become.
        row: of a flat program, all scalars of its pass, and then what ``after`` gives.
        read_by_pass: how many of those the pass reads.
    """

    def __init__(
        self,
        program: Program,
        storage: str,
        formats: Mapping[str, Format],
        weight_format: WeightFormat | None = None,
        seed: int = 0,
        target: Target | None = None,
        compile: Callable[[KernelSpec], Any] | None = None,
    ) -> None:
        contracted = program.contracted
        # Not the program itself, which keeps this kernel: together they would be a cycle.
        self.is_flat, self.needs_matrix = program.is_flat, contracted.needs_matrix
        self.rows_are_units = contracted.rows_are_units
        self.storage = storage
        self.is_wide = weight_format is not None and weight_format.is_wide
        self.working = working_type(storage)
        self.places = Places()
        self.totals = program.totals
        self.sums_over_all = sum(n.operation == "global_sum" for n in self.totals)
        after = [node for _, _, node in contracted.numbers]
        own = [name for name, _, _ in contracted.numbers]
        self.inputs: tuple[str, ...] = (*own, "step", "first", *program.names)
        target, compile = target or compiler.target(), compile or compiled
        kept = None if weight_format is None else KeptWeight(weight_format, seed)
        specs = [
            kernel_spec(
                each, program.inputs, storage, self.places, target, formats=formats, weight=kept
            )
            for each in program.passes
        ]
        if program.is_flat:
            (spec,) = specs
            self.run = compile(spec)
            self.row = scalar_function([*spec.scalars, *after, STEP], self.inputs)
            self.read_by_pass = len(spec.scalars)
            return
        totals = [f"total {i}" for i in range(len(self.totals))]
        self.inputs = (*self.inputs, *FACTS, *totals)
        as_host = TotalsAsInputs(self.totals)
        self.stages = []
        nodes = {id(node): node for node in contracted.nodes}
        asked: dict[Cases, Due] = {}
        for each, spec in zip(program.passes, specs, strict=True):
            run = compile(spec) if each.wanted() else None
            calls = [(node, self._scalars_of(node, as_host)) for node in each.calls]
            row = self._host_rows([as_host(n) for n in spec.scalars])
            if each.due != EVER and each.due not in asked:
                asked[each.due] = Due(each.due, nodes, self.inputs)
            due = asked.get(each.due)
            whole = sum(n.extent == "tensor" for n in each.sums)
            self.stages.append(Stage(each, run, row, calls, due, whole))
        self.after = self._host_rows([*map(as_host, after), STEP])
        #: States of a shape of their own: name, before and after.
        self.own_states = [state for state in contracted.states if state[1].extent == "own"]
        #: Opaque function's node -> what it makes of such tensors.
        self.parts: dict[int, list[Node]] = {}
        for node in contracted.nodes:
            if node.operation == "part":
                self.parts.setdefault(id(node.arguments[0]), []).append(node)

    def _scalars_of(self, call: Node, as_host: TotalsAsInputs) -> ScalarRows:
        scalars = [a for a in call.arguments if a.extent in ("number", "tensor")]
        return self._host_rows([as_host(a) for a in scalars])

    def _host_rows(self, outputs: Sequence[Node]) -> ScalarRows:
        differing = [f"total {i}" for i, n in enumerate(self.totals) if n.operation != "global_sum"]
        return ScalarRows(outputs, self.inputs, len(self.totals), {*FACTS, *differing})

    def geometry(self, weight: Tensor, domain: str) -> Geometry:
        """How a tensor, or what is kept of it, is cut."""
        if not self.needs_matrix:
            return flat(weight.numel())
        return of_matrices(*as_matrix(weight.shape, self.rows_are_units), domain)


def kernel_for(program: Program, like: Update) -> Kernel:
    """The kernel for weights that are stored as one is, from what the program keeps if it is there.

    Args:
        program: of the weights.
        like: one of their updates.
    """
    storage = STORAGE[like.weight.dtype][0]
    # By the formats themselves: another may have been registered under the name since.
    key = (storage, like.weight_format, like.seed, *like.formats.items())
    if key not in program.kept:
        program.kept[key] = Kernel(program, storage, like.formats, like.weight_format, like.seed)
    kernel: Kernel = program.kept[key]
    return kernel
