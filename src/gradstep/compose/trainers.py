"""Optimizers by the words that trainers have for them.

::

    optimizer = gradstep.trainers.hugging_face("lion_8bit", model, arguments)
    trainer = Trainer(model, arguments, optimizers=(optimizer, None), …)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from typing import Any

from torch import nn

from gradstep.compose.create import nearest
from gradstep.compose.members import Member, biases_and_norms, members
from gradstep.compose.model_groups import groups
from gradstep.compose.offload import Offload
from gradstep.compose.partition import Partition, partition
from gradstep.compose.step_in_backward import StepInBackward
from gradstep.optimizer.optimizer import Optimizer
from gradstep.rule.combine import chain
from gradstep.rules.adam import adam
from gradstep.rules.transforms.amplify import grokfast
from gradstep.rules.transforms.decay import decay_weights

__all__ = ["hugging_face", "hugging_face_names"]

#: The options of ``TrainingArguments`` that an optimizer is made with, and their defaults.
_ARGUMENTS: dict[str, Any] = {
    "learning_rate": 5e-5,
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "optim_args": None,
    "optim_target_modules": None,
    "warmup_steps": 0,
}


@dataclass(frozen=True)
class Way:
    """How an optimizer of a trainer's is made.

    Attributes:
        name: of the class here.
        takes: which of the trainer's arguments it takes: ``"betas"``, ``"eps"``, ``"warmup"``.
        options: what else it is made with.
        renamed: the names that ``optim_args`` have there -> here.
        fixed: words that ``optim_args`` may have, with the values that are what is made here.
        low_rank: whether the class is for the ``optim_target_modules``, and AdamW for the rest.
        in_backward: whether each weight makes its step within backward.
        paged: whether states are kept out of an accelerator's memory.
    """

    name: str
    takes: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    low_rank: bool = False
    in_backward: bool = False
    paged: bool = False


def hugging_face(name: str, model: nn.Module, arguments: Any = None, **options: Any) -> Any:
    """The optimizer that Hugging Face's Trainer would make for ``TrainingArguments(optim=name)``.

    ::

        optimizer = gradstep.trainers.hugging_face(arguments.optim, model, arguments)
        trainer = Trainer(model, arguments, optimizers=(optimizer, None), train_dataset=…)

    Weights in groups as there: biases and the gains of normalization layers do not decay. States in
    8 bits are those of bitsandbytes (``state_dtype="dynamic8"``), in 4 bits ``"int4"``. What is
    paged there is kept by :class:`gradstep.Offload` where the model is on an accelerator. Steps in
    backward, as of LOMO and of every ``…_layerwise``, are :class:`gradstep.StepInBackward`. (For
    ``"lomo"`` and ``"adalomo"`` let the arguments' own ``optim`` be another: with these two,
    Trainer calls a backward of their package.)

    Args:
        name: one of the 41 of transformers 5; see :func:`hugging_face_names`.
        model: the model. Frozen parameters are left out.
        arguments: the ``TrainingArguments``, or any object with the attributes below. Default: with
            those that it has by default.
        options: in the place of the arguments': ``learning_rate``, ``weight_decay``,
            ``adam_beta1``, ``adam_beta2``, ``adam_epsilon``, ``optim_args`` (``"rank=64, …"``),
            ``optim_target_modules``, ``warmup_steps``.

    Returns:
        a class of this package, a partition, or a wrapper around one.

    Raises:
        ValueError: a name that is not one of the 41, or that is of hardware that is not here, with
            the nearest; GaLore and APOLLO without ``optim_target_modules``, or with such as fit
            nothing.
        TypeError: an option or one of ``optim_args`` that is not known.
    """
    name = str(getattr(name, "value", name))
    if name in _REFUSED:
        raise ValueError(f"{name!r} {_REFUSED[name]}")
    if name not in _HUGGING_FACE:
        raise ValueError(
            f"unknown optimizer {name!r} of Hugging Face's: {nearest(name, hugging_face_names())}"
        )
    unknown = [n for n in options if n not in _ARGUMENTS]
    if unknown:
        raise TypeError(
            f"hugging_face() has no option {unknown[0]!r}: {nearest(unknown[0], _ARGUMENTS)}"
        )
    given = {n: getattr(arguments, n, default) for n, default in _ARGUMENTS.items()}
    given.update(options)
    way = _HUGGING_FACE[name]
    made = _made(name, way, model, given)
    if way.in_backward:
        return StepInBackward(made)
    on_accelerator = any(p.device.type not in ("cpu", "meta") for p in model.parameters())
    return Offload(made) if way.paged and on_accelerator else made


def hugging_face_names() -> list[str]:
    """The names that ``TrainingArguments(optim=…)`` has, those that are refused here included."""
    return sorted([*_HUGGING_FACE, *_REFUSED])


def _made(name: str, way: Way, model: nn.Module, given: Mapping[str, Any]) -> Optimizer | Partition:
    words = _words(name, way, given["optim_args"])
    lr, decay = float(given["learning_rate"]), float(given["weight_decay"])
    own = _options(way, given)
    for word, value in words.items():
        if word in ("beta3",) and "betas" in own:
            own["betas"] = (*own["betas"][:2], float(value))
        else:
            own[way.renamed.get(word, word)] = _number(value)
    everything = members(model)
    if not way.low_rank:
        return _grouped(way, everything, lr, decay, own)
    targets = given["optim_target_modules"]
    chosen = {id(m.parameter) for m in everything if _is_target(m, targets)}
    if not chosen:
        found = "no optim_target_modules" if targets is None else f"{targets!r}, which fit nothing"
        raise ValueError(
            f"{name} is for chosen linear layers, and got {found}. Give optim_target_modules="
            "['attn', 'mlp'], parts of the layers' names, or 'all-linear'"
        )
    by_id = {id(m.parameter): m for m in everything}

    def part(kind: Way, options: dict[str, Any], entries: Any, **more: Any) -> Optimizer:
        del more
        of_part = [by_id[id(e[1] if isinstance(e, tuple) else e)] for e in entries]
        return _grouped(kind, of_part, lr, decay, options)

    rest = Way("AdamW", ("betas", "eps"))
    return partition(
        {
            "low_rank": partial(part, way, own),
            "rest": partial(part, rest, _options(rest, given)),
        },
        model,
        where={"low_rank": lambda member: id(member.parameter) in chosen},
    )


def _options(way: Way, given: Mapping[str, Any]) -> dict[str, Any]:
    own = dict(way.options)
    if "betas" in way.takes:
        third = own.pop("betas", ())[2:]
        own["betas"] = (float(given["adam_beta1"]), float(given["adam_beta2"]), *third)
    if "eps" in way.takes:
        own["eps"] = float(given["adam_epsilon"])
    if "warmup" in way.takes:
        own["warmup_steps"] = given["warmup_steps"]
    return own


def _grouped(
    way: Way, chosen: list[Member], lr: float, decay: float, options: Mapping[str, Any]
) -> Optimizer:
    """An optimizer with groups that decay and that do not."""
    if way.name == "GrokAdamW":
        return _grok(chosen, lr, decay, dict(options))
    made = groups(chosen, [None] * len(chosen), biases_and_norms, ["weight_decay"])
    make: Callable[..., Optimizer] = getattr(import_module("gradstep"), way.name)
    return make(made, lr=lr, weight_decay=decay, **options)


def _grok(chosen: list[Member], lr: float, decay: float, options: dict[str, Any]) -> Optimizer:
    """Grokfast before AdamW."""
    beta1, beta2 = options.pop("betas")
    rule = chain(
        grokfast(**{n: options.pop(n) for n in list(options) if n.startswith("grokfast_")}),
        adam(beta1=beta1, beta2=beta2, eps=options.pop("eps")),
        decay_weights(decay),
    )
    decays = [n for n in rule.hyperparameters if n.endswith("weight_decay")][-1]
    made = groups(chosen, [None] * len(chosen), biases_and_norms, [decays])
    return Optimizer(made, rule, lr, **options)


def _words(name: str, way: Way, optim_args: Any) -> dict[str, str]:
    """``"rank=64, scale=0.5"`` by name; of those with one value that is possible here, none."""
    if not optim_args:
        return {}
    if isinstance(optim_args, Mapping):
        found = {str(n): str(v) for n, v in optim_args.items()}
    else:
        parts = [part.partition("=") for part in str(optim_args).split(",")]
        found = {key.strip(): value.strip() for key, _, value in parts}
    known = {*way.renamed, *way.fixed}
    for word in list(found):
        if word not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise TypeError(f"{name} has no optim_args {word!r} here; it has: {listed}")
        if word in way.fixed:
            value = found.pop(word)
            if value not in way.fixed[word]:
                raise ValueError(
                    f"{name} with {word}={value} is not here; possible is "
                    f"{' or '.join(way.fixed[word])}"
                )
    return found


def _number(value: str) -> Any:
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    number = float(value)
    return int(number) if number.is_integer() and not re.search(r"[.e]", value) else number


def _is_target(member: Member, targets: str | Iterable[str] | None) -> bool:
    """Whether a weight is of one of the chosen linear layers, as transformers reads the choice."""
    if targets is None or not isinstance(member.module, nn.Linear) or member.parameter.dim() != 2:
        return False
    layer = member.place.rpartition(".")[0]
    if isinstance(targets, str):
        if targets.replace("_", "-") == "all-linear":
            return True
        return re.fullmatch(targets, layer) is not None
    return any(target in layer or re.fullmatch(target, layer) for target in targets)


_ADAM = ("betas", "eps")
_8_BIT: dict[str, Any] = {"state_dtype": "dynamic8"}
_MIX_WORDS = {"beta3": "beta3", "alpha": "alpha", "t_alpha": "alpha_warmup",
              "t_beta3": "beta3_warmup"}  # fmt: skip
_MIX: dict[str, Any] = {"betas": (0.9, 0.999, 0.9999), "alpha": 5.0}
_GALORE_WORDS = {"rank": "rank", "update_proj_gap": "update_proj_gap", "scale": "scale"}
_PROJECTION = {"proj_type": ("std",)}

_ADAMW = Way("AdamW", _ADAM)
_ADEMAMIX = Way("AdEMAMix", _ADAM, _MIX, _MIX_WORDS)
_LION = Way("Lion", ("betas",))
_GALORE = Way("GaLore", _ADAM, {}, _GALORE_WORDS, _PROJECTION, low_rank=True)
_APOLLO = Way(
    "APOLLO",
    _ADAM,
    {"rank": 128},
    _GALORE_WORDS,
    {"proj": ("random",), "scale_type": ("channel",), **_PROJECTION},
    low_rank=True,
)


def _in_8_bits(way: Way) -> Way:
    return replace(way, options={**way.options, **_8_BIT})


#: Name -> how it is made.
_HUGGING_FACE: dict[str, Way] = {
    "adamw_torch": _ADAMW,
    "adamw_torch_fused": _ADAMW,
    "adamw_anyprecision": replace(
        _ADAMW,
        options={"low_precision": "kahan"},
        fixed={
            "use_kahan_summation": ("True",),
            "momentum_dtype": ("bfloat16",),
            "variance_dtype": ("bfloat16",),
            "compensation_buffer_dtype": ("bfloat16",),
        },
    ),
    "adamw_torch_8bit": _in_8_bits(_ADAMW),
    "adamw_torch_4bit": replace(_ADAMW, options={"state_dtype": "int4"}),
    "adamw_bnb_8bit": _in_8_bits(_ADAMW),
    "adamw_8bit": _in_8_bits(_ADAMW),
    "paged_adamw_32bit": replace(_ADAMW, paged=True),
    "paged_adamw_8bit": replace(_in_8_bits(_ADAMW), paged=True),
    "adafactor": Way("FairseqAdafactor", (), {"scale_parameter": False}),
    "ademamix": _ADEMAMIX,
    "ademamix_8bit": _in_8_bits(_ADEMAMIX),
    "paged_ademamix_32bit": replace(_ADEMAMIX, paged=True),
    "paged_ademamix_8bit": replace(_in_8_bits(_ADEMAMIX), paged=True),
    "lion_32bit": _LION,
    "lion_8bit": _in_8_bits(_LION),
    "paged_lion_32bit": replace(_LION, paged=True),
    "paged_lion_8bit": replace(_in_8_bits(_LION), paged=True),
    "sgd": Way("SGD"),
    "adagrad": Way("Adagrad"),
    "rmsprop": Way("RMSprop"),
    "rmsprop_bnb": Way("RMSprop"),
    "rmsprop_bnb_32bit": Way("RMSprop"),
    "rmsprop_bnb_8bit": _in_8_bits(Way("RMSprop")),
    "galore_adamw": _GALORE,
    "galore_adamw_8bit": _in_8_bits(_GALORE),
    "galore_adamw_layerwise": replace(_GALORE, in_backward=True),
    "galore_adamw_8bit_layerwise": replace(_in_8_bits(_GALORE), in_backward=True),
    "apollo_adamw": _APOLLO,
    "apollo_adamw_layerwise": replace(_APOLLO, in_backward=True),
    "lomo": Way("LOMO", in_backward=True),
    "adalomo": Way("AdaLomo", in_backward=True),
    "grokadamw": Way(
        "GrokAdamW",
        _ADAM,
        {},
        {"alpha_init": "grokfast_alpha", "alpha": "grokfast_alpha", "lamb": "grokfast_lamb"},
    ),
    "schedule_free_adamw": Way("AdamWScheduleFree", (*_ADAM, "warmup")),
    "schedule_free_radam": Way("RAdamScheduleFree", _ADAM),
    "schedule_free_sgd": Way("SGDScheduleFree", ("warmup",)),
    "stable_adamw": Way("StableAdamW", _ADAM, {}, {}, {"max_lr": (), "kahan_sum": ("False",)}),
}

_GALORE_NEAREST = (
    "is GaLore around Adafactor, and here GaLore is around AdamW alone. The nearest are "
    "galore_adamw, adafactor and apollo_adamw"
)
#: Name -> why it is not made, and what is nearest.
_REFUSED = {
    "adamw_torch_xla": "is torch_xla's AdamW, for TPUs. The nearest are adamw_torch, "
    "adamw_torch_fused and adamw_torch_8bit",
    "adamw_torch_npu_fused": "is torch_npu's AdamW, for Ascend NPUs. The nearest are adamw_torch, "
    "adamw_torch_fused and adamw_torch_8bit",
    "galore_adafactor": _GALORE_NEAREST,
    "galore_adafactor_layerwise": _GALORE_NEAREST.replace(
        "galore_adamw,", "galore_adamw_layerwise,"
    ),
}
