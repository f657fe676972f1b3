"""``gradstep.Optimizer``: a torch.optim.Optimizer that runs any rule."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import chain as each_of
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import _profiler_enabled
from torch.compiler import is_compiling as _is_compiling
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from gradstep.backends.dispatch import check_dimensions, check_engine
from gradstep.backends.update import describe, has_shape
from gradstep.optimizer.beginning import only_begins_states
from gradstep.optimizer.checkpoint import Holder
from gradstep.optimizer.cycled_momentum import OffersMomentum, with_momentum
from gradstep.optimizer.held_states import as_saved
from gradstep.optimizer.loading import load
from gradstep.optimizer.observer import StepObserver
from gradstep.optimizer.parameter_groups import GroupReader, Places
from gradstep.optimizer.parameter_names import ParameterNames
from gradstep.optimizer.planning import Planner
from gradstep.optimizer.schedules import Schedules
from gradstep.optimizer.states import Beginnings
from gradstep.optimizer.step import Step
from gradstep.optimizer.step_hooks import HooksOnce
from gradstep.program.formats import (
    StateDType,
    check_low_precision,
    format_of,
    weight_format,
    with_storage,
)
from gradstep.rule.combine import chain
from gradstep.rule.definition import Rule
from gradstep.rule.schedule import as_schedule, at_start
from gradstep.rule.trace import trace

#: A step of such a rate along a direction of 1 is less than half of the last digit of 0.003.
TINIEST_LR = 1e-10

_log = logging.getLogger("gradstep")


class Optimizer(HooksOnce):
    """Updates weights with their gradients, by any rule or chain of rules.

    A :class:`torch.optim.Optimizer` in every way: parameter groups, hooks, schedulers,
    checkpoints. A step is all or nothing: everything is checked before the first write. But for an
    error in a function of :func:`gradstep.opaque`, or of torch's own in the engines ``"eager"`` and
    ``"compile"`` (no memory left): some parameters may be updated by then, each with its states,
    and the error names them.

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
        state_dtype: what states are stored as: ``"bfloat16"``, ``"int8"`` or another format of
            :func:`gradstep.stored_as`, or a dtype of torch, for all of the weight's shape; or
            state -> one of these. Default: what their weight is stored as.
        low_precision: how weights of 16 bits are kept: ``"nearest"``, ``"stochastic"``,
            ``"kahan"``, ``"remainder"`` or ``"master"``; see :func:`gradstep.low_precision`.
            Default: ``"nearest"``.
        hyperparameters: other values than the rule's defaults, by name.

    Raises:
        TypeError: no rule, no tensors, an unknown hyperparameter or state, or one of the wrong
            type; a ``state_dtype`` for complex parameters.
        ValueError: no parameters, one parameter in two groups, a hyperparameter out of range, an
            unknown engine, or an unknown format of states.
        RuleError: a rule that cannot be traced, with its line and what to write instead.

    Example::

        @gradstep.rule
        def heavy_ball(g, velocity, *, momentum=0.9):
            velocity = momentum * velocity + g
            return velocity, velocity

        optimizer = gradstep.Optimizer(model.parameters(), heavy_ball, lr=0.1)
    """

    def __init__(
        self,
        params: Any,
        rule: Rule,
        lr: float | Tensor | None = None,
        *,
        engine: str = "auto",
        maximize: bool = False,
        differentiable: bool = False,
        state_dtype: StateDType = None,
        low_precision: str = "nearest",
        **hyperparameters: Any,
    ) -> None:
        if not isinstance(rule, Rule):
            found = repr(rule) if isinstance(rule, str) else getattr(rule, "__name__", None)
            found = found or f"an object of class {type(rule).__name__}"
            raise TypeError(f"Optimizer takes a rule; got {found}. {_way_to_a_rule(rule)}")
        rule = with_storage(rule, state_dtype, low_precision)
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

    #: Where a rule's hyperparameters stand in a group, if not under their own names.
    _places: ClassVar[Places] = {}
    #: What reads the options of groups.
    _reads_groups: ClassVar[type[GroupReader]] = GroupReader
    #: Whether states exist from construction on (as in torch's Adagrad) or from the first step.
    _states_at_construction = False
    _observers: tuple[StepObserver, ...] = ()

    def _begin(self, params: Any, rule: Rule, defaults: dict[str, Any], engine: str) -> None:
        """Set up; for subclasses with an argument list of their own."""
        refuse_model(self, params)
        check_engine(engine)
        numbers = {n: at_start(v) for n, v in rule.hyperparameters.items()}
        scheduled = any(numbers[n] is not v for n, v in rule.hyperparameters.items())
        rule = replace(rule, hyperparameters=numbers) if scheduled else rule
        schedules = Schedules(defaults)
        defaults = {n: at_start(as_schedule(v)) for n, v in defaults.items()}
        # As in torch's own: GradScaler then leaves scale and verdict to the step, which has both in
        # its one pass. Gradients stay scaled; torch's fused step writes over them.
        if defaults.get("fused"):
            self._step_supports_amp_scaling = True
        reader = self._reads_groups(rule, defaults, self._places)
        reader.check_group(defaults)
        self._planner = Planner(reader, engine, ParameterNames(), schedules)
        super().__init__(params, with_momentum(defaults, reader.momenta))
        planner = _observed(self)
        _warn_of_codes(rule)
        for p, graph in planner.graphs():  # a rule that cannot be traced is found here
            check_dimensions(rule, graph, p, planner.namer(p))

    # The step.

    # By place or by name: hooks see which it was, as torch's wrapper hands it to them.
    def step(self, closure: Callable[[], Any] | None = None, /, **keywords: Any) -> Any:
        """Update every weight that has a gradient.

        Args:
            closure: computes the loss anew and returns it; called first, with gradients enabled.
            keywords: ``closure``, if it is given by name.

        Returns:
            the closure's loss, or None.

        Raises:
            TypeError, ValueError, RuntimeError: a gradient, state or hyperparameter that does not
                fit, named. Weights and states are as they were.
            RuntimeError: a function that the rule calls, or torch in another engine than the fused,
                has raised when some parameters were updated already, which are named.
        """
        given = () if closure is None else (closure,)
        if _is_compiling():
            return self._step_outside_of_graph(*given, **keywords)
        if self._in_hooks:  # a subclass's step is around this one, and has run them
            return self._step(*given, **keywords)
        if _profiler_enabled():
            return self._step_with_hooks(*given, **keywords)
        if (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
        ):
            return self._step_between_hooks(*given, **keywords)
        return self._step(*given, **keywords)

    # torch wraps every step() that has no such mark, in a profiler's record that costs 7 µs a step
    # even while no profiler runs, and more in a cold cache. The wrapper is used while one runs.
    step.hooked = True  # type: ignore[attr-defined]

    def _step_between_hooks(self, *given: Any, **keywords: Any) -> Any:
        """What torch's wrapper does, without the profiler's record."""
        arguments: Any = (self, *given)
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
        elif not self.state and only_begins_states(self):
            planner_of(self).begin_states()
            return None
        own = self.__dict__
        planner, observers = planner_of(self), self._observers
        # torch.amp.GradScaler leaves these two here if it was told that the step knows them.
        scale, found_inf = own.get("grad_scale"), own.get("found_inf")
        told = observers or planner.observers
        if found_inf is not None and planner.leaves_verdict and not told:
            # Read by what writes, on the device: nobody has to be told of it.
            Step((planner,), (), loss, scale, found_inf).make()
            return loss
        step = Step((planner,), observers, loss, scale)
        if found_inf is not None and float(found_inf):
            step.skip()
        else:
            step.make()
        return loss

    # torch.compile leaves the step as it is: it is compiled already. (The mark is asked for only
    # while torch.compile runs, since it imports torch._dynamo, which takes a second.)
    @torch._disable_dynamo
    def _step_outside_of_graph(self, *given: Any, **keywords: Any) -> Any:
        if self._in_hooks:
            return self._step(*given, **keywords)
        return self._step_with_hooks(*given, **keywords)

    _step_with_hooks = torch.optim.Optimizer.profile_hook_step(_step)

    # Groups.

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with options of its own.

        Args:
            param_group: a dict with ``"params"`` and any options that differ from the defaults.

        Raises:
            TypeError: integer parameters, complex ones where states have a format of their own,
                or an option of the wrong type.
            ValueError: a parameter in two groups, an option out of range, or one that is the whole
                optimizer's. The optimizer is as it was.
        """
        planner = planner_of(self)
        reader, schedules = planner.reader, planner.schedules
        _refuse_options_of_the_whole(param_group)
        own = {n: v for n, v in param_group.items() if n in reader.group_keys}
        found = {n: as_schedule(v) for n, v in own.items()}
        numbers = {n: at_start(v) for n, v in found.items()}
        # Else as it is: torch keeps the very dict that it was given.
        if any(numbers[n] is not v for n, v in own.items()):
            param_group = {**param_group, **numbers}
        try:
            super().add_param_group(param_group)
        except ValueError as error:
            given = param_group["params"] if isinstance(param_group["params"], list) else []
            ids = set(map(id, given))
            twice = [name for name, p in planner.named() if id(p) in ids]
            if twice and "more than one" in str(error):
                raise ValueError(f"{error}: {', '.join(twice)}. Give each once.") from None
            raise
        group = self.param_groups[-1]
        try:
            for p in group["params"]:
                self._check_parameter(p)
            reader.check_group(group)
        except Exception:
            self.param_groups.pop()
            raise
        self._warn_of_tiny_steps(group)
        schedules.add_group(group, found)
        planner.observe_options()
        planner.names.begin(group)
        if self._states_at_construction:
            beginnings = Beginnings(reader.rule, group, reader.numbers(group))
            for p in group["params"]:
                if p.is_meta or not has_shape(p):  # its states begin with its first step
                    continue
                beginnings.begin(p, self.state[p], None, planner.namer(p))

    def _check_parameter(self, p: Tensor) -> None:
        """Raise unless the class takes such a parameter."""
        if not (p.is_floating_point() or p.is_complex()):
            raise TypeError(
                f"{self.name_of(p)} holds {describe(p)}; only floating-point and complex tensors "
                "can be optimized. Leave it out."
            )
        rule = self._planner.rule
        reason = check_low_precision(rule, p.dtype)
        if reason is not None:
            raise ValueError(
                f"{self.name_of(p)} holds {describe(p)}, and low_precision={rule.low_precision!r} "
                f"{reason}."
            )
        for state, name in rule.formats.items():
            reason = format_of(name).refusal(p)
            if reason is not None:
                raise TypeError(
                    f"{self.name_of(p)} holds {describe(p)}, and {state} would be stored as "
                    f"{name}, {reason}. Give it to an optimizer without state_dtype."
                )

    def _warn_of_tiny_steps(self, group: dict[str, Any]) -> None:
        """Say so where a learning rate moves not even the last digit that is kept of a weight."""
        rule, lr = self._planner.rule, group["lr"]
        if rule.low_precision == "nearest" or getattr(lr, "is_meta", False):
            return
        lr = float(lr)
        kept = [weight_format(rule, p.dtype) for p in group["params"]]
        if 0 < lr < TINIEST_LR and any(format is not None and format.extra for format in kept):
            _log.warning(
                "lr=%g with low_precision=%r: a step along a direction of 1 changes no float32 "
                "weight of %.2g or more. Is the learning rate meant to be that small?",
                lr,
                rule.low_precision,
                lr * 2.0**25,
            )

    def engines_used(self) -> dict[str, str]:
        """The engine that updated each parameter at its last step: name -> engine."""
        return planner_of(self).engines_used()

    def name_of(self, p: Tensor) -> str:
        """The parameter's name in the model if the optimizer was given names, else its place."""
        return planner_of(self).name_of(p)

    @property
    def _names(self) -> ParameterNames:
        return self._planner.names

    # Checkpoints.

    def __getstate__(self) -> dict[str, Any]:
        planner = self._planner
        own = {"rule": planner.rule, "engine": planner.engine, "_schedules": planner.schedules}
        return {**super().__getstate__(), **own, "_names": planner.names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        own = {n: state[n] for n in state if n in ("rule", "engine", "_schedules", "_names")}
        kept = set(state.get("defaults") or self.defaults)
        super().__setstate__({n: v for n, v in state.items() if n not in own})
        for added in set(self.defaults) - kept:  # torch adds a flag that SparseAdam has not
            del self.defaults[added]
        if own:  # a copy, or out of a pickle
            reader = self._reads_groups(own["rule"], self.defaults, self._places)
            self._planner = Planner(reader, own["engine"], own["_names"], own["_schedules"])
            _observed(self)
        else:
            begin_anew(self)

    def state_dict(self) -> dict[str, Any]:
        """The checkpoint, as torch.optim's.

        Where weights are split among processes, and their rule keeps matrices (Shampoo, SOAP), all
        processes have to call it.
        """
        return as_saved(super().state_dict(), self.state)

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> None:
        """Load a checkpoint: of this class, or of torch.optim's class of the same name.

        Args:
            state_dict: the checkpoint. Where it and the optimizer both have names
                (``named_parameters()``), states go to the parameters of the same names, in
                whatever order; else by their place, as in torch.
            strict: whether both have to have the same parameters. If not, what the checkpoint lacks
                or has in another shape stays as it is, what it has beyond is left out, and a log
                line names both; a group whose parameters come of several keeps its options.
                Default: True.

        Raises:
            ValueError: a checkpoint of another model or rule, or an incomplete one; says what was
                found and expected. The optimizer is as it was.
        """
        load(self, state_dict, {None: holder_of(self)}, strict)


def _refuse_options_of_the_whole(group: Mapping[str, Any]) -> None:
    """Raise for what is no option of a group, which would be passed over without a word."""
    for name in ("state_dtype", "low_precision", "engine"):
        if name in group:
            raise ValueError(
                f"{name}={group[name]!r} stands in a parameter group, and is one for the whole "
                f"optimizer. Give these parameters an optimizer of their own with {name}=, in "
                "gradstep.partition"
            )


def _warn_of_codes(rule: Rule) -> None:
    """Say so where states are in codes that are known not to suit their rule."""
    for part in rule.parts() if rule.stages else (rule,):
        coded = [n for n, name in part.formats.items() if format_of(name).block > 1]
        against = part.against_codes
        why = (
            against
            if isinstance(against, str) or not coded
            else against.get(part.formats[coded[0]])
        )
        if coded and why:
            _log.warning(
                "%s of %s in %s: %s. Name those states that are to be stored so, and no others.",
                ", ".join(coded),
                part.name,
                part.formats[coded[0]],
                why,
            )


def refuse_model(optimizer: Any, params: Any) -> None:
    """Say what to write, where a model is given in the place of its parameters.

    Raises:
        TypeError: ``params`` is a model.
    """
    if isinstance(params, torch.nn.Module):
        kind, got = type(optimizer).__name__, type(params).__name__
        raise TypeError(
            f"{kind} takes the parameters of a model; got a {got}. Give it model.named_parameters()"
        )


def planner_of(optimizer: Optimizer) -> Planner:
    """What plans an optimizer's steps, and reads its groups; for other rooms of the package."""
    planner = optimizer._planner
    contents = planner.contents
    contents.groups, contents.state = optimizer.param_groups, optimizer.state
    return planner


def holder_of(optimizer: Optimizer) -> Holder:
    """What a checkpoint has to fit: the optimizer, which may be part of a partition."""
    planner, kind = planner_of(optimizer), type(optimizer).__name__
    reader, cycled, between = planner.reader, planner.cycled, planner.one_by_one
    stored = None if between is None else between.stored
    return Holder(kind, optimizer.defaults, planner.name_of, reader, cycled, stored)


def begin_anew(optimizer: Optimizer, rule: Rule | None = None) -> None:
    """Forget what is known of earlier steps: groups, states or the rule have been exchanged."""
    before = planner_of(optimizer)
    reader = optimizer._reads_groups(rule or before.rule, optimizer.defaults, optimizer._places)
    optimizer._planner = Planner(reader, before.engine, before.names, before.schedules)
    before.schedules.begin_anew(optimizer.param_groups)
    planner = _observed(optimizer)
    planner.names.follow(optimizer.param_groups)
    planner.know_layouts(p for p in optimizer.state if isinstance(p, Tensor) and has_shape(p))


def extend(optimizer: Optimizer, stage: Rule) -> None:
    """Put a stage behind the rule, with its numbers in the defaults and in every group.

    Raises:
        ValueError: steps have been made already, which would have been other ones with it; or
            the rule has a hyperparameter of the same name.
        RuleError: a stage that cannot stand behind this rule. The optimizer is as it was.
    """
    planner, defaults, groups = planner_of(optimizer), optimizer.defaults, optimizer.param_groups
    rule, schedules = planner.rule, planner.schedules
    if optimizer.state:
        raise ValueError(
            f"{stage.name} cannot be added behind {rule.name} any more: the optimizer has "
            "states already. Add it before the first step, and before a checkpoint is loaded."
        )
    taken = [n for n in stage.hyperparameters if n in defaults or n in planner.reader.places]
    taken += [n for n in stage.states if n in rule.states]
    if taken:
        raise ValueError(
            f"{rule.name} has its own {taken[0]!r}: is {stage.name} part of it already?"
        )
    whole = chain(rule, stage)
    values = {n: v for n, v in defaults.items() if n in rule.hyperparameters}
    trace(whole, {**whole.hyperparameters, **values, "lr": 0.0})
    schedules.follow(groups)
    for number, group in enumerate((*groups, defaults)):
        group.update({n: at_start(v) for n, v in stage.hyperparameters.items()})
        if group is not defaults:
            schedules.add_to_group(number, group, stage.hyperparameters)
    begin_anew(optimizer, whole)


def _observed(optimizer: Optimizer) -> Planner:
    """The optimizer's planner, which is new, with those looking on whom the options ask for."""
    planner, groups = planner_of(optimizer), optimizer.param_groups
    # The groups of a partition are offered the momentum that another part may have.
    planner.cycled = isinstance(optimizer.defaults, OffersMomentum) or any(
        "part" in g for g in groups
    )
    planner.observe_options()
    return planner


def _way_to_a_rule(found: Any) -> str:
    """What to write in the place of something that is no rule."""
    if isinstance(found, str):
        return (
            f"Write gradstep.Optimizer(params, gradstep.{found.lower()}()), or "
            f"gradstep.create({found!r}, params)."
        )
    if isinstance(found, type) and issubclass(found, torch.optim.Optimizer):
        name = f"{found.__module__.split('.')[0]}.{found.__name__}"
        return f"That is an optimizer already: {name}(params, lr=…)."
    if isinstance(found, torch.optim.Optimizer):
        return "That is an optimizer already; rules are functions such as gradstep.adam()."
    return "Put @gradstep.rule above the function."
