"""``gradstep doctor SCRIPT``: run a training script as it is, and name the mistakes in it."""

from __future__ import annotations

import argparse
import sys
import textwrap
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from gradstep.cli import arguments

if TYPE_CHECKING:
    from gradstep.sight.ink import Ink
    from gradstep.sight.mistakes.elsewhere import Told
    from gradstep.sight.mistakes.finding import Finding
    from gradstep.sight.mistakes.script import ScriptRun

_DESCRIPTION = """\
Run a Python script unchanged, watch every optimizer that it makes (gradstep's or torch.optim's),
and say at the end what is wrong in its training loop: which line, what was seen, why it hurts, and
what to write instead. The script need not import gradstep. Its output is its own; the findings go
to the standard error. The exit code is the script's; with --strict it is 1 after a mistake.

With --device, run every rule of gradstep on that GPU instead, or those that are named, and compare
with the CPU bit by bit: a table for a report. The exit code is 1 where a bit differs.
"""

_EXAMPLES = """\
examples:
  gradstep doctor train.py                         run train.py and look at its loop
  gradstep doctor train.py --epochs 1 --lr 0.1     what follows the script is the script's
  gradstep doctor --strict train.py                fail where there is a mistake, as in CI
  gradstep doctor --list                           all that it finds, and what to write instead
  gradstep doctor --json findings.json train.py    the findings for programs, too
  gradstep doctor --device cuda                    every rule and format on a GPU, against the CPU
  gradstep doctor --device cuda:1 adam lion        these rules
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the tree."""
    parser = subparsers.add_parser(
        "doctor",
        help="run a training script and name the mistakes in it",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=arguments.Help,
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit with 1 if there are mistakes (not for advice)"
    )
    parser.add_argument(
        "--json", type=arguments.path, metavar="FILE", help="also write the findings there, as JSON"
    )
    parser.add_argument(
        "--list", action=_List, nargs=0, help="say what it finds, with advice, and run nothing"
    )
    parser.add_argument(
        "--device", metavar="cuda", help="check the rules on a GPU, instead of a script"
    )
    parser.add_argument("script", metavar="SCRIPT", nargs="?", help="a Python file")
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="...", help="the script's own arguments"
    )
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    if args.device is not None:
        return _check_device(args.device, [args.script, *args.arguments] if args.script else [])
    if args.script is None:
        args.parser.error("the following arguments are required: SCRIPT")
    from gradstep.sight.ink import ink_for, write
    from gradstep.sight.mistakes.elsewhere import Told, last_of_ranks, rank
    from gradstep.sight.mistakes.script import run_script

    if args.json is not None:
        try:
            args.json.open("a").close()  # before the training, not after hours of it
        except OSError as error:
            return _refuse(f"argument --json: {error.strerror}: {args.json}")
    try:
        outcome = run_script(args.script, args.arguments)
    except OSError as error:
        return _refuse(f"{error.strerror}: {args.script}" if error.strerror else str(error))
    if sys.stdout is not None:
        with suppress(OSError):  # the reader of a pipe has gone
            sys.stdout.flush()
    exit_code, where = outcome.exit_code, ""
    if rank() is not None:
        told = Told(
            f"rank {rank()}", outcome.findings, outcome.optimizers, outcome.steps, exit_code
        )
        everybody = last_of_ranks(told)
        if everybody is None:
            return exit_code  # another one reports
        outcome, where = _of_ranks(outcome, everybody)
    # A script without mistakes leaves no trace in a log; a person is told that it was looked at.
    healthy = outcome.steps and not outcome.findings and exit_code == 0
    if not healthy or (sys.stderr is not None and sys.stderr.isatty()):
        with suppress(OSError):
            write("\n".join(_report(args.script, outcome, ink_for(sys.stderr), where)), sys.stderr)
    if args.json is not None:
        _write_json(args.json, outcome)
    if exit_code == 0 and args.strict and _count(outcome, "mistake"):
        return 1
    return exit_code


def _check_device(name: str, rules: list[str]) -> int:
    """Run rules on a device, and print what came of it."""
    from gradstep.lab.device import described, gpu
    from gradstep.lab.device_check import checked
    from gradstep.lab.errors import DeviceError
    from gradstep.sight.catalogue import UnknownName

    try:
        device = gpu(name)
    except DeviceError as error:
        return _refuse(f"argument --device: {error}")
    print(f"gradstep doctor: {described(device)}", flush=True)
    try:
        for report in checked(rules, device):
            if sys.stderr.isatty():
                print(f"  {list(report.cells)[-1]}", file=sys.stderr)
    except UnknownName as error:
        return _refuse(str(error))
    print("\n".join(report.lines()))
    return int(report.differs())


class _List(argparse.Action):
    """Ends the command, as ``--help`` does: it needs no script."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from gradstep.sight.ink import ink_for, tell
        from gradstep.sight.mistakes.known import load

        ink = ink_for(sys.stdout)
        lines: list[str] = []
        for each in load()[1]:
            mark = ink.warning if each.severity == "mistake" else ink.heading
            lines += ["", mark(f"{each.severity}: {each.name}")]
            lines += _wrapped(
                sys.stdout, ("when", each.when), ("why", each.why), ("write", each.write)
            )
        parser.exit(tell("gradstep doctor", "\n".join(lines[1:])))


def _refuse(message: str) -> int:
    print(f"gradstep doctor: {message}", file=sys.stderr)
    return 2


def _count(outcome: ScriptRun, severity: str) -> int:
    return sum(finding.severity == severity for finding in outcome.findings)


def _report(script: str, outcome: ScriptRun, ink: Ink, where: str) -> list[str]:
    mistakes, advice = _count(outcome, "mistake"), _count(outcome, "advice")
    of = (
        f"{outcome.optimizers} optimizer{'s' * (outcome.optimizers != 1)}, "
        f"{outcome.steps} step{'s' * (outcome.steps != 1)}"
    )
    of += where
    if outcome.seen_processes:
        of += f", with {_processes(outcome.seen_processes)} that it started"
    found = [f"{mistakes} mistake{'s' * (mistakes != 1)}"] if mistakes else []
    found += [f"{advice} piece{'s' * (advice != 1)} of advice"] if advice else []
    said = " and ".join(found) or "nothing found"
    if not outcome.steps and outcome.by_hand:
        of = "no optimizer; weights that are moved by hand"
    elif not outcome.steps and not found:
        said = "no optimizer made a step, so there was nothing to look at"
    lines = [ink.heading(f"gradstep doctor: {said} in {script} ({of})")]
    if outcome.processes:
        lines += _wrapped(
            sys.stderr,
            (
                "note",
                f"the script started {_processes(outcome.processes)} of which nothing was seen: "
                "run the training in one process, or each under gradstep doctor, as torchrun does",
            ),
        )
    for finding in outcome.findings:
        lines += ["", *_paragraph(finding, ink)]
    return lines


def _processes(count: int) -> str:
    return f"{count} process{'es' * (count != 1)}"


def _of_ranks(outcome: ScriptRun, everybody: list[Told]) -> tuple[ScriptRun, str]:
    """What all ranks have found together, and how to say how many they are."""
    from gradstep.sight.mistakes.elsewhere import together

    ranks = len(everybody)
    findings = together(everybody, ranks)
    if len({(told.optimizers, told.steps) for told in everybody}) == 1:
        return replace(outcome, findings=findings), f" in each of {ranks} ranks" * (ranks > 1)
    optimizers = sum(told.optimizers for told in everybody)
    steps = sum(told.steps for told in everybody)
    outcome = replace(outcome, findings=findings, optimizers=optimizers, steps=steps)
    return outcome, f" in {ranks} ranks together"


def _paragraph(finding: Finding, ink: Ink) -> list[str]:
    mark = ink.warning if finding.severity == "mistake" else ink.heading
    place = finding.place
    lines = [f"{mark(f'{finding.severity}: {finding.name}')}"]
    if place is not None:
        inside = "" if place.function == "<module>" else f", in {place.function}"
        lines[0] += f"  {_short(place.file)}:{place.line}{inside}"
        if place.text:
            lines.append("    " + ink.code(place.text))
    return lines + _wrapped(
        sys.stderr, ("seen", finding.seen), ("why", finding.why), ("write", finding.write)
    )


def _wrapped(stream: TextIO | None, *labelled: tuple[str, str]) -> list[str]:
    from gradstep.sight.ink import columns

    lines: list[str] = []
    for label, text in labelled:
        lines += textwrap.wrap(
            text,
            columns(96, stream),
            initial_indent=f"  {label + ':':<7}",
            subsequent_indent=" " * 9,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return lines


def _short(file: str) -> str:
    """A path from the working directory, if it lies in there."""
    try:
        return str(Path(file).relative_to(Path.cwd()))
    except (OSError, ValueError):
        return file


def _write_json(path: Path, outcome: ScriptRun) -> None:
    import json

    records = [
        {
            "name": finding.name,
            "severity": finding.severity,
            "file": finding.place.file if finding.place else None,
            "line": finding.place.line if finding.place else None,
            "parameter": finding.parameter,
            "step": finding.step,
            "seen": finding.seen,
            "why": finding.why,
            "write": finding.write,
        }
        for finding in outcome.findings
    ]
    text = json.dumps({"exit_code": outcome.exit_code, "findings": records}, indent=2)
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        print(f"gradstep doctor: cannot write {path}: {error.strerror}", file=sys.stderr)
