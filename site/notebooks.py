"""A notebook as a part of a page: its text, its code, and what that printed and drew.

The code is run once, in a process of its own, however many pages show it: the notebooks of both
languages have the same.
"""

from __future__ import annotations

import base64
import functools
import html
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
_MARK = re.compile(r"^<!-- the notebook (\S+) -->$", re.M)

# A cell's output: what it printed, the value of its last expression, the figures it showed.
_RUNNER = """
import ast, base64, contextlib, io, json, sys

import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot

figures = []

def show():
    for number in matplotlib.pyplot.get_fignums():
        buffer = io.BytesIO()
        matplotlib.pyplot.figure(number).savefig(buffer, format="png", dpi=110)
        figures.append(base64.b64encode(buffer.getvalue()).decode())
    matplotlib.pyplot.close("all")

matplotlib.pyplot.show = show
namespace, outputs = {"__name__": "__main__"}, []
for number, source in enumerate(json.load(sys.stdin)):
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    printed, value, figures[:] = io.StringIO(), None, []
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, f"cell {number}", "exec"), namespace)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), namespace)
    rich = getattr(value, "_repr_html_", None)
    outputs.append({
        "printed": printed.getvalue(),
        "html": rich() if rich is not None else "",
        "value": "" if value is None or rich is not None else repr(value),
        "figures": list(figures),
    })
json.dump(outputs, sys.stdout)
"""


@functools.cache
def outputs(sources: tuple[str, ...]) -> list[dict[str, Any]]:
    """What each cell of code puts out, when they are run one after the other.

    Raises:
        subprocess.CalledProcessError: a cell that fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", _RUNNER],
            input=json.dumps(sources),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def as_markdown(path: Path) -> str:
    """The notebook without its title, which the page has."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = tuple("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    shown = iter(outputs(sources))
    parts = []
    for cell in cells:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            text = re.sub(r"^# .*\n", "", text)
            parts.append(re.sub(r"\[(?:English|中文版?)\]\([^)]*\)", "", text).strip())
        else:
            parts += [f"```python\n{text}\n```", *_shown(next(shown))]
    return "\n\n".join(parts)


def _shown(output: dict[str, Any]) -> list[str]:
    parts = []
    text = (output["printed"] + output["value"]).rstrip()
    if text:
        parts.append(f"```text\n{text}\n```")
    if output["html"]:
        # A document of its own, so that neither's style reaches the other.
        inside = html.escape(output["html"], quote=True)
        parts.append(f'<iframe class="explanation" srcdoc="{inside}" title="explanation"></iframe>')
    for figure in output["figures"]:
        assert base64.b64decode(figure)
        parts.append(f'<img alt="figure" src="data:image/png;base64,{figure}">')
    return parts


def on_page_markdown(markdown: str, **_: Any) -> str:
    return _MARK.sub(lambda found: as_markdown(ROOT / found[1]), markdown)
