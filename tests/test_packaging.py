"""The packages: what their metadata say, and a wheel that is built, installed and trains."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import PackageNotFoundError, metadata, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet

import gradstep
import packages
from versions import ROOT, tomllib

PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NEWEST = re.findall(r"^## (\d+\.\d+\.\d+) \((.+)\)$", (ROOT / "CHANGELOG.md").read_text(), re.M)[0]


def said(*command: Any, folder: Path = ROOT) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=folder, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_version_is_the_installed_one() -> None:
    assert gradstep.__version__ == version("gradstep")
    assert "__version__" in dir(gradstep)


def test_sources_that_are_not_installed_say_so(tmp_path: Path) -> None:
    """Without a finder of installed packages, as where only PYTHONPATH names the sources."""
    code = (
        "import sys, importlib.metadata as m, gradstep\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if not hasattr(f, 'find_distributions')]\n"
        "print(gradstep.__version__)"
    )
    assert said(sys.executable, "-c", code, folder=tmp_path).strip() == "0+unknown"


def test_the_version_without_tags_is_the_one_that_the_changelog_is_about() -> None:
    hatch = PYPROJECT["tool"]["hatch"]["version"]
    assert hatch["fallback-version"] == hatch["raw-options"]["fallback_version"]
    assert hatch["fallback-version"].split(".dev")[0] == NEWEST[0]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {NEWEST[0]}\n" in citation
    assert f"\nlicense: {PYPROJECT['project']['license']}\n" in citation


def test_all_that_is_declared_is_there() -> None:
    sdist = PYPROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    project = PYPROJECT["project"]
    named = [*sdist, project["readme"], *project["license-files"]]
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert callable(__import__("gradstep.cli", fromlist=["main"]).main)
    assert project["scripts"] == {"gradstep": "gradstep.cli:main"}


def test_the_pythons_are_the_same_everywhere() -> None:
    classifiers = PYPROJECT["project"]["classifiers"]
    declared = re.findall(r"Python :: (3\.\d+)", "\n".join(classifiers))
    assert declared == list(packages.PYTHONS)
    assert PYPROJECT["project"]["requires-python"] == f">={declared[0]}"
    workflow = (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    (row,) = re.findall(r"^ +python: \[(.*)\]$", workflow, re.M)
    assert row == ", ".join(f'"{p}"' for p in declared)


def test_every_extra_is_pinned_where_it_is_installed() -> None:
    """What `make docs` and `make package` install has its version in the constraints."""
    files = ("constraints.txt", "constraints-docs.txt")
    text = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in files)
    pinned = set(re.findall(r"^([\w.-]+)==", text, re.M))
    pinned = {name.lower().replace("_", "-") for name in pinned}
    extras = PYPROJECT["project"]["optional-dependencies"]
    named = [re.match(r"[\w.-]+", r) for extra in ("docs", "package") for r in extras[extra]]
    names = {m[0].lower().replace("_", "-") for m in named if m} - {"gradstep"}
    assert sorted(names - pinned) == []


@pytest.mark.deep
@pytest.mark.slow
@pytest.mark.skipif(
    not (find_spec("build") and find_spec("twine")), reason="needs pip install '.[package]'"
)
def test_the_wheel_is_built_installed_and_trains(tmp_path: Path) -> None:
    """From the sdist, as whoever has no clone builds it.

    In an environment whose other packages are this one's; `make test-package` has empty ones.
    """
    dist = tmp_path / "dist"
    said(sys.executable, "-m", "build", "--outdir", dist, ROOT)
    wheel = packages.newest_wheel(dist)
    (sdist,) = dist.glob("*.tar.gz")
    assert packages.version_of(wheel) in sdist.name
    checked = said(sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir())
    assert checked.count("PASSED") == 2

    names = set(zipfile.ZipFile(wheel).namelist())
    ours = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src" / "gradstep").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {n for n in names if n.startswith("gradstep/")} == ours
    with tarfile.open(sdist) as archive:
        inside = {n.partition("/")[2] for n in archive.getnames()}
    assert {"PKG-INFO", "tests/test_packaging.py", "docs/index.md", "mkdocs.yml"} <= inside

    environment = tmp_path / "environment"
    said(sys.executable, "-m", "venv", "--system-site-packages", environment)
    python = environment / "bin" / "python"
    said(python, "-m", "pip", "install", "--no-deps", "--force-reinstall", wheel)
    (own,) = environment.glob("lib/python*/site-packages")
    others = [p for p in sys.path if p.endswith("site-packages")]
    (own / "others.pth").write_text("\n".join(others))
    where = said(python, "-c", "import gradstep; print(gradstep.__file__)", folder=tmp_path)
    assert Path(where.strip()).is_relative_to(own)
    command = environment / "bin" / "gradstep"
    version_said = said(command, "--version", folder=tmp_path)
    assert version_said.split() == ["gradstep", packages.version_of(wheel)]
    out = tmp_path / "run"
    said(command, "train", "--epochs", "1", "--train-limit", "128", "--out", out, folder=tmp_path)
    assert (out / "curves.png").is_file()
    assert "zero_grad()" in said(command, "update", folder=tmp_path)


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-docs.txt"])
def test_what_needs_a_newer_python_is_pinned_for_that_alone(name: str) -> None:
    """A pin that the lowest Python has no release for would leave it without an installation."""
    rows = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pins = [row.partition("==")[0] for row in rows if "==" in row and ";" not in row]
    asked = {}
    for pin in pins:
        with contextlib.suppress(PackageNotFoundError):
            asked[pin] = str(metadata(pin)["Requires-Python"])
    lowest = packages.PYTHONS[0]
    assert {pin: asked[pin] for pin in asked if lowest not in SpecifierSet(_asks(asked[pin]))} == {}
    assert len(asked) > 10 or name != "constraints.txt"


def _asks(requires: str) -> str:
    return "" if requires == "None" else requires
