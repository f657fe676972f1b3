"""``gradstep rules``: the rules that there are."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any

#: The extent of a state -> what has one of it, in the words of a user.
_WHOSE = {"element": "weight", "row": "row", "column": "column", "number": "parameter"}


def add_parser(subparsers: Any) -> None:
    """Add the command to the tree."""
    parser = subparsers.add_parser(
        "rules",
        help="list the update rules",
        description=(
            "List the update rules: what each does to a weight, how much memory it needs, and the "
            "paper that it comes from."
        ),
        epilog="'gradstep explain RULE' tells more about one of them.",
    )
    parser.add_argument("--json", action="store_true", help="the same for programs, as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from gradstep.sight.ink import ink_for, tell

    if args.json:
        import json

        text = json.dumps([_record(name) for name in _names()], indent=2)
    else:
        text = "\n".join(_table(ink_for(sys.stdout)))
    return tell("gradstep rules", text)


def _names() -> list[str]:
    from gradstep.sight.catalogue import rule_names

    return rule_names()


def _record(name: str) -> dict[str, Any]:
    """All that is known of a rule."""
    from gradstep.rule.formula import formula, short_formula
    from gradstep.sight.catalogue import (
        find_rule,
        graph_with,
        is_stage,
        shaping_settings,
        state_bytes,
        states_along,
    )
    from gradstep.sight.description import describe_rule

    rule = find_rule(name)
    graph, description = graph_with(rule), describe_rule(rule)
    least, most = state_bytes(rule)
    return {
        "name": name,
        "kind": "stage" if is_stage(rule) else "rule",
        "summary": description.summary,
        "formula": short_formula(graph),
        "formula_lines": [str(line) for line in formula(graph).lines],
        "papers": list(description.papers),
        "state_bytes_float32": {"default": least, "most": most},
        "states_along": states_along(rule),
        "states": {
            n: {
                "one_for_each": _WHOSE[s.extent()],
                "starts_as": s.words(),
                "meaning": description.states.get(n, ""),
            }
            for n, s in rule.states.items()
        },
        "hyperparameters": {
            n: {
                "default": default,
                "allowed": str(rule.intervals[n]) if n in rule.intervals else None,
                "meaning": description.hyperparameters.get(n, ""),
            }
            for n, default in rule.hyperparameters.items()
        },
        "changes_formula": shaping_settings(rule),
    }


def _table(ink: Any) -> list[str]:
    records = [_record(name) for name in _names()]
    header = ("rule", "state", "settings that change the formula", "paper")
    rows = [
        (
            record["name"],
            _state(record),
            ", ".join(record["changes_formula"]) or "none",
            _short_papers(record["papers"]),
        )
        for record in records
    ]
    lines: list[str] = []
    for kind in ("rule", "stage"):
        own = [(r, row) for r, row in zip(records, rows, strict=True) if r["kind"] == kind]
        shown = [row for _, row in own] + [header] * (kind == "rule")
        widths = [max(len(row[i]) for row in shown) for i in range(len(header) - 1)]
        if kind == "rule":
            lines.append(ink.heading(_in_columns(header, widths)))
        else:
            lines += ["", ink.heading("stages, to stand before or behind a rule in a chain")]
        for record, row in own:
            lines += [_in_columns(row, widths), "    " + ink.code(record["formula"])]
    lines += [
        "",
        "g is the gradient, w the weight, lr the learning rate.",
        "state: bytes kept for each float32 weight; more where a setting adds a state. 'row' and",
        "'column' are a number for each row and each column of a matrix.",
        "'gradstep explain adam' explains a rule line by line.",
    ]
    return lines


def _in_columns(row: tuple[str, ...], widths: list[int]) -> str:
    return "  ".join([*(c.ljust(w) for c, w in zip(row[:-1], widths, strict=True)), row[-1]])


def _state(record: dict[str, Any]) -> str:
    found = record["state_bytes_float32"]
    least, most, along = found["default"], found["most"], record["states_along"]
    text = [f"{least} B" if least == most else f"{least} to {most} B"]
    return "+".join([*(text if most or not along else []), *along])


def _short_papers(papers: list[str]) -> str:
    """Authors and year of the first paper: what stands before its title."""
    found = re.match(r".*?\b[12]\d\d\d\b", papers[0]) if papers else None
    return found.group() if found else "none"
