"""``gradstep rules``: the rules that there are."""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from gradstep.cli import arguments

#: Columns of the table: all together, and those of names and states.
_WIDTH = 80
_NAME, _STATE = 25, 21


def add_parser(subparsers: Any) -> None:
    """Add the command to the tree."""
    parser = subparsers.add_parser(
        "rules",
        help="list the update rules",
        usage="%(prog)s [-h] [--matrix] [--state BYTES]\n"
        "                      [--json | --markdown | --memory | --catalogue |\n"
        "                       --pages DIR] [--epochs N] [RULE ...]",
        description=(
            "List the update rules, a line each: how much memory it needs, and the paper that it "
            "comes from. Of those that are named, also what they do to a weight."
        ),
        epilog="'gradstep explain RULE' tells more about one of them.",
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="RULE",
        help="those that are meant; a rule of your own is my_rules.py:name (default: all)",
    )
    parser.add_argument(
        "--matrix", action="store_true", help="only those that work on a matrix as a whole"
    )
    parser.add_argument(
        "--state",
        type=arguments.whole(0, 10**6),
        metavar="BYTES",
        help="only those that keep at most so many bytes for a float32 weight",
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
        "--catalogue",
        action="store_true",
        help="every name that other libraries have, and ours or why not, in Markdown",
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
    from gradstep.sight.catalogue import UnknownName

    try:
        names = _chosen(args.names, args.matrix, args.state)
    except (UnknownName, TypeError, ValueError) as error:
        print(f"gradstep rules: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if args.pages is not None:
        every = not (args.names or args.matrix or args.state is not None)
        epochs = 8 if args.epochs is None else args.epochs
        return _write_pages(args.pages, epochs, None if every else names)
    if args.json:
        import json

        from gradstep.sight.rule_record import rule_record

        text = json.dumps([rule_record(name) for name in names], indent=2)
    elif args.memory:
        text = "\n".join(_memory(names))
    elif args.catalogue:
        from gradstep.sight.peer_catalogue import catalogue_markdown

        text = catalogue_markdown()
    elif args.markdown:
        from gradstep.sight.rule_page import index_markdown

        text = index_markdown()
    else:
        text = "\n".join(_table(names, bool(args.names), ink_for(sys.stdout)))
    return tell("gradstep rules", text)


def _write_pages(folder: Path, epochs: int, names: list[str] | None) -> int:
    from gradstep.lab.rule_pages import write_pages

    try:
        write_pages(folder, epochs, lambda line: print(line, file=sys.stderr), names)
    except OSError as error:
        print(f"gradstep rules: --pages {folder}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _chosen(given: list[str], matrix: bool, state: int | None) -> list[str]:
    """The names that are meant, of all rules or of those that are given.

    Raises:
        UnknownName: there is none of a name.
        TypeError: one of one's own that cannot be traced.
    """
    from gradstep.lab.optimizers import rule_name
    from gradstep.sight.catalogue import find_rule, graph_with, rule_names, state_bytes

    names = [name if ":" in name else find_rule(rule_name(name)).name for name in given]
    names = names or rule_names()
    for name in names:
        if ":" in name:
            graph_with(find_rule(name))
    if matrix:
        names = [
            name
            for name in names
            if any(node.operation == "opaque" for node in graph_with(find_rule(name)).order)
        ]
    if state is not None:
        names = [name for name in names if state_bytes(find_rule(name))[0] <= state]
    return list(dict.fromkeys(names))


def _table(names: list[str], with_formulas: bool, ink: Any) -> list[str]:
    from gradstep.sight.rule_record import rule_record

    records = [rule_record(name) for name in names]
    lines = [ink.heading(_in_columns("rule", "state", "paper"))]
    for kind in ("rule", "stage"):
        own = [record for record in records if record["kind"] == kind]
        if kind == "stage" and own:
            lines += ["", ink.heading("stages, to stand before or behind a rule in a chain")]
        for record in own:
            lines += _rows(record, with_formulas, ink)
    if not records:
        lines.append("none")
    lines += ["", *_NOTES]
    if not with_formulas:
        lines.append("'gradstep rules adam lion' shows what they do to a weight.")
    return [*lines, "'gradstep explain adam' explains a rule line by line."]


_NOTES = (
    "g is the gradient, w the weight, lr the learning rate.",
    "state: bytes kept for each float32 weight; more where a setting adds a state.",
    "'row' and 'column' are a number for each row and each column of a matrix,",
    "'matrix' is a matrix of its own.",
)


def _rows(record: dict[str, Any], with_formulas: bool, ink: Any) -> list[str]:
    from gradstep.sight.rule_record import state_text

    lines = [_in_columns(record["name"], state_text(record), _short_papers(record["papers"]))]
    if with_formulas:
        formula = _wrapped(record["formula"], " " * 4)
        lines += [ink.code(line) for line in formula]
        settings = ", ".join(record["changes_formula"])
        if settings:
            lines += _wrapped(f"other formulas with: {settings}", " " * 4)
    return lines


def _wrapped(text: str, before: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=before,
        subsequent_indent=before + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _memory(names: list[str]) -> list[str]:
    from gradstep.sight.memory import memory_table

    rows = memory_table(names)
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


def _in_columns(name: str, state: str, paper: str) -> str:
    """A row, whose columns stay in place; what is too long is cut off with dots."""
    row = f"{name:<{_NAME}} {state:<{_STATE}} {paper}"
    return row if len(row) <= _WIDTH else row[: _WIDTH - 1] + "…"


def _short_papers(papers: list[str]) -> str:
    """First author and year of the first paper, or both authors where there are two."""
    found = re.match(r"(.*?)\b([12]\d\d\d)\b", papers[0]) if papers else None
    if found is None:
        return "none"
    authors = re.split(r", | & ", found[1].strip())
    names = f"{authors[0]} et al." if len(authors) > 2 else found[1].strip()
    return f"{names} {found[2]}"
