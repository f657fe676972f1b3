"""Which optimizers of other libraries bear the name of a rule of ours, and why some are another.

A row is data: what the audit finds is worked out anew each time; ``reason`` is what we know of a
difference, from the other library's source and by making the two agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Pair:
    """Their optimizer by its import path, and our class.

    Attributes:
        theirs, ours: names.
        their_options, our_options: what makes the two as alike as their arguments allow.
        reason: why they differ all the same; empty if they are expected to agree.
        their_group: what theirs wants a group of parameters to say.
    """

    theirs: str
    ours: str
    their_options: Mapping[str, Any] = field(default_factory=dict)
    our_options: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    their_group: Mapping[str, Any] = field(default_factory=dict)


_PO, _OPTAX, _TIMM = "pytorch_optimizer", "optax", "timm.optim"
_TO, _OPTIMI = "torch_optimizer", "optimi"
_MUON = {"use_muon": True}

PAIRS = (
    Pair(f"{_OPTAX}.adam", "Adam"),
    Pair(
        f"{_OPTAX}.nadam",
        "NAdam",
        reason="takes the corrected average of the step to come, not torch's product of momenta",
    ),
    Pair(
        f"{_OPTAX}.radam",
        "RAdam",
        {"threshold": 5.0},
        reason="one step count for all parameters; no eps beside the root",
    ),
    Pair(
        f"{_PO}.RAdam",
        "RAdam",
        {"degenerated_to_sgd": True},
        reason="one step count for all parameters; decay is decoupled",
    ),
    Pair(f"{_OPTAX}.adamax", "Adamax"),
    Pair(f"{_OPTAX}.adadelta", "Adadelta", {"rho": 0.9, "eps": 1e-6}),
    Pair("lion_pytorch.Lion", "Lion"),
    Pair(f"{_PO}.Lion", "Lion"),
    Pair(f"{_TIMM}.Lion", "Lion"),
    Pair(f"{_OPTIMI}.Lion", "Lion"),
    Pair(f"{_OPTAX}.lion", "Lion", {"weight_decay": 0.0}),
    Pair("adabelief_pytorch.AdaBelief", "AdaBelief", {"rectify": False, "print_change_log": False}),
    Pair(f"{_PO}.AdaBelief", "AdaBelief", {"rectify": False}),
    Pair(f"{_TIMM}.AdaBelief", "AdaBelief", {"rectify": False}),
    Pair(
        f"{_TO}.AdaBelief",
        "AdaBelief",
        {"rectify": False, "eps": 1e-16},
        reason="its decay goes into the gradient",
    ),
    Pair(f"{_OPTAX}.adabelief", "AdaBelief", {"eps": 1e-16, "eps_root": 1e-16}),
    Pair(
        "adan_pytorch.Adan",
        "Adan",
        {"betas": (0.02, 0.08, 0.01)},
        reason="makes no step at a parameter's first gradient; its betas are 1 − the paper's",
    ),
    Pair(f"{_PO}.Adan", "Adan"),
    Pair(f"{_TIMM}.Adan", "Adan"),
    Pair(f"{_OPTIMI}.Adan", "Adan", {"eps": 1e-8, "weight_decay": 0.0}),
    Pair(
        f"{_OPTAX}.adan",
        "Adan",
        {"weight_decay": 0.0, "eps_root": 0.0},
        reason="weighs the difference of gradients by 1 − β₂ where the paper has β₂",
    ),
    Pair(
        f"{_PO}.ADOPT",
        "ADOPT",
        reason="clips at t^¼, a step late; its decay goes into the gradient unless decoupled",
    ),
    Pair(f"{_TIMM}.Adopt", "ADOPT", {"clip_exp": 0.25}, reason="its decay is another one"),
    Pair(f"{_OPTAX}.contrib.adopt", "ADOPT", {"b2": 0.9999, "eps": 1e-6}),
    Pair(
        f"{_PO}.AdEMAMix",
        "AdEMAMix",
        {"alpha": 5.0},
        {"alpha": 5.0},
        reason="one step count for all parameters; its decay goes into the gradient",
    ),
    Pair(
        f"{_OPTAX}.contrib.ademamix",
        "AdEMAMix",
        {"alpha": 5.0, "weight_decay": 0.0},
        {"alpha": 5.0},
    ),
    Pair(f"{_TIMM}.Lamb", "LAMB", {"max_grad_norm": None, "always_adapt": True}),
    Pair(f"{_PO}.Lamb", "LAMB", reason="divides by 1 − β₁ᵗ behind the trust ratio"),
    Pair(f"{_TO}.Lamb", "LAMB", reason="no bias correction, and |w| is clamped"),
    Pair(f"{_OPTAX}.lamb", "LAMB", {"weight_decay": 0.0}, {"weight_decay": 0.0}),
    Pair(
        f"{_TIMM}.Lars",
        "LARS",
        {"momentum": 0.9, "always_adapt": True, "trust_coeff": 0.001},
        {"lr_in_momentum": False, "weight_decay": 0.0},
    ),
    Pair(
        f"{_PO}.LARS",
        "LARS",
        {"momentum": 0.9},
        {"lr_in_momentum": False, "weight_decay": 0.0},
        reason="leaves out vectors, decay included",
    ),
    Pair(
        f"{_OPTAX}.lars",
        "LARS",
        {},
        {"weight_decay": 0.0},
        reason="its trust ratio has |g + decay·w|, the paper's |g| + decay·|w|",
    ),
    Pair(
        f"{_TIMM}.NvNovoGrad",
        "NovoGrad",
        reason="eps within the root; starts anew wherever the second moment is 0",
    ),
    Pair(f"{_PO}.NovoGrad", "NovoGrad", reason="eps in another place"),
    Pair(
        f"{_OPTAX}.novograd",
        "NovoGrad",
        {"b1": 0.95, "b2": 0.98, "eps": 1e-8},
        reason="eps in another place; one step count for all parameters",
    ),
    Pair("madgrad.MADGRAD", "MADGRAD"),
    Pair(f"{_TIMM}.MADGRAD", "MADGRAD"),
    Pair(f"{_PO}.MADGRAD", "MADGRAD"),
    Pair(
        f"{_TIMM}.LaProp",
        "LaProp",
        reason="lr within the average; decay behind the step; eps in another place",
    ),
    Pair(f"{_PO}.LaProp", "LaProp", reason="lr within the average; 1e-15 under the root"),
    Pair(
        f"{_TIMM}.Mars",
        "MARS",
        {"betas": (0.95, 0.99)},
        reason="vectors get plain AdamW; the first step uses the gradient as it is",
    ),
    Pair(f"{_PO}.MARS", "MARS", reason="vectors get plain AdamW; 1e-15 under the root"),
    Pair(f"{_OPTIMI}.StableAdamW", "StableAdamW", {}, {"weight_decay": 0.01}),
    Pair(
        f"{_PO}.StableAdamW",
        "StableAdamW",
        {"eps": 1e-6, "weight_decay": 0.0},
        {"weight_decay": 0.0},
    ),
    Pair("schedulefree.SGDScheduleFree", "SGDScheduleFree", {"foreach": False}),
    Pair("schedulefree.AdamWScheduleFree", "AdamWScheduleFree", {"foreach": False}),
    Pair(
        f"{_PO}.ScheduleFreeAdamW",
        "AdamWScheduleFree",
        reason="1e-15 under the root; one step count for all parameters",
    ),
    Pair(
        f"{_OPTAX}.yogi",
        "Yogi",
        reason="the first moment starts as 1e-6 too, where the paper starts the second alone there",
    ),
    Pair(f"{_PO}.Yogi", "Yogi", reason="the first moment starts as 1e-6 too; decay is decoupled"),
    Pair(f"{_TO}.Yogi", "Yogi", reason="the first moment starts as 1e-6 too"),
    Pair(f"{_PO}.AdaBound", "AdaBound", reason="1e-15 under the root; decay is decoupled"),
    Pair(f"{_TO}.AdaBound", "AdaBound"),
    Pair(f"{_TO}.DiffGrad", "DiffGrad", reason="eps before the bias correction"),
    Pair(
        f"{_PO}.DiffGrad", "DiffGrad", reason="eps before the bias correction; decay is decoupled"
    ),
    Pair(f"{_TO}.QHAdam", "QHAdam", {"betas": (0.995, 0.999), "nus": (0.7, 1.0)}),
    Pair(
        f"{_PO}.QHAdam",
        "QHAdam",
        {"betas": (0.995, 0.999), "nus": (0.7, 1.0)},
        reason="eps in another place",
    ),
    Pair(f"{_TO}.QHM", "QHM", {"momentum": 0.999, "nu": 0.7}),
    Pair(f"{_TO}.AggMo", "AggMo"),
    Pair(f"{_PO}.AggMo", "AggMo"),
    Pair(f"{_PO}.SignSGD", "Signum", {"momentum": 0.9}),
    Pair(f"{_OPTAX}.sign_sgd", "SignSGD"),
    Pair(f"{_PO}.Tiger", "Tiger", {"weight_decay": 0.0}, {"weight_decay": 0.0}),
    Pair(f"{_TIMM}.SGDW", "SGDW", {"momentum": 0.9}, {"weight_decay": 0.0}),
    Pair(f"{_PO}.SGDW", "SGDW", {"momentum": 0.9}, {"weight_decay": 0.0}),
    Pair(f"{_PO}.Fromage", "Fromage"),
    Pair(
        f"{_OPTAX}.fromage",
        "Fromage",
        reason="norms are at least 1e-6, so the ratio is never 1 for a weight of zeros",
    ),
    Pair(
        f"{_PO}.SM3",
        "SM3",
        {"momentum": 0.9},
        reason="an accumulator for each dimension, not for rows and columns",
    ),
    Pair(
        f"{_OPTAX}.sm3",
        "SM3",
        reason="eps within the root; an accumulator for each dimension, not for rows and columns",
    ),
    Pair(f"{_TIMM}.AdamP", "AdamP", reason="a gradient of zero counts as orthogonal to its weight"),
    Pair(
        f"{_PO}.AdamP",
        "AdamP",
        reason="eps before the correction; a gradient of zero counts as orthogonal to its weight",
    ),
    Pair(
        f"{_TIMM}.SGDP",
        "SGDP",
        {"momentum": 0.9},
        reason="a gradient of zero counts as orthogonal to its weight",
    ),
    Pair(
        f"{_PO}.SGDP",
        "SGDP",
        {"momentum": 0.9},
        reason="a gradient of zero counts as orthogonal to its weight",
    ),
    Pair("came_pytorch.CAME", "CAME"),
    Pair(f"{_PO}.CAME", "CAME"),
    Pair(f"{_PO}.Grams", "Grams"),
    Pair(f"{_PO}.Kate", "Kate", reason="eps stays in the sum of squares, and eta is 0 by default"),
    Pair("torch.optim.Adafactor", "Adafactor"),
    Pair(
        f"{_PO}.AdaFactor",
        "Adafactor",
        {"relative_step": False, "betas": (None, 0.999)},
        reason="its decay is multiplied by the weight's size too; one step count for all",
    ),
    Pair(
        f"{_TO}.Adafactor",
        "Adafactor",
        {"relative_step": False, "warmup_init": False},
        reason="its decay is multiplied by the weight's size too",
    ),
    Pair(
        f"{_TIMM}.Adafactor",
        "Adafactor",
        {"min_dim_size_to_factor": 0},
        reason="leaves out the weight's size where lr is given; factors the channel dimensions",
    ),
    Pair(
        f"{_TIMM}.AdafactorBigVision",
        "Adafactor",
        {"min_dim_size_to_factor": 0},
        reason="leaves out the weight's size; does not clip the update unless asked to",
    ),
    Pair(f"{_PO}.NAdam", "NAdam"),
    Pair(
        f"{_TIMM}.NAdamLegacy",
        "NAdam",
        {"schedule_decay": 0.004},
        reason="eps before the second moment is corrected",
    ),
    Pair(f"{_TIMM}.NAdamW", "NAdamW"),
    Pair(f"{_PO}.AdaSmooth", "AdaSmooth"),
    Pair(f"{_PO}.Adai", "Adai"),
    Pair(
        f"{_TO}.AdaMod",
        "AdaMod",
        reason="an element with no gradient yet has a step size of lr/eps, which its average keeps",
    ),
    Pair(
        f"{_PO}.Amos",
        "Amos",
        reason="another scale beyond two dimensions; one step count for all parameters",
    ),
    Pair(
        f"{_PO}.APOLLO",
        "APOLLO",
        {"rank": 4},
        {"rank": 4},
        reason="beyond two dimensions it is plain Adam",
    ),
    Pair(f"{_PO}.ApolloDQN", "ApolloQuasiNewton", {"warmup_steps": 1}),
    Pair("dadaptation.DAdaptAdam", "DAdaptAdam"),
    Pair(f"{_PO}.DAdaptAdam", "DAdaptAdam"),
    Pair("dadaptation.DAdaptSGD", "DAdaptSGD"),
    Pair("dog.DoG", "DoG"),
    Pair("dog.LDoG", "LDoG", reason="keeps its numbers in float64, where ours are float32"),
    Pair("optax.contrib.dog", "DoG"),
    Pair("optax.contrib.dowg", "DoWG"),
    Pair(
        f"{_PO}.FTRL",
        "FTRL",
        reason="starts from a weight of 0, whatever it is when training starts",
    ),
    Pair(f"{_PO}.Gravity", "Gravity", {"alpha": 0.0}),
    Pair(
        f"{_PO}.Nero",
        "Nero",
        {"eps": 1e-8},
        reason="holds the weights to their length as soon as it is made, without eps",
    ),
    # From a larger start, since steps of a millionth of a weight are roundings for the most part.
    Pair("prodigyopt.Prodigy", "Prodigy", {"d0": 0.0625}, {"d0": 0.0625}),
    Pair(f"{_PO}.Prodigy", "Prodigy", {"d0": 0.0625}, {"d0": 0.0625}),
    Pair(
        f"{_PO}.Shampoo",
        "Shampoo",
        {"matrix_eps": 1e-4, "preconditioning_compute_steps": 1, "weight_decouple": False},
        reason="weights of no dimension, single numbers, have no matrix",
    ),
    Pair(
        f"{_TO}.Shampoo",
        "Shampoo",
        reason="takes roots of twice the power, of gradients that are preconditioned in part",
    ),
    Pair("torch.optim.Muon", "Muon"),
    Pair(f"{_PO}.Muon", "Muon", {}, {"flatten": True, "weight_decay": 0.0}, "", _MUON),
    Pair(
        f"{_PO}.Muon",
        "Muon",
        {"use_adjusted_lr": True},
        {"adjust_lr_fn": "match_rms_adamw", "flatten": True, "weight_decay": 0.0},
        "",
        _MUON,
    ),
    Pair(
        f"{_PO}.Muon",
        "Muon",
        {"ns_coeffs": "quintic"},
        {"coefficients": "tuned", "flatten": True, "weight_decay": 0.0},
        "",
        _MUON,
    ),
    Pair(
        f"{_PO}.Muon",
        "Muon",
        {"ns_coeffs": "polar_express"},
        {"coefficients": "polar_express", "flatten": True, "weight_decay": 0.0},
        "its triples are for another range of singular values than the paper's",
        _MUON,
    ),
    Pair(f"{_PO}.NorMuon", "NorMuon", {}, {}, "", _MUON),
    Pair(
        f"{_PO}.AdaMuon",
        "AdaMuon",
        {},
        {"momentum": 0.9, "of_signs": False, "nesterov": False, "eps": 1e-10, "flatten": True},
        "goes on in bfloat16 behind the iteration",
        _MUON,
    ),
    Pair(
        f"{_PO}.SOAP",
        "SOAP",
        reason="where the first gradient has nothing, its basis is that of LAPACK's roundings; QR "
        "is in float32",
    ),
    Pair(
        f"{_PO}.SRMM",
        "SRMM",
        reason="averages the weights after the step, from 0: the first step shrinks them",
    ),
    Pair(
        f"{_PO}.SWATS",
        "SWATS",
        {"eps": 1e-9},
        reason="1e-15 is added under the root; one step count for all parameters",
    ),
    Pair(f"{_TO}.SWATS", "SWATS", {"eps": 1e-9}),
)
