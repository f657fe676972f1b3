"""The optimizers that the commands know by name, with a learning rate that suits LeNet.

A class is added by one row: to :data:`CHOICES` if a rule is behind it, to :data:`TRAINABLE` if not.
The classes that are made from their rules stand here by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import gradstep
from gradstep import rules
from gradstep.lab.errors import UnknownOptimizer
from gradstep.optimizer.optimizer import planner_of
from gradstep.sight.catalogue import find_rule, graph_with, nearest, rule_names, spelled


@dataclass(frozen=True)
class Choice:
    """An optimizer by its name on the command line.

    ``make(params, lr=…)`` returns the optimizer; ``lr`` is the learning rate to begin with, found
    by trial on the digits; ``meaning`` says in a sentence what it does. With ``whole``, ``make``
    would rather have the model itself than its parameters.
    """

    make: Callable[..., Any]
    lr: float
    meaning: str
    whole: bool = False


def _meaning(rule: gradstep.Rule) -> str:
    """The first sentence of its docstring, without the name."""
    first = (rule.__doc__ or "").split("\n")[0].rstrip(".")
    return first.partition(": ")[2] or first


#: Rules that LeNet's biases and filters are nothing for.
MATRICES_ONLY = (
    "muon",
    "normuon",
    "adamuon",
    "adago",
    "polargrad",
    "scion",
    "dion",
    "dion2",
    "soap_muon",
)

#: Each is a class of gradstep over a rule, with its flags set.
CHOICES: dict[str, Choice] = {
    "sgd": Choice(gradstep.SGD, 0.1, "weight -= lr * gradient, nothing else"),
    "momentum": Choice(
        partial(gradstep.SGD, momentum=0.9), 0.02, "SGD that keeps some of its speed, as a ball"
    ),
    "nesterov": Choice(
        partial(gradstep.SGD, momentum=0.9, nesterov=True), 0.02, "momentum that looks ahead"
    ),
    "adam": Choice(gradstep.Adam, 0.002, "momentum, with a step size of its own for each weight"),
    "adamw": Choice(gradstep.AdamW, 0.002, "Adam that also shrinks each weight a little"),
    "rmsprop": Choice(gradstep.RMSprop, 0.001, "divides by the recent size of the gradient"),
    "adagrad": Choice(gradstep.Adagrad, 0.02, "divides by the size of all gradients so far"),
    "lion": Choice(gradstep.Lion, 0.0003, "only the sign of a momentum counts"),
    "signsgd": Choice(gradstep.SignSGD, 0.001, "only the sign of the gradient counts"),
    "adafactor": Choice(
        gradstep.Adafactor, 0.02, "Adam with one second moment a row and one a column"
    ),
    "nadam": Choice(gradstep.NAdam, 0.002, "Adam with Nesterov's momentum"),
    "radam": Choice(gradstep.RAdam, 0.002, "Adam that begins with care"),
    "adamax": Choice(gradstep.Adamax, 0.004, "Adam that divides by the largest recent gradient"),
    "adadelta": Choice(gradstep.Adadelta, 1.0, "scales by the size of past steps"),
    "asgd": Choice(gradstep.ASGD, 0.1, "SGD that also keeps an average of the weights"),
    "rprop": Choice(
        partial(gradstep.Rprop, etas=(0.9, 1.1), step_sizes=(0, 0.002)),
        0.001,
        "a step for each weight, which grows while the gradient keeps its sign",
    ),
}

#: Rules that find their own learning rate, and on the digits at first too large a one.
CHOICES |= {
    "dadapt_adam": Choice(gradstep.DAdaptAdam, 0.3, "Adam that finds its own learning rate"),
    "dadapt_sgd": Choice(
        partial(gradstep.DAdaptSGD, d0=0.03), 0.1, "SGD that finds its own learning rate"
    ),
    "dadapt_adagrad": Choice(
        partial(gradstep.DAdaptAdaGrad, d0=0.001), 1.0, "AdaGrad that finds its own learning rate"
    ),
    "dadapt_lion": Choice(gradstep.DAdaptLion, 0.3, "Lion that finds its own learning rate"),
}

#: Its paper's rate is for language models.
CHOICES["sophia"] = Choice(
    gradstep.Sophia, 0.002, "momentum over the curvature, no step larger than the learning rate"
)

#: Their papers' rates are for language models, too.
CHOICES |= {
    "lomo": Choice(gradstep.LOMO, 0.1, "plain descent without states, for steps in backward"),
    "adalomo": Choice(gradstep.AdaLomo, 0.02, "Adafactor's relative, for steps in backward"),
}

#: Its rate multiplies an average over many steps, and so moves less than others of the same size.
CHOICES["srmm"] = Choice(
    gradstep.SRMM, 0.3, "from the average of the weights so far, along that of their gradients"
)

#: Those above, whose order is theirs for good: a new one comes last.
GIVEN_BY_HAND = tuple(CHOICES)

#: Where the rule's own rate does not suit LeNet: with these it reads 9 of 10 digits after 8 epochs.
_RATES = {
    "accsgd": 0.1,
    "acprop": 0.003,
    "adapnm": 0.003,
    "ano": 0.001,
    "fairseq_adafactor": 0.03,
    "focus": 0.003,
    "msvag": 0.3,
    "optimistic_sgd": 0.1,
    "pnm": 0.6,
    "tam": 0.1,
    "vsgd": 0.01,
}

#: Weights of units that have been silent have no gradient, nor curvature, to be divided by.
_BEGIN_WITH: dict[str, dict[str, Any]] = {"acprop": {"eps": 1e-8}, "adahessian": {"eps": 0.1}}

#: The classes that are made from their rules, with the learning rates of those.
CHOICES |= {
    rule.name: Choice(
        partial(getattr(gradstep, str(rule.class_name)), **_BEGIN_WITH[rule.name])
        if rule.name in _BEGIN_WITH
        else getattr(gradstep, str(rule.class_name)),
        _RATES.get(rule.name, rule.lr),
        _meaning(rule),
    )
    for rule in rules.load().values()
    if rule.class_name is not None and rule.name not in (*CHOICES, *MATRICES_ONLY)
}

#: Those whose steps are as long as AdamW's, so that both have one learning rate.
_BESIDE_ADAMW: dict[str, Any] = {
    "muon": partial(gradstep.Muon, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
    "normuon": partial(gradstep.NorMuon, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
    "adamuon": partial(gradstep.AdaMuon, weight_decay=0.01),
    "soap_muon": gradstep.SOAPMuon,
}

#: All that ``gradstep train`` takes. Two rules share a network by partition. LBFGS has no rule: it
#: searches along a line, and asks for the loss anew at each place that it tries.
TRAINABLE: dict[str, Choice] = {
    **CHOICES,
    **{
        f"{name}+adamw": Choice(
            partial(gradstep.partition, {"matrices": matrices, "rest": gradstep.AdamW}),
            0.002,
            f"{rules.load()[name].class_name or 'Muon'} for matrices inside, AdamW for all else",
            whole=True,
        )
        for name, matrices in _BESIDE_ADAMW.items()
    },
    "muon_filters+adamw": Choice(
        partial(
            gradstep.partition,
            {
                "matrices": _BESIDE_ADAMW["muon"],
                "filters": partial(_BESIDE_ADAMW["muon"], flatten=True),
                "rest": gradstep.AdamW,
            },
        ),
        0.002,
        "Muon for matrices and convolutions' filters inside, AdamW for all else",
        whole=True,
    ),
    "lbfgs": Choice(
        partial(gradstep.LBFGS, max_iter=8, history_size=3, line_search_fn="strong_wolfe"),
        1.0,
        "guesses the curvature from past gradients, and tries several steps on each batch",
    ),
}

DEFAULT = "adamw"

_SPARSE = ("sparseadam", "sparse_adam")


def check_name(name: str) -> str:
    """The name as :data:`TRAINABLE` has it, or that of a rule of one's own, ``module:name``.

    Raises:
        UnknownOptimizer: there is none, or it cannot train LeNet.
    """
    if ":" in name:
        choice(name)
        return name
    known = spelled(name, TRAINABLE)
    if known is not None:
        return known
    if name in _SPARSE:
        raise UnknownOptimizer(
            f"{name} takes sparse gradients only, such as nn.Embedding(sparse=True) makes; LeNet "
            "has none: its gradients are dense. Take adam"
        )
    if name in MATRICES_ONLY:
        instead = f"{name}+adamw" if f"{name}+adamw" in TRAINABLE else "muon+adamw"
        raise UnknownOptimizer(
            f"{name} updates matrices only, and LeNet also has convolutions and biases. Take "
            f"{instead}"
        )
    hint = nearest(name, TRAINABLE) or f"there are {', '.join(TRAINABLE)}."
    raise UnknownOptimizer(f"unknown optimizer {name!r}: {hint} A rule of your own is module:name")


def rule_name(name: str) -> str:
    """The rule behind a name of :data:`CHOICES`, such as sgd's behind momentum; else the name."""
    known = spelled(name, CHOICES)
    if known is None or spelled(name, rule_names()) is not None:
        return name
    optimizer = CHOICES[known].make([torch.zeros(1, 1, requires_grad=True)], lr=1.0)
    return planner_of(optimizer).rule.name


def choice(name: str) -> Choice:
    """The optimizer of that name: one of :data:`TRAINABLE`, or over a rule of one's own.

    Raises:
        UnknownOptimizer: there is none, or it cannot be used.
    """
    if ":" not in name:
        return TRAINABLE[check_name(name)]
    try:
        rule = find_rule(name)
        graph_with(rule)
    except (TypeError, ValueError) as error:  # also UnknownName and RuleError
        raise UnknownOptimizer(" ".join(str(error).split())) from None
    return Choice(partial(gradstep.Optimizer, rule=rule), rule.lr, _meaning(rule))


def make_optimizer(
    name: str,
    params: nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]],
    lr: float | None = None,
    **storage: str,
) -> Any:
    """Make the optimizer ``name`` for a model or parameters.

    ``lr`` is that of :data:`TRAINABLE` if None; ``storage`` is ``state_dtype`` and
    ``low_precision``, where they are given.
    """
    chosen = choice(name)
    if isinstance(params, nn.Module) and not chosen.whole:
        params = params.parameters()
    return chosen.make(params, lr=chosen.lr if lr is None else lr, **storage)


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether ``step`` must be given a function that works out loss and gradients anew."""
    return isinstance(optimizer, torch.optim.LBFGS)


def asks_for_loss(optimizer: torch.optim.Optimizer) -> bool:
    """Whether ``step`` must be given a function that returns the loss."""
    if not isinstance(optimizer, gradstep.Optimizer):
        return False
    return "loss" in planner_of(optimizer).rule.inputs


def asks_for_hessian(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it must be given estimates of the Hessian's diagonal, between steps."""
    return isinstance(optimizer, gradstep.HessianOptimizer)
