"""Which torch the tests run with, where its own faults make a difference."""

from __future__ import annotations

import torch

#: The lowest release that is declared.
IS_LOWEST = torch.__version__.startswith("2.7.")
