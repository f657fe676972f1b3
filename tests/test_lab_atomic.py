"""Files that are whole or not there, and folders held by one process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gradstep.lab.atomic import DirectoryInUse, held_alone, is_unfinished, write_atomically


def test_it_writes_and_writes_over(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"one")
    assert path.read_bytes() == b"one"
    write_atomically(path, b"two and more")
    assert path.read_bytes() == b"two and more"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from gradstep.lab.atomic import write_atomically

def watch(event, details):
    if event == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
write_atomically(Path(sys.argv[1]), b"new" * 1_000_000)
"""


def test_a_process_killed_before_the_renaming_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    run = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(path), "os.rename"])
    assert run.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    (left,) = (p for p in tmp_path.iterdir() if p != path)
    assert is_unfinished(left)
    write_atomically(path, b"newer")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_error_leaves_what_was_there_and_nothing_besides(tmp_path: Path) -> None:
    folder = tmp_path / "taken"
    folder.mkdir()
    (folder / "something").touch()
    with pytest.raises(OSError):
        write_atomically(folder, b"a file cannot take a folder's place")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "nowhere" / "file", b"")


def test_only_its_own_leavings_count_as_unfinished() -> None:
    assert is_unfinished(Path("somewhere/.run.json.unfinished"))
    assert not is_unfinished(Path("somewhere/run.json"))
    assert not is_unfinished(Path("somewhere/.hidden"))
    assert not is_unfinished(Path("somewhere/run.unfinished"))


HOLD = """
import sys
from pathlib import Path
from gradstep.lab.atomic import held_alone

with held_alone(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_held_by_one_process_until_it_ends_however_it_ends(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(DirectoryInUse), held_alone(tmp_path):
        pass
    os.kill(other.pid, signal.SIGKILL)
    other.communicate()
    with held_alone(tmp_path):
        pass
