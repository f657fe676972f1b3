"""What a backend is: it takes weights or says why not, and binds a program to those that it takes.

A step goes like this::

    backend.refusal(update, program)      None: it takes the weight
    binding = backend.bind(program, updates)
    run = binding.prepare(values)         everything that may fail
    run()                                 writes

and the next one, if the binding lasts, begins at ``binding.accepts(weights, gradients, entries)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradstep.backends.update import Update
from gradstep.program.program import Program

#: What writes: weights, states and step counts. It may have ``rounds``, see
#: :mod:`gradstep.backends.global_sums`.
Run = Callable[[], None]


@dataclass(frozen=True, eq=False)
class Values:
    """The numbers of a step.

    Attributes:
        numbers: lr and the numeric hyperparameters, in the order of a program's ``names``.
        given: lr and every hyperparameter by name, as given: flags, and tensors where they are.
    """

    numbers: tuple[float, ...]
    given: Mapping[str, Any]


class UnreadValues(Values):
    """The numbers of a step, some of them in tensors that nobody has read yet.

    Whoever asks for :attr:`numbers` or :attr:`given` reads them, and waits for their device. A
    backend that reads them on the device takes the others from :attr:`known`.

    Args:
        names: of the numbers.
        known: the numbers, with 0 in the place of those in tensors.
        given: lr and every hyperparameter by name, as given.
        tensors: name -> the tensor of one element that the number is in.
        found_inf: a tensor of one float32: the step is to write nothing where it is not 0. None:
            it is to write.

    Attributes:
        known, tensors, found_inf: as given.
        as_given: lr and every hyperparameter by name, tensors as they are.
    """

    def __init__(
        self,
        names: Sequence[str],
        known: Sequence[float],
        given: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        found_inf: Tensor | None = None,
    ) -> None:
        own = object.__setattr__  # the class above is frozen
        own(self, "_names", names)
        own(self, "known", tuple(known))
        own(self, "as_given", given)
        own(self, "tensors", tensors)
        own(self, "found_inf", found_inf)

    _names: Sequence[str]
    known: tuple[float, ...]
    as_given: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    found_inf: Tensor | None

    @property
    def numbers(self) -> tuple[float, ...]:
        """All of them, read."""
        pairs = zip(self._names, self.known, strict=True)
        tensors = self.tensors
        return tuple([float(tensors[n]) if n in tensors else known for n, known in pairs])

    @property
    def given(self) -> Mapping[str, Any]:
        """All of them by name, read."""
        return {**self.as_given, **{name: float(t) for name, t in self.tensors.items()}}


class Binding(ABC):
    """Weights that one run updates: what is remembered of them from step to step.

    What is remembered holds no tensor: a parameter that is replaced is to be freed with its last
    owner.

    Attributes:
        lasts: whether :meth:`accepts` may take the next step's tensors.
    """

    lasts = False

    def accepts(
        self,
        weights: Sequence[Tensor],
        gradients: Sequence[Tensor],
        entries: Sequence[Mapping[str, Any]],
    ) -> bool:
        """Take tensors in the place of those that were bound, if each is as those were.

        A quick look, at every step. False means: look with care, and bind anew.

        Args:
            weights: the parameters, in the order of the updates.
            gradients: one a weight.
            entries: one mapping a weight, which holds its states and its ``"step"``, by name.
        """
        return False

    @abstractmethod
    def prepare(self, values: Values) -> Run:
        """Do all that may fail for the tensors last bound or accepted, and return what writes."""

    def rows(self, kind: Hashable, updates: Sequence[Update]) -> Sequence[Any]:
        """What was found out about each weight by itself, to be bound in other company.

        Each has ``kind``, ``spans`` and ``bind(rows, weights)``; none by default.
        """
        return ()


class Backend(ABC):
    """Makes steps of weights.

    Attributes:
        name: as ``engine=`` takes it, and ``engines_used()`` gives it.
        may_stop: whether a run may raise in the middle, when some weights are written already.
        at_once: whether it updates the weights of a step in any order, and several at once: then
            none may share memory with another.
        may_skip: whether its runs may read ``found_inf`` of :class:`UnreadValues` themselves; they
            then have ``skips``.
        device_types: torch's names for the kinds of devices that it is made for; none where it
            makes no difference. Why it refuses a weight on such a device is logged, whoever takes
            it then.
    """

    name: str
    may_stop = True
    at_once = True
    may_skip = False
    device_types: frozenset[str] = frozenset()

    @abstractmethod
    def refusal(self, update: Update, program: Program) -> str | None:
        """Why it cannot take a weight, to be said behind "it is updated eagerly:"; None if it can.

        Nothing is changed, and nothing kept.
        """

    def takes_plain(self, program: Program) -> bool:
        """Whether it takes every weight that is plain, as ``optimizer/preparing.py`` says.

        These then come to :meth:`bind` without :meth:`refusal`. Default: no.
        """
        return False

    def kind(self, update: Update, program: Program) -> Hashable:
        """Weights of one program and equal kinds are bound together. Default: all."""
        return None

    @abstractmethod
    def bind(self, program: Program, updates: Sequence[Update]) -> Binding:
        """Bind a program to weights that were checked and not refused.

        Raises:
            Anything that speaks against the step. Nothing has been written then.
        """
