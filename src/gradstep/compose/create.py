"""Optimizers by their names, with the groups that trainers make."""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

import torch

from gradstep import rules
from gradstep.backends.dispatch import check_dimensions
from gradstep.backends.update import has_shape
from gradstep.classes import rule_classes
from gradstep.compose.members import Member, Predicate, biases_and_norms, members
from gradstep.compose.model_groups import Layers, Rates, groups, kind_of, spared_by
from gradstep.compose.partition import Partition, partition
from gradstep.optimizer.optimizer import Optimizer, extend, planner_of
from gradstep.rule.combine import chain
from gradstep.rule.definition import Rule
from gradstep.rule.symbol import RuleError
from gradstep.rule.trace import trace
from gradstep.rules.transforms.decay import decay_weights
from gradstep.rules.transforms.project import cautious

#: Names that other libraries have for a class of this one, and the options that make it theirs.
ALIASES: dict[str, tuple[str, dict[str, Any]]] = {
    "momentum": ("SGD", {"momentum": 0.9}),
    "nesterov": ("SGD", {"momentum": 0.9, "nesterov": True}),
    "amsgrad": ("Adam", {"amsgrad": True}),
    "radamw": ("RAdam", {"decoupled_weight_decay": True}),
    "schedule_free_sgd": ("SGDScheduleFree", {}),
    "schedule_free_adamw": ("AdamWScheduleFree", {}),
    "schedule_free_radam": ("RAdamScheduleFree", {}),
    "optimistic_gradient_descent": ("OptimisticSGD", {}),
    "sfsgd": ("SGDScheduleFree", {}),
    "sfadamw": ("AdamWScheduleFree", {}),
    "psgd_kron": ("Kron", {}),
    "psgd": ("Kron", {}),
    "galore_adamw": ("GaLore", {}),
    "apollo_adamw": ("APOLLO", {}),
    "adam_mini_by_blocks": ("AdamMini", {"by_rows": False}),
    "sign_sgd": ("SignSGD", {}),
    "follow_the_regularized_leader": ("FTRL", {}),
}


def create(
    name: str,
    params: Any,
    lr: Any = None,
    *,
    weight_decay: Any = None,
    no_decay: Predicate | str | Iterable[str] | None = biases_and_norms,
    layer_decay: float | None = None,
    layers: Layers = None,
    embedding_lr: Any = None,
    head_lr: Any = None,
    lora_plus: float | None = None,
    **options: Any,
) -> Optimizer | Partition:
    """An optimizer by its name, with the groups that trainers make.

    ::

        optimizer = gradstep.create("adamw", model, lr=3e-4, weight_decay=0.05, layer_decay=0.75)
        optimizer = gradstep.create("muon", model, lr=0.02)       # AdamW for what is no matrix

    Args:
        name: of a class or rule, in any case, with or without ``_`` and ``-``: ``"adamw"``,
            ``"AdEMAMix"``, ``"schedule_free_adamw"``. A ``c`` in front of
            one, as in ``"cadamw"``, is the cautious form. Two with a ``+`` are of the matrices
            inside and of all else: ``"muon+lion"``.
        params: the model, or its ``named_parameters()``. Frozen parameters of a model are left out.
        lr: the learning rate, or a schedule. Default: the class's own.
        weight_decay: the decay of all but ``no_decay``; put behind rules that have none, times the
            learning rate. Default: the class's own.
        no_decay: what does not decay: a function of a
            :class:`~gradstep.compose.members.Member`, a pattern of names, or names; None for
            nothing. And what the model's ``no_weight_decay()`` names, if it has one, as timm's
            have. Default: biases and the gains of normalization layers.
        layer_decay: each layer's learning rate is that of the one above it times this, the last
            one's being ``lr``: Bao et al. 2021, arXiv:2106.08254. Default: one rate.
        layers: where the layers are, if ``layer_decay`` cannot tell: patterns of names, or a
            function of a name that gives its depth; see :func:`gradstep.layer_depths`.
        embedding_lr: the learning rate of embeddings. Default: as all else.
        head_lr: the learning rate of output layers. Default: as all else.
        lora_plus: LoRA+: how many times the learning rate the matrices B of LoRA have, 16 in the
            paper: Hayou et al. 2024, arXiv:2402.12354. Default: once.
        options: for the class, such as ``betas`` or ``state_dtype``.

    Returns:
        the optimizer, with a group for each rate and decay. For a rule that takes matrices alone, a
        partition that gives all else, and embeddings and heads, to AdamW.

    Raises:
        ValueError: an unknown name, with the nearest three; a depth that cannot be told; a rate for
            parameters of which there are none.
        TypeError: an option that the class has not.
    """
    if not isinstance(name, str):
        raise TypeError(f"create() takes the name of an optimizer; got {name!r}")
    spared = spared_by(params, no_decay)
    model = kind_of(params)
    everything = members(params)
    rates = partial(
        Rates,
        layer_decay=layer_decay,
        layers=layers,
        embedding_lr=embedding_lr,
        head_lr=head_lr,
        lora_plus=lora_plus,
    )
    first, _, second = name.partition("+")
    found = _found(first)
    if weight_decay is not None:
        options["weight_decay"] = weight_decay

    def make(kind: Kind, chosen: list[Member], lr: Any, given: dict[str, Any]) -> Optimizer:
        rate = kind.default("lr") if lr is None else lr
        of_all = dict(zip(map(id, everything), rates(rate).of(everything, model), strict=True))
        return kind.make(chosen, [of_all[id(m)] for m in chosen], spared, rate, given)

    if not second and found.takes_all(everything):
        return make(found, everything, lr, options)
    kinds = {"matrices": found, "rest": _found(second or "adamw")}
    for option in options:
        if not any(kind.takes(option) for kind in kinds.values()):
            raise TypeError(f"neither {' nor '.join(k.cls for k in kinds.values())} has {option!r}")
    by_entry = {id(m.parameter): m for m in everything}

    def part(kind: Kind, entries: Any, lr: Any = None, **given: Any) -> Optimizer:
        chosen = [by_entry[id(e[1] if isinstance(e, tuple) else e)] for e in entries]
        return make(kind, chosen, lr, given)

    parts = {
        name: partial(part, kind, **{n: v for n, v in options.items() if kind.takes(n)})
        for name, kind in kinds.items()
    }
    return partition(parts, params, lr=lr)


@dataclass(frozen=True)
class Kind:
    """What a name stands for.

    Attributes:
        cls: the class.
        options: those that make it what the name says.
        cautious: whether elements of a step that point against the gradient are left out.
    """

    cls: str
    options: Mapping[str, Any] = field(default_factory=dict)
    cautious: bool = False

    @property
    def of_class(self) -> Callable[..., Optimizer]:
        """The class."""
        found: Callable[..., Optimizer] = rule_classes.load().get(self.cls) or getattr(
            import_module("gradstep.torch_optim"), self.cls
        )
        return found

    @property
    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.of_class).parameters

    def takes(self, option: str) -> bool:
        """Whether it has an option; every one has a weight decay, if need be behind its rule."""
        return option in self._parameters or (option == "weight_decay" and self._has_rule)

    def default(self, option: str) -> Any:
        """Its own value of an option; None for an option that it has not."""
        found = self._parameters.get(option)
        return self.options.get(option, None if found is None else found.default)

    def takes_all(self, everything: list[Member]) -> bool:
        """Whether its rule can update all of these parameters."""
        if not self._has_rule:
            return True
        rule = self._rule({})
        graph = trace(rule, {**rule.hyperparameters, "lr": 0.0})
        try:
            for member in everything:
                if has_shape(member.parameter):
                    check_dimensions(rule, graph, member.parameter, partial(str, member.name))
        except ValueError:
            return False
        return True

    @property
    def _has_rule(self) -> bool:
        return issubclass(self.of_class, Optimizer)  # type: ignore[arg-type]

    def _rule(self, options: Mapping[str, Any]) -> Rule:
        """The rule with the options of the class."""
        made = self.of_class([torch.zeros(1, 1)], **{**self.options, **options})
        planner = planner_of(made)
        return planner.rule(**planner.reader.hyperparameters(made.param_groups[0]))

    def make(
        self,
        chosen: list[Member],
        rates: list[Any],
        spared: Predicate,
        lr: Any,
        options: Mapping[str, Any],
    ) -> Optimizer:
        """The optimizer.

        Args:
            chosen: the parameters.
            rates: their learning rates.
            spared: which do not decay.
            lr: the rate of groups that are given none later.
            options: for the class, and ``weight_decay``.
        """
        unknown = [n for n in options if not self.takes(n)]
        if unknown:
            own = [n for n in self._parameters if n != "params"]
            raise TypeError(f"{self.cls} has no option {unknown[0]!r}: {nearest(unknown[0], own)}")
        if self.cautious:
            return self._make_cautious(chosen, rates, spared, lr, options)
        given = {**self.options, **options}
        if not self._has_rule:  # LBFGS, which has one group for all
            if len(groups(chosen, rates, lambda member: False, [])) > 1:
                raise ValueError(f"{self.cls} has one learning rate for all parameters")
            return self.of_class([m.entry() for m in chosen], lr=lr, **given)
        if "weight_decay" in self._parameters:
            made = groups(chosen, rates, spared, ["weight_decay"])
            return self.of_class(made, lr=lr, **given)
        decay = given.pop("weight_decay", None)
        if not decay:
            return self.of_class(groups(chosen, rates, lambda member: False, []), lr=lr, **given)
        optimizer = self.of_class(groups(chosen, rates, spared, [_SPARED]), lr=lr, **given)
        try:
            extend(optimizer, decay_weights(decay))
        except RuleError:
            raise TypeError(
                f"{self.cls} sets weights outright and has no weight_decay. Leave it out"
            ) from None
        for group in optimizer.param_groups:
            if group.pop(_SPARED, None) is not None:
                group["weight_decay"] = 0.0
        return optimizer

    def _make_cautious(
        self,
        chosen: list[Member],
        rates: list[Any],
        spared: Predicate,
        lr: Any,
        options: Mapping[str, Any],
    ) -> Optimizer:
        of_optimizer = inspect.signature(Optimizer).parameters
        apart = {n: v for n, v in options.items() if n in of_optimizer}
        own = {n: v for n, v in options.items() if n not in of_optimizer}
        decay = own.pop("weight_decay", self.default("weight_decay"))
        stages = [self._rule({**own, **({"weight_decay": 0.0} if decay is not None else {})})]
        stages += [cautious(), *([decay_weights(decay)] if decay else [])]
        rule = chain(*stages)
        decays = [n for n in rule.hyperparameters if n.endswith("weight_decay")][-1:]
        return Optimizer(groups(chosen, rates, spared, decays), rule, lr, **apart)


#: Marks the groups that do not decay, until the decay is there.
_SPARED = "spared_by_create"


def names() -> list[str]:
    """The names that :func:`create` takes, in their plainest spelling."""
    return sorted(_known())


@functools.cache
def _known() -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> class and options: of rules, of classes, and of other libraries."""
    torch_optim = import_module("gradstep.torch_optim")
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for rule in rules.load().values():
        if rule.class_name is not None:
            found[rule.name] = (str(rule.class_name), {})
    for cls in torch_optim.__all__:
        found[cls.lower()] = (cls, {})
    return {**ALIASES, **found}


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "").replace(" ", "")


@functools.cache
def _plainly() -> dict[str, tuple[str, dict[str, Any]]]:
    known = _known()
    return {
        **{_plain(cls): (cls, {}) for cls, _ in known.values()},
        **{_plain(name): found for name, found in known.items()},
    }


def _found(name: str) -> Kind:
    plain, known = _plain(name), _plainly()
    if plain in known:
        return Kind(*known[plain])
    if plain.startswith("c") and plain[1:] in known:
        return Kind(*known[plain[1:]], cautious=True)
    way = of_bitsandbytes(name) or nearest(name, names())
    raise ValueError(f"unknown optimizer {name!r}: {way}")


def of_bitsandbytes(name: str) -> str:
    """What a class of bitsandbytes is here; nothing for another name, or for one without bits."""
    found = re.fullmatch(r"(paged)?(.+?)(?:bnb)?(8bit|32bit)?", _plain(name))
    if found is None or found[2] not in _plainly() or not (found[1] or found[3]):
        return ""
    options = 'state_dtype="dynamic8"' if found[3] == "8bit" else ""
    made = f"{_plainly()[found[2]][0]}(…{', ' * bool(options)}{options})"
    made = f"Offload({made})" if found[1] else made
    return f"here it is gradstep.{made}, see docs/coming-from.md"


def nearest(name: str, known: Iterable[str]) -> str:
    """``the nearest are a, b and c``."""
    spelled = {_plain(each): each for each in known}
    near = difflib.get_close_matches(_plain(name), list(spelled), n=3, cutoff=0.0)
    found = [spelled[each] for each in near]
    return f"the nearest are {', '.join(found[:-1])} and {found[-1]}"
