"""The notebooks in examples/: they run from top to bottom; both languages show the same code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
ENGLISH = EXAMPLES / "01_update_weights.ipynb"
CHINESE = EXAMPLES / "01_update_weights.zh-CN.ipynb"

# What a notebook does: cell after cell in one namespace, the value of a last expression shown. A
# cell that fails ends it, with the number of the cell.
RUNNER = """
import ast, json, sys

namespace = {"__name__": "__main__"}
for number, source in enumerate(json.load(sys.stdin)):
    print(f"[cell {number}]", flush=True)
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, f"cell {number}", "exec"), namespace)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), namespace)
        if value is not None:
            show = getattr(value, "_repr_html_", None)
            print(show() if show is not None else repr(value))
"""


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def sources(path: Path, kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in read(path)["cells"] if cell["cell_type"] == kind]


def test_both_languages_have_the_same_code_and_their_own_text() -> None:
    english, chinese = read(ENGLISH), read(CHINESE)
    assert sources(ENGLISH, "code") == sources(CHINESE, "code")
    kinds = [[cell["cell_type"] for cell in book["cells"]] for book in (english, chinese)]
    assert kinds[0] == kinds[1]
    for one, other in zip(sources(ENGLISH, "markdown"), sources(CHINESE, "markdown"), strict=True):
        assert not re.search(r"[\u4e00-\u9fff]", one.replace("中文版", ""))
        assert re.search(r"[\u4e00-\u9fff]", other)
        assert one.count("`") == other.count("`") and one.count("\n") == other.count("\n")


@pytest.mark.parametrize("path", [ENGLISH, CHINESE], ids=lambda path: path.name)
def test_a_notebook_is_of_the_format_and_holds_no_outputs(path: Path) -> None:
    book = read(path)
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"]) > 20
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
    links = re.findall(r"\]\(([^)]+)\)", "\n".join(sources(path, "markdown")))
    assert links and all((EXAMPLES / link).exists() for link in links)


def test_every_cell_runs_and_tells_what_the_text_says(tmp_path: Path) -> None:
    """The code of both, since it is the same: in one fresh process, away from the repository."""
    result = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps(sources(ENGLISH, "code")),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    said = result.stdout
    assert f"[cell {len(sources(ENGLISH, 'code')) - 1}]" in said
    assert "61,706 weights" in said
    assert "conv1.bias.grad before backward: None" in said

    arithmetic = re.search(r"(-?[\d.]+) − (-?[\d.]+) · (-?[\d.]+) = (-?[\d.]+)", said)
    assert arithmetic is not None
    weight, gradient, lr, after = map(float, arithmetic.groups())
    assert abs(weight - gradient * lr - after) < 1.5e-4  # four digits of each

    apart = [float(text) for text in re.findall(r"largest difference.*: (\S+)", said)]
    assert len(apart) == 3 and all(difference < 1e-6 for difference in apart)

    once, twice, cleared = (
        float(text)
        for text in re.findall(r"(?:backward number \d|and backward): +(-?[\d.]+)", said)
    )
    assert abs(twice - 2 * once) < 2e-4 and cleared == once

    rights = dict(re.findall(r"^(SGD|momentum|Adam) .* ([\d.]+)% right", said, flags=re.M))
    assert set(rights) == {"SGD", "momentum", "Adam"}
    assert float(rights["Adam"]) > 85

    assert "exp_avg_sq" in said and "exp_avg" in said
    written = re.search(r"fc1\.weight\[3, 7\] is now (\S+)", said)
    assert written is not None
    after = re.search(r"weight after +(\S+) +\(what step\(\) wrote, bit for bit\)", said)
    assert after is not None
    printed = numpy.float32(after.group(1).replace("−", "-"))
    assert printed == numpy.float32(float(written.group(1)))
    assert "w − lr·direction</code>" in said  # the last expression of a cell shows itself as HTML


def test_a_jupyter_kernel_runs_them_and_shows_the_explanation(tmp_path: Path) -> None:
    """The Chinese one, with Jupyter's own kernel and client, where these are installed."""
    for package in ("ipykernel", "nbclient", "nbformat"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    import nbclient
    import nbformat

    book = nbformat.read(CHINESE, as_version=4)
    nbformat.validate(book)
    nbclient.NotebookClient(book, timeout=120, resources={"metadata": {"path": tmp_path}}).execute()
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    shown = next(cell for cell in cells if cell.source == "explanation").outputs[0]["data"]
    assert "fc1.weight[3, 7]: step 136 of Adam" in shown["text/html"]
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)


def test_a_cell_that_fails_would_be_noticed() -> None:
    result = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps(["x = 1", "x.y"]),
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0 and "AttributeError" in result.stderr
