"""The blocks of a page, run as by a reader who pastes one after the other.

A comment directly above a fence says what is particular about a block:

- ``<!-- needs optax -->``: it is run where the package is installed (or where there is ``cuda``);
- ``<!-- raises -->``: it raises, and what a traceback would end with counts as printed; where
  nothing is shown below, the heading is in the error's message;
- ``<!-- logs -->``: the heading is in what it warns of, or hands to the logger ``gradstep``;
- ``<!-- not run: why -->``: it is not run;
- ``<!-- last digits vary -->``, above what is shown: its numbers hold to a hundredth, since
  torch's own operations round otherwise on other CPUs.

What a block prints stands in a block ``text`` right below it, or the page says less than it shows.
In such a block ``…`` stands for whatever differs from machine to machine.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import math
import re
import shlex
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gradstep.cli import COMMANDS, build_parser, main

ROOT = Path(__file__).parent.parent

_BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]*?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)
_MARK = re.compile(r"raises|logs|needs [\w, ]+|not run: .+|last digits vary")
_HEADING = re.compile(r"^#+ (.*)$", re.M)
#: What stands before the command in a line of a shell.
_BEFORE = re.compile(r"^(?:\.venv/bin/|torchrun .*?-m |python -m )?gradstep(?= |$)")


@dataclass
class Block:
    """A fenced block of a page."""

    page: Path
    line: int  #: of its first line of text, from 1
    language: str
    text: str
    mark: str
    heading: str  #: the one that it stands under
    below: bool  #: whether nothing but empty lines is between it and the block before

    @property
    def place(self) -> str:
        """For messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def missing(self) -> str:
        """What this machine lacks to run it; nothing where it can."""
        if self.mark.startswith("not run: "):
            return self.mark.removeprefix("not run: ")
        if not self.mark.startswith("needs "):
            return ""
        names = self.mark.removeprefix("needs ").split(", ")
        return ", ".join(name for name in names if not _there(name))


@dataclass
class Reading:
    """What became of a page's blocks."""

    ran: list[Block] = field(default_factory=list)
    left_out: list[Block] = field(default_factory=list)
    names: dict[str, Any] = field(default_factory=dict)
    commands: list[list[str]] = field(default_factory=list)


def _there(name: str) -> bool:
    if name == "cuda":
        return torch.cuda.is_available()
    return importlib.util.find_spec(name) is not None


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of ``page``, in their order."""
    text = page.read_text(encoding="utf-8")
    found: list[Block] = []
    end = 0
    for match in _BLOCK.finditer(text):
        headings = _HEADING.findall(without_blocks(text[: match.start()]))
        mark = match["mark"] or ""
        if mark and not _MARK.fullmatch(mark):
            raise ValueError(f"{page.name}: unknown mark <!-- {mark} --> above a block")
        line = text.count("\n", 0, match.start("text")) + 1
        below = bool(found) and not text[end : match.start()].strip()
        found.append(
            Block(page, line, match["language"], match["text"], mark, (headings or [""])[-1], below)
        )
        end = match.end()
    return found


def without_blocks(text: str) -> str:
    """The text of a page around its blocks."""
    return _BLOCK.sub("", text)


def read(page: Path) -> Reading:
    """Run the Python of ``page`` in one namespace, and parse its commands; raise where it fails."""
    reading = Reading(names={"__name__": f"page_{page.stem.replace('-', '_')}"})
    for block, shown in _with_what_is_shown(blocks(page)):
        if block.language not in ("python", "sh"):
            continue
        if block.missing:
            reading.left_out.append(block)
            continue
        if block.language == "python":
            printed: str | None = _run_python(block, shown is not None, reading.names)
        else:
            printed = _run_commands(block, shown is not None, reading.commands)
        chatter = shown is None and block.mark.startswith("needs")  # another library's progress
        if printed is not None and not chatter:
            _compare(block, printed, shown)
        reading.ran.append(block)
    return reading


def _with_what_is_shown(found: list[Block]) -> Iterator[tuple[Block, Block | None]]:
    for number, block in enumerate(found):
        behind = found[number + 1] if number + 1 < len(found) else None
        shown = behind is not None and behind.language == "text" and behind.below
        yield block, behind if shown else None


def _run_python(block: Block, shown: bool, names: dict[str, Any]) -> str:
    # As many empty lines as stand before it: messages that quote a line then quote the page's.
    code = "\n" * (block.line - 1) + block.text
    out = io.StringIO()
    error: BaseException | None = None
    with contextlib.redirect_stdout(out), _logged(block) as logged:
        try:
            exec(compile(code, str(block.page), "exec"), names)
        except Exception as raised:
            error = raised
    if block.mark != "raises":
        if error is not None:
            if hasattr(error, "add_note"):  # from Python 3.11
                error.add_note(f"in the block at {block.place}")
            raise error
        if block.mark == "logs":
            _has_heading(block, "\n".join(logged))
        return out.getvalue()
    if error is None:
        raise AssertionError(f"{block.place}: is marked as raising, and does not")
    if not shown:
        _has_heading(block, str(error))
        return out.getvalue()
    return f"{out.getvalue()}{type(error).__name__}: {error}\n"


@contextlib.contextmanager
def _logged(block: Block) -> Iterator[list[str]]:
    """What is logged and warned of, where the block is marked so."""
    said: list[str] = []
    if block.mark != "logs":
        yield said
        return
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("gradstep")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield said
        said += [str(warning.message) for warning in caught]
    finally:
        logger.removeHandler(handler)


def _has_heading(block: Block, said: str) -> None:
    heading = block.heading.strip("`")
    if not re.search(re.escape(heading).replace("…", ".*?"), said, re.S):
        raise AssertionError(f"{block.place}: the heading is\n{heading}\nand it says\n{said}")


def _run_commands(block: Block, shown: bool, seen: list[list[str]]) -> str | None:
    """Parse each command of ours, and run it where it only says something. None: not run."""
    found = [
        arguments
        for line in block.text.replace("\\\n", "").splitlines()
        if (arguments := command(line))
    ]
    seen += found
    for arguments in found:
        check_command(arguments, block.place)
    if len(found) == 1 and found[0][0] in ("explain", "rules"):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            assert main(found[0]) == 0, block.place
        return out.getvalue() if shown else None
    return None


def command(line: str) -> list[str]:
    """The arguments of ``gradstep`` in a line of a shell; none if it is another command."""
    match = _BEFORE.match(line.strip())
    return shlex.split(line.strip()[match.end() :], comments=True) if match else []


def commands_in_prose(page: Path) -> Iterator[list[str]]:
    """Those between backticks, and those in indented lines."""
    text = without_blocks(page.read_text(encoding="utf-8"))
    for span in re.findall(r"`((?:python -m )?gradstep [^`]+)`", text):
        yield command(" ".join(span.split()))
    for line in re.findall(r"^    (gradstep .*)$", re.sub(r"\\\n +", "", text), re.M):
        yield command(line)


def check_command(arguments: list[str], place: str) -> None:
    """Raise if ``gradstep`` does not take these arguments."""
    if len(arguments) == 1:  # a sentence names the command
        assert arguments[0] in COMMANDS, f"{place}: gradstep {arguments[0]}"
        return
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            _, unknown = build_parser().parse_known_args(arguments)
    except SystemExit as left:
        if left.code:
            raise AssertionError(
                f"{place}: gradstep {' '.join(arguments)}: {said.getvalue()}"
            ) from None
        return  # --help and --version
    assert not unknown, f"{place}: gradstep {' '.join(arguments)}: unknown {unknown}"


_NUMBER = re.compile(r"[−-]?\d[\d,]*\.?\d*(?:e[−-]?\d+)?")


def _compare(block: Block, printed: str, shown: Block | None) -> None:
    said = shown.text if shown else ""
    if printed == said:
        return
    if re.fullmatch(re.escape(said).replace("…", ".*?"), printed, re.S):
        return
    if shown and shown.mark == "last digits vary" and _alike(printed, said):
        return
    raise AssertionError(f"{block.place} prints\n{printed}\nand the page shows\n{said}")


def _alike(printed: str, said: str) -> bool:
    """Whether two texts are the same but for the last digits of their numbers."""
    texts = [" ".join(_NUMBER.sub("#", text).split()) for text in (printed, said)]
    if texts[0] != texts[1]:
        return False
    pairs = zip(_NUMBER.findall(printed), _NUMBER.findall(said), strict=True)
    return all(math.isclose(_value(a), _value(b), rel_tol=0.01) for a, b in pairs)


def _value(number: str) -> float:
    return float(number.replace("−", "-").replace(",", ""))
