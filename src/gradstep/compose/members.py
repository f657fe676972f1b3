"""Which parameters of a model are matrices, embeddings, heads, biases: the ready predicates."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Member:
    """A parameter in its place.

    Attributes:
        name: in the model, such as ``"encoder.0.weight"``; its number where it has none.
        parameter: the tensor.
        module: the module that holds it; None where only parameters were given.
        last: whether that is the model's last ``nn.Linear``, in the order of registration.
        named: whether the name was given.
    """

    name: str
    parameter: Tensor
    module: nn.Module | None = None
    last: bool = False
    named: bool = True

    def entry(self) -> Any:
        """What an optimizer takes: with its name, if it has one."""
        return (self.name, self.parameter) if self.named else self.parameter


#: Says whether a parameter belongs to a part.
Predicate = Callable[[Member], bool]

_HEADS = {"head", "lm_head", "heads", "classifier", "fc_out", "output", "score", "unembed"}
_EMBEDDING = re.compile(r"embed|^wte$|^wpe$")


def embeddings(member: Member) -> bool:
    """The weight of an ``nn.Embedding`` or ``nn.EmbeddingBag``; or, of two dimensions or more, one
    with ``embed`` in its own name (where no modules are known: or in that of its module)."""
    if isinstance(member.module, nn.Embedding | nn.EmbeddingBag):
        return True
    own = member.name.split(".")[-1 if member.module is not None else -2 :]
    return member.parameter.dim() > 1 and any(_EMBEDDING.search(part) for part in own)


def heads(member: Member) -> bool:
    """The weight, not the bias, of the output layer: the model's last ``nn.Linear``, or a layer
    that is called head, lm_head, classifier, fc_out, output, score or unembed."""
    if member.parameter.dim() < 2 or embeddings(member):
        return False
    layer = member.name.split(".")[-2:-1]
    return member.last or bool(layer and layer[0] in _HEADS)


def matrices(member: Member) -> bool:
    """Weights of two dimensions inside of the network: no embeddings and no heads."""
    return member.parameter.dim() == 2 and not embeddings(member) and not heads(member)


def filters(member: Member) -> bool:
    """Weights of more than two dimensions, as convolutions have them, but no embeddings."""
    return member.parameter.dim() > 2 and not embeddings(member) and not heads(member)


def biases_and_norms(member: Member) -> bool:
    """Weights of one dimension or none: biases, and the gains of normalization layers."""
    return member.parameter.dim() < 2


#: The predicates by the names that parts may have. ``"rest"`` is what no other part claims.
READY: dict[str, Predicate] = {
    "matrices": matrices,
    "filters": filters,
    "embeddings": embeddings,
    "heads": heads,
    "biases_and_norms": biases_and_norms,
}


def matches(pattern: str) -> Predicate:
    """A predicate of a name with ``*`` and ``?``: ``"encoder.*"``, or several, with commas."""
    patterns = [p.strip() for p in pattern.split(",")]
    return lambda member: any(fnmatchcase(member.name, p) for p in patterns)


def of_type(*types: type[nn.Module]) -> Predicate:
    """A predicate of the module that holds a parameter: ``of_type(nn.Conv2d)``."""
    return lambda member: isinstance(member.module, types)


def members(params: Any) -> list[Member]:
    """The parameters of a model that take gradients; or those that are given, named or not.

    Raises:
        TypeError: neither a model nor parameters.
        ValueError: none at all.
    """
    if isinstance(params, nn.Module):
        found = _of_model(params)
    elif isinstance(params, Tensor) or not isinstance(params, Iterable):
        raise TypeError(
            f"expected a model or its named_parameters(); got a {type(params).__name__}"
        )
    else:
        given = params.items() if isinstance(params, Mapping) else params
        found = [_of_one(i, each) for i, each in enumerate(given)]
    if not found:
        raise ValueError("there are no parameters that take gradients")
    return found


def _of_model(model: nn.Module) -> list[Member]:
    owners = {id(p): m for m in reversed(list(model.modules())) for p in m.parameters(False)}
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    last = linear[-1] if len(linear) > 1 else None
    return [
        Member(name, p, owners[id(p)], owners[id(p)] is last)
        for name, p in model.named_parameters()
        if p.requires_grad
    ]


def _of_one(position: int, given: Any) -> Member:
    if isinstance(given, Tensor):
        return Member(str(position), given, named=False)
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], Tensor):
        return Member(str(given[0]), given[1])
    raise TypeError(
        "expected a model, its named_parameters(), or tensors; got a "
        f"{type(given).__name__}. Groups come of the parts themselves."
    )
