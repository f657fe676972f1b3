"""``gradstep doctor``, as a person meets it: on the tutorial's script, whole and spoilt."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import forked
from gradstep.cli import main

EXAMPLE = Path(__file__).parents[1] / "examples" / "update_weights.py"


def in_a_process(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return forked.run(*arguments, cwd=cwd)


def doctor(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return in_a_process("-m", "gradstep", "doctor", *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The tutorial's script with zero_grad() deleted, and the line of its backward()."""
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if "optimizer.zero_grad()" not in line]
    assert len(kept) == len(lines) - 1
    path = tmp_path_factory.mktemp("doctor") / "forgetful.py"
    path.write_text("\n".join(kept) + "\n", encoding="utf-8")
    [line] = [i for i, text in enumerate(kept, 1) if "loss.backward()" in text]
    return path, line


@pytest.mark.deep
def test_the_tutorials_script_is_healthy() -> None:
    alone = in_a_process(str(EXAMPLE))
    watched = doctor("--strict", str(EXAMPLE))
    assert (watched.returncode, watched.stdout) == (0, alone.stdout)
    assert watched.stderr == ""
    assert "gradstep" not in EXAMPLE.read_text(encoding="utf-8").split('"""')[2]


@pytest.mark.deep
@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals here")
def test_a_person_is_told_that_nothing_was_found() -> None:
    person, terminal = os.openpty()
    command = [sys.executable, "-m", "gradstep", "doctor", str(EXAMPLE)]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=terminal, check=True, timeout=300)
    os.close(terminal)
    said = re.sub(r"\x1b\[[\d;]*m", "", os.read(person, 10_000).decode())
    os.close(person)
    assert said.strip() == f"gradstep doctor: nothing found in {EXAMPLE} (1 optimizer, 20 steps)"


def test_without_zero_grad_its_line_is_named(forgetful: tuple[Path, int]) -> None:
    path, line = forgetful
    alone = in_a_process(str(path))
    found = doctor(path.name, cwd=path.parent)
    assert (found.returncode, found.stdout) == (0, alone.stdout)
    first, empty, second, code, *rest = found.stderr.splitlines()
    assert first == "gradstep doctor: 1 mistake in forgetful.py (1 optimizer, 20 steps)"
    assert (empty, second) == ("", f"mistake: forgotten-zero-grad  forgetful.py:{line}")
    assert code == "    loss.backward()"
    assert [text[:9] for text in rest if text[2] != " "] == ["  seen:  ", "  why:   ", "  write: "]
    assert "fc3.bias" in " ".join(rest) and "optimizer.zero_grad()" in rest[-1]
    assert all(len(text) <= 100 for text in rest)


def test_strict_fails_and_json_tells_programs(forgetful: tuple[Path, int], tmp_path: Path) -> None:
    path, line = forgetful
    assert main(["doctor", "--strict", "--json", str(tmp_path / "out.json"), str(path)]) == 1
    told = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert told["exit_code"] == 0
    [finding] = told["findings"]
    assert (finding["name"], finding["severity"]) == ("forgotten-zero-grad", "mistake")
    assert (finding["file"], finding["line"], finding["step"]) == (str(path), line, 1)


CRASH = """\
import sys, torch
def train(model, optimizer):
    for step in range(4):
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
    raise RuntimeError("the disk is full")
model = torch.nn.Linear(3, 1)
print(sys.argv[1:], __name__, __file__)
train(model, torch.optim.SGD(model.parameters(), lr=0.01))
"""


@pytest.mark.deep
def test_a_crash_keeps_its_traceback_and_exit_code(tmp_path: Path) -> None:
    (tmp_path / "crash.py").write_text(CRASH, encoding="utf-8")
    alone = in_a_process("crash.py", "--strict", "a b", cwd=tmp_path)
    watched = doctor("crash.py", "--strict", "a b", cwd=tmp_path)
    assert alone.returncode == watched.returncode == 1
    assert watched.stdout == alone.stdout
    assert alone.stdout.startswith("['--strict', 'a b'] __main__ ")
    traceback, _, report = watched.stderr.partition("gradstep doctor: ")
    assert traceback == alone.stderr
    assert traceback.splitlines()[-1] == "RuntimeError: the disk is full"
    assert report.startswith("1 mistake in crash.py (1 optimizer, 4 steps)\n")
    assert "crash.py:4, in train\n" in report


@pytest.mark.parametrize(
    "ending, code, said",
    [
        ("sys.exit(7)", 7, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit('no data')", 1, "no data\n"),
        ("raise KeyboardInterrupt", 130, "KeyboardInterrupt"),
        ("x = = 1", 1, "SyntaxError"),
        ("import torch; torch.ones(2) @ torch.ones(3)", 1, "RuntimeError"),
    ],
)
def test_the_exit_code_is_the_scripts(
    ending: str, code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "ends.py"
    script.write_text(f"import sys\n{ending}\n", encoding="utf-8")
    assert main(["doctor", str(script)]) == code
    error = capsys.readouterr().err
    assert said in error
    assert "no optimizer made a step, so there was nothing to look at" in error
    assert "sight" not in error and "runpy" not in error  # no frame of ours


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["missing.py"], "there is no script missing.py"),
        (["--strict", "missing.py", "--lr", "1"], "there is no script missing.py"),
        (["."], ". is a folder; name a script in it"),
        (["--json", "no/such/folder.json", "x.py"], "argument --json: No such file or directory"),
        ([], "the following arguments are required: SCRIPT"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["doctor", *arguments])
    except SystemExit as error:
        code = int(str(error.code))
    captured = capsys.readouterr()
    assert code == 2 and captured.out == ""
    assert captured.err.startswith(f"gradstep doctor: {message}")
    assert captured.err.count("\n") == 1


def test_a_script_has_its_own_surroundings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "beside.py").write_text("answer = 42\n", encoding="utf-8")
    script = tmp_path / "own.py"
    script.write_text(
        "import pickle, sys, beside\n"
        "class Thing: pass\n"
        "assert isinstance(pickle.loads(pickle.dumps(Thing())), Thing)\n"
        "print(beside.answer, sys.argv, sys.modules['__main__'].Thing is Thing)\n",
        encoding="utf-8",
    )
    argv, path, modules = list(sys.argv), list(sys.path), sys.modules["__main__"]
    assert main(["doctor", str(script), "-x", "--", "y"]) == 0
    assert capsys.readouterr().out == f"42 {[str(script), '-x', '--', 'y']} True\n"
    assert (sys.argv, sys.path, sys.modules["__main__"]) == (argv, path, modules)
    del sys.modules["beside"]


def test_help_tells_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("--strict", "--json", "examples:", "SCRIPT"))


BY_HAND = """\
import multiprocessing, os, torch
w = torch.randn(3, 2, requires_grad=True)
def elsewhere():
    os._exit(0)
for _ in range(5):
    (torch.randn(4, 3) @ w).square().mean().backward()
    with torch.no_grad():
        w -= 0.1 * w.grad
    w.grad = None
"""
PROCESSES = """\
    multiprocessing.get_context("fork").Process(target=elsewhere).start()
"""


def test_loops_by_hand_are_seen_and_other_processes_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "hand.py"
    script.write_text(BY_HAND, encoding="utf-8")
    assert main(["doctor", "--strict", str(script)]) == 0
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.startswith("gradstep doctor: nothing found in ")
    assert first.endswith("(no optimizer; weights that are moved by hand)") and not rest
    lines = BY_HAND.replace("    w.grad = None\n", PROCESSES)
    script.write_text(lines, encoding="utf-8")
    assert main(["doctor", "--strict", str(script)]) == 1
    told = capsys.readouterr().err
    assert "1 mistake" in told and f"forgotten-zero-grad  {script}:6" in told
    assert "the script started 5 processes of which nothing was seen" in " ".join(told.split())


SPAWNS = """\
import sys, torch, torch.multiprocessing as mp
def train(rank):
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(4):
        if rank == 0:
            optimizer.zero_grad()
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
    print("rank", rank, flush=True)
    if rank == 2:
        raise RuntimeError("the disk is full")
if __name__ == "__main__":
    context = mp.get_context(sys.argv[1])
    processes = [context.Process(target=train, args=(i,)) for i in range(3)]
    for process in processes:
        process.start()
        process.join()
    print([process.exitcode for process in processes])
"""


@pytest.mark.parametrize("method", [pytest.param("spawn", marks=pytest.mark.deep), "fork"])
def test_processes_that_a_script_starts_are_watched_there(method: str, tmp_path: Path) -> None:
    (tmp_path / "spawns.py").write_text(SPAWNS, encoding="utf-8")
    alone = in_a_process("spawns.py", method, cwd=tmp_path)
    watched = doctor("--json", "found.json", "spawns.py", method, cwd=tmp_path)
    assert watched.returncode == alone.returncode == 0
    assert watched.stdout == alone.stdout and watched.stdout.endswith("[0, 0, 1]\n")
    own, _, report = watched.stderr.partition("gradstep doctor: ")
    number = re.compile(r"Process-[\d:]+")
    if sys.version_info < (3, 11):  # which shows the frame that has raised again
        own = re.sub(r'  File "\S+/sight/mistakes/script\.py", .*\n.*\n', "", own)
    assert number.sub("", own) == number.sub("", alone.stderr)  # the traceback of the third
    report = " ".join(report.split())
    assert report.startswith(
        "1 mistake in spawns.py (3 optimizers, 12 steps, with 3 processes that it started)"
    )
    assert "forgotten-zero-grad spawns.py:8, in train" in report
    assert re.search(r"in between \(in \S*Process-\S+, \S*Process-\S+\) why:", report)
    assert len(json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["findings"]) == 1


CATCHES = """\
import torch, traceback
class Bad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()
    @staticmethod
    def backward(ctx, g):
        raise ValueError("no slope")
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
try:
    Bad.apply(model(torch.ones(2, 3))).sum().backward()
except ValueError:
    traceback.print_exc()
def closure():
    raise KeyError("inside")
try:
    optimizer.step(closure)
except KeyError as error:
    print("".join(traceback.format_exception(error)))
try:
    torch.nn.utils.clip_grad_norm_(model.parameters(), "much")
except Exception:
    traceback.print_exc()
"""


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 keeps a traceback of its own")
def test_tracebacks_that_a_script_prints_have_no_frame_of_ours(tmp_path: Path) -> None:
    (tmp_path / "catches.py").write_text(CATCHES, encoding="utf-8")
    alone = in_a_process("catches.py", cwd=tmp_path)
    watched = doctor("catches.py", cwd=tmp_path)
    assert watched.stdout == alone.stdout and "inside" in alone.stdout
    assert watched.stderr.partition("gradstep doctor: ")[0] == alone.stderr
    assert "no slope" in alone.stderr


ALIKE = """\
import torch, warnings
model = torch.nn.ModuleList(torch.nn.Linear(3, 1) for _ in range(4))
optimizers = [torch.optim.SGD(m.parameters(), lr=0.01) for m in model]
schedulers = [torch.optim.lr_scheduler.StepLR(o, 10) for o in optimizers]
for step in range(4):
    sum(m(torch.ones(2, 3)).sum() for m in model).backward()
    if step == 0:
        schedulers[0].step(), warnings.warn("Note")
    for optimizer in optimizers:
        optimizer.step()
    for scheduler in schedulers:
        scheduler.step()
try:
    raise KeyError("inside")
except KeyError as error:
    raise ValueError("outside") from error
"""


def test_a_finding_is_told_once_a_line_and_warnings_name_the_scripts_own(tmp_path: Path) -> None:
    (tmp_path / "alike.py").write_text(ALIKE, encoding="utf-8")
    alone = in_a_process("alike.py", cwd=tmp_path)
    watched = doctor("alike.py", cwd=tmp_path)
    own, _, report = watched.stderr.partition("gradstep doctor: ")
    assert own == alone.stderr  # the warning at line 8, and both tracebacks
    assert "alike.py:8: UserWarning: Note" in own and "KeyError" in own
    assert report.count("forgotten-zero-grad  alike.py:6") == 1
    assert "and 3 more like this at this line" in " ".join(report.split())


IN_RANKS = """\
import os, sys, torch
rank = int(os.environ["RANK"])
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for step in range(4):
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    if rank == 1:
        optimizer.step()
if rank == 0 and "fail" in sys.argv:
    sys.exit(3)
"""


def in_ranks(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "ranks.py").write_text(IN_RANKS, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "gradstep", "doctor", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.mark.deep
def test_under_torchrun_one_process_reports_what_all_have_seen(tmp_path: Path) -> None:
    ran = in_ranks(tmp_path, "--json", "found.json", "ranks.py")
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("gradstep doctor: 2 mistakes in ranks.py") == 1
    assert ran.stderr.count("(2 optimizers, 12 steps in 2 ranks together)") == 1
    told = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["findings"]
    seen = {finding["name"]: finding["seen"] for finding in told}
    assert set(seen) == {"forgotten-zero-grad", "step-twice"} and len(told) == 2
    assert seen["step-twice"].endswith("(in rank 1)")
    assert "rank" not in seen["forgotten-zero-grad"]


@pytest.mark.deep
def test_a_rank_that_fails_waits_for_nobody(tmp_path: Path) -> None:
    ran = in_ranks(tmp_path, "ranks.py", "fail")
    assert ran.returncode != 0
    assert len(re.findall(r"gradstep doctor: \d mistakes? in ranks.py", ran.stderr)) == 1
