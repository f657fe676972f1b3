"""A checkpoint's parameters and those of an optimizer, matched by their names."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradstep.backends.update import has_shape
from gradstep.optimizer.equal_options import equal_options
from gradstep.optimizer.parameter_names import first_names, names_of

_log = logging.getLogger("gradstep")

#: What wrappers of a model put into the names of its parameters.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
#: What of a group is no option of its.
_NO_OPTIONS = ("params", "param_names")

Groups = Sequence[Mapping[str, Any]]


def in_own_order(
    optimizer: Any,
    given: Mapping[str, Any],
    strict: bool = True,
    *,
    of_weight: Collection[str] = (),
    of_first_group: Collection[str] = (),
) -> dict[str, Any]:
    """A checkpoint whose groups and parameters stand as the optimizer's do, matched by name.

    Where either side has no names, or names that are not its parameters' own, it is as given: then
    the place of a parameter tells which it is, as in torch.

    Args:
        optimizer: the one that loads.
        given: the checkpoint, whose outline has been checked; it is left as it is.
        strict: whether every parameter has to be on both sides. Else what only the optimizer has
            stays as it is, and what only the checkpoint has is left out; a log line names both.
        of_weight: the names of what wrappers save among the states, in the shape of the weight.
        of_first_group: the options that wrappers keep in the first group, whichever that is.

    Raises:
        ValueError: parameters that only one side has, or that are in other groups with other
            options; names them. Without ``strict``, a side without names.
    """
    own = _own_names(optimizer)
    saved, keys_are_names = _saved_names(given["param_groups"])
    if own is None or saved is None:
        if not strict:
            side = "the optimizer" if own is None else "the checkpoint"
            raise ValueError(
                f"strict=False matches parameters by name, and {side} has no names. Give "
                "model.named_parameters() to the optimizer before it is saved and loaded"
            )
        return _with_names(optimizer, given, own)
    matched = _Matched.of(own, saved)
    if matched is None:
        if not strict:
            raise ValueError(
                "strict=False matches parameters by name, and none of the checkpoint's is here: "
                f"it has {first_names(_flat(saved))}; the optimizer has {first_names(_flat(own))}"
            )
        if given["state"] and not keys_are_names:  # torch has matched such keys already
            warnings.warn(
                "the checkpoint has none of the optimizer's names, so states are loaded by their "
                f"place: it has {first_names(_flat(saved))}; the optimizer has "
                f"{first_names(_flat(own))}",
                stacklevel=2,
            )
        return _with_names(optimizer, given, own)
    return _arranged(optimizer, given, matched, strict, of_weight, of_first_group)


def log_what_stays(names: Sequence[str], why: str) -> None:
    """Name the parameters whose states a partial loading leaves as they are."""
    if names:
        _log.warning("not loaded, and as before: %s, %s", first_names(names, 20), why)


@dataclass(frozen=True)
class _Matched:
    """The names of both sides, so far plain that equal ones are of the same parameter."""

    own: list[list[str]]
    saved: list[list[str]]

    @staticmethod
    def of(own: list[list[str]], saved: list[list[str]]) -> _Matched | None:
        """None if no name is on both sides."""
        for plain in (_as_they_are, _without_wrappers, _without_prefix):
            a, b = plain(own), plain(saved)
            if _is_unique(a) and _is_unique(b) and {*_flat(a)} & {*_flat(b)}:
                return _Matched(a, b)
        return None


def _arranged(
    optimizer: Any,
    given: Mapping[str, Any],
    names: _Matched,
    strict: bool,
    of_weight: Collection[str],
    of_first_group: Collection[str],
) -> dict[str, Any]:
    groups = given["param_groups"]
    places = {
        name: (number, key)
        for number, (group, of_group) in enumerate(zip(groups, names.saved, strict=True))
        for name, key in zip(of_group, group["params"], strict=True)
    }
    missing = [name for name in _flat(names.own) if name not in places]
    surplus = sorted({*places} - {*_flat(names.own)}, key=list(places).index)
    if strict:
        _check_complete(missing, surplus)
        _check_count(len(groups), len(names.own))
    else:
        log_what_stays(missing, "which the checkpoint does not have")
        if surplus:
            _log.warning("left out, as the optimizer has them not: %s", first_names(surplus, 20))
    options = _options(optimizer, groups, names, places, strict)
    if options and groups:
        first = {
            n: v
            for n, v in groups[0].items()
            if n in of_first_group and not any(n in group for group in groups[1:])
        }
        options = [{n: v for n, v in o.items() if n not in first} for o in options]
        options[0].update(first)

    state = dict(given["state"])
    for name in surplus:
        state.pop(places[name][1], None)
    arranged, misfits = [], []
    for own, option, of_group in zip(optimizer.param_groups, options, names.own, strict=True):
        keys = []
        for name, p in zip(of_group, own["params"], strict=True):
            key = places[name][1] if name in places else ("missing", name)
            if name in places and not strict and _misfits(state.get(key), p, of_weight):
                misfits.append(name)
            if name not in places or name in misfits[-1:]:
                state.pop(key, None)
                if optimizer.state.get(p):
                    state[key] = optimizer.state[p]
            keys.append(key)
        arranged.append({**option, "params": keys})
    log_what_stays(misfits, "which the checkpoint has in another shape")
    return _with_names(
        optimizer, {**given, "state": state, "param_groups": arranged}, _own_names(optimizer)
    )


def _check_complete(missing: Sequence[str], surplus: Sequence[str]) -> None:
    if not (missing or surplus):
        return
    found = []
    if missing:
        found.append(f"it has no {first_names(missing, 20)}")
    if surplus:
        found.append(f"the optimizer has no {first_names(surplus, 20)}")
    raise ValueError(
        f"the checkpoint is of other parameters: {', and '.join(found)}. Load what both have with "
        "load_state_dict(…, strict=False), or change the names in the checkpoint's 'param_names'"
    )


def _check_count(saved: int, own: int) -> None:
    if saved != own:
        raise ValueError(
            "loaded state dict has a different number of parameter groups: the checkpoint has "
            f"{saved}, and the optimizer {own}, of the same parameters. load_state_dict(…, "
            "strict=False) loads the states and leaves the groups' options as they are here"
        )


def _options(
    optimizer: Any,
    groups: Groups,
    names: _Matched,
    places: Mapping[str, tuple[int, Any]],
    strict: bool,
) -> list[dict[str, Any]]:
    """The options of each of the optimizer's groups, from the checkpoint where that can be told.

    Raises:
        ValueError: parameters of one group come of several with other options, and ``strict``.
    """
    sources = [
        list(dict.fromkeys(places[n][0] for n in of_group if n in places)) for of_group in names.own
    ]
    if strict:
        for number, (found, of_group) in enumerate(zip(sources, names.own, strict=True)):
            for other in found[1:]:
                _check_alike(groups, found[0], other, number, of_group, places)
    times = Counter(number for found in sources for number in found)
    unused = [i for i, group in enumerate(groups) if not group["params"]]
    made = []
    for number, (own, found) in enumerate(zip(optimizer.param_groups, sources, strict=True)):
        if not found and not own["params"] and number in unused:
            found = [number]
        told = bool(found) and (strict or (len(found) == 1 and times[found[0]] <= 1))
        source = groups[found[0]] if told else own
        made.append({n: v for n, v in source.items() if n not in _NO_OPTIONS})
    return made


def _check_alike(
    groups: Groups,
    first: int,
    other: int,
    number: int,
    of_group: Sequence[str],
    places: Mapping[str, tuple[int, Any]],
) -> None:
    a, b = groups[first], groups[other]
    differing = [
        n
        for n in dict.fromkeys((*a, *b))
        if n not in _NO_OPTIONS and (n not in a or n not in b or not _equal(a[n], b[n]))
    ]
    if differing:
        one, two = (next(n for n in of_group if places[n][0] == i) for i in (first, other))
        raise ValueError(
            f"the checkpoint has its parameters in other groups: {one} is in its group {first} and "
            f"{two} in its group {other}, which differ in {', '.join(differing)}; here both are in "
            f"group {number}. Make the groups as they were, or load the states alone with "
            "load_state_dict(…, strict=False)"
        )


def _equal(a: Any, b: Any) -> bool:
    return equal_options((a,)) == equal_options((b,)) is not None or a is b


def _misfits(entry: Any, p: Any, of_weight: Collection[str]) -> bool:
    """Whether a wrapper's own tensors are of another shape than their parameter."""
    kept = entry if isinstance(entry, Mapping) else {}
    found = [kept[name] for name in of_weight if isinstance(kept.get(name), Tensor)]
    return bool(found) and has_shape(p) and any(t.shape != p.shape for t in found)


# Names.


def _own_names(optimizer: Any) -> list[list[str]] | None:
    """The names of the optimizer's parameters by group; None if any has none."""
    known = names_of(optimizer)
    found: list[list[str]] = []
    for group in optimizer.param_groups:
        names = known.in_group(group) if group["params"] else []
        if names is None or any(n is None for n in names):
            return None
        found.append([str(n) for n in names])
    return found if _flat(found) else None


def _saved_names(groups: Groups) -> tuple[list[list[str]] | None, bool]:
    """The names in a checkpoint by group, None if any has none; and whether keys are names.

    torch.distributed.checkpoint has states by name, and has matched them already; it leaves the
    ``param_names`` of the run that was saved beside them.
    """
    keys = [list(group["params"]) for group in groups]
    if _flat(keys) and all(isinstance(key, str) for key in _flat(keys)):
        return keys, True
    found = []
    for group in groups:
        names = group.get("param_names") if group["params"] else []
        if not isinstance(names, list | tuple) or len(names) != len(group["params"]):
            return None, False
        found.append([str(name) for name in names])
    return (found if _flat(found) else None), False


def _with_names(
    optimizer: Any, given: Mapping[str, Any], own: list[list[str]] | None
) -> dict[str, Any]:
    """The checkpoint with the optimizer's own names in its groups, if it has any."""
    groups = list(given["param_groups"])
    if own is not None and len(own) == len(groups):
        groups = [
            {**group, "param_names": names} if names else group
            for group, names in zip(groups, own, strict=True)
        ]
    return {**given, "param_groups": groups}


def _as_they_are(names: list[list[str]]) -> list[list[str]]:
    return names


def _without_wrappers(names: list[list[str]]) -> list[list[str]]:
    return [[_plain(name) for name in of_group] for of_group in names]


def _without_prefix(names: list[list[str]]) -> list[list[str]]:
    """Without what all names begin with: a model may be part of a larger one on one side."""
    parts = [[name.split(".") for name in of_group] for of_group in _without_wrappers(names)]
    shared = 0
    for column in zip(*(name[:-1] for name in _flat(parts)), strict=False):
        if len({*column}) > 1:
            break
        shared += 1
    return [[".".join(name[shared:]) for name in of_group] for of_group in parts]


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS) or name


def _flat(groups: Iterable[Iterable[Any]]) -> list[Any]:
    return [each for group in groups for each in group]


def _is_unique(names: list[list[str]]) -> bool:
    return len({*_flat(names)}) == len(_flat(names))
