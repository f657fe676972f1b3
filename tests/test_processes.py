"""Real threads and processes: nothing hangs, nothing crashes, and the bits stay what they were.

Each scenario is a function of this file that runs in a process of its own, so that a crash is an
exit code, and a hang a timeout. Most are forked from one helper process that has imported all and
done nothing yet, which takes milliseconds where a new Python takes seconds.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import faulthandler
import hashlib
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradstep
from gradstep.backends import kernel_cache
from gradstep.backends.cpu import run as runs

#: Sizes of a model that one thread updates, and of one that several share.
SMALL = ((20, 10), (20,), ())
LARGE = ((800, 600), (130, 1000), (7,))
TIMEOUT = 300

forking = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
as_root = pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can become somebody else"
)


def run(scenario: str, *arguments: Any, **environment: str | None) -> str:
    """Run a scenario in a forked process that must end well; returns what it printed."""
    if not hasattr(os, "fork"):
        return run_anew(scenario, *arguments, **environment)
    helper = Helper.running()
    assert helper.stdin is not None and helper.stdout is not None
    order = {"scenario": scenario, "arguments": [*map(str, arguments)], "environment": environment}
    helper.stdin.write(json.dumps(order) + "\n")
    helper.stdin.flush()
    answer = json.loads(helper.stdout.readline())
    return judged(answer["code"], answer["output"], answer["errors"])


def run_anew(scenario: str, *arguments: Any, **environment: str | None) -> str:
    """The same in a new Python, which also ends as Pythons do."""
    return finish(start(scenario, *arguments, **environment))


def judged(code: int, output: str, errors: str) -> str:
    assert code == 0, f"exit code {code}\n{output}\n{errors}"
    assert "Fatal" not in errors and "Traceback" not in errors, errors
    return output.strip()


class Helper:
    """The process that forks one for each scenario."""

    _process: subprocess.Popen[str] | None = None

    @classmethod
    def running(cls) -> subprocess.Popen[str]:
        if cls._process is None or cls._process.poll() is not None:
            cls._process = start("-")
        return cls._process

    @classmethod
    def end(cls) -> None:
        if cls._process is not None and cls._process.stdin is not None:
            cls._process.stdin.close()
            cls._process.wait(TIMEOUT)
            cls._process = None


@pytest.fixture(scope="module", autouse=True)
def _end_helper() -> Iterator[None]:
    yield
    Helper.end()


def help_out() -> None:
    """What the helper does: read an order, fork, wait, answer."""
    gradstep.SGD(weights(SMALL))  # torch imports more with the first optimizer
    for line in sys.stdin:
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            child = os.fork()
            if child == 0:
                carry_out(json.loads(line), output.fileno(), errors.fileno())
            _, status = os.waitpid(child, 0)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)  # what it left behind, if it was cut off
            texts = []
            for file in (output, errors):
                file.seek(0)
                texts.append(file.read().decode())
        answer = {"code": os.waitstatus_to_exitcode(status), "output": texts[0], "errors": texts[1]}
        print(json.dumps(answer), flush=True)


def carry_out(order: dict[str, Any], output: int, errors: int) -> None:
    """In the forked process: run the scenario and end."""
    code = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(errors, 2)
        faulthandler.dump_traceback_later(TIMEOUT, exit=True)
        for key, value in order["environment"].items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value
        globals()["scenario_" + order["scenario"]](*order["arguments"])
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def start(scenario: str, *arguments: Any, **environment: str | None) -> subprocess.Popen[str]:
    changed = {**os.environ, **environment}
    return subprocess.Popen(
        [sys.executable, "-X", "faulthandler", __file__, scenario, *map(str, arguments)],
        env={k: v for k, v in changed.items() if v is not None},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if scenario == "-" else subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    try:
        output, errors = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGABRT)  # faulthandler says where each of them stands
        output, errors = process.communicate()
        raise AssertionError(f"hangs\n{output}\n{errors}") from None
    return judged(process.returncode, output, errors)


# What the scenarios share.


def weights(shapes: Any, seed: int = 1) -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(seed)
    params = [nn.Parameter(torch.randn(s, generator=random)) for s in shapes]
    for p in params:
        p.grad = torch.randn(p.shape, generator=random)
    return params


def bits(params: Any) -> str:
    """A digest, made without torch's threads, which a forked child does not have."""
    digest = hashlib.sha256()
    for p in params:
        digest.update(p.detach().numpy().tobytes())
    return digest.hexdigest()[:16]


def stepped(name: str, shapes: Any, steps: int, seed: int = 1, **options: Any) -> str:
    """The bits after some steps, made alone and on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    params = weights(shapes, seed)
    optimizer = getattr(gradstep, name)(params, **options)
    for _ in range(steps):
        optimizer.step()
    torch.set_num_threads(threads)
    return bits(params)


def in_child(work: Callable[[], object]) -> None:
    """Fork; the child does the work and must end well within the time."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            faulthandler.register(signal.SIGALRM, chain=True)  # says where, then ends
            signal.alarm(TIMEOUT // 2)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the forked child ended with {status}"


def start_threads(works: list[Callable[[], object]]) -> None:
    """Run each in a thread of its own, all at once; any exception ends the scenario."""
    barrier = threading.Barrier(len(works))
    failures: list[BaseException] = []

    def guarded(work: Callable[[], object]) -> None:
        try:
            barrier.wait()
            work()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=guarded, args=(w,)) for w in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def is_parallel(shapes: Any) -> bool:
    return sum(torch.Size(s).numel() for s in shapes) >= runs.PARALLEL


# Threads.


def scenario_threads_with_optimizers_of_their_own() -> None:
    assert is_parallel(LARGE) and not is_parallel(SMALL)
    kinds = [("SGD", SMALL), ("Adam", LARGE), ("RMSprop", LARGE), ("Lion", SMALL), ("Adam", SMALL)]
    results: dict[int, str] = {}

    def train(place: int, name: str, shapes: Any) -> None:
        params = weights(shapes, place)
        optimizer = getattr(gradstep, name)(params, lr=0.01)
        for _ in range(60 if is_parallel(shapes) else 600):
            optimizer.step()
        results[place] = bits(params)

    torch.set_num_threads(3)
    # The first step of each compiles, all at once, since the cache is empty.
    start_threads([
        lambda i=i, n=n, s=s: train(i, n, s) for i, (n, s) in enumerate(kinds)
    ])  # fmt: skip
    for place, (name, shapes) in enumerate(kinds):
        steps = 60 if is_parallel(shapes) else 600
        assert results[place] == stepped(name, shapes, steps, place, lr=0.01), name


def test_threads_with_optimizers_of_their_own(tmp_path: Path) -> None:
    run("threads_with_optimizers_of_their_own", GRADSTEP_CACHE_DIR=str(tmp_path))


def scenario_threads_with_one_optimizer(size: str) -> None:
    shapes, steps = {"small": (SMALL, 300), "large": (LARGE, 40)}[size]
    torch.set_num_threads(2)
    for name in ("SGD", "Adam"):
        options = {"momentum": 0.9} if name == "SGD" else {}
        params = weights(shapes)
        before = [p.detach().clone() for p in params]
        optimizer = getattr(gradstep, name)(params, lr=0.001, **options)

        def train(optimizer: Any = optimizer) -> None:
            for _ in range(steps):
                optimizer.step()

        start_threads([train] * 4)
        for p, old in zip(params, before, strict=True):
            # Steps may overwrite each other, but every weight moved along its gradient.
            assert torch.isfinite(p).all() and ((old - p) * p.grad >= 0).all()
            assert not torch.equal(p.detach(), old)
        if name == "Adam":
            counts = {optimizer.state[p]["step"].item() for p in params}
            # A step may write its count after steps that began later: 39 of 40 were seen once.
            assert all(c.is_integer() and 1 <= c <= 4 * steps for c in counts), counts
            assert max(counts) >= steps / 2, counts
        optimizer.step()


@pytest.mark.parametrize("size", ["small", "large"])
def test_threads_with_one_optimizer(size: str) -> None:
    run("threads_with_one_optimizer", size)


def scenario_a_step_while_torch_works_in_other_threads() -> None:
    params = weights(LARGE)
    optimizer = gradstep.AdamW(params, lr=0.01)
    done = threading.Event()

    def multiply() -> None:
        x = torch.randn(300, 300, requires_grad=True)
        while not done.is_set():
            (x @ x).relu().sum().backward()

    def step() -> None:
        for _ in range(60):
            optimizer.step()
        done.set()

    start_threads([multiply, step])
    assert bits(params) == stepped("AdamW", LARGE, 60, lr=0.01)


def test_a_step_while_torch_works_in_other_threads() -> None:
    run("a_step_while_torch_works_in_other_threads")


def scenario_thread_count_changed_between_steps() -> None:
    params = weights(LARGE)
    optimizer = gradstep.Adam(params, lr=0.01)
    for count in (1, 2, 4, 1, 3, 8, 2, 1, 2):
        torch.set_num_threads(count)
        optimizer.step()
        optimizer.step()
    assert bits(params) == stepped("Adam", LARGE, 18, lr=0.01)


def test_thread_count_changed_between_steps() -> None:
    run("thread_count_changed_between_steps")


def scenario_control_c_in_the_middle_of_steps() -> None:
    """Interrupts at any moment of a step: the process survives them, and goes on."""
    params = weights(((1500, 1000), (1000, 1000)))
    optimizer = gradstep.Adam(params, lr=1e-4)
    optimizer.step()
    done = threading.Event()
    caught, stepping = 0, False

    def stop_a_step(*_: Any) -> None:
        """As Python's own handler, but silent outside of a step: there this file would stop."""
        nonlocal caught, stepping
        if stepping:
            caught, stepping = caught + 1, False
            raise KeyboardInterrupt

    def interrupt() -> None:
        while not done.is_set():
            time.sleep(0.013)
            _thread.interrupt_main()

    previous = signal.signal(signal.SIGINT, stop_a_step)
    thread = threading.Thread(target=interrupt)
    thread.start()
    began = time.monotonic()
    # For two seconds, and on a busy machine until there were enough interrupts.
    while (seconds := time.monotonic() - began) < 2 or (caught <= 10 and seconds < TIMEOUT / 2):
        try:
            stepping = True
            optimizer.step()
            stepping = False
        except KeyboardInterrupt:
            pass
    done.set()
    thread.join()
    signal.signal(signal.SIGINT, previous)
    assert caught > 10, caught
    assert all(torch.isfinite(p).all() for p in params)
    optimizer.step()


def test_control_c_in_the_middle_of_steps() -> None:
    run("control_c_in_the_middle_of_steps")


def scenario_a_step_at_exit() -> None:
    """Python's exit closes every pool of threads; a step still works."""
    params = weights(LARGE)
    optimizer = gradstep.Adam(params, lr=0.01)
    expected = stepped("Adam", LARGE, 4, lr=0.01)
    torch.set_num_threads(2)
    optimizer.step()

    def last() -> None:
        for _ in range(3):
            optimizer.step()
        print("the same" if bits(params) == expected else "another", flush=True)

    atexit.register(last)


def test_a_step_at_exit() -> None:
    assert run_anew("a_step_at_exit") == "the same"


def scenario_an_exit_while_a_daemon_thread_steps() -> None:
    params = weights(LARGE)
    optimizer = gradstep.Adam(params, lr=0.01)
    optimizer.step()

    def forever() -> None:
        while True:
            optimizer.step()

    threading.Thread(target=forever, daemon=True).start()
    time.sleep(0.3)


@pytest.mark.deep
def test_an_exit_while_a_daemon_thread_steps() -> None:
    run_anew("an_exit_while_a_daemon_thread_steps")


# Forks and spawns.


def scenario_fork_after_a_parallel_step() -> None:
    torch.set_num_threads(2)
    expected = {n: stepped("Adam", LARGE, n, lr=0.01) for n in (4, 6, 8)}
    small = stepped("RMSprop", SMALL, 9)
    params, others = weights(LARGE), weights(SMALL)
    optimizer, other = gradstep.Adam(params, lr=0.01), gradstep.RMSprop(others)
    optimizer.step()
    other.step()

    def steps(count: int) -> None:
        for _ in range(count):
            optimizer.step()

    steps(1)

    def child() -> None:
        assert threading.active_count() == 1
        steps(2)
        assert threading.active_count() == 2  # with a helper of its own
        assert bits(params) == expected[4]
        for _ in range(8):
            other.step()
        assert bits(others) == small

        def grandchild() -> None:
            steps(4)
            assert bits(params) == expected[8]
            threads = [lambda: gradstep.Lion(weights(SMALL)).step()] * 3
            start_threads(threads)

        in_child(grandchild)
        steps(2)
        assert bits(params) == expected[6]

    in_child(child)
    steps(2)
    assert bits(params) == expected[4]
    in_child(lambda: steps(1))
    steps(2)
    assert bits(params) == expected[6]


@forking
def test_fork_after_a_parallel_step() -> None:
    run("fork_after_a_parallel_step")


def scenario_fork_while_another_thread_steps() -> None:
    torch.set_num_threads(2)
    expected = stepped("SGD", LARGE, 3, seed=2)
    mine = weights(LARGE, 2)
    gradstep.SGD(weights(LARGE)).step()
    busy = gradstep.Adam(weights(LARGE, 3))
    done = threading.Event()

    def step() -> None:
        while not done.is_set():
            busy.step()

    thread = threading.Thread(target=step)
    thread.start()
    warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, about forks in threads

    def child() -> None:
        optimizer = gradstep.SGD(mine)
        for _ in range(3):
            optimizer.step()
        assert bits(mine) == expected

    try:
        for _ in range(25):
            in_child(child)
    finally:
        done.set()
        thread.join()


@forking
def test_fork_while_another_thread_steps() -> None:
    run("fork_while_another_thread_steps")


def scenario_first_step_in_a_child_after_parallel_work() -> None:
    """States begin without the threads of torch's pool, which a forked child waits for for ever."""
    torch.set_num_threads(2)
    torch.ones(LARGE[0]).add_(1)  # torch's pool has begun
    assert max(torch.Size(shape).numel() for shape in LARGE) > 32768  # in parallel from here on
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("Adam", {}),  # zeros
        ("Rprop", {}),  # zeros, and another number
        ("SGD", {"lr": 0.1, "momentum": 0.9}),  # zeros, without a step count
        ("SGDScheduleFree", {}),  # copies of weights
    ]
    for name, options in kinds:
        expected = stepped(name, LARGE, 2, **options)
        params = weights(LARGE, 1)
        optimizer = getattr(gradstep, name)(params, **options)

        def child(
            optimizer: Any = optimizer, params: Any = params, expected: str = expected
        ) -> None:
            optimizer.step()
            optimizer.step()
            assert torch.get_num_threads() == 2
            assert bits(params) == expected

        in_child(child)


@forking
def test_first_step_in_a_child_after_parallel_work() -> None:
    run("first_step_in_a_child_after_parallel_work")


def scenario_fork_while_another_thread_compiles() -> None:
    """LLVM's locks would stay taken in a child that has no such thread."""
    warnings.simplefilter("ignore", DeprecationWarning)
    gradstep.Adam(weights(SMALL), engine="eager").step()  # torch has first times of its own
    started = threading.Event()

    def compile_many() -> None:
        for number in range(25):
            factor = 1.0 + number / 64

            @gradstep.rule
            def scaled(g: Any, average: Any, *, w: Any) -> Any:
                average = gradstep.lerp(average, g * factor, 0.5)  # noqa: B023
                return gradstep.exp(average) + w, average

            params = weights(SMALL)
            optimizer = gradstep.Optimizer(params, scaled)
            started.set()
            optimizer.step()

    thread = threading.Thread(target=compile_many)
    thread.start()
    started.wait()
    names = iter(("Adam", "RMSprop", "Adagrad", "Lion", "SGD", "AdamW") * 5)
    forks = 0
    while thread.is_alive():
        name = next(names)
        in_child(lambda name=name: getattr(gradstep, name)(weights(SMALL)).step())
        forks += 1
    thread.join()
    assert forks > 1, forks


@forking
def test_fork_while_another_thread_compiles(tmp_path: Path) -> None:
    # No cache at all, so that everybody compiles.
    (tmp_path / "file").touch()
    run("fork_while_another_thread_compiles", GRADSTEP_CACHE_DIR=str(tmp_path / "file" / "no"))


def train_apart(
    optimizer: Any, params: list[nn.Parameter], gradients: list[Tensor], queue: Any
) -> None:
    """What a multiprocessing child does: goes on with its copy and says what came out."""
    torch.set_num_threads(2)
    for p, g in zip(params, gradients, strict=True):
        p.grad = g  # which no pickle has
    for _ in range(3):
        optimizer.step()
    queue.put(bits(params))


def scenario_multiprocessing(method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    torch.set_num_threads(1)
    for shapes in (SMALL, LARGE):
        expected = stepped("Adam", shapes, 5, lr=0.01)
        params = weights(shapes)
        optimizer = gradstep.Adam(params, lr=0.01)
        torch.set_num_threads(2)
        optimizer.step()
        optimizer.step()
        queue = context.Queue()
        # For spawn both are pickled, together, so that the optimizer holds these very weights.
        gradients = [p.grad for p in params]
        child = context.Process(target=train_apart, args=(optimizer, params, gradients, queue))
        before = bits(params)
        child.start()
        assert queue.get(timeout=TIMEOUT - 10) == expected
        child.join()
        assert child.exitcode == 0
        if method == "fork":
            assert bits(params) == before
        else:  # torch hands weights and states to a spawned child as shared memory
            assert bits(params) == expected
        optimizer.step()
        torch.set_num_threads(1)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    run("multiprocessing", method)


class Noise(torch.utils.data.Dataset[Tensor]):
    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Tensor:
        return torch.randn(600, generator=torch.Generator().manual_seed(index))


def scenario_a_loop_with_data_loader_workers() -> None:
    torch.set_num_threads(2)
    finals = []
    for workers in (0, 2):
        model = nn.Linear(600, 800)
        with torch.no_grad():
            model.weight.copy_(weights(((800, 600),))[0])
            model.bias.zero_()
        assert is_parallel([p.shape for p in model.parameters()])
        optimizer = gradstep.Adam(model.parameters(), lr=0.001)
        for _ in range(3):  # the workers of each epoch are forked after parallel steps
            loader = torch.utils.data.DataLoader(Noise(), batch_size=4, num_workers=workers)
            for batch in loader:
                optimizer.zero_grad()
                model(batch).square().mean().backward()
                optimizer.step()
        finals.append(bits(model.parameters()))
    assert finals[0] == finals[1]


def test_a_loop_with_data_loader_workers() -> None:
    run("a_loop_with_data_loader_workers")


def update_shared(params: list[nn.Parameter], own: int, steps: int, ready: Any) -> None:
    """Hogwild: a process that has gradients for one tensor and for the one that all share."""
    torch.set_num_threads(1)  # OpenMP, with which torch fills tensors, hangs in a forked child
    optimizer = gradstep.SGD(params, lr=0.0625)
    params[own].grad = torch.ones_like(params[own])
    params[2].grad = torch.ones_like(params[2])
    torch.set_num_threads(2)
    ready.wait()
    for _ in range(steps):
        optimizer.step()


def scenario_shared_memory(method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    params = [nn.Parameter(torch.zeros(s)) for s in ((700, 500), (700, 500), (50,))]
    for p in params:
        p.share_memory_()
    ready = context.Barrier(2)
    children = [
        context.Process(target=update_shared, args=(params, k, 64, ready)) for k in range(2)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    for p in params[:2]:
        assert torch.equal(p.detach(), torch.full_like(p, -4.0))
    # Both wrote this one: an update may get lost, and none is made up.
    assert ((params[2] <= -4.0) & (params[2] >= -8.0)).all()
    assert all(p.is_shared() for p in params)


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.deep)])
def test_shared_memory(method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    run("shared_memory", method)


# The cache on disk.


def trained() -> str:
    """The bits after some steps of SGD and Adam."""
    return stepped("SGD", SMALL, 5, lr=0.1) + " " + stepped("Adam", SMALL, 5, lr=0.1)


def scenario_train() -> None:
    print(trained())


@pytest.fixture(scope="module")
def right_bits() -> str:
    """What the scenario ``train`` prints, by the engine that has no kernels."""
    made = []
    for name in ("SGD", "Adam"):
        eager = stepped(name, SMALL, 5, lr=0.1, engine="eager")
        made.append(stepped(name, SMALL, 5, lr=0.1, engine="fused"))
        if name == "SGD":
            assert made[0] == eager
    return " ".join(made)


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.o"))


def test_the_environment_chooses_the_folder(tmp_path: Path, right_bits: str) -> None:
    chosen = tmp_path / "a" / "b"
    assert run("train", GRADSTEP_CACHE_DIR=str(chosen)) == right_bits
    assert len(entries(chosen)) >= 2
    assert not [f for f in chosen.iterdir() if f.suffix != ".o"]
    assert chosen.stat().st_mode & 0o777 == 0o700
    if sys.platform.startswith("linux"):
        places: dict[str, str | None] = {"GRADSTEP_CACHE_DIR": None, "XDG_CACHE_HOME": None}
        home, other = tmp_path / "home", tmp_path / "xdg"
        home.mkdir()
        assert run("train", **{**places, "HOME": str(home)}) == right_bits
        assert len(entries(home / ".cache" / "gradstep")) == len(entries(chosen))
        places = {**places, "HOME": str(home), "XDG_CACHE_HOME": str(other)}
        assert run("train", **places) == right_bits
        assert len(entries(other / "gradstep")) == len(entries(chosen))


def test_a_second_process_takes_the_kernels_from_the_cache(tmp_path: Path, right_bits: str) -> None:
    assert run("train", GRADSTEP_CACHE_DIR=str(tmp_path)) == right_bits
    before = {f.name: f.stat().st_mtime_ns for f in entries(tmp_path)}
    assert run_anew("train", GRADSTEP_CACHE_DIR=str(tmp_path)) == right_bits
    assert {f.name: f.stat().st_mtime_ns for f in tmp_path.iterdir()} == before


def scenario_start_together(expected: str) -> None:
    """Four processes make their first step at the same moment."""
    reader, writer = os.pipe()
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.close(writer)
                os.read(reader, 1)  # the start: the pipe is closed
                code = 0 if trained() == expected else 2
            finally:
                os._exit(code)
        children.append(child)
    os.close(writer)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * 4, codes


@forking
def test_processes_that_start_together_with_an_empty_cache(tmp_path: Path, right_bits: str) -> None:
    run("start_together", right_bits, GRADSTEP_CACHE_DIR=str(tmp_path))
    assert len(entries(tmp_path)) >= 2
    assert not [f for f in tmp_path.iterdir() if f.suffix != ".o"]
    before = {f.name: f.stat().st_mtime_ns for f in entries(tmp_path)}
    assert run("train", GRADSTEP_CACHE_DIR=str(tmp_path)) == right_bits
    assert {f.name: f.stat().st_mtime_ns for f in entries(tmp_path)} == before


def places_that_cannot_be_written(tmp_path: Path) -> list[str]:
    (tmp_path / "file").write_text("a file is no folder")
    places = [str(tmp_path / "file"), str(tmp_path / "file" / "below"), "/dev/null/gradstep"]
    if sys.platform.startswith("linux"):
        places.append("/proc/gradstep")
    return places


def test_a_folder_that_cannot_be_written(tmp_path: Path, right_bits: str) -> None:
    for place in places_that_cannot_be_written(tmp_path):
        assert run("train", GRADSTEP_CACHE_DIR=place) == right_bits
    assert (tmp_path / "file").read_text() == "a file is no folder"


def become(user: int) -> None:
    """Become another user, after all imports: what Python is made of may be root's alone."""
    gradstep.Adam(weights(SMALL))
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)


def scenario_train_as(user: str) -> None:
    become(int(user))
    scenario_train()


@as_root
def test_a_read_only_folder_of_somebody_else(tmp_path: Path, right_bits: str) -> None:
    for parent in (tmp_path, *tmp_path.parents):
        if not os.access(parent, os.X_OK) or not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    folder = tmp_path / "cache"
    assert run("train", GRADSTEP_CACHE_DIR=str(folder)) == right_bits
    folder.chmod(0o755)
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    assert run("train_as", 65534, GRADSTEP_CACHE_DIR=str(folder)) == right_bits
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before
    own = tmp_path / "own"
    own.mkdir()
    os.chown(own, 65534, 65534)
    own.chmod(0o500)  # their own, and yet not to be written
    assert run("train_as", 65534, GRADSTEP_CACHE_DIR=str(own)) == right_bits
    assert not list(own.iterdir())


@as_root
def test_no_home_directory(right_bits: str) -> None:
    nowhere: dict[str, str | None] = dict.fromkeys(
        ("HOME", "XDG_CACHE_HOME", "GRADSTEP_CACHE_DIR", "USER", "LOGNAME")
    )
    # A user without an entry in the password file, as in many containers.
    assert run("train_as", 54321, **nowhere) == right_bits


def test_a_home_that_does_not_exist(tmp_path: Path, right_bits: str) -> None:
    (tmp_path / "file").touch()
    home = {"HOME": str(tmp_path / "file" / "home"), "XDG_CACHE_HOME": None}
    assert run("train", GRADSTEP_CACHE_DIR=None, **home) == right_bits


def spoil(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def resealed(path: Path, change: Callable[[bytes], bytes], monkeypatch: Any) -> None:
    """Other content under the right name and with the right digest."""
    monkeypatch.setenv("GRADSTEP_CACHE_DIR", str(path.parent))
    content = kernel_cache.read(path.stem)
    assert content is not None
    kernel_cache.write(path.stem, change(content))


SPOILT: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "a byte short": lambda data: data[:-1],
    "a byte more": lambda data: data + b"\0",
    "header only": lambda data: data[:50],
    "a bit turned": lambda data: data[:-300] + bytes([data[-300] ^ 4]) + data[-299:],
    "digest turned": lambda data: data[:20] + bytes([data[20] ^ 1]) + data[21:],
    "noise": lambda data: hashlib.shake_256(b"noise").digest(len(data)),
    "noise behind the header": lambda data: data[:50] + hashlib.shake_256(b"n").digest(2000),
    "text": lambda data: b"404 not found",
}
#: What LLVM itself must refuse. A kernel of which only the insides are wrong is not among them: it
#: cannot be told from a right one, and with a right digest nobody but the owner can have made it.
RESEALED: dict[str, Callable[[bytes], bytes]] = {
    "nothing, sealed": lambda content: b"",
    "noise, sealed": lambda content: hashlib.shake_256(b"noise").digest(len(content)),
    "half a kernel, sealed": lambda content: content[: len(content) // 2],
    "a kernel's head, sealed": lambda content: content[:64],
    "text, sealed": lambda content: b"404 not found",
}


@pytest.mark.parametrize("how", [*SPOILT, *RESEALED])
def test_a_corrupt_entry_is_compiled_again(
    how: str, tmp_path: Path, right_bits: str, filled: Path, monkeypatch: Any
) -> None:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    for f in entries(filled):
        (folder / f.name).write_bytes(f.read_bytes())
        if how in SPOILT:
            spoil(folder / f.name, SPOILT[how])
        else:
            resealed(folder / f.name, RESEALED[how], monkeypatch)
    assert run("train", GRADSTEP_CACHE_DIR=str(folder)) == right_bits
    monkeypatch.setenv("GRADSTEP_CACHE_DIR", str(folder))
    for f in entries(filled):  # and the good kernel has taken its place
        assert (folder / f.name).read_bytes() == f.read_bytes()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, right_bits: str) -> Path:
    """A cache with the kernels of the scenario ``train``."""
    folder = tmp_path_factory.mktemp("filled")
    assert run("train", GRADSTEP_CACHE_DIR=str(folder)) == right_bits
    return folder


def scenario_climb() -> None:
    print(stepped("SGD", SMALL, 5, lr=0.1, maximize=True))


def scenario_descend() -> None:
    print(stepped("SGD", SMALL, 5, lr=0.1))


def scenario_descend_as(user: str) -> None:
    become(int(user))
    scenario_descend()


def kernels_of_one_alone(one: Path, other: Path) -> tuple[str, str]:
    """The names of the kernels that one cache has and another has not, one in each."""
    ours, theirs = ({entry.stem for entry in entries(folder)} for folder in (one, other))
    (mine,), (yours,) = ours - theirs, theirs - ours
    return mine, yours


@pytest.fixture
def poisoned(tmp_path: Path, monkeypatch: Any) -> tuple[Path, str, str]:
    """A cache whose kernel for descent climbs; and the bits of both."""
    folder, apart = tmp_path / "poisoned", tmp_path / "apart"
    climb = run("climb", GRADSTEP_CACHE_DIR=str(folder))
    descend = run("descend", GRADSTEP_CACHE_DIR=str(apart))
    climbing, descending = kernels_of_one_alone(folder, apart)
    monkeypatch.setenv("GRADSTEP_CACHE_DIR", str(folder))
    content = kernel_cache.read(climbing)
    assert content is not None
    kernel_cache.write(descending, content)
    assert climb != descend
    return folder, climb, descend


def test_a_folder_of_ones_own_is_trusted(poisoned: tuple[Path, str, str]) -> None:
    """The trap of the tests below works: this kernel is taken, and it is the wrong one."""
    folder, climb, _ = poisoned
    assert run("descend", GRADSTEP_CACHE_DIR=str(folder)) == climb


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702, 0o1777])
def test_a_folder_that_others_may_write_is_not_trusted(
    mode: int, poisoned: tuple[Path, str, str]
) -> None:
    folder, _, descend = poisoned
    folder.chmod(mode)
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    assert run("descend", GRADSTEP_CACHE_DIR=str(folder)) == descend
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before


@as_root
@pytest.mark.parametrize("owner", ["theirs, used by root", "root's, used by them"])
def test_a_folder_of_somebody_else_is_not_trusted(
    owner: str, poisoned: tuple[Path, str, str]
) -> None:
    folder, _, descend = poisoned
    if owner == "theirs, used by root":
        os.chown(folder, 65534, 65534)
        assert run("descend", GRADSTEP_CACHE_DIR=str(folder)) == descend
        return
    for parent in (folder, *folder.parents):
        if not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o055)
    assert run("descend_as", 65534, GRADSTEP_CACHE_DIR=str(folder)) == descend


def test_an_entry_under_another_name_is_no_other_kernel(
    poisoned: tuple[Path, str, str], tmp_path: Path
) -> None:
    _, climb, descend = poisoned
    folder = tmp_path / "renamed"
    assert run("climb", GRADSTEP_CACHE_DIR=str(folder)) == climb
    climbing, descending = kernels_of_one_alone(folder, tmp_path / "apart")
    (folder / f"{climbing}.o").rename(folder / f"{descending}.o")
    assert run("descend", GRADSTEP_CACHE_DIR=str(folder)) == descend


def scenario_many_kernels(folder: str) -> None:
    made = [0]
    for rule, options in (
        (gradstep.sgd, {}),
        (gradstep.sgd(momentum=0.9), {}),
        (gradstep.sgd(momentum=0.9, nesterov=True), {}),
        (gradstep.sgd(weight_decay=0.1), {}),
        (gradstep.sgd, {"maximize": True}),
        (gradstep.adam, {}),
    ):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            p = nn.Parameter(torch.ones(3, dtype=dtype))
            p.grad = torch.ones(3, dtype=dtype)
            gradstep.Optimizer([p], rule, lr=0.1, **options).step()
            made.append(len(entries(Path(folder))))
    assert all(later > earlier for earlier, later in itertools.pairwise(made)), made
    # Numbers make no kernels, nor do shapes.
    gradstep.SGD(weights(SMALL), lr=0.7, momentum=0.3).step()
    gradstep.Adam(weights(LARGE), lr=0.7, betas=(0.5, 0.6), eps=0.1).step()
    assert len(entries(Path(folder))) == made[-1]


@pytest.mark.deep
def test_names_depend_on_all_that_shapes_a_kernel(tmp_path: Path) -> None:
    run("many_kernels", tmp_path, GRADSTEP_CACHE_DIR=str(tmp_path))


if __name__ == "__main__":
    if sys.argv[1] == "-":
        help_out()
    else:
        globals()["scenario_" + sys.argv[1]](*sys.argv[2:])
