"""Whether groups have the same options: there may be thousands of them."""

from __future__ import annotations

from typing import Any

#: What stands in two groups as the same number or word wherever it is equal and of one type.
_SETTLED = {int, float, bool, str, type(None)}


def equal_options(options: tuple[Any, ...]) -> Any:
    """What is equal for equal options of equal types; None for such as may change inside."""
    types = tuple(map(type, options))
    if tuple in types:  # what stands in one has a type too
        parts = [v for option in options for v in (option if type(option) is tuple else (option,))]
        types = tuple(map(type, parts))
    return (options, types) if _SETTLED.issuperset(types) else None
