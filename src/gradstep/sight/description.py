"""What a rule says of itself: its docstring, taken apart."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field

from gradstep.rule.definition import Rule

_SECTIONS = ("States:", "Hyperparameters:", "Paper:", "Papers:")


@dataclass(frozen=True)
class Description:
    """The parts of a rule's docstring; empty where it says nothing.

    Attributes:
        summary: the first sentence.
        paragraphs: what follows it.
        states, hyperparameters: name -> meaning.
        papers: one text each.
        notes: the paragraphs behind the sections: with whom the rule agrees, and where it does not.
    """

    summary: str = ""
    paragraphs: tuple[str, ...] = ()
    states: Mapping[str, str] = field(default_factory=dict)
    hyperparameters: Mapping[str, str] = field(default_factory=dict)
    papers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def describe_rule(rule: Rule) -> Description:
    """Read a rule's docstring; of a chain, those of all its stages."""
    if rule.function is None:
        return _describe_chain(rule)
    paragraphs = _paragraphs(inspect.getdoc(rule.function) or "")
    before: list[str] = []
    notes: list[str] = []
    found: dict[str, list[str]] = {}
    for lines in paragraphs:
        heading = lines[0].strip()
        if heading in _SECTIONS:
            found[heading.rstrip(":")] = lines[1:]
        else:
            (notes if found else before).append(" ".join(line.strip() for line in lines))
    return Description(
        summary=before[0] if before else "",
        paragraphs=tuple(before[1:]),
        states=_meanings(found.get("States", [])),
        hyperparameters=_meanings(found.get("Hyperparameters", [])),
        papers=_sentences(found.get("Paper", []) + found.get("Papers", [])),
        notes=tuple(notes),
    )


def _describe_chain(rule: Rule) -> Description:
    states: dict[str, str] = {}
    hyperparameters: dict[str, str] = {}
    paragraphs: list[str] = []
    papers: list[str] = []
    notes: list[str] = []
    for stage, names in rule.stages:
        own = describe_rule(stage)
        states.update({names[n]: text for n, text in own.states.items() if n in names})
        hyperparameters.update(
            {names[n]: text for n, text in own.hyperparameters.items() if n in names}
        )
        paragraphs.append(f"{stage.name}: {own.summary}" if own.summary else stage.name)
        papers += [paper for paper in own.papers if paper not in papers]
        notes += [f"{stage.name}: {note}" for note in own.notes]
    return Description(
        summary=(rule.__doc__ or "").partition("\n")[0],
        paragraphs=tuple(paragraphs),
        states=states,
        hyperparameters=hyperparameters,
        papers=tuple(papers),
        notes=tuple(notes),
    )


def _paragraphs(text: str) -> list[list[str]]:
    """Lines between empty lines."""
    paragraphs: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.strip():
            paragraphs[-1].append(line)
        elif paragraphs[-1]:
            paragraphs.append([])
    return [lines for lines in paragraphs if lines]


def _meanings(lines: list[str]) -> dict[str, str]:
    """``name: meaning`` items; what is indented further goes on with the one above."""
    meanings: dict[str, str] = {}
    name = ""
    outer = min((len(line) - len(line.lstrip()) for line in lines), default=0)
    for line in lines:
        text = line.strip()
        if len(line) - len(line.lstrip()) == outer and ":" in text:
            name, _, text = text.partition(":")
        if name:
            meanings[name] = f"{meanings.get(name, '')} {text.strip()}".strip()
    return meanings


def _sentences(lines: list[str]) -> tuple[str, ...]:
    """One text for each paper: it ends where a line ends with a full stop."""
    papers: list[str] = []
    open_paper: list[str] = []
    for line in lines:
        open_paper.append(line.strip())
        if line.rstrip().endswith("."):
            papers.append(" ".join(open_paper))
            open_paper = []
    return (*papers, " ".join(open_paper)) if open_paper else tuple(papers)
