"""Averaged weights that are evaluated or saved while the training weights stand in their place."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gradstep.compose.average import AveragedWeights
from gradstep.sight.mistakes.calls import follow
from gradstep.sight.mistakes.finding import Mistake
from gradstep.sight.mistakes.place import Place, here
from gradstep.sight.mistakes.watched import Family, Watched

AVERAGES_LEFT_OUT = Mistake(
    "averages-left-out",
    when="a model is evaluated or saved, and optimizer.eval(), which puts the averaged weights in "
    "place (Schedule-Free, EMA), was never called",
    why="these are the weights of the training, which move to and fro: the averages are better, "
    "and only they are what the rule promises",
    write="optimizer.eval() beside model.eval() or before torch.save(), and optimizer.train() "
    "after it",
)


class Averages(Family):
    """Optimizers with ``eval()`` and ``train()``, or in a wrapper with them; who calls these."""

    order = 13

    def __init__(self, diagnosis: Any) -> None:
        super().__init__(diagnosis)
        self._keepers: dict[int, Any] = {}  # id of a watched one -> who keeps its averages
        self._wrappers: list[weakref.ref[Any]] = []
        self._called: set[int] = set()  # ids of the keepers whose eval() was called
        self._places: dict[int, tuple[Place | None, str, int]] = {}
        self._followed: set[type] = set()
        self._ends = [follow(AveragedWeights, "__init__", after=self._wrapped)]

    def _wrapped(self, _: Any, wrapper: Any, *__: Any, **___: Any) -> None:
        self._wrappers.append(weakref.ref(wrapper))

    def _keeper(self, optimizer: torch.optim.Optimizer) -> Any:
        if all(callable(getattr(optimizer, name, None)) for name in ("eval", "train")):
            return optimizer
        mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for reference in self._wrappers:
            wrapper = reference()
            if wrapper is not None and any(
                id(p) in mine for group in wrapper.param_groups for p in group["params"]
            ):
                return wrapper
        return None

    def after_look(self, watched: Watched) -> None:
        if watched.steps > 1 or id(watched) in self._keepers:
            return
        keeper = self._keeper(watched.optimizer)
        if keeper is None:
            return
        if not self._keepers:
            self._ends += [
                follow(nn.Module, "eval", before=self._evaluates),
                follow(torch, "save", before=self._saves),
            ]
        self._keepers[id(watched)] = keeper
        owner = next((c for c in type(keeper).__mro__ if "eval" in vars(c)), None)
        if owner is not None and owner not in self._followed:
            self._followed.add(owner)
            self._ends.append(follow(owner, "eval", before=self._in_place))

    def forgot(self, watched: Watched) -> None:
        self._keepers.pop(id(watched), None)

    def _in_place(self, optimizer: Any, *_: Any, **__: Any) -> None:
        self._called.add(id(optimizer))

    def _evaluates(self, model: nn.Module, *_: Any, **__: Any) -> None:
        self.diagnosis.guarded(self._used, {id(p) for p in model.parameters()}, "eval()")

    def _saves(self, thing: Any, *_: Any, **__: Any) -> None:
        self.diagnosis.guarded(self._saved, thing)

    def _saved(self, thing: Any) -> None:
        if isinstance(thing, nn.Module):
            thing = thing.state_dict()
        if isinstance(thing, dict) and not _has_groups(thing):  # else one to go on from
            addresses = {t.data_ptr() for t in _tensors(thing)}
            held = [h.parameter for w in self._those() for h in w.held]
            self._used({id(p) for p in held if p.data_ptr() in addresses}, "torch.save()")

    def _those(self) -> Iterator[Watched]:
        for watched in self.diagnosis.watched:
            if id(watched) in self._keepers:
                yield watched

    def _is_called(self, watched: Watched) -> bool:
        return id(self._keepers[id(watched)]) in self._called

    def _used(self, parameters: set[int], by: str) -> None:
        for watched in self._those():
            mine = any(id(h.parameter) in parameters for h in watched.held)
            if mine and not self._is_called(watched):
                place, by_first, times = self._places.get(id(watched), (here(), by, 0))
                self._places[id(watched)] = place, by_first, times + 1

    def before_step(self, watched: Watched) -> None:
        if self._places and self._places.get(id(watched), (None, "", 0))[2] > 1:
            self._say(watched)

    def _say(self, watched: Watched) -> None:
        place, by, _ = self._places[id(watched)]
        if not self._is_called(watched):
            self.diagnosis.report(
                AVERAGES_LEFT_OUT,
                f"{by} was called with the weights of the training in the model, not the averages "
                f"that {type(self._keepers[id(watched)]).__name__} keeps",
                watched=watched,
                place=place,
            )

    def close(self) -> None:
        for end in self._ends:
            end()
        self._ends.clear()
        for watched in self.diagnosis.watched:
            if id(watched) in self._places:
                self._say(watched)
        self._keepers.clear()


def _has_groups(thing: Any) -> bool:
    if isinstance(thing, dict):
        return "param_groups" in thing or any(_has_groups(each) for each in thing.values())
    return False


def _tensors(thing: Any) -> Iterator[Tensor]:
    if isinstance(thing, Tensor):
        if thing.layout is torch.strided:
            yield thing
    elif isinstance(thing, dict):
        for each in thing.values():
            yield from _tensors(each)
