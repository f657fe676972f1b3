"""The forward pass: the first module whose output is not finite."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn.modules import module as torch_module

from gradstep.sight.mistakes.watched import Family, Watched

#: So many steps are looked at from the beginning.
_FIRST = 3


@dataclass
class Spoilt:
    """A module that returned inf or nan, the first since the last step.

    Attributes:
        module: it; a weak reference.
        kind: ``"inf"`` or ``"nan"``.
        given: ``"inf"`` or ``"nan"`` if what it got was so already, else None.
        weights: the same of its weights.
        ends: the ids of all modules that returned such values.
    """

    module: weakref.ref[nn.Module]
    kind: str
    given: str | None
    weights: str | None
    ends: set[int]


class Forward(Family):
    """Looks at what modules return; it says nothing itself, since an inf may be a mask.

    Its hooks are on in the first steps, and after that in the pass that follows a gradient that was
    not finite.

    Attributes:
        spoilt: what was found since the last step.
        looked: whether a module has been looked at since the last step.
    """

    order = 7

    def __init__(self, diagnosis: Any) -> None:
        super().__init__(diagnosis)
        self.spoilt: Spoilt | None = None
        self.looked = False
        self._left = _FIRST
        self._handle: Any = None
        self._filter: Any = None
        self._begin()

    def arm(self) -> None:
        """Look at the next step's forward pass."""
        self._left = max(self._left, 2)  # the present step is counted, too
        self.spoilt, self.looked = None, False
        self.diagnosis.attend(self._left + 1)
        if self._handle is None:
            self._begin()

    def _begin(self) -> None:
        self._handle = torch_module.register_module_forward_hook(self._returned, with_kwargs=True)
        # A compiled module warns of hooks that it calls once more; these do nothing then.
        warnings.filterwarnings(
            "ignore", "Using `torch.compile.module.` when there are global hooks"
        )
        self._filter = warnings.filters[0]

    def after_step(self, watched: Watched) -> None:
        if self._handle is None:
            return
        self.spoilt, self.looked = None, False
        self._left -= 1
        if not self._left:
            self.close()

    def close(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            # What torch itself leaves behind.
            torch_module._global_forward_hooks_with_kwargs.pop(self._handle.id, None)
            self._handle = None
            if self._filter in warnings.filters:
                warnings.filters.remove(self._filter)  # type: ignore[attr-defined]

    def _returned(self, module: nn.Module, given: Any, named: Any, output: Any) -> None:
        if not is_compiling() and torch.is_grad_enabled():
            self.diagnosis.guarded(self._look, module, [given, named], output)

    def _look(self, module: nn.Module, given: Any, output: Any) -> None:
        self.looked = True
        kind = _kind(output)
        if kind is None:
            return
        if self.spoilt is None:
            weights = _kind([*module.parameters()])
            self.spoilt = Spoilt(weakref.ref(module), kind, _kind(given), weights, set())
        self.spoilt.ends.add(id(module))

    def reached_the_end(self) -> bool:
        """Whether a whole model returned such values."""
        ends = self.spoilt.ends if self.spoilt is not None else set()
        return any(id(model) in ends for model, _ in self.diagnosis.models)

    def name_of(self, module: nn.Module | None) -> str:
        """A module's name in its model, and its class."""
        kind = "a module" if module is None else type(module).__name__
        for model, _ in self.diagnosis.models:
            for name, each in model.named_modules():
                if each is module and name:
                    return f"{self.diagnosis.plain_name(name)} ({kind})"
        return kind


def _kind(values: Any) -> str | None:
    """``"nan"`` or ``"inf"`` if some of the values are that; None if all are finite."""
    kinds = set()
    for tensor in _tensors(values):
        if not bool(tensor.isfinite().all()):
            kinds.add("nan" if bool(tensor.isnan().any()) else "inf")
    return max(kinds, default=None)


def _tensors(values: Any) -> Iterator[Tensor]:
    """The tensors in a value that can be read, as deep as modules usually pack them."""
    if isinstance(values, Tensor):
        if (
            values.layout is torch.strided
            and values.device.type != "meta"
            and not hasattr(values, "to_local")
            and (values.is_floating_point() or values.is_complex())
        ):
            yield values.detach()
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
    elif isinstance(values, list | tuple):
        for each in values:
            yield from _tensors(each)
