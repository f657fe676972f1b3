"""``make docs``: build the site, and look for links that lead nowhere.

A warning is an error. Nothing is loaded from elsewhere, while it is built or when it is read.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parent.parent
#: What a browser loads by itself, by element.
_LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "audio": "src"}


class _Page(HTMLParser):
    """The links, names and loaded files of one page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.names: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.names |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
            self.loaded.append(found["href"])
        if tag in _LOADED and _LOADED[tag] in found:
            self.loaded.append(found[_LOADED[tag]])


def read(site: Path) -> dict[Path, _Page]:
    """All pages of a built site."""
    pages = {}
    for path in sorted(site.rglob("*.html")):
        page = _Page()
        page.feed(path.read_text(encoding="utf-8"))
        pages[path.resolve()] = page
    return pages


def faults(site: Path) -> Iterator[str]:
    """What is wrong in a built site: dead links, and what would be loaded from elsewhere."""
    pages = read(site)
    for path, page in pages.items():
        for link in dict.fromkeys([*page.links, *page.loaded]):
            parts = urlsplit(link)
            if parts.scheme in ("mailto", "data", "javascript"):
                continue
            said = f"{path.relative_to(site.resolve())}: {link}"
            if parts.scheme or parts.netloc:
                if link in page.loaded:
                    yield f"{said} is loaded from elsewhere"
                continue
            target = path
            if parts.path:
                start = site.resolve() if parts.path.startswith("/") else path.parent
                target = (start / unquote(parts.path).lstrip("/")).resolve()
            if target.is_dir():
                target /= "index.html"
            if not target.exists():
                if path.name != "404.html":  # whose links are as from the server's root
                    yield f"{said} is not there"
            elif parts.fragment and target in pages:
                name = unquote(parts.fragment)
                if name not in pages[target].names and not name.startswith("__"):
                    yield f"{said}: the page has no such place"


def build(site: Path) -> None:
    """Build the site into a folder.

    Raises:
        subprocess.CalledProcessError: a warning, which it has printed.
    """
    # Not --quiet: with it warnings would neither be shown nor counted.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    command += ["--config-file", str(ROOT / "mkdocs.yml"), "--site-dir", str(site.resolve())]
    subprocess.run(command, check=True, env={"NO_MKDOCS_2_WARNING": "1", **os.environ})


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", type=Path, help="the folder to build into")
    parser.add_argument("--check-only", action="store_true", help="only look at what is there")
    chosen = parser.parse_args(arguments)
    if not chosen.check_only:
        try:
            build(chosen.site)
        except subprocess.CalledProcessError as error:
            return error.returncode
    found = list(faults(chosen.site))
    print(*found, sep="\n", file=sys.stderr, end="\n" if found else "")
    pages = len(list(chosen.site.rglob("*.html")))
    print(f"{chosen.site}: {pages} pages, {len(found) or 'no'} dead links")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
