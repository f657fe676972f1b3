"""Modules beside the model that the loss depends on, and that no optimizer holds."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from torch import Tensor, nn

from gradstep.sight.mistakes.backward import Backward
from gradstep.sight.mistakes.finding import Mistake
from gradstep.sight.mistakes.watched import Family, Watched

MODULE_IN_NO_OPTIMIZER = Mistake(
    "module-in-no-optimizer",
    when="the loss goes through a module in training mode beside the model, whose parameters are "
    "in no optimizer: a head or backbone of its own, layers in a Python list",
    why="it gets gradients and never moves",
    write="its parameters to the optimizer as well, or requires_grad_(False) and eval() if it is "
    "not to learn",
)

_LOOKS = 3


class LooseModules(Family):
    """Looks at the leaves that backward passes reach beside those in optimizers."""

    order = 19

    def __init__(self, diagnosis: Any) -> None:
        super().__init__(diagnosis)
        self._seen: dict[int, tuple[weakref.ref[Tensor], int, int]] = {}  # leaf, version, looks
        self._searched = 0

    def let_go(self) -> None:
        self._seen.clear()

    def before_look(self, watched: Watched) -> None:
        backward = self.diagnosis.family(Backward)
        if backward is None or watched.inner or watched.has_closure or not backward.leaves:
            return
        if not any(h.ever or h.arrived for h in watched.held) or not self.diagnosis.models:
            return
        named = {id(p) for model, _ in self.diagnosis.models for p in model.parameters()}
        held = {id(h.parameter) for w in self.diagnosis.watched for h in w.held}
        lasting = []
        for leaf in backward.unheld():
            if not isinstance(leaf, nn.Parameter) or id(leaf) in named or id(leaf) in held:
                continue
            known, version, looks = self._seen.get(id(leaf), (None, leaf._version, 0))
            if known is None or known() is not leaf or version != leaf._version:
                known, version, looks = weakref.ref(leaf), leaf._version, 0  # moved by hand
            self._seen[id(leaf)] = known, version, looks + 1
            if looks + 1 >= _LOOKS and leaf.grad is not None:
                lasting.append(leaf)
        if lasting and self._searched < _LOOKS:
            self._searched += 1
            self._say(watched, {id(leaf) for leaf in lasting})

    def _say(self, watched: Watched, leaves: set[int]) -> None:
        modules = [thing for thing in gc.get_objects() if issubclass(type(thing), nn.Module)]
        owners = [
            m
            for m in modules
            if m.training and any(id(p) in leaves for p in m._parameters.values())
        ]
        if not owners:
            return
        inside = {id(part) for m in modules for part in m.modules() if part is not m}
        tops = [m for m in modules if id(m) not in inside and any(o in owners for o in m.modules())]
        names = list(dict.fromkeys(type(top).__name__ for top in tops))
        kind, name = _list_with(modules, tops)
        if kind:
            seen = (
                f"{kind}.{name} is a Python list, so the modules in it ({', '.join(names)}) are no "
                "part of the model, and no optimizer holds their parameters"
            )
            write = f"self.{name} = nn.ModuleList(…), or nn.ModuleDict for a dict"
        else:
            seen = (
                f"the loss goes through {', '.join(names)} as well, whose parameters get gradients "
                "and are in no optimizer"
            )
            write = ""
        self.diagnosis.report(
            MODULE_IN_NO_OPTIMIZER,
            seen,
            write=write,
            watched=watched,
            place=watched.place,
            key="loose",
        )


def _list_with(modules: list[nn.Module], tops: list[nn.Module]) -> tuple[str, str]:
    """The class and the name of an attribute that is a list or dict with one of the modules."""
    wanted = {id(top) for top in tops}
    for module in modules:
        for name, value in vars(module).items():
            if name.startswith("_"):
                continue
            each = value.values() if isinstance(value, dict) else value
            if isinstance(value, list | tuple | dict) and any(id(v) in wanted for v in each):
                return type(module).__name__, name
    return "", ""
