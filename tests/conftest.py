"""What every test shares: two threads, and a kernel cache of their own that children inherit."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator

import hypothesis
import pytest

# Set before gradstep is imported anywhere, and in the environment, so that child processes of the
# tests share it and no test reads or writes the user's own cache.
# Where pytest-xdist runs several processes, they are children too.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["GRADSTEP_CACHE_DIR"] = tempfile.mkdtemp(prefix="gradstep-tests-")
    atexit.register(shutil.rmtree, os.environ["GRADSTEP_CACHE_DIR"], ignore_errors=True)
# Threads that wait for each other sleep: on a busy machine spinning ones made the tests 10 times
# slower. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

torch.set_num_threads(2)

hypothesis.settings.register_profile(
    "gradstep", deadline=None, derandomize=True, print_blob=True, max_examples=50
)
hypothesis.settings.load_profile("gradstep")


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Each test starts from the same random state, thread count and default dtype."""
    torch.manual_seed(0)
    yield
    torch.set_num_threads(2)
    torch.set_default_dtype(torch.float32)
