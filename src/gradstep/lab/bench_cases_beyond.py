"""What ``gradstep bench`` can time beyond torch.optim: other rules, and chains of stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradstep
from gradstep.lab.bench_case import Case


def _own(rule: gradstep.Rule) -> Callable[..., Any]:
    return lambda params, **options: gradstep.Optimizer(params, rule, **options)


#: Rules that torch.optim has not and that other libraries have, most of them in several.
BEYOND = (
    Case("lion", gradstep.Lion, None),
    Case("signum", gradstep.Signum, None, {"lr": 1e-3}),
    Case("adabelief", gradstep.AdaBelief, None),
    Case("adan", gradstep.Adan, None),
    Case("ademamix", gradstep.AdEMAMix, None, {"alpha": 5.0}),
    Case("adopt", gradstep.ADOPT, None),
    Case("laprop", gradstep.LaProp, None),
    Case("yogi", gradstep.Yogi, None),
    Case("madgrad", gradstep.MADGRAD, None),
    Case("schedule-free-adamw", gradstep.AdamWScheduleFree, None),
    Case("mars", gradstep.MARS, None),
    Case("stable-adamw", gradstep.StableAdamW, None, {"lr": 1e-3, "weight_decay": 1e-2}),
    Case("lamb", gradstep.LAMB, None),
    Case("lars", gradstep.LARS, None, {"weight_decay": 0.0}),
    Case("novograd", gradstep.NovoGrad, None, {"lr": 1e-3}),
    Case("adamp", gradstep.AdamP, None),
    Case("came", gradstep.CAME, None),
    Case("prodigy", gradstep.Prodigy, None),
    # Where a gradient has nothing, each library chooses its own eigenvectors.
    Case("soap", gradstep.SOAP, None, compared_on=((8, 8), (5,), (4, 3, 2, 2))),
    Case("soap-blocks", gradstep.SOAP, None, {"block_size": 1024, "in_turn": True}),
    Case("shampoo", gradstep.Shampoo, None, {"lr": 1e-3, "eps": 1e-6}),
)

_ADAM_DECAY = gradstep.chain(gradstep.adam(), gradstep.decay_weights(0.01))
_CLIPPED = gradstep.chain(
    gradstep.clip_by_value(1.0), gradstep.adam(), gradstep.decay_weights(0.01)
)
_GLOBAL = gradstep.chain(
    gradstep.clip_by_global_norm(1.0), gradstep.adam(), gradstep.decay_weights(0.01)
)

#: Chains, beside the rule alone: one more reading of the gradients for a norm over all, else 5 %.
CHAINS = (
    Case(
        "adam+decay",
        _own(_ADAM_DECAY),
        None,
        own_aims={"large": 0.95},
        beside=("adamw", gradstep.AdamW),
    ),
    Case(
        "clip+adam+decay",
        _own(_CLIPPED),
        None,
        own_aims={"large": 0.95},
        beside=("adamw", gradstep.AdamW),
    ),
    Case(
        "global-clip+adam+decay",
        _own(_GLOBAL),
        None,
        own_aims={"large": 0.8},
        beside=("adamw", gradstep.AdamW),
    ),
)
