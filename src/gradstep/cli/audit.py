"""``gradstep audit LIB.CLASS --rule NAME``: another library's optimizer against a rule of ours."""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gradstep.cli import arguments

_EXAMPLES = """\
examples:
  gradstep audit torch.optim.NAdam --rule nadam
  gradstep audit pytorch_optimizer.Lion --rule lion --set betas=(0.9,0.98)
  gradstep audit optax.adan --rule adan            optax is called with learning_rate
  gradstep audit my_rules.MyAdam --rule adam       a class of your own, from the current folder
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the tree."""
    parser = subparsers.add_parser(
        "audit",
        help="hold another library's optimizer against a rule",
        description=(
            "Give another library's optimizer and a rule the same float64 gradients, in eight "
            "cases, and say in which they agree, and from which step on they do not. Also: whether "
            "the other one writes into gradients, draws global random numbers, and goes on from a "
            "checkpoint. The exit code is 0 if they agree and 1 if they differ."
        ),
        epilog=_EXAMPLES,
        formatter_class=arguments.Help,
    )
    parser.add_argument(
        "theirs",
        metavar="LIB.CLASS",
        nargs="?",
        help="an optimizer, by its import path, or one of optax",
    )
    parser.add_argument(
        "--rule",
        help="a rule or class of gradstep, such as lion or AdamW, or module:name for a rule of "
        "your own",
    )
    parser.add_argument("--lr", type=arguments.number, default=0.01, help="of both (default: 0.01)")
    parser.add_argument(
        "--steps", type=arguments.count, default=20, help="steps of a case (default: 20)"
    )
    parser.add_argument(
        "--tolerance",
        type=arguments.number,
        default=1e-9,
        help="the largest difference, as a share of the largest movement, that is agreement "
        "(default: 1e-9)",
    )
    for flag, whose in (("set", "both"), ("theirs", "the other one"), ("ours", "the rule")):
        parser.add_argument(
            f"--{flag}" if flag == "set" else f"--{flag}-set",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            dest=f"{flag}_settings",
            help=f"an argument of {whose}; may be given several times",
        )
    parser.add_argument("--json", action="store_true", help="the same for programs, as JSON")
    parser.add_argument(
        "--table",
        action="store_true",
        help="audit every optimizer that we know to bear the name of a rule, of the libraries that "
        "are installed, and print a table in Markdown; some minutes",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from gradstep.sight.audit import audit
    from gradstep.sight.ink import tell

    if args.table:
        from gradstep.lab.audit_table import audit_table

        text = audit_table(args.steps, lambda name: print(name, file=sys.stderr))
        return tell("gradstep audit", text)
    if args.theirs is None or args.rule is None:
        print("gradstep audit: needs LIB.CLASS and --rule, or --table", file=sys.stderr)
        return 2
    try:
        both = _settings("--set", args.set_settings)
        ours, named = _ours(args.rule)
        found = audit(
            _theirs(args.theirs),
            ours,
            lr=args.lr,
            steps=args.steps,
            tolerance=args.tolerance,
            their_options={**both, **_settings("--theirs-set", args.theirs_settings)},
            our_options={**named, **both, **_settings("--ours-set", args.ours_settings)},
        )
    except (TypeError, ValueError) as error:
        print(f"gradstep audit: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if args.json:
        import json

        code = tell("gradstep audit", json.dumps(found.record(), indent=2))
    else:
        from gradstep.lab.audit_table import known_reason

        why = known_reason(args.theirs, getattr(ours, "__name__", "") or ours.name, found)
        code = tell("gradstep audit", str(found) + (f"\nbecause: {why}" if why else ""))
    return code or int(not found.agrees)


def _theirs(path: str) -> Any:
    """What stands at an import path.

    Raises:
        ValueError: nothing does.
    """
    import importlib

    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    module_name, _, name = path.replace(":", ".").rpartition(".")
    if not module_name:
        raise ValueError(f"{path} has no module: write it as torch.optim.{path}, say")
    try:
        found = getattr(importlib.import_module(module_name), name, None)
    except Exception as error:
        raise ValueError(
            f"cannot import {module_name}: {type(error).__name__}: {error}. Is it installed here?"
        ) from error
    if not callable(found):
        raise ValueError(f"{module_name} has no optimizer {name}")
    return found


def _ours(name: str) -> tuple[Any, dict[str, Any]]:
    """A rule by its name, or a class, and the settings that the name stands for.

    Raises:
        ValueError: there is no such one.
        TypeError: it cannot be traced.
    """
    import gradstep
    from gradstep.lab.optimizers import CHOICES
    from gradstep.sight.catalogue import find_rule, folded, graph_with, rule_names, spelled

    found = getattr(gradstep, name, None) if ":" not in name else None
    if isinstance(found, type) and issubclass(found, gradstep.Optimizer):
        return found, {}
    choice = spelled(name, CHOICES) if spelled(name, rule_names()) is None else None
    if choice is not None:  # such as momentum: a class with its flags set
        make = CHOICES[choice].make
        return (make.func, make.keywords) if isinstance(make, partial) else (make, {})
    rule = find_rule(name)
    graph_with(rule)
    # The class of torch.optim's manners, where there is one: it takes betas, as others do.
    alike = [n for n in dir(gradstep) if n.lower() == folded(name)]
    classes = (getattr(gradstep, n) for n in alike)
    return next((found for found in classes if isinstance(found, type)), rule), {}


def _settings(flag: str, given: Sequence[str]) -> dict[str, Any]:
    """``NAME=VALUE`` as a dict; a value is a literal of Python, or text.

    Raises:
        ValueError: no equals sign.
    """
    settings: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"{flag} takes NAME=VALUE; got {text!r}")
        try:
            settings[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            settings[name] = {"true": True, "false": False}.get(value.lower(), value)
    return settings
