"""What a diagnosis has to say: one finding, as data and as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gradstep.sight.mistakes.place import Place

Severity = Literal["mistake", "advice"]


class MistakeWarning(UserWarning):
    """A finding, where ``on_mistake="warn"`` reports it; shown at the script's own line."""


class MistakeError(Exception):
    """A mistake, where ``on_mistake="raise"`` reports it.

    Attributes:
        finding: the :class:`Finding`.
    """

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = finding


@dataclass(frozen=True)
class Mistake:
    """What can go wrong in a training loop. It stands in the file that finds it, and only there.

    ``gradstep doctor --list`` and docs/mistakes.md are made of all.

    Attributes:
        name: such as ``"forgotten-zero-grad"``.
        when: when it is found.
        why: why it hurts.
        write: what to write instead, as far as that is always the same.
        severity: ``"mistake"`` for a fact, ``"advice"`` for what is often, not always, wrong.
    """

    name: str
    when: str
    why: str
    write: str
    severity: Severity = "mistake"


@dataclass(frozen=True)
class Finding:
    """Something in a training loop that is wrong, or looks so.

    Attributes:
        name: which mistake it is, such as ``"forgotten-zero-grad"``; docs/mistakes.md lists all.
        seen: what was seen, in one sentence.
        why: why that hurts.
        write: what to write instead.
        severity: ``"mistake"`` for a fact, ``"advice"`` for what is often, not always, wrong.
        place: the line of the user's code, or None where none could be told.
        parameter: a parameter's name in the model, or None where it is about none in particular.
        step: how many steps the optimizer had made, 0 before the first.
    """

    name: str
    seen: str
    why: str
    write: str
    severity: Severity = "mistake"
    place: Place | None = None
    parameter: str | None = None
    step: int = 0

    def __str__(self) -> str:
        where = f", {self.place}" if self.place is not None else ""
        return (
            f"{self.severity}: {self.name}{where}\n"
            f"  seen:  {self.seen}\n  why:   {self.why}\n  write: {self.write}"
        )
