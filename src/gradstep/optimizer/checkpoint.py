"""Check a checkpoint's states against an optimizer, before anything is replaced."""

from __future__ import annotations

import functools
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradstep.backends.owners import settle_holders
from gradstep.backends.update import is_matrix
from gradstep.optimizer.checkpoint_names import log_what_stays
from gradstep.optimizer.equal_options import equal_options
from gradstep.optimizer.plain_states import plain_states
from gradstep.optimizer.state_spec import OtherShapeError, StateSpec, coded_as
from gradstep.optimizer.states import common_number
from gradstep.optimizer.weight_spec import names_in_files, state_specs
from gradstep.program.formats import coded_formats
from gradstep.rule.definition import Rule

if TYPE_CHECKING:
    from gradstep.optimizer.parameter_groups import GroupReader


@dataclass(frozen=True)
class Holder:
    """What of an optimizer a checkpoint has to fit.

    Attributes:
        kind: its class.
        defaults: the options of groups that were given none.
        name_of: gives a parameter's name, for messages.
        reader: reads the options of groups.
        cycled: whether schedulers of torch's may leave a momentum in the groups.
        stored: puts a parameter's states where they are to lie; None: they stay in memory.
    """

    kind: str
    defaults: Mapping[str, Any]
    name_of: Callable[[Tensor], str]
    reader: GroupReader
    cycled: bool = False
    stored: Callable[[Tensor, dict[str, Any]], dict[str, Any]] | None = None

    @property
    def rule(self) -> Rule:
        """The rule, which names the states."""
        return self.reader.rule


_log = logging.getLogger("gradstep")

#: Keys of a group that belong to nobody's rule.
_BOOKKEEPING = {
    "params", "param_names", "initial_lr", "foreach", "fused", "capturable", "differentiable",
    "maximize", "lr", "part", "schedule_step", "rule", "train_mode",
}  # fmt: skip


#: What a wrapper with averages saves among the states while they stand in the weights' place.
TRAINING_WEIGHT = "training_weight"
#: The gradient of the batches so far, in the checkpoint of an optimizer that accumulates them.
ACCUMULATED_GRADIENT = "accumulated_gradient"
#: The same, where it is kept apart from the gradients, without a scale of GradScaler's.
ACCUMULATED_SUM = "accumulated_sum"
#: What a kin of SAM remembers of earlier gradients.
SHARPNESS_MEMORY = "sharpness_memory"
#: The weight from which a tuner of the learning rate counts the steps.
MECHANIC_START = "mechanic_start"
#: What wrappers save among the states, in the shape of the weight.
OF_WRAPPERS = (
    TRAINING_WEIGHT,
    ACCUMULATED_GRADIENT,
    ACCUMULATED_SUM,
    SHARPNESS_MEMORY,
    MECHANIC_START,
)

#: Options that classes of torch.optim have had only since some version, the newest first; and those
#: that only ours have.
_LATER = (
    "decoupled_weight_decay", "amsgrad",
    "coefficients", "sum_momentum", "flatten", "split", "precision",
)  # fmt: skip
#: What returns the classes whose checkpoints are told apart by the options in their groups.
_CLASSES: list[Callable[[], Iterable[Callable[[list[Tensor]], torch.optim.Optimizer]]]] = []


def tell_apart(
    classes: Callable[[], Iterable[Callable[[list[Tensor]], torch.optim.Optimizer]]],
) -> None:
    """Let messages about checkpoints name the classes that the function returns when asked."""
    _CLASSES.append(classes)
    _formats.cache_clear()
    _defaults.cache_clear()


@functools.cache
def _formats() -> dict[str, frozenset[str]]:
    """Class -> the options that only its rule has."""
    return {name: frozenset(d) - _BOOKKEEPING for name, d in _defaults().items()}


@functools.cache
def _defaults() -> dict[str, dict[str, Any]]:
    """Class -> the options of a group that was given none."""
    classes = [c for function in _CLASSES for c in function()]
    made = {c: c([torch.zeros(1, 1, device="cpu")]) for c in classes}
    return {c.__name__: o.defaults for c, o in made.items()}


def _likely(options: Collection[str]) -> tuple[list[str], int]:
    """The classes that have the most of these options, and how many those are."""
    sizes = {name: len(own) for name, own in _formats().items() if own <= set(options)}
    most = max(sizes.values(), default=-1)
    return [name for name, size in sizes.items() if size == most], most


def check_class(
    kind: str, defaults: Mapping[str, Any], group: Mapping[str, Any], number: int
) -> None:
    """Raise if a checkpoint's group fits another class better than the optimizer's own.

    Options that a user added, and those that an older version lacked, are no reason.

    Raises:
        ValueError: names both classes.
    """
    found, own = set(group) - _BOOKKEEPING, set(defaults) - _BOOKKEEPING
    wanted = ", ".join(k for k in defaults if k in own) or "no options"
    names = _named(group, defaults)
    if names:
        raise ValueError(
            f"the checkpoint is of another rule: its group {number} is of {' or '.join(names)}, "
            f"and {kind} expects its own, with {wanted}. Load it into the "
            "optimizer that it was saved from."
        )
    if found == own:
        return
    fit = -1
    for later in ("", *_LATER):
        own.discard(later)
        if own <= found:
            fit = max(fit, len(own))
    names, most = _likely(group)
    if fit < most:
        raise ValueError(
            f"the checkpoint is of another rule: its group {number} is of {' or '.join(names)}, "
            f"and {kind} expects {wanted}. Load it into the optimizer that it "
            "was saved from."
        )


def _named(group: Mapping[str, Any], own_defaults: Mapping[str, Any]) -> list[str]:
    """The classes that a group is of, by the rule that it names, if they are not the optimizer's.

    Many rules have the same options and states as Adam. So the classes that torch.optim has not put
    their rule's name into their groups; a group without one is of a class of torch.optim, or older.
    """
    rule, own = group.get("rule"), own_defaults.get("rule")
    if rule == own:
        return []
    named = {name: defaults.get("rule") for name, defaults in _defaults().items()}
    if rule is not None:
        return [name for name, other in named.items() if other == rule] or [str(rule)]
    found = set(group) - _BOOKKEEPING
    return [name for name, format in _formats().items() if named[name] is None and format == found]


def check_outline(state_dict: Any) -> None:
    """Raise unless this looks like an optimizer's state_dict(): before torch takes it apart.

    Raises:
        ValueError: says what is missing or of the wrong kind.
    """

    def wrong(what: str) -> ValueError:
        return ValueError(
            f"the checkpoint {what}: it is cut short, or not the state_dict() of an optimizer"
        )

    if not isinstance(state_dict, Mapping):
        raise wrong(f"is a {type(state_dict).__name__}")
    for key in ("state", "param_groups"):
        if key not in state_dict:
            raise wrong(f"has no {key!r}")
    state, groups = state_dict["state"], state_dict["param_groups"]
    if not isinstance(state, Mapping):
        raise wrong(f"has a {type(state).__name__} as its 'state'")
    if not isinstance(groups, list | tuple):
        raise wrong(f"has a {type(groups).__name__} as its 'param_groups'")
    for number, group in enumerate(groups):
        if not isinstance(group, Mapping):
            raise wrong(f"has a {type(group).__name__} as its group {number}")
        for key in ("params", "lr"):
            if key not in group:
                raise wrong(f"has no {key!r} in its group {number}")
        if not isinstance(group["params"], list | tuple):
            raise wrong(f"has a {type(group['params']).__name__} as 'params' of its group {number}")
        for key in group["params"] if state else ():  # one of nobody's may be anything
            entry = state.get(key, {})
            if not isinstance(entry, Mapping):
                raise wrong(f"has a {type(entry).__name__} as the state of parameter {key}")
    _refuse_codes_of_others(state, groups)


#: Under which bitsandbytes hides what has not a parameter's shape from FSDP.
QUANT_STATE = "__bnb_optimizer_quant_state__"


def _refuse_codes_of_others(state: Mapping[Any, Any], groups: Sequence[Any]) -> None:
    """Name the function that reads such a checkpoint."""
    entries = [entry for entry in state.values() if isinstance(entry, Mapping)]
    names = set().union(*entries)
    in_eight_bits = QUANT_STATE in names or {"state1", "qmap1"} <= names
    library = ""
    if in_eight_bits or ("state1" in names and any("t_alpha" in group for group in groups)):
        library = "bitsandbytes"
    kinds = {type(value) for entry in entries for value in entry.values()}
    if any(kind.__module__.startswith("torchao.") for kind in kinds):
        library = "torchao"
    if library:
        raise ValueError(
            f"the checkpoint is of {library}, which has other names or tensors for states. Load "
            f"gradstep.from_{library}(state_dict, optimizer) in its place"
        )


def checked_state(
    optimizer: Holder,
    loaded: Mapping[str, Any],
    given: Mapping[str, Any] | None = None,
    kept: Mapping[Any, Any] | None = None,
) -> dict[Any, Any]:
    """The loaded states, each complete, of its parameter's shape, and laid out like it.

    Args:
        optimizer: the optimizer that loads.
        loaded: ``"state"`` (parameter -> states) and ``"param_groups"``, as torch prepared them.
            Options that an older checkpoint lacks are added to its groups with this optimizer's
            defaults.
        given: the checkpoint itself. torch converts every state but the step count to its
            parameter's dtype, which rounds numbers, matrices for a weight of few bits, and states
            with a format of their own: those are taken from here. And what needs no change torch
            takes as it is; that is copied, or the optimizer that the checkpoint comes from would
            train these states as well.
        kept: what parameters have by now, which those keep whose states are of another shape;
            None if that is an error.

    Raises:
        TypeError, ValueError: a checkpoint of another model or rule, or an incomplete one.
    """
    rule = optimizer.rule
    if rule.keeps_own_shapes:
        settle_holders([p for group in loaded["param_groups"] for p in group["params"]])
    state: defaultdict[Any, Any] = defaultdict(dict, loaded["state"])
    specs, known = state_specs(rule), {*names_in_files(rule), "step"}
    rounded: dict[str, str] = {}
    misfits: list[str] = []
    begun = any(isinstance(e, Mapping) and known & set(e) for e in state.values())
    files: Mapping[Any, Any] = {} if given is None else given["state"]
    names, coded = _saved_otherwise(rule, specs, files)
    others: set[int] | None = None
    checked: dict[Any, tuple[set[str], dict[str, Any], dict[bool, list[str]]]] = {}
    for number, group in enumerate(loaded["param_groups"]):
        found = dict(group)
        for own in ("params", "param_names"):
            found.pop(own, None)
        key = equal_options((*found, *found.values()))
        if key is None or key not in checked:  # of thousands of groups most are alike
            of_group = _checked_group(optimizer, group, number)
        else:
            of_group = checked[key]
            if not optimizer.defaults.keys() <= group.keys():
                for name, default in optimizer.defaults.items():
                    group.setdefault(name, default)
        if key is not None:
            checked[key] = of_group
        options, values, wanted = of_group
        if not state:
            continue
        params = group["params"]
        as_given: dict[Any, dict[str, Any]] = {}
        if given is not None:
            saved = list(map(files.get, given["param_groups"][number]["params"]))
            ready = list(map(state.get, params))
            if optimizer.stored is None:
                plain = plain_states(rule, specs, wanted, params, saved, ready)
                if plain is not None:
                    state.update(zip(params, plain, strict=True))
                    continue
            as_given = {
                p: _as_given(p, entry or {}, made or {}, specs, names, coded)
                for p, entry, made in zip(params, saved, ready, strict=True)
            }
        if others is None:
            others = {id(v) for e in files.values() if isinstance(e, Mapping) for v in e.values()}
        for p in params:
            entry = {**state.get(p, {}), **as_given.get(p, {})}
            # Wrappers of other packages keep what is theirs here, as timm's Lookahead does.
            foreign_entry = {n: v for n, v in entry.items() if n not in known}
            entry = {n: v for n, v in entry.items() if n in known and v is not None}
            if not entry and not foreign_entry:
                state.pop(p, None)
                continue
            _check_foreign(optimizer, p, foreign_entry)
            if not entry and begun:  # a wrapper's alone: the parameter has made no step yet
                continue
            # What hangs on an option may be left over, or still to come, if the option changed.
            expected = wanted[is_matrix(p)]
            needed = {n for n in expected if rule.states[n].when is None}
            if not needed | ({"step"} & rule.inputs) <= set(entry):
                raise _misfit(optimizer, p, [*entry, *foreign_entry], expected, options)
            for name in expected:
                lost = specs[name].loses(entry, p) if name in specs else ""
                if lost:
                    rounded[name] = lost
            try:
                entry = _checked_entry(optimizer, p, entry, values, specs)
            except OtherShapeError:
                if kept is None:
                    raise
                misfits.append(optimizer.name_of(p))
                state.pop(p, None)
                if kept.get(p):
                    state[p] = dict(kept[p])
                continue
            entry.update(foreign_entry)
            if optimizer.stored is not None:  # one by one: not all of them are in memory at once
                entry = optimizer.stored(p, entry)
            state[p] = {
                n: v.clone() if id(v) in others and isinstance(v, Tensor) else v
                for n, v in entry.items()
            }
    log_what_stays(misfits, "which the checkpoint has in another shape")
    if rounded:
        _log.warning(
            "the checkpoint's states are rounded as they are loaded, since the optimizer was made "
            "so: %s",
            ", ".join(rounded.values()),
        )
    for name in (n for n, s in rule.states.items() if s.shared):
        held = common_number(name, state.values())
        if held is not None:
            held = held.detach().to("cpu", torch.float64)
            for entry in state.values():
                if isinstance(entry, dict) and name in entry:
                    entry[name] = held
    return state


def _checked_group(
    optimizer: Holder, group: dict[str, Any], number: int
) -> tuple[set[str], dict[str, Any], dict[bool, list[str]]]:
    """Check a group's options, and add those that it lacks.

    Returns:
        the options that it had; the values of the hyperparameters; the states of a parameter with
        rows and columns, and of one without.
    """
    kind, rule = optimizer.kind, optimizer.rule
    check_class(kind, optimizer.defaults, group, number)
    foreign = [k for k in group if k not in optimizer.defaults and k not in _BOOKKEEPING]
    missing = [k for k in optimizer.reader.group_keys if k not in group and k not in _BOOKKEEPING]
    if missing and foreign:
        raise ValueError(
            f"the checkpoint is of another rule: its group {number} has {', '.join(foreign)}, "
            f"and {kind} expects {', '.join(missing)}. Load it into the optimizer that it was "
            "saved from."
        )
    options = set(group)
    for key, default in optimizer.defaults.items():
        group.setdefault(key, default)
    optimizer.reader.check_changed(group, loaded=True)
    values = optimizer.reader.hyperparameters(group)
    wanted = {
        matrix: [n for n, s in rule.states.items() if s.exists(values, matrix)]
        for matrix in (True, False)
    }
    return options, values, wanted


def _saved_otherwise(
    rule: Rule, specs: Mapping[str, StateSpec], saved: Mapping[Any, Any]
) -> tuple[set[str], bool]:
    """The states that have a dtype of their own, and whether some may be saved in codes."""
    names = {n for n, s in rule.states.items() if s.start == "number" or s.shape == "own"}
    names |= {n for each in specs.values() if not each.is_like_weight for n in each.names}
    held = set().union(*[entry for entry in saved.values() if isinstance(entry, Mapping)])
    coded = any(held.issuperset(kind.names(n)) for kind in coded_formats() for n in specs)
    return names, coded


def _as_given(
    p: Tensor,
    entry: Mapping[str, Any],
    ready: Mapping[str, Any],
    specs: Mapping[str, StateSpec],
    names: set[str],
    coded: bool,
) -> dict[str, Any]:
    """A parameter's states that have a dtype of their own, as the checkpoint has them; copies.

    Args:
        p: the parameter.
        entry: what the checkpoint has for it.
        ready: what torch has made of that.
        specs: the rule's states.
        names: of those that have a dtype of their own, whatever the checkpoint has.
        coded: whether states of the checkpoint may be in codes, which are no numbers to convert.
    """
    own = names | {n for n in specs if _is_integer(entry.get(n))}
    if coded:
        kinds = ((n, coded_as(n, tuple(p.shape), entry)) for n in specs)
        own = own.union(*(kind.names(n) for n, kind in kinds if kind is not None))
    found: dict[str, Any] = {}
    for name in own:
        value = entry.get(name)
        if isinstance(value, Tensor):
            place = ready[name].device if isinstance(ready.get(name), Tensor) else None
            value = value.detach().to(place, copy=True)
        if value is not None:
            found[name] = value
    return found


def _is_integer(value: Any) -> bool:
    return isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex())


def _check_foreign(optimizer: Holder, p: Tensor, foreign: Mapping[str, Any]) -> None:
    """Raise for what a wrapper of this package would have taken out before."""
    if TRAINING_WEIGHT in foreign:
        raise ValueError(
            f"the checkpoint was saved while averages stood in the place of the weights, and holds "
            f"the training weight of {optimizer.name_of(p)}. Load it into gradstep.EMA or "
            "gradstep.AveragedWeights as it was saved, and call train()"
        )
    if ACCUMULATED_GRADIENT in foreign or ACCUMULATED_SUM in foreign:
        raise ValueError(
            f"the checkpoint was saved between the batches of one step, and holds the gradient of "
            f"{optimizer.name_of(p)} so far. Load it into gradstep.Accumulate as it was saved"
        )


def _misfit(
    optimizer: Holder, p: Tensor, found: list[str], wanted: list[str], options: set[str]
) -> ValueError:
    kind, likely = optimizer.kind, _likely(options)[0]
    of = "another rule" if kind in likely or not likely else " or ".join(likely)
    counts = "step" in optimizer.rule.inputs
    expected = ", ".join(["step"] * counts + wanted) or "no states"
    return ValueError(
        f"the checkpoint does not fit {kind}: for {optimizer.name_of(p)} it holds "
        f"{', '.join(found)}; expected {expected}. Is it of {of}, or cut short?"
    )


def _checked_entry(
    optimizer: Holder,
    p: Tensor,
    entry: dict[str, Any],
    values: Mapping[str, Any],
    specs: Mapping[str, StateSpec],
) -> dict[str, Any]:
    checked: dict[str, Any] = {}

    def name_of() -> str:
        return optimizer.name_of(p)

    for key, value in entry.items():
        if key == "step" or (key in optimizer.rule.states and key not in specs):
            checked[key] = _number(value, key, optimizer, p)
        elif key in specs:
            checked.update(specs[key].loaded(p, values, entry, name_of))
    return checked


def _number(value: Any, key: str, optimizer: Holder, p: Tensor) -> Tensor:
    """A number as a tensor: older checkpoints hold step counts as int or float."""
    if isinstance(value, Tensor) and value.numel() == 1:
        known = value.dtype in (torch.float32, torch.float64)
        return value if known else value.to(torch.float32)
    if isinstance(value, int | float):
        dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
        return torch.tensor(float(value), dtype=dtype, device="cpu")
    raise ValueError(f"the checkpoint's {key} of {optimizer.name_of(p)} is {value!r}, not a number")
