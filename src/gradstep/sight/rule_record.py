"""All that is known of a rule, as plain data: for tables, pages and other programs."""

from __future__ import annotations

from typing import Any

from gradstep import torch_optim
from gradstep.program.passes import passes
from gradstep.rule.contraction import contracted
from gradstep.rule.definition import Rule
from gradstep.rule.formula import formula, short_formula
from gradstep.rule.graph import Graph
from gradstep.sight.catalogue import (
    find_rule,
    graph_with,
    is_stage,
    shaping_settings,
    state_bytes,
    states_along,
)
from gradstep.sight.description import describe_rule

#: The extent of a state -> what has one of it, in the words of a user.
_WHOSE = {
    "element": "weight",
    "row": "row",
    "column": "column",
    "number": "parameter",
    "own": "parameter, in a shape of its own",
}


def passes_over_weights(graph: Graph) -> int:
    """How often a step goes through all weights in memory; 1 where nothing is summed first."""
    if graph.is_elementwise:
        return 1
    return sum(p.domain == "element" for p in passes(contracted(graph)))


def rule_record(name: str) -> dict[str, Any]:
    """All that is known of a rule or stage, by its name; goes into JSON."""
    rule = find_rule(name)
    graph, description = graph_with(rule), describe_rule(rule)
    least, most = state_bytes(rule)
    return {
        "name": name,
        "kind": "stage" if is_stage(rule) else "rule",
        "class": _class_name(rule),
        "lr": rule.lr,
        "summary": description.summary,
        "formula": short_formula(graph),
        "formula_lines": [str(line) for line in formula(graph).lines],
        "papers": list(description.papers),
        "notes": list(description.notes),
        "passes": passes_over_weights(graph),
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
                "allowed": str(allowed)
                if (allowed := rule.intervals.get(n) or rule.choices.get(n))
                else None,
                "meaning": description.hyperparameters.get(n, ""),
            }
            for n, default in rule.hyperparameters.items()
        },
        "changes_formula": shaping_settings(rule),
    }


def _class_name(rule: Rule) -> str | None:
    """The class over the rule, if it has one of that name."""
    if rule.class_name is not None:
        return rule.class_name
    plain = rule.name.replace("_", "")
    return next((n for n in torch_optim.__all__ if n.lower() == plain), None)


def state_text(record: dict[str, Any]) -> str:
    """Bytes of state for each float32 weight, and what there is beside."""
    found = record["state_bytes_float32"]
    least, most, along = found["default"], found["most"], record["states_along"]
    text = [f"{least} B" if least == most else f"{least} to {most} B"]
    words = {"own": "matrix", "row": "row", "column": "column"}
    plural = {"own": "matrices", "row": "rows", "column": "columns"}
    counted = [
        f"{along.count(n)} {plural[n]}" if along.count(n) > 1 else words[n]
        for n in dict.fromkeys(along)
    ]
    return "+".join([*(text if most or not along else []), *counted])
