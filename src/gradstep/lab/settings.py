"""What a run was asked to do. It never changes, but for more epochs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from gradstep.lab.errors import SettingsError


@dataclass(frozen=True)
class Settings:
    """All that decides the result of a run.

    ``lrs`` has one learning rate for each of ``optimizers``; in epoch n it is multiplied by
    ``lr_decay ** (n - 1)``. ``data`` is the absolute path of a folder in MNIST's format, or None
    for scikit-learn's digits. ``shift`` is in pixels. ``train_limit`` keeps only so many training
    images; None keeps all.
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

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Settings:
        """The inverse of :meth:`to_json`; raises SettingsError if a field is missing."""
        missing = [field.name for field in fields(cls) if field.name not in values]
        if missing:
            raise SettingsError(f"the settings lack {', '.join(missing)}")
        known: dict[str, Any] = {field.name: values[field.name] for field in fields(cls)}
        known["optimizers"] = tuple(known["optimizers"])
        known["lrs"] = tuple(known["lrs"])
        return cls(**known)
