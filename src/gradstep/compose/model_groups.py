"""Parameter groups as trainers make them: no decay, a rate for each layer, for heads, for LoRA."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gradstep.compose.members import (
    Member,
    Predicate,
    embeddings,
    heads,
    matches,
    members,
)
from gradstep.compose.schedule import scaled
from gradstep.optimizer.parameter_names import first_names
from gradstep.rule.schedule import is_schedule

#: Patterns of the layers' names from the first to the last, or a function: name -> depth.
Layers = Sequence[str] | Callable[[str], int] | None

_NUMBERED = re.compile(r"(?:^|\.)\d+(?=\.|$)")
_LORA_B = re.compile(r"(^|\.)lora_(embedding_)?B(\.|$)")


@dataclass(frozen=True)
class Rates:
    """The learning rate of each parameter.

    Attributes:
        lr: the rate that the others go by: a number, a tensor or a schedule.
        layer_decay: each layer's rate is that of the one above it times this; None for one rate.
        layers: where the layers are; None: the longest list of blocks in the model.
        embedding_lr: of embeddings, in place of all else; None for no own.
        head_lr: of output layers, in place of all else; None for no own.
        lora_plus: how many times the rate matrices B of LoRA have; None for the same.
    """

    lr: Any
    layer_decay: float | None = None
    layers: Layers = None
    embedding_lr: Any = None
    head_lr: Any = None
    lora_plus: float | None = None

    def of(self, everything: Sequence[Member], model: str) -> list[Any]:
        """The rates of the parameters, in their order.

        Args:
            everything: the parameters.
            model: what to call the model in messages.

        Raises:
            ValueError: a depth that cannot be told, or no parameters of the kind that was named.
        """
        scales = self._scales(everything, model)
        found = [scaled(self.lr, scale) for scale in scales]
        for name, own, is_it in (
            ("embedding_lr", self.embedding_lr, embeddings),
            ("head_lr", self.head_lr, heads),
        ):
            if own is None:
                continue
            places = [i for i, m in enumerate(everything) if is_it(m)]
            _check_any(name, places, everything, model)
            for place in places:
                found[place] = own
        return found

    def _scales(self, everything: Sequence[Member], model: str) -> list[float]:
        scales = [1.0] * len(everything)
        if self.layer_decay is not None:
            if not 0 < self.layer_decay <= 1:
                raise ValueError(
                    f"Invalid layer_decay: {self.layer_decay}; it must be above 0 and at most 1"
                )
            found = depths(everything, self.layers, model)
            scales = [self.layer_decay ** (max(found) - depth) for depth in found]
        if self.lora_plus is not None:
            if not self.lora_plus > 0:
                raise ValueError(f"Invalid lora_plus: {self.lora_plus}; it must be above 0")
            places = [i for i, m in enumerate(everything) if _LORA_B.search(m.name)]
            _check_any("lora_plus", places, everything, model)
            for place in places:
                scales[place] *= self.lora_plus
        return scales


def groups(
    everything: Sequence[Member],
    rates: Sequence[Any],
    no_decay: Predicate,
    decays: Iterable[str],
) -> list[dict[str, Any]]:
    """Parameter groups: those of one rate that decay, and those that do not, in the order of names.

    Args:
        everything: the parameters.
        rates: their learning rates; None: the optimizer's.
        no_decay: which do not decay.
        decays: the options by which the others do.
    """
    found: dict[Any, dict[str, Any]] = {}
    for member, rate in zip(everything, rates, strict=True):
        spared = no_decay(member)
        key = (_key(rate), spared)
        if key not in found:
            found[key] = {"params": []}
            if rate is not None:
                found[key]["lr"] = rate
            if spared:
                found[key].update(dict.fromkeys(decays, 0.0))
        found[key]["params"].append(member.entry())
    return list(found.values())


def spared_by(model: Any, no_decay: Predicate | str | Iterable[str] | None) -> Predicate:
    """Which parameters do not decay: as said, and what the model itself names.

    Args:
        model: whose ``no_weight_decay()``, if it has one as timm's models do, names more.
        no_decay: a predicate, a pattern of names, or names; None for none at all.
    """
    if no_decay is None:
        return lambda member: False
    if isinstance(no_decay, str):
        chosen = matches(no_decay)
    elif callable(no_decay):
        chosen = no_decay
    else:
        chosen = matches(", ".join(no_decay))
    own = getattr(model, "no_weight_decay", None) if isinstance(model, nn.Module) else None
    named = set(own()) if callable(own) else set()
    return lambda member: chosen(member) or member.name in named


def layer_depths(model: Any, layers: Layers = None) -> dict[str, int]:
    """How deep each parameter lies: name -> depth, 0 for what stands before the first layer.

    ::

        gradstep.layer_depths(model)               # {"embed.weight": 0, "blocks.0.…": 1, …}

    Args:
        model: the model, or its ``named_parameters()``.
        layers: patterns of names for the first layer, the second and so on, or a function of a
            name that gives its depth. Default: the blocks of the model's one numbered list, such as
            ``blocks.0``, ``blocks.1``; what is registered before them lies at 0, and what is
            registered behind them one above the last.

    Raises:
        ValueError: a depth that cannot be told; says what was found.
    """
    everything = members(model)
    found = depths(everything, layers, kind_of(model))
    return {m.name: depth for m, depth in zip(everything, found, strict=True)}


def depths(everything: Sequence[Member], layers: Layers, model: str) -> list[int]:
    """The depth of each parameter; see :func:`layer_depths`."""
    if callable(layers):
        return [int(layers(m.name)) for m in everything]
    if layers is not None:
        return _by_patterns(everything, layers)
    return _by_blocks(everything, model)


def _by_patterns(everything: Sequence[Member], layers: Sequence[str]) -> list[int]:
    if isinstance(layers, str):
        raise ValueError(
            f"layers={layers!r} is one pattern; give a list, such as ['{layers}', …], from the "
            "first layer to the last"
        )
    chosen = [matches(pattern) for pattern in layers]
    found: list[int] = []
    for member in everything:
        at = [depth for depth, is_it in enumerate(chosen, 1) if is_it(member)]
        if len(at) > 1:
            both = " and ".join(repr(layers[depth - 1]) for depth in at)
            raise ValueError(f"layers: {member.name} belongs to {both}")
        # What no pattern fits lies where the one before it does.
        found.append(at[0] if at else (found[-1] if found else 0))
    for depth, pattern in enumerate(layers, 1):
        if depth not in found:
            raise ValueError(
                f"layers: the pattern {pattern!r} fits no parameter; the first is "
                f"{everything[0].name!r}"
            )
    return found


def _by_blocks(everything: Sequence[Member], model: str) -> list[int]:
    """Blocks are numbered: ``blocks.3``, or ``stages.1.blocks.2`` where lists hold lists."""
    blocks = [_block(m.name) for m in everything]
    lists = Counter[str]()
    for member, block in zip(everything, blocks, strict=True):
        if block is not None:
            lists[block[0]] += member.parameter.numel()
    sizes = {name: len({b for b in blocks if b is not None and b[0] == name}) for name in lists}
    largest = max(lists.values(), default=0)
    long = [n for n, size in lists.items() if sizes[n] > 1 and 10 * size >= largest]
    if len(long) != 1:
        found = ", ".join(f"{name or 'the model itself'} ({sizes[name]})" for name in lists)
        what = (
            f"there are several lists of layers: {found}"
            if long
            else "there is no list of layers, as blocks.0, blocks.1 would be"
            f"{', but ' if found else ''}{found}"
        )
        raise ValueError(
            f"the depth of {model} cannot be told: {what}. Its parameters are "
            f"{first_names([m.name for m in everything], 6)}. Say where the layers are: "
            "layers=['first.*', …, 'last.*']"
        )
    numbers: dict[str, int] = {}
    for block in blocks:
        if block is not None and block[0] == long[0]:
            numbers.setdefault(block[1], len(numbers) + 1)
    found_depths, inside = [], False
    for block in blocks:
        in_list = block is not None and block[0] == long[0]
        inside = inside or in_list
        if block is not None and in_list:
            found_depths.append(numbers[block[1]])
        else:
            found_depths.append(len(numbers) + 1 if inside else 0)
    return found_depths


def _block(name: str) -> tuple[str, str] | None:
    """The list that a parameter's block stands in, and the block; None outside of lists."""
    found = list(_NUMBERED.finditer(name))
    if not found:
        return None
    first = found[0]
    rest = name[first.end() :].split(".")
    # A stage is a list of blocks: ``stages.0.blocks.1.weight``.
    inner = next((n for n, part in enumerate(rest[:-1]) if part.isdigit()), None)
    nested = inner is not None and rest[inner - 1] in ("blocks", "layers", "layer")
    end = first.end() + (len(".".join(rest[: (inner or 0) + 1])) if nested else 0)
    return name[: first.start()], name[:end]


def _check_any(
    option: str, places: Sequence[int], everything: Sequence[Member], model: str
) -> None:
    if places:
        return
    what = {
        "embedding_lr": "no embeddings are known",
        "head_lr": "no output layer is known",
        "lora_plus": "no parameter is called lora_B",
    }[option]
    names = first_names([m.name for m in everything], 6)
    raise ValueError(f"{option} was given, and {what} in {model}: it has {names}")


def _key(rate: Any) -> Any:
    """What is equal for equal rates."""
    return id(rate) if isinstance(rate, Tensor) or is_schedule(rate) else rate


def kind_of(model: Any) -> str:
    """What to call a model, or what else parameters come from, in messages."""
    return type(model).__name__ if isinstance(model, nn.Module) else "the parameters"
