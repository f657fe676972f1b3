"""Blocks of the pages that need other libraries run, and print what the pages show."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import page_blocks


@pytest.mark.filterwarnings("ignore")  # those libraries' own
@pytest.mark.parametrize("page", ["trainers", "coming-from"])
def test_what_a_page_shows_of_a_neighbour_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    reading = page_blocks.read(page_blocks.ROOT / "docs" / f"{page}.md")
    left = {block.mark for block in reading.left_out}
    # Which `make test-integration` does not install.
    assert left <= {"needs bitsandbytes", "needs deepspeed", "needs timm"}
