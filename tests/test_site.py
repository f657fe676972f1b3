"""The site: every page is in it, both languages are alike, no warnings and no dead links."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

import gradstep
from gradstep.classes.rule_classes import load as rule_classes
from gradstep.rule.operations import functions
from versions import ROOT

DOCS = ROOT / "docs"
CONFIGURATION = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
CHINESE = sorted(DOCS.rglob("*.zh.md"))
PARTS = ("mkdocs", "material", "mkdocstrings_handlers", "mkdocs_static_i18n", "latex2mathml")


def module(name: str) -> ModuleType:
    """A file of ``site/``."""
    spec = importlib.util.spec_from_file_location(f"site_{name}", ROOT / "site" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_every_page_is_in_the_navigation_and_there() -> None:
    named = re.findall(r"^ +- (\S+\.md)$", CONFIGURATION.split("\nnav:")[1], re.M)
    assert len(named) == len(set(named))
    pages = {p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md")} - {
        p.relative_to(DOCS).as_posix() for p in CHINESE
    }
    rules = {p for p in pages if p.startswith("rules/") and p != "rules/README.md"}
    assert set(named) == pages - rules, "the nav of mkdocs.yml names each page of docs/"


def test_every_public_name_has_its_place_in_the_reference() -> None:
    text = "\n".join(p.read_text(encoding="utf-8") for p in (DOCS / "api").glob("*.md"))
    found = re.findall(r"^::: gradstep\.(\w+)$", text, re.M)
    assert len(found) == len(set(found))
    names = {*gradstep.__all__, *functions()} - {"schedule", "trainers"} - set(rule_classes())
    assert sorted(names ^ set(found)) == []
    for module_of_many in ("gradstep.compose.schedule", "gradstep.trainers.hugging_face"):
        assert f"::: {module_of_many}\n" in text


@pytest.mark.parametrize("page", CHINESE, ids=lambda page: page.name)
def test_a_chinese_page_says_what_the_english_one_does(page: Path) -> None:
    """The same headings, code, rows of tables, pictures, links and numbers."""
    texts = [
        path.read_text(encoding="utf-8")
        for path in (page.with_name(page.name.replace(".zh.md", ".md")), page)
    ]
    assert re.search(r"[\u4e00-\u9fff]", texts[1]) and not re.search(r"[\u4e00-\u9fff]", texts[0])
    for what in (
        r"(?m)^(#+) ",
        r"(?m)^```(\w*)$",
        r"(?m)^\|.*?(\|+)$",
        r"!\[[^\]]*\]\(([^)]*)\)",
        r"(?<!!)\[[^\]]*\]\(([^)#]*)",
    ):
        english, chinese = (re.findall(what, text) for text in texts)
        if "(?<!" in what:
            english, chinese = (
                sorted(link.replace(".zh-CN", "") for link in links) for links in (english, chinese)
            )
        assert english == chinese, what
    codes = [re.findall(r"(?ms)^```(?:python|sh)\n(.*?)^```$", text) for text in texts]
    plain = [[re.sub(r" *#.*| --language zh", "", code) for code in each] for each in codes]
    assert plain[0] == plain[1]


def test_both_readmes_have_the_same_tables_commands_and_figures() -> None:
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md")]
    for what in (
        r"(?m)^(#+) ",
        r"(?m)^\|.*\|$",
        r"(?m)^```(\w*)$",
        r"!\[[^\]]*\]\(([^)]*)\)",
        r"`(gradstep [a-z]+[^`]*)`",
        r"`(make [a-z-]+)`",
    ):
        found = [re.findall(what, text) for text in texts]
        if what.startswith(r"(?m)^\|"):  # the cells are in words: their number, and the numbers
            found = [[(r.count("|"), _numbers(r)) for r in rows] for rows in found]
        elif what.startswith("`"):
            found = [sorted(set(each)) for each in found]
        assert found[0] == found[1], what
    # Figures in the text: how often a number of three digits or more, or one with a point, stands.
    figures = [sorted(re.findall(r"\d+(?:[.,]\d+)+|\d{3,}", _prose(text))) for text in texts]
    assert figures[0] == figures[1]


def _numbers(row: str) -> list[str]:
    return sorted(re.findall(r"\d+(?:[.,]\d+)*", row))


def _prose(text: str) -> str:
    return re.sub(r"(?ms)^```.*?^```$|^\|.*?\|$", "", text)


def test_dead_links_and_what_is_loaded_from_elsewhere_are_found(tmp_path: Path) -> None:
    """The looking itself, on a site of two pages."""
    (tmp_path / "a.html").write_text(
        '<h1 id="top">A</h1><a href="b.html#there">b</a><a href="https://example.org/x">out</a>'
        '<a href="b.html#gone">b</a><a href="c.html">c</a><img src="p.png"><a href="#top">up</a>'
        '<script src="https://example.org/s.js"></script>'
    )
    (tmp_path / "b.html").write_text('<p id="there"></p><a href="a.html">a</a>')
    assert list(module("build").faults(tmp_path)) == [
        "a.html: b.html#gone: the page has no such place",
        "a.html: c.html is not there",
        "a.html: p.png is not there",
        "a.html: https://example.org/s.js is loaded from elsewhere",
    ]


@pytest.mark.deep
@pytest.mark.slow
@pytest.mark.skipif(not all(map(find_spec, PARTS)), reason="needs pip install '.[docs]'")
def test_the_site_builds_without_a_warning_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "site" / "build.py", tmp_path / "site"],
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr and "no dead links" in done.stdout
    site = tmp_path / "site"
    lion = (site / "rules" / "lion.html").read_text(encoding="utf-8")
    assert "<math" in lion and "\\operatorname" not in lion and "lion.png" in lion
    classes = (site / "api" / "rule-classes.html").read_text(encoding="utf-8")
    assert all(f'id="gradstep.{name}"' in classes for name in rule_classes())
    assert "the share of the kept average in the direction" in classes
    for language, words in (("", "bit for bit"), ("zh/", "每一位都相同")):
        lesson = (site / f"{language}lesson.html").read_text(encoding="utf-8")
        assert words in lesson and "0.7179" in lesson
    notebook = (site / "zh" / "notebook.html").read_text(encoding="utf-8")
    assert "step 136 of Adam" in notebook and "data:image/png" in notebook
    assert (site / "files" / "examples" / "01_update_weights.ipynb").is_file()
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    places = {entry["location"].partition("#")[0] for entry in index["docs"]}
    assert {"rules/lion.html", "lesson.html", "zh/lesson.html"} <= places
    assert "zh/rules/lion.html" not in places  # the English page in the place of a Chinese one
    words = "".join(e["text"] for e in index["docs"] if e["location"] == "zh/lesson.html")
    assert "学习" in words.split("\u200b")  # Chinese is cut into words
