"""What may be let in from outside the package: an object of a class, with a name not yet ours."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any


def checked_name(
    given: Any, kind: type, public: str, taken_by: str, ours: Collection[str], own: str
) -> str:
    """The name under which an object is registered.

    Args:
        given: the object.
        kind: the class that it has to be of.
        public: where users find that class.
        taken_by: what takes the name, for messages.
        ours: the names that the package has itself.
        own: what such a name is, for messages: ``"is a format"``.

    Raises:
        TypeError: no object of the class.
        ValueError: a name that is one of ours, or none.
    """
    if not isinstance(given, kind):
        raise TypeError(
            f"register takes a {kind.__name__.lower()}; got {given!r}. Derive its class from "
            f"{public}, and give an instance."
        )
    name = getattr(given, "name", None)
    if not isinstance(name, str) or not name:
        raise ValueError(
            f"{type(given).__name__}.name is {name!r}. Expected the text that {taken_by} takes."
        )
    if name in ours:
        raise ValueError(
            f"{type(given).__name__}.name is {name!r}, which {own} of gradstep's own "
            f"({', '.join(ours)}). Choose another."
        )
    return name
