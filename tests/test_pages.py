"""README and docs: Python runs block after block; commands take the arguments that are shown."""

from __future__ import annotations

import ast
import inspect
import math
import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gradstep
import page_blocks
import test_rules_text
from gradstep.backends import dispatch
from gradstep.backends.cpu.run import PARALLEL
from gradstep.backends.cuda import self_check
from gradstep.compose.wrapper import Wrapper
from gradstep.lab.lenet import LeNet
from gradstep.lab.resnet import ResNet
from gradstep.lab.text import CharacterTransformer
from gradstep.linalg.newton_schulz import COEFFICIENTS
from gradstep.program import formats
from gradstep.rule import language, state
from gradstep.rule.definition import INPUTS
from gradstep.rule.operations import OPERATIONS, functions
from gradstep.sight.mistakes.known import load
from page_blocks import ROOT

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("README.*.md")), *sorted(DOCS.glob("*.md"))]

#: Whose code is that of another page, is run there in short, or compiles ten kernels.
LONG = ["README.zh-CN.md", "docs/watch.md", "docs/cookbook.md"]

#: What stands in the READMEs themselves, or beside them.
OF_THE_SITE = (
    "index.md", "start.md", "lesson.md", "notebook.md", "contributing.md", "changelog.md",
)  # fmt: skip

#: Blocks that are not run here: the page, and what each of them needs.
LEFT_OUT = {
    "docs/coming-from.md": ["timm", "optax, jax", "bitsandbytes", "deepspeed", "deepspeed"],
    "docs/trainers.md": ["transformers, accelerate", "lightning", "accelerate", "deepspeed"],
}

#: What else holds when a page has been read, of the names that it made.
AFTERWARDS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "docs/matrix-rules.md": lambda names: names["after"] < 0.1 * names["before"],
    "docs/offload.md": lambda names: (
        {int(s["step"]) for s in names["optimizer"].state.values()} == {1}
        and list(Path(names["folder"]).iterdir()) == []
    ),
    "docs/step-in-backward.md": lambda names: (
        all(p.grad is None for p in names["model"].parameters())
        and {int(s["step"]) for s in names["optimizer"].state.values()} == {1}
    ),
}


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def is_long(page: Path) -> bool:
    """A page in Chinese has the code of the English one: tests/test_site.py compares them."""
    return name(page) in LONG or page.name.endswith(".zh.md")


@pytest.fixture
def _added_to_the_package(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a page adds to formats, engines and operations is taken out again."""
    for module, known in ((formats, "_COLUMNS"), (formats, "_STATES"), (dispatch, "_engines")):
        monkeypatch.setattr(module, known, dict(getattr(module, known)))
    operations = set(OPERATIONS)
    yield
    for new in set(OPERATIONS) - operations:
        del OPERATIONS[new]
        vars(language).pop(new, None)


@pytest.mark.usefixtures("_added_to_the_package")
@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=[pytest.mark.deep] * is_long(p), id=name(p)) for p in PAGES],
)
def test_a_reader_who_pastes_block_after_block_gets_what_is_shown(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(987654321)  # a page whose numbers hang on a seed sets it
    reading = page_blocks.read(page)
    assert AFTERWARDS.get(name(page), lambda _: True)(reading.names)


def test_each_heading_of_the_faq_is_a_message_that_a_block_provokes() -> None:
    page = (DOCS / "faq.md").read_text()
    headings = re.findall(r"^### `(.*)`$", page, re.M)
    provoked = {
        block.heading.strip("`")
        for block in page_blocks.blocks(DOCS / "faq.md")
        if block.mark in ("raises", "logs")  # whose message the reader of pages compares with it
    }
    assert len(headings) > 15 and set(headings) == provoked


def test_what_is_not_run_is_known_and_counted() -> None:
    found = {
        name(page): [block.mark.partition(" ")[2] for block in page_blocks.blocks(page)
                     if block.mark.startswith(("needs ", "not run: "))]
        for page in PAGES
    }  # fmt: skip
    assert {page: marks for page, marks in found.items() if marks} == LEFT_OUT


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_in_the_text_take_the_arguments_that_are_shown(page: Path) -> None:
    for arguments in page_blocks.commands_in_prose(page):
        page_blocks.check_command(arguments, name(page))


#: Of what lies in the repository, with the test in it where one is named.
_IN_THE_REPOSITORY = re.compile(r"\b((?:tests|examples|src|docs)/[\w./-]*\w)(?:::(\w+))?")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_modules_and_tests_that_stand_beside_a_claim_exist(page: Path) -> None:
    text = page.read_text()
    # A URL may have such a path, too: only what is code counts, between backticks or in a block.
    spans = re.findall(r"`([^`\n]+)`", text) + [b.text for b in page_blocks.blocks(page)]
    for span in spans:
        for path, function in _IN_THE_REPOSITORY.findall(span):
            assert (ROOT / path).exists(), (name(page), path)
            if function:
                assert f"def {function}(" in (ROOT / path).read_text(), (name(page), function)
        for module in re.findall(r"(?:\bpython -m |^)(gradstep\.lab\.\w+)", span):
            assert find_spec(module), (name(page), module)


@pytest.mark.parametrize("name", ["README", "choose", "explain", "mistakes", "lesson", "index"])
def test_both_languages_have_the_same_tests_beside_their_claims(name: str) -> None:
    chinese = "README.zh-CN.md" if name == "README" else f"docs/{name}.zh.md"
    english = "README.md" if name == "README" else f"docs/{name}.md"
    found = [
        sorted(re.findall(r"`(tests/[^`]+)`", (ROOT / page).read_text()))
        for page in (english, chinese)
    ]
    assert found[0] == found[1]


def test_counts_that_pages_say_are_those_of_the_package() -> None:
    def holds(page: str, said: str) -> bool:
        return said in " ".join((ROOT / page).read_text().split())

    longest = f"at most {test_rules_text.LONGEST} lines"
    assert holds("README.md", longest)
    assert holds("README.zh-CN.md", f"最多 {test_rules_text.LONGEST} 行")
    assert 40 <= len(load()[1]) - 1 < 46  # "and some forty others"
    weights = {
        "README.md": LeNet(),
        "docs/races.md": LeNet(),
        "docs/compare.md": CharacterTransformer(),
    }
    for page, network in [*weights.items(), ("docs/races.md", ResNet())]:
        assert holds(page, f"{sum(p.numel() for p in network.parameters()):,} weights"), page
    for shapes in (self_check.SIZES, self_check.MATRICES):
        assert holds("docs/devices.md", f"{sum(map(math.prod, shapes)):,}")
    assert holds("docs/speed.md", f"more than {PARALLEL:,} weights")
    names = gradstep.trainers.hugging_face_names()
    section = (
        (DOCS / "catalogue.md").read_text().split("TrainingArguments(optim=…)")[1].split("\n## ")[0]
    )
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| `")]
    named = {"not here" not in here: 0 for _, here in rows}
    for theirs, here in rows:
        named["not here" not in here] += theirs.count("`") // 2
    assert holds("docs/trainers.md", f"{named[True]} of its {sum(named.values())} names")
    assert holds("docs/compose.md", f"has {len(names)} names") and sum(named.values()) == len(names)


def test_every_target_of_make_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    asked = {
        target
        for page in PAGES
        for target in re.findall(r"(?:^|`)make ([a-z][\w-]*)", page.read_text(), re.M)
    }
    assert "run" in asked and asked <= targets


def test_both_readmes_have_the_same_code() -> None:
    codes = []
    for page in ("README.md", "README.zh-CN.md"):
        found = [b for b in page_blocks.blocks(ROOT / page) if b.language in ("python", "text")]
        codes.append([re.sub(r" *#.*", "", block.text) for block in found])
    assert codes[0] == codes[1]


def ours_in_the_tables() -> list[str]:
    """What stands under "here" in docs/coming-from.md, each between its backticks."""
    tables = (DOCS / "coming-from.md").read_text().split("| theirs | here |")[1:]
    lines = [line for table in tables for line in table.split("\n\n")[0].splitlines()[2:]]
    return [name for line in lines for name in re.findall(r"`([^`]+)`", line.split(" | ")[1])]


#: What is another library's, and functions that the text around them says how to call.
NOT_EVALUATED = ("state_dtype", "partition", "GradScaler", "autocast", "ZeroRedundancyOptimizer")


class Ours(dict[str, Any]):
    """The names of gradstep; classes are given the parameters of a model."""

    def __init__(self) -> None:
        self.model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    def __missing__(self, name: str) -> Any:
        found = getattr(gradstep, name)  # AttributeError: there is no such name
        if name == "create":
            return lambda name, **options: found(name, self.model, **options)
        if not isinstance(found, type) or issubclass(found, Wrapper):
            return found
        given = [p for p in self.model.parameters() if p.ndim > 1 or name != "Muon"]
        return lambda *rule, **options: found(given, *rule, **options)


def test_every_name_of_ours_that_others_are_told_is_one_and_takes_these_arguments() -> None:
    found = ours_in_the_tables()
    assert len(found) > 100
    for spelled in found:
        if spelled not in NOT_EVALUATED:
            eval(spelled, {"__builtins__": {"True": True, "False": False}}, Ours())


def test_the_pages_name_all_of_their_tables() -> None:
    files = (ROOT / "src" / "gradstep" / "rules" / "transforms").glob("*.py")
    stages = re.findall(r"^@rule\ndef (\w+)", "".join(f.read_text() for f in files), re.M)
    assert len(stages) > 15
    page = (DOCS / "compose.md").read_text()
    assert [stage for stage in stages if f"`{stage}`" not in page] == []
    page = (DOCS / "matrix-rules.md").read_text()
    assert [chosen for chosen in COEFFICIENTS if f"\n{chosen} " not in page] == []


#: What the README says itself, or links where it lies in the repository, as pages of the site.
OF_THE_SITE = {
    *("index.md", "start.md", "lesson.md", "notebook.md", "changelog.md", "contributing.md"),
}


def test_every_page_is_linked_from_both_readmes_and_every_link_leads_somewhere() -> None:
    for readme in ("README.md", "README.zh-CN.md"):
        text = (ROOT / readme).read_text()
        translated = re.compile(r"\.\w\w(-\w+)?\.md$")  # of a page that is linked
        pages = [p.name for p in DOCS.glob("*.md") if not translated.search(p.name)]
        assert [p for p in pages if f"(docs/{p}" not in text and p not in OF_THE_SITE] == [], readme
    for page in PAGES:
        prose = page_blocks.without_blocks(page.read_text())
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose):
            assert "://" in target or (page.parent / target).exists(), (name(page), target)


def errors_of_the_language() -> list[str]:
    """What each error of gradstep.rule says is wrong, from its text; … for what it puts in."""
    found: list[str] = []
    for path in sorted((ROOT / "src" / "gradstep" / "rule").glob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and call.args:
                of = getattr(call.func, "attr", getattr(call.func, "id", ""))
                if of in ("refuse", "RuleError"):
                    found.append(words_of(call.args[0]))
    return [text for text in found if text.replace("…", "").strip()]


def words_of(text: ast.expr) -> str:
    if isinstance(text, ast.JoinedStr):
        return "".join(map(words_of, text.values))
    return str(text.value) if isinstance(text, ast.Constant) else "…"


def test_the_page_of_the_language_has_all_of_it() -> None:
    page = (DOCS / "language.md").read_text()
    tables = page.split("## Errors")[0]
    rows = "\n".join(line for line in tables.splitlines() if line.startswith("|"))
    starts = [
        n
        for n, f in inspect.getmembers(state, inspect.isfunction)
        if f.__module__ == state.__name__
    ]
    assert len(starts) > 8 and len(functions()) > 25
    missing = [n for n in (*functions(), *starts) if not re.search(rf"`[^`]*\b{n}\(", rows)]
    assert missing == []
    assert [n for n, text in INPUTS.items() if f"| `{n}` | {text} |" not in rows] == []
    annotations = ("Decay", "Share", "NonNegative", "Positive", "Interval", "Value", "Result")
    assert [n for n in annotations if f"gradstep.{n}" not in tables] == []
    said = page.split("## Errors")[1].replace("\\", "")
    wrong = [text.partition(". ")[0].rstrip(".") for text in errors_of_the_language()]
    assert len(wrong) > 40 and [text for text in wrong if text not in said] == []
