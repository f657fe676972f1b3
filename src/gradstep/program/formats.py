"""Formats: how a column of a kernel lies in memory, and how states are stored in one.

Here they have their names. Whoever begins, checks, loads or explains states asks the format.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch

from gradstep.program.block_formats import BLOCK_FORMATS
from gradstep.program.format import DType, Format, Part
from gradstep.program.registration import checked_name
from gradstep.program.weight_formats import NARROW, WEIGHT_FORMATS, WeightFormat
from gradstep.rule.definition import Rule
from gradstep.rule.signs import never_negative
from gradstep.rule.state import State

__all__ = ["DType", "Format", "Part", "low_precision", "register", "stored_as"]


#: Formats of columns: weights and gradients have those of their dtype.
_COLUMNS: dict[str, Format] = {
    name: DType(name) for name in ("float32", "float64", "bfloat16", "float16")
}
#: Those that a state may have. In float64 it would hold no more than what the step works in.
_STATES: dict[str, Format] = {name: _COLUMNS[name] for name in ("float32", "bfloat16", "float16")}
for _blocks in BLOCK_FORMATS:
    _STATES[_blocks.name] = _COLUMNS[_blocks.name] = _blocks
    _COLUMNS[_blocks.unsigned.name] = _blocks.unsigned
for _of_weights in WEIGHT_FORMATS.values():
    _COLUMNS.update({format.name: format for format in _of_weights})
_OURS = tuple(_COLUMNS)


def format_of(name: str) -> Format:
    """The format of a column, by its name."""
    return _COLUMNS[name]


def is_ours(name: str) -> bool:
    """Whether a format is one of the package, whose kernels are known by its name."""
    return name in _OURS


def formats() -> tuple[str, ...]:
    """The names that :func:`stored_as` takes."""
    return tuple(_STATES)


def coded_formats() -> list[Format]:
    """The formats of states whose tensors hold codes, not numbers of another dtype."""
    return [format for format in _STATES.values() if not isinstance(format, DType)]


def register(format: Format) -> None:
    """Let :func:`stored_as` take a format from outside the package.

    Registered again, the new one takes the place of the one of that name.

    Raises:
        TypeError: no :class:`Format`.
        ValueError: a name that is taken, or none.
    """
    public = "gradstep.program.formats.Format"
    name = checked_name(format, Format, public, "stored_as()", _OURS, "is a format")
    _COLUMNS[name] = _STATES[name] = format


def format_of_state(rule: Rule, state: str) -> Format | None:
    """What a state of a rule is stored as, small tensors aside; None for what its weight is."""
    name = rule.states[state].format
    if name is None:
        return None
    format = _COLUMNS[name]
    if format.unsigned is not format and state in never_negative(rule):
        return format.unsigned
    return format


#: What names a format: its name, or the dtype of torch's; None for what the weight is stored as.
Named = str | torch.dtype | None
#: What ``state_dtype=`` takes: one for all states of the weight's shape, or state -> one.
StateDType = Named | Mapping[str, Named]


def stored_as(rule: Rule, **formats: Named) -> Rule:
    """The same rule, with states that are stored otherwise than the weight.

    ::

        rule = gradstep.stored_as(gradstep.adam(), exp_avg="bfloat16", exp_avg_sq="bfloat16")

    A step reads a state, works in float32 (in float64 for weights of float64), and rounds the new
    state to the nearest when it writes it; the direction is made with the state before that
    rounding. ``"bfloat16"`` and ``"float16"`` halve the states of float32 weights; ``"float32"``
    keeps the states of weights in 16 bits exact. The largest float16 is 65,504, and the smallest
    6e-8: squares of gradients leave that range, those of bfloat16 do not.

    Only states of the weight's shape have a format. Those with one number a row or column, and
    those of a shape of their own, stay as they are, and so does what is one number a parameter.

    Args:
        rule: a rule or chain.
        formats: state -> format: ``"float32"``, ``"bfloat16"``, ``"float16"``, the dtype of torch
            of that name, or None for what the weight is stored as. Of a chain, the states have the
            names that they have in it.

    Returns:
        a rule, to be given to an optimizer or a chain.

    Raises:
        TypeError: no rule, or a state that the rule has not.
        ValueError: a format that is not there, or a state that can have none.
    """
    if not isinstance(rule, Rule):
        raise TypeError(
            f"stored_as() takes a rule; got {rule!r}. Call it as stored_as(gradstep.adam(), "
            'exp_avg="bfloat16"); a class takes state_dtype="bfloat16"'
        )
    found: dict[str, str | None] = {}
    for name, given in formats.items():
        if name not in rule.states:
            raise TypeError(
                f"{rule.name} has no state {name!r} to be stored as {_spoken(given)}; it has: "
                + (", ".join(rule.states) or "none")
            )
        if given is not None and not _can_have_format(rule.states[name]):
            able = ", ".join(n for n, s in rule.states.items() if _can_have_format(s)) or "none"
            raise ValueError(
                f"state {name!r} of {rule.name} cannot be stored as {_spoken(given)}: it has not "
                f"the weight's shape. Leave it out; those that can: {able}"
            )
        found[name] = _name_of(given, f"state {name!r} of {rule.name}")
    return rule.with_formats(found)


def with_state_dtype(rule: Rule, state_dtype: StateDType) -> Rule:
    """The rule with the formats that the ``state_dtype=`` of a class says.

    Args:
        rule: the class's rule.
        state_dtype: one format for all states of the weight's shape; or state -> format; or None
            for what the weight is stored as.

    Raises:
        TypeError: what is none of these, or a state that the rule has not.
        ValueError: a format that is not there, or a state that can have none.
    """
    if state_dtype is None:
        return rule
    if isinstance(state_dtype, Mapping):
        odd = [name for name in state_dtype if not isinstance(name, str)]
        if odd:
            raise TypeError(f"state_dtype names the state {odd[0]!r}. Expected its name, a text")
        return stored_as(rule, **state_dtype)
    name = _name_of(state_dtype, "state_dtype")
    return rule.with_formats({n: name for n, s in rule.states.items() if _can_have_format(s)})


def with_storage(rule: Rule, state_dtype: StateDType, way: str) -> Rule:
    """The rule with what the ``state_dtype=`` and ``low_precision=`` of a class say.

    Raises:
        TypeError, ValueError: as :func:`with_state_dtype` and :func:`low_precision`.
    """
    rule = with_state_dtype(rule, state_dtype)
    # A rule that says so itself keeps its way.
    return rule if way == "nearest" else low_precision(rule, way)


def low_precision(rule: Rule, way: str) -> Rule:
    """The same rule, with another way of keeping weights of 16 bits.

    ::

        rule = gradstep.low_precision(gradstep.adam(), "remainder")

    A step works in float32; a weight of bfloat16 has two to three digits, and what is less than
    half of the last is lost when the weight is rounded to the nearest.

    Args:
        rule: a rule or chain.
        way: ``"nearest"``: nothing is kept. ``"stochastic"``: rounded up or down by chance, so that
            nothing is lost on average; ``"stochastic 7"`` has other chances. ``"kahan"``: what was
            rounded away is kept in 16 bits. ``"remainder"``, for bfloat16: the lower half of a
            float32 weight is kept, and the two halves are that weight, to the bit. ``"master"``: a
            float32 weight is kept, of which the model's is the rounding. With these two the states
            that have no format of their own are float32 as well.

    Returns:
        a rule, to be given to an optimizer. Weights of other dtypes are kept as ever.

    Raises:
        TypeError: no rule.
        ValueError: a way that is not there.
    """
    if not isinstance(rule, Rule):
        raise TypeError(
            f"low_precision() takes a rule; got {rule!r}. Call it as "
            'low_precision(gradstep.adam(), "remainder"); a class takes low_precision="remainder"'
        )
    known = ("nearest", *WEIGHT_FORMATS)
    mode, _, seed = str(way).partition(" ")
    if not isinstance(way, str) or mode not in known or not _is_seed(mode, seed):
        near = difflib.get_close_matches(str(way), known, n=1, cutoff=0.5)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"low_precision got {way!r}. Choose one of {', '.join(known)}; behind stochastic may "
            f"stand a number below {SEEDS}, as in 'stochastic 7'.{meant}"
        )
    return rule.with_low_precision(way)


#: How many seeds of chances there are: with the count of steps they are the digits of a float64.
SEEDS = 1 << 20


def _is_seed(mode: str, seed: str) -> bool:
    return not seed or (mode == "stochastic" and seed.isdecimal() and int(seed) < SEEDS)


def seed_of(rule: Rule) -> int:
    """Of a rule whose weights are rounded by chance: which chances."""
    return int(rule.low_precision.partition(" ")[2] or 0)


def weight_format(rule: Rule, dtype: torch.dtype) -> WeightFormat | None:
    """How weights of a dtype are kept; None for as they are."""
    for format in WEIGHT_FORMATS.get(rule.low_precision.partition(" ")[0], ()):
        if format.dtype == dtype:
            return format
    return None


def check_low_precision(rule: Rule, dtype: torch.dtype) -> str | None:
    """Why weights of a dtype cannot be kept so, to be said behind the way; None if they can."""
    if rule.low_precision == "nearest" or dtype not in NARROW or weight_format(rule, dtype):
        return None
    return "is for bfloat16. Choose kahan or master"


def _can_have_format(state: State) -> bool:
    return state.start != "number" and state.shape == "weight"


def _name_of(given: Any, what: str) -> str | None:
    """The name of a format that a user named.

    Raises:
        TypeError: what is neither a name nor a dtype.
        ValueError: there is no such format.
    """
    if given is None:
        return None
    if not isinstance(given, str | torch.dtype):
        raise TypeError(
            f"{what} got {given!r} as its format. Expected one of {_known()}, or a dtype of torch"
        )
    name = _spoken(given)
    if name not in _STATES:
        near = difflib.get_close_matches(name, _STATES, n=1, cutoff=0.4)
        meant = f". Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{what} cannot be stored as {name}. Choose one of {_known()}{meant}")
    return name


def _known() -> str:
    return ", ".join(_STATES)


def _spoken(given: Any) -> str:
    return str(given).removeprefix("torch.")
