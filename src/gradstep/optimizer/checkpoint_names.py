"""The names in a checkpoint, whose states go by place: names tell whether that is right."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

#: What wrappers of a model put into the names of its parameters.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def keep_names(
    own: Sequence[Mapping[str, Any]], loaded: Sequence[MutableMapping[str, Any]], begun: bool
) -> None:
    """Put the optimizer's own names into the groups of a checkpoint, if it has any.

    Warns where a parameter gets the states of one of another name, which is at another place here.
    Other names alone are no reason: a model may have been renamed or wrapped since.

    Args:
        own: the optimizer's groups.
        loaded: those of the checkpoint, as many; changed.
        begun: whether the checkpoint holds states.
    """
    here = {_plain(n) for group in own for n in group.get("param_names") or ()}
    crossed: list[str] = []
    for mine, group in zip(own, loaded, strict=True):
        names, given = mine.get("param_names"), group.get("param_names")
        if not names:
            continue
        if given and len(given) == len(names):
            pairs = [(n, g) for n, g in zip(names, given, strict=True) if _plain(n) != _plain(g)]
            crossed += [f"{n} gets those of {g}" for n, g in pairs if _plain(g) in here]
        group["param_names"] = names
    if crossed and begun:
        more = f" and {len(crossed) - 5} more" if len(crossed) > 5 else ""
        warnings.warn(
            "the checkpoint has its parameters in another order, and states are loaded by their "
            f"place: {', '.join(crossed[:5])}{more}. Give the optimizer its parameters in the "
            "checkpoint's order, or reorder the states in a hook "
            "(register_load_state_dict_pre_hook)",
            stacklevel=2,
        )


def _plain(name: Any) -> str:
    return ".".join(part for part in str(name).split(".") if part not in _WRAPPERS)
