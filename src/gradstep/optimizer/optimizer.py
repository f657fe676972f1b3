"""``gradstep.Optimizer``: a torch.optim.Optimizer that runs any rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain as each_of
from typing import Any

import torch
from torch import Tensor
from torch.autograd import _profiler_enabled
from torch.compiler import is_compiling as _is_compiling
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from gradstep.backends import global_sums
from gradstep.backends.base import Run
from gradstep.backends.dispatch import check_dimensions, check_engine
from gradstep.backends.update import has_shape, is_matrix
from gradstep.optimizer.beginning import only_begins_states
from gradstep.optimizer.checkpoint import check_outline, checked_state
from gradstep.optimizer.checkpoint_names import keep_names
from gradstep.optimizer.cut_short import accounted
from gradstep.optimizer.cycled_momentum import with_momentum
from gradstep.optimizer.group_run import as_float
from gradstep.optimizer.parameter_groups import Places as Places
from gradstep.optimizer.parameter_names import ParameterNames
from gradstep.optimizer.planning import Planning
from gradstep.optimizer.schedules import Schedules
from gradstep.program.formats import StateDType, with_state_dtype
from gradstep.rule.definition import Rule
from gradstep.rule.schedule import as_schedule, at_start


class Optimizer(Planning):
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
        state_dtype: what states are stored as: ``"bfloat16"``, ``"float16"`` or ``"float32"``, or
            the dtype of torch, for all of the weight's shape; or state -> one of these; see
            :func:`gradstep.stored_as`. Default: what their weight is stored as.
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
        **hyperparameters: Any,
    ) -> None:
        if not isinstance(rule, Rule):
            found = getattr(rule, "__name__", repr(rule))
            raise TypeError(
                f"Optimizer takes a rule; got {found}. Put @gradstep.rule above the function."
            )
        rule = with_state_dtype(rule, state_dtype)
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
        check_engine(engine)
        numbers = {n: at_start(v) for n, v in rule.hyperparameters.items()}
        scheduled = any(numbers[n] is not v for n, v in rule.hyperparameters.items())
        self.rule = replace(rule, hyperparameters=numbers) if scheduled else rule
        self.engine = engine
        self._schedules = Schedules(defaults)
        self._names = ParameterNames()
        defaults = {n: at_start(as_schedule(v)) for n, v in defaults.items()}
        # As in torch's own: GradScaler then leaves scale and verdict to the step, which has both in
        # its one pass. Gradients stay scaled; torch's fused step writes over them.
        if defaults.get("fused"):
            self._step_supports_amp_scaling = True
        self._prepare_reading(defaults)
        self.check_group(defaults)
        super().__init__(params, with_momentum(defaults, self._momenta))
        for run in map(self._run, range(len(self.param_groups))):
            self._read(run)  # a rule that cannot be traced is found here
            for p in filter(has_shape, run.group["params"]):
                check_dimensions(rule, run.graphs[is_matrix(p)], p, self._namer(p))

    _given: Mapping[str, Any] | None = None

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
            self.begin_states()
            return None
        # torch.amp.GradScaler leaves these two here if it was told that the step knows them.
        found_inf = self.__dict__.get("found_inf")
        if found_inf is not None and float(found_inf):
            return loss
        self.make(self.prepare(loss))
        return loss

    def prepare(self, loss: Any) -> list[Run]:
        """:meth:`plan`, for a step whose closure returned this loss, or None."""
        if "loss" not in self.rule.inputs:
            return self.plan()
        self._loss = None if loss is None else as_float(loss)
        try:
            return self.plan()
        finally:
            self._loss = None

    def make(self, runs: Sequence[Run]) -> None:
        """Make the step that :meth:`prepare` has prepared."""
        if self._may_stop:
            with accounted([self]):
                self.write(runs)
        else:
            self.write(runs)

    def write(self, runs: Sequence[Run]) -> None:
        """:meth:`make`, for who accounts for an error himself."""
        if self._waits:
            global_sums.run(runs)
        else:
            for each in runs:
                each()
        if self._schedules:
            self._schedules.advance(self.param_groups)

    # torch.compile leaves the step as it is: it is compiled already. (The mark is asked for only
    # while torch.compile runs, since it imports torch._dynamo, which takes a second.)
    @torch._disable_dynamo
    def _step_outside_of_graph(self, *given: Any, **keywords: Any) -> Any:
        if self._in_hooks:
            return self._step(*given, **keywords)
        return self._step_with_hooks(*given, **keywords)

    _step_with_hooks = torch.optim.Optimizer.profile_hook_step(_step)

    # Checkpoints.

    def __getstate__(self) -> dict[str, Any]:
        own = {"rule": self.rule, "engine": self.engine, "_schedules": self._schedules}
        return {**super().__getstate__(), **own, "_names": self._names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        loading = "defaults" not in state
        if loading:
            state = {**state, "state": checked_state(self, state, self._given)}
            keep_names(self.param_groups, state["param_groups"], bool(state["state"]))
        kept = set(self.defaults if loading else state["defaults"])
        super().__setstate__(state)
        for added in set(self.defaults) - kept:  # torch adds a flag that SparseAdam has not
            del self.defaults[added]
        self._prepare_reading(self.defaults)
        if loading:
            self.begin_anew()

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


def _take_checkpoint(optimizer: Any, state_dict: Mapping[str, Any]) -> None:
    check_outline(state_dict)
    optimizer._given = state_dict
