"""What ``gradstep bench`` can time: a class with its flags set, and how much faster it should be.

A class is added by one row of :data:`CASES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

import gradstep

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
    """

    name: str
    ours: Callable[..., Any]
    torchs: Callable[..., Any] | None
    options: dict[str, Any] = field(default_factory=dict)
    torch_fuses: bool = False
    own_aims: Mapping[str, float] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    matrices_only: bool = False

    def aim(self, size: str) -> float | None:
        """How many times faster than torch's best mode it should be; None where nothing is set."""
        if self.torchs is None:
            return None
        usual = AIMS_WHERE_TORCH_FUSES if self.torch_fuses else AIMS_ELSEWHERE
        return {**usual, **self.own_aims}.get(size)


#: Why a contender is not timed that would change the input of the others.
WRITES = "it writes into the gradients, which all contenders share"

_MOMENTUM = {"lr": 1e-3, "momentum": 0.9}

CASES = {
    case.name: case
    for case in [
        Case("sgd", gradstep.SGD, torch.optim.SGD, {"lr": 1e-3}, True),
        Case("momentum", gradstep.SGD, torch.optim.SGD, _MOMENTUM, True),
        Case(
            "nesterov",
            gradstep.SGD,
            torch.optim.SGD,
            {**_MOMENTUM, "nesterov": True},
            True,
            left_out={"torch foreach": WRITES},
        ),
        Case("adam", gradstep.Adam, torch.optim.Adam, {}, True),
        Case("adam-amsgrad", gradstep.Adam, torch.optim.Adam, {"amsgrad": True}, True),
        Case("adamw", gradstep.AdamW, torch.optim.AdamW, {}, True),
        Case("adagrad", gradstep.Adagrad, torch.optim.Adagrad, {}, True),
        Case("rmsprop", gradstep.RMSprop, torch.optim.RMSprop, {"lr": 1e-3}),
        Case("rmsprop-momentum", gradstep.RMSprop, torch.optim.RMSprop, _MOMENTUM),
        Case(
            "rmsprop-centered-momentum",
            gradstep.RMSprop,
            torch.optim.RMSprop,
            {**_MOMENTUM, "centered": True},
            own_aims={"large": 3.0},
        ),
        Case(
            "nadam",
            gradstep.NAdam,
            torch.optim.NAdam,
            own_aims={"transformer": 3.5, "large": 3.0},
        ),
        Case(
            "nadam-decoupled",
            gradstep.NAdam,
            torch.optim.NAdam,
            {"weight_decay": 1e-2, "decoupled_weight_decay": True},
            own_aims={"transformer": 3.5, "large": 3.0},
        ),
        Case(
            "radam",
            gradstep.RAdam,
            torch.optim.RAdam,
            own_aims={"transformer": 3.5, "large": 3.0},
        ),
        Case("adamax", gradstep.Adamax, torch.optim.Adamax),
        Case("adadelta", gradstep.Adadelta, torch.optim.Adadelta, own_aims={"large": 3.0}),
        Case("asgd", gradstep.ASGD, torch.optim.ASGD),
        Case(
            "rprop",
            gradstep.Rprop,
            torch.optim.Rprop,
            own_aims={"transformer": 3.5, "large": 8.0},
        ),
        Case(
            "adafactor",
            gradstep.Adafactor,
            torch.optim.Adafactor,
            own_aims={"large": 1.0},
        ),
        Case(
            "muon",
            gradstep.Muon,
            torch.optim.Muon,
            own_aims={"lenet": 1.0, "transformer": 1.0, "large": 1.0},
            left_out={"torch foreach": "torch has no such mode of it"},
            matrices_only=True,
        ),
        Case("lion", gradstep.Lion, None),
    ]
}

#: What is timed if nothing is asked for: a rule of each kind, in about a minute and a half.
USUAL = (
    "sgd",
    "momentum",
    "adam",
    "adamw",
    "adagrad",
    "rmsprop",
    "rmsprop-centered-momentum",
    "lion",
)

#: Classes that have no row, and why.
NOT_TIMED = {
    "lbfgs": "it is torch's own class under another name, so there is nothing to compare",
    "sparseadam": "it takes sparse gradients only, and those of the three networks are dense",
}
