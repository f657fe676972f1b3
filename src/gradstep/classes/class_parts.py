"""What a class over a rule is made of: an ``__init__`` and a docstring, both from a signature."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from gradstep.optimizer.parameter_groups import Places
from gradstep.program.formats import with_storage
from gradstep.rule.definition import Rule

#: What is said of the arguments that no rule has.
_MEANINGS = {
    "params": "tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.",
    "lr": "the learning rate.",
    "maximize": "climb instead of descend.",
    "differentiable": "let autograd record the step.",
    "engine": '``"auto"``, ``"fused"``, ``"eager"`` or ``"compile"``.',
    "state_dtype": 'a format for all states of the weight\'s shape (``"float32"``, ``"bfloat16"``, '
    '``"float16"``, ``"int8"``, ``"dynamic8"``, ``"float8"``, ``"int4"``), or state -> one, as '
    ":func:`gradstep.stored_as` has it; or None for what the weight is stored as.",
    "low_precision": 'how weights of 16 bits are kept: ``"nearest"``, ``"stochastic"``, '
    '``"kahan"``, ``"remainder"`` or ``"master"``, as :func:`gradstep.low_precision` has it.',
}
#: Flags of torch's that choose among its implementations; all that a class has are one row.
_KEPT = ("foreach", "fused", "capturable")
_FUSED = (
    " With ``fused``, a step under GradScaler unscales in its own pass, and only reads ``.grad``: "
    "that stays scaled, where torch's fused step writes the unscaled gradient into it."
)
_NO_DEFAULT = ("params", "engine")
_ROW = re.compile(r"^    (\w[\w, ]*): ((?:.|\n        )+)$", re.M)


@dataclass(frozen=True)
class ClassParts:
    """A class over a rule.

    Attributes:
        name: the class's, for messages.
        rule: what the class runs.
        signature: ``self``, ``params``, the options of a group, and what is none;
            without ``engine``, it is the eager one.
        places: where in the options hyperparameters stand that are no arguments of their own.
        fixed: options of a group that are no arguments.
        order: of the options in a group, if it is not that of the signature.
        beyond: options that torch's class has not: they stand in a group where they are not as by
            default, so that groups are torch's.
    """

    name: str
    rule: Rule
    signature: inspect.Signature
    places: Places
    fixed: Mapping[str, Any] = field(default_factory=dict)
    order: Sequence[str] = ()
    beyond: Sequence[str] = ()

    def initializer(self) -> Callable[..., None]:
        """The ``__init__``."""
        name, rule, signature = self.name, self.rule, self.signature
        fixed, order, beyond = self.fixed, self.order, self.beyond

        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            try:
                bound = signature.bind(self, *args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{name}.__init__() {error}") from None
            bound.apply_defaults()
            group = {**bound.arguments, **fixed}
            del group["self"]
            for option in beyond:
                if group[option] == signature.parameters[option].default:
                    del group[option]
            params, engine = group.pop("params"), group.pop("engine", "eager")
            own = with_storage(rule, group.pop("state_dtype"), group.pop("low_precision"))
            self._begin(params, own, {n: group[n] for n in order or group}, engine)
            _check_flags(group)

        return __init__

    def docstring(self, about: str, raises: str) -> Any:
        """The docstring, which is made when it is first read: the import does not wait for it.

        Args:
            about: what is said first. Behind it may stand, as in any docstring, ``Args`` of which
                something else is to be said than of the rule's hyperparameters, and what the class
                ``Raises`` beyond others.
            raises: what all classes of its kind raise.
        """
        return _Docstring(partial(self._docstring, about, raises))

    def _docstring(self, about: str, raises: str) -> str:
        text, _, more_raises = about.partition("\n\nRaises:\n")
        text, _, own = text.partition("\n\nArgs:\n")
        of_rule = inspect.getdoc(self.rule.function) or ""
        said = {**_MEANINGS, **dict(_rows(of_rule)), **dict(_rows(own))}
        for name, (option, index) in self.places.items():
            if option not in dict(_rows(own)):
                before = f"{said[option]} " if index else ""
                said[option] = f"{before}{index + 1}: {said.get(name, '')}"
        arguments = [_row(n, m) for n, m in self._arguments(said)]
        errors = [_row(n, m) for n, m in _rows(f"    {raises}\n{more_raises}")]
        return "\n".join([text, "", "Args:", *arguments, "", "Raises:", *errors, ""])

    def _arguments(self, said: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        kept = [name for name in _KEPT if name in self.signature.parameters]
        for name, parameter in self.signature.parameters.items():
            if name not in (*kept, "self"):
                default = "" if name in _NO_DEFAULT else f" Default: {parameter.default}."
                yield name, said.get(name, "") + default
            elif kept and name == next(n for n in self.signature.parameters if n in kept):
                them, they = ("them", "they change") if len(kept) > 1 else ("it", "it changes")
                about = f"kept as torch keeps {them}; {they} nothing in the result."
                yield ", ".join(kept), about + _FUSED * ("fused" in kept)


class _Docstring:
    """Stands in a class for its ``__doc__``."""

    def __init__(self, make: Callable[[], str]) -> None:
        self._make = cache(make)

    def __get__(self, instance: object, owner: type) -> str:
        return self._make()


def _check_flags(group: Mapping[str, Any]) -> None:
    """Raise what torch raises about flags that exclude each other."""
    if group.get("fused") and group.get("differentiable"):
        raise RuntimeError("`fused` does not support `differentiable`")
    if group.get("fused") and group.get("foreach"):
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")


def _rows(text: str) -> Iterator[tuple[str, str]]:
    """The rows of a docstring's parts: names, and what is said of them in one line."""
    return ((name, " ".join(meaning.split())) for name, meaning in _ROW.findall(text))


def _row(name: str, meaning: str) -> str:
    return textwrap.fill(
        f"{name}: {meaning}",
        100,
        initial_indent="    ",
        subsequent_indent="        ",
        break_long_words=False,
        break_on_hyphens=False,
    )
