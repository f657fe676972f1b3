"""The rules as text: short, and each with a docstring that explains all of it."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from pathlib import Path

import pytest
import torch

import gradstep
from gradstep import rules
from gradstep.classes import rule_classes
from gradstep.optimizer.optimizer import planner_of
from gradstep.sight.catalogue import is_stage

RULES: dict[str, gradstep.Rule] = rules.load()
every_rule = pytest.mark.parametrize("name", RULES)

LONGEST = 15


def body_lines(source: str) -> list[str]:
    """The lines of a function behind its docstring, without blank ones and comments."""
    function = ast.parse(textwrap.dedent(source)).body[0]
    assert isinstance(function, ast.FunctionDef)
    statements = function.body[1:] if ast.get_docstring(function) else function.body
    lines = textwrap.dedent(source).splitlines()[statements[0].lineno - 1 :]
    return [line for line in lines if line.strip() and not line.strip().startswith("#")]


def section(docstring: str, *titles: str) -> dict[str, str]:
    """The entries of a section, ``name: what it is``, by name."""
    found = re.search(rf"^(?:{'|'.join(titles)}):\n((?:    .*\n|\n)+)", docstring + "\n", re.M)
    if found is None:
        return {}
    entries: dict[str, str] = {}
    for line in textwrap.dedent(found[1]).splitlines():
        start = re.match(r"(\w+): (.+)", line)
        if start:
            entries[start[1]] = start[2]
        elif line.strip():
            last = list(entries)[-1]
            entries[last] += " " + line.strip()
    return entries


@every_rule
def test_the_body_is_short(name: str) -> None:
    function = RULES[name].function
    assert function is not None
    assert len(body_lines(inspect.getsource(function))) <= LONGEST


def test_lines_are_counted_as_a_reader_would() -> None:
    source = '''
    @rule
    def example(g):
        """What it is."""
        a = (
            g
            + g
        )

        # Why.
        return a
    '''
    assert len(body_lines(source)) == 5


@every_rule
def test_the_docstring_has_every_state_and_hyperparameter(name: str) -> None:
    rule = RULES[name]
    docstring = inspect.getdoc(rule.function)
    assert docstring is not None
    states, hyperparameters = section(docstring, "States"), section(docstring, "Hyperparameters")
    assert list(states) == list(rule.states)
    assert list(hyperparameters) == list(rule.hyperparameters)
    for text in (*states.values(), *hyperparameters.values()):
        assert text.endswith(".") and len(text.split()) >= 3


@every_rule
def test_the_docstring_says_what_it_is_and_where_it_is_from(name: str) -> None:
    docstring = inspect.getdoc(RULES[name].function)
    assert docstring is not None
    first = docstring.splitlines()[0]
    assert first.endswith(".") and len(first.split()) >= 4
    paper = re.search(r"^Papers?:\n    \S.*\b(19|20)\d\d\b", docstring, re.M)
    assert paper or "Agrees with torch" in docstring


@every_rule
def test_the_docstring_does_not_speak_of_code(name: str) -> None:
    """What a rule is, not how it is run: that is said once, elsewhere."""
    docstring = inspect.getdoc(RULES[name].function)
    assert docstring is not None
    own = re.sub(r'"[^"]*"', "", docstring)  # without the titles of papers
    assert not re.search(r"\b(kernel|fused|foreach|engine|tensor)\b|@", own)


@pytest.mark.parametrize("path", sorted(Path(rules.__file__).parent.rglob("[!_]*.py")), ids=str)
def test_a_rules_file_needs_only_the_language(path: Path) -> None:
    """Nothing of torch or of an engine: a rule reads as its paper does.

    Matrix functions that rules share are in gradstep.linalg.
    """
    allowed = {"__future__", "typing", "gradstep.rule", "gradstep.rules"}
    if "@opaque" in path.read_text():  # a file of functions that are not traced
        allowed.add("torch")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert all(alias.name in allowed for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            rooms = ("gradstep.rules.", "gradstep.linalg.")
            assert node.module in allowed or str(node.module).startswith(rooms)


def test_every_rule_has_its_class_or_is_a_stage() -> None:
    made = set()
    for name in (*gradstep.torch_optim.__all__, *rule_classes.load()):
        cls = getattr(gradstep, name)
        if issubclass(cls, gradstep.Optimizer):
            made.add(planner_of(cls([torch.nn.Parameter(torch.zeros(2, 2))])).rule.name)
    assert set(RULES) - made == {name for name, rule in RULES.items() if is_stage(rule)}
    assert set(RULES) <= set(dir(gradstep))
