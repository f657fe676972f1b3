"""Findings from one process to another: of ranks under torchrun, of processes that a script starts.

Each process leaves a file in a folder that all of them know. Nobody waits for anybody: a process
that is killed leaves none.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from gradstep.sight.mistakes.finding import Finding
from gradstep.sight.mistakes.place import Place


@dataclass(frozen=True)
class Told:
    """What one process has to tell.

    Attributes:
        who: such as ``"rank 1"`` or ``"process 4711"``.
        findings: what was found in it.
        optimizers, steps: how many it made.
        exit_code: with which it ended.
    """

    who: str
    findings: list[Finding]
    optimizers: int
    steps: int
    exit_code: int = 0


def leave(folder: Path, name: str, told: Told) -> None:
    """Leave a file for whoever collects; whole or not at all."""
    text = json.dumps(asdict(told))
    partial = folder / f"{name}.partial"
    partial.write_text(text, encoding="utf-8")
    partial.replace(folder / f"{name}.json")


def collect(folder: Path) -> list[Told]:
    """All that was left in a folder, in the order of its files' names."""
    return list(_read(folder))


def _read(folder: Path) -> Iterator[Told]:
    for file in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads(file.read_text(encoding="utf-8"))
            findings = [
                Finding(**{**each, "place": each["place"] and Place(**each["place"])})
                for each in known.pop("findings")
            ]
            yield Told(**known, findings=findings)


def together(all_told: Sequence[Told], everybody: int = 0) -> list[Finding]:
    """Each finding once, with who saw it where that was not everybody.

    Args:
        all_told: of the processes.
        everybody: how many ranks there are, where all run the same script.
    """
    seen_by: dict[tuple[str, Place | None], tuple[Finding, list[str]]] = {}
    for told in all_told:
        for finding in told.findings:
            _, who = seen_by.setdefault((finding.name, finding.place), (finding, []))
            if told.who and told.who not in who:
                who.append(told.who)
    return [
        finding if not who or len(who) == everybody > 1 else _seen_by(finding, who)
        for finding, who in seen_by.values()
    ]


def _seen_by(finding: Finding, who: list[str]) -> Finding:
    more = f" and {len(who) - 3} more" if len(who) > 3 else ""
    return replace(finding, seen=f"{finding.seen} (in {', '.join(who[:3])}{more})")


def rank() -> str | None:
    """This process's rank under torchrun, which runs one script in several; else None."""
    return os.environ.get("RANK", "0") if "TORCHELASTIC_RUN_ID" in os.environ else None


def last_of_ranks(told: Told) -> list[Told] | None:
    """Tell the other ranks of this machine; what all have told if this is the last one, else None.

    One that ends with an error does not wait for the others, which torchrun then ends.
    """
    number = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    folder = _folder_of_ranks()
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
            return [told]  # somebody else's
        leave(folder, f"{int(rank() or 0):06d}", told)
        if told.exit_code == 0 and len(list(folder.glob("*.json"))) < number:
            return None
        (folder / "reported").touch(exist_ok=False)
    except FileExistsError:
        return None  # another was as late
    except OSError:
        return [told] if rank() == "0" else None
    found = collect(folder)
    if len(found) == number:
        _remove(folder)
    return found


def _folder_of_ranks() -> Path:
    of = (
        os.environ.get("TORCHELASTIC_RUN_ID", ""),
        os.environ.get("MASTER_PORT", ""),
        os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"),
        str(os.getppid()),  # the agent that started all of them
    )
    name = "-".join("".join(c for c in part if c.isalnum()) for part in of)
    return Path(tempfile.gettempdir()) / f"gradstep-doctor-{name}"


def _remove(folder: Path) -> None:
    with suppress(OSError):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
