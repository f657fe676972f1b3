"""What is put into pages as they are read: names to link to, lists, files from outside of docs/."""

from __future__ import annotations

import posixpath
import re
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from names import rule_classes  # beside this file

ROOT = Path(__file__).parent.parent
#: Pages whose tables need the room of the table of contents.
WIDE = {"catalogue.md", "choose.md", "coming-from.md", "rules/README.md"}
CLASSES = "<!-- a class for each rule -->"
_FILE = re.compile(r"^# .*\n\n.*\n\n<!-- the file (\S+) -->$", re.M)
_LINK = re.compile(r"(!?\[[^\]]*\])\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")
_LETTER = "[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]"
_BETWEEN = re.compile(f"(?<={_LETTER})\n(?={_LETTER})")
_CELL_CODE = re.compile(r"(?<=<code>)[^<]+(?=</code>)")
#: Where code in a narrow column may go on in the next line: behind brackets and signs, in no name.
_MAY_BREAK = re.compile(r"(?<=[([{=+/])(?=[^\s\d)\]}])")
#: Files of the repository that are pages of the site under another name.
PAGES = {
    "README.md": "index.md",
    "README.zh-CN.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}

#: Files of the repository that pages lead to, which the site takes along.
_taken: set[str] = set()


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    source = page.file.src_uri
    if source.replace(".zh.md", ".md") in WIDE:
        page.meta["hide"] = ["toc"]
    if page.file.dest_uri.startswith("zh/") and not source.endswith(".zh.md"):
        # An English page that stands in for a Chinese one is found in its own place.
        page.meta["search"] = {"exclude": True}
    if CLASSES in markdown:
        blocks = "\n\n".join(f"::: gradstep.{name}" for name in rule_classes())
        markdown = markdown.replace(CLASSES, blocks)
    if source.startswith("rules/") and not source.startswith("rules/README"):
        markdown = _with_ways_out(markdown)
    if source.startswith("api/") and "\n## " in markdown:  # names stand below headings
        markdown = re.sub(r"(?m)^(::: .*)$", r"\1\n    options:\n      heading_level: 3", markdown)
    markdown = _FILE.sub(lambda found: _file(found[1]), markdown)
    return _LINK.sub(lambda found: _link(found, page), markdown)


def _with_ways_out(markdown: str) -> str:
    """A rule's page, which is in no navigation, with a line that leads on from it."""
    found = re.search(r"^    gradstep\.(\w+)\(", markdown, re.M)
    ways = ["[All rules](README.md)"]
    if found and found[1] not in ("Optimizer", "chain"):
        ways.append(f"[`gradstep.{found[1]}`][gradstep.{found[1]}] in the reference")
    ways += ["[explain a step](../explain.md)", "[race it](../compare.md)"]
    return re.sub(r"\A(# .*\n)", lambda title: f"{title[1]}\n{' · '.join(ways)}\n", markdown)


def on_page_content(html: str, *, page: Any, **_: Any) -> str:
    """With places where long code in tables may break; and without the spaces that line ends would
    leave between Chinese letters."""
    html = re.sub(
        r"<td[ >].*?</td>",
        lambda cell: _CELL_CODE.sub(lambda code: _MAY_BREAK.sub("<wbr>", code[0]), cell[0]),
        html,
        flags=re.S,
    )
    if page.file.dest_uri.startswith("zh/"):
        parts = re.split(r"(<pre.*?</pre>)", html, flags=re.S)
        parts[::2] = [_BETWEEN.sub("", part) for part in parts[::2]]
        html = "".join(parts)
    return html


def _file(name: str) -> str:
    """A file of the repository's root as a page: its links are as from docs/."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.sub(r"\]\((?!\w+:|#)(?:docs/)?", lambda m: "](" if "docs/" in m[0] else "](../", text)


def _link(found: re.Match[str], page: Any) -> str:
    """A link that leaves docs/: to the page that the file is, or to a copy of the file."""
    label, target, anchor = found[1], found[2], found[3] or ""
    folder = posixpath.join("docs", posixpath.dirname(page.file.src_uri))
    path = posixpath.normpath(posixpath.join(folder, target))
    if path.startswith("docs/") or not (ROOT / path).exists():
        return found[0]  # mkdocs says whether it is there
    up = "../" * page.file.src_uri.count("/")
    if path in PAGES:
        return f"{label}({up}{PAGES[path]}{anchor})"
    _taken.add(path)
    up = "../" * page.file.dest_uri.count("/")
    return f'<a href="{up}files/{path}">{label.strip("[]")}</a>'


def on_post_build(config: Any, **_: Any) -> None:
    for path in _taken:
        copy = Path(config["site_dir"]) / "files" / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / path).is_file():
            shutil.copyfile(ROOT / path, copy)
