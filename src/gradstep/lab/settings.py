"""What a run was asked to do. It never changes, but for more epochs."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from gradstep.lab.errors import SettingsError


@dataclass(frozen=True)
class Settings:
    """All that decides the result of a run.

    ``lrs`` has one learning rate for each of ``optimizers``; in epoch n it is multiplied by
    ``lr_decay ** (n - 1)``. ``data`` is the absolute path of a folder in MNIST's format, or None
    for scikit-learn's digits. ``shift`` is in pixels. ``train_limit`` keeps only so many training
    images; None keeps all. ``state_dtype`` is what optimizers store their states as; with
    ``low_precision`` the weights are bfloat16, and kept in that way.
    """

    optimizers: tuple[str, ...]
    lrs: tuple[float, ...]
    epochs: int
    batch_size: int
    lr_decay: float
    shift: int
    seed: int
    threads: int
    data: str | None
    train_limit: int | None
    state_dtype: str | None = None
    low_precision: str | None = None

    def storage(self) -> dict[str, str]:
        """How optimizers store states and weights, as their classes take it."""
        given = {"state_dtype": self.state_dtype, "low_precision": self.low_precision}
        return {name: value for name, value in given.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Settings:
        """The inverse of :meth:`to_json`; raises SettingsError if a field is missing."""
        needed = [field.name for field in fields(cls) if field.default is MISSING]
        missing = [name for name in needed if name not in values]
        if missing:
            raise SettingsError(f"the settings lack {', '.join(missing)}")
        known: dict[str, Any] = {f.name: values.get(f.name) for f in fields(cls)}
        known["optimizers"] = tuple(known["optimizers"])
        known["lrs"] = tuple(known["lrs"])
        return cls(**known)
