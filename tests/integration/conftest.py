"""The neighbours' trainers: nothing is downloaded, and torch repeats its bits.

These tests are no part of ``make test``: they need three more packages, with some forty of their
own. ``make test-integration`` installs those and runs them.
"""

from __future__ import annotations

import os

from gradstep.lab.repeatable import prepare_environment

prepare_environment()  # a resumed run can only have the same bits if matrices are multiplied alike
os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported
