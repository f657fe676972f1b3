"""What ``gradstep bench`` can time: torch.optim's classes with their flags set, and all others.

A class is added by one row.
"""

from __future__ import annotations

import torch

import gradstep
from gradstep.lab.bench_case import WRITES, Case
from gradstep.lab.bench_cases_beyond import BEYOND, CHAINS
from gradstep.lab.optimizers import choice

_MOMENTUM = {"lr": 1e-3, "momentum": 0.9}

#: torch.optim's classes.
TORCH = (
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
        getattr(torch.optim, "Muon", None),  # since torch 2.9
        own_aims={"lenet": 1.0, "transformer": 1.0, "large": 1.0},
        left_out={"torch foreach": "torch has no such mode of it"},
        matrices_only=True,
    ),
)

#: States in another format, beside the same rule without: 20 bytes a weight in place of 28.
FORMATS = (
    Case(
        "adamw-bfloat16-states",
        gradstep.AdamW,
        None,
        {"state_dtype": "bfloat16"},
        own_aims={"large": 1.25},
        beside=("adamw", gradstep.AdamW),
    ),
)

CASES = {case.name: case for case in (*TORCH, *BEYOND, *CHAINS, *FORMATS)}

#: Names for several cases.
GROUPS = {
    "torch": tuple(case.name for case in TORCH),
    "beyond": tuple(case.name for case in BEYOND),
    "chains": tuple(case.name for case in CHAINS),
    "formats": tuple(case.name for case in FORMATS),
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


def own_case(name: str) -> Case:
    """A rule of one's own, ``module:name``.

    Raises:
        UnknownOptimizer: there is none, or it cannot be used.
    """
    chosen = choice(name)
    return Case(name, chosen.make, None, {"lr": chosen.lr})
