"""``gradstep.explain``: arm the next step of an optimizer, and have it explain itself.

Nothing is looked at before that step, and nothing after it. Within it the numbers of the weights
that were asked for are read once everything has been checked and nothing has been written, and
what the rule takes from other weights is read where the kernel leaves it. What goes wrong here is
said in the explanation; the training never hears of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gradstep.backends import global_sums
from gradstep.compose.partition import Partition
from gradstep.compose.step_in_backward import steps_in_backward
from gradstep.compose.wrapper import Wrapper, way_to_ours
from gradstep.optimizer.observer import StepObserver, observe
from gradstep.optimizer.optimizer import Optimizer, planner_of
from gradstep.optimizer.planning import Planner
from gradstep.optimizer.step import Step
from gradstep.optimizer.weight_spec import state_specs, weight_number
from gradstep.program.shards import is_sharded
from gradstep.sight.account import Account, class_name
from gradstep.sight.element import Element, element_of, group_of, sparse_entries
from gradstep.sight.page import Page
from gradstep.sight.places import Choice, choose_places, find_parameter
from gradstep.sight.show import Shown
from gradstep.sight.surroundings import live_update


def explain(
    optimizer: Optimizer | Wrapper | Partition,
    param: Tensor | str | None = None,
    index: Any = None,
    *,
    count: int = 1,
    seed: int | None = None,
    model: nn.Module | None = None,
) -> StepExplanation:
    """Arm the optimizer's next step: it then explains what it does to one weight, or to several.

    ::

        explanation = gradstep.explain(optimizer, "fc1.weight", index=(3, 7))
        optimizer.step()
        print(explanation)

    The step itself is not changed, and steps after it are not looked at.

    Args:
        optimizer: of this package, for any rule or chain; also a partition, or a wrapper.
        param: the parameter's name, as ``named_parameters()`` gave it to the optimizer or as
            ``model`` has it; or the tensor itself. Default: the only one that the optimizer has.
        index: the weight's place, a tuple of one number a dimension, or a number for a vector; a
            list of these for several weights; ``"largest"`` for the weight of the largest
            gradient; ``"random"``. May be left out for a parameter of one weight.
        count: how many weights ``"largest"`` and ``"random"`` choose. Default: 1.
        seed: for ``"random"``, which has a generator of its own. Default: another choice each time.
        model: the model whose names are meant, for an optimizer that was given none.

    Returns:
        an object that, after the step, prints the explanation; before it, that it waits.

    Raises:
        TypeError: an optimizer that is not of this package, LBFGS, or a complex parameter or one
            that is split among processes.
        ValueError, IndexError: no such parameter or weight.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TypeError(
            "LBFGS moves all weights together along a direction that it searches: there is no "
            "formula for one weight. Explain a step of another optimizer."
        )
    inside: Any = optimizer
    wrappers: list[Wrapper] = []
    while isinstance(inside, Wrapper):
        wrappers.append(inside)
        inside = inside.optimizer
    optimizer = inside
    if not isinstance(optimizer, Optimizer | Partition):
        kind = type(optimizer)
        theirs = isinstance(optimizer, torch.optim.Optimizer)
        raise TypeError(
            f"explain() takes an optimizer of gradstep; got {kind.__module__}.{kind.__qualname__}. "
            + (way_to_ours(optimizer) if theirs else "Give the optimizer first")
            + "."
        )
    parts = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer.parts.values())
    name, parameter, part = find_parameter(parts, param, model)
    if parameter.is_complex():
        raise TypeError(
            f"{name} is complex: its weights are pairs of numbers, and each is updated as a real "
            "one. Explain a real parameter, such as torch.view_as_real() would be."
        )
    if is_sharded(parameter):
        raise TypeError(
            f"{name} is split among processes (a DTensor); explain() takes whole tensors alone"
        )
    choice = choose_places(name, parameter.shape, index, count, seed)
    for wrapper in wrappers:
        parameter = wrapper._in_step(parameter)
    return StepExplanation(optimizer, part, name, parameter, choice)


class StepExplanation(Shown, StepObserver):
    """What one step does to the weights that were asked for. Made by :func:`explain`.

    Print it, or take :meth:`text`, :meth:`markdown`, :meth:`html` or :meth:`latex`; a notebook
    shows it by itself.

    Attributes:
        parameter: the parameter's name.
        accounts: after the step, one for each weight, in the order in which they were asked for.
        ready: whether the step has been made, or was left out.
    """

    def __init__(
        self,
        stepped: Optimizer | Partition,
        optimizer: Optimizer,
        parameter: str,
        tensor: Tensor,
        choice: Choice,
    ) -> None:
        self.parameter = parameter
        self.accounts: tuple[Account, ...] = ()
        self.ready = False
        self._class = class_name(optimizer)
        self._choice = choice
        self._armed: tuple[Optimizer, Tensor] | None = (optimizer, tensor)
        self._reading: _Reading | None = None
        self._raised = False
        self._note = ""
        # A partition makes the step of its parts, which have no step of their own.
        self._leave: Callable[[], None] | None = observe(stepped, self)

    @property
    def note(self) -> str:
        """In one line, why there is no explanation, or none yet; else empty."""
        if self._note or self._armed is None:
            return self._note
        waiting = f"{self.parameter}: waits for the next step of {self._class}"
        if self._raised:
            return f"{waiting}; the last one raised an error before it was done"
        try:
            unscaled = _not_finite(self._armed[0])
        except Exception:
            unscaled = False
        if unscaled:
            return f"{waiting}; a gradient is inf or nan, and GradScaler leaves such a step out"
        return waiting

    def cancel(self) -> None:
        """Do not wait any longer. What has been explained stays."""
        if self._armed is not None:
            self._done(f"{self.parameter}: cancelled before a step of {self._class}")

    # Within the step.

    def planned(self, step: Step) -> None:
        """Read what the step starts from."""
        assert self._armed is not None
        optimizer, tensor = self._armed
        if step.weight is None and steps_in_backward(tensor) and tensor.grad is None:
            return  # it has had its turn
        if step.weight is not None and step.weight is not tensor:
            return
        self._raised = False
        planner = planner_of(optimizer)
        try:
            with torch.no_grad():
                reading = _Reading(planner, class_name(optimizer), tensor, self.parameter)
                self._reading = reading
                reading.look(self._choice)
                step.run_beside(planner, reading.start(step.runs_of(planner)))
        except Exception as error:
            self._failed(error)

    def written(self, step: Step) -> None:
        """Read what the step wrote."""
        if self._armed is not None and self._reading is None and not self._note:
            return  # the weight moved before this was armed: it waits for the next step
        if self._reading is not None and not self._note:
            try:
                with torch.no_grad():
                    self.accounts = self._reading.finish()
                self._note = self._reading.note
            except Exception as error:
                self._failed(error)
        self._done(self._note)

    def closed(self, step: Step) -> None:
        """Wait for the next step if this one has raised; for none if it was skipped."""
        if step.skipped:
            self._done(
                f"{self.parameter}: the step was skipped, and nothing was written: GradScaler "
                "found inf or nan in the gradients"
            )
        elif self._reading is not None:
            self._reading.leave()
            self._reading, self._note, self._raised = None, "", True

    def _failed(self, error: Exception) -> None:
        said = " ".join(str(error).split()) or type(error).__name__
        self._note = f"{self.parameter}: the step could not be explained: {said}"

    def _done(self, note: str) -> None:
        if self._leave is not None:
            self._leave()
        if self._reading is not None:
            self._reading.leave()
        self._note, self._armed, self._reading, self._leave = note, None, None, None
        self.ready = True

    # Shown.

    def _pages(self) -> list[Page]:
        pages = (account.page() for account in self.accounts)
        return [page for page in pages if page is not None]

    def _notes(self) -> list[str]:
        return [note for note in (self.note, *(a.note for a in self.accounts)) if note]

    def __repr__(self) -> str:
        weights = ", ".join(account.title for account in self.accounts)
        return f"<explanation of {weights or self.note}>"


class _Reading:
    """The numbers that were read in a step, until it is done."""

    def __init__(self, planner: Planner, kind: str, tensor: Tensor, name: str) -> None:
        self.note = ""
        self._tensor = tensor
        self._name = name
        self._kind = kind
        self._elements: list[Element] = []
        self._notes: list[str] = []
        self._probe: Any = None
        self._outcomes: list[list[float]] | None = None
        self._problem: Exception | None = None
        self._planner = planner

    def look(self, choice: Choice) -> None:
        """Read what the weights start from."""
        tensor, planner = self._tensor, self._planner
        gradient = tensor.grad
        if gradient is None:
            self.note = f"{self._name}: it had no gradient in this step, which left it as it was"
            return
        for place in choice.of(gradient):
            known = self._elements[0].graph if self._elements else None
            element = element_of(planner, tensor, place, known)
            untouched = (
                gradient.is_sparse
                and planner.rule.sparse is not None
                and not len(sparse_entries(gradient, place))
            )
            said = "the sparse gradient does not name its row, and the step left it as it was"
            self._elements.append(element)
            self._notes.append(said if untouched else "")

    def start(self, runs: Sequence[Any]) -> list[Any]:
        """Have the sums and functions of the rule watched; returns what is to be run beside."""
        graph = self._elements[0].graph if self._elements else None
        if graph is None or not graph.gathered:
            return []
        from gradstep.backends.cpu.probe import (  # takes the compiler with it
            Probe,
            gathered_eagerly,
        )

        planner, places = self._planner, [element.place for element in self._elements]
        if graph.sums_over_all:
            held = [p for group in planner.contents.groups for p in group["params"]]
            weights = [p.numel() for p in held if p.grad is not None]
            everything = (len(weights), sum(weights))
            self._elements = [replace(e, everything=everything) for e in self._elements]
        probe = Probe(graph, self._tensor, places)
        if probe.join(runs):
            self._probe = probe
            return []
        settings = self._elements[0].settings
        group = group_of(planner, self._tensor)
        update = live_update(planner, group, self._tensor, graph, settings)
        rounds = self._keep(gathered_eagerly(graph, update, settings, places))
        if graph.sums_over_all:
            return [_Beside(rounds)]
        for _ in rounds:
            raise AssertionError("a rule without sums over all parameters asked for one")
        return []

    def _keep(self, rounds: Any) -> global_sums.Rounds:
        try:
            self._outcomes = yield from rounds
        except Exception as error:
            self._problem = error

    def finish(self) -> tuple[Account, ...]:
        """What became of it."""
        if self._probe is not None:
            self._outcomes, self._problem = self._probe.found, self._probe.problem
        if self._problem is not None:
            raise self._problem
        engine = self._planner.engines_used().get(self._planner.name_of(self._tensor), "")
        accounts = []
        for position, (element, note) in enumerate(zip(self._elements, self._notes, strict=True)):
            if element.graph.gathered:
                assert self._outcomes is not None
                own = tuple(values[position] for values in self._outcomes)
                element = replace(element, outcomes=own)
            entry = self._planner.contents.state.get(self._tensor, {})
            blocks = [name for name, format in element.formats().items() if format.block > 1]
            specs, shape = state_specs(element.rule), element.shape
            became = {n: specs[n].at(element.place, entry, shape) for n in blocks if n in entry}
            element = replace(element, became=became)
            written = weight_number(element.rule, self._tensor, entry, element.place)
            accounts.append(Account(self._name, self._kind, engine, element, written, note))
        return tuple(accounts)

    def leave(self) -> None:
        """Watch no longer."""
        if self._probe is not None:
            self._probe.leave()


class _Beside:
    """Takes part in the rounds of a step that sums over all parameters; hands in nothing."""

    def __init__(self, rounds: global_sums.Rounds) -> None:
        self.rounds = lambda: rounds

    def __call__(self) -> None:
        raise AssertionError("a step with sums over all parameters goes through its rounds")


def _not_finite(optimizer: Optimizer) -> bool:
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
    return any(
        not bool(torch.isfinite(g._values() if g.is_sparse else g).all())
        for g in gradients
        if g is not None
    )
