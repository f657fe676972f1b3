"""One optimizer for a model whose parts follow different rules."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from gradstep.backends.update import has_shape
from gradstep.compose.members import (
    READY,
    Member,
    Predicate,
    biases_and_norms,
    matches,
    members,
)
from gradstep.optimizer.beginning import only_begins_states
from gradstep.optimizer.checkpoint import Holder
from gradstep.optimizer.cycled_momentum import OffersMomentum
from gradstep.optimizer.held_states import as_saved
from gradstep.optimizer.loading import load
from gradstep.optimizer.observer import StepObserver
from gradstep.optimizer.optimizer import Optimizer, begin_anew, holder_of, planner_of
from gradstep.optimizer.parameter_names import ParameterNames, first_names, names_of
from gradstep.optimizer.step import Step
from gradstep.optimizer.step_hooks import HooksOnce
from gradstep.rule.definition import Rule

#: What a part may be given as: a rule, or what makes an optimizer of parameters.
Maker = Rule | Callable[..., Optimizer]


class Partition(HooksOnce):
    """An optimizer whose parts follow different rules. Made by :func:`partition`.

    To the world it is one optimizer: one step, one ``state_dict()``, and the groups of all parts in
    ``param_groups``, each with its part's name under ``"part"``. A step is all or nothing over all
    parts. ``print()`` shows it as a table.

    A rule that sums over all parameters, such as ``clip_by_global_norm``, sums over its own part;
    to clip over all, call ``torch.nn.utils.clip_grad_norm_`` before the step.

    ``param_groups`` and ``state`` may be exchanged and changed by hand, as torch's may: the parts
    follow.
    """

    _observers: tuple[StepObserver, ...] = ()

    def __init__(self, parts: Mapping[str, Optimizer]) -> None:
        self._parts = dict(parts)
        self._linked: list[tuple[dict[str, Any], str]] = []  # what the parts hold by now
        for name, part in self._parts.items():
            for group in part.param_groups:
                group["part"] = name
            planner = planner_of(part)
            planner.cycled = True
            planner.observe_options()
        self._complete = False
        cycled = any(
            {"betas", "momentum"} & part.defaults.keys() or planner_of(part).reader.momenta
            for part in self._parts.values()
        )
        defaults = OffersMomentum() if cycled else {}
        super().__init__([g for part in self._parts.values() for g in part.param_groups], defaults)
        self._complete = True
        for part in self._parts.values():
            self.state.update(part.state)
        self._link()

    @cached_property
    def _names(self) -> ParameterNames:
        return _NamesOfParts({name: names_of(part) for name, part in self._parts.items()})

    @property
    def parts(self) -> dict[str, Optimizer]:
        """Name -> the part's own optimizer, with its groups of the whole, and the one state.

        It is saved and stepped with the whole, not by itself.

        Raises:
            ValueError: a group that was put in by hand and names no part.
        """
        self._link()
        return self._parts

    def _link(self) -> None:
        """Let every part hold its groups of the whole, and the one state, as they are by now."""
        groups, parts = self.param_groups, self._parts.values()
        if (
            len(groups) == len(self._linked) == sum(len(part.param_groups) for part in parts)
            and all(
                group is g and group.get("part") == name
                for group, (g, name) in zip(groups, self._linked, strict=True)
            )
            and all(part.state is self.state for part in parts)
        ):
            return
        known = {id(g) for g in groups} | {id(g) for g, _ in self._linked}
        for name, part in self._parts.items():
            for group in part.param_groups:
                if id(group) not in known:  # added to the part alone
                    group["part"] = name
                    groups.append(group)
        own: dict[str, list[dict[str, Any]]] = {name: [] for name in self._parts}
        for number, group in enumerate(groups):
            if group.get("part") not in own:
                raise ValueError(
                    f"group {number} of param_groups names the part {group.get('part')!r}; the "
                    f"parts are {', '.join(own)}. Say which under 'part'"
                )
            own[group["part"]].append(group)
        for name, part in self._parts.items():
            part.param_groups, part.state = own[name], self.state
        self._linked = [(group, group["part"]) for group in groups]

    @torch._disable_dynamo
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every weight that has a gradient, each by its part's rule.

        Args:
            closure: computes the loss anew and returns it; called first, with gradients enabled.

        Returns:
            the closure's loss, or None.

        Raises:
            TypeError, ValueError, RuntimeError: whatever does not fit, named. All weights and
                states, of every part, are as they were.
            RuntimeError: a function that a rule calls has raised when some parameters were updated
                already, which are named.
        """
        if closure is None and only_begins_states(self):
            for part in self.parts.values():
                planner_of(part).begin_states()
            return None
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        parts = self.parts.values()
        for part in parts:  # with hooks of its own
            for hook in list(part._optimizer_step_pre_hooks.values()):
                hook(part, (part,), {})
        observers = [*self._observers, *(o for part in parts for o in part._observers)]
        Step([planner_of(part) for part in parts], observers, loss).make()
        for part in parts:
            for hook in list(part._optimizer_step_post_hooks.values()):
                hook(part, (part,), {})
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to one of the parts, which it names: ``{"params": …, "part": "rest"}``.

        Raises:
            ValueError: no such part, or a parameter that is in a group already.
            TypeError: as the part's own ``add_param_group``. The optimizer is as it was.
        """
        if not self._complete:
            super().add_param_group(param_group)
            return
        part = self.parts.get(param_group.get("part", ""))
        if part is None:
            raise ValueError(
                f"the group names the part {param_group.get('part')!r}; the parts are "
                f"{', '.join(self.parts)}. Say which: add_param_group({{'params': …, 'part': …}})"
            )
        part.add_param_group(param_group)
        try:
            super().add_param_group(part.param_groups[-1])
        except Exception:
            part.param_groups.pop()
            planner_of(part).schedules.drop_last()
            raise
        self._link()

    # Checkpoints.

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "parts": self.parts, "_complete": True}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "defaults" in state:
            self._parts = state["parts"]
            self._linked = [(group, group["part"]) for group in state["param_groups"]]
            super().__setstate__({n: v for n, v in state.items() if n != "parts"})
            self._link()
            return
        super().__setstate__(state)
        for part in self.parts.values():
            begin_anew(part)

    def state_dict(self) -> dict[str, Any]:
        """One checkpoint of all parts."""
        return as_saved(super().state_dict(), self.state)

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> None:
        """Load a checkpoint of a partition into the same parts.

        Args:
            state_dict: the checkpoint. Where it and the optimizer both have names
                (``named_parameters()``), states go to the parameters of the same names, in
                whatever order; else by their place, as in torch.
            strict: whether both have to have the same parameters. If not, what the checkpoint lacks
                or has in another shape stays as it is, what it has beyond is left out, and a log
                line names both; a group whose parameters come of several keeps its options.
                Default: True.

        Raises:
            ValueError: a checkpoint of other parts, of another model or rule, or an incomplete one.
                The optimizer is as it was.
        """
        parts: dict[str | None, Holder] = {n: holder_of(part) for n, part in self.parts.items()}
        load(self, state_dict, parts, strict)

    # Names.

    def engines_used(self) -> dict[str, str]:
        """The engine that updated each parameter at its last step: name -> engine."""
        return {n: e for part in self.parts.values() for n, e in part.engines_used().items()}

    def name_of(self, p: Tensor) -> str:
        """The parameter's name in the model if the parts were given names, else its place."""
        return self._names.of(self.param_groups, p)

    # Print.

    def __repr__(self) -> str:
        return self.table()

    def table(self, every: bool = False) -> str:
        """The parts as a table; with ``every``, a row for each parameter as well."""
        rows = [("part", "rule", "lr", "parameters", "weights")]
        listed: list[str] = []
        for name, part in self.parts.items():
            planner = planner_of(part)
            named = list(planner.named())
            lrs = dict.fromkeys(f"{float(group['lr']):g}" for group in part.param_groups)
            weights = sum(p.numel() for _, p in named if has_shape(p))
            rows.append((name, planner.rule.name, ", ".join(lrs), str(len(named)), f"{weights:,}"))
            for parameter_name, p in named:
                shape = "×".join(map(str, p.shape)) or "1" if has_shape(p) else "lazy"
                listed.append(f"{parameter_name}  {shape}  {name}")
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = [
            "  ".join(
                cell.ljust(w) if i < 2 else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        return "\n".join([*lines, *(listed if every else [])])


class _NamesOfParts(ParameterNames):
    """The names of all parts' parameters: each part knows those of its groups."""

    def __init__(self, parts: Mapping[str, ParameterNames]) -> None:
        super().__init__()
        self._parts = parts

    def _of(self, group: Mapping[str, Any], known: Any) -> list[str | None] | None:
        return self._parts[group["part"]].in_group(group)


def partition(
    parts: Mapping[str, Maker],
    params: Any,
    *,
    where: Mapping[str, Predicate | str] | None = None,
    lr: float | Mapping[str, float] | None = None,
    **options: Any,
) -> Partition:
    """One optimizer for a model whose parts follow different rules.

    ::

        optimizer = gradstep.partition(
            {"matrices": gradstep.muon(), "rest": gradstep.adam()}, model, lr={"matrices": 0.02}
        )
        print(optimizer)

    Args:
        parts: name -> a rule or chain, or a class of optimizers, also with arguments set by
            ``functools.partial``. The names ``matrices``, ``filters``, ``embeddings``, ``heads``
            and ``biases_and_norms`` say what belongs to a part; ``rest`` is all that no other part
            claims; for any other name see ``where``.
        params: the model, or its ``named_parameters()``, or tensors. Without the model, embeddings
            and heads are known by their names alone. Frozen parameters of a model are left out.
        where: part -> what belongs to it: a pattern of names such as ``"encoder.*"``, or a function
            of a :class:`~gradstep.compose.members.Member` such as ``of_type(nn.Conv2d)``.
        lr: the learning rate of all parts, or part -> learning rate. Default: each rule's own.
        options: for every part's optimizer, such as ``engine`` and ``maximize``.

    Raises:
        TypeError: a part that is neither a rule nor makes a gradstep optimizer.
        ValueError: parameters that no part claims, or that two claim; a part of an unknown name, or
            whose pattern fits no parameter.
    """
    if not parts:
        raise ValueError("partition() needs at least one part: a name, and a rule for it")
    where, everything = dict(where or {}), members(params)
    _need_names([name for name in parts if name not in where], everything)
    rates = dict(lr) if isinstance(lr, Mapping) else dict.fromkeys(parts, lr)
    for given, what in ((where, "where"), (rates, "lr")):
        unknown = [name for name in given if name not in parts]
        if unknown:
            raise ValueError(
                f"{what} names the part {unknown[0]!r}; the parts are {', '.join(parts)}"
            )
    claimed = _claims(list(parts), where, everything)
    optimizers: dict[str, Optimizer] = {}
    for name, maker in parts.items():
        own = [m.entry() for m in claimed[name]]
        if not own:
            if name in where:
                raise ValueError(
                    f"no parameter belongs to the part {name!r}: its pattern or predicate fits "
                    f"none. The first of the model is {everything[0].name!r}"
                )
            continue
        optimizers[name] = _make(name, maker, own, rates.get(name), options)
    return Partition(optimizers)


def _need_names(parts: Sequence[str], everything: Sequence[Member]) -> None:
    """Refuse tensors without names where these tell embeddings and heads from other matrices.

    Raises:
        ValueError: there are such parts, and such tensors.
    """
    known = [name for name in parts if name in READY and READY[name] is not biases_and_norms]
    if known and any(not m.named and m.parameter.dim() > 1 for m in everything):
        raise ValueError(
            f"the part {known[0]!r} is told by the model: parameters without names may be "
            "embeddings or a head as well. Give partition() the model, or its named_parameters(); "
            f"or say what belongs to it: where={{{known[0]!r}: lambda member: …}}"
        )


def _claims(
    names: list[str], where: Mapping[str, Predicate | str], everything: list[Member]
) -> dict[str, list[Member]]:
    """Part -> the parameters that belong to it."""
    predicates: dict[str, Predicate] = {}
    for name in names:
        if name in where:
            given = where[name]
            predicates[name] = matches(given) if isinstance(given, str) else given
        elif name in READY:
            predicates[name] = READY[name]
        elif name != "rest":
            raise ValueError(
                f"what belongs to the part {name!r} is not known. Say it: where={{{name!r}: "
                f'"pattern.*"}}; or call it {", ".join(READY)} or rest'
            )
    claimed: dict[str, list[Member]] = {name: [] for name in names}
    lost: list[str] = []
    for member in everything:
        by = [name for name, predicate in predicates.items() if predicate(member)]
        if len(by) > 1:
            raise ValueError(
                f"{member.name} is claimed twice: by the parts {' and '.join(by)}. Let one of them "
                "leave it to the other, with where="
            )
        if not by and "rest" in names and "rest" not in predicates:
            by = ["rest"]
        if by:
            claimed[by[0]].append(member)
        else:
            lost.append(member.name)
    if lost:
        raise ValueError(
            f"no part claims {first_names(lost)}, which would stay as they are. Add a part "
            "called rest, or set requires_grad=False for what is to be frozen"
        )
    return claimed


def _make(
    name: str,
    maker: Maker,
    params: list[Any],
    lr: float | None,
    options: Mapping[str, Any],
) -> Optimizer:
    given = dict(options) if lr is None else {**options, "lr": lr}
    made: Any
    if isinstance(maker, Rule):
        made = Optimizer(params, maker, **given)
    elif isinstance(maker, torch.optim.Optimizer) or not callable(maker):
        raise TypeError(
            f"the part {name!r} is a {type(maker).__name__}; give a rule such as gradstep.adam(), "
            "or a class such as gradstep.AdamW"
        )
    else:
        made = maker(params, **given)
    if not isinstance(made, Optimizer):
        raise TypeError(
            f"the part {name!r} makes a {type(made).__name__}, which is not an optimizer of "
            "gradstep over a rule: a partition holds no wrappers and no optimizers of torch. Wrap "
            "the partition as a whole instead"
        )
    return made


def for_model(
    model: nn.Module, rule: Maker, *, no_decay: Predicate | str = biases_and_norms, **options: Any
) -> Optimizer:
    """An optimizer for a model, with the customary groups: no decay for biases and norms.

    ::

        optimizer = gradstep.for_model(model, gradstep.AdamW, lr=3e-4, weight_decay=0.1)

    Args:
        model: the model; its frozen parameters are left out.
        rule: a rule or chain with a ``weight_decay``, or a class of optimizers.
        no_decay: which parameters do not decay: a pattern of names, or a function of a
            :class:`~gradstep.compose.members.Member`. Default: those of one dimension or none.
        options: learning rate and so on, for the optimizer.

    Returns:
        the optimizer, with two groups: what decays, and what does not.

    Raises:
        ValueError: a rule without weight decay.
    """
    if isinstance(rule, Rule):
        known = [n for n in rule.hyperparameters if n.endswith("weight_decay")]
    else:
        known = [n for n in inspect.signature(rule).parameters if n == "weight_decay"]
    # A flag such as decoupled_weight_decay only says which kind it is.
    flags = dict(rule.hyperparameters) if isinstance(rule, Rule) else {}
    known = [n for n in known if not isinstance(flags.get(n), bool)]
    if not known:
        raise ValueError(
            f"{getattr(rule, 'name', getattr(rule, '__name__', rule))} has no weight_decay. Put "
            "gradstep.decay_weights(…) behind it in a chain, or build the optimizer without "
            "for_model"
        )
    chosen = matches(no_decay) if isinstance(no_decay, str) else no_decay
    everything = members(model)
    kept = [m.entry() for m in everything if not chosen(m)]
    spared = [m.entry() for m in everything if chosen(m)]
    groups: list[dict[str, Any]] = [{"params": kept}] if kept else []
    if spared:
        groups.append({"params": spared, **dict.fromkeys(known, 0.0)})
    if isinstance(rule, Rule):
        return Optimizer(groups, rule, **options)
    return rule(groups, **options)
