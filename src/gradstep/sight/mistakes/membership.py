"""Who holds which parameter: the model, the optimizers, and the gradients that reach them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from gradstep.sight.mistakes.finding import Mistake
from gradstep.sight.mistakes.place import Place, here
from gradstep.sight.mistakes.watched import Family, Held, Watched

PARAMETER_IN_TWO_OPTIMIZERS = Mistake(
    "parameter-in-two-optimizers",
    when="two optimizers use one gradient of it; advice where they take turns",
    why="it moves twice for one gradient, by two rules that know nothing of each other",
    write="each parameter to one optimizer; groups give it settings of its own",
)
PARAMETER_REPLACED = Mistake(
    "parameter-replaced",
    when="the model has another tensor in the place of a held one: a new `nn.Parameter`, "
    "`load_state_dict(assign=True)`, `model.to` where it makes new ones",
    why="the model's own weights stay as they are: it does not learn there",
    write="the optimizer after this line; or change the weights in place: with "
    "torch.no_grad(): p.copy_(…)",
)
PARAMETER_IN_NO_GROUP = Mistake(
    "parameter-in-no-group",
    when="a parameter of the model gets gradients, is in no optimizer, and nobody moves it by hand",
    why="it never moves, and its gradient grows from step to step",
    write="it into a parameter group of the optimizer; or requires_grad_(False), which also "
    "saves its backward pass",
)
PARAMETER_NOT_REACHED = Mistake(
    "parameter-not-reached",
    when="a parameter is held, but no backward pass ever reached it (after 100 steps, or at "
    "the end)",
    why="it never learns",
    write="the forward pass so that the loss uses it: look for a module that is not called, "
    "detach(), .data, .item() or torch.no_grad() on the way",
)

#: After so many steps a parameter that no gradient ever reached is worth a word.
_LONG_ENOUGH = 100
#: A training that ended after fewer steps was a trial.
_TRIAL = 3


@dataclass
class _Model:
    """A model, and its parameters by name as they were first, while an optimizer holds them."""

    module: nn.Module
    place: Place | None
    parameters: dict[str, Tensor]


@dataclass
class _Replaced:
    """A parameter that gave way to another one, and where."""

    module: nn.Module
    name: str
    old: Tensor
    new: Tensor
    place: Place | None


@dataclass
class _Shared:
    """A parameter that two optimizers hold; ``last`` made the last step, after ``turns`` turns."""

    one: tuple[Watched, Held]
    other: tuple[Watched, Held]
    last: Watched | None = None
    turns: int = 0


class Membership(Family):
    """Parameters in no optimizer, in two, out of reach of the loss, or not the model's any more."""

    order = 2

    def __init__(self, diagnosis: Any) -> None:
        super().__init__(diagnosis)
        self._models: list[_Model] = []
        self._replaced: list[_Replaced] = []
        self._shared: dict[int, list[_Shared]] = {}
        self._unheld: dict[int, tuple[int, int]] = {}  # id -> looks with a gradient, its version
        self._gone: set[int] = set()  # ids of held parameters that are not the model's any more
        self._swaps: list[tuple[set[int], Place | None]] = []  # held ids, where a module went
        self._handles: list[Any] = [
            register_module_parameter_registration_hook(self._registered),
            register_module_module_registration_hook(self._module_registered),
        ]

    def take_model(self, model: nn.Module, place: Place | None) -> None:
        """Remember the model's parameters."""
        self._models.append(_Model(model, place, dict(model.named_parameters())))

    def _registered(self, module: nn.Module, name: str, parameter: Tensor) -> None:
        old = module._parameters.get(name)
        if (
            old is not None
            and parameter is not None
            and old is not parameter
            and self._is_held(old)
        ):
            self._replaced.append(_Replaced(module, name, old, parameter, here()))

    def _module_registered(self, module: nn.Module, name: str, part: Any) -> None:
        old = module._modules.get(name)
        if old is not None and old is not part:
            held = {id(p) for p in old.parameters() if self._is_held(p)}
            if held:
                self._swaps.append((held, here()))

    def _place_of(self, gone: Iterable[int], otherwise: Place | None) -> Place | None:
        """Where a module with these parameters gave way to another."""
        gone = set(gone)
        return next((place for held, place in reversed(self._swaps) if held & gone), otherwise)

    def _is_held(self, parameter: Tensor) -> bool:
        return any(h.parameter is parameter for w in self.diagnosis.watched for h in w.held)

    # Two optimizers.

    def added(self, watched: Watched) -> None:
        self._let_go()
        mine = {id(h.parameter): h for h in watched.held}
        for other in self.diagnosis.watched:
            if other is watched or _wraps(other, watched) or _wraps(watched, other):
                continue
            for held in other.held:
                if id(held.parameter) in mine:
                    pair = _Shared((other, held), (watched, mine[id(held.parameter)]))
                    known = self._shared.setdefault(id(watched), [])
                    if not any(s.one == pair.one or s.other == pair.one for s in known):
                        known.append(pair)
                        self._shared.setdefault(id(other), []).append(pair)

    def forgot(self, watched: Watched) -> None:
        self._shared.pop(id(watched), None)
        for key, pairs in self._shared.items():
            self._shared[key] = [s for s in pairs if watched not in (s.one[0], s.other[0])]

    def _let_go(self) -> None:
        """Forget the parameters that no optimizer holds any more, or nobody could free them."""
        held_ids = {id(h.parameter) for w in self.diagnosis.watched for h in w.held}
        self._replaced = [r for r in self._replaced if id(r.old) in held_ids]
        self._swaps = [swap for swap in self._swaps if swap[0] & held_ids]
        for model in self._models:
            for name, now in model.module.named_parameters():
                if id(model.parameters.get(name)) not in held_ids:
                    model.parameters[name] = now
        alive = {id(h) for w in self.diagnosis.watched for h in w.held}
        for key, pairs in self._shared.items():
            self._shared[key] = [
                s for s in pairs if id(s.one[1]) in alive and id(s.other[1]) in alive
            ]

    def _take_turns(self, watched: Watched) -> None:
        if watched.inner:
            return
        if self._shared[id(watched)]:
            self.diagnosis.attend(2)
        for shared in self._shared[id(watched)]:
            mine, theirs = shared.one, shared.other
            if mine[0] is not watched:
                mine, theirs = theirs, mine
            gradient = mine[1].parameter.grad
            if gradient is None or mine[0].place == theirs[0].place is not None:
                continue  # of those made at one line, the later one takes the other's place
            name = self.diagnosis.name_of(mine[1].parameter)
            later = max(mine[0], theirs[0], key=self.diagnosis.watched.index)
            # Before a closure runs, the gradient is still the other one's.
            again = theirs[1].is_used_gradient(gradient) and not watched.has_closure
            if again and not mine[1].is_used_gradient(gradient):
                self.diagnosis.report(
                    PARAMETER_IN_TWO_OPTIMIZERS,
                    f"{name} is held by two optimizers, and both make a step with the same "
                    "gradient",
                    parameter=name,
                    watched=watched,
                    place=later.place,
                    key=tuple(sorted((id(mine[0]), id(theirs[0])))),
                )
            if shared.last is not watched:
                shared.turns += shared.last is not None
                shared.last = watched
            if shared.turns == 3:  # one turn is a second phase of the training
                self.diagnosis.report(
                    PARAMETER_IN_TWO_OPTIMIZERS,
                    f"{name} is held by two optimizers that take turns with it",
                    why="the momentum of each one is about weights that the other has moved",
                    write="each parameter to one optimizer, unless this is what you want",
                    severity="advice",
                    parameter=name,
                    watched=watched,
                    place=later.place,
                    key=tuple(sorted((id(mine[0]), id(theirs[0])))),
                )

    # Replaced ones.

    def before_step(self, watched: Watched) -> None:
        if id(watched) in self._shared:
            self._take_turns(watched)
        if self._replaced:
            self._find_registered(watched)

    def _find_registered(self, watched: Watched) -> None:
        mine = {id(h.parameter) for h in watched.held}
        found = [
            r
            for r in self._replaced
            if id(r.old) in mine
            and r.module._parameters.get(r.name) is r.new
            and not self._is_held(r.new)
        ]
        self._replaced = [r for r in self._replaced if id(r.old) not in mine]
        if found:
            name_of = self.diagnosis.name_of
            names = [name_of(r.new, name_of(r.old)) for r in found]
            self._gone.update(id(r.old) for r in found)
            self._say_replaced(watched, names, found[0].place)

    def _say_replaced(self, watched: Watched, names: list[str], place: Place | None) -> None:
        self.diagnosis.report(
            PARAMETER_REPLACED,
            f"{_some(names)} in the model was replaced by another tensor after the optimizer was "
            "made: the optimizer still moves the old one",
            parameter=names[0],
            watched=watched,
            place=place,
        )

    def before_look(self, watched: Watched) -> None:
        for held in watched.held:
            held.ever = held.ever or held.parameter.grad is not None
        self.find_replaced(watched)
        held_ids = {id(h.parameter) for w in self.diagnosis.watched for h in w.held}
        for model in self._models:
            self._find_unheld(watched, model, dict(model.module.named_parameters()), held_ids)
        if watched.steps >= _LONG_ENOUGH:
            self._find_unreached(watched)

    def find_replaced(self, watched: Watched) -> bool:
        """Whether the optimizer holds parameters that are not the model's any more; say so."""
        self._find_registered(watched)
        held_ids = {id(h.parameter) for w in self.diagnosis.watched for h in w.held}
        mine = {id(h.parameter) for h in watched.held}
        for model in self._models:
            now = dict(model.module.named_parameters())
            still = {id(p) for p in now.values()}
            swapped = [
                name
                for name, old in model.parameters.items()
                if id(old) in mine
                and id(old) not in still
                and name in now
                and id(now[name]) not in held_ids
            ]
            if swapped:
                gone = {id(model.parameters[name]) for name in swapped}
                self._gone |= gone
                plain = [self.diagnosis.plain_name(name) for name in swapped]
                self._say_replaced(watched, plain, self._place_of(gone, None))
        return any(id(h.parameter) in self._gone for h in watched.held)

    def _find_unheld(
        self, watched: Watched, model: _Model, now: dict[str, Tensor], held_ids: set[int]
    ) -> None:
        if self._gone or not any(id(p) in held_ids for p in now.values()):
            return
        unheld = []
        for name, p in now.items():
            if id(p) in held_ids or not p.requires_grad or p.grad is None:
                continue
            looks, version = self._unheld.get(id(p), (0, p._version))
            if p._version != version:
                looks = 0  # somebody moves it by hand
            self._unheld[id(p)] = (looks + 1, p._version)
            if looks + 1 >= 3:
                unheld.append(self.diagnosis.plain_name(name))
        if not unheld:
            return
        orphans = [
            h
            for h in watched.held
            if not h.ever and not any(h.parameter is p for p in now.values())
        ]
        if orphans:
            gone = {id(h.parameter) for h in orphans}
            self._gone |= gone
            self._say_replaced(watched, unheld, self._place_of(gone, watched.place))
            return
        self.diagnosis.report(
            PARAMETER_IN_NO_GROUP,
            f"{_some(unheld)} of the model gets gradients, but no optimizer holds it",
            parameter=unheld[0],
            watched=watched,
            place=watched.place,
            key=id(model.module),
        )

    # Out of reach.

    def _find_unreached(self, watched: Watched) -> None:
        unreached = [
            self.diagnosis.name_of(h.parameter)
            for h in watched.held
            if not h.ever
            and id(h.parameter) not in self._gone
            and h.parameter.requires_grad
            and h.parameter.grad is None
        ]
        if not unreached or len(unreached) == len(watched.held):
            return
        self.diagnosis.report(
            PARAMETER_NOT_REACHED,
            f"{_some(unreached)} is held by the optimizer, but no backward() in {watched.steps} "
            "steps gave it a gradient: the loss does not depend on it",
            parameter=unreached[0],
            watched=watched,
            place=watched.step_place,
        )

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        for watched in self.diagnosis.watched:
            if watched.steps >= _TRIAL and not self.diagnosis.interrupted:
                self._find_unreached(watched)
        self._shared.clear()


def _wraps(one: Watched, other: Watched) -> bool:
    """Whether one optimizer has the other inside, as those that wrap another do."""
    return any(value is other.optimizer for value in vars(one.optimizer).values())


def _some(names: Iterable[str]) -> str:
    first, *others = names
    if not others:
        return first
    return f"{first} (and {len(others)} other{'s' if len(others) > 1 else ''})"
