"""What is put together of optimizers: partitions of a model, wrappers around a step, schedules."""

from importlib import import_module
from typing import Any

from gradstep.compose import schedule as schedule


def __getattr__(name: str) -> Any:
    if name == "trainers":  # which imports most of the package
        return import_module("gradstep.compose.trainers")
    raise AttributeError(f"module {__name__} has no {name}")
