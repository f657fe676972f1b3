"""The classes of torch.optim are declarations: what torch, Python and type checkers see of them."""

from __future__ import annotations

import inspect
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import gradstep
from classes import IN_TORCH, ROWS, Row, Task, assert_same_bits, each
from gradstep import torch_optim

ROOT = Path(__file__).parent.parent


@each(IN_TORCH)
def test_the_signature_is_torchs_to_the_letter(row: Row) -> None:
    """Names, order, kinds and defaults; engine and how things are stored are ours, at the end.

    And before these what only our class can do.
    """
    ours, theirs = (
        [(n, p.kind, p.default) for n, p in inspect.signature(kind).parameters.items()]
        for kind in (row.ours, row.theirs)
    )
    added = ours[len(theirs) :]
    assert ours[: len(theirs)] == theirs
    has_engine, by_name = row.name not in ("SparseAdam", "LBFGS"), inspect.Parameter.KEYWORD_ONLY
    expected = [("engine", by_name, "auto")] * has_engine
    stored = [("state_dtype", by_name, None), ("low_precision", by_name, "nearest")]
    beyond = [(n, by_name, v) for n, v in row.beyond.items()]
    assert added == [*beyond, *expected, *stored * (row.name != "LBFGS")]


@each(IN_TORCH)
def test_groups_list_their_options_in_torchs_order(row: Row) -> None:
    found = [kind([torch.zeros(2, 2)]) for kind in (row.ours, row.theirs)]
    assert list(found[0].defaults) == list(found[1].defaults)
    assert list(found[0].param_groups[0]) == list(found[1].param_groups[0])
    assert list(found[0].state_dict()["param_groups"][0]) == list(
        found[1].state_dict()["param_groups"][0]
    )


@each(IN_TORCH)
def test_by_position_means_what_it_means_to_torch(row: Row) -> None:
    positional = [
        p.default
        for p in inspect.signature(row.theirs).parameters.values()
        if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is not p.empty
    ]
    for number in range(len(positional) + 1):
        made = [kind([torch.zeros(2, 2)], *positional[:number]) for kind in (row.ours, row.theirs)]
        assert made[0].defaults == made[1].defaults
    for kind in (row.ours, row.theirs):
        with pytest.raises(TypeError, match=rf"{row.theirs.__init__.__qualname__}\(\) "):
            kind([torch.zeros(2, 2)], no_such_option=1)
        with pytest.raises(TypeError, match=r"__init__\(\) missing"):
            kind()


@each(ROWS)
def test_the_docstring_tells_of_each_argument(row: Row) -> None:
    text = inspect.getdoc(row.ours) or ""
    if row.name == "LBFGS":
        assert "those of torch.optim.LBFGS" in text
        return
    assert max(map(len, text.splitlines())) <= 100
    arguments = re.split(r"\n(?:Args|Raises):\n", text)[1]
    told = [
        n for row in re.findall(r"^    (\w[\w, ]*): \w?", arguments, re.M) for n in row.split(", ")
    ]
    assert sorted(told) == sorted(inspect.signature(row.ours).parameters)
    for name, parameter in inspect.signature(row.ours).parameters.items():
        if name not in ("params", "engine", "foreach", "fused", "capturable"):
            assert f"Default: {parameter.default}." in " ".join(text.split())
    assert not re.search(r": (?:Default|\d: \d:)", text)  # nothing is said of it


@each(ROWS)
def test_it_is_pickled_by_the_name_that_users_know(row: Row) -> None:
    assert getattr(gradstep, row.name) is row.ours
    assert pickle.loads(pickle.dumps(row.ours)) is row.ours
    assert row.ours.__qualname__ == row.name


def test_classes_are_related_as_torchs() -> None:
    for one in IN_TORCH:
        for other in IN_TORCH:
            assert issubclass(one.ours, other.ours) == issubclass(one.theirs, other.theirs)
    assert all(issubclass(getattr(gradstep, n), torch.optim.Optimizer) for n in torch_optim.__all__)


@each(IN_TORCH)
def test_it_works_in_the_place_of_torchs(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some put classes into torch.optim, so that all code around takes them."""
    plain, patched = Task(row), Task(row)
    plain.train(row.make(plain), 2)
    monkeypatch.setattr(torch.optim, row.name, row.ours)
    optimizer = getattr(torch.optim, row.name)(list(patched))
    patched.train(optimizer, 1)
    assert type(pickle.loads(pickle.dumps(optimizer))) is row.ours
    patched.train(optimizer, 1)
    assert_same_bits(plain, patched)


def test_a_subclass_with_arguments_of_its_own() -> None:
    class Slow(gradstep.AdamW):
        def __init__(self, params: object, slowness: float, **options: object) -> None:
            super().__init__(params, lr=1 / slowness, **options)  # type: ignore[arg-type]

    optimizer = Slow([nn.Parameter(torch.ones(3))], 4.0, weight_decay=0.5)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.25, 0.5)
    assert group["decoupled_weight_decay"] is True
    with pytest.raises(TypeError, match="decoupled_weight_decay"):
        Slow([nn.Parameter(torch.ones(3))], 4.0, decoupled_weight_decay=False)


#: What a user writes, and what a type checker says of it.
USES = [
    ("gradstep.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.99))", None),
    ("gradstep.SGD([weight], 0.1, 0.9, nesterov=True, engine='fused')", None),
    ("gradstep.Muon([weight], adjust_lr_fn='match_rms_adamw')", None),
    ("gradstep.Adam(model.parameters(), lr=weight)", None),
    ("gradstep.Adam(model.parameters(), lr='fast')", 'Argument "lr" to "Adam" has incompatible'),
    ("gradstep.AdamW([weight], 1e-3, 0.9)", 'Argument 3 to "AdamW" has incompatible type'),
    ("gradstep.SGD([weight], momentun=0.9)", 'Unexpected keyword argument "momentun" for "SGD"'),
    ("gradstep.RMSprop()", 'Missing positional argument "params" in call to "RMSprop"'),
    ("gradstep.Rprop([weight], 0.1, (0.5, 1.2), (0, 1), False)", 'Too many positional arguments'),
]  # fmt: skip


@pytest.mark.deep
@pytest.mark.slow
def test_a_users_type_checker_sees_the_arguments(tmp_path: Path) -> None:
    """mypy, as a user runs it: with the package, which says that it is typed."""
    given = tmp_path / "use.py"
    lines = ["import gradstep", "from torch import nn, zeros", "", "model = nn.Linear(2, 2)"]
    lines.append("weight = zeros(2, 2)")
    given.write_text("\n".join([*lines, *(use for use, _ in USES)]))
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", "--no-error-summary"]
    done = subprocess.run([*command, str(given)], capture_output=True, text=True, cwd=ROOT)
    said = {
        int(number): words
        for number, words in re.findall(r"use\.py:(\d+): error: (.*)", done.stdout)
    }
    expected = {n: e for n, (_, e) in enumerate(USES, len(lines) + 1) if e is not None}
    assert set(said) == set(expected), done.stdout + done.stderr
    for number, words in expected.items():
        assert words in said[number]
