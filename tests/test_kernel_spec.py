"""A kernel's spec, by whose text its code is found again, says all that shapes the code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import gradstep
from configurations import variants
from gradstep.backends.llvm.walk import write_kernel
from gradstep.optimizer.optimizer import planner_of
from gradstep.program.kernel_spec import ITEM_BYTES, Places, kernel_spec
from gradstep.program.program import Program
from gradstep.program.targets import PLAIN, Target
from gradstep.rule.graph import Graph
from gradstep.rule.trace import trace
from reference import REFERENCES, Reference


def specified(graph: Graph, storage: str, target: Target = PLAIN) -> Iterator[tuple[str, str]]:
    """The spec's text and the code of each of a graph's kernels."""
    program = Program(gradstep.sgd, graph, ())
    places = Places()
    for each in program.passes:
        if each.wanted():
            spec = kernel_spec(each, program.inputs, storage, places, target)
            yield spec.text(), write_kernel(spec)


def graphs(reference: Reference) -> Iterator[Graph]:
    for options in variants(reference):
        optimizer = reference.ours([torch.zeros((1,) * (reference.dimensions or 1))], **options)
        group = optimizer.param_groups[0]
        values = planner_of(optimizer).reader.hyperparameters(group)
        yield trace(reference.rule, values, bool(group.get("maximize")))


@pytest.mark.parametrize(
    "storage", [pytest.param(s, marks=[pytest.mark.deep] * (s != "bfloat16")) for s in ITEM_BYTES]
)
def test_equal_specs_have_equal_code(storage: str) -> None:
    """Over all rules, with their flags: so what one has compiled serves another rightly."""
    known: dict[str, str] = {}
    met_again = 0
    for reference in REFERENCES:
        for graph in graphs(reference):
            for text, code in specified(graph, storage):
                met_again += text in known
                assert known.setdefault(text, code) == code, f"{reference.name}:\n{text}"
    assert len(known) > 2 * len(REFERENCES)
    assert len(set(known.values())) >= 0.95 * len(known)  # and texts tell apart little else
    assert met_again > 20


def scaled(factor: float) -> gradstep.Rule:
    @gradstep.rule
    def rule(g: Any, *, scale: float = 1.0) -> Any:
        return g * factor * scale

    return rule


def formula(function: Callable[[Any, Any], Any]) -> gradstep.Rule:
    @gradstep.rule
    def rule(g: Any, left: Any, right: Any, *, share: float = 0.5) -> Any:
        return function(g, share), right, left

    return rule


def kept_in_order() -> gradstep.Rule:
    @gradstep.rule
    def rule(g: Any, left: Any, right: Any, *, share: float = 0.5) -> Any:
        return g - share, left + g, right

    return rule


DIFFERENT: dict[str, list[gradstep.Rule]] = {
    "a constant's last bit": [scaled(0.1), scaled(0.1 + 2**-56), scaled(-0.1)],
    "the sign of zero": [scaled(0.0), scaled(-0.0)],
    "the order of arguments": [
        formula(lambda g, share: g - share),
        formula(lambda g, share: share - g),
    ],
    "the operation": [
        formula(lambda g, share: gradstep.maximum(g, share)),
        formula(lambda g, share: gradstep.minimum(g, share)),
        formula(lambda g, share: g + share),
    ],
    "a number or a truth": [
        formula(lambda g, share: gradstep.where(share, g, -g)),
        formula(lambda g, share: gradstep.where(share > 0.25, g, -g)),
    ],
    "what goes where": [formula(lambda g, share: g - share), kept_in_order()],
    "what is reduced": [
        formula(lambda g, share: g / gradstep.max(gradstep.abs(g))),
        formula(lambda g, share: g / gradstep.sum(gradstep.abs(g))),
        formula(lambda g, share: g / gradstep.sum(g)),
        formula(lambda g, share: g / gradstep.sum(gradstep.sum(g, -1))),
    ],
    "along what": [
        formula(lambda g, share: g / gradstep.sum(g, -1)),
        formula(lambda g, share: g / gradstep.sum(g, -2)),
    ],
}  # fmt: skip


@pytest.mark.parametrize("what", DIFFERENT)
def test_specs_tell_apart(what: str) -> None:
    kernels = [list(specified(trace(rule, {}), "float64")) for rule in DIFFERENT[what]]
    texts = [tuple(text for text, _ in each) for each in kernels]
    codes = [tuple(code for _, code in each) for each in kernels]
    assert len(set(texts)) == len(set(codes)) == len(kernels)


def test_storage_and_instructions_are_part_of_it() -> None:
    for function in (lambda g, share: g - share, lambda g, share: g / gradstep.sum(g)):
        graph = trace(formula(function), {})
        made = [
            tuple(specified(graph, storage, replace(PLAIN, converts_half=half)))
            for storage in ITEM_BYTES
            for half in ((False, True) if storage == "float16" else (False,))
        ]
        for part in (0, 1):
            assert len({tuple(pair[part] for pair in each) for each in made}) == len(made)


FROM_A_ZIP = """
import json, sys, torch
import gradstep
torch.manual_seed(0)
weight = torch.nn.Parameter(torch.randn(40, 30))
optimizer = gradstep.Lion([weight], lr=0.01)
weight.grad = torch.randn(40, 30)
optimizer.step()
print(json.dumps([gradstep.__file__, *optimizer.engines_used().values(), weight.sum().item()]))
"""


@pytest.mark.deep
def test_a_package_whose_sources_cannot_be_read(tmp_path: Path) -> None:
    """In a zip file no digest of the sources stands for the code; its own text does."""
    package = Path(gradstep.__file__).parent
    archive = tmp_path / "gradstep.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for source in package.rglob("*.py"):
            file.write(source, source.relative_to(package.parent))
    found = []
    for path in (archive, package.parent, archive):
        cache = tmp_path / f"cache of {path.name}"
        environment = {**os.environ, "GRADSTEP_CACHE_DIR": str(cache)}
        environment["PYTHONPATH"] = os.pathsep.join([str(path), *filter(None, sys.path)])
        command = [sys.executable, "-c", FROM_A_ZIP]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
        assert list(cache.iterdir())
    from_zip, from_folder, again = found
    assert str(archive) in from_zip[0] and str(archive) not in from_folder[0]
    assert from_zip == again and from_zip[1:] == from_folder[1:]
    assert from_zip[1] == "fused"
