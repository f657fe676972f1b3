"""Before any test here: is there an accelerator? A run without one must not look like a success."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

if not torch.accelerator.is_available():
    raise RuntimeError("tests/gpu needs an accelerator, and torch.accelerator finds none")
