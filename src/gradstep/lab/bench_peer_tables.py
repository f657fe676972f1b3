"""Which rules other libraries share with us, with the hyperparameters of the bench's cases.

A function a library: case -> mode -> how to make it. Classes that a library merely takes over from
torch.optim have no row.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gradstep.lab.bench_case import Case
from gradstep.lab.bench_cases import others
from gradstep.lab.bench_steppers import Make, OptaxStepper, TorchStepper


def _loop_and_foreach(kind: Callable[..., Any], **options: Any) -> dict[str, Make]:
    def mode(foreach: bool) -> Make:
        return lambda w, g: TorchStepper(lambda p: kind(p, foreach=foreach, **options), w, g)

    return {"loop": mode(False), "foreach": mode(True)}


def optax_table(optax: Any) -> dict[str, dict[str, Make]]:
    def jit(transformation: Any) -> dict[str, Make]:
        return {"jit": lambda w, g: OptaxStepper(transformation, w, g)}

    contrib = optax.contrib
    rmsprop = {"decay": 0.99, "eps": 1e-8, "eps_in_sqrt": False}
    return {
        "sgd": jit(optax.sgd(1e-3)),
        "momentum": jit(optax.sgd(1e-3, momentum=0.9)),
        "nesterov": jit(optax.sgd(1e-3, momentum=0.9, nesterov=True)),
        "adam": jit(optax.adam(1e-3)),
        "adam-amsgrad": jit(optax.amsgrad(1e-3)),
        "adamw": jit(optax.adamw(1e-3, weight_decay=1e-2)),
        "adagrad": jit(optax.adagrad(1e-2, initial_accumulator_value=0.0, eps=1e-10)),
        "rmsprop": jit(optax.rmsprop(1e-3, **rmsprop)),
        "rmsprop-momentum": jit(optax.rmsprop(1e-3, momentum=0.9, **rmsprop)),
        "rmsprop-centered-momentum": jit(
            optax.rmsprop(1e-3, momentum=0.9, centered=True, **rmsprop)
        ),
        "nadam": jit(optax.nadam(2e-3)),
        "radam": jit(optax.radam(1e-3)),
        "adamax": jit(optax.adamax(2e-3)),
        "adadelta": jit(optax.adadelta(1.0)),
        "rprop": jit(optax.rprop(1e-2)),
        "lion": jit(optax.lion(1e-4, weight_decay=0.0)),
        "adabelief": jit(optax.adabelief(1e-3)),
        "yogi": jit(optax.yogi(1e-2)),
        "lamb": jit(optax.lamb(1e-3, weight_decay=1e-2)),
        "lars": jit(optax.lars(1.0)),
        "novograd": jit(optax.novograd(1e-3, b1=0.95, b2=0.98, eps=1e-8)),
        "ademamix": jit(contrib.ademamix(1e-3, alpha=5.0)),
        "adopt": jit(contrib.adopt(1e-3)),
        "madgrad": jit(contrib.madgrad(1e-2)),
        "schedule-free-adamw": jit(contrib.schedule_free_adamw(2.5e-3)),
    }


def by_class_name(library: Any, cases: Iterable[Case]) -> dict[str, dict[str, Make]]:
    """Of a library's classes those that are called as ours are, with the arguments of ours.

    That the rules are the same is not said by their name: the bench compares ten steps.
    """
    table: dict[str, dict[str, Make]] = {}
    for case in cases:
        kind = getattr(library, getattr(case.ours, "__name__", ""), None)
        if not isinstance(kind, type):
            continue
        theirs = inspect.signature(kind).parameters
        ours = inspect.signature(case.ours).parameters
        options = {
            name: parameter.default
            for name, parameter in ours.items()
            if name in theirs and type(parameter.default) in (int, float, tuple)
        } | case.options
        if "foreach" in theirs:
            table[case.name] = _loop_and_foreach(kind, **options)
        else:
            table[case.name] = {"loop": _loop(kind, options)}
    return table


def _loop(kind: Callable[..., Any], options: Mapping[str, Any]) -> Make:
    return lambda w, g: TorchStepper(lambda p: kind(p, **options), w, g)


def pytorch_optimizer_table(library: Any) -> dict[str, dict[str, Make]]:
    return by_class_name(library, others().values()) | {
        "sgd": _loop_and_foreach(library.SGDW, lr=1e-3),
        "momentum": _loop_and_foreach(library.SGDW, lr=1e-3, momentum=0.9),
        "nesterov": _loop_and_foreach(library.SGDW, lr=1e-3, momentum=0.9, nesterov=True),
        "radam": _loop_and_foreach(library.RAdam, lr=1e-3, degenerated_to_sgd=True),
        "adamax": _loop_and_foreach(library.AdaMax, lr=2e-3),
        "adadelta": _loop_and_foreach(library.AdaDelta, lr=1.0),
        "lion": _loop_and_foreach(library.Lion, lr=1e-4),
        "signum": _loop_and_foreach(library.SignSGD, lr=1e-3, momentum=0.9),
        "adabelief": _loop_and_foreach(library.AdaBelief, lr=1e-3),
        "adan": _loop_and_foreach(library.Adan, lr=1e-3),
        "ademamix": _loop_and_foreach(library.AdEMAMix, lr=1e-3),
        "laprop": _loop_and_foreach(library.LaProp, lr=4e-4),
        "yogi": _loop_and_foreach(library.Yogi, lr=1e-2),
        "madgrad": _loop_and_foreach(library.MADGRAD, lr=1e-2),
        "schedule-free-adamw": _loop_and_foreach(library.ScheduleFreeAdamW, lr=2.5e-3),
        "mars": _loop_and_foreach(library.MARS, lr=3e-3, optimize_1d=True),
        "stable-adamw": _loop_and_foreach(library.StableAdamW, lr=1e-3, eps=1e-6, kahan_sum=False),
        "lars": _loop_and_foreach(library.LARS, lr=1.0),
        "novograd": _loop_and_foreach(library.NovoGrad, lr=1e-3),
        "came": _loop_and_foreach(library.CAME, lr=2e-4),
        "prodigy": _loop_and_foreach(library.Prodigy, lr=1.0),
        "adamp": _loop_and_foreach(library.AdamP, lr=1e-3),
        "soap": {"loop": lambda w, g: TorchStepper(lambda p: library.SOAP(p, lr=3e-3), w, g)},
        "shampoo": {"loop": lambda w, g: TorchStepper(lambda p: library.Shampoo(p, lr=1e-3), w, g)},
    }


def timm_table(library: Any) -> dict[str, dict[str, Make]]:
    def loop(kind: Callable[..., Any], **options: Any) -> dict[str, Make]:
        return {"loop": lambda w, g: TorchStepper(lambda p: kind(p, **options), w, g)}

    return {
        "sgd": _loop_and_foreach(library.SGDW, lr=1e-3),
        "momentum": _loop_and_foreach(library.SGDW, lr=1e-3, momentum=0.9),
        "nesterov": _loop_and_foreach(library.SGDW, lr=1e-3, momentum=0.9, nesterov=True),
        "adamw": _loop_and_foreach(library.AdamWLegacy, lr=1e-3),
        "nadam": loop(library.NAdamLegacy, lr=2e-3),
        "lion": _loop_and_foreach(library.Lion, lr=1e-4),
        "adabelief": loop(library.AdaBelief, lr=1e-3, rectify=False),
        "adan": _loop_and_foreach(library.Adan, lr=1e-3),
        "adopt": _loop_and_foreach(library.Adopt, lr=1e-3, clip_exp=0.25),
        "laprop": loop(library.LaProp, lr=4e-4),
        "madgrad": loop(library.MADGRAD, lr=1e-2),
        "lamb": loop(
            library.Lamb, lr=1e-3, weight_decay=1e-2, max_grad_norm=None, always_adapt=True
        ),
        "lars": loop(library.Lars, lr=1.0, momentum=0.9, always_adapt=True),
        "novograd": loop(library.NvNovoGrad, lr=1e-3, betas=(0.95, 0.98)),
        "adamp": loop(library.AdamP, lr=1e-3),
    }


def heavyball_table(library: Any) -> dict[str, dict[str, Make]]:
    def compiled(kind: Callable[..., Any], **options: Any) -> dict[str, Make]:
        # Else its steps set all gradients to None, and the second is timed without any.
        options["consume_grad"] = False
        return {"compile": lambda w, g: TorchStepper(lambda p: kind(p, **options), w, g)}

    adam = {"betas": (0.9, 0.999), "eps": 1e-8}
    return {
        "momentum": compiled(library.SGD, lr=1e-3, beta=0.9),
        "adam": compiled(library.AdamW, lr=1e-3, **adam),
        "adamw": compiled(library.AdamW, lr=1e-3, weight_decay=1e-2, **adam),
        "nadam": compiled(library.NAdam, lr=2e-3, **adam),
        "ademamix": compiled(library.AdEMAMix, lr=1e-3, alpha=5.0),
        "laprop": compiled(library.LaProp, lr=4e-4, betas=(0.9, 0.999), eps=1e-15),
        "schedule-free-adamw": compiled(library.SFAdamW, lr=2.5e-3, **adam),
    }


def optimi_table(library: Any) -> dict[str, dict[str, Make]]:
    adam = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}
    return {
        "sgd": _loop_and_foreach(library.SGD, lr=1e-3),
        "momentum": _loop_and_foreach(library.SGD, lr=1e-3, momentum=0.9),
        "adam": _loop_and_foreach(library.Adam, **adam),
        "adamw": _loop_and_foreach(library.AdamW, weight_decay=1e-2, **adam),
        "radam": _loop_and_foreach(library.RAdam, **adam),
        "lion": _loop_and_foreach(library.Lion, lr=1e-4),
        "adan": _loop_and_foreach(library.Adan, lr=1e-3, weight_decay=0.0, eps=1e-8),
        "stable-adamw": _loop_and_foreach(library.StableAdamW, lr=1e-3),
    }
