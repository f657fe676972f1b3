"""`make test-versions` knows the lowest releases that are declared, and says what it left out."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import versions


def test_every_requirement_declares_its_lowest_release() -> None:
    pins = versions.lowest()
    assert len(pins) == len(versions.declared()) > 8
    assert {"torch", "numpy", "numba", "pytest"} <= {pin.split("==")[0] for pin in pins}


@pytest.mark.parametrize("requirement", ["torch", "torch<3", "torch==2.13.0", "torch>=2.6,<3"])
def test_a_requirement_without_one_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, requirement: str
) -> None:
    (tmp_path / "pyproject.toml").write_text(
        f'[project]\ndependencies = ["{requirement}"]\n'
        '[project.optional-dependencies]\ncuda = []\nlab = []\ntest = ["gradstep[lab]"]\n'
    )
    monkeypatch.setattr(versions, "ROOT", tmp_path)
    with pytest.raises(ValueError, match=f"{requirement!r} declares no lowest release"):
        versions.lowest()


def test_a_python_is_of_the_version_that_was_asked_for() -> None:
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert versions.find_python(own) == sys.executable
    assert versions.find_python("3.99") is None


def test_a_python_that_is_missing_is_said_and_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(versions, "COMBINATIONS", ("3.99-newest",))
    assert versions.main([]) == 1
    assert "3.99-newest: not run, this machine has no Python 3.99" in capsys.readouterr().out


@pytest.mark.deep
def test_an_environment_as_it_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Run for real: what it says of the tests is what pytest said."""
    for text, result in (("assert True", "passed"), ("assert False", "FAILED")):
        file = tmp_path / "test_one.py"
        file.write_text(f"def test_it():\n    {text}\n")
        code = versions.main(["--python", sys.executable, "--tests", f"{file} -p no:cacheprovider"])
        assert code == (result == "FAILED")
        said = capfd.readouterr().out
        assert f"as it is: {result} with Python {sys.version.split()[0]}, torch 2" in said


def test_an_unknown_combination_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        versions.main(["3.10-oldest"])
    assert "no combination '3.10-oldest'; choose of 3.10-lowest" in capsys.readouterr().err
