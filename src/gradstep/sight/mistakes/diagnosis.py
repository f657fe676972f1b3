"""``gradstep.diagnose``: watch a training loop for mistakes, and say what to write instead."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from gradstep.optimizer.parameter_names import names_of
from gradstep.sight.mistakes.finding import (
    Finding,
    Mistake,
    MistakeError,
    MistakeWarning,
    Severity,
)
from gradstep.sight.mistakes.known import load
from gradstep.sight.mistakes.membership import Membership
from gradstep.sight.mistakes.place import Place, here
from gradstep.sight.mistakes.scaling import Scaling
from gradstep.sight.mistakes.scheduling import Scheduling
from gradstep.sight.mistakes.watched import FIRST_STEPS, Family, Watched

_log = logging.getLogger(__name__)

OnMistake = Literal["warn", "list", "raise"]

#: Of the steps after the hundredth, one in so many is looked at: a prime, since what a loop does at
#: each second or tenth step would otherwise never be met, or always.
_REST = 19

#: What wrappers put before a parameter's name.
_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.")


class Diagnosis:
    """Optimizers and models that are watched, and what was found; :func:`diagnose` makes one.

    A context manager: leaving the block calls :meth:`close`.

    Attributes:
        findings: all :class:`Finding` so far, in the order in which they were seen. Each mistake
            is said once an optimizer.
        watched: the optimizers that are watched.
        forgotten, steps_forgotten: how many were watched before, and their steps.
        interrupted: whether :meth:`close` was told that the training had failed.
    """

    def __init__(
        self,
        on_mistake: OnMistake = "list",
        every: int = 50,
        families: Sequence[type[Family]] | None = None,
        also: Sequence[type[Family]] = (),
    ) -> None:
        self.findings: list[Finding] = []
        self.watched: list[Watched] = []
        self.forgotten = self.steps_forgotten = 0
        self.models: list[tuple[nn.Module, Place | None]] = []
        #: The place of the last zero_grad(), as far as somebody follows it: `gradstep doctor` does.
        self.last_zero_grad: Callable[[], Place | None] = lambda: None
        #: What to do when an optimizer is about to make its first step.
        self.at_first_step: Callable[[], None] = lambda: None
        self._on_mistake = on_mistake
        self._every = every
        self._said: set[Any] = set()
        self._prefixes: list[str] = []  # of each model's names
        self._names: dict[int, str] = {}
        self._modules: dict[int, nn.Module] = {}
        self._running: list[Watched] = []
        self._closed = False
        self.interrupted = False
        known = [f for f in load()[0] if families is None or f in families]
        self._families = [f(self) for f in sorted([*known, *also], key=lambda f: f.order)]
        self._by_kind: dict[type[Any], Any] = {type(family): family for family in self._families}
        self._before = self._those_with("before_step")
        self._before_look = [*self._before, *self._those_with("before_look")]
        self._after = self._those_with("after_step")
        self._after_look = [*self._after, *self._those_with("after_look")]
        self._before_backward = self._those_with("before_backward")
        self._after_backward = self._those_with("after_backward")
        # Somebody's own are told of each step.
        self._before_each = self._those_with("before_step", tuple(also))
        self._after_each = self._those_with("after_step", tuple(also))
        self._before_each_backward = self._those_with("before_backward", tuple(also))
        self._after_each_backward = self._those_with("after_backward", tuple(also))
        #: Whether anybody is told of each backward pass.
        self.hears_each_backward = bool(self._before_each_backward or self._after_each_backward)

    def _those_with(
        self, event: str, kinds: tuple[type[Family], ...] = (Family,)
    ) -> list[Callable[..., None]]:
        return [
            getattr(family, event)
            for family in self._families
            if isinstance(family, kinds)
            and getattr(type(family), event) is not getattr(Family, event)
        ]

    def family(self, kind: type[Any]) -> Any:
        """The one that watches over this kind of mistakes; None where it was not asked for."""
        return self._by_kind.get(kind)

    # What is watched.

    def add_model(self, model: nn.Module, place: Place | None = None, prefix: str = "") -> None:
        """Take in a model: its parameters' names, and which of them ought to be in an optimizer."""
        self.models.append((model, place))
        self._prefixes.append(prefix)
        self._take_names(model, prefix)
        self.family(Membership).take_model(model, place)

    def _take_names(self, model: nn.Module, prefix: str) -> None:
        for name, parameter in model.named_parameters():
            self._names.setdefault(id(parameter), prefix + self.plain_name(name))
        for module in model.modules():
            for own in module._parameters.values():
                if own is not None:
                    self._modules.setdefault(id(own), module)

    def _name_anew(self) -> None:
        """Names of the parameters that are there now: those of freed ones would go to others."""
        held = {id(h.parameter) for watched in self.watched for h in watched.held}
        self._names = {key: name for key, name in self._names.items() if key in held}
        self._modules = {key: module for key, module in self._modules.items() if key in held}
        for (model, _), prefix in zip(self.models, self._prefixes, strict=True):
            self._take_names(model, prefix)

    def add_optimizer(
        self, optimizer: torch.optim.Optimizer, place: Place | None = None
    ) -> Watched:
        """Watch an optimizer from now on."""
        watched = Watched(optimizer, place)
        self.watched.append(watched)

        def before(_: Any, arguments: Any, keywords: Any) -> None:
            if not is_compiling():  # a compiled step is left as it is
                self._begin_step(watched, arguments, keywords)

        def after(*_: Any) -> None:
            if not is_compiling():
                self._end_step(watched)

        def loaded(_: Any) -> None:
            watched.loaded += 1

        watched.handles = [
            optimizer.register_step_pre_hook(before),
            optimizer.register_step_post_hook(after),
            optimizer.register_load_state_dict_post_hook(loaded),
        ]
        for family in self._families:
            self.guarded(family.added, watched)
        return watched

    def forget(self, watched: Watched) -> None:
        """Watch an optimizer no longer: the script has thrown it away."""
        if watched not in self.watched:
            return
        self.watched.remove(watched)
        self.forgotten += 1
        self.steps_forgotten += watched.steps
        for handle in watched.handles:
            handle.remove()
        for family in self._families:
            self.guarded(family.forgot, watched)
        watched.held.clear()

    def add_scheduler(self, scheduler: Any, place: Place | None = None) -> None:
        """Watch a scheduler of torch.optim.lr_scheduler."""
        self.family(Scheduling).take(scheduler, place)

    def add_scaler(self, scaler: Any) -> None:
        """Watch a torch.amp.GradScaler."""
        self.family(Scaling).take(scaler)

    @staticmethod
    def plain_name(name: str) -> str:
        """A parameter's name without what DDP, FSDP and torch.compile put before it."""
        for wrapper in _WRAPPERS:
            name = name.replace(wrapper, "") if name.startswith(wrapper) else name
        return name

    def name_of(self, parameter: Tensor, otherwise: str = "") -> str:
        """A parameter's name in its model, else ``otherwise``, its name or place in a group."""
        name = self._names.get(id(parameter), otherwise)
        if name:
            return name
        for watched in self.watched:
            groups = watched.optimizer.param_groups
            for held_as, p in names_of(watched.optimizer).all(groups, shapes=False):
                if p is parameter:
                    return held_as
        return "a parameter"

    def module_of(self, parameter: Tensor) -> tuple[str, nn.Module | None]:
        """A parameter's name, and the module that it belongs to, as far as known."""
        return self.name_of(parameter), self._modules.get(id(parameter))

    # What happens.

    def _begin_step(self, watched: Watched, arguments: Any, keywords: Any) -> None:
        number = watched.steps + 1
        if number == 1:
            self.guarded(self.at_first_step)
        if self._running:
            watched.inner = any(running is not watched for running in self._running)
            if watched in self._running:  # its last step raised
                del self._running[self._running.index(watched) :]
        else:
            watched.inner = False
        self._running.append(watched)
        if len(arguments) > 1:
            watched.has_closure = callable(arguments[1])
        else:
            watched.has_closure = keywords.get("closure") is not None
        # What a step finds is compared with what the one before it left.
        watched.attended = watched.kept == watched.steps and self._attends(watched, number)
        watched.looks = watched.attended and self._looks_at(number)
        if not watched.attended:
            if self._before_each:
                self._tell(self._before_each, watched)
            return
        if not watched.is_current():
            watched.refresh()
            self._name_anew()
            for family in self._families:
                self.guarded(family.added, watched)
        if watched.looks:
            watched.step_place = here()
        self._tell(self._before_look if watched.looks else self._before, watched)

    def _end_step(self, watched: Watched) -> None:
        if watched in self._running:
            del self._running[self._running.index(watched) :]
        watched.steps += 1
        if watched.attended or self._attends(watched, watched.steps + 1):
            watched.kept = watched.steps
            self._tell(self._after_look if watched.looks else self._after, watched)
        elif self._after_each:
            self._tell(self._after_each, watched)

    def _looks_at(self, number: int) -> bool:
        """Whether values are looked at in this step."""
        # Often in the beginning, where most goes wrong and scripts for trial end.
        early = number <= 3 or (number <= FIRST_STEPS and number % 5 == 0)
        return early or number % self._every == 0

    def _attends(self, watched: Watched, number: int) -> bool:
        """Whether anything is looked at in this step: in a long training rarely is enough."""
        return number <= watched.awake or number % _REST == 0 or self._looks_at(number)

    def attend(self, steps: int) -> None:
        """Look at each of the next steps of all optimizers: something has happened."""
        for watched in self.watched:
            watched.awake = max(watched.awake, watched.steps + steps)

    def may_look(self) -> bool:
        """Whether the next step of any optimizer may look at values."""
        return any(watched.kept == watched.steps for watched in self.watched)

    def let_go(self) -> None:
        """A module is about to be converted."""
        for family in self._families:
            self.guarded(family.let_go)

    def backward_begins(self, losses: list[Tensor], attended: bool) -> None:
        """A backward pass begins, from these losses."""
        calls = self._before_backward if attended else self._before_each_backward
        self._tell_of_backward(calls, losses)

    def backward_ended(self, attended: bool) -> None:
        """A backward pass has ended, maybe by an exception."""
        calls = self._after_backward if attended else self._after_each_backward
        self._tell_of_backward(calls)

    def _tell_of_backward(self, calls: list[Callable[..., None]], *arguments: Any) -> None:
        for call in calls:
            try:
                call(*arguments)
            except (MistakeError, MistakeWarning):
                raise
            except Exception as error:
                self._failed(call, error)

    def _tell(self, calls: list[Callable[[Watched], None]], watched: Watched) -> None:
        if watched.looks and torch.is_grad_enabled():
            with torch.no_grad():
                return self._tell(calls, watched)
        for call in calls:
            try:
                call(watched)
            except (MistakeError, MistakeWarning):
                raise
            except Exception as error:
                self._failed(call, error)

    def _failed(self, call: Callable[..., Any], error: Exception) -> None:
        key = ("failed", getattr(call, "__qualname__", repr(call)))
        if key not in self._said:
            self._said.add(key)
            _log.warning("a diagnosis failed and was skipped: %r", error, exc_info=True)

    def guarded(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Call; whatever goes wrong is logged, for the training must not suffer from being watched.

        What the user asked for passes: ``on_mistake="raise"``, and warnings turned into errors.
        """
        try:
            with torch.no_grad():
                call(*arguments)
        except (MistakeError, MistakeWarning):
            raise
        except Exception as error:
            self._failed(call, error)

    def report(
        self,
        mistake: Mistake,
        seen: str,
        *,
        why: str = "",
        write: str = "",
        severity: Severity | None = None,
        parameter: str | None = None,
        watched: Watched | None = None,
        place: Place | None = None,
        key: Any = None,
    ) -> None:
        """Say what was found; once for each mistake and optimizer (or ``key``).

        Args:
            mistake: which it is.
            seen: what was seen.
            why, write, severity: where this one is another than usual.
            parameter, watched, place: what it is about, and where.
            key: in place of the optimizer.
        """
        said = (mistake.name, key if key is not None else id(watched))
        if said in self._said:
            return
        self._said.add(said)
        step = watched.steps if watched is not None else 0
        severity = severity or mistake.severity
        why, write = why or mistake.why, write or mistake.write
        place = place or here()
        finding = Finding(mistake.name, seen, why, write, severity, place, parameter, step)
        self.findings.append(finding)
        if self._on_mistake == "raise" and severity == "mistake" and not self._closed:
            raise MistakeError(finding)
        if self._on_mistake != "list":
            at = finding.place
            if at is None:
                warnings.warn(str(finding), MistakeWarning, stacklevel=2)
            else:
                warnings.warn_explicit(str(finding), MistakeWarning, at.file, at.line)

    # The end.

    def close(self, interrupted: bool = False) -> None:
        """Stop watching: say what never happened, take off all hooks. May be called again.

        The findings stay. Mistakes that are found only here are warned of, not raised.

        Args:
            interrupted: whether the training was cut short by an error; then what is missing at its
                end is no mistake.
        """
        if self._closed:
            return
        self._closed = True
        self.interrupted = interrupted
        for family in self._families:
            self.guarded(family.close)
        for watched in self.watched:
            for handle in watched.handles:
                handle.remove()

    def __enter__(self) -> Diagnosis:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(interrupted=kind is not None)

    def __repr__(self) -> str:
        return f"<Diagnosis of {len(self.watched)} optimizer(s), {len(self.findings)} finding(s)>"


def diagnose(
    model: nn.Module | Sequence[nn.Module],
    *optimizers: torch.optim.Optimizer,
    on_mistake: OnMistake = "warn",
    scheduler: Any = None,
    scaler: Any = None,
    every: int = 50,
    also: Sequence[type[Family]] = (),
) -> Diagnosis:
    """Watch a training loop for mistakes: a forgotten ``zero_grad()`` and some forty others.

    It reads and never writes: weights come out bit for bit as without it. Steps within
    ``torch.compile`` are not seen.

    Args:
        model: the module that is trained, or several.
        optimizers: all that train it, of gradstep or torch.optim, each at most once. A parameter
            that none of them holds is a finding.
        on_mistake: ``"warn"`` (the default) issues a :class:`MistakeWarning` at the script's own
            line; ``"list"`` only collects; ``"raise"`` raises a :class:`MistakeError` where the
            mistake is made (advice is warned of).
        scheduler: the learning-rate scheduler, or several, if its calls are to be watched, too.
        scaler: the ``torch.amp.GradScaler``, likewise.
        every: at which steps values are looked at, for what needs more than counting: the first
            three, each fifth up to the hundredth, then each of this number. Default: 50.
        also: classes of your own that find mistakes, beside those that are known; see
            docs/extending.md.

    Returns:
        a :class:`Diagnosis`: ``.findings``, ``.close()``, and a context manager.

    Raises:
        TypeError: no module, no optimizer, or something else in its place.
        ValueError: an unknown ``on_mistake``, ``every`` below 1, an optimizer given twice.

    Example::

        with gradstep.diagnose(model, optimizer) as diagnosis:
            train(model, optimizer)
        for finding in diagnosis.findings:
            print(finding)
    """
    models = [model] if isinstance(model, nn.Module) else model
    if not isinstance(models, (list, tuple)) or not models:
        raise TypeError(f"diagnose takes a torch.nn.Module first; got {type(model).__name__}")
    for one in models:
        if not isinstance(one, nn.Module):
            raise TypeError(f"diagnose takes torch.nn.Modules; got {type(one).__name__}")
    if not optimizers:
        raise TypeError("diagnose takes the optimizer behind the model; got none")
    for optimizer in optimizers:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"diagnose takes torch.optim.Optimizers behind the model; got "
                f"{type(optimizer).__name__}. A scheduler goes to scheduler=, a GradScaler to "
                "scaler=."
            )
    if len({id(optimizer) for optimizer in optimizers}) < len(optimizers):
        raise ValueError("diagnose takes each optimizer once; one was given twice")
    if on_mistake not in ("warn", "list", "raise"):
        raise ValueError(f"on_mistake is {on_mistake!r}; choose 'warn', 'list' or 'raise'")
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"every is {every!r}; it is a number of steps, 1 or more")
    for family in also:
        if not (isinstance(family, type) and issubclass(family, Family)):
            raise TypeError(
                f"also= takes classes derived from gradstep.sight.mistakes.Family; got {family!r}"
            )
    schedulers = scheduler if isinstance(scheduler, (list, tuple)) else [scheduler]
    schedulers = [s for s in schedulers if s is not None]
    for s in schedulers:
        if not hasattr(s, "step") or not hasattr(s, "optimizer"):
            raise TypeError(f"scheduler= takes a scheduler of torch; got {type(s).__name__}")
    if scaler is not None and not isinstance(scaler, torch.amp.GradScaler):
        raise TypeError(f"scaler= takes a torch.amp.GradScaler; got {type(scaler).__name__}")
    place = here()
    diagnosis = Diagnosis(on_mistake, every, also=also)
    try:
        for optimizer in optimizers:
            diagnosis.add_optimizer(optimizer, place)
        for one in models:
            diagnosis.add_model(one, place)
        for s in schedulers:
            diagnosis.add_scheduler(s, place)
        if scaler is not None:
            diagnosis.add_scaler(scaler)
    except MistakeError:
        diagnosis.close()
        raise
    return diagnosis
