"""``make test-versions``: the quick tests with the lowest and the newest of all that is declared.

Each combination has an environment of its own in ``.venv-versions``, which is made once and used
again; torch for Linux comes with CUDA there, some 6 GB each. A Python that is not on this machine
is named at the end, and left out.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

try:
    import tomllib
except ImportError:  # Python 3.10
    try:
        import tomli as tomllib  # which pytest brings there
    except ImportError:  # pip's own; in a process of tests it would bring a distutils of its own
        from pip._vendor import tomli as tomllib

ROOT = Path(__file__).parent.parent
ENVIRONMENTS = ROOT / ".venv-versions"
#: A Python, and which releases of all else.
COMBINATIONS = ("3.10-lowest", "3.10-newest", "3.11-newest", "3.12-newest", "3.13-newest")
#: What `make test` runs, but for the tests that measure time.
QUICK = ["-m", "not deep and not alone", "-n", "2", "--dist", "worksteal"]
#: What a combination's row says of it.
SHOWN = """
import sys, torch, numpy, numba, llvmlite
print("Python " + sys.version.split()[0], *(
    f"{m.__name__} {m.__version__}" for m in (torch, numpy, numba, llvmlite)), sep=", ")
"""


def declared() -> list[str]:
    """The requirements of the package and of its tests, as pyproject.toml has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    found = [*project["dependencies"], *extras["cuda"], *extras["lab"], *extras["test"]]
    return [r for r in found if not r.startswith("gradstep")]


def lowest() -> list[str]:
    """A pin of each requirement to its lowest release.

    Raises:
        ValueError: a requirement that declares none.
    """
    pins = []
    for requirement in declared():
        match = re.fullmatch(r"([\w.-]+)>=([\w.]+)(;.*)?", requirement)
        if match is None:
            raise ValueError(f"pyproject.toml: {requirement!r} declares no lowest release")
        pins.append(f"{match[1]}=={match[2]}{match[3] or ''}")
    return pins


def find_python(version: str) -> str | None:
    """A Python of this version, such as ``"3.12"``, wherever it usually is."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    named = [sys.executable, shutil.which(f"python{version}")]
    for path in [*named, *sorted(map(str, pyenv.glob(f"{version}.*/bin/python")), reverse=True)]:
        said = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
        if path and _output([path, "-c", said]) == version:
            return path
    return None


def prepare(name: str, python: str) -> str:
    """The Python of a combination's environment, which is made unless it is there."""
    folder = ENVIRONMENTS / name
    inside, stamp = str(folder / "bin" / "python"), folder / "installed.txt"
    pins = lowest() if name.endswith("-lowest") else []
    wanted = "\n".join([*declared(), *pins])
    if stamp.is_file() and stamp.read_text() == wanted:
        return inside
    subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
    install = [inside, "-m", "pip", "install", "--quiet", "--editable", f"{ROOT}[test]"]
    if pins:
        constraints = folder / "lowest.txt"
        constraints.write_text("\n".join(pins))
        install += ["--constraint", str(constraints)]
    subprocess.run(install, check=True)
    stamp.write_text(wanted)
    return inside


def _output(command: list[Any]) -> str:
    """What a command prints; nothing where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(COMBINATIONS)}")
    parser.add_argument(
        "--python",
        help="run in this Python's environment as it is, which has all that the tests need",
    )
    parser.add_argument("--tests", default="tests", help="what pytest is given (default: tests)")
    chosen = parser.parse_args(arguments)
    for name in chosen.names:
        if name not in COMBINATIONS:
            parser.error(f"no combination {name!r}; choose of {', '.join(COMBINATIONS)}")
    rows, failed = [], 0
    names = ("as it is",) if chosen.python else chosen.names or COMBINATIONS
    for name in names:
        version = name.split("-")[0]
        python = chosen.python or find_python(version)
        if python is None:
            rows.append(f"{name}: not run, this machine has no Python {version}")
            continue
        print(f"{name} ...", flush=True)
        try:
            python = chosen.python or prepare(name, python)
        except subprocess.CalledProcessError as error:
            failed += 1
            rows.append(f"{name}: could not be installed ({error})")
            continue
        run = subprocess.run([python, "-m", "pytest", *QUICK, *chosen.tests.split()], cwd=ROOT)
        failed += run.returncode != 0
        result = "passed" if run.returncode == 0 else "FAILED"
        rows.append(f"{name}: {result} with {_output([python, '-c', SHOWN])}")
    print("", *rows, sep="\n")
    return 1 if failed or all("not run" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
