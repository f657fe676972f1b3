"""What an argument of a command may be. argparse makes one line of each error."""

from __future__ import annotations

import argparse
import math
import re
import textwrap
from collections.abc import Callable
from pathlib import Path


class Help(argparse.RawDescriptionHelpFormatter):
    """Help as wide as the terminal, and at most 100 columns: paragraphs are filled anew, examples
    keep their lines."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        width = min(width, 98)
        blocks = text.strip("\n").split("\n\n")
        return "\n\n".join("\n".join(self._block(block, width, indent)) for block in blocks)

    def _block(self, block: str, width: int, indent: str) -> list[str]:
        lines = block.split("\n")
        if not any(line.startswith(" ") for line in lines):
            return textwrap.wrap(
                " ".join(lines),
                width,
                initial_indent=indent,
                subsequent_indent=indent,
                break_on_hyphens=False,
            )
        return [row for line in lines for row in self._example(indent + line, width)]

    def _example(self, line: str, width: int) -> list[str]:
        """A command and, behind a gap, what it does: below it where both are too long."""
        command = re.match(r"( *\S.*?) {2,}(\S.*)", line)
        if len(line) <= width:
            return [line]
        before, text = command.groups() if command else ("", line.strip())
        margin = " " * (len(line) - len(line.lstrip()) + 4 * bool(command))
        rows = textwrap.wrap(
            text,
            width,
            initial_indent=margin,
            subsequent_indent=margin,
            break_on_hyphens=False,
            break_long_words=False,
        )
        return [before, *rows] if command else rows


def whole(lowest: int, highest: int) -> Callable[[str], int]:
    """A whole number in a range, the ends of it among them."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"{text} is not from {lowest} to {highest}")
        return value

    return read


#: A number above 0.
count = whole(1, 10**9)

#: What torch.manual_seed and NumPy's generators take.
seed = whole(0, 2**32 - 1)


def number(text: str) -> float:
    """Any number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def share(text: str) -> float:
    """A number above 0 and at most 1."""
    value = number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return value


def rates(text: str) -> tuple[float, ...]:
    """Learning rates with commas between them."""
    found = tuple(number(part) for part in text.split(","))
    for rate in found:
        if not 0 < rate < math.inf:
            raise argparse.ArgumentTypeError(f"{text}: a learning rate must be above 0 and finite")
    return found


def index(text: str) -> tuple[int, ...]:
    """The place of an element: whole numbers with commas between them."""
    try:
        return tuple(int(part) for part in text.strip("[]()").split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a whole number, or several with commas between them"
        ) from None


def path(text: str) -> Path:
    """A file or folder, which need not be there."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name is no folder")
    return Path(text)


def records(text: str) -> Path:
    """Where to keep what was watched: a file of JSON lines, or a folder."""
    found = path(text)
    if found.suffix not in ("", ".jsonl") and not found.is_dir():
        raise argparse.ArgumentTypeError(
            f"{text}: cannot tell what to write there; a name that ends in .jsonl is for lines of "
            "JSON, a folder, without an ending, for TensorBoard"
        )
    return found
