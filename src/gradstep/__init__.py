"""gradstep: update the weights of a network with their gradients.

import gradstep

optimizer = gradstep.Adam(model.parameters(), lr=1e-3)     # torch.optim's names and arguments

@gradstep.rule                                             # or a rule of one's own
def heavy_ball(g, velocity, *, momentum=0.9):
    velocity = momentum * velocity + g
    return velocity, velocity

optimizer = gradstep.Optimizer(model.parameters(), heavy_ball, lr=0.1)
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from gradstep.optimizer.checkpoint import tell_apart
from gradstep.rule import (
    Decay,
    Interval,
    NonNegative,
    Opaque,
    Positive,
    Result,
    Rule,
    RuleError,
    Share,
    Value,
    abs,
    chain,
    clamp,
    copy_of_gradient,
    copy_of_weight,
    dot,
    exp,
    full,
    global_dot,
    global_norm,
    global_sum,
    graft,
    lerp,
    log,
    max,
    maximum,
    mean,
    minimum,
    new_weight,
    nonzero,
    norm,
    number,
    opaque,
    per_column,
    per_row,
    place,
    pow,
    rms,
    rsqrt,
    rule,
    shaped,
    shared,
    sign,
    size,
    sqrt,
    stored,
    sum,
    where,
    zeros,
)
from gradstep.rule.operations import functions

if TYPE_CHECKING:
    from gradstep.classes.hessian import HessianOptimizer
    from gradstep.compose import schedule, trainers
    from gradstep.compose.accumulate import Accumulate
    from gradstep.compose.average import EMA, AveragedWeights
    from gradstep.compose.create import create
    from gradstep.compose.freeze import Freeze
    from gradstep.compose.hessian import hutchinson, sampled_loss
    from gradstep.compose.mechanic import Mechanic
    from gradstep.compose.model_groups import layer_depths
    from gradstep.compose.noise import GradientNoise
    from gradstep.compose.nonfinite import SkipNonFinite
    from gradstep.compose.offload import Offload
    from gradstep.compose.partition import Partition, for_model, partition
    from gradstep.compose.plateau import ReduceOnPlateau
    from gradstep.compose.share_out import share_out
    from gradstep.compose.sharpness import ASAM, SAM
    from gradstep.compose.sharpness_kin import GSAM, WSAM, FriendlySAM, LookSAM
    from gradstep.compose.step_in_backward import StepInBackward
    from gradstep.optimizer.exchange import from_bitsandbytes, from_torchao, to_bitsandbytes
    from gradstep.optimizer.optimizer import Optimizer
    from gradstep.program.formats import low_precision, stored_as
    from gradstep.sight.armed import explain
    from gradstep.sight.audit import audit
    from gradstep.sight.lr_find import LrFind, lr_find
    from gradstep.sight.memory import memory
    from gradstep.sight.mistakes import (
        Diagnosis,
        Finding,
        MistakeError,
        MistakeWarning,
        diagnose,
    )
    from gradstep.sight.rule_formula import formula
    from gradstep.sight.watch import Watch, watch
    from gradstep.torch_optim import (
        ASGD,
        LBFGS,
        SGD,
        Adadelta,
        Adafactor,
        Adagrad,
        Adam,
        Adamax,
        AdamW,
        Muon,
        NAdam,
        RAdam,
        RMSprop,
        Rprop,
        SparseAdam,
    )

    __version__: str

__all__ = [
    "ASAM",
    "ASGD",
    "EMA",
    "GSAM",
    "LBFGS",
    "SAM",
    "SGD",
    "WSAM",
    "Accumulate",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "AveragedWeights",
    "Decay",
    "Diagnosis",
    "Finding",
    "Freeze",
    "FriendlySAM",
    "GradientNoise",
    "HessianOptimizer",
    "Interval",
    "LookSAM",
    "LrFind",
    "Mechanic",
    "MistakeError",
    "MistakeWarning",
    "Muon",
    "NAdam",
    "NonNegative",
    "Offload",
    "Opaque",
    "Optimizer",
    "Partition",
    "Positive",
    "RAdam",
    "RMSprop",
    "ReduceOnPlateau",
    "Result",
    "Rprop",
    "Rule",
    "RuleError",
    "Share",
    "SkipNonFinite",
    "SparseAdam",
    "StepInBackward",
    "Value",
    "Watch",
    "abs",
    "audit",
    "chain",
    "clamp",
    "copy_of_gradient",
    "copy_of_weight",
    "create",
    "diagnose",
    "dot",
    "exp",
    "explain",
    "for_model",
    "formula",
    "from_bitsandbytes",
    "from_torchao",
    "full",
    "global_dot",
    "global_norm",
    "global_sum",
    "graft",
    "hutchinson",
    "layer_depths",
    "lerp",
    "log",
    "low_precision",
    "lr_find",
    "max",
    "maximum",
    "mean",
    "memory",
    "minimum",
    "new_weight",
    "nonzero",
    "norm",
    "number",
    "opaque",
    "partition",
    "per_column",
    "per_row",
    "place",
    "pow",
    "rms",
    "rsqrt",
    "rule",
    "sampled_loss",
    "schedule",
    "shaped",
    "share_out",
    "shared",
    "sign",
    "size",
    "sqrt",
    "stored",
    "stored_as",
    "sum",
    "to_bitsandbytes",
    "trainers",
    "watch",
    "where",
    "zeros",
]

#: What is imported when it is first asked for: a name, and the module that has it.
_LATER = {
    "low_precision": "gradstep.program.formats",
    "stored_as": "gradstep.program.formats",
    "Optimizer": "gradstep.optimizer.optimizer",
    "from_bitsandbytes": "gradstep.optimizer.exchange",
    "from_torchao": "gradstep.optimizer.exchange",
    "to_bitsandbytes": "gradstep.optimizer.exchange",
    "schedule": "gradstep.compose",
    "trainers": "gradstep.compose",
    "Accumulate": "gradstep.compose.accumulate",
    "EMA": "gradstep.compose.average",
    "AveragedWeights": "gradstep.compose.average",
    "create": "gradstep.compose.create",
    "layer_depths": "gradstep.compose.model_groups",
    "Freeze": "gradstep.compose.freeze",
    "hutchinson": "gradstep.compose.hessian",
    "sampled_loss": "gradstep.compose.hessian",
    "HessianOptimizer": "gradstep.classes.hessian",
    "GradientNoise": "gradstep.compose.noise",
    "SkipNonFinite": "gradstep.compose.nonfinite",
    "ReduceOnPlateau": "gradstep.compose.plateau",
    "ASAM": "gradstep.compose.sharpness",
    "SAM": "gradstep.compose.sharpness",
    "Mechanic": "gradstep.compose.mechanic",
    "FriendlySAM": "gradstep.compose.sharpness_kin",
    "GSAM": "gradstep.compose.sharpness_kin",
    "LookSAM": "gradstep.compose.sharpness_kin",
    "WSAM": "gradstep.compose.sharpness_kin",
    "Offload": "gradstep.compose.offload",
    "StepInBackward": "gradstep.compose.step_in_backward",
    "share_out": "gradstep.compose.share_out",
    "Partition": "gradstep.compose.partition",
    "for_model": "gradstep.compose.partition",
    "partition": "gradstep.compose.partition",
    "audit": "gradstep.sight.audit",
    "explain": "gradstep.sight.armed",
    "memory": "gradstep.sight.memory",
    "formula": "gradstep.sight.rule_formula",
    "lr_find": "gradstep.sight.lr_find",
    "LrFind": "gradstep.sight.lr_find",
    "watch": "gradstep.sight.watch",
    "Watch": "gradstep.sight.watch",
    "diagnose": "gradstep.sight.mistakes",
    "Diagnosis": "gradstep.sight.mistakes",
    "Finding": "gradstep.sight.mistakes",
    "MistakeError": "gradstep.sight.mistakes",
    "MistakeWarning": "gradstep.sight.mistakes",
}
# All else that is named above is of torch.optim.
_LATER |= dict.fromkeys({*__all__} - {*globals(), *_LATER}, "gradstep.torch_optim")

#: The rules, and a class for each that torch.optim has not, are found when one is first asked for.
_OF_RULES = ("gradstep.rules", "gradstep.classes.rule_classes")


def _classes() -> list[type[Optimizer]]:
    """Those of torch.optim first: a checkpoint that fits several is said to be the first one's."""
    torch_optim = import_module("gradstep.torch_optim")
    of_torch = [getattr(torch_optim, name) for name in torch_optim.__all__]
    return [*of_torch, *import_module("gradstep.classes.rule_classes").load().values()]


tell_apart(_classes)


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    if not name.startswith("_"):
        if name in functions():
            return getattr(import_module("gradstep.rule.language"), name)
        for module in _OF_RULES:
            found = import_module(module).load()
            if name in found:
                return found[name]
    if name == "__version__":
        return _version()
    way = ""
    if name.startswith("Paged") or name.endswith("bit"):
        way = import_module("gradstep.compose.create").of_bitsandbytes(name)
    # `from gradstep import rules` asks here first, and is answered by the import itself.
    a_name = name.isidentifier() and not name.startswith("_")
    if not way and a_name and find_spec(f"gradstep.{name}") is None:
        way = import_module("gradstep.sight.peer_catalogue").answer(name)
    raise AttributeError(f"module gradstep has no {name}" + (way and f": {way}"))


def _version() -> str:
    """The installed version, which was made from a tag; of sources that are not installed, 0."""
    metadata = import_module("importlib.metadata")
    try:
        return str(metadata.version("gradstep"))
    except metadata.PackageNotFoundError:
        return "0+unknown"


def __dir__() -> list[str]:
    return sorted(
        {"__version__", *globals(), *_LATER, *functions()}.union(
            *(import_module(m).load() for m in _OF_RULES)
        )
    )
