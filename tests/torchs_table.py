"""torch's own table of its optimizers: their configurations, what each can do, its errors.

That table takes one name from torch's table of all operators, which takes six seconds to make, in
each process of the tests. We read nothing of where the name is used (which of torch's tests are
skipped on which device), so it is given to it without the other table.
"""

from __future__ import annotations

import sys
import types
from typing import Any

_OPERATORS = "torch.testing._internal.common_methods_invocations"


def _table() -> Any:
    known = sys.modules.get(_OPERATORS)
    if known is None:
        stand_in: Any = types.ModuleType(_OPERATORS)
        stand_in.DecorateInfo = lambda *arguments, **options: None
        sys.modules[_OPERATORS] = stand_in
    try:
        from torch.testing._internal import common_optimizers
    finally:
        if known is None:
            del sys.modules[_OPERATORS]
    return common_optimizers


_TABLE = _table()
optim_db = _TABLE.optim_db
OptimizerErrorEnum = _TABLE.OptimizerErrorEnum
