"""The pages about rules in docs/rules are what the rules say, and can be made anew."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gradstep.cli import main
from gradstep.lab.rule_pages import write_pages
from gradstep.sight.catalogue import find_rule, is_stage, rule_names
from gradstep.sight.rule_page import TRAINED, index_markdown, rule_markdown

PAGES = Path(__file__).parent.parent / "docs" / "rules"


def without_training(page: str) -> str:
    """A page without its picture and the sentence about its training."""
    page = re.sub(r"## Its ways\n\n!\[.*\]\(.*\)\n\n", "", page)
    return re.sub(rf"^{TRAINED}.*\n\n", "", page, flags=re.MULTILINE)


def test_the_pages_have_not_drifted_from_the_rules() -> None:
    """A page that is missing is no error: adding a rule must not take more than its file."""
    found = {path.stem: path.read_text() for path in PAGES.glob("*.md") if path.stem != "README"}
    assert set(found) <= set(rule_names()), "pages of rules that are gone"
    for name, page in found.items():
        assert without_training(page) == without_training(rule_markdown(name)), (
            f"docs/rules/{name}.md is not what the rule says: gradstep rules --pages docs/rules"
        )


def test_every_picture_that_a_page_names_is_there() -> None:
    for path in PAGES.glob("*.md"):
        for target in re.findall(r"\]\(([\w.]+)\)", path.read_text()):
            assert (PAGES / target).is_file(), f"{path.name}: {target}"


def test_a_page_says_all_of_its_rule(tmp_path: Path) -> None:
    said: list[str] = []
    write_pages(tmp_path, 1, said.append, ["lion", "clip_by_value", "muon"])
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "clip_by_value.md",
        "lion.md",
        "lion.png",
        "muon.md",
    ]
    page = (tmp_path / "lion.md").read_text()
    assert page.startswith("# lion\n\nLion: only the sign")
    for text in (
        "    gradstep.Lion(params, lr=0.0001)",
        r"\operatorname{sign}",
        "| `exp_avg` | weight | 0 |",
        "| `beta2` | `0.99` |",
        "State: 4 B for each float32 weight. One pass over memory.",
        "![The paths of lion](lion.png)",
        "arXiv:2302.06675",
    ):
        assert text in page, text
    assert re.search(rf"{TRAINED}after 1 epochs with lr=\S+ LeNet reads \d+\.\d% of", page)
    assert "not trained. Muon updates matrices only" in (tmp_path / "muon.md").read_text()
    stage = (tmp_path / "clip_by_value.md").read_text()
    assert "gradstep.chain(gradstep.clip_by_value(), gradstep.adam())" in stage
    assert (tmp_path / "lion.png").read_bytes().startswith(b"\x89PNG")
    assert said == [s for s in said if re.match(r"lion: \d|muon: not", s)] and len(said) == 2


def test_only_the_rules_that_are_named_get_pages(tmp_path: Path) -> None:
    pages = ["--pages", str(tmp_path), "--epochs", "0"]
    assert main(["rules", "decay_weights", "clip_by_value", *pages]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip_by_value.md", "decay_weights.md"]


def test_the_index_has_every_rule_and_stage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "--markdown"]) == 0
    out = capsys.readouterr().out
    assert out.strip() == index_markdown().strip()
    rules, stages = out.split("Stages, for chains:")
    for name in rule_names():
        own = stages if is_stage(find_rule(name)) else rules
        rows = [row for row in own.splitlines() if row.startswith(f"| `{name}` |")]
        assert len(rows) == 1, name
        # A formula may hold what would end a cell.
        assert rows[0].replace("\\|", "").count("|") == (7 if own is rules else 6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--epochs", "3"), "--epochs belongs to --pages"),
        (("--pages", "x", "--epochs", "-1"), "argument --epochs: -1 is not from 0 to"),
    ],
)
def test_bad_arguments(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = main(["rules", *arguments])
    except SystemExit as stopped:  # what argparse itself refuses
        code = stopped.code
    assert code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error


def test_a_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["rules", "--pages", str(tmp_path / "file" / "x")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
