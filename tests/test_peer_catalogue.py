"""docs/catalogue.md: every name of every peer with ours or the reason, and every rule of ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import gradstep
from gradstep import rules, trainers
from gradstep.cli import main
from gradstep.sight import peer_catalogue
from gradstep.sight.peer_catalogue import catalogue_markdown, cell, named, ours
from gradstep.sight.peer_names import PEERS, PeerRow, peer_rows

PAGE = Path(__file__).parent.parent / "docs" / "catalogue.md"
ROWS = [(peer, row) for peer, text in PEERS.items() for row in peer_rows(text)]


def test_every_row_names_what_is_here_or_says_why_not() -> None:
    for peer, row in ROWS:
        shown = cell(row)
        for name in named(shown):
            assert ours(name) is not None, f"{peer}: {row.theirs}: {name}"
        assert named(shown) or len(shown.split()) > 1, f"{peer}: {row.theirs} = {shown}"
    assert len({(peer, row.theirs) for peer, row in ROWS}) == len(ROWS), "a row stands twice"


def theirs(start: str) -> set[str]:
    return {name for peer, row in ROWS if peer.startswith(start) for name in row.theirs.split(", ")}


def test_the_names_of_torch_and_of_hugging_face_are_complete() -> None:
    optimizers = {n for n in torch.optim.__all__ if isinstance(getattr(torch.optim, n), type)}
    assert optimizers - {"Optimizer"} <= theirs("torch.optim")
    found = theirs("Hugging Face transformers 5.24, TrainingArguments")
    assert found == {*trainers.hugging_face_names()}


def test_the_names_of_libraries_that_are_installed_are_complete() -> None:
    pytorch_optimizer = pytest.importorskip("pytorch_optimizer")
    exported = {
        n
        for n in dir(pytorch_optimizer)
        if isinstance(getattr(pytorch_optimizer, n), type)
        and issubclass(getattr(pytorch_optimizer, n), torch.optim.Optimizer)
    }
    assert exported - {"BaseOptimizer", "Optimizer"} <= theirs("pytorch_optimizer")


def test_every_rule_of_ours_is_on_the_page() -> None:
    def plain(name: str) -> str:
        return name.lower().replace("_", "")

    known = {plain(name) for name in named(catalogue_markdown())}
    missing = [
        name
        for name, rule in rules.load().items()
        if not {plain(name), plain(rule.class_name or name)} & known
    ]
    assert not missing


def test_the_page_is_what_the_command_makes(capsys: pytest.CaptureFixture[str]) -> None:
    """But for what waits for a rule, and for rules that were added since."""
    assert main(["rules", "--catalogue"]) == 0
    made = capsys.readouterr().out
    assert made.strip() == catalogue_markdown().strip()
    page = {*PAGE.read_text(encoding="utf-8").splitlines()}
    waiting = {row.theirs for _, row in ROWS if row.waits}
    missing = [
        line
        for line in made.split("## Rules and stages of which none")[0].splitlines()
        if line not in page and not any(f"| `{each}" in line for each in map(first, waiting))
    ]
    assert not missing, f"gradstep rules --catalogue > docs/catalogue.md: {missing[:5]}"


def first(theirs: str) -> str:
    return theirs.split(", ")[0]


def test_to_ask_for_many_names_reads_the_tables_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """hasattr() asks here, and who looks through all names of another library asks for hundreds."""
    read: list[str] = []

    def counted(text: str) -> Iterator[PeerRow]:
        read.append(text)
        return peer_rows(text)

    monkeypatch.setattr(peer_catalogue, "peer_rows", counted)
    peer_catalogue._by_their_name.cache_clear()
    assert not any(hasattr(gradstep, f"a_name_{i}") for i in range(50))
    with pytest.raises(AttributeError, match=r"docs/catalogue.md has for that of optax "):
        _ = gradstep.scale_by_adam  # type: ignore[attr-defined]
    assert read == [*PEERS.values()]
