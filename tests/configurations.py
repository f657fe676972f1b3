"""Every rule with its arguments, as the tests run it: torch's own configurations, and each flag."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from reference import REFERENCES, Reference
from torchs_table import optim_db


def torch_options(theirs: type[torch.optim.Optimizer] | None) -> list[dict[str, Any]]:
    """The configurations that torch's own tests list for a class of its."""
    for info in optim_db:
        if info.optim_cls is theirs:
            return [i.kwargs for i in info.optim_inputs_func(device="cpu")]
    return []


def variants(reference: Reference) -> Iterator[dict[str, Any]]:
    """A rule's arguments with every flag on and off, and every term there and left out.

    For a rule that torch has not, all of them on and all of them off: there are many such rules.
    """
    made = reference.default_group()
    choices: dict[str, tuple[Any, ...]] = {
        n: (False, True)
        for n, default in reference.rule.hyperparameters.items()
        if isinstance(default, bool) and n in made
    }
    if reference.name == "AdamW":
        choices.pop("decoupled_weight_decay")
    own = reference.rule.hyperparameters
    choices.update({n: (0.0, 0.1) for n in ("weight_decay", "momentum") if n in own})
    products = list(itertools.product(*choices.values()))
    if reference.theirs is None:  # what all have on and all have off; the table has the rest
        products = products[:1] + products[1:][-1:]
    for number, values in enumerate(products):
        options = dict(zip(choices, values, strict=True), lr=0.05)
        if "maximize" in made:
            options["maximize"] = number % 2 == 1
        if not (options.get("nesterov") and options["momentum"] == 0):
            yield options


def fullest(reference: Reference) -> dict[str, Any]:
    """The arguments that make the longest kernel."""
    return max(variants(reference), key=lambda o: sum(bool(v) for v in o.values()))


def implementation_flags(reference: Reference) -> list[dict[str, Any]]:
    """Those of torch's flags that choose among its implementations, one at a time."""
    made = reference.default_group()
    return [{n: True} for n in ("foreach", "fused", "capturable") if n in made]


def spelled(options: dict[str, Any]) -> str:
    """Arguments in short, for a test's name."""
    return ",".join(f"{k}={v}" for k, v in options.items()) or "default"


#: Each rule with the arguments of torch's own tests, and those of the table.
CONFIGURATIONS: list[tuple[Reference, dict[str, Any]]] = [
    (reference, options)
    for reference in REFERENCES
    for options in (*torch_options(reference.theirs), *reference.extra)
]


def _kind(value: Any) -> Any:
    """What of an argument shapes a step: flags, which numbers are 0, and which are tensors."""
    if isinstance(value, tuple | list):
        return tuple(map(_kind, value))
    if isinstance(value, Tensor):
        return Tensor
    return value != 0 if isinstance(value, int | float) and value is not True else value


def _distinct() -> Iterator[tuple[Reference, dict[str, Any]]]:
    seen = set()
    # Those that look at all weights are slow to test: their rows have each flag.
    each = ((r, options) for r in REFERENCES if not r.coupled for options in variants(r))
    for reference, options in itertools.chain(CONFIGURATIONS, each):
        group = {**reference.default_group(), **options}
        kind = (reference.name, *((name, _kind(value)) for name, value in sorted(group.items())))
        if kind not in seen:
            seen.add(kind)
            yield reference, options


#: Each rule with every flag on and off, every term there and left out, and numbers as tensors: of
#: configurations that differ in the size of a number alone, the first.
FLAG_CONFIGURATIONS: list[tuple[Reference, dict[str, Any]]] = list(_distinct())
