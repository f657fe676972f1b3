"""``gradstep explain RULE``: what a rule does, from the rule itself."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gradstep.cli import arguments

if TYPE_CHECKING:
    from gradstep.rule.definition import Rule
    from gradstep.rule.formula import Line
    from gradstep.rule.graph import Node
    from gradstep.rule.opaque import Opaque
    from gradstep.rule.state import State
    from gradstep.sight.ink import Ink

_EXAMPLES = """\
examples:
  gradstep explain sgd                          the rule that all others grew from
  gradstep explain sgd --set momentum=0.9       its formula with momentum
  gradstep explain adam --set amsgrad=true      with a flag turned on
  gradstep explain adam --latex                 its formula for a paper
  gradstep explain my_rules:heavy_ball          a rule of your own, in my_rules.py
"""

#: What a formula's functions mean, by a pattern that finds those that use them.
_FUNCTIONS = {
    r"\blerp\(": "lerp(a, b, x) = a + x·(b − a): goes from a towards b by the share x.",
    r"\bsign\(": "sign(a) is 1 above zero, −1 below, 0 at zero.",
    r"\bmin\(": "min(a, b) is the smaller of the two.",
    r" if first else ": "first is true at a weight's first step only.",
    r"\bsum\(": "sum(a) is the sum of all elements of a tensor.",
    r"\bmean\(": "mean(a) is the mean of all elements of a tensor.",
    r"\bnorm\(": "norm(a) is the root of the sum of all squared elements of a tensor.",
    r"\brms\(": "rms(a) is the root of the mean of all squared elements of a tensor.",
    r"\bglobal_norm\(": "global_norm(a) is norm(a) over all parameters at once.",
    r"\bsize\(w\)": "size(w) is how many weights the tensor has.",
    r"\bsize\(w, −1\)": "size(w, −1) is how many columns the tensor has, its last dimension.",
    r"\bsize\(w, −2\)": "size(w, −2) is how many rows the tensor has, the dimension before.",
    r"\bsize\(w, unit\)": "size(w, unit) is how many weights feed one output.",
}
#: The same for what the text does not tell apart, by the operation.
_OPERATIONS = {
    "maximum": "max(a, b) is the larger of the two.",
    "max": "max(a) is the largest of all elements of a tensor.",
}
_ALONG = {
    "−1": "With −1 behind it, each row has a value of its own: {}(a, −1).",
    "−2": "With −2 behind it, each column has a value of its own: {}(a, −2).",
    "unit": "With unit behind it, each row or filter has a value of its own: {}(a, unit).",
}
_FORMS = ("Markdown", "HTML", "LaTeX")
#: What has a value of its own -> the heading above its lines.
_HEADINGS = {
    "number": "once a step:",
    "tensor": "once for each tensor:",
    "matrix": "for each matrix:",
    "row": "for each row:",
    "column": "for each column:",
    "element": "for each weight:",
    "own": "for the whole tensor, in another shape:",
}
_SYMBOLS = {
    "g": "g is the gradient of one weight",
    "w": "w the weight itself",
    "lr": "lr the learning rate",
    "step": "step the number of the step, 1 at the first",
    "machine_epsilon": "machine_epsilon the way from 1 to the next number of the weight's dtype",
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
        formatter_class=arguments.Help,
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
    forms = parser.add_mutually_exclusive_group()
    for form in _FORMS:
        forms.add_argument(
            f"--{form.lower()}",
            action="store_const",
            const=form.lower(),
            dest="form",
            help=f"print the formula alone, as {form}",
        )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from gradstep.rule.formula import formula
    from gradstep.sight.catalogue import graph_with, shaping_settings
    from gradstep.sight.ink import ink_for, tell
    from gradstep.sight.rule_formula import formula as rule_formula

    try:
        rule, changed = _rule_and_settings(args.rule, args.settings)
        if args.form is not None:
            shown = rule_formula(rule, greek=args.greek, **changed)
            return tell("gradstep explain", getattr(shown, args.form)().rstrip("\n"))
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
    from gradstep.sight.catalogue import UnknownName, find_rule, nearest, rule_names, spelled

    changed: dict[str, Any] = {}
    name = spelled(name, [*rule_names(), *CHOICES]) or name
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
        changed[key] = _value(key, text, rule)
    return rule, changed


def _behind_an_optimizer(name: str) -> tuple[Rule, dict[str, Any]]:
    """The rule that an optimizer's name on the command line stands for, and what it changes."""
    import torch

    from gradstep.lab.optimizers import make_optimizer
    from gradstep.optimizer.optimizer import planner_of

    optimizer = make_optimizer(name, [torch.zeros(1, requires_grad=True)])
    reader = planner_of(optimizer).reader
    found, rule = reader.hyperparameters(optimizer.param_groups[0]), reader.rule
    return rule, {n: v for n, v in found.items() if v != rule.hyperparameters[n]}


def _value(name: str, text: str, rule: Rule) -> Any:
    """A setting's value, of its default's type."""
    from gradstep.sight.catalogue import UnknownName, takes_number

    default = rule.hyperparameters[name]
    if default is None and text.lower() == "none":
        return None
    if isinstance(default, bool):
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() not in words:
            raise UnknownName(f"--set {name}={text}: {name} is true or false")
        return words[text.lower()]
    if isinstance(default, str) or (default is None and not takes_number(rule, name)):
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
    rows += _legend(lines)
    if others:
        rows += ["", *_wrapped(f"Other formulas: {_hint(rule, others)}", "  ")]

    if rule.states:
        for_each = all(state.extent() in ("element", "number") for state in rule.states.values())
        kept = "kept for each weight between steps" if for_each else "kept between steps"
        rows += ["", ink.heading(f"State, {kept}")]
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
    """The lines, with a heading before those of another kind: once a step, or for each weight.

    Those of a chain under the names of its rules, which say enough.
    """
    if lines[0].stage:
        named = zip(["", *(line.stage for line in lines)], lines, strict=False)
        return [
            row
            for before, line in named
            for row in ([f"  {line.stage}:"] if line.stage != before else [])
            + _code(line, "    ", ink)
        ]
    if all(line.per_element and line.node.extent == "element" for line in lines):
        return [row for line in lines for row in _code(line, "  ", ink)]
    rows = []
    before = None
    for line in lines:
        heading = _HEADINGS[_whose(line.node)]
        if heading != before:
            before = heading
            rows.append(f"  {heading}")
        rows += _code(line, "    ", ink)
    return rows


def _code(line: Line, indent: str, ink: Ink) -> list[str]:
    """A line of a formula; what is too long for a screen goes on below."""
    from gradstep.sight.ink import columns

    text = str(line)
    if len(indent + text) <= columns(100, sys.stdout):
        return [f"{indent}{ink.code(text)}"]
    return [ink.code(row) for row in _wrapped(text, indent)]


def _whose(node: Node) -> str:
    """What has a value of its own: a number that is made from a tensor's shape is the tensor's."""
    from gradstep.rule.graph import FACTS, in_order

    if node.extent == "number" and any(n.value in FACTS for n in in_order([node])):
        return "tensor"
    return node.extent


def _hint(rule: Rule, names: list[str]) -> str:
    words = []
    for name in names:
        default = rule.hyperparameters[name]
        value = _shown(not default) if isinstance(default, bool) else "…"
        words.append(f"--set {name}={value}")
    return "  ".join(words)


def _legend(lines: Sequence[Line]) -> list[str]:
    """What the signs mean that the formula uses."""
    from gradstep.rule.graph import in_order

    text = "\n".join(map(str, lines))
    nodes = in_order([line.node for line in lines])
    words = set(re.findall(r"\w+", text))
    symbols = ", ".join(meaning for name, meaning in _SYMBOLS.items() if name in words)
    meanings = [symbols + "." if symbols else ""]
    operations = {node.operation for node in nodes}
    meanings += [meaning for name, meaning in _OPERATIONS.items() if name in operations]
    meanings += [meaning for sign, meaning in _FUNCTIONS.items() if re.search(sign, text)]
    for sign, meaning in _ALONG.items():
        found = re.findall(rf"\b(?!size)(\w+)\([^()]*, {sign}\)", text)
        meanings += [meaning.format(found[0])] if found else []
    for function in {id(n.value): n.value for n in nodes if n.operation == "opaque"}.values():
        meanings.append(_opaque(function))
    return ["", *(row for meaning in meanings if meaning for row in _wrapped(meaning, "  "))]


def _opaque(function: Opaque) -> str:
    """What a function that is not looked into says of itself."""
    summary = (inspect.getdoc(function.function) or "").partition("\n\n")[0]
    said = f": {' '.join(summary.replace('``', '').split())}" if summary else "."
    return f"{function.name}(…) is a function on the whole tensor{said}"


def _settings(rule: Rule, meanings: Any) -> list[str]:
    from gradstep.rule.hyperparameter import Interval, is_number
    from gradstep.sight.catalogue import takes_number

    rows: list[str] = []
    for name, default in rule.hyperparameters.items():
        if isinstance(default, bool):
            allowed = "true or false"
        elif is_number(default):
            allowed = str(rule.intervals.get(name, Interval()))
        elif name in rule.choices:
            allowed = str(rule.choices[name])
        elif default is None:
            allowed = "a number, or none" if takes_number(rule, name) else "a word, or none"
        else:
            allowed = "a word"
        head = f"{name} = {_shown(default)} ({allowed})"
        meaning = meanings.get(name, "")
        rows += _wrapped(f"{head}: {meaning}" if meaning else head, "  ")
    return rows


def _shown(value: Any) -> str:
    from gradstep.rule.notation import number_text

    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return number_text(float(value)) if isinstance(value, int | float) else str(value)


def _wrapped(text: str, indent: str) -> list[str]:
    from gradstep.sight.ink import columns

    return textwrap.wrap(
        text,
        width=columns(92, sys.stdout),
        initial_indent=indent,
        subsequent_indent=indent + ("    " if indent else ""),
        break_long_words=False,
        break_on_hyphens=False,
    )
