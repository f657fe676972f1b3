"""What ``gradstep bench`` can time: torch.optim's classes with their flags set, and all others.

A class is added by one row.
"""

from __future__ import annotations

import functools

import torch

import gradstep
from gradstep import rules
from gradstep.classes import rule_classes
from gradstep.lab.bench_case import WRITES, Case
from gradstep.lab.bench_cases_beyond import BEYOND, CHAINS
from gradstep.lab.optimizers import MATRICES_ONLY, choice
from gradstep.optimizer.optimizer import planner_of
from gradstep.rule.graph import Graph

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


@functools.cache
def others() -> dict[str, Case]:
    """The rules that no row is about, by name, each as its class has it where nothing is set."""
    classes = rule_classes.load()
    with_rows = {getattr(case.ours, "__name__", "") for case in CASES.values()}
    return {
        rule.name: Case(
            rule.name,
            classes[rule.class_name],
            None,
            {"lr": rule.lr},
            matrices_only=rule.name in MATRICES_ONLY,
            asks_for_loss="loss" in rule.inputs,
            compared_on=((8, 6), *(() if rule.name in MATRICES_ONLY else ((5,), (4, 3, 2, 2)))),
        )
        for rule in rules.load().values()
        if rule.class_name is not None and rule.class_name not in with_rows
    }


def by_elements() -> tuple[str, ...]:
    """Of all rules those whose step is one pass, each element by itself."""
    return tuple(
        name
        for name, case in {**CASES, **others()}.items()
        if name not in (*GROUPS["chains"], *GROUPS["formats"])
        and all(graph.is_elementwise for graph in _graphs(case))
    )


def calls_functions(case: Case) -> bool:
    """Whether its rule calls functions of whole matrices, whose time grows faster than memory's."""
    return any(graph.calls_opaque for graph in _graphs(case))


def _graphs(case: Case) -> list[Graph]:
    optimizer = case.ours([torch.zeros(2, 2, requires_grad=True)], **case.options)
    return [graph for _, graph in planner_of(optimizer).graphs()]


def own_case(name: str) -> Case:
    """A rule of one's own, ``module:name``.

    Raises:
        UnknownOptimizer: there is none, or it cannot be used.
    """
    chosen = choice(name)
    return Case(name, chosen.make, None, {"lr": chosen.lr})
