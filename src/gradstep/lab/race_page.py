"""The page of a race: one HTML file that holds everything and asks no one for anything.

``race_page.html`` is its frame, ``race_page.css`` its looks; ``race_page.js`` draws from the
numbers that lie in the page as JSON, ``race_page_surface.js`` moves the rules over their surfaces.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from gradstep.lab.colours import looks_of
from gradstep.lab.race import Entry, Result
from gradstep.lab.race_report import HEADER, MEASURES, Standing, cells, notes, standings
from gradstep.lab.surface import RATES, Surface

#: How many kinds of lines ``race_page.js`` has.
_DASHES = 7
_SCRIPTS = ("race_page.js", "race_page_surface.js")


def page(
    facts: Sequence[tuple[str, str]],
    results: Mapping[Entry, Result],
    rows: Sequence[Standing],
    surfaces: Sequence[Surface],
    remarks: Sequence[str],
) -> bytes:
    """The whole page.

    Args:
        facts: what was raced on what, as pairs of a word and its text.
        results: every run.
        rows: the final table.
        surfaces: the loss surfaces with their paths.
        remarks: what else a reader should know, as sentences.
    """
    frame, style = _file("race_page.html"), _file("race_page.css")
    script = "\n".join(map(_file, _SCRIPTS))
    parts = {
        # The browser itself then refuses whatever is not in the page.
        "policy": (
            "default-src 'none'; img-src data:; "
            f"script-src '{_source(script)}'; style-src '{_source(style)}'"
        ),
        "style": style,
        "script": script,
        "title": html.escape(_title([row.optimizer for row in rows])),
        "facts": "".join(
            f"<div><dt>{html.escape(word)}</dt><dd>{html.escape(text)}</dd></div>"
            for word, text in facts
        ),
        "rates": f"{len(RATES)} from {RATES[0]:g} to {RATES[-1]:g}",
        "table": _table(rows),
        "notes": "".join(f"<p>{html.escape(line)}</p>" for line in [*notes(rows), *remarks]),
        "data": _embedded(page_data(results, rows, surfaces)),
    }
    for name, text in parts.items():
        frame = frame.replace("{{" + name + "}}", text)
    return frame.encode()


def page_data(
    results: Mapping[Entry, Result], rows: Sequence[Standing], surfaces: Sequence[Surface]
) -> dict[str, Any]:
    """The numbers that the page draws: see the functions of ``race_page.js`` for their use."""
    ranks = {row.optimizer: row for row in rows}
    order = list(dict.fromkeys(entry.optimizer for entry in results))
    looks = looks_of(order, _DASHES)
    groups: dict[str, list[dict[str, Any]]] = {name: [] for name in order}
    for name, rates in standings(results).items():
        for own in rates:
            runs = [r for e, r in results.items() if (e.optimizer, e.lr) == (name, own.lr)]
            groups[name].append(
                {
                    "lr": own.lr,
                    "seeds": own.seeds,
                    "diverged": own.diverged,
                    "curves": curves(runs),
                    "final": {m: _band([r["final"][m] for r in runs]) for m in MEASURES},
                    "step": own.step_microseconds,
                }
            )
    return {
        "rules": [
            {"name": n, "look": looks[n], "best": ranks[n].lr, "rates": groups[n]} for n in order
        ],
        "steps_an_epoch": next(iter(results.values()))["steps_an_epoch"],
        "surfaces": [surface.to_json() for surface in surfaces],
    }


def curves(runs: Sequence[Result]) -> dict[str, Any]:
    """Over the runs of one rule at one rate, at each point: mean, lowest and highest of each
    measure, as far as all runs have a finite number there."""
    longest = max((run["steps"] for run in runs), key=len)
    found: dict[str, Any] = {"steps": longest}
    for measure in MEASURES:
        found[measure] = [
            _band([run[measure][i] if i < len(run["steps"]) else None for run in runs])
            for i in range(len(longest))
        ]
    return found


def _band(values: Sequence[float | None]) -> list[float] | None:
    """Mean, lowest and highest with five digits; None if one of them is none."""
    finite = [value for value in values if value is not None]
    if len(finite) < len(values):
        return None
    three = (math.fsum(finite) / len(finite), min(finite), max(finite))
    return [float(f"{value:.5g}") for value in three]


def _title(names: Sequence[str]) -> str:
    return f"Race of {len(names)} rules" if len(names) > 6 else "Race: " + ", ".join(names)


def _table(rows: Sequence[Standing]) -> str:
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in HEADER)
    body = "".join(
        f'<tr data-rule="{html.escape(row.optimizer)}">'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells(row))
        + "</tr>"
        for row in rows
    )
    return f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"


def _embedded(data: Any) -> str:
    """JSON that cannot end the element that it lies in."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _source(text: str) -> str:
    """The name by which a Content-Security-Policy allows this very script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _file(name: str) -> str:
    return files("gradstep.lab").joinpath(name).read_text(encoding="utf-8").strip()
