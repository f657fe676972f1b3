"""What ``gradstep bench`` times in one row: an optimizer, and how much faster it should be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

#: The aims, as torch's best mode over ours, by size: where torch has a fused kernel on the CPU ...
AIMS_WHERE_TORCH_FUSES = {"lenet": 2.0, "transformer": 1.0, "large": 1.0}
#: ... and where it has none.
AIMS_ELSEWHERE = {"lenet": 5.0, "transformer": 2.0, "large": 2.5}


@dataclass(frozen=True)
class Case:
    """A rule with its flags set.

    Attributes:
        name: on the command line.
        ours: gradstep's class.
        torchs: torch.optim's class of the same name, if there is one.
        options: arguments for both.
        torch_fuses: whether torch has a fused CPU kernel for it.
        own_aims: aims that differ from those of its kind, by size.
        left_out: modes of torch that are not timed, as ``"torch foreach"`` -> why.
        matrices_only: whether it updates a network's matrices alone.
        asks_for_loss: whether its step needs a closure.
        beside: another of our own optimizers that it is timed beside, and its name: a chain beside
            the rule that it is built on. The ratio is then of that one's time to the chain's.
        compared_on: the shapes of weights on which it is told whether a peer's rule is this one.
    """

    name: str
    ours: Callable[..., Any]
    torchs: Callable[..., Any] | None
    options: dict[str, Any] = field(default_factory=dict)
    torch_fuses: bool = False
    own_aims: Mapping[str, float] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    matrices_only: bool = False
    asks_for_loss: bool = False
    beside: tuple[str, Callable[..., Any]] | None = None
    compared_on: tuple[tuple[int, ...], ...] = ((8, 6), (5,), (4, 3, 2, 2))

    def step_of(self, optimizer: Any) -> Callable[[], object]:
        """A step of it, with a loss of 1 where it asks for one."""
        return partial(optimizer.step, lambda: 1.0) if self.asks_for_loss else optimizer.step

    def aim(self, size: str) -> float | None:
        """How many times faster than torch's best mode it should be; None where nothing is set."""
        if self.torchs is None:
            return self.own_aims.get(size)
        usual = AIMS_WHERE_TORCH_FUSES if self.torch_fuses else AIMS_ELSEWHERE
        return {**usual, **self.own_aims}.get(size)


#: Why a contender is not timed that would change the input of the others.
WRITES = "it writes into the gradients, which all contenders share"
