"""Loading a checkpoint: one function, for optimizers, partitions and LBFGS, from top to bottom."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from typing import Any

import torch

from gradstep.optimizer.checkpoint import Holder, check_class, check_outline, checked_state
from gradstep.optimizer.checkpoint_names import in_own_order
from gradstep.optimizer.cycled_momentum import put_momentum


def load(
    optimizer: Any,
    state_dict: Any,
    parts: Mapping[str | None, Holder] | None,
    strict: bool = True,
) -> None:
    """Load a checkpoint. Nothing is changed before all of it was checked.

    Args:
        optimizer: the one with the groups, and with the hooks.
        state_dict: the checkpoint.
        parts: by the name that groups have under ``"part"``, or one under None for all groups. None
            for an optimizer without a rule, whose states are taken as torch takes them.
        strict: whether each parameter has to be on both sides, and of one shape. Else what is not
            stays as it is, and is named in the log.

    Raises:
        TypeError, ValueError: a checkpoint of another class, model or rule, or an incomplete one;
            says what was found and expected.
    """
    given = changed_by_hooks(optimizer, state_dict)
    check_outline(given)
    arranged = in_own_order(optimizer, given, strict)
    if parts is None:
        _check_order(optimizer, given, arranged, strict)
    given = arranged
    prepared = _as_torch_prepares(optimizer, given)
    # Parts replace what they check. What hooks and wrappers keep beside is kept.
    state: defaultdict[Any, Any] = prepared["state"]
    groups = prepared["param_groups"]
    for number, (group, own) in enumerate(zip(groups, optimizer.param_groups, strict=True)):
        if parts is None:
            _check_without_rule(optimizer, group, number)
        elif None not in parts and group.get("part") != own["part"]:
            raise ValueError(
                f"the checkpoint is of another partition: its group {number} is of the part "
                f"{group.get('part')!r}, and here of {own['part']!r}"
            )
    for name, part in (parts or {}).items():
        places = [i for i, group in enumerate(groups) if name in (None, group.get("part"))]
        of_part = [groups[i] for i in places]
        for group in of_part if part.cycled else ():
            put_momentum(group, part.reader.momenta)
        held = {p for group in of_part for p in group["params"]} if state else set()
        entries = {p: entry for p, entry in state.items() if p in held}
        as_given = {**given, "param_groups": [given["param_groups"][i] for i in places]}
        loaded = {"state": entries, "param_groups": of_part}
        checked = checked_state(part, loaded, as_given, None if strict else optimizer.state)
        for p in entries.keys() - checked.keys():
            del state[p]
        state.update(checked)  # in the order of the file, as torch has it
    optimizer.__setstate__({"state": state, "param_groups": groups})
    tell_loaded(optimizer)


def changed_by_hooks(optimizer: Any, state_dict: Any) -> dict[str, Any]:
    """A checkpoint as the user's hooks leave it, which may change it.

    Raises:
        ValueError: no mapping.
    """
    if not isinstance(state_dict, Mapping):
        check_outline(state_dict)
    given = dict(state_dict)
    for before in optimizer._optimizer_load_state_dict_pre_hooks.values():
        changed = before(optimizer, given)
        given = given if changed is None else changed
    return given


def tell_loaded(optimizer: Any) -> None:
    """Call the user's hooks behind the loading."""
    for after in optimizer._optimizer_load_state_dict_post_hooks.values():
        after(optimizer)


def _check_order(
    optimizer: Any, given: Mapping[str, Any], arranged: Mapping[str, Any], strict: bool
) -> None:
    kind = type(optimizer).__name__
    orders = [
        [key for group in each["param_groups"] for key in group["params"]]
        for each in (given, arranged)
    ]
    if not strict or orders[0] != orders[1]:
        raise ValueError(
            f"{kind} keeps one state for all of its parameters together, in their order: give it "
            "the parameters of the checkpoint, and in that order"
        )


def _check_without_rule(optimizer: Any, group: Mapping[str, Any], number: int) -> None:
    kind = type(optimizer).__name__
    check_class(kind, optimizer.defaults, group, number)
    if group.get("maximize") and "maximize" not in optimizer.defaults:
        raise ValueError(
            f"group {number} of the checkpoint maximizes, and {kind} of torch "
            f"{torch.__version__} only minimizes; install torch 2.14 or later"
        )


class _Prepared(torch.optim.Optimizer):
    """Stands in for an optimizer, and takes what torch's own loading would give to that.

    So torch compares the groups, and brings states to their parameters' devices and dtypes.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        self.param_groups = groups
        self._optimizer_load_state_dict_pre_hooks = OrderedDict()
        self._optimizer_load_state_dict_post_hooks = OrderedDict()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.prepared = state


def _as_torch_prepares(optimizer: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The states by parameter, and the groups, with the optimizer's parameters."""
    taken = _Prepared(optimizer.param_groups)
    groups = [{**group, "params": _keys(group["params"])} for group in given["param_groups"]]
    taken.load_state_dict({**given, "param_groups": groups})
    return taken.prepared


#: Of which a copy is the key itself.
_PLAIN_KEYS = {int, str}


class _Keys(list[Any]):
    """A group's parameters in a checkpoint: torch looks each up, once for each of its states."""

    def __init__(self, keys: list[Any]) -> None:
        super().__init__(keys)
        self._known = frozenset(keys)

    def __contains__(self, key: Any) -> bool:
        return key in self._known

    def __deepcopy__(self, memo: Any) -> list[Any]:
        own = list(self)
        return own if _PLAIN_KEYS.issuperset(map(type, own)) else copy.deepcopy(own, memo)


def _keys(keys: Any) -> Any:
    # A list's own search is quicker in a short one.
    return _Keys(keys) if type(keys) is list and len(keys) > 64 else keys
