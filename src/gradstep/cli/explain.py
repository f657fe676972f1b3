"""``gradstep explain RULE``: what a rule does, from the rule itself."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradstep.rule.definition import Rule
    from gradstep.rule.formula import Line
    from gradstep.rule.state import State
    from gradstep.sight.ink import Ink

_EXAMPLES = """\
examples:
  gradstep explain sgd                          the rule that all others grew from
  gradstep explain sgd --set momentum=0.9       its formula with momentum
  gradstep explain adam --set amsgrad=true      with a flag turned on
  gradstep explain my_rules:heavy_ball          a rule of your own, in my_rules.py
"""

#: What a formula's functions mean, for those that use them.
_FUNCTIONS = {
    "lerp(": "lerp(a, b, x) = a + x·(b − a): goes from a towards b by the share x.",
    "sign(": "sign(a) is 1 above zero, −1 below, 0 at zero.",
    "max(": "max(a, b) is the larger of the two.",
    "min(": "min(a, b) is the smaller of the two.",
    " if first else ": "first is true at a weight's first step only.",
}
_SYMBOLS = {
    "g": "g is the gradient of one weight",
    "w": "w the weight itself",
    "lr": "lr the learning rate",
    "step": "step the number of the step, 1 at the first",
}


def add_parser(subparsers: Any) -> None:
    """Add the command to the tree."""
    parser = subparsers.add_parser(
        "explain",
        help="explain an update rule line by line",
        description=(
            "Explain an update rule: its formula, what it keeps between steps, its settings and "
            "the papers that it comes from. 'gradstep rules' lists the rules."
        ),
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "rule",
        metavar="RULE",
        help="a name such as adam, or module:name for a rule of your own",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="settings",
        help="show the formula with this setting; may be given several times",
    )
    parser.add_argument(
        "--greek", action="store_true", help="write beta1 as β₁, eps as ε and so on"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from gradstep.rule.formula import formula
    from gradstep.sight.catalogue import graph_with, shaping_settings
    from gradstep.sight.ink import ink_for, tell

    try:
        rule, changed = _rule_and_settings(args.rule, args.settings)
        lines = formula(graph_with(rule, changed), args.greek).lines
        shaping = shaping_settings(rule)
    except (TypeError, ValueError) as error:  # also UnknownName and RuleError
        print(f"gradstep explain: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    others = [name for name in shaping if name not in changed]
    text = _text(args.rule, rule, changed, lines, others, ink_for(sys.stdout))
    return tell("gradstep explain", "\n".join(text))


def _rule_and_settings(name: str, given: list[str]) -> tuple[Rule, dict[str, Any]]:
    from gradstep.lab.optimizers import CHOICES
    from gradstep.sight.catalogue import UnknownName, find_rule, nearest, rule_names

    changed: dict[str, Any] = {}
    if name in CHOICES and name not in rule_names():
        rule, changed = _behind_an_optimizer(name)
    else:
        try:
            rule = find_rule(name)
        except UnknownName:
            near = nearest(name, sorted({*rule_names(), *CHOICES}))
            if ":" in name or not near:
                raise
            raise UnknownName(f"unknown rule {name!r}: {near}") from None
    for setting in given:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UnknownName(f"--set {setting}: write NAME=VALUE")
        if key not in rule.hyperparameters:
            known = list(rule.hyperparameters)
            listed = f"it has {', '.join(known)}" if known else "it has none"
            raise UnknownName(
                f"{rule.name} has no setting {key!r}: {nearest(key, known) or listed}"
            )
        changed[key] = _value(key, text, rule.hyperparameters[key])
    return rule, changed


def _behind_an_optimizer(name: str) -> tuple[Rule, dict[str, Any]]:
    """The rule that an optimizer's name on the command line stands for, and what it changes."""
    import torch

    from gradstep.lab.optimizers import make_optimizer

    optimizer = make_optimizer(name, [torch.zeros(1, requires_grad=True)])
    group = optimizer.param_groups[0]
    found = {n: optimizer.hyperparameter(group, n) for n in optimizer.rule.hyperparameters}
    defaults = optimizer.rule.hyperparameters
    return optimizer.rule, {n: v for n, v in found.items() if v != defaults[n]}


def _value(name: str, text: str, default: Any) -> Any:
    """A setting's value, of its default's type."""
    from gradstep.sight.catalogue import UnknownName

    if isinstance(default, bool):
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() not in words:
            raise UnknownName(f"--set {name}={text}: {name} is true or false")
        return words[text.lower()]
    if isinstance(default, str) or default is None:
        return text
    try:
        return float(text)
    except ValueError:
        raise UnknownName(f"--set {name}={text}: {name} is a number") from None


def _text(
    name: str,
    rule: Rule,
    changed: dict[str, Any],
    lines: Sequence[Line],
    others: list[str],
    ink: Ink,
) -> list[str]:
    """The whole explanation; ``others`` are the settings with which the formula is another."""
    from gradstep.sight.description import describe_rule

    description = describe_rule(rule)
    said = ", ".join(f"{key}={_shown(value)}" for key, value in changed.items())
    alias = name != rule.name and ":" not in name
    rows = [ink.heading(f"{name}: the rule {rule.name} with {said}" if alias else rule.name)]
    for paragraph in (description.summary, *description.paragraphs):
        rows += _wrapped(paragraph, "")
    rows += ["", ink.heading(f"Formula with {said}" if said else "Formula")]
    rows += _formula(lines, ink)
    rows += _legend("\n".join(map(str, lines)))
    if others:
        rows += ["", f"  Other formulas: {_hint(rule, others)}"]

    if rule.states:
        rows += ["", ink.heading("State, kept for each weight between steps")]
        for key, state in rule.states.items():
            rows += _wrapped(_state(key, state, description.states.get(key, "")), "  ")
    if rule.hyperparameters:
        rows += ["", ink.heading("Settings")]
        rows += _settings(rule, description.hyperparameters)
    if description.papers:
        rows += ["", ink.heading("Papers" if len(description.papers) > 1 else "Paper")]
        for paper in description.papers:
            rows += _wrapped(paper, "  ")
    for note in description.notes:
        rows += ["", *_wrapped(note, "")]
    return rows


def _state(name: str, state: State, meaning: str) -> str:
    """What a state means, how it starts, and when there is one."""
    from gradstep.rule.notation import number_text

    value = state.value if isinstance(state.value, str) else number_text(state.value)
    start = dataclasses.replace(state, value=value, when=None).words()
    text = f"{name}: {meaning} " if meaning else f"{name}. "
    text += f"Starts as {start}."
    return text if state.when is None else f"{text} Kept only with {state.when}."


def _formula(lines: Sequence[Line], ink: Ink) -> list[str]:
    """The lines, with a heading before those of another kind: once a step, or for each weight."""
    if all(line.per_element for line in lines):
        return [f"  {ink.code(str(line))}" for line in lines]
    rows = []
    before = None
    for line in lines:
        if line.per_element is not before:
            before = line.per_element
            rows.append("  for each weight:" if before else "  once a step:")
        rows.append(f"    {ink.code(str(line))}")
    return rows


def _hint(rule: Rule, names: list[str]) -> str:
    words = []
    for name in names:
        default = rule.hyperparameters[name]
        value = "true" if isinstance(default, bool) else "…"
        words.append(f"--set {name}={value}")
    return "  ".join(words)


def _legend(text: str) -> list[str]:
    """What the signs mean that the formula uses."""
    import re

    words = set(re.findall(r"\w+", text))
    symbols = ", ".join(meaning for name, meaning in _SYMBOLS.items() if name in words)
    meanings = [symbols + "." if symbols else ""]
    meanings += [meaning for sign, meaning in _FUNCTIONS.items() if sign in text]
    return ["", *(row for meaning in meanings if meaning for row in _wrapped(meaning, "  "))]


def _settings(rule: Rule, meanings: Any) -> list[str]:
    from gradstep.rule.hyperparameter import Interval, is_number

    rows: list[str] = []
    for name, default in rule.hyperparameters.items():
        if isinstance(default, bool):
            allowed = "true or false"
        elif is_number(default):
            allowed = str(rule.intervals.get(name, Interval()))
        else:
            allowed = "a word"
        head = f"{name} = {_shown(default)} ({allowed})"
        meaning = meanings.get(name, "")
        rows += _wrapped(f"{head}: {meaning}" if meaning else head, "  ")
    return rows


def _shown(value: Any) -> str:
    from gradstep.rule.notation import number_text

    if isinstance(value, bool):
        return str(value).lower()
    return number_text(float(value)) if isinstance(value, int | float) else str(value)


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        width=92,
        initial_indent=indent,
        subsequent_indent=indent + ("    " if indent else ""),
        break_long_words=False,
        break_on_hyphens=False,
    )
