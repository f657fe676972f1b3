"""What all wrappers around an optimizer share: to the world, they are that optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from gradstep.compose.partition import Partition
from gradstep.optimizer.beginning import only_begins_states
from gradstep.optimizer.checkpoint import OF_WRAPPERS, check_outline
from gradstep.optimizer.checkpoint_names import in_own_order
from gradstep.optimizer.loading import changed_by_hooks, tell_loaded
from gradstep.optimizer.observer import StepObserver
from gradstep.optimizer.optimizer import Optimizer
from gradstep.optimizer.parameter_names import ParameterNames, names_of
from gradstep.optimizer.step_hooks import HooksOnce


def way_to_ours(optimizer: object) -> str:
    """What to write in the place of an optimizer that is not of this package, for messages."""
    kind = type(optimizer)
    if isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        return f"{kind.__name__} wraps one: give what stands in its attribute optimizer"
    if kind.__module__.startswith("torch.optim."):
        return f"Make it with gradstep.{kind.__name__}, which takes the same arguments"
    return "gradstep.create(name, model) makes one by its name"


class Wrapper(HooksOnce):
    """Stands around an optimizer and does something beside its steps.

    Groups, states and learning rates are those of the optimizer inside, so schedulers, checkpoints
    and hooks work on either. Numbers of a wrapper's own stand in its first group, where they are
    saved with the rest.

    Attributes:
        optimizer: the one inside.

    Raises:
        TypeError: no optimizer, or LBFGS, which takes many steps of its own in one.
        ValueError: a wrapper of the same kind is inside already, or one that has to stand outside.
    """

    #: Whether it calls the closure more than once, so that only a wrapper that hands it on as it is
    #: may stand around it.
    _needs_closure = False
    _hands_closure_on = False
    #: Whether the gradients of earlier batches stay in the parameters between its steps.
    _keeps_gradients = False
    #: Whether no other wrapper may stand around it.
    _outermost = False
    #: Why weights cannot make their steps one by one, each as its gradient comes; None if they can.
    _needs_all_gradients: str | None = "its steps see the gradients of all weights together"

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        kind = type(self).__name__
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"{kind} wraps an optimizer; got {optimizer!r}. Make one first: "
                f"{kind}(gradstep.AdamW(model.parameters()))"
            )
        for inside in _inside(optimizer):
            if isinstance(inside, torch.optim.LBFGS):
                raise TypeError(
                    f"{kind} cannot wrap LBFGS, which makes several steps in one and asks for "
                    "gradients between them. Wrap another optimizer"
                )
            if type(inside) is type(self):
                raise ValueError(f"there is a {kind} inside already: wrap it once")
            if getattr(inside, "_outermost", False):
                other = type(inside).__name__
                raise ValueError(
                    f"{kind} around {other}, which has to know of all that happens in a step: put "
                    f"{other} outside, as {other}({kind}(…))"
                )
            if getattr(inside, "_needs_closure", False) and not self._hands_closure_on:
                other = type(inside).__name__
                raise ValueError(
                    f"{kind} around {other}, whose steps need the closure itself: put {other} "
                    f"outside, as {other}({kind}(…))"
                )
        self.optimizer: Any = optimizer
        self._holder: dict[str, Any] = {}  # the group that the wrapper's numbers stand in
        self._begin_hooks()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of the optimizer inside, which may be exchanged."""
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.optimizer.param_groups = groups

    @property
    def state(self) -> Any:
        """The states of the optimizer inside, which may be exchanged."""
        return self.optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        self.optimizer.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        """The defaults of the optimizer inside, which may be exchanged."""
        return self.optimizer.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.optimizer.defaults = defaults

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients; see the optimizer inside."""
        self.optimizer.zero_grad(set_to_none)

    def _in_step(self, p: Tensor) -> Tensor:
        """What stands for a weight while the step is made."""
        return p

    # Weights that make their steps one by one, within backward.

    def _begin_weights(self) -> None:
        """Raise unless a step may begin."""

    def _takes_now(self, p: Tensor) -> bool:
        """Whether a weight whose gradient has come makes its step now, and not at ``step()``."""
        return True

    def _take_gradient(self, p: Tensor) -> None:
        """Make of the gradient that has come what the step is to see."""

    # The step.

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make a step, with what the wrapper does beside it.

        Args:
            closure: computes the loss and its gradients anew, and returns the loss.

        Returns:
            the closure's loss, or None.

        Raises:
            TypeError, ValueError, RuntimeError: what the class says, and what the optimizer inside
                refuses.
        """
        if closure is None and only_begins_states(self):
            return self._begin_states()
        if "found_inf" in self.__dict__ and not self._take_batch():
            return None
        return self._step(closure)

    def _begin_states(self) -> Any:
        return self.optimizer.step()

    def _step(self, closure: Callable[[], Any] | None) -> Any:
        return self.optimizer.step(closure)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Asked by torch.amp.GradScaler, which else would unscale kept gradients at each batch."""
        return any(self._keepers())

    def _keepers(self) -> Iterator[Any]:
        return (each for each in _inside(self) if getattr(each, "_keeps_gradients", False))

    @torch.no_grad()
    def _take_batch(self) -> bool:
        """Unscale the gradients of one batch; those that are inf or nan are thrown away.

        GradScaler has left scale and verdict here.

        Returns:
            whether there is a batch.
        """
        for each in self._keepers():
            each._keep_apart()
        found_inf, scale = self.__dict__["found_inf"], self.__dict__.get("grad_scale")
        bad = found_inf is not None and bool(float(found_inf))
        for p in self._weights():
            if bad:
                p.grad = None
            elif scale is not None and p.grad is not None:
                p.grad.mul_(1 / float(scale))
        return not bad

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters to the optimizer inside."""
        self.optimizer.add_param_group(param_group)

    @torch._disable_dynamo
    def state_dict(self) -> dict[str, Any]:
        """The checkpoint: that of the optimizer inside, with what the wrapper adds to it."""
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        self._numbers()
        saved = self._save()
        for after in self._optimizer_state_dict_post_hooks.values():
            changed = after(self, saved)
            saved = saved if changed is None else changed
        return saved

    def _save(self) -> dict[str, Any]:
        saved: dict[str, Any] = self.optimizer.state_dict()
        return saved

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> None:
        """Load a checkpoint, of the wrapper or of the optimizer inside alone.

        Args:
            state_dict: the checkpoint. Where it and the optimizer both have names
                (``named_parameters()``), states go to the parameters of the same names, in
                whatever order; else by their place, as in torch.
            strict: whether both have to have the same parameters. If not, what the checkpoint lacks
                or has in another shape stays as it is, what it has beyond is left out, and a log
                line names both; a group whose parameters come of several keeps its options.
                Default: True.

        Raises:
            ValueError: what the optimizer inside refuses.
        """
        given = changed_by_hooks(self, state_dict)
        check_outline(given)
        numbers = {
            n for each in _inside(self) if isinstance(each, Wrapper) for n in each._own_numbers()
        }
        arranged = in_own_order(self, given, strict, of_weight=OF_WRAPPERS, of_first_group=numbers)
        self._load(arranged, strict)
        tell_loaded(self)

    def _load(self, state_dict: dict[str, Any], strict: bool) -> None:
        if strict or not isinstance(self.optimizer, Optimizer | Partition | Wrapper):
            self.optimizer.load_state_dict(state_dict)
        else:
            self.optimizer.load_state_dict(state_dict, strict=False)
        self._begin_numbers()

    def _own_numbers(self) -> Mapping[str, Any]:
        """What the wrapper keeps in the first group, and how it starts."""
        return {}

    def _begin_numbers(self) -> None:
        """Put the wrapper's numbers into the first group, as they start, if it has none yet."""
        self._holder = {}
        self._numbers()

    def _numbers(self) -> dict[str, Any]:
        """The group that holds the wrapper's numbers: the first, whichever that is by now."""
        groups, own = self.param_groups, self._own_numbers()
        if own and groups and groups[0] is not self._holder:
            for name, start in own.items():
                groups[0].setdefault(name, self._holder.get(name, start))
            self._holder = groups[0]
        return self._holder

    def name_of(self, p: Tensor) -> str:
        """The parameter's name in the model if the optimizer was given names, else its place."""
        return self._names.of(self.param_groups, p)

    @property
    def _names(self) -> ParameterNames:
        return names_of(self.optimizer)

    @property
    def _observers(self) -> tuple[StepObserver, ...]:
        """Of the steps of the optimizer inside."""
        return self.optimizer._observers

    @_observers.setter
    def _observers(self, observers: tuple[StepObserver, ...]) -> None:
        self.optimizer._observers = observers

    def __getstate__(self) -> dict[str, Any]:
        # Hooks, and a step that a scheduler has put in the place of this one, stay behind.
        return {n: v for n, v in self.__dict__.items() if n != "step" and "hook" not in n}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin_hooks()

    def _begin_hooks(self) -> None:
        """Have hooks of its own, and no groups of its own."""
        known = set(self.defaults)
        super().__setstate__({})
        for added in set(self.defaults) - known:  # torch adds a flag, which Adafactor has not
            del self.defaults[added]

    def __repr__(self) -> str:
        inside = repr(self.optimizer)
        if "\n" not in inside:
            return f"{type(self).__name__}({inside})"
        return f"{type(self).__name__} around\n{inside}"  # a table keeps its columns

    def _weights(self) -> Iterator[Any]:
        for group in self.param_groups:
            yield from group["params"]

    def _inner_step(self, loss: Any) -> None:
        """A step of the optimizer inside, on the gradients that are there."""
        self.optimizer.step(None if loss is None else lambda: loss)

    def _loss_of(self, closure: Callable[[], Any] | None) -> Any:
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()


def _inside(optimizer: torch.optim.Optimizer) -> Iterator[torch.optim.Optimizer]:
    """The optimizer, and what it wraps."""
    yield optimizer
    if isinstance(optimizer, Wrapper):
        yield from _inside(optimizer.optimizer)


def rules_inside(optimizer: torch.optim.Optimizer) -> list[Optimizer]:
    """The optimizers over rules that an optimizer consists of: those of a partition, or itself.

    Raises:
        TypeError: an optimizer of torch's, which has no rule.
    """
    *_, core = _inside(optimizer)
    if isinstance(core, Partition):
        return list(core.parts.values())
    if isinstance(core, Optimizer):
        return [core]
    raise TypeError(
        f"{type(core).__name__} of torch has no rule of gradstep. Take the class of the same name "
        "from gradstep; or torch.optim.swa_utils.AveragedModel for averages of any optimizer"
    )


def without(state_dict: Mapping[str, Any], name: str) -> tuple[dict[str, Any], dict[Any, Tensor]]:
    """A checkpoint without what a wrapper has put among the states, and that by the parameter."""
    found, states = {}, {}
    for key, entry in state_dict["state"].items():
        if isinstance(entry, Mapping) and name in entry:
            found[key] = entry[name]
            entry = {n: v for n, v in entry.items() if n != name}
            if not entry:
                continue
        states[key] = entry
    return {**state_dict, "state": states}, found
