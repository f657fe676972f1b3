"""The table of who agrees with whom, made by auditing what is installed."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradstep
from gradstep.lab.audit_pairs import PAIRS, Pair
from gradstep.sight.audit import Audit, Outcome, audit
from gradstep.sight.catalogue import folded
from gradstep.sight.rule_page import table

#: What is to be said of a difference that shows in one case alone.
_ONE_CASE = {
    "late first gradient": "one step count for all parameters, where the rule has one for each",
    "weight decay": "another kind of weight decay",
}


def audit_table(steps: int, say: Callable[[str], None], pairs: Sequence[Pair] = PAIRS) -> str:
    """The table, in Markdown, and a line about what is not installed.

    Args:
        steps: how many steps a case has.
        say: called with the name of each optimizer before its audit.
        pairs: which to audit.
    """
    rows, missing = [], []
    for pair in pairs:
        module, _, name = pair.theirs.rpartition(".")
        say(pair.theirs)
        # Some print what they think of their defaults.
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                theirs = getattr(importlib.import_module(module), name)
            except (ImportError, AttributeError):
                missing.append(pair.theirs)
                continue
            found = audit(
                _grouped(theirs, pair.their_group) if pair.their_group else theirs,
                getattr(gradstep, pair.ours),
                steps=steps,
                their_options=pair.their_options,
                our_options=pair.our_options,
            )
        rows.append(_row(pair, found))
    head = ["theirs", "ours", "", "differs in (from step: by)", "because", "conduct"]
    text = table(head, rows)
    if missing:
        text += "\n\nNot installed, so not audited: " + ", ".join(missing) + "."
    return text


def _grouped(theirs: Callable[..., Any], said: Mapping[str, Any]) -> Callable[..., Any]:
    """Their optimizer, of one group of parameters that says something."""
    return lambda params, **options: theirs([{"params": list(params), **said}], **options)


def _reason(pair: Pair, differing: Sequence[Outcome]) -> str:
    if not pair.reason and len(differing) == 1:
        return _ONE_CASE.get(differing[0].case.partition(",")[0], "")
    return pair.reason


def known_reason(theirs: str, ours: str, found: Audit) -> str:
    """Why two differ, where docs/audit.md knows: by their import path and the name of ours."""
    differing = [o for o in found.outcomes if o.agrees is False]
    names = (theirs.replace(":", "."), folded(ours))
    pairs = [pair for pair in PAIRS if (pair.theirs, folded(pair.ours)) == names]
    known = pairs[0] if pairs else Pair(theirs, ours)
    return _reason(known, differing) if differing else ""


def _row(pair: Pair, found: Audit) -> list[str]:
    differing = [o for o in found.outcomes if o.agrees is False]
    run = [o for o in found.outcomes if o.agrees is not None]
    verdict = "agrees" if found.agrees else "differs" if run else "cannot be compared"
    where = "; ".join(f"{o.case} ({o.step}: {o.difference:.0e})" for o in differing)
    if len(differing) == len(run) > 1:
        least, most = (f(o.difference for o in differing) for f in (min, max))
        where = f"every case ({min(o.step or 0 for o in differing)}: {least:.0e} to {most:.0e})"
    reason = found.outcomes[0].reason if not run else _reason(pair, differing)
    conduct = [
        question
        for question in ("writes into gradients", "draws global random numbers")
        if found.conduct.get(question) == "yes"
    ]
    for question, said in (
        ("goes on from a checkpoint bit for bit", "does not resume bit for bit"),
        ("loads with weights_only", "does not load with weights_only"),
    ):
        if found.conduct.get(question, "yes") != "yes":
            conduct.append(said)
    names = [_with(pair.theirs, pair.their_options), _with(pair.ours, pair.our_options)]
    return [*names, verdict, where, reason, "; ".join(conduct)]


def _with(name: str, options: object) -> str:
    given = ", ".join(f"{n}={v}" for n, v in dict(options).items())  # type: ignore[call-overload]
    return f"`{name}`" + (f" ({given})" if given else "")
