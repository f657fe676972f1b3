"""Weights of which it is not known whether torch has the operations of a rule.

Such as float8, tensor subclasses and devices of other makers. Their step is tried out on a copy
before anything is written, and an error of torch's gets the weight's name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gradstep.backends.update import Update, describe
from gradstep.rule.symbol import RuleError

_USUAL = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.complex64,
    torch.complex128,
)


def is_usual(update: Update) -> bool:
    """Whether torch has every operation of the language for such a weight and gradient."""
    weight, gradient = update.weight, update.gradient
    plain = type(weight) in (Tensor, torch.nn.Parameter) and type(gradient) is Tensor
    strided = weight.layout is torch.strided
    return plain and strided and weight.dtype in _USUAL and weight.device.type in ("cpu", "cuda")


def copy_of(update: Update) -> Update:
    """The same update of copies, to try a step out on."""
    with torch.no_grad():
        states = {name: state.clone() for name, state in update.states.items()}
        numbers = {name: number.clone() for name, number in update.numbers.items()}
        return replace(update, weight=update.weight.clone(), states=states, numbers=numbers)


@contextlib.contextmanager
def naming(rule: str, *updates: Update, by: str = "torch") -> Iterator[None]:
    """Let an error of torch's say of which weights' step it is, and stay of its kind.

    Raises:
        RuntimeError, NotImplementedError, TypeError: as torch raised, with the weights' names.
    """
    try:
        yield
    except (RuleError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, TypeError) as error:
        if str(error).startswith(f"{by} cannot make the step of {rule} for "):
            raise  # it was named within
        kinds = (NotImplementedError, TypeError)
        kind: Any = next((k for k in kinds if isinstance(error, k)), RuntimeError)
        named = [_what(update) for update in updates[:3]]
        if len(updates) > 3:
            named.append(f"{len(updates) - 3} more")
        raise kind(
            f"{by} cannot make the step of {rule} for {', '.join(named)}: {type(error).__name__}: "
            f"{error}. Leave it out of the optimizer or give it to another rule; or let the "
            "parameter be a plain float32 tensor, and convert it in the forward pass"
        ) from error


def _what(update: Update) -> str:
    kind = type(update.weight)
    plain = kind in (Tensor, torch.nn.Parameter)
    return f"{update.name()} ({describe(update.weight)}{'' if plain else f', {kind.__name__}'})"
