"""Which variables a function's code reads, with their attributes, off its bytecode."""

from __future__ import annotations

import dis
import types
from collections.abc import Iterator


def variables_read(code: types.CodeType) -> Iterator[tuple[str, str, tuple[str, ...], int]]:
    """Each variable that code reads, with the attributes that it reads of it, and the line.

    As ``(kind, name, attributes, line)``, where the kind is ``"global"``, ``"cell"``, ``"local"``;
    ``"import"`` for ``from name import attribute``, ``"module"`` for ``import name as attribute``;
    or ``"store"`` where a variable outside of the function is written.
    """
    lines = dict(dis.findlinestarts(code))
    line = code.co_firstlineno
    kind, name, where = "", "", line
    attributes: list[str] = []
    skipped = ("EXTENDED_ARG", "NOP", "CACHE")
    operations = [i for i in dis.get_instructions(code) if i.opname not in skipped]
    for before, instruction in zip((None, *operations), operations, strict=False):
        line = lines.get(instruction.offset) or line
        operation, argument = instruction.opname, instruction.argval
        if kind and operation in ("LOAD_ATTR", "LOAD_METHOD"):
            attributes.append(argument)
            continue
        if kind == "import" and operation == "IMPORT_FROM":
            yield kind, name, (argument,), where
            continue
        if before is not None and before.opname == "IMPORT_FROM":
            continue
        if kind == "import" and operation.startswith("STORE_FAST"):
            alias = argument[0] if isinstance(argument, tuple) else argument
            yield "module", name, (alias,), where
        elif kind:
            yield kind, name, tuple(attributes), where
        kind, attributes, where = "", [], line
        if operation in ("LOAD_GLOBAL", "LOAD_NAME"):
            kind, name = "global", argument
        elif operation in ("LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"):
            kind, name = "cell", argument
        elif operation == "IMPORT_NAME":
            kind, name = "import", argument
        elif operation.startswith("LOAD_FAST") or operation == "STORE_FAST_LOAD_FAST":
            kind, name = "local", argument[-1] if isinstance(argument, tuple) else argument
        elif operation in ("STORE_GLOBAL", "DELETE_GLOBAL") or (
            operation in ("STORE_DEREF", "DELETE_DEREF") and argument in code.co_freevars
        ):
            yield "store", argument, (), line
    if kind:
        yield kind, name, tuple(attributes), where
