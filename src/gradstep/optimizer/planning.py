"""What a step does, worked out and checked before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import compress, repeat
from operator import is_, is_not
from typing import Any

from torch import Tensor

from gradstep.backends import global_sums
from gradstep.backends.base import Run, UnreadValues
from gradstep.backends.desync import check_desync, mean_over
from gradstep.backends.dispatch import Plan, takes_plain
from gradstep.backends.owners import mesh_of, settle_holders
from gradstep.backends.update import AlikeUpdates, has_shape, is_matrix
from gradstep.optimizer.alike_groups import AlikeRun
from gradstep.optimizer.beginning import Begun
from gradstep.optimizer.cycled_momentum import CycledMomentum
from gradstep.optimizer.group_run import GroupRun, Planned, Traces
from gradstep.optimizer.known_groups import KnownGroups
from gradstep.optimizer.observer import Contents, OneByOne, StepObserver
from gradstep.optimizer.parameter_groups import GroupReader, as_float
from gradstep.optimizer.parameter_names import ParameterNames
from gradstep.optimizer.preparing import Preparation
from gradstep.optimizer.schedules import Scheduled, Schedules
from gradstep.optimizer.states import Beginnings, shared_states
from gradstep.rule.graph import Graph


class Planner:
    """Plans and writes the steps of an optimizer, and remembers each plan for the next step.

    Args:
        reader: reads the options of groups.
        engine: one of :func:`gradstep.backends.engines`.
        names: of the parameters.
        schedules: of the groups' numbers.

    Attributes:
        contents: the optimizer's groups and states, as they are by now.
        cycled: whether schedulers of torch's may put a ``momentum`` into the groups.
        observers: who looks on at each step, since an option asks for it.
        one_by_one: who has the weights of a step planned one by one; None: they are together.
        may_stop: whether a step may raise when some weights are written already.
        loss: of the present step; over several processes that split weights, the mean of theirs.
        scale: by which the present step divides the gradients; None: by none.
        found_inf: what the present step itself reads, to write nothing where it is not 0; None:
            it writes.
        leaves_verdict: whether the backends of the last step read that themselves.
        shared: the states that all parameters have together, in this step.
    """

    def __init__(
        self, reader: GroupReader, engine: str, names: ParameterNames, schedules: Schedules
    ) -> None:
        self.reader, self.rule, self.engine = reader, reader.rule, engine
        self.names, self.schedules = names, schedules
        self.contents = Contents()
        self.cycled = False
        self.observers: tuple[StepObserver, ...] = ()
        self.one_by_one: OneByOne | None = None
        self.may_stop = False
        self.loss = 0.0
        self.scale: Any = None
        self.found_inf: Tensor | None = None
        self.leaves_verdict = False
        self.shared: dict[str, Tensor] = {}
        self._asks_loss = "loss" in self.rule.inputs
        self._preparation = Preparation(self.rule, self.contents, names)
        followers = (names.follow, schedules.follow)
        self._known = KnownGroups(self.contents, reader, followers)
        self._traces = Traces(self.rule)
        self._entries: list[Any] = []
        self._said: set[str] = set()
        self._waits = False  # whether the rule sums over all parameters
        self._shared_in_all = False  # whether this step has put it into all entries
        self._begun: list[Begun] = []  # states that no step has used yet
        self._mesh: Any = None  # the processes that a step has to talk to

    def observe_options(self) -> None:
        """Have those look on whom the options ask for."""
        contents, momenta = self.contents, self.reader.momenta
        self.observers = (
            *([CycledMomentum(contents, momenta)] if self.cycled and momenta else []),
            *([Scheduled(self.schedules, contents)] if self.schedules else []),
        )

    def know_layouts(self, params: Iterable[Any]) -> None:
        """Take the parameters' layouts for those that their states have."""
        self._preparation.know_layouts(params)

    def graphs(self) -> Iterator[tuple[Tensor, Graph]]:
        """Every parameter of a known shape, with what the rule does with it."""
        for run in self._known.of_each():
            self._read(run)
            for p in filter(has_shape, run.params()):
                yield p, run.graphs[is_matrix(p)]

    # A step.

    def plan(
        self, loss: Any = None, scale: Any = None, found_inf: Tensor | None = None
    ) -> list[Run]:
        """All of a step that reads: check everything, and return what will write, in order.

        Args:
            loss: what the closure returned.
            scale: by which the gradients are to be divided.
            found_inf: where this is not 0, nothing is to be written. Runs that see to it themselves
                say so by ``skips``.

        Raises:
            TypeError, ValueError, RuntimeError: something does not fit, named.
        """
        if self._begun:
            self._begin_again()
        groups, self.scale, self.found_inf = self.contents.groups, scale, found_inf
        # Looking up each parameter's states costs more than seeing that none was exchanged.
        entries, known = self.contents.state.values(), self._entries
        if self.shared:
            self.shared, self._shared_in_all = {}, False
        if not len(self._known):  # after a checkpoint was loaded: which processes take part?
            for run in self._known.of_step(self._steps_by_elements):
                self._read(run)
        if len(self._known) > len(groups):  # groups have been taken out
            self._known.follow()
        if self._mesh is not None:
            self._check_desync()
        if self._asks_loss:
            self.loss = self._loss_of_all(loss)
        if len(entries) != len(known) or not all(map(is_, entries, known)):
            self.forget_entries()
        if self.one_by_one is not None:
            self._read_groups()
            if not self._waits:
                return list(self._plan_one_by_one(self.one_by_one))
            self.one_by_one.before_all()
        if len(groups) == 1:
            return self._plan_group(self._known[0]) or []
        runs: list[Run] = []
        for run in self._known.of_step(self._steps_by_elements):
            runs += self._plan_run(run)
        if self._waits:
            self._check_sums()
        return runs

    def read_all(self) -> None:
        """Read and check the options of every group, before single weights are planned.

        Raises:
            TypeError, ValueError: an option that is not allowed.
        """
        self.scale = self.found_inf = None
        self._read_groups()

    def _read_groups(self) -> None:
        for run in self._known.of_each():
            self._read_if_changed(run)

    def _plan_one_by_one(self, between: OneByOne) -> Iterator[Run]:
        weights = [
            (number, place, p)
            for number, group in enumerate(self.contents.groups)
            for place, p in enumerate(group["params"])
            if p.grad is not None
        ]
        alone = [each for each in weights if between.is_alone(each[2])]
        if len(alone) < len(weights):
            gradients = [p.grad for _, _, p in alone]
            try:  # the others as ever: those without a gradient sit a step out
                for _, _, p in alone:
                    p.grad = None
                for run in self._known.of_step(self._steps_by_elements):
                    yield from self._plan_run(run)
            finally:
                for (_, _, p), gradient in zip(alone, gradients, strict=True):
                    p.grad = gradient
        for number, place, p in between.in_order(alone):
            yield partial(between.before, p)
            yield from self.plan_weight(number, place)
            yield partial(between.after, p)

    def plan_weight(self, group: int, place: int) -> list[Run]:
        """As :meth:`plan`, for one weight with a gradient, whatever the others have.

        Args:
            group: the place of its group.
            place: its own place in the group.

        Raises:
            TypeError, ValueError, RuntimeError: something does not fit, named; or a rule that sums
                over all weights.
        """
        if self._begun:
            self._begin_again()
        whole = self._known[group]
        self._read_if_changed(whole)
        run = self._known.of_weight(whole, group, place)
        (p,) = run.params()
        if self._waits:
            raise ValueError(
                f"{self.rule.name} sums over all weights by now, and {self.name_of(p)} cannot make "
                "its step alone. Make ordinary steps."
            )
        if self._mesh is not None:
            check_desync(self._mesh, [f"{self.name_of(p)} {tuple(p.shape)}"])
        return self._plan_params(run) or []

    def write(self, runs: Sequence[Run]) -> None:
        """Make the step that :meth:`plan` has planned."""
        if self._waits or self._mesh is not None:
            global_sums.run(runs)
        else:
            for each in runs:
                each()

    def begin_states(self) -> None:
        """Let the states of every parameter with a gradient begin, without a step.

        They are there to be saved, or to be loaded into. The first step begins them anew, as if
        nothing had been, unless somebody has written into them.
        """
        entries: list[tuple[Tensor, dict[str, Any]]] = []
        known: dict[str, Tensor] = {}
        for run in self._known.of_each():
            self._read(run)
            known |= shared_states(self.rule, (), run.numbers, known)
            beginnings = Beginnings(self.rule, run.group, run.numbers, known)
            for p in run.group["params"]:
                if p.grad is not None:
                    entry: dict[str, Any] = {}
                    beginnings.begin(p, entry, p.grad, self.namer(p))
                    if entry:
                        entries.append((p, entry))
        self.contents.state.update(entries)
        self._begun = [Begun(p, entry) for p, entry in entries]

    def _begin_again(self) -> None:
        """Drop states that were only begun."""
        begun, self._begun = self._begun, []
        if all(each.is_untouched(self.contents.state) for each in begun):
            for each in begun:
                del self.contents.state[each.parameter]

    def forget_entries(self) -> None:
        """States have come, gone or been exchanged: each plan has to look its own up again."""
        self._entries = list(self.contents.state.values())
        for run in self._known.all():
            for planned in run.plans.values():
                planned.entries = None
        params = (p for group in self.contents.groups for p in group["params"])
        self._preparation.forget_gone(2 * len(self._entries) + 64, params)

    def _check_desync(self) -> None:
        named = [(name, p) for name, p in self.named() if p.grad is not None]
        check_desync(self._mesh, [f"{name} {tuple(p.shape)}" for name, p in named])

    def _loss_of_all(self, given: Any) -> float:
        """The loss of the step; over several processes that split weights, the mean of theirs."""
        loss = None if given is None else as_float(given)
        if loss is None:
            groups = self.contents.groups
            gradients = [p.grad for g in groups for p in g["params"] if p.grad is not None]
            if gradients:
                raise ValueError(
                    f"{self.rule.name} asks for the loss of the step, and step() got no closure "
                    "that returns it. After backward() write: optimizer.step(lambda: loss)"
                )
            loss = 0.0
        return loss if self._mesh is None else mean_over(self._mesh, loss)

    def _check_sums(self) -> None:
        runs = [run for run in self._known.of_groups() if run.graphs]
        graphs = [graph for run in runs for graph in run.graphs.values()]
        for name in {name: None for graph in graphs for name in graph.alike}:
            place = self.reader.number_names.index(name)
            found = sorted({run.values.numbers[place] for run in runs})
            if len(found) > 1:
                raise ValueError(
                    f"{self.rule.name} has one {', '.join(graphs[0].shared)} for all parameters, "
                    f"made with {name}, and its groups have {name}={found[0]} and {found[1]}. Give "
                    "all groups the same."
                )
        counts = {sum(n.operation == "global_sum" for n in graph.nodes) for graph in graphs}
        if len(counts) > 1:
            raise ValueError(
                f"with the options that its groups have, {self.rule.name} sums over all parameters "
                f"{' or '.join(map(str, sorted(counts)))} times, and it must be as often for each. "
                "Give the groups the same flags."
            )

    def _steps_by_elements(self, run: GroupRun) -> bool:
        """Whether it makes no difference to a group's weights which others a kernel gets."""
        self._read(run)
        return takes_plain(self.engine, run.programs) is not None

    def _plan_run(self, run: GroupRun) -> list[Run]:
        if not isinstance(run, AlikeRun):
            return self._plan_group(run) or []
        planned = None if run.misses > 2 else self._plan_group(run)
        if planned is not None:
            return planned
        # Something is not as it mostly is: each group by itself, with care.
        run.misses += 1
        run.forget_steps()
        return [each for i in run.places for each in self._plan_group(self._known[i]) or []]

    def _read(self, run: GroupRun) -> None:
        """Read a group's numbers and flags, check them, and trace the rule if flags are new."""
        if not run.read(self.reader, self._traces, self.loss, self.scale, self.found_inf):
            return
        self._waits = self._waits or any(g.sums_over_all for g in run.graphs.values())
        self.may_stop = self.may_stop or any(g.calls_opaque for g in run.graphs.values())
        if not all(g.is_elementwise for g in run.graphs.values()):
            meshes = map(mesh_of, run.params())
            self._mesh = next((mesh for mesh in meshes if mesh is not None), self._mesh)
            if self._mesh is not None and self.rule.keeps_own_shapes:
                settle_holders(list(run.params()))

    def _plan_group(self, run: GroupRun) -> list[Run] | None:
        """The step of a group; None for several together that have to be taken one by one."""
        self._read_if_changed(run)
        return self._plan_params(run)

    def _read_if_changed(self, run: GroupRun) -> None:
        group = run.group
        try:
            # Equal floats need no second look; tensors and lists may change inside.
            raw, known = self.reader.read_options(group), run.raw
            unchanged = known is not None and raw == known and type(raw[0]) is type(known[0])
            unchanged = unchanged and (run.free is None or run.free.unchanged())
        except Exception:
            unchanged = False
        verdict = self.found_inf is not None or isinstance(run.values, UnreadValues)
        if not unchanged or verdict or self.scale is not None:
            self._read(run)
        elif self._asks_loss:
            run.values = self.reader.with_loss(run.values, self.loss, run.group)
            run.numbers = run.values.given

    def _plan_params(self, run: GroupRun) -> list[Run] | None:
        """The step of those parameters of a group, or of a weight alone, that have a gradient."""
        params = run.params()
        gradients = [p.grad for p in params]
        mask: tuple[bool, ...] = ()
        if any(map(is_, gradients, repeat(None))):
            mask = tuple(map(is_not, gradients, repeat(None)))
            params, gradients = list(compress(params, mask)), list(compress(gradients, mask))
        if not params:
            return []
        planned = run.plans.get(mask)
        if planned is None or list(map(id, params)) != planned.ids:
            planned = self._pick(run, mask, params) if mask else None
        if planned is not None:
            if planned.entries is None:
                state = self.contents.state  # to ask it is to hash each parameter, in Python
                planned.entries = list(map(state.get, params)) if state else [None] * len(params)
            runs = planned.plan.again(params, gradients, planned.entries, run.values)
            if runs is not None:
                return runs
        return self._plan_anew(run, mask, params, gradients)

    def _pick(
        self, run: GroupRun, mask: tuple[bool, ...], params: Sequence[Tensor]
    ) -> Planned | None:
        """A plan for parameters that were all checked before, if in steps with others.

        Where gradients come and go, as in a mixture of experts, hardly a mask comes again.
        """
        if not run.rows:
            return None
        ids = list(map(id, params))
        rows = list(map(run.rows.get, ids))
        if None in rows or len(set(ids)) < len(ids):
            return None
        plan = self._empty_plan(run)
        plan.pick(rows, params)
        if len(run.plans) > 16:  # masks that will hardly come back
            run.plans.clear()
        run.plans[mask] = planned = Planned(ids, plan)
        return planned

    def _empty_plan(self, run: GroupRun) -> Plan:
        return Plan(run.programs, self.engine)

    def _plan_anew(
        self,
        run: GroupRun,
        mask: tuple[bool, ...],
        params: Sequence[Tensor],
        gradients: Sequence[Tensor],
    ) -> list[Run] | None:
        group, together = run.group, isinstance(run, AlikeRun)
        if not {d > 1 for d in set(map(Tensor.dim, params))} <= set(run.graphs):
            self._read(run)  # the group has gained the first vector, or the first matrix
        if "param_names" in group:
            self.names.follow(run.members if isinstance(run, AlikeRun) else (group,), alone=False)
        if len(set(map(id, params))) != len(params):
            if together:
                return None
            places = {id(p): i for i, p in enumerate(params)}
            twice = next(p for i, p in enumerate(params) if places[id(p)] != i)
            raise ValueError(
                f"{self.name_of(twice)} stands twice in one parameter group, and would be "
                "updated twice. Give each parameter once."
            )
        shared = shared_states(self.rule, self.contents.state.values(), run.numbers, self.shared)
        self.shared |= shared
        beginnings = Beginnings(self.rule, group, run.numbers, shared)
        names = {kind: [n for n, _, _ in graph.states] for kind, graph in run.graphs.items()}
        plain = self._preparation.plain_entries(beginnings, names, params, gradients)
        if plain is None and together:
            return None
        prepared, begun = plain or self._preparation.entries(beginnings, params, gradients)
        if self.one_by_one is not None:
            prepared = list(map(self.one_by_one.stored, params, prepared))
        updates = self._preparation.updates(
            run.numbers,
            beginnings.numbers,
            names,
            params,
            gradients,
            prepared,
            begun,
            plain is not None,
        )
        plan = run.plans[mask].plan if mask in run.plans else None
        if plan is None or plan.programs is not run.programs:
            plan = self._empty_plan(run)
        # A differentiable step puts new tensors into the entries that the optimizer will hold.
        entries: Sequence[Any] = prepared
        if self.contents.state:
            get = self.contents.state.get
            entries = [get(p, entry) for p, entry in zip(params, prepared, strict=True)]
        if isinstance(updates, AlikeUpdates):
            updates.entries = prepared
        else:
            for update, held in zip(updates, entries, strict=True):
                update.entry = held
        runs = plan.anew(updates, run.values, self._said, bool(mask), bool(plain))
        # torch's own operations may run out of memory, and miss for some types.
        backends = set(plan.backends)
        self.may_stop = self.may_stop or any(backend.may_stop for backend in backends)
        self.leaves_verdict = all(backend.may_skip for backend in backends)
        if len(run.plans) > 16:  # masks that will hardly come back
            run.plans.clear()

        def install() -> None:
            if any(prepared) or any(entries):
                for p, entry, held in zip(params, prepared, entries, strict=True):
                    if held is not entry:
                        held.update(entry)
                    if held:
                        self.contents.state[p] = held
                self.know_layouts([p for p, held in zip(params, entries, strict=True) if held])
            if shared and not self._shared_in_all:
                for entry in self.contents.state.values():
                    if isinstance(entry, dict):  # also those that sit this step out
                        entry.update({n: t for n, t in shared.items() if n in entry})
                self._shared_in_all = True
            ids = list(map(id, params))
            run.plans[mask] = Planned(ids, plan)
            run.remember(ids, plan)
            if isinstance(run, AlikeRun):
                run.misses = 0

        return [install, *runs]

    def engines_used(self) -> dict[str, str]:
        """The engine that updated each parameter at its last step: name -> engine."""
        used: dict[int, str] = {}
        for run in self._known.all():
            used |= run.engines
        return {name: used[id(p)] for name, p in self.named() if id(p) in used}

    # Names.

    def name_of(self, p: Tensor) -> str:
        """A parameter's name in the model if the optimizer was given names, else its place."""
        return self.names.of(self.contents.groups, p)

    def namer(self, p: Tensor) -> Callable[[], str]:
        """What gives a parameter's name when a message needs it."""
        return self.names.namer(self.contents, p)

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter with its name."""
        return self.names.all(self.contents.groups)
