"""The pages of the documentation about rules, made from the rules themselves, in Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gradstep.sight.catalogue import find_rule, rule_names
from gradstep.sight.rule_formula import formula
from gradstep.sight.rule_record import rule_record, state_text

#: What stands before the sentence about a rule's training.
TRAINED = "On the digits: "


def index_markdown(trained: Mapping[str, str] | None = None, linked: bool = False) -> str:
    """Tables of all rules and stages: what each does, what it costs, where it is from.

    Args:
        trained: rule -> what it reached on the digits, for a column of its own.
        linked: whether each name leads to a page beside.
    """
    records = [rule_record(name) for name in rule_names()]
    texts = []
    for kind in ("rule", "stage"):
        own = [record for record in records if record["kind"] == kind]
        head = ["rule", "class", "formula", "state", "passes", "paper"]
        if kind == "stage":
            head[:2] = ["stage"]
        elif trained is not None:
            head.append("digits")
        rows = [_index_row(record, kind == "rule", trained, linked) for record in own]
        texts.append(table(head, rows))
    return "\n\n".join(
        [
            texts[0],
            "`state`: bytes kept for each float32 weight with the defaults, to those with every "
            "flag; `row` and `column` are a number for each row and column of a matrix. `passes`: "
            "how often a step goes through the weights in memory.",
            "Stages, for chains:",
            texts[1],
        ]
    )


def _index_row(
    record: Mapping[str, Any], is_rule: bool, trained: Mapping[str, str] | None, linked: bool
) -> list[str]:
    name = f"`{record['name']}`"
    if linked:
        name = f"[{name}]({record['name']}.md)"
    row = [name]
    if is_rule:
        row.append(f"`{record['class']}`" if record["class"] else "")
    found = [re.match(r".*?\b[12]\d\d\d\b", paper) for paper in record["papers"][:1]]
    paper = found[0].group() if found and found[0] else ""
    row += [f"`{record['formula']}`", state_text(dict(record)), str(record["passes"]), paper]
    if is_rule and trained is not None:
        row.append(trained.get(record["name"], ""))
    return row


def rule_markdown(name: str, picture: str | None = None, trained: str = "") -> str:
    """The page of one rule or stage.

    Args:
        name: as in :func:`gradstep.sight.catalogue.rule_names`.
        picture: the file name of its picture.
        trained: a sentence about its training on the digits.
    """
    record, rule = rule_record(name), find_rule(name)
    call = f"gradstep.{record['class']}(params, lr={record['lr']:g})"
    if record["class"] is None:
        call = f"gradstep.Optimizer(params, gradstep.{name}())"
    if record["kind"] == "stage":
        call = f"gradstep.chain(gradstep.{name}(), gradstep.adam())"
    parts = [f"# {name}", record["summary"], f"    {call}"]
    parts += ["## Formula", "$$\n" + formula(rule, greek=True).latex().strip() + "\n$$"]
    parts += ["## In text", "\n".join(f"    {line}" for line in record["formula_lines"])]
    if record["states"]:
        rows = [
            [f"`{n}`", s["one_for_each"], s["starts_as"], s["meaning"]]
            for n, s in record["states"].items()
        ]
        parts += ["## States", table(["state", "one for each", "starts as", "what it holds"], rows)]
    if record["hyperparameters"]:
        rows = [
            [f"`{n}`", f"`{h['default']}`", h["allowed"] or "", h["meaning"]]
            for n, h in record["hyperparameters"].items()
        ]
        head = ["name", "default", "allowed", "meaning"]
        parts += ["## Hyperparameters", table(head, rows)]
    passes = record["passes"]
    cost = f"State: {state_text(record)} for each float32 weight. "
    cost += "One pass over memory." if passes == 1 else f"{passes} passes over memory."
    parts += ["## Cost", cost]
    if picture is not None:
        parts += ["## Its ways", f"![The paths of {name}]({picture})"]
    if trained:
        parts.append(f"{TRAINED}{trained}")
    if record["papers"]:
        parts += ["## Papers", "\n".join(f"- {_linked(paper)}" for paper in record["papers"])]
    if record["notes"]:
        parts += ["## Notes", *map(_linked, record["notes"])]
    return "\n\n".join(parts) + "\n"


def _linked(text: str) -> str:
    """With a link where a paper's number on arXiv stands."""
    return re.sub(r"\barXiv:(\d{4}\.\d{4,5})\b", r"[\g<0>](https://arxiv.org/abs/\1)", text)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in lines)
