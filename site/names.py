"""Names that gradstep makes as it is imported, for the reference, which reads sources alone.

A class over a rule (``gradstep.Lion``) stands in no file, and what the arguments of torch.optim's
classes mean is said by their rules. This extension of griffe takes signature and docstring of these
from the imported package, and turns Sphinx's roles in docstrings into links.
"""

from __future__ import annotations

import functools
import inspect
import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|data|attr|mod|exc):`~?([^`]+)`")
_LITERAL = re.compile(r"``(.+?)``")
_KINDS = {
    inspect.Parameter.POSITIONAL_ONLY: griffe.ParameterKind.positional_only,
    inspect.Parameter.POSITIONAL_OR_KEYWORD: griffe.ParameterKind.positional_or_keyword,
    inspect.Parameter.VAR_POSITIONAL: griffe.ParameterKind.var_positional,
    inspect.Parameter.KEYWORD_ONLY: griffe.ParameterKind.keyword_only,
    inspect.Parameter.VAR_KEYWORD: griffe.ParameterKind.var_keyword,
}


@functools.cache
def public() -> frozenset[str]:
    """The names that ``gradstep.`` has for users: each has its place in the reference or a page."""
    import gradstep
    from gradstep.rule.operations import functions

    return frozenset([*gradstep.__all__, *functions(), *rule_classes(), *rules()])


@functools.cache
def rules() -> frozenset[str]:
    """The names of the rules and stages."""
    from gradstep.rules import load

    return frozenset(load())


@functools.cache
def rule_classes() -> tuple[str, ...]:
    """The classes over rules that torch.optim has not."""
    from gradstep.classes.rule_classes import load

    return tuple(load())


def linked(text: str) -> str:
    """A docstring with links in the place of roles, where there is something to link to."""

    def link(found: re.Match[str]) -> str:
        name = found[1].removesuffix("()")
        first = name.removeprefix("gradstep.").partition(".")[0]
        # What is deeper than a name of the package has no place of its own.
        if name != f"gradstep.{first}" or first not in public():
            return f"`{name}`"
        if first in rules():  # a rule's own page, as from those of the reference
            return f"[`{name}`](../rules/{first}.md)"
        return f"[`{name}`][{name}]"

    return _ROLE.sub(link, text)


class ImportedNames(griffe.Extension):
    """The extension; see above."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = linked(obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        if pkg.name != "gradstep":
            return
        import gradstep
        from gradstep import torch_optim
        from gradstep.rule.operations import functions

        for name in rule_classes():
            pkg.set_member(name, _class(pkg, name, getattr(gradstep, name)))
        for name in torch_optim.__all__:
            stated = pkg["torch_optim.lbfgs" if name == "LBFGS" else "torch_optim.classes"]
            doc = inspect.getdoc(getattr(gradstep, name)) or ""
            stated.members[name].docstring = griffe.Docstring(linked(doc), parent=stated[name])
            if name == "LBFGS":  # whose signature is torch's
                made = _function(stated[name], "__init__", gradstep.LBFGS.__init__)
                stated[name].set_member("__init__", made)
        for name in functions():
            if name not in pkg.members:  # an expansion, which is a row of a table
                pkg.set_member(name, _function(pkg, name, getattr(gradstep, name)))
        for name in rules():
            # A rule's own page is its reference.
            pkg.members.pop(name, None)


def _class(parent: griffe.Module, name: str, cls: type) -> griffe.Class:
    made = griffe.Class(name, parent=parent)
    made.docstring = griffe.Docstring(linked(inspect.getdoc(cls) or ""), parent=made)
    made.bases = [base.__name__ for base in cls.__bases__]
    made.set_member("__init__", _function(made, "__init__", cls.__init__))
    return made


def _function(parent: griffe.Module | griffe.Class, name: str, function: Any) -> griffe.Function:
    parameters = [
        griffe.Parameter(
            parameter.name,
            kind=_KINDS[parameter.kind],
            default=None if parameter.default is parameter.empty else repr(parameter.default),
        )
        for parameter in inspect.signature(function).parameters.values()
    ]
    made = griffe.Function(name, parameters=griffe.Parameters(*parameters), parent=parent)
    if name != "__init__":
        made.docstring = griffe.Docstring(linked(inspect.getdoc(function) or ""), parent=made)
    return made
