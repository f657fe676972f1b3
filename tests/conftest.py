"""What every test shares: two threads, caches of their own that children inherit, what is deep."""

from __future__ import annotations

import atexit
import gc
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator

import hypothesis
import pytest

# Set before gradstep is imported anywhere, and in the environment, so that child processes of the
# tests share them and no test reads or writes the user's own caches.
# Where pytest-xdist runs several processes, they are children too.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _caches = tempfile.mkdtemp(prefix="gradstep-tests-")
    os.environ["GRADSTEP_CACHE_DIR"] = os.path.join(_caches, "kernels")  # noqa: PTH118
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(_caches, "inductor")  # noqa: PTH118
    atexit.register(shutil.rmtree, _caches, ignore_errors=True)
# Otherwise torch.compile starts a process a core in each process of the tests, which stay.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
# A shell that runs the tests in the background has them ignore Ctrl-C, and children inherit that:
# those that are to be interrupted would not be.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# The tests read English, whatever the locale.
os.environ["LANGUAGE"] = "en"
# Threads that wait for each other sleep: on a busy machine spinning ones made the tests 10 times
# slower. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

hypothesis.settings.register_profile(
    "gradstep", deadline=None, derandomize=True, print_blob=True, max_examples=50
)
hypothesis.settings.load_profile("gradstep")


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Each test starts from the same random state, threads and default dtype, nothing compiled."""
    import torch

    torch.manual_seed(0)
    compiled = sys.modules.get("torch._dynamo.utils")
    if compiled:  # where something was compiled, doctor leaves Python's profiler alone
        compiled.counters.clear()
    yield
    torch.set_num_threads(2)
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def few_objects() -> None:
    """For files that collect garbage in each test: what is there before is left out of it.

    All modules and kernels of the tests before took half a second each time.
    """
    gc.collect()
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option of the Makefile."""
    text = "say how far the tests are in a line for every tenth, not in a character for each"
    parser.addoption("--progress", action="store_true", help=text)


def pytest_configure(config: pytest.Config) -> None:
    """Two threads where tests run, and a report as asked in the process that has the terminal."""
    is_worker = hasattr(config, "workerinput")
    if is_worker or not config.getoption("numprocesses", None):
        # Not in a process that only hands out tests: without torch it takes 200 MiB less.
        import torch

        torch.set_num_threads(2)
    if config.getoption("--progress") and not is_worker:
        import progress

        config.pluginmanager.register(progress.Progress(config))


@pytest.hookimpl(wrapper=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> Iterator[None]:
    """Mark as deep what asks again, of another configuration, what is asked of a representative.

    Where deep tests are left out they are not even made: of five tests four are deep, and to make
    and sort them took a third of the time until the first test.
    """
    yield
    calls = metafunc._calls
    if not calls:
        return
    import representatives  # a file whose tests have no parameters need not wait for its tables

    every_rule = metafunc.definition.get_closest_marker("every_rule") is not None
    deep = representatives.deep([call.params for call in calls], every_rule)
    for call, is_deep in zip(calls, deep, strict=True):
        if is_deep:
            call.marks.append(pytest.mark.deep.mark)
    chosen = str(metafunc.config.getoption("markexpr")).split(" and ")
    if "not deep" in chosen and not {"(", ")", "or"} & set(" ".join(chosen).split()):
        quick = [call for call in calls if all(mark.name != "deep" for mark in call.marks)]
        # Without any, pytest would make one test without parameters; a deep one it leaves out.
        metafunc._calls = quick or calls[:1]


#: In the environment: a number that chooses an order of the tests.
ORDER = "GRADSTEP_TEST_ORDER"


def pytest_report_header() -> str | None:
    """What to set for the same order again."""
    return f"{ORDER}={os.environ[ORDER]}" if os.environ.get(ORDER) else None


@pytest.hookimpl(trylast=True, specname="pytest_collection_modifyitems")
def pytest_collection_in_another_order(items: list[pytest.Item]) -> None:
    """Shuffle the files, and the tests of each file, where the environment asks for it.

    The same in every process of pytest-xdist. What a whole file has in common is still made once.
    """
    if not os.environ.get(ORDER):
        return
    chance = random.Random(int(os.environ[ORDER]))
    by_file = itertools.groupby(items, key=lambda item: item.nodeid.split("::")[0])
    files = [list(tests) for _, tests in by_file]
    chance.shuffle(files)
    for tests in files:
        chance.shuffle(tests)
    items[:] = itertools.chain.from_iterable(files)


def pytest_collection_finish() -> None:
    """Leave modules and tests out of garbage collections, which take a second with all of them."""
    gc.collect()
    gc.freeze()
