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
        last: whether that is an output layer, as the model's names or, if these say nothing, the
            order of registration tell: the last ``nn.Linear``.
        named: whether the name was given.
    """

    name: str
    parameter: Tensor
    module: nn.Module | None = None
    last: bool = False
    named: bool = True

    @property
    def place(self) -> str:
        """The name, as it is without parametrizations: ``"head.weight"``."""
        return _PARAMETRIZED.sub(r".\1", f".{self.name}")[1:]

    @property
    def is_gain(self) -> bool:
        """Whether it is the length of rows, which weight_norm keeps beside their directions."""
        shape = self.parameter.shape
        return bool(_GAIN.search(self.name)) and self.parameter.numel() == max(shape, default=1)

    def entry(self) -> Any:
        """What an optimizer takes: with its name, if it has one."""
        return (self.name, self.parameter) if self.named else self.parameter


#: Says whether a parameter belongs to a part.
Predicate = Callable[[Member], bool]

_HEADS = {"head", "lm_head", "heads", "classifier", "fc_out", "output", "score", "unembed"}
#: The names of the output layer, or of the module that ends in it, among a model's own children.
_OUTERMOST = _HEADS | {"fc", "out", "final", "logits", "last_linear", "qa_outputs", "cls"}
#: Of :data:`_HEADS`, those that blocks within a network have no layers of.
_FINAL = {"head", "lm_head", "classifier", "fc_out", "unembed"}
#: What torch.nn.utils.parametrize makes of a name, and the gains of its weight_norm and the old.
_PARAMETRIZED = re.compile(r"\.parametrizations\.(\w+)\.original\d*$")
_GAIN = re.compile(r"(\.|^)parametrizations\.\w+\.original0$|(\.|^)weight\w*_g$")
_EMBEDDING = re.compile(r"embed|^wte$|^wpe$")


def embeddings(member: Member) -> bool:
    """The weight of an ``nn.Embedding`` or ``nn.EmbeddingBag``; or, of two dimensions or more, one
    with ``embed`` in its own name (where no modules are known: or in that of its module)."""
    if member.is_gain:
        return False
    if isinstance(member.module, nn.Embedding | nn.EmbeddingBag):
        return True
    own = member.place.split(".")[-1 if member.module is not None else -2 :]
    return member.parameter.dim() > 1 and any(_EMBEDDING.search(part) for part in own)


def heads(member: Member) -> bool:
    """The weight, not the bias, of the output layer: the model's last ``nn.Linear``, or a layer
    that is called head, lm_head, classifier, fc_out, output, score or unembed."""
    if biases_and_norms(member) or embeddings(member):
        return False
    layer = member.place.split(".")[-2:-1]
    return member.last or bool(layer and layer[0] in _HEADS)


def matrices(member: Member) -> bool:
    """Weights of two dimensions inside of the network: no embeddings and no heads."""
    inside = not (embeddings(member) or heads(member) or member.is_gain)
    return member.parameter.dim() == 2 and inside


def filters(member: Member) -> bool:
    """Weights of more than two dimensions, as convolutions have them, but no embeddings."""
    inside = not (embeddings(member) or heads(member) or member.is_gain)
    return member.parameter.dim() > 2 and inside


def biases_and_norms(member: Member) -> bool:
    """Weights of one dimension or none: biases, and the gains of normalization layers; and the
    gains of weight_norm, one for each row."""
    return member.parameter.dim() < 2 or member.is_gain


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
    for module in model.modules():  # parametrizations stand between a module and its weight
        for inside in getattr(module, "parametrizations", {}).values():
            owners.update({id(p): module for p in inside.parameters(recurse=False)})
    last = set(map(id, _output_layers(model)))
    return [
        Member(name, p, owners[id(p)], id(owners[id(p)]) in last)
        for name, p in model.named_parameters()
        if p.requires_grad
    ]


def _output_layers(model: nn.Module) -> list[nn.Module]:
    """By the names of the model's own children; else the last ``nn.Linear`` of several."""
    found = []
    for name, child in model.named_children():
        inside = _linear(child) if name in _OUTERMOST else []
        found += [m for _, m in inside[-1:]]
    linear = _linear(model)
    if found or any(name.split(".")[-1] in _FINAL for name, _ in linear):
        return found
    return [linear[-1][1]] if len(linear) > 1 else []


def _linear(module: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(n, m) for n, m in module.named_modules() if isinstance(m, nn.Linear)]


def _of_one(position: int, given: Any) -> Member:
    if isinstance(given, Tensor):
        return Member(str(position), given, named=False)
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], Tensor):
        return Member(str(given[0]), given[1])
    raise TypeError(
        "expected a model, its named_parameters(), or tensors; got a "
        f"{type(given).__name__}. Groups come of the parts themselves."
    )
