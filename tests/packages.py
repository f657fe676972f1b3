"""``make test-package``: the wheel in empty environments of every Python, where it trains.

Each environment has nothing but the wheel and what it asks for. It is made in ``.venv-packages``
and taken away again, since torch for Linux brings CUDA along, some 6 GB. A Python that is not on
this machine is named at the end, and left out.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from versions import ROOT, find_python

ENVIRONMENTS = ROOT / ".venv-packages"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def newest_wheel(folder: Path) -> Path:
    """The wheel that was built last.

    Raises:
        FileNotFoundError: there is none.
    """
    found = sorted(folder.glob("gradstep-*.whl"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(f"{folder} has no wheel of gradstep: make package")
    return found[-1]


def version_of(wheel: Path) -> str:
    """The version that a wheel's name says."""
    return wheel.name.split("-")[1]


def try_out(python: str, environment: Path, wheel: Path) -> str:
    """What is wrong with the wheel in that empty environment; nothing where all is well."""
    inside = environment / "bin" / "python"
    command = environment / "bin" / "gradstep"
    out = environment / "run"
    # From another folder than the clone's: what is imported is what the wheel brought.
    for words in (
        [python, "-m", "venv", "--clear", environment],
        [inside, "-m", "pip", "install", "--quiet", "--no-cache-dir", f"{wheel}[lab]"],
        [inside, "-m", "pip", "check"],
        [command, "update"],
        [command, "train", "--epochs", "1", "--train-limit", "256", "--out", out],
    ):
        done = subprocess.run(
            list(map(str, words)), cwd=environment.parent, capture_output=True, text=True
        )
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()[-8:]
            return "\n".join([" ".join(map(str, words)), *said])
    said = subprocess.run(
        [command, "--version"], cwd=environment.parent, capture_output=True, text=True
    ).stdout.split()
    if said[1:2] != [version_of(wheel)]:
        return f"gradstep --version says {' '.join(said)}, the wheel is {wheel.name}"
    if not (out / "curves.png").is_file():
        return "gradstep train left no curves.png"
    return ""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pythons", nargs="*", metavar="VERSION", help=f"of {', '.join(PYTHONS)}")
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="the folder of the wheel")
    chosen = parser.parse_args(arguments)
    wheel = newest_wheel(chosen.dist).resolve()
    ENVIRONMENTS.mkdir(exist_ok=True)
    rows, failed, ran = [], 0, 0
    for version in chosen.pythons or PYTHONS:
        python = find_python(version)
        if python is None:
            rows.append(f"{version}: not run, this machine has no Python {version}")
            continue
        print(f"{wheel.name} on Python {version} ...", flush=True)
        environment = ENVIRONMENTS / version
        try:
            wrong = try_out(python, environment, wheel)
        finally:
            shutil.rmtree(environment, ignore_errors=True)
        ran += 1
        failed += bool(wrong)
        rows.append(f"{version}: FAILED\n{wrong}" if wrong else f"{version}: installs and trains")
    print("", *rows, sep="\n")
    return 1 if failed or not ran else 0


if __name__ == "__main__":
    sys.exit(main())
