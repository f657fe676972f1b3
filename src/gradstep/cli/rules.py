"""``gradstep rules``: the rules that there are."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from gradstep.cli import arguments

#: Columns of the table: all together, and to which width the first three are padded.
_WIDTH = 100
_MOST_PADDING = (19, 14, 32)
_WIDTH = 100


def _few(names: list[str], room: int) -> str:
    """As many names as there is room for; the others are on the rule's page."""
    shown = ", ".join(names)
    while len(shown) > room:
        names = names[:-1]
        shown = ", ".join([*names, "…"])
    return shown


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
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="the same for programs, as JSON")
    form.add_argument("--markdown", action="store_true", help="the same as tables in Markdown")
    form.add_argument(
        "--memory",
        action="store_true",
        help="bytes a weight of the weight and its states, by rule and format, for a large matrix",
    )
    form.add_argument(
        "--pages",
        type=arguments.path,
        metavar="DIR",
        help="write a page a rule into this folder, with its paths on two surfaces and a training "
        "of LeNet on the digits, and a README.md with the table; some minutes",
    )
    parser.add_argument(
        "--epochs",
        type=arguments.whole(0, 10**6),
        default=None,
        metavar="N",
        help="for --pages: how long to train with each rule (default: 8; 0 draws no curves)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from gradstep.sight.ink import ink_for, tell

    if args.epochs is not None and args.pages is None:
        print("gradstep rules: --epochs belongs to --pages", file=sys.stderr)
        return 2
    if args.pages is not None:
        return _write_pages(args.pages, 8 if args.epochs is None else args.epochs)
    if args.json:
        import json

        from gradstep.sight.catalogue import rule_names
        from gradstep.sight.rule_record import rule_record

        text = json.dumps([rule_record(name) for name in rule_names()], indent=2)
    elif args.memory:
        text = "\n".join(_memory())
    elif args.markdown:
        from gradstep.sight.rule_page import index_markdown

        text = index_markdown()
    else:
        text = "\n".join(_table(ink_for(sys.stdout)))
    return tell("gradstep rules", text)


def _write_pages(folder: Path, epochs: int) -> int:
    from gradstep.lab.rule_pages import write_pages

    try:
        write_pages(folder, epochs, lambda line: print(line, file=sys.stderr))
    except OSError as error:
        print(f"gradstep rules: --pages {folder}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _table(ink: Any) -> list[str]:
    from gradstep.sight.catalogue import rule_names
    from gradstep.sight.rule_record import rule_record, state_text

    records = [rule_record(name) for name in rule_names()]
    header = ("rule", "state", "settings that change the formula", "paper")
    rows = []
    for record in records:
        state, papers = state_text(record), _short_papers(record["papers"])
        before = max(len(record["name"]), _MOST_PADDING[0]) + max(len(state), _MOST_PADDING[1])
        room = _WIDTH - before - len(papers) - 6  # two spaces between columns
        settings = _few(record["changes_formula"], max(room, _MOST_PADDING[2])) or "none"
        rows.append((record["name"], state, settings, papers))
    lines: list[str] = []
    for kind in ("rule", "stage"):
        own = [(r, row) for r, row in zip(records, rows, strict=True) if r["kind"] == kind]
        shown = [row for _, row in own] + [header] * (kind == "rule")
        widths = [
            min(most, max(len(row[i]) for row in shown)) for i, most in enumerate(_MOST_PADDING)
        ]
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


def _memory() -> list[str]:
    from gradstep.sight.catalogue import rule_names
    from gradstep.sight.memory import memory_table

    rows = memory_table(rule_names())
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        row[0].ljust(widths[0])
        + "".join("  " + cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
    return [
        *lines,
        "",
        "Bytes a weight of a matrix of 4096 x 4096: the weight and what is kept for it, without",
        "its gradient. Behind + stands what states are stored as, or how the weight is kept:",
        'AdamW(..., state_dtype="int8", low_precision="remainder").',
    ]


def _in_columns(row: tuple[str, ...], widths: list[int]) -> str:
    """The row in columns; one that would be too wide, without them."""
    columns = [c.ljust(w) for c, w in zip(row[:-1], widths, strict=True)]
    for parts in ([*columns, row[-1]], [*columns[:1], *row[1:]], row):
        text = "  ".join(parts)
        if len(text) <= _WIDTH:
            break
    return text


def _short_papers(papers: list[str]) -> str:
    """Authors and year of the first paper: what stands before its title."""
    found = re.match(r".*?\b[12]\d\d\d\b", papers[0]) if papers else None
    return found.group() if found else "none"
