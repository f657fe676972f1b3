"""All that diagnoses know to find: a file that is added to this folder is found by itself."""

from __future__ import annotations

import functools
import pkgutil
from importlib import import_module
from pathlib import Path

from gradstep.sight.mistakes.finding import Mistake
from gradstep.sight.mistakes.watched import Family


@functools.cache
def load() -> tuple[tuple[type[Family], ...], tuple[Mistake, ...]]:
    """The families in the order in which they are asked, and the mistakes that they find."""
    families: dict[type[Family], list[Mistake]] = {}
    package = __name__.rpartition(".")[0]
    for file in pkgutil.iter_modules([str(Path(__file__).parent)]):
        known = vars(import_module(f"{package}.{file.name}")).values()
        own = [v for v in known if isinstance(v, type) and v.__module__.endswith(f".{file.name}")]
        for family in own:
            if issubclass(family, Family) and family is not Family:
                families[family] = [v for v in known if isinstance(v, Mistake)]
    in_order = sorted(families, key=lambda family: family.order)
    own_mistakes = dict.fromkeys(m for family in in_order for m in families[family])
    return tuple(in_order), tuple(own_mistakes)


def table() -> str:
    """All mistakes as a table in Markdown, for docs/mistakes.md."""
    rows = ["| name | when | what to write |", "| --- | --- | --- |"]
    for each in load()[1]:
        advice = "advice: " if each.severity == "advice" else ""
        rows.append(f"| `{each.name}` | {advice}{each.when} | {each.write} |")
    return "\n".join(rows)
