"""The page of every name in every peer, and ours: made by ``gradstep rules --catalogue``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any

import gradstep
from gradstep.sight.catalogue import is_stage, rule_names
from gradstep.sight.peer_names import PEERS, PeerRow, peer_rows

_HEAD = """\
# Every name, and ours

Made by `gradstep rules --catalogue` from one table. On the left stands what other libraries name,
as of November 2026; on the right what it is here, or why it is not here. Names are of `gradstep`:
classes, rules and stages for chains, wrappers, functions. The classes may be spelled in any way in
`gradstep.create("name", model)`.
"""
_MISSING = "not here yet"


def ours(name: str) -> Any:
    """What a name of the table is in this package.

    Raises:
        AttributeError: nothing of that name.
    """
    found: Any = gradstep
    for part in name.split("."):
        found = getattr(found, part)
    return found


def spelled_as_theirs(name: str) -> str | None:
    """Our name for one that is the same in some spelling; None where there is none."""
    plain = _plain(name)
    return _by_spelling().get(plain)


def cell(row: PeerRow) -> str:
    """What stands on the right."""
    if row.waits:
        try:
            ours(row.ours)
        except AttributeError:
            return _MISSING
        return f"`{row.ours}`"
    if row.ours:
        return row.ours
    return f"`{spelled_as_theirs(row.theirs)}`"


def answer(name: str) -> str:
    """What a name of another library is here, for an error message; nothing for an unknown one."""
    peer, row = _by_their_name().get(name, ("", None))
    return "" if row is None else f"docs/catalogue.md has for that of {peer}: {cell(row)}"


@cache  # who asks whether a name is here asks for many, as hasattr() does
def _by_their_name() -> dict[str, tuple[str, PeerRow]]:
    """Their names without their modules -> the first library that has each, and its row."""
    found: dict[str, tuple[str, PeerRow]] = {}
    for peer, text in PEERS.items():
        for row in peer_rows(text):
            for theirs in row.theirs.split(", "):
                found.setdefault(theirs.split()[0].rpartition(".")[2], (peer.split(",")[0], row))
    return found


def named(text: str) -> list[str]:
    """The names of this package in a cell."""
    return re.findall(r"`([\w.]+)`", text)


def catalogue_markdown() -> str:
    """The page."""
    lines = [_HEAD]
    mentioned: set[str] = set()
    for peer, text in PEERS.items():
        lines += [f"## {peer}", "", "| theirs | here |", "| --- | --- |"]
        for row in peer_rows(text):
            shown = cell(row)
            mentioned |= {*named(shown)}
            theirs = ", ".join(f"`{name}`" for name in row.theirs.split(", "))
            lines.append(f"| {theirs} | {shown.replace('|', chr(92) + '|')} |")
        lines.append("")
    return "\n".join([*lines, *_rest(mentioned)])


def _rest(mentioned: set[str]) -> Iterator[str]:
    """The rules and stages of which no row speaks."""
    plain = {_plain(name) for name in mentioned}
    rules: list[str] = []
    stages: list[str] = []
    for name in rule_names():
        rule = gradstep.rules.load()[name]
        if {_plain(name), _plain(rule.class_name or name)} & plain:
            continue
        (stages if is_stage(rule) else rules).append(f"`{rule.class_name or name}`")
    yield "## Rules and stages of which none of these rows speaks"
    yield ""
    yield f"Rules: {', '.join(rules) or 'none'}."
    yield ""
    yield f"Stages: {', '.join(stages) or 'none'}."


def _by_spelling() -> dict[str, str]:
    known: dict[str, str] = {}
    for name in rule_names():
        known[_plain(name)] = gradstep.rules.load()[name].class_name or name
    for name in (*import_module("gradstep.torch_optim").__all__, *gradstep.__all__):
        known.setdefault(_plain(name), name)
    torch_optim = import_module("gradstep.torch_optim").__all__
    known.update({_plain(name): name for name in torch_optim})
    return known


def _plain(name: str) -> str:
    return name.lower().replace("_", "")
