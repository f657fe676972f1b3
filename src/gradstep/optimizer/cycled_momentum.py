"""The momentum that torch's OneCycleLR and CyclicLR set, where groups have none by that name.

They look for ``betas``, then for ``momentum``, in an optimizer's ``defaults``, and write the same
into every group. The groups of a rule have its own names, such as ``beta1``, and those of a
partition each their part's. So these offer a ``momentum``, which a step takes out of the group and
puts where the rule has it.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

from gradstep.optimizer.observer import Contents, StepObserver
from gradstep.optimizer.schedules import Place, write_number
from gradstep.rule.definition import Rule
from gradstep.rule.hyperparameter import is_number


class OffersMomentum(dict[str, Any]):
    """Options of new groups which say that there is a ``momentum``, though groups begin without."""

    def __contains__(self, key: object) -> bool:
        return key == "momentum" or super().__contains__(key)


def momentum_places(rule: Rule, places: Mapping[str, tuple[str, int]]) -> tuple[Place, ...]:
    """Where a group has what torch's schedulers take for momentum; () if it is under that name.

    Args:
        rule: the rule, or a chain of several, each of which may have its own.
        places: of hyperparameters that do not stand under their own name.
    """
    if "momentum" in rule.hyperparameters:
        return ()
    own = {n: n for n in rule.hyperparameters}
    found: list[Place] = []
    for stage, names in rule.stages or ((rule, own),):
        for name in ("momentum", "beta1"):
            if is_number(stage.hyperparameters.get(name)):
                found.append(places.get(names[name], (names[name], None)))
                break
    return tuple(found)


def with_momentum(defaults: dict[str, Any], places: tuple[Place, ...]) -> dict[str, Any]:
    """The options, which offer a momentum if the rule has one that schedulers would not find."""
    return OffersMomentum(defaults) if places and "betas" not in defaults else defaults


class CycledMomentum(StepObserver):
    """Puts the ``momentum`` that a scheduler has set into a group where the rule has it.

    Args:
        contents: the groups.
        places: of the momentum in them.
    """

    def __init__(self, contents: Contents, places: tuple[Place, ...]) -> None:
        self._contents, self._places = contents, places

    def begun(self, step: Any) -> None:
        """Before the groups are read."""
        for group in self._contents.groups:
            put_momentum(group, self._places)


def put_momentum(group: MutableMapping[str, Any], places: tuple[Place, ...]) -> None:
    """Put the ``momentum`` that a scheduler has set into its places in the group."""
    if not places or "momentum" not in group:
        return
    value = group.pop("momentum")
    for place in places:
        write_number(group, place, value)
