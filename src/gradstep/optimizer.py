"""``gradstep.Optimizer``: a torch.optim.Optimizer that runs any rule."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain as each_of
from itertools import repeat
from operator import is_, itemgetter
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import _profiler_enabled
from torch.compiler import is_compiling as _is_compiling
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from gradstep.checkpoint import check_outline, checked_state
from gradstep.engine import together
from gradstep.engine.agreement import check_agreement, mean_over
from gradstep.engine.fit import is_sharded
from gradstep.engine.plan import ENGINES, Launch, Plan, check_dimensions
from gradstep.engine.update import Update, describe, is_matrix, layout
from gradstep.rule.definition import Rule, chain
from gradstep.rule.graph import Graph
from gradstep.rule.hyperparameter import Interval, check_number, is_number
from gradstep.rule.schedule import as_schedule, at_start
from gradstep.rule.trace import trace
from gradstep.schedules import Schedules
from gradstep.states import (
    begin_states,
    follow_layout,
    number_states,
    shared_states,
    unlike_weight,
)

#: Where a rule's hyperparameter stands in a parameter group: under its own name, unless said
#: otherwise here, as ``{"beta1": ("betas", 0)}``.
Places = Mapping[str, tuple[str, int]]


@dataclass
class Planned:
    """A plan, and the parameters that it is for.

    Attributes:
        ids: of the parameters. The plan keeps them alive, so no other gets their ids.
        entries: their states' mappings.
        seen: the list of all mappings in which these were looked up.
        plan: the plan.
    """

    ids: list[int]
    entries: list[Any]
    seen: list[Any]
    plan: Plan


class GroupRun:
    """What is known of one parameter group from its last step: numbers, graph and plans."""

    def __init__(self, group: dict[str, Any]) -> None:
        self.group = group
        self.raw: tuple[Any, ...] | None = None
        self.numbers: dict[str, Any] = {}
        self.values: tuple[float, ...] = ()
        self.flags: list[Any] | None = None
        #: Whether a parameter has rows and columns -> its graph; one for both if nothing differs.
        self.graphs: dict[bool, Graph] = {}
        #: Which parameters had a gradient, () for all -> the plan for those.
        self.plans: dict[tuple[bool, ...], Planned] = {}
        self.kernels: dict[Any, Any] = {}


class Optimizer(torch.optim.Optimizer):
    """Updates weights with their gradients, by any rule or chain of rules.

    A :class:`torch.optim.Optimizer` in every way: parameter groups, hooks, schedulers,
    checkpoints. A step is all or nothing: everything is checked before the first write.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts that define parameter groups, as
            torch.optim takes them. Floating-point or complex, of any shape.
        rule: what :func:`gradstep.rule` or :func:`gradstep.chain` returned.
        lr: the learning rate, a number of 0 or more, or a tensor of one element; or, as every
            number of a rule, a schedule or a function of the steps made so far
            (``gradstep.schedule``). Default: the rule's own, which is 1e-3 where it names none.
        engine: ``"fused"`` is one generated kernel a group, for dense tensors on the CPU;
            ``"eager"`` runs the rule as it is written, anywhere; ``"compile"`` hands it to
            torch.compile; ``"auto"``, the default, takes the fused engine on the CPU and
            torch.compile elsewhere. What an engine cannot do is done eagerly, and logged once.
        maximize: climb instead of descend. Default: False.
        differentiable: let autograd record the step. Default: False.
        hyperparameters: other values than the rule's defaults, by name.

    Raises:
        TypeError: no rule, no tensors, an unknown hyperparameter, or one of the wrong type.
        ValueError: no parameters, one parameter in two groups, a hyperparameter out of range, an
            unknown engine.
        RuleError: a rule that cannot be traced, with its line and what to write instead.

    Example::

        @gradstep.rule
        def heavy_ball(g, velocity, *, momentum=0.9):
            velocity = momentum * velocity + g
            return velocity, velocity

        optimizer = gradstep.Optimizer(model.parameters(), heavy_ball, lr=0.1)
    """

    _places: ClassVar[Places] = {}
    #: Whether states exist from construction on (as in torch's Adagrad) or from the first step.
    _states_at_construction = False

    def __init__(
        self,
        params: Any,
        rule: Rule,
        lr: float | Tensor | None = None,
        *,
        engine: str = "auto",
        maximize: bool = False,
        differentiable: bool = False,
        **hyperparameters: Any,
    ) -> None:
        if not isinstance(rule, Rule):
            found = getattr(rule, "__name__", repr(rule))
            raise TypeError(
                f"Optimizer takes a rule; got {found}. Put @gradstep.rule above the function."
            )
        if hyperparameters:
            rule = rule(**hyperparameters)
        for taken in ("params", "lr", "maximize", "differentiable", "param_names"):
            if taken in rule.hyperparameters:
                raise TypeError(
                    f"rule {rule.name}: {taken} means something else in a group. Rename it."
                )
        defaults = {
            "lr": rule.lr if lr is None else lr,
            **rule.hyperparameters,
            "maximize": maximize,
            "differentiable": differentiable,
        }
        self._begin(params, rule, defaults, engine)

    def _begin(self, params: Any, rule: Rule, defaults: dict[str, Any], engine: str) -> None:
        """Set up; for subclasses with an argument list of their own."""
        if engine not in ENGINES:
            raise ValueError(f"Invalid engine: {engine!r}; choose one of {', '.join(ENGINES)}")
        numbers = {n: at_start(v) for n, v in rule.hyperparameters.items()}
        scheduled = any(numbers[n] is not v for n, v in rule.hyperparameters.items())
        self.rule = replace(rule, hyperparameters=numbers) if scheduled else rule
        self.engine = engine
        self._schedules = Schedules(defaults)
        defaults = {n: at_start(as_schedule(v)) for n, v in defaults.items()}
        # As in torch's own: GradScaler then leaves scale and verdict to the step, which has both in
        # its one pass. Gradients stay scaled; torch's fused step writes over them.
        if defaults.get("fused"):
            self._step_supports_amp_scaling = True
        self._prepare_reading(defaults)
        self.check_group(defaults)
        super().__init__(params, defaults)
        for run in map(self._run, range(len(self.param_groups))):
            self._resolve(run)  # a rule that cannot be traced is found here
            for p in run.group["params"]:
                check_dimensions(rule, run.graphs[is_matrix(p)], p, self._namer(p))

    _given: Mapping[str, Any] | None = None

    def _prepare_reading(self, defaults: Mapping[str, Any]) -> None:
        rule = self.rule
        keys = ["lr", *(self._places.get(n, (n,))[0] for n in rule.hyperparameters)]
        keys += [flag for flag in ("maximize", "differentiable") if flag in defaults]
        self.group_keys = tuple(dict.fromkeys(keys))
        self._read_group = itemgetter(*self.group_keys)
        numeric = [n for n, d in rule.hyperparameters.items() if is_number(d)]
        self._number_names = ("lr", *numeric, "grad_scale", *["loss"] * ("loss" in rule.inputs))
        self._flag_names = tuple(n for n in rule.hyperparameters if n not in numeric)
        self._runs: dict[int, GroupRun] = {}
        self._layouts: dict[Tensor, Any] = {}
        self._entries: list[Any] = []
        self._said: set[str] = set()
        self._waits = False  # whether the rule sums over all parameters
        self._loss: float | None = None  # what the closure of the present step returned
        self._loss_for_all = 0.0  # the same, over all processes
        self._shared: dict[str, Tensor] = {}  # what all parameters have together, in this step
        self._mesh: Any = None  # the processes that a step has to talk to

    # The step.

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every weight that has a gradient.

        Args:
            closure: computes the loss anew and returns it; called first, with gradients enabled.

        Returns:
            the closure's loss, or None.

        Raises:
            TypeError, ValueError, RuntimeError: a gradient, state or hyperparameter that does not
                fit, named. Weights and states are as they were.
        """
        if _is_compiling():
            return self._step_outside_of_graph(closure)
        if _profiler_enabled():
            return self._step_with_hooks(*(() if closure is None else (closure,)))
        if (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
        ):
            return self._step_between_hooks(closure)
        return self._step(closure)

    # torch wraps every step() that has no such mark, in a profiler's record that costs 7 µs a step
    # even while no profiler runs, and more in a cold cache. The wrapper is used while one runs.
    step.hooked = True  # type: ignore[attr-defined]

    def _step_between_hooks(self, closure: Callable[[], Any] | None) -> Any:
        """What torch's wrapper does, without the profiler's record."""
        arguments: Any = (self,) if closure is None else (self, closure)
        keywords: Any = {}
        hooks = each_of(
            _global_optimizer_pre_hooks.values(), self._optimizer_step_pre_hooks.values()
        )
        for before in hooks:
            changed = before(self, arguments, keywords)
            if changed is not None:
                if not (isinstance(changed, tuple) and len(changed) == 2):
                    raise RuntimeError(
                        f"{Optimizer._step} must return None or a tuple of (new_args, new_kwargs), "
                        f"but got {changed}."
                    )
                arguments, keywords = changed
        loss = Optimizer._step(*arguments, **keywords)
        self._optimizer_step_code()
        hooks = each_of(
            self._optimizer_step_post_hooks.values(), _global_optimizer_post_hooks.values()
        )
        for after in hooks:
            after(self, arguments, keywords)
        return loss

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # torch.amp.GradScaler leaves these two here if it was told that the step knows them.
        found_inf = self.__dict__.get("found_inf")
        if found_inf is not None and float(found_inf):
            return loss
        self.launch(self.prepare(loss))
        return loss

    def prepare(self, loss: Any) -> list[Launch]:
        """:meth:`plan`, for a step whose closure returned this loss, or None."""
        if "loss" not in self.rule.inputs:
            return self.plan()
        self._loss = None if loss is None else _number(loss)
        try:
            return self.plan()
        finally:
            self._loss = None

    def launch(self, launches: Sequence[Launch]) -> None:
        """Make the step that :meth:`prepare` has prepared."""
        if self._waits:
            together.run(launches)
        else:
            for each in launches:
                each()
        if self._schedules:
            self._schedules.advance(self.param_groups)

    def plan(self) -> list[Launch]:
        """All of a step that reads: check everything, and return what will write, in order.

        For measuring; :meth:`step` calls this and then each of the list. Raises what it raises.
        """
        if self._schedules:
            self._schedules.set_numbers(self.param_groups)
        # Looking up each parameter's states costs more than seeing that none was exchanged.
        entries, known = self.state.values(), self._entries
        self._shared = {}
        if not self._runs:  # after a checkpoint was loaded: which processes take part?
            for run in map(self._run, range(len(self.param_groups))):
                self._resolve(run)
        if self._mesh is not None:
            self._check_agreement()
        if "loss" in self._number_names:
            self._loss_for_all = self._loss_given()
        same_states = len(entries) == len(known) and all(map(is_, entries, known))
        if len(self.param_groups) == 1:
            return self._plan_group(self._run(0), same_states)
        launches: list[Launch] = []
        for index in range(len(self.param_groups)):
            launches += self._plan_group(self._run(index), same_states)
        if self._waits:
            self._check_sums()
        return launches

    def _check_agreement(self) -> None:
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        check_agreement(self._mesh, [f"{self.name_of(p)} {tuple(p.shape)}" for p in params])

    def _loss_given(self) -> float:
        """The loss of the step; over several processes that split weights, the mean of theirs."""
        loss = self._loss
        if loss is None:
            groups = self.param_groups
            gradients = [p.grad for g in groups for p in g["params"] if p.grad is not None]
            # torch.distributed.checkpoint makes such a step, for the states to be there.
            if any(_number(g["lr"]) for g in groups) or any(bool(g.any()) for g in gradients):
                raise ValueError(
                    f"{self.rule.name} asks for the loss of the step, and step() got no closure "
                    "that returns it. After backward() write: optimizer.step(lambda: loss)"
                )
            loss = 0.0
        return loss if self._mesh is None else mean_over(self._mesh, loss)

    def _check_sums(self) -> None:
        runs = [run for run in self._runs.values() if run.graphs]
        graphs = [graph for run in runs for graph in run.graphs.values()]
        for name in {name: None for graph in graphs for name in graph.alike}:
            place = self._number_names.index(name)
            found = sorted({run.values[place] for run in runs})
            if len(found) > 1:
                raise ValueError(
                    f"{self.rule.name} has one {', '.join(graphs[0].shared)} for all parameters, "
                    f"made with {name}, and its groups have {name}={found[0]} and {found[1]}. Give "
                    "all groups the same."
                )
        counts = {sum(n.operation == "global_sum" for n in graph.nodes()) for graph in graphs}
        if len(counts) > 1:
            raise ValueError(
                f"with the options that its groups have, {self.rule.name} sums over all parameters "
                f"{' or '.join(map(str, sorted(counts)))} times, and it must be as often for each. "
                "Give the groups the same flags."
            )

    # torch.compile leaves the step as it is: it is compiled already. (The mark is asked for only
    # while torch.compile runs, since it imports torch._dynamo, which takes a second.)
    @torch._disable_dynamo
    def _step_outside_of_graph(self, closure: Callable[[], Any] | None = None) -> Any:
        return self._step_with_hooks(*(() if closure is None else (closure,)))

    _step_with_hooks = torch.optim.Optimizer.profile_hook_step(_step)

    def _run(self, index: int) -> GroupRun:
        group = self.param_groups[index]
        run = self._runs.get(index)
        if run is None or run.group is not group:
            run = self._runs[index] = GroupRun(group)
        return run

    def _plan_group(self, run: GroupRun, same_states: bool) -> list[Launch]:
        group = run.group
        try:
            # Equal floats need no second look; tensors and lists may change inside.
            raw, known = self._read_group(group), run.raw
            unchanged = known is not None and raw == known and type(raw[0]) is type(known[0])
        except Exception:
            unchanged = False
        if not unchanged or "grad_scale" in self.__dict__ or "loss" in self._number_names:
            self._resolve(run)
        params = group["params"]
        gradients = [p.grad for p in params]
        mask: tuple[bool, ...] = ()
        if any(map(is_, gradients, repeat(None))):
            mask = tuple([g is not None for g in gradients])
            params = [p for p, has in zip(params, mask, strict=True) if has]
            gradients = [g for g in gradients if g is not None]
        if not params:
            return []
        planned = run.plans.get(mask)
        if planned is not None and list(map(id, params)) == planned.ids:
            if not (same_states and planned.seen is self._entries):
                planned.entries = list(map(self.state.get, params))
                planned.seen = self._entries if same_states else []
            launches = planned.plan.again(gradients, planned.entries, run.values)
            if launches is not None:
                return launches
        return self._plan_anew(run, mask, params, gradients)

    def _plan_anew(
        self,
        run: GroupRun,
        mask: tuple[bool, ...],
        params: Sequence[Tensor],
        gradients: Sequence[Tensor],
    ) -> list[Launch]:
        group = run.group
        if not {is_matrix(p) for p in params} <= set(run.graphs):
            self._resolve(run)  # the group has gained the first vector, or the first matrix
        if len({id(p) for p in params}) != len(params):
            twice = next(i for i, p in enumerate(params) if any(p is q for q in params[:i]))
            raise ValueError(
                f"{self.name_of(params[twice])} stands twice in one parameter group, and would be "
                "updated twice. Give each parameter once."
            )
        shared = shared_states(self.rule, self.state.values(), run.numbers, self._shared)
        self._shared |= shared
        updates, prepared = [], []
        for p, gradient in zip(params, gradients, strict=True):
            held = self.state.get(p, {})
            if not isinstance(held, Mapping):
                raise TypeError(
                    f"optimizer.state of {self.name_of(p)} is a {type(held).__name__}, not a dict "
                    "of states by name. Load a checkpoint, or delete it to start anew."
                )
            entry = dict(held)
            name = self._namer(p)
            first = begin_states(self.rule, p, entry, group, run.numbers, gradient, name, shared)
            follow_layout(self.rule, p, entry, self._layouts.get(p))
            states = {n: entry[n] for n, _, _ in run.graphs[is_matrix(p)].states}
            numbers = {n: entry[n] for n in number_states(self.rule, run.numbers)}
            unlike = unlike_weight(self.rule, p, states, run.numbers)
            update = Update(p, gradient, states, numbers, first, name, *unlike)
            updates.append(update)
            prepared.append(entry)
        plan = run.plans[mask].plan if mask in run.plans else None
        if plan is None or plan.graphs is not run.graphs:
            plan = Plan(
                self.rule,
                run.graphs,
                self.engine,
                self._number_names,
                bool(group.get("maximize", False)),
                bool(group.get("differentiable", False)),
                run.kernels,
            )
        # A differentiable step puts new tensors into the entries that the optimizer will hold.
        entries = [self.state.get(p, e) for p, e in zip(params, prepared, strict=True)]
        launches = plan.anew(updates, run.values, run.numbers, entries, self._said)
        if len(run.plans) > 16:  # patterns of missing gradients that will hardly come back
            run.plans.clear()

        def install() -> None:
            for p, entry, held in zip(params, prepared, entries, strict=True):
                held.update(entry)
                if held:
                    self.state[p] = held
                self._layouts[p] = layout(p) if p.layout is torch.strided else None
            for entry in self.state.values() if shared else ():
                if isinstance(entry, dict):  # also those that sit this step out
                    entry.update({n: t for n, t in shared.items() if n in entry})
            self._entries = list(self.state.values())
            now = list(map(self.state.get, params))
            run.plans[mask] = Planned(list(map(id, params)), now, self._entries, plan)

        return [install, *launches]

    # Numbers.

    def hyperparameter(self, group: Mapping[str, Any], name: str) -> Any:
        """A hyperparameter of the rule, from where it stands in a group."""
        place = self._places.get(name)
        if place is None:
            return group[name]
        key, index = place
        pair = group[key]
        wanted = 1 + max(i for k, i in self._places.values() if k == key)
        if not isinstance(pair, tuple | list) or len(pair) != wanted:
            raise ValueError(f"Invalid {key}: {pair!r}; expected {wanted} numbers")
        return pair[index]

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Raise unless every option of a group is allowed.

        Raises:
            TypeError: of the wrong type.
            ValueError: nan, or out of range.
        """
        check_number("lr", group["lr"], Interval(0.0))
        for name in self.rule.hyperparameters:
            spoken = None
            if name in self._places:
                key, index = self._places[name]
                spoken = f"{key.removesuffix('s')} parameter at index {index}"
            self.rule.check(name, self.hyperparameter(group, name), spoken)
        for flag in ("maximize", "differentiable"):
            if not isinstance(group.get(flag, False), bool):
                raise TypeError(f"Invalid {flag} value: {group[flag]!r}; expected True or False")

    def _resolve(self, run: GroupRun) -> None:
        """Read a group's numbers and flags, check them, and trace the rule if flags are new."""
        group = run.group
        self.check_group(group)
        raw = self._read_group(group)
        numbers = {n: self.hyperparameter(group, n) for n in self.rule.hyperparameters}
        flags = [numbers[n] for n in self._flag_names]
        flags += [group.get("maximize", False), group.get("differentiable", False)]
        floats = {
            n: _number(v)
            for n, v in (("lr", group["lr"]), *numbers.items())
            if n in self._number_names
        }
        scale = self.__dict__.get("grad_scale")
        flags.append(scale is not None)
        plain = {**numbers, **floats}
        if run.flags != flags or not all(g.holds_for(plain) for g in run.graphs.values()):
            run.graphs = {}
        kinds = {is_matrix(p) for p in group["params"]} or {True}
        if not self.rule.tells_vectors_apart:
            kinds = {True, False}
        if not kinds <= set(run.graphs):
            maximize = bool(group.get("maximize", False))
            if self.rule.tells_vectors_apart:
                run.graphs = {
                    k: trace(self.rule, plain, maximize, k, scale is not None) for k in kinds
                }
            else:
                graph = trace(self.rule, plain, maximize, scaled=scale is not None)
                run.graphs = dict.fromkeys(kinds, graph)
            run.flags = flags
            self._waits = self._waits or any(g.sums_over_all() for g in run.graphs.values())
            if not all(g.is_elementwise() for g in run.graphs.values()):
                shards = (p for p in group["params"] if is_sharded(p))
                self._mesh = next((p.device_mesh for p in shards), self._mesh)
            run.plans, run.kernels = {}, {}
        run.numbers = {n: _as_given(v) for n, v in (("lr", group["lr"]), *numbers.items())}
        run.numbers["grad_scale"] = floats["grad_scale"] = 1.0 if scale is None else float(scale)
        if "loss" in self._number_names:
            sign = -1.0 if group.get("maximize") else 1.0  # what is climbed is its negative
            run.numbers["loss"] = floats["loss"] = sign * self._loss_for_all
        run.values = tuple(floats[n] for n in self._number_names)
        settled = all(isinstance(v, int | float | str | bool | tuple | None) for v in raw)
        parts = [v for t in raw if isinstance(t, tuple) for v in t]
        inside = all(isinstance(v, int | float | None) for v in parts)
        run.raw = raw if settled and inside and scale is None else None

    # Parameters and groups.

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with options of its own.

        Args:
            param_group: a dict with ``"params"`` and any options that differ from the defaults.

        Raises:
            TypeError: integer parameters, or an option of the wrong type.
            ValueError: a parameter without data (on the meta device) or in two groups, or an
                option out of range. The optimizer is as it was.
        """
        before = [p for group in self.param_groups for p in group["params"]]
        own = {n: v for n, v in param_group.items() if n in self.group_keys}
        found = {n: as_schedule(v) for n, v in own.items()}
        numbers = {n: at_start(v) for n, v in found.items()}
        if any(
            numbers[n] is not v for n, v in own.items()
        ):  # torch keeps the very dict that it was given
            param_group = {**param_group, **numbers}
        try:
            super().add_param_group(param_group)
        except ValueError as error:
            given = param_group["params"] if isinstance(param_group["params"], list) else []
            twice = [self.name_of(p) for p in before if any(p is q for q in given)]
            if twice and "more than one" in str(error):
                raise ValueError(f"{error}: {', '.join(twice)}. Give each once.") from None
            raise
        group = self.param_groups[-1]
        try:
            for p in group["params"]:
                name = self._namer(p)
                if p.device.type == "meta":
                    raise ValueError(
                        f"{name()} is on the meta device and has no data to update. Materialise it "
                        "(module.to_empty(device=…)) before the optimizer is built."
                    )
                if not (p.is_floating_point() or p.is_complex()):
                    raise TypeError(
                        f"{name()} holds {describe(p)}; only floating-point and complex tensors "
                        "can be optimized. Leave it out."
                    )
            self.check_group(group)
        except Exception:
            self.param_groups.pop()
            raise
        self._schedules.add_group(group, found)
        if self._states_at_construction:
            numbers = {n: self.hyperparameter(group, n) for n in self.rule.hyperparameters}
            numbers["lr"] = group["lr"]
            for p in group["params"]:
                begin_states(self.rule, p, self.state[p], group, numbers, None, self._namer(p))

    def extend(self, stage: Rule) -> None:
        """Put a stage behind the rule, with its numbers in the defaults and in every group.

        Raises:
            ValueError: steps have been made already, which would have been other ones with it; or
                the rule has a hyperparameter of the same name.
            RuleError: a stage that cannot stand behind this rule. The optimizer is as it was.
        """
        if self.state:
            raise ValueError(
                f"{stage.name} cannot be added behind {self.rule.name} any more: the optimizer has "
                "states already. Add it before the first step, and before a checkpoint is loaded."
            )
        taken = [n for n in stage.hyperparameters if n in self.defaults or n in self._places]
        taken += [n for n in stage.states if n in self.rule.states]
        if taken:
            raise ValueError(
                f"{self.rule.name} has its own {taken[0]!r}: is {stage.name} part of it already?"
            )
        rule, whole = self.rule, chain(self.rule, stage)
        values = {n: v for n, v in self.defaults.items() if n in rule.hyperparameters}
        trace(whole, {**whole.hyperparameters, **values, "lr": 0.0})
        self.rule = whole
        for number, group in enumerate((*self.param_groups, self.defaults)):
            group.update({n: at_start(v) for n, v in stage.hyperparameters.items()})
            if group is not self.defaults:
                self._schedules.add_to_group(number, group, stage.hyperparameters)
        self.begin_anew()

    def engines_used(self) -> dict[str, str]:
        """The engine that updated each parameter at its last step: name -> engine."""
        by_id = {id(p): p for group in self.param_groups for p in group["params"]}
        return {
            self.name_of(by_id[key]): name
            for run in self._runs.values()
            for planned in run.plans.values()
            for key, name in zip(planned.ids, planned.plan.engines, strict=True)
            if key in by_id
        }

    def _namer(self, p: Tensor) -> Callable[[], str]:
        # Plans keep this. With the optimizer itself in it, that and its states would be freed only
        # when Python next looks for cycles.
        own = weakref.ref(self)

        def name() -> str:
            optimizer = own()
            return describe(p) if optimizer is None else optimizer.name_of(p)

        return name

    def name_of(self, p: Tensor) -> str:
        """The parameter's name in the model if the optimizer was given names, else its place."""
        for number, group in enumerate(self.param_groups):
            for position, q in enumerate(group["params"]):
                if q is p:
                    names = group.get("param_names")
                    if names:
                        return str(names[position])
                    return f"parameter {position} of group {number} (shape {tuple(p.shape)})"
        return f"a parameter of shape {tuple(p.shape)}"

    # Checkpoints.

    def __getstate__(self) -> dict[str, Any]:
        own = {"rule": self.rule, "engine": self.engine, "_schedules": self._schedules}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        loading = "defaults" not in state
        if loading:
            state = {**state, "state": checked_state(self, state, self._given)}
        kept = set(self.defaults if loading else state["defaults"])
        super().__setstate__(state)
        for added in set(self.defaults) - kept:  # torch adds a flag that SparseAdam has not
            del self.defaults[added]
        self._prepare_reading(self.defaults)
        if loading:
            self.begin_anew()

    def begin_anew(self) -> None:
        """Forget what was known of earlier steps: groups and states have been exchanged."""
        self._prepare_reading(self.defaults)
        self._schedules.begin_anew(self.param_groups)
        for group in self.param_groups:
            for p in group["params"]:
                if p.layout is torch.strided:
                    self._layouts[p] = layout(p)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint: of this class, or of torch.optim's class of the same name.

        Raises:
            ValueError: a checkpoint of another model or rule, or an incomplete one; says what was
                found and expected. The optimizer is as it was.
        """
        if not isinstance(state_dict, Mapping):
            check_outline(state_dict)
        # Behind the user's own hooks, which may change the checkpoint.
        handle = self.register_load_state_dict_pre_hook(_take_checkpoint)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self._given = None

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter with the name that messages use."""
        for group in self.param_groups:
            for p in group["params"]:
                yield self.name_of(p), p


def _take_checkpoint(optimizer: Any, state_dict: Mapping[str, Any]) -> None:
    check_outline(state_dict)
    optimizer._given = state_dict


def _number(value: Any) -> float:
    return float(value.detach().item() if isinstance(value, Tensor) else value)


def _as_given(value: Any) -> Any:
    """Numbers as floats; flags, and tensors that autograd follows, as they are."""
    if isinstance(value, Tensor):
        return value if value.requires_grad else _number(value)
    return float(value) if is_number(value) else value
